"""Frames of videos as unlabelled pictures to train on."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from handrec.data.boxes import HandBox, VideoBoxes, check_box, read_video_boxes
from handrec.data.columns import image_size
from handrec.data.decode import read_encoded
from handrec.data.streamed import StreamedImages
from handrec.data.streams import Annotation, Picture, Reader, Source
from handrec.data.suffixes import IMAGES, VIDEOS
from handrec.data.video_files import VideoReader, probe
from handrec.errors import UserError


class VideoFrames(StreamedImages):
    """Frames of videos, and of folders of frames.

    A video is read from its start to its end, so that memory does not grow with its length; the
    buffer mixes its frames with those of others. Whole videos validate, of a single one the end.

    Boxes are a JSON file with the boxes of a whole video, ``{"a.mp4": [{"box": [x1, y1, x2, y2],
    "side": "left"}]}``, or of its frames, ``{"a.mp4": {"0": [...], "2": [...]}}``; every hand is a
    crop of its own, and frames without a box are left out.

    Args:
        root: a video, or a folder: videos in it, folders in it that hold frames (images, in the
            order of their names), or frames.
        stride: from one frame that is taken to the next.
        boxes: JSON file; None takes whole frames.
        buffer: frames that the next one is drawn from, in each worker; decoded, they take
            three bytes a pixel.
        **options: see :class:`~handrec.data.streamed.StreamedImages`.
    """

    name = "video"
    has_keypoints = False

    def __init__(
        self,
        root: str | None = None,
        stride: int = 5,
        boxes: str | None = None,
        buffer: int = 64,
        **options: Any,
    ) -> None:
        super().__init__(buffer=buffer, **options)
        if stride < 1:
            raise UserError("stride must be at least 1")
        self.root, self.stride, self.boxes = root, stride, boxes
        self._frames: dict[str, int] = {}

    def find(self) -> list[Source]:
        """Return the videos, each of which was opened and a frame of it decoded."""
        if self.root is None:
            raise UserError("no video: say --data.root=VIDEO or the folder of videos or frames")
        paths = _find(Path(self.root).expanduser())
        boxes = self._boxes()
        unknown = sorted(boxes.keys() - {path.name for path in paths})
        if unknown:
            raise UserError(f"{self.boxes} names {unknown[0]}, which is not in {self.root}")
        for path in paths:
            frames, size = _extent(path)
            self._frames[str(path)] = frames
            self._check_boxes(path.name, frames, size)
        return [Source(str(path), number) for number, path in enumerate(paths)]

    def count(self, source: Source) -> int | None:
        """Return how many pictures a video gives."""
        frames = -(-self._frames[source.name] // self.stride)
        if self.boxes is None:
            return frames
        followed, boxes = self._boxes().get(Path(source.name).name, (False, {}))
        if followed:
            return frames * len(boxes.get(0, []))
        return sum(len(hands) for number, hands in boxes.items() if number % self.stride == 0)

    def reader(self) -> Reader:
        """Return what reads a video."""
        return partial(
            read_frames, stride=self.stride, boxes=None if self.boxes is None else self._boxes()
        )

    def _check_boxes(self, name: str, frames: int, size: tuple[int, int] | None) -> None:
        """Refuse boxes that can hold no hand, and those of frames that are not there."""
        whole, boxes = self._boxes().get(name, (False, {}))
        for number, hands in boxes.items():
            where = f"{self.boxes}: {name}" + ("" if whole else f", frame {number}")
            if number >= frames:
                raise UserError(f"{where}: the video has {frames} frames, from 0 on")
            for i, hand in enumerate(hands):
                if size is not None:
                    check_box(f"{where}, hand {i}", size, hand.box)

    def _boxes(self) -> dict[str, tuple[bool, VideoBoxes]]:
        """Return the boxes by the name of the video; whole videos' are those of frame 0."""
        if self.boxes is None:
            return {}
        found = read_video_boxes(Path(self.boxes), "right")
        late = [n for n, (whole, boxes) in found.items() if whole and boxes.keys() - {0}]
        if late:
            raise UserError(
                f"{self.boxes}: {late[0]}: a box from some frame on would have to be followed:"
                ' give the boxes of each frame, {"0": [...], ...}'
            )
        return found


def read_frames(
    source: Source, stride: int, boxes: dict[str, tuple[bool, VideoBoxes]] | None
) -> Iterator[Picture | str]:
    """Yield the pictures of a video, a hand each where there are boxes, and a line for each fault.

    Args:
        source: whose range counts the pictures.
        stride: from one frame that is taken to the next.
        boxes: by the name of a video; None takes whole frames.
    """
    path, taken = Path(source.name), -1
    for frame in _folder(path, stride) if path.is_dir() else _video(path, stride):
        if isinstance(frame, str):
            yield frame
            continue
        for annotation in _annotations(frame.frame, boxes, path.name):
            taken += 1
            if source.stop is not None and taken >= source.stop:
                return
            if taken >= source.start:
                yield frame._replace(annotation=annotation)


def _annotations(
    frame: int, boxes: dict[str, tuple[bool, VideoBoxes]] | None, name: str
) -> list[Annotation]:
    """Return the hands to cut out of a frame; the whole of it where there are no boxes at all."""
    if boxes is None:
        return [Annotation()]
    whole, found = boxes.get(name, (False, {}))
    hands: list[HandBox] = found.get(0 if whole else frame, [])
    return [Annotation(hand.box, hand.side) for hand in hands]


def _video(path: Path, stride: int) -> Iterator[Picture | str]:
    """Yield every so many frames of a video file."""
    reader = VideoReader(path, threaded=False)
    try:
        for frame in reader:
            if frame.number % stride == 0:
                yield Picture(frame.picture, f"{path}: frame {frame.number}", frame.number)
    except UserError as error:  # it could be opened before
        yield str(error)
    finally:
        reader.close()
    yield from reader.broken


def _folder(path: Path, stride: int) -> Iterator[Picture | str]:
    """Yield every so many images of a folder."""
    for number, image in enumerate(_images(path)):
        if number % stride == 0:
            try:
                yield Picture(read_encoded(image), str(image), number)
            except UserError as error:
                yield str(error)


def _find(root: Path) -> list[Path]:
    """Return videos and folders of frames, by name."""
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise UserError(f"{root}: no such video or folder")
    if _images(root):
        return [root]
    entries = sorted(path for path in root.iterdir() if not path.name.startswith("."))
    found = [p for p in entries if (_images(p) if p.is_dir() else p.suffix.lower() in VIDEOS)]
    if not found:
        raise UserError(
            f"{root}: neither videos ({', '.join(sorted(VIDEOS))}) nor frames (images) in it"
        )
    return found


def _extent(path: Path) -> tuple[int, tuple[int, int] | None]:
    """Return how many frames a video has, and ``(height, width)``; None if the first is broken."""
    if not path.is_dir():
        info = probe(path)
        return info.frames, info.image_size
    images = _images(path)
    try:
        return len(images), image_size(images[0])
    except UserError:  # said when it is read: a folder may lack some frames
        return len(images), None


def _images(folder: Path) -> list[Path]:
    """Return the images in a folder by name."""
    found = (path for path in folder.iterdir() if path.suffix.lower() in IMAGES)
    return sorted(path for path in found if not path.name.startswith("."))
