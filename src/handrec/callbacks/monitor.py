"""How fast a training is, what it waits for, and how large its gradients are."""

import time
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from handrec.callbacks import actions
from handrec.callbacks.actions import Stage
from handrec.data.stages import Stages
from handrec.types import HandBatch


class Monitor(pl.Callback):
    """Logs figures of the steps since they were last logged, whenever Lightning logs.

    Validations do not count. Nothing here waits for a GPU.

    - ``speed/samples_per_s``: of all processes; checkpoints that were written on the way count.
    - ``speed/data_wait``: share of the time in which this process waited for its loader.
    - ``speed/draw``: share of the time for moving the batch to the device, drawing and augmenting
      it there; on a GPU, for asking it to.
    - ``speed/gpu_memory_gb``: the most that tensors took so far, in units of 10^9 bytes.
    - ``train/gradient_norm``: of all gradients, before they are clipped; of the latest step alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self._open()

    def _open(self) -> None:
        """Begin to count anew."""
        self._samples, self._stages = 0, Stages()
        self._began = self._paused = time.perf_counter()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to listen."""
        self._starts: dict[Stage, float] = {}
        actions.overhear(trainer, self._start, self._stop)
        self._open()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen no more."""
        actions.leave(trainer)

    def _start(self, stage: Stage) -> None:
        self._starts[stage] = time.perf_counter()

    def _stop(self, stage: Stage) -> None:
        self._stages.add(stage, time.perf_counter() - self._starts[stage])

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock, and forget what the validation adds to the stages."""
        self._paused, self._kept = time.perf_counter(), dict(self._stages.seconds)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on counting."""
        self._began += time.perf_counter() - self._paused
        self._stages.seconds = self._kept

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Log the norm of the gradients, where the step's losses are logged."""
        if (trainer.global_step + 1) % _interval(trainer) == 0:
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            pl_module.log("train/gradient_norm", get_total_norm(gradients), on_step=True)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: object,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count a batch; log if it is time."""
        self._samples += rows_of(batch)
        if trainer.global_step % _interval(trainer) or trainer.fit_loop._should_accumulate():
            return
        passed = time.perf_counter() - self._began
        spent = self._stages.seconds
        figures = {
            "speed/samples_per_s": self._samples * trainer.world_size / passed,
            "speed/data_wait": spent.get("data", 0.0) / passed,
            "speed/draw": spent.get("draw", 0.0) / passed,
        }
        if pl_module.device.type == "cuda":
            memory = torch.cuda.max_memory_allocated(pl_module.device)
            figures["speed/gpu_memory_gb"] = memory / 1e9
        pl_module.log_dict(figures, on_step=True)
        self._open()


def _interval(trainer: pl.Trainer) -> int:
    loggers: Any = trainer  # its loggers' side is untyped
    return int(loggers.log_every_n_steps) or 1


def rows_of(batch: Any) -> int:
    """Return how many samples a batch has: as many as its first tensor has rows."""
    if isinstance(batch, HandBatch):
        return len(batch.image)
    tensors = (leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim)
    return next((len(tensor) for tensor in tensors), 0)
