"""Where the time of a step goes: a trace to look at, and a table to read."""

import time
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from handrec.callbacks import actions
from handrec.callbacks.actions import Stage
from handrec.data.stages import Stages
from handrec.errors import UserError

#: What the rows of the table are, in their order.
MEANINGS: dict[Stage | str, str] = {
    "data": "waiting for the loader",
    "draw": "to the device, drawing and augmenting there",
    "forward": "the method's training step",
    "backward": "gradients",
    "optimizer": "clipping and updating",
    "rest": "callbacks, logs, checkpoints",
}


class Profile(pl.Callback):
    """Times the stages of some steps, then traces some more, and ends the training.

    ``<run>/profile/trace.json`` opens in https://ui.perfetto.dev or chrome://tracing; ``table.txt``
    is printed, too. Tracing slows a step down, so that the timed steps are others; while they are
    timed a GPU is waited for after each stage.

    Args:
        warmup: steps before: kernels are compiled, memory is found.
        timed: steps that are timed.
        traced: steps that are traced.
        rows: operators in the table, those that take longest first.
    """

    def __init__(self, warmup: int = 5, timed: int = 5, traced: int = 2, rows: int = 15) -> None:
        super().__init__()
        if warmup < 0 or min(timed, traced, rows) < 1:
            raise UserError("profile: warmup is at least 0; timed, traced and rows at least 1")
        self.warmup, self.timed, self.traced, self.rows = warmup, timed, traced, rows
        self._done = 0
        self._stages, self._starts = Stages(), dict[Stage, float]()
        self._labels: dict[Stage, record_function] = {}
        self._trace: profile | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to listen."""
        self._device = pl_module.device
        actions.overhear(trainer, self._start, self._stop)
        self._whole = time.perf_counter()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen no more."""
        actions.leave(trainer)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def _start(self, stage: Stage) -> None:
        if self._trace is not None:
            self._labels[stage] = record_function(f"handrec: {stage}")
            self._labels[stage].__enter__()
        else:
            self._starts[stage] = self._now()

    def _stop(self, stage: Stage) -> None:
        if self._trace is not None:
            if stage in self._labels:
                self._labels.pop(stage).__exit__(None, None, None)
        elif self._done >= self.warmup:
            self._stages.add(stage, self._now() - self._starts[stage])

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Go on to timing, then to tracing, then to the files."""
        self._done += 1
        if self._done == self.warmup:
            self._whole = self._now()
        elif self._done == self.warmup + self.timed:
            self._whole = self._now() - self._whole
            kinds = [ProfilerActivity.CPU]
            kinds += [ProfilerActivity.CUDA] if self._device.type == "cuda" else []
            self._trace = profile(activities=kinds, record_shapes=True)
            self._trace.start()
        elif self._done == self.warmup + self.timed + self.traced and self._trace is not None:
            self._trace.stop()
            folder = Path(trainer.log_dir or trainer.default_root_dir) / "profile"
            if trainer.is_global_zero:
                self._write(folder, self._trace)
            self._trace, trainer.should_stop = None, True

    def _write(self, folder: Path, trace: profile) -> None:
        """Write both files and print the table."""
        folder.mkdir(parents=True, exist_ok=True)
        trace.export_chrome_trace(str(folder / "trace.json"))
        table = f"{self.stage_table()}\n\n{self.operator_table(trace)}"
        (folder / "table.txt").write_text(table + "\n", encoding="utf-8")
        print(f"\n{table}\n\ntrace    {folder / 'trace.json'}: open it in https://ui.perfetto.dev")
        print(f"table    {folder / 'table.txt'}", flush=True)

    def stage_table(self) -> str:
        """Return milliseconds and share of each stage of the timed steps."""
        spent = dict.fromkeys(MEANINGS, 0.0) | self._stages.seconds
        # Forward and backward run inside the optimizer's step, as its closure.
        spent["optimizer"] -= spent["forward"] + spent["backward"]
        spent["rest"] = self._whole - sum(spent.values())
        lines = [f"{1000 * self._whole / self.timed:.1f} ms a step, mean of {self.timed} steps"]
        lines += [
            f"{name:<10}{1000 * spent[name] / self.timed:>9.1f} ms"
            f"{spent[name] / self._whole:>6.0%}  {meaning}"
            for name, meaning in MEANINGS.items()
        ]
        return "\n".join(lines)

    def operator_table(self, trace: profile) -> str:
        """Return the operators that take longest by themselves, per traced step."""
        cuda = self._device.type == "cuda"

        def own(event: object) -> float:
            name = "self_device_time_total" if cuda else "self_cpu_time_total"
            return float(getattr(event, name)) / 1000 / self.traced

        events = [e for e in trace.key_averages() if not e.key.startswith(("handrec:", "Profiler"))]
        events = sorted(events, key=own, reverse=True)
        whole = sum(map(own, events)) or 1.0
        lines = [
            f"operators, by the {'GPU' if cuda else 'CPU'} time they take themselves, per step;"
            f" mean of {self.traced} traced steps"
        ]
        lines += [
            f"{own(e):>9.2f} ms{own(e) / whole:>6.0%}{e.count / self.traced:>8.0f} x  {e.key[:60]}"
            for e in events[: self.rows]
        ]
        return "\n".join(lines)
