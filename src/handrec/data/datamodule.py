"""The contract of a data module."""

from abc import ABC, abstractmethod
from typing import Any

import pytorch_lightning as pl
from torch.utils.data import DataLoader


class HandDataModule(pl.LightningDataModule, ABC):
    """Loads a data set as batches of :class:`~handrec.types.HandBatch`.

    Loaders may yield anything: ``on_after_batch_transfer`` turns it into a ``HandBatch``, so that
    rendering and augmentation run on the device.

    Attributes:
        name: of the data set, as reports show it.
        description: what else tells its test split from another's of the same name.
    """

    name: str
    description: str = ""

    @abstractmethod
    def train_dataloader(self) -> DataLoader[Any]:
        """Return the shuffled training split."""

    @abstractmethod
    def val_dataloader(self) -> DataLoader[Any]:
        """Return the validation split, in order."""

    @abstractmethod
    def test_dataloader(self) -> DataLoader[Any]:
        """Return the test split, in order."""
