"""What happened, where it lies, and what to type next."""

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from rich.console import Console
from rich.text import Text

from handrec.callbacks.progress import clock

#: Files of an evaluation that are worth naming, the most readable first.
REPORTS = ("report.html", "metrics.json", "pred.json")


class EndSummary(pl.Callback):
    """Prints a few lines when a command has ended.

    Args:
        experiment: its name, as typed after EXP=.
        console: where to print.
    """

    def __init__(self, experiment: str, console: Console | None = None) -> None:
        self.experiment = experiment
        self.console = console or Console(highlight=False, soft_wrap=True)
        self._started = time.monotonic()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    @rank_zero_only
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Print the summary; the last hook of a command that ended well."""
        rows = {"fit": self.fit_rows, "predict": self.predict_rows}.get(stage, self.test_rows)
        lines = [(Text(name, "bold"), value) for name, value in rows(trainer)]
        width = 2 + max(len(name) for name, _ in lines)
        self.console.print()
        for name, value in lines:  # no table: it would cut long paths short on a narrow terminal
            name.pad_right(width - len(name))
            self.console.print(name + value)

    def fit_rows(self, trainer: pl.Trainer) -> list[tuple[str, str]]:
        """Return what a training has to say."""
        state = "stopped" if trainer.interrupted else "trained"
        done = f"{trainer.global_step} steps, {trainer.current_epoch} epochs"
        rows = [(state, f"{self.experiment}: {done} in {self._elapsed()}")]
        rows += [best_row(callback) for callback in checkpoints(trainer) if callback.best_model_path]
        if trainer.log_dir and Path(trainer.log_dir).is_dir():
            rows.append(("run", str(relative(Path(trainer.log_dir)))))
        if trainer.interrupted:
            return rows
        return [*rows, ("next", f"make eval EXP={self.experiment}")]

    def test_rows(self, trainer: pl.Trainer) -> list[tuple[str, str]]:
        """Return what an evaluation has to say."""
        rows = [("evaluated", f"{self.experiment} in {self._elapsed()}")]
        log_dir = Path(trainer.log_dir) if trainer.log_dir else None
        reports = [log_dir / name for name in REPORTS if (log_dir / name).is_file()] if log_dir else []
        if not reports:
            metrics = trainer.callback_metrics.items()
            rows += [(str(name), f"{float(value):.4g}") for name, value in metrics]
        if log_dir:
            rows.append(("results", str(relative(log_dir))))
        rows += [("", str(relative(path))) for path in reports]
        return [*rows, ("next", f"make predict EXP={self.experiment} INPUT=<image or folder>")]

    def predict_rows(self, trainer: pl.Trainer) -> list[tuple[str, str]]:
        """Return what a prediction has to say: which files there are now, and how many."""
        rows = [("predicted", f"with {self.experiment} in {self._elapsed()}")]
        for out in outputs(trainer):
            rows.append(("files", str(out)))
            rows += [("", f"{count} {kind}") for kind, count in count_files(out)]
        return rows

    def _elapsed(self) -> str:
        return clock(time.monotonic() - self._started)


def checkpoints(trainer: pl.Trainer) -> list[Any]:
    """Return the callbacks that keep checkpoints."""
    return list(trainer.checkpoint_callbacks)


def best_row(callback: Any) -> tuple[str, str]:
    """Return the best value of the monitored metric and where its checkpoint lies."""
    score = callback.best_model_score
    value = f"{callback.monitor} {float(score):.4g}: " if isinstance(score, torch.Tensor) else ""
    return "best", f"{value}{relative(Path(callback.best_model_path))}"


def outputs(trainer: pl.Trainer) -> list[Path]:
    """Return the folders that prediction writers wrote to: their `out`."""
    named = [getattr(callback, "out", None) for callback in trainer.callbacks]  # type: ignore[attr-defined]
    return [Path(out) for out in named if out and Path(out).is_dir()]


def count_files(folder: Path) -> list[tuple[str, int]]:
    """Return the kinds of files below a folder and how many there are of each."""
    kinds = [path.suffix for path in folder.rglob("*") if path.is_file()]
    return [(kind or "other", kinds.count(kind)) for kind in sorted(set(kinds))]


def relative(path: Path) -> Path:
    """Return a path as seen from here, if it lies below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
