"""The contract of a data module."""

from abc import ABC, abstractmethod

import pytorch_lightning as pl
from torch.utils.data import DataLoader

from handrec.types import HandBatch


class HandDataModule(pl.LightningDataModule, ABC):
    """Loads a data set as batches of :class:`HandBatch`.

    Rendering and augmentation belong into ``on_after_batch_transfer``: they run on the device.

    Attributes:
        name: of the data set, as reports show it.
    """

    name: str

    @abstractmethod
    def train_dataloader(self) -> DataLoader[HandBatch]:
        """Return the shuffled training split."""

    @abstractmethod
    def val_dataloader(self) -> DataLoader[HandBatch]:
        """Return the validation split, in order."""

    @abstractmethod
    def test_dataloader(self) -> DataLoader[HandBatch]:
        """Return the test split, in order."""
