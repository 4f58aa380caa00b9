"""What data sets of streamed pictures share: sources held out, loaders, what is left out."""

import hashlib
import logging
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from handrec.data.augment import Augmentation
from handrec.data.columns import hashed_share
from handrec.data.crop_set import CropBatch, to_hand_batch
from handrec.data.datamodule import HandDataModule, Later
from handrec.data.sampler import batches_so_far, global_seed, mix
from handrec.data.streams import Reader, Source, Stream, StreamBatch
from handrec.errors import UserError
from handrec.hand.base import HandModel
from handrec.types import HandBatch

logger = logging.getLogger(__name__)

_SHOWN = 10  # faults that are logged one by one


class StreamedImages(HandDataModule):
    """A data set of pictures in a stream: unlabelled, or with boxes and 2D keypoints.

    A resumed training does not read again what it has had to find its place, which could take as
    long as the training: it begins anew, in the order of another seed.

    Args:
        hand: the method's hand model; its topology is what absent vertices have.
        image_size: side of the crops, pixels.
        batch_size: of every split.
        box_scale: side of the crop over the longer side of the hand's box, where there is one.
        length: training pictures of an epoch, of all processes together; None: as many as there
            are, where that is known.
        buffer: pictures that the next one is drawn from, in each worker.
        val_share: of the sources for validation; of a single one, its end.
        val_size: most pictures that are validated on.
        augmentation: of training batches; None for none.
        num_workers: processes that read pictures; 0 reads in the main one.

    Attributes:
        skipped: how many pictures could not be read so far.
    """

    intrinsics_known = False

    def __init__(
        self,
        hand: HandModel | None = None,
        image_size: int = 224,
        batch_size: int = 32,
        box_scale: float = 1.5,
        length: int | None = None,
        buffer: int = 1000,
        val_share: float = 0.02,
        val_size: int = 1024,
        augmentation: Augmentation | None = None,
        num_workers: int = 2,
    ) -> None:
        super().__init__()
        if min(image_size, batch_size, buffer, val_size) < 1 or not 0 < val_share < 1:
            raise UserError("image_size, batch_size, buffer and val_size are at least 1,"
                            " val_share in (0, 1)")  # fmt: skip
        self.hand, self.image_size, self.batch_size = hand, image_size, batch_size
        self.box_scale, self.length, self.buffer = box_scale, length, buffer
        self.val_share, self.val_size = val_share, val_size
        self.augmentation, self.num_workers = augmentation, num_workers
        self.sources: dict[str, list[Source]] = {}
        self.skipped = 0
        self.description = f"{image_size} px"

    @abstractmethod
    def find(self) -> list[Source]:
        """Return all sources, in order; a UserError says what is wrong with one."""

    @abstractmethod
    def count(self, source: Source) -> int | None:
        """Return how many pictures a source has, None if that is not known."""

    @abstractmethod
    def reader(self) -> Reader:
        """Return what reads a source; it travels to the workers."""

    def setup(self, stage: str) -> None:
        """Find the sources, and hold some out."""
        found = self.find()
        if len(found) == 1:
            number = self.count(found[0])
            if number is None:
                raise UserError(
                    f"{self.name}: {found[0].name} is the only source and of unknown length:"
                    " give two, of which one validates"
                )
            if number < 2:
                raise UserError(
                    f"{found[0].name}: {number} pictures found, it takes two: one validates"
                )
            cut = min(number - 1, max(1, round(number * (1 - self.val_share))))
            self.sources = {
                "train": [found[0]._replace(stop=cut)], "val": [found[0]._replace(start=cut)],
            }  # fmt: skip
        else:
            share = hashed_share([source.name.rpartition("/")[2] for source in found])
            kept = max(1, round(self.val_share * len(found)))
            chosen = set(share.argsort(stable=True)[:kept].tolist())
            self.sources = {
                "train": [s for i, s in enumerate(found) if i not in chosen],
                "val": [s for i, s in enumerate(found) if i in chosen],
            }
        self.sources["test"] = self.sources["val"]

    def fingerprint(self, split: str) -> str:
        """Return a hash of the names of a split's sources."""
        names = [f"{s.name}[{s.start}:{s.stop}]" for s in self.sources.get(split, [])]
        return hashlib.sha256("\n".join(names).encode()).hexdigest() if names else ""

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the training sources, shuffled, as many pictures as an epoch has."""
        process, processes = 0, 1
        if self.trainer is not None:
            process, processes = self.trainer.global_rank, self.trainer.world_size
        batches = self._length() // (self.batch_size * processes)
        if not batches:
            raise UserError(
                f"{self.name}: batch_size {self.batch_size} times {processes} processes is more"
                f" than the {self._length():,} pictures of an epoch (--data.length)"
            )
        stream = Stream(
            self.sources["train"], self.reader(), self.image_size, self.batch_size, self.box_scale,
            batches, self.buffer, self.augmentation, (process, processes),
        )  # fmt: skip

        def seed() -> int:
            so_far = 0 if self.trainer is None else batches_so_far(self.trainer)
            return mix(global_seed(), so_far, process, processes)

        return self._loader(stream, self.num_workers, _Anew, seed=seed)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return pictures of the held out sources, in order; every process reads all of them."""
        left, kept = self.val_size, []
        for source in self.sources["val"]:
            kept.append(source._replace(stop=_earlier(source.stop, source.start + left)))
            number = self.count(source)
            left -= min(left, number or left)
            if not left:
                break
        stream = Stream(kept, self.reader(), self.image_size, self.batch_size, self.box_scale)
        return self._loader(stream, min(1, self.num_workers))

    def test_dataloader(self) -> DataLoader[Any]:
        """Return what is validated on."""
        return self.val_dataloader()

    def on_after_batch_transfer(self, batch: StreamBatch | str, dataloader_idx: int) -> HandBatch:
        """Label the crops on their device; count and tell what could not be read."""
        if isinstance(batch, str):
            raise UserError(f"{self.name}: {batch}")
        for line in batch.skipped:
            self.skipped += 1
            if self.skipped <= _SHOWN:
                logger.warning("left out: %s", line)
            if self.skipped == _SHOWN:
                logger.warning("others that are left out are only counted from here")
        return self.label(batch.crops)

    def label(self, batch: CropBatch) -> HandBatch:
        """Return crops with what is known of them."""
        if self.hand is not None:
            self.hand.to(batch.affine.device)
        return to_hand_batch(batch, self.hand, labelled=False, pose_format="vectors")

    def teardown(self, stage: str) -> None:
        """Say how many pictures were left out."""
        if self.skipped:
            logger.warning("%s: %d pictures or archives were left out", self.name, self.skipped)

    def _length(self) -> int:
        """Return how many training pictures an epoch has."""
        if self.length is not None:
            return self.length
        total = 0
        for source in self.sources["train"]:
            number = self.count(source)
            if number is None:
                raise UserError(
                    f"{self.name}: nothing says how many pictures {source.name} has:"
                    " --data.length=N says how many an epoch has"
                )
            total += _earlier(source.stop, number) - source.start
        return total

    def _loader(
        self,
        stream: Stream,
        workers: int,
        kind: type[DataLoader[Any]] = DataLoader,
        **options: Any,
    ) -> DataLoader[Any]:
        return kind(
            stream,
            batch_size=None,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=_as_is,
            **options,
        )


class _Anew(Later):
    """Gives a stream the seed of its order when it begins.

    Args:
        dataset: the stream.
        seed: says the seed.
        options: of torch's ``DataLoader``.
    """

    def __init__(self, dataset: Stream, seed: Callable[[], int], **options: Any) -> None:
        super().__init__(dataset, **options)
        self.stream, self.seed = dataset, seed

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self.stream.seed = self.seed()
        yield from super().__iter__()


def _earlier(stop: int | None, other: int) -> int:
    return other if stop is None else min(stop, other)


def _as_is(batch: Any) -> Any:
    """Keep what the stream made: it is a batch already."""
    return batch
