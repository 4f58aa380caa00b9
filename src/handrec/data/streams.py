"""Pictures that come one after the other: from archives and videos too large to look things up in.

Every process of a training, and every worker of it, reads sources of its own; where there are fewer
sources than readers, readers of one source take turns picture by picture. A buffer shuffles. What
cannot be read is left out and counted, not a reason to stop.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch.utils.data import IterableDataset, get_worker_info
from webdataset.filters import shuffle

from handrec.data.augment import Augmentation, no_moves
from handrec.data.boxes import Side
from handrec.data.crop_set import CropBatch
from handrec.data.crops import Box, crop_affine, default_intrinsics, square_box, warp
from handrec.data.decode import decode
from handrec.data.labels import Labels, no_labels
from handrec.data.sampler import mix
from handrec.errors import UserError


class Source(NamedTuple):
    """A part of an archive or a video.

    Attributes:
        name: path or URL.
        number: among all sources of the data set.
        start: first picture that is taken.
        stop: the one after the last; None for the end.
    """

    name: str
    number: int
    start: int = 0
    stop: int | None = None


class Annotation(NamedTuple):
    """What is known of the hand in a picture; pixel centres at integer + 0.5.

    Attributes:
        box: around it, pixels; None takes the whole picture.
        side: of the body.
        keypoints: x, y and confidence in the suite's order of joints; None if there are none.
    """

    box: Box | None = None
    side: Side = "right"
    keypoints: Float[np.ndarray, "21 3"] | None = None


class Picture(NamedTuple):
    """One picture of a source.

    Attributes:
        content: encoded, or RGB.
        where: it is, for messages.
        frame: number in its source, from 0.
        annotation: of the hand in it.
    """

    content: bytes | UInt8[np.ndarray, "h w 3"]
    where: str
    frame: int
    annotation: Annotation = Annotation()


class StreamBatch(NamedTuple):
    """What workers hand over.

    Attributes:
        crops: of the pictures that could be read.
        skipped: a line for each that could not, since the batch before.
    """

    crops: CropBatch
    skipped: tuple[str, ...]


#: Pictures of a source have other numbers than those of the next.
_FRAMES = 10_000_000

#: So many pictures after each other that cannot be read are all that is needed to give up.
_HOPELESS = 1000

#: Yields the pictures of a source in order, and a line for each that cannot be had.
Reader = Callable[[Source], Iterator[Picture | str]]


class Stream(IterableDataset[StreamBatch | str]):
    """Batches of crops from sources.

    Args:
        sources: to read.
        read: a source.
        size: width and height of the crops.
        batch_size: pictures of a batch.
        box_scale: side of a crop over the longer side of the hand's box.
        batches: that one process takes in an epoch; None goes through the sources once, in order.
        buffer: encoded pictures to draw the next one from.
        augmentation: of the crops.
        process: number of this process and of all processes that share the sources.

    Attributes:
        seed: of the order in which an endless stream is read, see ``StreamedImages``.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        read: Reader,
        size: int,
        batch_size: int,
        box_scale: float,
        batches: int | None = None,
        buffer: int = 1,
        augmentation: Augmentation | None = None,
        process: tuple[int, int] = (0, 1),
    ) -> None:
        super().__init__()
        self.sources, self.read = list(sources), read
        self.size, self.batch_size, self.box_scale = size, batch_size, box_scale
        self.batches, self.buffer, self.augmentation = batches, buffer, augmentation
        self.process = process
        self.seed = 0
        self._endless: Iterator[StreamBatch | str] | None = None

    def __len__(self) -> int:
        """Return the batches of an epoch of this process, all workers together."""
        if self.batches is None:
            raise TypeError("the end of a stream is not known before it comes")
        return self.batches

    def __iter__(self) -> Iterator[StreamBatch | str]:
        """Yield this worker's share; a string is what the user has to mend."""
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        if worker:
            cv2.setNumThreads(0)  # workers are the threads
        process, processes = self.process
        share = reader_share(self.sources, process * workers + number, processes * workers)
        if self.batches is None:
            yield from self._batches(self._pictures(share))
            return
        wanted = self.batches // workers + (number < self.batches % workers)
        if self._endless is None:  # workers live on: an epoch goes on where the last one ended
            chance = random.Random(mix(self.seed, number))
            self._endless = self._batches(self._again_and_again(share, chance))
        yield from islice(self._endless, wanted)

    def _again_and_again(
        self, share: "list[Share]", chance: random.Random
    ) -> Iterator[tuple[Source, Picture | str]]:
        """Yield the pictures of a reader's share without end, each once before any comes twice."""
        readable = True
        while readable:
            readable = False
            once = self._pictures(chance.sample(share, len(share)))
            for source, found in shuffle(self.buffer, rng=chance)(once):
                readable = readable or isinstance(found, Picture)
                yield source, found

    def _pictures(self, share: "list[Share]") -> Iterator[tuple[Source, Picture | str]]:
        """Yield the pictures of a reader's share once, in order."""
        for source, turn, turns in share:
            for number, found in enumerate(self.read(source)):
                if number % turns == turn:
                    yield source, found

    def _batches(
        self, pictures: Iterator[tuple[Source, Picture | str]]
    ) -> Iterator[StreamBatch | str]:
        """Yield batches of the pictures that can be decoded."""
        read: list[tuple[Source, Picture, UInt8[np.ndarray, "h w 3"]]] = []
        skipped: list[str] = []
        last: StreamBatch | None = None  # waits for what is skipped after it
        for source, found in pictures:
            image = found if isinstance(found, str) else decoded(found)
            if isinstance(image, str):
                skipped.append(image)
                if len(skipped) > _HOPELESS and not read:
                    break
                continue
            assert isinstance(found, Picture)
            read.append((source, found, image))
            if len(read) == self.batch_size:
                if last is not None:
                    yield last
                last, read, skipped = StreamBatch(self._crops(read), tuple(skipped)), [], []
        if self.batches is None and read:
            if last is not None:
                yield last
            last, skipped = StreamBatch(self._crops(read), tuple(skipped)), []
        if last is not None:
            yield last._replace(skipped=(*last.skipped, *skipped))
        if self.batches is not None or last is None:
            yield f"no picture can be read: {skipped[0] if skipped else self.sources[0].name}"

    def _crops(self, read: list[tuple[Source, Picture, np.ndarray]]) -> CropBatch:
        """Return the crops of some pictures."""
        size, count = self.size, len(read)
        pictures = [picture for _, picture, _ in read]
        source = torch.tensor([source.number for source, *_ in read])
        frame = torch.tensor([picture.frame for picture in pictures])
        sample_id = source * _FRAMES + frame
        clip = torch.arange(count)  # pictures next to each other are none
        moves = no_moves(count) if self.augmentation is None else self.augmentation.moves(clip)
        back = torch.linalg.inv(moves.matrix(size).double()).numpy()
        affines = np.stack([self._affine(picture, image) for _, picture, image in read])
        whole = [picture.annotation.box is None for picture in pictures]
        crops = [warp(read[i][2], affines[i] @ back[i], size, whole[i]) for i in range(count)]
        picture = np.stack(crops)
        if self.augmentation is not None:
            self.augmentation.changes(clip, size).of_pictures(picture)
        return CropBatch(
            torch.from_numpy(picture),
            torch.zeros(count, 0, 0, dtype=torch.uint8),
            torch.zeros(count),
            torch.from_numpy(affines).float(),
            moves,
            _labels(pictures, [image.shape[:2] for *_, image in read]),
            sample_id,
            sample_id,  # as sequence: no clips here either
            frame,
        )

    def _affine(self, picture: Picture, image: np.ndarray) -> Float[np.ndarray, "3 3"]:
        (height, width), box = image.shape[:2], picture.annotation.box
        scale = 1.0 if box is None else self.box_scale
        square = square_box(box or (0.0, 0.0, float(width), float(height)), scale)
        return crop_affine(square, self.size, picture.annotation.side == "left")


class Share(NamedTuple):
    """What a reader reads of a source: the pictures whose turn it is.

    Attributes:
        source: to read.
        turn: of the reader.
        turns: readers of the source.
    """

    source: Source
    turn: int
    turns: int


def reader_share(sources: Sequence[Source], reader: int, readers: int) -> list[Share]:
    """Return what one of several readers reads: all of them together read everything once."""
    if len(sources) >= readers:
        return [Share(source, 0, 1) for source in sources[reader::readers]]
    index = reader % len(sources)
    return [Share(sources[index], reader // len(sources), -(-(readers - index) // len(sources)))]


def decoded(picture: Picture) -> UInt8[np.ndarray, "h w 3"] | str:
    """Return a picture decoded, or why it cannot be."""
    if not isinstance(picture.content, bytes):
        return picture.content
    try:
        return decode(picture.content, picture.where)
    except UserError as error:
        return str(error)


def _labels(pictures: list[Picture], sizes: list[tuple[int, int]]) -> Labels:
    """Return what is known of the hands as columns."""
    labels = no_labels(len(pictures))
    keypoints, confidence = labels.keypoints_2d, labels.confidence
    for i, picture in enumerate(pictures):
        if (points := picture.annotation.keypoints) is not None:
            known = torch.from_numpy(points).float()
            confidence[i] = known[:, 2]
            keypoints[i] = known[:, :2] * (known[:, 2:] > 0)
    cameras = np.stack([default_intrinsics(*size) for size in sizes])
    return labels._replace(
        image_size=torch.tensor(sizes),
        is_left=torch.tensor([float(p.annotation.side == "left") for p in pictures]),
        intrinsics=torch.from_numpy(cameras).float(),
    )
