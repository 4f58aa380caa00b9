"""The evaluation report that a test run leaves behind."""

import platform
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import pytorch_lightning as pl
import torch
from jaxtyping import Float
from rich.console import Console
from torch import Tensor, distributed

import handrec
from handrec.callbacks.report_files import (
    CONTACT_CAPTION,
    Evaluated,
    SplitReport,
    figures,
    pck_picture,
    print_table,
    write_split,
    write_summary,
)
from handrec.callbacks.submission import Submission
from handrec.errors import UserError
from handrec.hand.base import HandModel
from handrec.methods.base import HandMethod
from handrec.metrics.articulation import ArticulationMetrics
from handrec.metrics.baseline import MeanHand
from handrec.metrics.hand import HandMetrics, Samples, suspicions
from handrec.metrics.keypoints import is_2d_only
from handrec.metrics.official import VERTICES, ProtocolName
from handrec.metrics.temporal import FRAME_RATE, TemporalMetrics
from handrec.render.base import Rasterizer
from handrec.types import HandBatch, HandPrediction
from handrec.viz.contact import Example, Gallery, contact_sheet
from handrec.viz.drawing import to_picture
from handrec.viz.report import encode_png

MEAN_HAND = "mean hand"

_PICTURE_SIZE = 160  # pixels, longer side of the crops on the contact sheet


class SplitEvaluation:
    """What is measured of one split.

    Args:
        name: of the split.
        examples: see :class:`EvaluationReport`.
        submission: where its hands are collected, if they are to be handed in.
        hand: whose meshes the method predicts.
        rate: frame numbers per second of its videos.
    """

    def __init__(
        self,
        name: str,
        examples: int,
        submission: Submission | None = None,
        hand: HandModel | None = None,
        rate: float = FRAME_RATE,
    ) -> None:
        self.name, self.submission, self.hand, self.rate = name, submission, hand, rate
        self.gallery = Gallery(examples)
        self.metrics: dict[str, HandMetrics] = {}
        self.articulation: dict[str, ArticulationMetrics] = {}
        self.temporal: dict[str, TemporalMetrics] = {}

    def measure(
        self, row: str, prediction: HandPrediction, batch: HandBatch, f_scores: bool = True
    ) -> None:
        """Add a batch to the metrics of a row; only the first's hands are looked into."""
        if row not in self.metrics:
            device = batch.image.device
            hand = None if self.metrics else self.hand
            metrics = HandMetrics(f_scores, warn=False, hand=hand)  # the report shows suspicions
            self.metrics[row] = metrics.to(device)
            self.articulation[row] = ArticulationMetrics().to(device)
            self.temporal[row] = TemporalMetrics(self.rate).to(device)
        for measured in (self.metrics, self.articulation, self.temporal):
            measured[row].update(prediction, batch)

    def keep_examples(self, row: str, prediction: HandPrediction, batch: HandBatch) -> None:
        """Keep samples of the batch last measured to look at."""
        for example in _examples(prediction, batch, _ranking(self.metrics[row].latest)):
            self.gallery.add(example)

    def rows(self) -> list[Evaluated]:
        """Return the figures of every row; collective."""
        return [
            Evaluated(
                name,
                metrics.compute()
                | self.articulation[name].compute()
                | self.temporal[name].compute(),
                metrics.samples(),
            )
            for name, metrics in self.metrics.items()
        ]


class EvaluationReport(pl.Callback):
    """Writes what a test run found, beside the mean hand: json, csv, plots and one HTML file.

    Reads the method's ``HandPrediction`` from ``test_step``. Where the method has a method
    ``iterations(batch) -> list[HandPrediction]``, each iteration gets a row of its own. Splits with
    videos also get temporal figures.

    Files go to ``<run directory>/eval/<data name>/<split>/``: ``metrics.json``,
    ``per_sample.csv``, ``pck.png``, ``contact.png`` and ``report.html``, which shows them all and
    needs no other file; ``pred.json`` and ``pred.zip`` if they are asked for;
    ``eval/<data name>/metrics.json`` holds the figures of all splits of the
    latest evaluation. A ``fast_dev_run`` prints the table only.

    Args:
        out: run directory; the trainer's ``log_dir`` if None.
        examples: how many of the worst, median and best samples the contact sheet shows.
        distance: of the mean hand from the camera, metres; only camera-space figures see it.
        rasterizer: draws the meshes of the contact sheet; None takes ``warp``.
        submission: whose evaluation server to write ``pred.json`` and ``pred.zip`` for, beside the
            report and in that data set's joint order and axes; where all labels are there, also
            ``scores.txt``, as ``handrec score`` does. None takes the data module's. Needs a hand
            model with MANO's vertices.
    """

    def __init__(
        self,
        out: str | None = None,
        examples: int = 4,
        distance: float = 0.7,
        rasterizer: Rasterizer | None = None,
        submission: ProtocolName | None = None,
    ) -> None:
        self.out, self.examples, self.distance = out, examples, distance
        self.rasterizer, self.submission = rasterizer, submission

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start afresh."""
        self._reports = isinstance(pl_module, HandMethod)
        if not isinstance(pl_module, HandMethod):  # it logs what it measures itself
            return
        self._method = type(pl_module).__name__
        self._hand = pl_module.hand
        self._mean_hand = MeanHand(pl_module.hand, self.distance)
        module = getattr(trainer, "datamodule", None)
        rate = getattr(module, "frame_rate", FRAME_RATE)
        self._splits = [
            SplitEvaluation(name, self.examples, self._new_submission(module), self._hand, rate)
            for name in getattr(module, "test_splits", ("test",))
        ]

    def _new_submission(self, module: object) -> Submission | None:
        """Return what collects a split's hands, if they are to be handed in."""
        count = len(self._hand.template)
        if self.submission and count != VERTICES:
            raise UserError(
                f"submission={self.submission}: the server scores MANO's {VERTICES} vertices,"
                f" {type(self._hand).__name__} has {count:,}"
            )
        name = self.submission or getattr(module, "submission", None)
        return None if name is None else Submission(name, count)

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
        if not self._reports:
            return
        if not isinstance(outputs, HandPrediction):
            raise TypeError(f"test_step must return a HandPrediction, not {type(outputs).__name__}")
        split = self._splits[dataloader_idx]
        split.measure(self._method, outputs, batch)
        split.measure(MEAN_HAND, self._mean_hand.predict(batch), batch)
        iterations = getattr(pl_module, "iterations", None)
        if iterations:
            with trainer.precision_plugin.forward_context():  # as test_step ran
                predictions = iterations(batch)
            for index, prediction in enumerate(predictions, start=1):
                split.measure(f"iteration {index}", prediction, batch, f_scores=False)
        split.keep_examples(self._method, outputs, batch)
        if split.submission:
            split.submission.add(outputs, batch)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the report, log the figures and print the table."""
        if self._reports:
            self._write_all(trainer)

    def _write_all(self, trainer: pl.Trainer) -> None:
        module = getattr(trainer, "datamodule", None)
        data = getattr(module, "name", "test")
        # Directory, figures and examples are collective: every rank takes part.
        folder = Path(self.out or trainer.log_dir or trainer.default_root_dir) / "eval" / data
        reports, sheets, submissions = [], [], []
        for split in self._splits:
            if split.metrics:
                rows = split.rows()
                sheets.append(_choose(split.gallery, rows[0].samples))
                facts = self._facts(rows[0], split.name, trainer)
                warnings = suspicions(rows[0].results)
                submissions.append(split.submission)
                if split.submission:
                    warnings += split.submission.gather()
                reports.append(SplitReport(split.name, rows, facts, warnings))
        if not reports or not trainer.is_global_zero:
            return
        print_table(reports, f"{self._method} on {data}")
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        for logger in trainer.loggers:
            logger.log_metrics(_logged(reports))
        for report, chosen, submission in zip(reports, sheets, submissions, strict=True):
            pictures = {} if is_2d_only(report.rows[0].results) else pck_picture(report.rows)
            if any(chosen.values()):
                sheet = contact_sheet(chosen, self._hand.faces, self.rasterizer)
                pictures["contact.png"] = (CONTACT_CAPTION, encode_png(sheet))
            write_split(folder / report.split, report, pictures)
            if submission:
                submission.write(folder / report.split)
            path = folder / report.split / "report.html"
            Console().print(f"report: {path}", soft_wrap=True)
        write_summary(folder / "metrics.json", reports)

    def _facts(self, row: Evaluated, split: str, trainer: pl.Trainer) -> dict[str, Any]:
        """Return where the figures come from."""
        module = getattr(trainer, "datamodule", None)
        fingerprint = getattr(module, "fingerprint", lambda _: "")
        packages = ("torch", "pytorch-lightning", "torchmetrics", "numpy", "scipy")
        return {
            "method": row.name,
            "checkpoint": str(trainer.ckpt_path or "none: weights as they were"),
            "data": getattr(module, "name", "test"),
            "split": split,
            "split_sha256": fingerprint(split),
            "samples": len(row.samples.ids),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {
                "handrec": handrec.__version__,
                "python": platform.python_version(),
                **{name: version(name) for name in packages},
            },
            "data_description": getattr(module, "description", ""),
        }


def _logged(reports: list[SplitReport]) -> dict[str, float]:
    """Return the method's figures for loggers; those of the only split need no name."""
    logged = {}
    for report in reports:
        prefix = "test" if len(reports) == 1 else f"test/{report.split}"
        for name, value in figures(report.rows[0]).items():
            if value is not None:
                logged[f"{prefix}/{name}"] = value
    return logged


def _ranking(metric: Callable[[str], Tensor]) -> Float[Tensor, " b"]:
    """Return the error by which samples are ranked: PA-MPJPE, else PA-MPVPE, else that in 2D."""
    joints, mesh, keypoints = metric("pa_mpjpe"), metric("pa_mpvpe"), metric("kp_px")
    found = torch.where(joints.isnan(), mesh, joints)
    return torch.where(found.isnan(), keypoints, found)


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
