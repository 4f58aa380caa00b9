"""Video files: decoded frame by frame, upright, in constant memory."""

import heapq
import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

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
        number: from 0 on, in the order of presentation; broken frames have numbers, too.
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
                frames += _holds_frame(packet)
        except FFmpegError:  # cut short: what there is counts
            pass
    height, width = first.picture.shape[:2]
    return VideoInfo(path, (height, width), Fraction(rate), max(frames, 1))


class VideoReader(Iterator[Frame]):
    """Decodes a video; frames that cannot be decoded are left out and listed.

    Every packet of the file says when its frame is to be shown, also one whose content is broken: a
    frame's number is how many packets come before it by that time, whatever the rate and whether it
    varies. Frames of files without such times are numbered as they come.

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
        self._waiting: list[int] = []  # presentation times of packets whose frames did not come yet
        self._reason, self._end = "cannot be decoded", ""
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
            number, size = 0, None
            for frame in self._frames_of(container, stream):
                number = self._lost_before(number, frame.pts, stream)
                picture = _upright(frame)
                size = size or picture.shape
                seconds = number / DEFAULT_RATE if frame.pts is None else _since(stream, frame.pts)
                if frame.is_corrupt or picture.shape != size:
                    what = "damaged" if frame.is_corrupt else "of another size"
                    self._note(number, float(seconds), what)
                else:
                    yield Frame(number, float(seconds), picture)
                number += 1
            self._lost_before(number, math.inf, stream)
            self.broken += filter(None, [self._end])

    def _lost_before(self, number: int, shown: int | float | None, stream: "av.VideoStream") -> int:
        """List the frames that should have come before another, and return the other's number.

        Args:
            number: of the next frame.
            shown: presentation time of the other in the stream's unit, infinite at the end of the
                file; None of frames that do not say theirs.
            stream: the frames are of.
        """
        times = self._waiting
        while times and shown is not None and times[0] < shown:
            self._note(number, float(_since(stream, heapq.heappop(times))), self._reason)
            number += 1
        while times and (shown is None or times[0] == shown):
            heapq.heappop(times)
            if shown is None:
                break
        return number

    def _note(self, number: int, seconds: float, what: str) -> None:
        self.broken.append(f"{self.path}: frame {number} ({seconds:.3f} s): {what}")

    def _frames_of(
        self, container: "av.container.InputContainer", stream: "av.VideoStream"
    ) -> Iterator["av.VideoFrame"]:
        """Yield the frames that decode."""
        packets = container.demux(stream)
        count, timed = 0, False
        while True:
            try:
                packet = next(packets, None)
            except FFmpegError as error:
                self._end = f"{self.path}: ends early, at frame {count} ({error.strerror})"
                return
            if packet is None:
                if count < stream.frames:
                    there = f"{count} of {stream.frames} frames are there"
                    self._end = f"{self.path}: ends early, {there}"
                return
            if _holds_frame(packet) and packet.pts is not None:
                heapq.heappush(self._waiting, packet.pts)
                timed = True
            try:
                frames = packet.decode()
            except FFmpegError as error:
                self._reason = error.strerror or self._reason
                if not timed:  # otherwise it will be missing among the others
                    self.broken.append(f"{self.path}: a frame about {count}: {self._reason}")
                frames = []
            count += bool(packet.size)
            yield from frames


def _since(stream: "av.VideoStream", shown: int) -> Fraction:
    """Return the seconds from a stream's start, which is not 0 in what was cut out of another.

    Args:
        stream: that a frame is of.
        shown: the frame's presentation time in the stream's unit.
    """
    return (shown - (stream.start_time or 0)) * (stream.time_base or Fraction(0))


def _holds_frame(packet: Any) -> bool:
    """Return whether a packet has a frame to be shown: the last is empty, edits drop some."""
    return bool(packet.size) and not packet.is_discard


def _upright(frame: "av.VideoFrame") -> UInt8[np.ndarray, "h w 3"]:
    """Return a frame as RGB, turned as phones ask for it."""
    picture = frame.to_ndarray(format="rgb24")
    turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(picture, turns))
