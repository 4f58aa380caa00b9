"""Progress that reads well on a terminal and in a log file."""

import math
import sys
import time

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar, RichProgressBar


def progress_bar() -> ProgressBar:
    """Return a bar for a terminal, plain lines for anything else (a file, a pipe, CI)."""
    return TerminalBar() if sys.stdout.isatty() else ProgressLines()


class TerminalBar(RichProgressBar):
    """Lightning's bar without the run's version among the metrics."""

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Return what stands behind the bar."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return {name: value for name, value in metrics.items() if not _unlabelled(name, value)}


class ProgressLines(ProgressBar):
    """Prints a line now and then: no control characters, few enough lines to read.

    Args:
        seconds: the least time between two lines; the end of an epoch is always printed.
    """

    def __init__(self, seconds: float = 20.0) -> None:
        super().__init__()
        self.seconds = seconds
        self._started = self._printed = time.monotonic()
        self._first_step = 0
        self._enabled = True

    def disable(self) -> None:
        """Print nothing: Lightning asks for this on every process but the first."""
        self._enabled = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock, at the step that the training goes on from."""
        self._started = self._printed = time.monotonic()
        self._first_step = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Print where training is, if the last line is old."""
        if time.monotonic() - self._printed >= self.seconds:
            self._line(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print how the epoch ended, validation included."""
        self._line(trainer, pl_module)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Print where an evaluation is, if the last line is old."""
        self._batches(batch_idx, trainer.num_test_batches[dataloader_idx])

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Print where a prediction is, if the last line is old."""
        self._batches(batch_idx, trainer.num_predict_batches[dataloader_idx])

    def _batches(self, index: int, total: int | float) -> None:
        if self._enabled and time.monotonic() - self._printed >= self.seconds:
            self._printed = time.monotonic()
            print(f"batch {index + 1}/{total}", flush=True)

    def _line(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._enabled:
            return
        self._printed = time.monotonic()
        step, total = trainer.global_step, int(trainer.estimated_stepping_batches)
        elapsed, taken = self._printed - self._started, step - self._first_step
        metrics = self.get_metrics(trainer, pl_module)
        parts = [f"epoch {trainer.current_epoch + 1}", f"step {step}/{total}"]
        figures = {
            name: value
            for name, value in metrics.items()
            if isinstance(value, float) and not _unlabelled(name, value)
        }
        parts += [f"{name} {value:.4g}" for name, value in figures.items()]
        if taken > 0 and step < total:
            parts.append(f"{clock(elapsed * (total - step) / taken)} left")
        print(" · ".join(parts), flush=True)


def _unlabelled(name: str, value: object) -> bool:
    """Return whether a figure is of labels that the validation data does not have."""
    return name.startswith("val/") and isinstance(value, float) and math.isnan(value)


def clock(seconds: float) -> str:
    """Return a duration as people say it: `42 s`, `3 min 5 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
