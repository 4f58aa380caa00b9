"""``handrec score``: the official evaluation of FreiHAND or HO-3D on a file of predictions."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from handrec.cli.folders import make_folder

if TYPE_CHECKING:
    from rich.table import Table

    from handrec.metrics.official import Scores

#: Rows of the table and the figures that they show.
ROWS = {
    "unaligned": "",
    "scale + translation": "_st",
    "aligned (PA)": "_al",
    "aligned, det = +1": "_rigid",
}

LEGEND = (
    "Joints and mesh: mean error in mm and area under the PCK curve from 0 to 50 mm. F: of the "
    "mesh at 5 and 15 mm. PA: official, may reflect; joints and mesh by a similarity of their own. "
    "scores.txt is in cm, as the servers report."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what ``handrec score`` takes."""
    parser.add_argument(
        "--protocol", required=True, choices=["freihand", "ho3d_v2", "ho3d_v3"], help="whose rules"
    )
    parser.add_argument("--gt-xyz", type=Path, required=True, help="evaluation_xyz.json")
    parser.add_argument(
        "--gt-verts", type=Path, help="evaluation_verts.json; without it only joints are scored"
    )
    parser.add_argument("--pred", type=Path, required=True, help="pred.json, or pred.zip with it")
    parser.add_argument(
        "--out", type=Path, help="folder for scores.txt (official keys), scores.json and more"
    )


def run(args: argparse.Namespace) -> int:
    """Score the file, print the table and write the files; mistakes raise a ``UserError``."""
    from rich.console import Console

    from handrec.metrics import official
    from handrec.metrics.official_files import read_ground_truth, read_prediction, write_scores

    if args.out:
        make_folder(args.out)  # what is refused is refused before the work
    console = Console(highlight=False)
    protocol = official.PROTOCOLS[args.protocol]
    with console.status("reading the ground truth") as status:
        target = read_ground_truth(args.gt_xyz, args.gt_verts)
        status.update("reading the predictions")
        samples = len(target.joints)
        vertices = None if target.vertices is None else target.vertices.shape[1]
        prediction = read_prediction(args.pred, samples, vertices)
        status.update(f"scoring {samples:,} hands")
        scores = official.evaluate(protocol, prediction, target)
    warnings = official.doubts(scores, prediction, target)
    warnings += official.unofficial(protocol, target)
    console.print(table(scores))
    console.print(LEGEND, style="dim")
    for warning in warnings:
        console.print(f"warning: {warning}", style="bold yellow", markup=False)
    if args.out:
        write_scores(args.out, scores, warnings)
        console.print(f"written: {args.out}", markup=False, soft_wrap=True)
    return 0


def table(scores: "Scores") -> "Table":
    """Return the figures as a table; lengths in millimetres."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    title = f"{scores.protocol.title}, {len(scores.reflected):,} samples"
    shown = Table("", title=title, box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("joints mm", "AUC", "mesh mm", "AUC", "F@5", "F@15"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for row, suffix in ROWS.items():
        if f"xyz{suffix}" in scores.errors:
            cells: list[str] = []
            for name in (f"xyz{suffix}", f"mesh{suffix}"):
                cells += _cells(scores, name)
            f_scores = scores.f_scores.get(f"mesh{suffix}")
            cells += ["–"] * 2 if f_scores is None else [f"{f:.3f}" for f in f_scores.mean(0)]
            shown.add_row(row, *cells)
    return shown


def _cells(scores: "Scores", name: str) -> list[str]:
    """Return mean error and area, or dashes where the protocol has none."""
    if name not in scores.errors:
        return ["–"] * 2
    return [f"{1000 * float(scores.errors[name].mean()):.2f}", f"{scores.auc(name):.3f}"]
