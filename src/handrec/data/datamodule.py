"""The contract of a data module."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
from torch.utils.data import DataLoader, Dataset, Sampler

from handrec.data.sampler import (
    EvaluationBatches,
    TrainingBatches,
    batches_so_far,
    global_seed,
    seed_step,
)
from handrec.errors import UserError
from handrec.metrics.official import ProtocolName
from handrec.metrics.temporal import FRAME_RATE


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
        projected_keypoints: whether the 2D keypoints of training are 3D labels, projected.
        frame_rate: numbers of video frames that pass in a second.
        has_videos: whether its option ``clip`` puts clips of videos into training batches.
    """

    name: str
    description: str = ""
    test_splits: tuple[str, ...] = ("test",)
    submission: ProtocolName | None = None
    intrinsics_known: bool = True
    projected_keypoints: bool = False
    frame_rate: float = FRAME_RATE
    has_videos: bool = False

    @property
    def has_keypoints(self) -> bool:
        """Whether any training picture has 2D keypoints; known once a training is set up."""
        return True

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

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Seed what is drawn for a training batch on its device: augmentation."""
        if self.trainer is not None and self.trainer.training:
            seed_step(self.trainer, stage=0)
        return batch

    def loader(
        self, rows: Dataset[Any], batch_size: int, *, training: bool = False, **options: Any
    ) -> DataLoader[Any]:
        """Return the batches of this process, see ``data.sampler``.

        Args:
            rows: whose ``__getitems__`` returns a whole batch.
            batch_size: of one process.
            training: shuffled, incomplete batches dropped; else in order, every row once.
            options: of torch's ``DataLoader``.
        """
        batches = self._batches(len(rows), batch_size, training)  # type: ignore[arg-type]
        workers = options.get("num_workers", 0)
        return Later(
            rows,
            batch_sampler=batches,
            persistent_workers=workers > 0,
            collate_fn=_as_is,
            **options,
        )

    def _batches(self, rows: int, batch_size: int, training: bool) -> Sampler[list[int]]:
        trainer: Any = self.trainer  # partly untyped
        rank, processes = (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)
        if rows < processes * (batch_size if training else 1):
            wanted = f"{processes} x {batch_size}" if training else f"{processes}"
            raise UserError(
                f"{self.name}: {rows} samples, at least {wanted} wanted for {processes} processes"
            )
        if not training:
            return EvaluationBatches(rows, batch_size, rank, processes)

        def position() -> int:
            if trainer is None:
                return 0
            if trainer.overfit_batches:  # the same few again and again
                return int(trainer.fit_loop.epoch_loop.batch_progress.current.ready)
            return batches_so_far(trainer)

        return TrainingBatches(rows, batch_size, global_seed(), position, rank, processes)


class Later(DataLoader[Any]):
    """Fetches nothing before the first batch is asked for.

    Lightning wants an iterator before it knows how far a resumed training is, and workers would
    begin with batches that it has had.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        yield from super().__iter__()


def _as_is(batch: Any) -> Any:
    """Keep what ``__getitems__`` returned: it is a batch already."""
    return batch
