"""What lets a training be killed at any time: whole checkpoints, often, and one on SIGTERM."""

import errno
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from lightning_fabric.utilities.types import _PATH
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.utilities.exceptions import SIGTERMException

from handrec.callbacks import loop_state
from handrec.errors import UserError

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
#: What a training says that ends with status 0 and is not over.
ASKED_TO_STOP = "asked to stop (SIGTERM)"


class WholeCheckpoints(TorchCheckpointIO):
    """Writes checkpoints that are whole or not there, and executes nothing when it reads them.

    A file is written beside its place, flushed to the disk and moved there. Of ``last.ckpt`` the
    one before stays as ``previous.ckpt``. What a killed writer left goes before the first file.
    """

    def __init__(self) -> None:
        super().__init__()
        self._tidied: set[Path] = set()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            UserError: it cannot be written; what was there before still is.
        """
        place = Path(path)
        partial = place.with_name(f".{place.name}.{os.getpid()}.partial")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            if place.parent not in self._tidied:
                _tidy(place.parent)
                self._tidied.add(place.parent)
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            if place.name == LAST and place.is_file():
                _keep(place, place.with_name(PREVIOUS))
            partial.replace(place)
            _flush_folder(place.parent)
        except (OSError, RuntimeError) as error:  # torch wraps what its writer meets
            raise UserError(_unwritten(place, error)) from error
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)

    def load_checkpoint(
        self,
        path: _PATH,
        map_location: Callable[..., Any] | None = lambda storage, _: storage,
        weights_only: bool | None = True,
    ) -> dict[str, Any]:
        """Return a checkpoint's tensors and plain containers; anything else is refused."""
        return super().load_checkpoint(path, map_location, weights_only=True)


def _tidy(folder: Path) -> None:
    """Remove the beginnings of files whose writers are no more."""
    for path in folder.glob(".*.partial"):
        number = path.name.split(".")[-2]
        if number.isdigit() and not _lives(int(number)):
            path.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's, or no number of a process
        pass
    return True


def _keep(last: Path, previous: Path) -> None:
    """Give the last checkpoint a second name, in one step: there is always a whole one."""
    link = previous.with_name(f".{previous.name}.{os.getpid()}.partial")
    link.unlink(missing_ok=True)
    try:
        link.hardlink_to(last)
    except OSError:  # a file system without links
        last.replace(previous)
    else:
        link.replace(previous)


def _flush_folder(folder: Path) -> None:
    """Make the names in a folder outlive a power cut, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _unwritten(place: Path, error: BaseException) -> str:
    cause = error if isinstance(error, OSError) else error.__context__
    full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    reason = cause.strerror if isinstance(cause, OSError) else str(error).split("\n")[0]
    kept = f"{place} is still the one before; " if place.is_file() else ""
    mend = "make room" if full else "mend that"
    return f"cannot write checkpoint {place}: {reason}; {kept}{mend}, then go on with RESUME=1"


class Safety(Checkpoint):
    """Writes ``last.ckpt`` after every epoch, in between, and when SIGTERM asks a training to end.

    A checkpoint between two steps holds all that the following ones depend on: weights, optimizer,
    moving averages, schedules, counters (``callbacks.loop_state``). Data order and random numbers
    follow from the counters (``data.sampler``). It is written when the next step begins, not when
    the one before ends: then that one's log is written, and what it was to be validated by is done.

    It is a ``Checkpoint`` to be called after the other callbacks, whose state it saves.

    Args:
        minutes: from one checkpoint to the next; 0 for at the end of epochs only.
        steps: from one checkpoint to the next; counts beside ``minutes``.
    """

    def __init__(self, minutes: float = 10.0, steps: int | None = None) -> None:
        if minutes < 0 or (steps is not None and steps < 1):
            raise UserError("safety: minutes is at least 0, steps at least 1")
        self.minutes, self.steps = minutes, steps
        self._saved_at = time.monotonic()
        self._due = self._asked = self._stopping = False
        self._saving = self._begun = self._between = False
        self._replaced: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take SIGTERM over: Lightning's own handler communicates from within the signal."""
        if self._between:
            loop_state.go_on(trainer)
        self._saved_at, self._due, self._asked = time.monotonic(), False, False

        def note(number: int, frame: FrameType | None) -> None:
            launcher: Any = trainer.strategy.launcher
            if launcher is not None and not self._asked:
                launcher.kill(number)
            self._asked = True

        with suppress(ValueError):  # not the main thread, which alone can take signals over
            self._replaced = signal.signal(signal.SIGTERM, note)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Note if it is time to save; have all processes stop after this step if one was asked."""
        if trainer.fit_loop._should_accumulate():  # half-summed gradients are in no checkpoint
            return
        self._due = self.steps is not None and trainer.global_step % self.steps == 0
        if self.minutes:
            self._due |= _any(trainer, time.monotonic() - self._saved_at >= 60 * self.minutes)
        if _any(trainer, self._asked) and not loop_state.is_last_step(trainer):
            _stop(trainer, True)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time, as if this step had not begun."""
        loop_state.gone_on(trainer)
        if self._due:
            self.save(trainer, begun=True)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save whether or not the epoch was the best."""
        self.save(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Have a validation finish: half of one is in no checkpoint."""
        self._stopping = trainer.received_sigterm
        _stop(trainer, False)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on stopping."""
        _stop(trainer, self._stopping)

    def save(self, trainer: pl.Trainer, begun: bool = False) -> None:
        """Write ``last.ckpt``; every process has to ask.

        Args:
            trainer: between two steps.
            begun: whether it has counted the second one already.
        """
        self._saving, self._begun = True, begun
        try:
            trainer.save_checkpoint(Path(trainer.log_dir or ".") / "checkpoints" / LAST)
        finally:
            self._saving = False
        self._saved_at, self._due = time.monotonic(), False

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the counters right; those of other checkpoints are Lightning's."""
        if self._saving:
            loop_state.settle(checkpoint, self._begun)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep whether the training goes on between two steps."""
        self._between = checkpoint.get(loop_state.BETWEEN, False)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Save if SIGTERM ends the training: all processes are between two steps."""
        if not isinstance(exception, SIGTERMException):
            return
        self.save(trainer)
        if trainer.is_global_zero:
            print(
                f"handrec: {ASKED_TO_STOP}: saved after step {trainer.global_step};"
                " the same command with RESUME=1 goes on",
                flush=True,
            )

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give back SIGTERM, and to Lightning what is its own."""
        loop_state.gone_on(trainer)
        if self._replaced is not None:
            signal.signal(signal.SIGTERM, self._replaced)
            self._replaced = None


def _any(trainer: pl.Trainer, own: bool) -> bool:
    """Say whether any process says so; several ask each other every tenth step only."""
    if trainer.world_size == 1:
        return own
    if trainer.global_step % 10:
        return False
    return trainer.strategy.reduce_boolean_decision(own, all=False)


def _stop(trainer: pl.Trainer, now: bool) -> None:
    """Have Lightning raise its SIGTERMException as soon as the step is over, or not."""
    connector: Any = trainer._signal_connector
    connector.received_sigterm = now
