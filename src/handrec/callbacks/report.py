"""The evaluation report that a test run leaves behind."""

import csv
import json
import math
import platform
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import pytorch_lightning as pl
import torch
from jaxtyping import Float
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable
from torch import Tensor, distributed

import handrec
from handrec.methods.base import HandMethod
from handrec.metrics.baseline import MeanHand
from handrec.metrics.functional import PCK_THRESHOLDS
from handrec.metrics.hand import LENGTHS, HandMetrics, Samples, suspicions
from handrec.render.base import Rasterizer
from handrec.types import HandBatch, HandPrediction
from handrec.viz.contact import Example, Gallery, contact_sheet
from handrec.viz.drawing import to_picture
from handrec.viz.plots import pck_plot
from handrec.viz.report import Table, encode_png, html_report

MEAN_HAND = "mean hand"

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

LEGEND = (
    "Lengths in mm, means over n samples. MPJPE, MPVPE: joints and vertices relative to the wrist "
    "joint, no other alignment.",
    "PA-: after a similarity alignment of each sample, joints and mesh separately, as in the "
    "official FreiHAND and HO-3D evaluations, which allow reflections.",
    "AUC: of the aligned joints' PCK curve from 0 to 50 mm. F@5, F@15: F-scores of the aligned "
    "mesh at 5 and 15 mm.",
    "mean hand: the same unturned hand in the mean pose for every image.",
)

CONTACT_CAPTION = (
    "Worst, median and best samples by PA-MPJPE: left the predicted skeleton in colour over the "
    "labelled one in white, right the predicted mesh"
)

_PICTURE_SIZE = 160  # pixels, longer side of the crops on the contact sheet


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
        return f"{total:,} ({joints:,} joints, {meshes:,} meshes)"


class EvaluationReport(pl.Callback):
    """Writes what a test run found, beside the mean hand: json, csv, plots and one HTML file.

    Reads the method's ``HandPrediction`` from ``test_step``. Where the method has a method
    ``iterations(batch) -> list[HandPrediction]``, each iteration gets a row of its own.

    Files go to ``<run directory>/eval/<data name>/``: ``metrics.json``, ``per_sample.csv``,
    ``pck.png``, ``contact.png`` and ``report.html``, which shows them all and needs no other file.
    A ``fast_dev_run`` prints the table only.

    Args:
        out: run directory; the trainer's ``log_dir`` if None.
        examples: how many of the worst, median and best samples the contact sheet shows.
        distance: of the mean hand from the camera, metres; only camera-space figures see it.
        rasterizer: draws the meshes of the contact sheet; None takes ``warp``.
    """

    def __init__(
        self,
        out: str | None = None,
        examples: int = 4,
        distance: float = 0.7,
        rasterizer: Rasterizer | None = None,
    ) -> None:
        self.out, self.examples, self.distance = out, examples, distance
        self.rasterizer = rasterizer

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start afresh."""
        if not isinstance(pl_module, HandMethod):
            raise TypeError(
                f"{type(pl_module).__name__} is no HandMethod: it has no hand to report"
            )
        self._method = type(pl_module).__name__
        self._hand = pl_module.hand
        self._mean_hand = MeanHand(pl_module.hand, self.distance)
        self._metrics: dict[str, HandMetrics] = {}
        self._gallery = Gallery(self.examples)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: object,
        batch: HandBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Measure a batch."""
        if not isinstance(outputs, HandPrediction):
            raise TypeError(f"test_step must return a HandPrediction, not {type(outputs).__name__}")
        self._measure(self._method, outputs, batch)
        self._measure(MEAN_HAND, self._mean_hand.predict(batch), batch)
        iterations = getattr(pl_module, "iterations", None)
        if iterations:
            with trainer.precision_plugin.forward_context():  # as test_step ran
                predictions = iterations(batch)
            for index, prediction in enumerate(predictions, start=1):
                self._measure(f"iteration {index}", prediction, batch, f_scores=False)
        errors = _ranking(self._metrics[self._method].latest)
        for example in _examples(outputs, batch, errors):
            self._gallery.add(example)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the report, log the figures and print the table."""
        if not self._metrics:
            return
        # Directory, figures and examples are collective: every rank takes part.
        data = getattr(getattr(trainer, "datamodule", None), "name", "test")
        folder = Path(self.out or trainer.log_dir or trainer.default_root_dir) / "eval" / data
        rows = [
            Evaluated(name, metrics.compute(), metrics.samples())
            for name, metrics in self._metrics.items()
        ]
        chosen = _choose(self._gallery, rows[0].samples)
        if not trainer.is_global_zero:
            return
        table, warnings = _table(rows), suspicions(rows[0].results)
        _print(table, f"{self._method} on {data}", warnings)
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        figures = {f"test/{k}": v for k, v in _figures(rows[0]).items() if v is not None}
        for logger in trainer.loggers:
            logger.log_metrics(figures)
        facts = _facts(rows[0], data, str(trainer.ckpt_path or "none: weights as they were"))
        module = getattr(trainer, "datamodule", None)
        facts["data_description"] = getattr(module, "description", "")
        pictures = {"pck.png": _plot(rows)}
        if any(chosen.values()):
            sheet = contact_sheet(chosen, self._hand.faces, self.rasterizer)
            pictures["contact.png"] = (CONTACT_CAPTION, encode_png(sheet))
        _write(folder, rows, facts, warnings, pictures)
        Console().print(f"report: {folder / 'report.html'}", soft_wrap=True)

    def _measure(
        self, name: str, prediction: HandPrediction, batch: HandBatch, f_scores: bool = True
    ) -> None:
        """Add a batch to the metrics of a row."""
        if name not in self._metrics:
            metrics = HandMetrics(f_scores, warn=False)  # the report itself shows suspicions
            self._metrics[name] = metrics.to(batch.image.device)
        self._metrics[name].update(prediction, batch)


def _ranking(metric: Callable[[str], Tensor]) -> Float[Tensor, " b"]:
    """Return the error by which samples are ranked: PA-MPJPE, without joint labels PA-MPVPE."""
    joints, mesh = metric("pa_mpjpe"), metric("pa_mpvpe")
    return torch.where(joints.isnan(), mesh, joints)


def _examples(
    prediction: HandPrediction, batch: HandBatch, errors: Float[Tensor, " b"]
) -> Iterator[Example]:
    """Yield the labelled samples of a batch as small examples on the CPU."""
    height, width = batch.image.shape[-2:]
    scale = _PICTURE_SIZE / max(height, width)
    size = max(1, round(scale * width)), max(1, round(scale * height))
    # Pixel coordinates are continuous (centres at integer + 0.5), so a resize only scales them.
    scales = torch.tensor([size[0] / width, size[1] / height, 1.0])
    for row in errors.isfinite().nonzero().flatten().tolist():
        intrinsics, keypoints, target, confidence, vertices = (
            field[row].detach().float().cpu().clone()  # a view would keep the batch alive
            for field in (
                batch.intrinsics,
                prediction.keypoints_2d,
                batch.keypoints_2d,
                batch.confidence,
                prediction.vertices,
            )
        )
        yield Example(
            sample_id=int(batch.sample_id[row]),
            error=float(errors[row]),
            picture=cv2.resize(to_picture(batch.image[row]), size, interpolation=cv2.INTER_AREA),
            intrinsics=scales[:, None] * intrinsics,
            keypoints=scales[:2] * keypoints,
            target=scales[:2] * target,
            confidence=confidence,
            vertices=vertices,
        )


def _choose(gallery: Gallery, samples: Samples) -> dict[str, list[Example]]:
    """Return the worst, median and best examples of all ranks."""
    median = float(_ranking(samples.values.__getitem__).nanmedian())
    if not (distributed.is_available() and distributed.is_initialized()):
        return gallery.select(median)
    everyone: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(everyone, gallery.select(median))
    merged = Gallery(gallery.extremes)
    # By id: a sampler may have dealt a sample twice, and groups overlap in small sets.
    merged.examples = list(
        {e.sample_id: e for one in everyone for group in one.values() for e in group}.values()
    )
    return merged.select(median)


def _figures(row: Evaluated) -> dict[str, float | None]:
    """Return the metrics of a row as numbers; None where no sample has the label."""
    return {name: float(value) if value.isfinite() else None for name, value in row.results.items()}


def _table(rows: list[Evaluated]) -> Table:
    """Return the figures as text: lengths with two decimals, shares with three."""
    cells = []
    for row in rows:
        figures = _figures(row)
        values = [(figures.get(name), 2 if name in LENGTHS else 3) for name in COLUMNS.values()]
        text = ["–" if value is None else f"{value:.{digits}f}" for value, digits in values]
        cells.append([row.name, row.size, *text])
    return Table(["", "n", *COLUMNS], cells, LEGEND)


def _print(table: Table, title: str, warnings: list[str]) -> None:
    """Print the table to the terminal, with its legend and any warnings."""
    shown = RichTable(title=title, box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for index, heading in enumerate(table.columns):
        # Where the terminal is narrow, names give way, never figures.
        shown.add_column(heading, justify="right" if index else "left", no_wrap=index > 0)
    for row in table.rows:
        shown.add_row(*row)
    console = Console()
    console.print(shown)
    for sentence in table.legend:
        console.print(sentence, style="dim")
    for warning in warnings:
        console.print(f"warning: {warning}", style="bold yellow")


def _facts(row: Evaluated, data: str, checkpoint: str) -> dict[str, Any]:
    """Return where the figures come from."""
    packages = ("torch", "pytorch-lightning", "torchmetrics", "numpy", "scipy")
    return {
        "method": row.name,
        "checkpoint": checkpoint,
        "data": data,
        "samples": len(row.samples.ids),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "handrec": handrec.__version__,
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
        },
    }


def _write(
    folder: Path,
    rows: list[Evaluated],
    facts: dict[str, Any],
    warnings: list[str],
    pictures: dict[str, tuple[str, bytes]],
) -> None:
    """Write all files of a report."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "metrics.json", rows, facts, warnings)
    _write_csv(folder / "per_sample.csv", rows[0].samples)
    for name, (_, png) in pictures.items():
        (folder / name).write_bytes(png)
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    html = html_report(
        f"{facts['method']} on {facts['data']}",
        _table(rows),
        dict(pictures.values()),
        {name: str(value) for name, value in facts.items()} | {"versions": versions},
        warnings,
    )
    (folder / "report.html").write_text(html, encoding="utf-8")


def _write_json(
    path: Path, rows: list[Evaluated], facts: dict[str, Any], warnings: list[str]
) -> None:
    """Write all figures of all rows."""
    results = {row.name: {"samples": len(row.samples.ids), **_figures(row)} for row in rows}
    units = "millimetres; auc_*, f* and pa_f* are shares in [0, 1]"
    report = {**facts, "units": units, "warnings": warnings, "results": results}
    path.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")


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


def _plot(rows: list[Evaluated]) -> tuple[str, bytes]:
    """Return the caption and the PNG file of the PCK curves of the method and the mean hand."""
    panels = {
        title: {
            f"{row.name} (AUC {float(row.results[area]):.3f})": row.samples.curves[area].nanmean(0)
            for row in rows[:2]
        }
        for title, area in (("aligned joints", "pa_auc_j"), ("aligned mesh", "pa_auc_v"))
    }
    return "PCK after alignment of each sample", encode_png(pck_plot(panels, PCK_THRESHOLDS))
