"""What every method shares: reconstruct, evaluate, save."""

from abc import ABC, abstractmethod

import pytorch_lightning as pl

from handrec.hand.base import HandModel
from handrec.types import HandBatch, HandPrediction


class HandMethod(pl.LightningModule, ABC):
    """A way of learning hand reconstruction.

    Attributes:
        hand: the hand model whose topology the method predicts.
    """

    hand: HandModel

    @abstractmethod
    def reconstruct(self, batch: HandBatch) -> HandPrediction:
        """Return the hands of a batch from its images and intrinsics alone."""
