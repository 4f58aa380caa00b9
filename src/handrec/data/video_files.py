"""Video files: decoded frame by frame, upright, in constant memory."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.error import FFmpegError
from jaxtyping import UInt8

from handrec.errors import UserError

#: Of videos that do not say how many frames they have per second.
DEFAULT_RATE = Fraction(30)


class VideoInfo(NamedTuple):
    """What is known of a video before its frames are looked at.

    Attributes:
        path: of the file.
        image_size: ``(height, width)``, upright.
        rate: frames per second.
        frames: that the file holds; fewer may be decodable.
    """

    path: Path
    image_size: tuple[int, int]
    rate: Fraction
    frames: int


class Frame(NamedTuple):
    """A decoded frame.

    Attributes:
        number: from 0 on, broken frames not counted.
        seconds: since the start of the video.
        picture: upright RGB.
    """

    number: int
    seconds: float
    picture: UInt8[np.ndarray, "h w 3"]


def probe(path: Path) -> VideoInfo:
    """Return what a video is; its packets are counted, as headers are often wrong.

    Raises:
        UserError: it cannot be opened or no frame of it be decoded.
    """
    reader = VideoReader(path, threaded=False)
    first = next(reader, None)
    reader.close()
    if first is None:
        raise UserError(f"{path}: no frame of the video can be decoded")
    with av.open(path) as container:
        stream = container.streams.video[0]
        rate = stream.average_rate or stream.guessed_rate or DEFAULT_RATE
        frames = 0
        try:
            for packet in container.demux(stream):
                frames += bool(packet.size)
        except FFmpegError:  # cut short: what there is counts
            pass
    height, width = first.picture.shape[:2]
    return VideoInfo(path, (height, width), Fraction(rate), max(frames, 1))


class VideoReader(Iterator[Frame]):
    """Decodes a video; frames that cannot be decoded are left out and listed.

    Args:
        path: of the file.
        threaded: use several threads. A decoder with threads that is left to the garbage collector
            hangs a process forked before: data loaders go without.

    Attributes:
        broken: one line for each fault.

    Raises:
        UserError: the file is no video.
    """

    def __init__(self, path: Path, threaded: bool = True) -> None:
        self.path, self.threaded = path, threaded
        self.broken: list[str] = []
        self._frames = self._decode()

    def __next__(self) -> Frame:
        """Return the next frame that can be decoded."""
        return next(self._frames)

    def close(self) -> None:
        """Close the file; nothing more is decoded."""
        self._frames.close()  # type: ignore[attr-defined]

    def _decode(self) -> Iterator[Frame]:
        try:
            container = av.open(self.path)
        except (FFmpegError, OSError) as error:
            raise UserError(f"{self.path}: not a video ({error.strerror})") from error
        with container:
            if not container.streams.video:
                raise UserError(f"{self.path}: no video in the file")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO" if self.threaded else "NONE"
            number, lost, size = 0, 0, None
            for frame in self._frames_of(container, stream):
                picture = _upright(frame)
                size = size or picture.shape
                if frame.is_corrupt or picture.shape != size:
                    what = "damaged" if frame.is_corrupt else "of another size"
                    self.broken.append(f"{self.path}: frame {number + lost}: {what}")
                    lost += 1
                    continue
                seconds = frame.time
                yield Frame(number, number / 30 if seconds is None else seconds, picture)
                number += 1

    def _frames_of(
        self, container: "av.container.InputContainer", stream: "av.VideoStream"
    ) -> Iterator["av.VideoFrame"]:
        """Yield the frames that decode."""
        packets = container.demux(stream)
        count = 0
        while True:
            try:
                packet = next(packets, None)
            except FFmpegError as error:
                self.broken.append(f"{self.path}: ends early, at frame {count} ({error.strerror})")
                return
            if packet is None:
                if count < stream.frames:
                    self.broken.append(
                        f"{self.path}: ends early, {count} of {stream.frames} frames are there"
                    )
                return
            try:
                frames = packet.decode()
            except FFmpegError as error:
                number = count if packet.size else count - 1  # the last packet is empty
                self.broken.append(f"{self.path}: frame {number}: {error.strerror}")
                frames = []
            count += bool(packet.size)
            yield from frames


def _upright(frame: "av.VideoFrame") -> UInt8[np.ndarray, "h w 3"]:
    """Return a frame as RGB, turned as phones ask for it."""
    picture = frame.to_ndarray(format="rgb24")
    turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(picture, turns))
