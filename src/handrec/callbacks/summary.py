"""What happened, where it lies, and what to type next."""

import math
import shutil
import sys
import time
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from rich.console import Console
from rich.text import Text

from handrec.callbacks.progress import clock
from handrec.methods.base import Method

#: Files of an evaluation that are worth naming, the most readable first.
REPORTS = (
    ("report", "*/*/report.html"),
    ("figures", "*/metrics.json"),
    ("submission", "**/pred.json"),
)


class EndSummary(pl.Callback):
    """Prints a few lines when a command has ended.

    Args:
        experiment: its name, as typed after EXP=.
        console: where to print.
    """

    def __init__(self, experiment: str, console: Console | None = None) -> None:
        self.experiment = experiment
        self.console = console or Console(highlight=False, soft_wrap=True)
        self._started, self._date = time.monotonic(), time.time()
        self._after_fit = self._after_test = ""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Start the clock."""
        if isinstance(pl_module, Method):
            self._after_fit, self._after_test = pl_module.after_fit, pl_module.after_test
        self._started, self._date = time.monotonic(), time.time()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Print the summary; the last hook of a command that ended well."""
        log_dir = Path(trainer.log_dir or ".")  # collective: every process has to ask
        if not trainer.is_global_zero:
            return
        rows = {"fit": self.fit_rows, "predict": self.predict_rows}.get(stage, self.test_rows)
        lines = rows(trainer, log_dir)
        width = 2 + max(len(name) for name, _ in lines)
        self.console.print()
        for name, value in lines:  # no table: it would cut long paths short on a narrow terminal
            self.console.print(Text.assemble((name.ljust(width), "bold"), value))

    def fit_rows(self, trainer: pl.Trainer, log_dir: Path) -> list[tuple[str, str]]:
        """Return what a training has to say."""
        state = "stopped" if trainer.interrupted else "trained"
        done = f"{trainer.global_step} steps, {trainer.current_epoch} epochs"
        rows = [(state, f"{self.experiment}: {done} in {self._elapsed()}")]
        rows += best_rows(trainer)
        if (log_dir / "config.yaml").is_file():
            rows.append(("run", str(relative(log_dir))))
        if trainer.interrupted or not trainer.checkpoint_callbacks:
            return rows
        return rows + self._next(self._after_fit)

    def test_rows(self, trainer: pl.Trainer, log_dir: Path) -> list[tuple[str, str]]:
        """Return what an evaluation has to say: where its report lies, or its figures."""
        rows = [("evaluated", f"{self.experiment} in {self._elapsed()}")]
        found = self._reports(log_dir)
        if found:
            rows += [(name, str(relative(path))) for name, path in found]
        else:
            figures = trainer.callback_metrics.items()
            rows += [(str(name), f"{float(value):.4g}") for name, value in figures]
        return rows + self._next(self._after_test)

    def _next(self, command: str) -> list[tuple[str, str]]:
        return [("next", typed(command.format(name=self.experiment)))] if command else []

    def _reports(self, run: Path) -> list[tuple[str, Path]]:
        """Return the files this evaluation wrote that are worth opening."""
        paths = [(name, path) for name, file in REPORTS for path in run.glob(f"eval/{file}")]
        return [(name, path) for name, path in paths if path.stat().st_mtime >= self._date - 1]

    def predict_rows(self, trainer: pl.Trainer, log_dir: Path) -> list[tuple[str, str]]:
        """Return what a prediction has to say: which files there are now, and how many."""
        rows = [("predicted", f"with {self.experiment} in {self._elapsed()}")]
        for out in outputs(trainer):
            counts = ", ".join(f"{count} {kind}" for kind, count in count_files(out))
            rows.append(("files", f"{relative(out)}/ holds {counts or 'nothing'}"))
        return rows

    def _elapsed(self) -> str:
        return clock(time.monotonic() - self._started)


def best_rows(trainer: pl.Trainer) -> list[tuple[str, str]]:
    """Return the best value of each monitored metric and where its checkpoint lies."""
    rows = []
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.best_model_path:
            score = callback.best_model_score
            value = ""
            if score is not None and math.isfinite(float(score)):  # of absent labels it is not
                value = f"{callback.monitor} {float(score):.4g}: "
            rows.append(("best", f"{value}{relative(Path(callback.best_model_path))}"))
    return rows


def outputs(trainer: pl.Trainer) -> list[Path]:
    """Return the folders that prediction writers wrote to: their `out`."""
    named = [getattr(callback, "out", None) for callback in trainer.callbacks]  # type: ignore[attr-defined]
    return [Path(out) for out in named if out and Path(out).is_dir()]


def count_files(folder: Path) -> list[tuple[str, int]]:
    """Return the kinds of files below a folder and how many there are of each."""
    kinds = [path.suffix for path in folder.rglob("*") if path.is_file()]
    return [(kind or "other", kinds.count(kind)) for kind in sorted(set(kinds))]


def typed(command: str) -> str:
    """Return a command as it can be typed here: PATH may lack the environment's programs."""
    program, _, rest = command.partition(" ")
    beside = Path(sys.executable).with_name(program)
    if beside.is_file() and not shutil.which(program):
        return f"{relative(beside)} {rest}"
    return command


def relative(path: Path) -> Path:
    """Return a path as seen from here, if it lies below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
