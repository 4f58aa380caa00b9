"""How long a prediction's stages take."""

import time
from typing import Any

import pytorch_lightning as pl
import torch

from handrec.data.stages import Stages


class NetworkTimer(pl.Callback):
    """Counts the seconds that the network takes for each batch, waiting for a GPU to finish.

    Writers inherit from it, and call :meth:`stop` before anything else.

    Attributes:
        stages: seconds of all stages; writers make it that of the data.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stages = Stages()
        self._start = 0.0

    def on_predict_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def stop(self, device: torch.device) -> None:
        """Stop the clock when the device is done."""
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self.stages.add("network", time.perf_counter() - self._start)
