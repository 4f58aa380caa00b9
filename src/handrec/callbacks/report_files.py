"""The figures of an evaluation as tables, files and plots."""

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable
from torch import Tensor

from handrec.metrics.articulation import ARTICULATION
from handrec.metrics.functional import PCK_THRESHOLDS
from handrec.metrics.hand import LENGTHS, PENETRATION, Samples
from handrec.metrics.keypoints import KEYPOINTS, is_2d_only
from handrec.metrics.temporal import TEMPORAL
from handrec.viz.plots import pck_plot
from handrec.viz.report import Table, encode_png, html_report

#: Heading and metric of each column of figures.
COLUMNS = {
    "MPJPE": "mpjpe",
    "PA-MPJPE": "pa_mpjpe",
    "MPVPE": "mpvpe",
    "PA-MPVPE": "pa_mpvpe",
    "AUC": "pa_auc_j",
    "F@5": "pa_f5",
    "F@15": "pa_f15",
}

#: More of them, where 3D joints are labelled.
ARTICULATION_COLUMNS = {"ART-R": ARTICULATION[0]}

#: More of them, where a split holds videos.
TEMPORAL_COLUMNS = dict(
    zip(("ACCEL", "JITTER", "SHAPE-SD", "BONE-SD", "TEXTURE-SD"), TEMPORAL, strict=True)
)

#: More of them, where a row has them.
PENETRATION_COLUMNS = dict(zip(("DEPTH", "INSIDE"), PENETRATION, strict=True))

#: Instead of all others, where only 2D keypoints are labelled.
KEYPOINT_COLUMNS = dict(
    zip(("2D PX", "2D %", "PCK@.05", "PCK@.10", "2D AUC"), KEYPOINTS, strict=True)
)

#: Digits after the point; three for shares.
_DIGITS = {"accel_error": 0} | dict.fromkeys(
    (*LENGTHS, "jitter", "bone_sd", "texture_sd", "penetration", "kp_px", "kp_box"), 2
)

LEGEND: tuple[str, ...] = (
    "Lengths in mm, means over n samples. MPJPE, MPVPE: joints and vertices relative to the wrist "
    "joint, no other alignment.",
    "PA-: after a similarity alignment of each sample, joints and mesh separately, as in the "
    "official FreiHAND and HO-3D evaluations, which allow reflections.",
    "AUC: of the aligned joints' PCK curve from 0 to 50 mm. F@5, F@15: F-scores of the aligned "
    "mesh at 5 and 15 mm.",
    "mean hand: the same unturned hand in the mean pose for every image.",
)

ARTICULATION_LEGEND = (
    "ART-R: correlation, over the samples, of predicted and labelled joints without place, "
    "direction and size: whether bent fingers are told from stretched ones. 0 for any hand that is "
    "always the same, whatever its PA-MPJPE.",
)

TEMPORAL_LEGEND = (
    "ACCEL: error of the joints' acceleration relative to the wrist, mm/s^2; JITTER: their jerk, "
    "m/s^3.",
    "SHAPE-SD, BONE-SD: standard deviation of shape coefficients and of bone lengths (mm) along a "
    "video, where both are constant in truth.",
)

PENETRATION_LEGEND = (
    "DEPTH: how deep the deepest vertex is inside another part of its own hand, mm; INSIDE: share "
    "of the vertices that are. 0 for a hand that does not run into itself; no labels are needed.",
)

TEXTURE_LEGEND = (
    "TEXTURE-SD: standard deviation of the predicted colours without light along a video, levels "
    "of 255.",
)

KEYPOINT_LEGEND = (
    "Only 2D keypoints are labelled: distances of the projected joints from them, means over n "
    "samples. 2D PX: pixels, were the crop 224 wide; 2D %: per cent of the longer side of the box "
    "around the labelled keypoints.",
    "PCK@: share of keypoints off by at most 5 % and 10 % of that side; 2D AUC: of this curve from "
    "0 to 20 %.",
    "mean hand: the same unturned hand in the mean pose at the same place for every image.",
)

CONTACT_CAPTION = (
    "Worst, median and best samples by PA-MPJPE (2D error, if that is all): left the predicted "
    "skeleton in colour over the labelled one in white, right the predicted mesh"
)


class Evaluated(NamedTuple):
    """One row of the report.

    Attributes:
        name: of the row.
        results: mean of each metric.
        samples: what the means are of.
    """

    name: str
    results: Mapping[str, Tensor]
    samples: Samples

    @property
    def size(self) -> str:
        """The number of samples, and of labelled ones where they are fewer."""
        total = len(self.samples.ids)
        joints, meshes = (
            int(self.samples.values[name].isfinite().sum()) for name in ("pa_mpjpe", "pa_mpvpe")
        )
        if joints == meshes == total:
            return f"{total:,}"
        if is_2d_only(self.results):
            known = int(self.samples.values["kp_px"].isfinite().sum())
            return f"{total:,}" if known == total else f"{total:,} ({known:,} keypoints)"
        return f"{total:,} ({joints:,} joints, {meshes:,} meshes)"


class SplitReport(NamedTuple):
    """What there is to say of one split.

    Attributes:
        split: its name.
        rows: the method's, the mean hand's, then any others.
        facts: where the figures come from.
        warnings: a sentence each.
    """

    split: str
    rows: list[Evaluated]
    facts: dict[str, Any]
    warnings: list[str]


def figures(row: Evaluated) -> dict[str, float | None]:
    """Return the metrics of a row as numbers; None where no sample has the label."""
    return {name: float(value) if value.isfinite() else None for name, value in row.results.items()}


def table(named: list[tuple[str, Evaluated]]) -> Table:
    """Return the figures of rows as text, with further columns if any row has them.

    Args:
        named: rows by what they are called in this table.
    """
    had = {metric for _, row in named for metric in row.results}
    further = ARTICULATION_COLUMNS | PENETRATION_COLUMNS | TEMPORAL_COLUMNS
    columns = COLUMNS | {name: key for name, key in further.items() if key in had}
    legend = LEGEND + (ARTICULATION_LEGEND if ARTICULATION[0] in had else ())
    legend += PENETRATION_LEGEND if "penetration" in had else ()
    legend += TEMPORAL_LEGEND if "jitter" in had else ()
    legend += TEXTURE_LEGEND if "texture_sd" in had else ()
    if all(is_2d_only(row.results) for _, row in named):
        columns, legend = KEYPOINT_COLUMNS, KEYPOINT_LEGEND
    cells = []
    for name, row in named:
        values = [(figures(row).get(metric), _DIGITS.get(metric, 3)) for metric in columns.values()]
        text = ["–" if value is None else f"{value:.{digits}f}" for value, digits in values]
        cells.append([name, row.size, *text])
    return Table(["", "n", *columns], cells, legend)


def print_table(reports: list[SplitReport], title: str) -> None:
    """Print one table to the terminal, with its legend and any warnings.

    Of a single split every row is shown, of several the method and the mean hand.
    """
    named = [
        (f"{report.split}: {row.name}" if len(reports) > 1 else row.name, row)
        for report in reports
        for row in (report.rows[:2] if len(reports) > 1 else report.rows)
    ]
    content = table(named)
    only = "" if len(reports) > 1 or reports[0].split == "test" else f", {reports[0].split}"
    shown = RichTable(title=title + only, box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    # Where the terminal is narrow, names give way, never figures; names of splits must not either.
    widest = max(len(cells[0]) for cells in content.rows) if len(reports) > 1 else None
    shown.add_column("", min_width=widest)
    for heading in content.columns[1:]:
        shown.add_column(heading, justify="right", no_wrap=True)
    for cells in content.rows:
        shown.add_row(*cells)
    console = Console()
    needed = console.measure(shown, options=console.options.update(max_width=1000))
    fits = needed.minimum <= console.width
    Console(width=console.width if fits else needed.maximum).print(shown)
    for sentence in content.legend:
        console.print(sentence, style="dim")
    for report in reports:
        for warning in report.warnings:
            where = f"{report.split}: " if len(reports) > 1 else ""
            console.print(f"warning: {where}{warning}", style="bold yellow")


def write_split(
    folder: Path, report: SplitReport, pictures: Mapping[str, tuple[str, bytes]]
) -> None:
    """Write all files of one split.

    Args:
        folder: of the split.
        report: its figures.
        pictures: captions and PNG files by file name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "metrics.json", _content(report))
    _write_csv(folder / "per_sample.csv", report.rows[0].samples)
    for name, (_, png) in pictures.items():
        (folder / name).write_bytes(png)
    facts = report.facts
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    html = html_report(
        f"{facts['method']} on {facts['data']}, {report.split}",
        table([(row.name, row) for row in report.rows]),
        dict(pictures.values()),
        {name: str(value) for name, value in facts.items()} | {"versions": versions},
        report.warnings,
    )
    (folder / "report.html").write_text(html, encoding="utf-8")


def write_summary(path: Path, reports: list[SplitReport]) -> None:
    """Write the figures of all splits into one file."""
    _write_json(path, {"splits": {report.split: _content(report) for report in reports}})


def _content(report: SplitReport) -> dict[str, Any]:
    """Return all figures of all rows of a split, with where they come from."""
    results = {row.name: {"samples": len(row.samples.ids), **figures(row)} for row in report.rows}
    units = (
        "millimetres; auc_*, f*, pa_f* and penetration_share are shares in [0, 1];"
        " articulation_r a correlation, articulation_sd a ratio;"
        " accel_error mm/s^2, jitter m/s^3, shape_* coefficients, bone_sd millimetres,"
        " texture_* levels of 255; kp_px pixels of a 224 px crop,"
        " kp_box per cent of the box around the keypoints, kp_pck* and kp_auc shares"
    )
    return {**report.facts, "units": units, "warnings": report.warnings, "results": results}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _write_csv(path: Path, samples: Samples) -> None:
    """Write every metric of every sample, by id; an empty cell where the label is absent."""
    order = samples.ids.argsort(stable=True)
    columns = [samples.ids[order].tolist()]
    columns += [values[order].tolist() for values in samples.values.values()]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", *samples.values])
        for sample_id, *values in zip(*columns, strict=True):
            writer.writerow([sample_id, *("" if math.isnan(v) else f"{v:.7g}" for v in values)])


def pck_picture(rows: list[Evaluated]) -> dict[str, tuple[str, bytes]]:
    """Return caption and PNG, by its file name, of the PCK curves of method and mean hand."""
    panels = {
        title: {
            f"{row.name} (AUC {float(row.results[area]):.3f})": row.samples.curves[area].nanmean(0)
            for row in rows[:2]
        }
        for title, area in (("aligned joints", "pa_auc_j"), ("aligned mesh", "pa_auc_v"))
    }
    plot = encode_png(pck_plot(panels, PCK_THRESHOLDS))
    return {"pck.png": ("PCK after alignment of each sample", plot)}
