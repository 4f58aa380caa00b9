"""The contract of a data module."""

from abc import ABC, abstractmethod
from typing import Any

import pytorch_lightning as pl
from torch.utils.data import DataLoader

from handrec.metrics.official import ProtocolName


class HandDataModule(pl.LightningDataModule, ABC):
    """Loads a data set as batches of :class:`~handrec.types.HandBatch`.

    Loaders may yield anything: ``on_after_batch_transfer`` turns it into a ``HandBatch``, so that
    rendering and augmentation run on the device.

    Attributes:
        name: of the data set, as reports show it.
        description: what else tells its test splits from another's of the same name.
        test_splits: names of the test splits, in the order of the test loaders.
        submission: the official evaluation that hands of the test split can be handed in to.
        intrinsics_known: whether ``K`` is that of the cameras, or assumed to be an ordinary one.
    """

    name: str
    description: str = ""
    test_splits: tuple[str, ...] = ("test",)
    submission: ProtocolName | None = None
    intrinsics_known: bool = True

    @abstractmethod
    def train_dataloader(self) -> DataLoader[Any]:
        """Return the shuffled training split."""

    @abstractmethod
    def val_dataloader(self) -> DataLoader[Any]:
        """Return the validation split, in order."""

    @abstractmethod
    def test_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """Return the test split, in order; several in a list, as ``test_splits`` names them."""

    def fingerprint(self, split: str) -> str:
        """Return what identifies a split's content, such as a hash; empty if nothing does."""
        return ""
