"""``handrec mano``: checks a MANO file, or converts it to arrays that need no unpickling."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from handrec.hand.mano_files import ManoArrays


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare ``check FILE`` and ``convert FILE [--out FILE]``."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = actions.add_parser("check", help="say whether a file is MANO as released, and show it")
    convert = actions.add_parser("convert", help="write its arrays as an .npz, which loads faster")
    for action in (check, convert):
        action.add_argument("file", type=Path, help="MANO_RIGHT.pkl or MANO_LEFT.pkl, or an .npz")
    convert.add_argument("--out", type=Path, help="the .npz to write (default: beside the file)")


def run(args: argparse.Namespace) -> int:
    """Run the action; a file that is not MANO's raises a ``UserError``."""
    return check(args.file) if args.action == "check" else convert(args.file, args.out)


def check(file: Path) -> int:
    """Print what a MANO file holds; a checksum other than the release's is a warning."""
    from rich.console import Console

    from handrec.hand.mano_files import KNOWN_MD5, md5, read_mano

    arrays = read_mano(file)
    console = Console(highlight=False)
    console.print(f"{file}: a {arrays.side} hand", markup=False, soft_wrap=True)
    if file.suffix == ".npz":
        console.print("converted: compare the original's checksum instead", style="dim")
    elif md5(file) == KNOWN_MD5[arrays.side]:
        console.print(f"as released (md5 {KNOWN_MD5[arrays.side]})", style="green")
    else:
        console.print(
            f"warning: not the released file: md5 {md5(file)}, expected {KNOWN_MD5[arrays.side]}. "
            "Labels that were made with the release may not fit it.",
            style="yellow",
            soft_wrap=True,
        )
    for table in (_arrays_table(arrays), _tips_table(arrays)):
        console.print(table)
    return 0


def convert(file: Path, out: Path | None = None) -> int:
    """Write the arrays of a MANO file as an ``.npz``."""
    from handrec.errors import UserError
    from handrec.hand.mano_files import read_mano, save_mano

    out = file.with_suffix(".npz") if out is None else out
    if out.suffix != ".npz":
        raise UserError(f"--out {out}: the name must end in .npz")
    if out.exists() and out.samefile(file):
        raise UserError(f"{file} is an .npz already")
    arrays = read_mano(file)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_mano(arrays, out)
    print(f"{file} -> {out} ({out.stat().st_size / 1e6:.1f} MB, a {arrays.side} hand)")
    return 0


def _arrays_table(arrays: "ManoArrays") -> "Table":
    from rich.table import Table

    table = Table("array", "shape", "from", "to", title="Arrays", title_justify="left")
    for name, value in vars(arrays).items():
        if name != "side":
            low, high = f"{value.min():.4g}", f"{value.max():.4g}"
            table.add_row(name, " x ".join(map(str, value.shape)), low, high)
    return table


def _tips_table(arrays: "ManoArrays") -> "Table":
    """Show how far apart the conventions' fingertips are: what a wrong one costs."""
    import numpy as np
    from rich.table import Table

    from handrec.hand.joints import FINGERS
    from handrec.hand.mano import TIP_VERTICES

    title = "Fingertip vertices (and millimetres from FreiHAND's)"
    table = Table("tips", *FINGERS, title=title, title_justify="left")
    reference = arrays.v_template[list(TIP_VERTICES["freihand"])]
    for convention, tips in TIP_VERTICES.items():
        apart = 1000 * np.linalg.norm(arrays.v_template[list(tips)] - reference, axis=1)
        cells = (f"{tip} ({far:.1f})" for tip, far in zip(tips, apart, strict=True))
        table.add_row(convention, *cells)
    return table
