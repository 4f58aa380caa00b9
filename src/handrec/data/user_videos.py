"""Videos to predict on: a file or a folder, streamed frame by frame."""

from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch.utils.data import DataLoader, IterableDataset, default_collate

from handrec.data.boxes import (
    Cameras,
    Side,
    VideoBoxes,
    camera_of,
    place_box,
    read_cameras,
    read_video_boxes,
)
from handrec.data.crops import Box, square_box
from handrec.data.datamodule import HandDataModule
from handrec.data.detection import MediaPipeHands
from handrec.data.photos import PhotoHand, cut_hand
from handrec.data.stages import Stages
from handrec.data.suffixes import VIDEOS
from handrec.data.tracks import BoxSource, FollowedBoxes, LinkedBoxes, WholeFrame
from handrec.data.video_files import Frame, VideoInfo, VideoReader, probe
from handrec.errors import UserError
from handrec.types import HandBatch

#: ``sample_id`` of a row that stands for frames without a hand.
NO_HAND = -1


class Video(NamedTuple):
    """A video that can be read.

    Attributes:
        name: relative to the input folder, with forward slashes.
        info: what it is.
        intrinsics: ``K`` of the whole frame, pixels.
        intrinsics_given: whether the user gave ``K``.
    """

    name: str
    info: VideoInfo
    intrinsics: Float[np.ndarray, "3 3"]
    intrinsics_given: bool


class FrameHand(NamedTuple):
    """One hand in one frame.

    Attributes:
        hand: as of a photo.
        track: number of the hand in its video.
    """

    hand: PhotoHand
    track: int


class VideoFrame(NamedTuple):
    """A frame on its way to the overlay.

    Attributes:
        video: it is of.
        frame: the picture and its time.
        hands: to be found in it, by ``sample_id``.
        source: of their boxes, which wants to know where they were found.
    """

    video: Video
    frame: Frame
    hands: dict[int, FrameHand]
    source: BoxSource


class Videos(HandDataModule):
    """Streams the hands in videos to ``predict``; it has no labels.

    Boxes are a JSON file, pixels of the upright frame. Either the hands of each frame (frames left
    out have none), or where each starts, after which it is followed: a frame's box is then what was
    found in the frame before, so that frames cannot be batched.

        {"clip.mp4": {"0": [{"box": [x1, y1, x2, y2], "side": "left"}], "1": [...], ...}}
        {"clip.mp4": [{"box": [x1, y1, x2, y2], "side": "left", "frame": 0}, ...]}

    Without boxes every frame is one crop, or a detector finds the hands. Intrinsics are as of
    :class:`~handrec.data.photos.Photos`.

    Args:
        input: video file or folder of videos.
        boxes: JSON file with the hands of each video.
        detector: file of MediaPipe's hand landmarker, which then finds the hands of each frame.
        intrinsics: JSON file or focal length in pixels; None assumes a focal length.
        side: of hands whose side no box names.
        recursive: look into folders in the input folder too.
        image_size: width and height of the crops, pixels.
        box_scale: side of the crop over the longer side of the box. 1.3 is the middle of what the
            synthetic data has: where a network errs towards it, a followed box keeps its size.
        batch_size: frames at a time, where they do not wait for each other.

    Attributes:
        videos: those that can be read. Filled by :meth:`setup`.
        skipped: one line for each video that cannot.
        unusable: one line for each box that can hold no hand.
        unboxed: names of the videos that the boxes do not mention.
        pending: frames whose hands are being predicted, oldest first; the writer takes them off.
        stages: seconds spent decoding, detecting and cropping.
    """

    name = "videos"

    def __init__(
        self,
        input: str,  # noqa: A002
        *,
        boxes: str | None = None,
        detector: str | None = None,
        intrinsics: str | None = None,
        side: Side = "right",
        recursive: bool = False,
        image_size: int = 224,
        box_scale: float = 1.3,
        batch_size: int = 16,
    ) -> None:
        super().__init__()
        if boxes is not None and detector is not None:
            raise UserError("boxes say where hands are, a detector finds them: give one of them")
        self.input, self.recursive = Path(input), recursive
        self.boxes, self.detector, self.intrinsics = boxes, detector, intrinsics
        self.side: Side = side
        self.image_size, self.box_scale, self.batch_size = image_size, box_scale, batch_size
        self.videos: list[Video] = []
        self.skipped: list[str] = []
        self.unusable: list[str] = []
        self.unboxed: list[str] = []
        self.pending: deque[VideoFrame] = deque()
        self.stages = Stages()
        self._given: dict[str, tuple[bool, VideoBoxes]] | None = None
        self._source: BoxSource = WholeFrame(side)
        self._faults: list[tuple[VideoReader, BoxSource]] = []
        self._samples = 0

    def setup(self, stage: str) -> None:
        """Open every video and check its boxes, so that whatever is wrong is said at once."""
        paths = find_videos(self.input, self.recursive)
        self._given = None if self.boxes is None else read_video_boxes(Path(self.boxes), self.side)
        cameras = None if self.intrinsics is None else read_cameras(self.intrinsics)
        self._refuse_unknown(paths, cameras)
        self.videos, self.skipped, self.unusable = [], [], []
        named = paths.keys() if self._given is None else paths.keys() & self._given.keys()
        self.unboxed = sorted(paths.keys() - named)
        for name in sorted(named):
            try:
                info = probe(paths[name])
            except UserError as error:
                self.skipped.append(str(error))
                continue
            self.videos.append(Video(name, info, *camera_of(cameras, name, info.image_size)))
            self._check_boxes(name, info)
        if not self.videos or (self.unusable and not self._has_hands()):
            reasons = [*self.skipped, *self.unusable][:5]
            reasons = reasons or [f"{self.boxes} names no video in it"]
            raise UserError(f"{self.input}: nothing to predict ({'; '.join(reasons)})")

    def _refuse_unknown(self, paths: dict[str, Path], cameras: Cameras | None) -> None:
        """Raise if a file names videos that are not in the input."""
        for file, entries in ((self.boxes, self._given), (self.intrinsics, cameras)):
            unknown = sorted(entries.keys() - paths.keys()) if isinstance(entries, dict) else []
            if self.input.is_file():
                unknown = [name for name in unknown if not (self.input.parent / name).is_file()]
            if unknown:
                names = ", ".join(unknown[:5])
                raise UserError(f"{file} names videos that are not in {self.input}: {names}")

    def _has_hands(self) -> bool:
        """Return whether the boxes have a hand of any video that can be read."""
        given = [(self._given or {}).get(video.name, (False, {}))[1] for video in self.videos]
        return any(hands for frames in given for hands in frames.values())

    def _check_boxes(self, name: str, info: VideoInfo) -> None:
        """Refuse frames that are not there; leave out boxes that can hold no hand, and say so."""
        for number, hands in (self._given or {}).get(name, (False, {}))[1].items():
            where = f"{name}, frame {number}"
            if number >= info.frames:
                raise UserError(f"{self.boxes}: {where}: the video has {info.frames} frames")
            for hand in list(hands):
                try:
                    place_box(where, info.image_size, hand.box, self.box_scale)
                except UserError as error:
                    self.unusable.append(str(error))
                    hands.remove(hand)

    def predict_dataloader(self) -> DataLoader[HandBatch]:
        """Return the frames in order, a batch of hands for every few of them."""
        return DataLoader(_Stream(self), batch_size=None, num_workers=0)

    def batches(self) -> int:
        """Return how many batches there will be at most."""
        return sum(-(-video.info.frames // self._chunk(video.name)) for video in self.videos)

    def _chunk(self, name: str) -> int:
        """Return how many frames of a video are predicted at a time."""
        followed = self._given is not None and self._given[name][0]
        return 1 if followed else self.batch_size

    def _source_of(self, name: str) -> BoxSource:
        """Return what says where the hands of a video are."""
        if self._given is not None:
            followed, boxes = self._given[name]
            return FollowedBoxes(boxes, name) if followed else LinkedBoxes(boxes)
        if self.detector is not None:
            return LinkedBoxes(None, MediaPipeHands(self.detector))
        return WholeFrame(self.side)

    def stream(self) -> Iterator[HandBatch]:
        """Yield batches; each frame waits in ``pending`` until the writer takes it off."""
        for video in self.videos:
            self._source = self._source_of(video.name)
            reader = VideoReader(video.info.path)
            self._faults.append((reader, self._source))
            chunk: list[HandBatch] = []
            frames = 0
            while True:
                with self.stages("decode"):
                    frame = next(reader, None)
                if frame is not None:
                    chunk += self._cut(video, frame)
                    frames += 1
                if frames and (frame is None or frames == self._chunk(video.name)):
                    yield default_collate(chunk or [self._nothing(video)])
                    chunk, frames = [], 0
                if frame is None:
                    break

    @property
    def broken(self) -> list[str]:
        """One line for each frame that could not be decoded, and each hand that was lost."""
        return [line for reader, source in self._faults for line in reader.broken + source.lost]

    def _cut(self, video: Video, frame: Frame) -> list[HandBatch]:
        """Return the crops of a frame's hands, and let the frame wait for them."""
        with self.stages("detect" if self.detector else "boxes"):
            tracked = self._source.boxes(frame.number, frame.picture)
        hands = {}
        rows = []
        with self.stages("crop"):
            for track, box, side in tracked:
                item = self._item(video, box, side)
                hands[self._samples] = FrameHand(item, track)
                rows.append(
                    cut_hand(
                        frame.picture, item, self.image_size, self._samples, track, frame.number
                    )
                )
                self._samples += 1
        self.pending.append(VideoFrame(video, frame, hands, self._source))
        return rows

    def _item(self, video: Video, box: Box | None, side: Side) -> PhotoHand:
        info = video.info
        if box is None:
            place = place_box(video.name, info.image_size, None, self.box_scale)
        else:  # checked, or found
            place = box, square_box(box, self.box_scale)
        camera = video.intrinsics, video.intrinsics_given
        return PhotoHand(info.path, video.name, info.image_size, *place, side, *camera)

    def _nothing(self, video: Video) -> HandBatch:
        """Return the row that stands for frames without a hand: a network wants something."""
        height, width = video.info.image_size
        blank: UInt8[np.ndarray, "h w 3"] = np.zeros((height, width, 3), np.uint8)
        row = cut_hand(blank, self._item(video, None, "right"), self.image_size, 0)
        return row._replace(sample_id=torch.tensor(NO_HAND))

    def train_dataloader(self) -> DataLoader[HandBatch]:
        """Refuse: videos have no labels."""
        raise UserError("videos have no labels: they serve predict only")

    def val_dataloader(self) -> DataLoader[HandBatch]:
        """Refuse: videos have no labels."""
        return self.train_dataloader()

    def test_dataloader(self) -> DataLoader[HandBatch]:
        """Refuse: videos have no labels."""
        return self.train_dataloader()


class _Stream(IterableDataset[HandBatch]):
    """The batches of videos.

    Its length, though only an upper bound, keeps Lightning from fetching a batch ahead: the boxes
    of the next one may depend on what is found in this one.
    """

    def __init__(self, videos: Videos) -> None:
        self.videos = videos

    def __len__(self) -> int:
        return self.videos.batches()

    def __iter__(self) -> Iterator[HandBatch]:
        return self.videos.stream()


def find_videos(source: Path, recursive: bool) -> dict[str, Path]:
    """Return the videos in a folder, or the one given, by name; hidden files are left out."""
    if source.is_file():
        return {source.name: source}
    if not source.is_dir():
        raise UserError(f"{source}: no such video or folder")
    found = sorted(source.rglob("*") if recursive else source.iterdir())
    videos = {
        path.relative_to(source).as_posix(): path
        for path in found
        if path.suffix.lower() in VIDEOS and not path.name.startswith(".")
    }
    if not videos:
        raise UserError(f"{source}: no videos ({', '.join(sorted(VIDEOS))})")
    return videos
