"""Which weights of a training are kept as its best."""

import math
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor


class BestCheckpoint(ModelCheckpoint):
    """The weights with the best value so far; the newest, as long as no value was a number.

    A value without labels to compute it from is NaN. Lightning keeps the first epoch's weights
    then, as if none were better.
    """

    @property
    def state_key(self) -> str:
        """The key of ``ModelCheckpoint``, by which earlier checkpoints know it."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def check_monitor_top_k(self, trainer: pl.Trainer, current: Tensor | None = None) -> bool:
        """Return whether the weights of now are to be kept."""
        kept: dict[str, Any] = self.best_k_models
        full = 0 < self.save_top_k <= len(kept)
        if full and current is not None and current.isnan():
            return not math.isfinite(kept[self.kth_best_model_path])
        return super().check_monitor_top_k(trainer, current)
