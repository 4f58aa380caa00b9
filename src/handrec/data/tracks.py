"""Where the hands of a video are, frame by frame, and which of them is which."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from handrec.data.boxes import MIN_BOX, Side, VideoBoxes
from handrec.data.crops import Box
from handrec.data.detection import HandDetector

#: Boxes of one hand in successive frames share at least this part of their union.
MIN_OVERLAP = 0.2

#: A followed box grows or shrinks by no more than this factor from frame to frame: where a hand is
#: half out of the crop, what is found is small, and would make the next crop smaller still.
MAX_GROWTH = 1.05

#: Of the size in which a hand was first seen, a smaller box is no hand any more.
SMALLEST = 0.25


class Tracked(NamedTuple):
    """A hand in a frame.

    Attributes:
        track: number of the hand in its video.
        box: around it, pixels; None is the whole frame.
        side: of the body.
    """

    track: int
    box: Box | None
    side: Side


class BoxSource(ABC):
    """Says where hands are in the frames of one video, asked in order.

    Attributes:
        waits: whether a frame's boxes depend on what was found in the one before.
        lost: one line for each hand that was followed no further.
    """

    waits = False

    def __init__(self) -> None:
        self.lost: list[str] = []

    @abstractmethod
    def boxes(self, frame: int, picture: UInt8[np.ndarray, "h w 3"]) -> list[Tracked]:
        """Return the hands of a frame."""

    def follow(self, track: int, frame: int, box: Box | None) -> None:  # noqa: B027
        """Take note of where a hand was found; None is nowhere."""


class WholeFrame(BoxSource):
    """One hand, anywhere in the frame.

    Args:
        side: of the body.
    """

    def __init__(self, side: Side) -> None:
        super().__init__()
        self.side: Side = side

    def boxes(self, frame: int, picture: UInt8[np.ndarray, "h w 3"]) -> list[Tracked]:
        """Return the whole frame."""
        return [Tracked(0, None, self.side)]


class LinkedBoxes(BoxSource):
    """Boxes of each frame, of which those of one hand are linked by how much they overlap.

    Args:
        given: hands by frame; None asks the detector.
        detector: finds them.
    """

    def __init__(self, given: VideoBoxes | None, detector: HandDetector | None = None) -> None:
        super().__init__()
        self.given, self.detector = given, detector
        self._before: list[Tracked] = []
        self._tracks = 0

    def boxes(self, frame: int, picture: UInt8[np.ndarray, "h w 3"]) -> list[Tracked]:
        """Return the hands of a frame; a hand keeps its number from the frame before."""
        if self.given is not None:
            hands = self.given.get(frame, [])
        else:
            hands = self.detector.detect(picture) if self.detector else []
        free = list(self._before)
        found = []
        for hand in hands:
            same = [old for old in free if old.side == hand.side and old.box is not None]
            best = max(same, key=lambda old: overlap(old.box, hand.box), default=None)
            if best is not None and overlap(best.box, hand.box) >= MIN_OVERLAP:
                free.remove(best)
                number = best.track
            else:
                number, self._tracks = self._tracks, self._tracks + 1
            found.append(Tracked(number, *hand))
        self._before = found
        return found


class FollowedBoxes(BoxSource):
    """Hands that are followed: a frame's box is where the hand was found in the frame before.

    Args:
        starts: the hands by the frame in which they start.
        name: of the video, for messages.
    """

    waits = True

    def __init__(self, starts: VideoBoxes, name: str) -> None:
        super().__init__()
        self.starts, self.name = starts, name
        self._size = (0, 0)
        self._hands: dict[int, Tracked] = {}
        self._first: dict[int, float] = {}
        self._tracks = 0

    def boxes(self, frame: int, picture: UInt8[np.ndarray, "h w 3"]) -> list[Tracked]:
        """Return the hands that are followed, and those that start here."""
        self._size = (picture.shape[0], picture.shape[1])
        for hand in self.starts.get(frame, []):
            self._hands[self._tracks] = Tracked(self._tracks, *hand)
            self._first[self._tracks] = _longer_side(hand.box)
            self._tracks += 1
        return list(self._hands.values())

    def follow(self, track: int, frame: int, box: Box | None) -> None:
        """Move on to where the hand was found; give it up where no hand can be."""
        if track not in self._hands:
            return
        before = self._hands[track]
        assert before.box is not None
        if box is not None:
            box = _grown_at_most(before.box, box)
        if box is None or not self._possible(track, box):
            del self._hands[track]
            self.lost.append(f"{self.name}: frame {frame}: {before.side} hand lost")
            return
        self._hands[track] = before._replace(box=box)

    def _possible(self, track: int, box: Box) -> bool:
        """Return whether a box's centre is in the picture and its size that of the hand."""
        height, width = self._size
        left, top, right, bottom = box
        inside = 0 <= left + right <= 2 * width and 0 <= top + bottom <= 2 * height
        smallest = max(MIN_BOX, SMALLEST * self._first[track])
        return inside and smallest <= _longer_side(box) <= 2 * max(self._size)


def _longer_side(box: Box) -> float:
    return max(box[2] - box[0], box[3] - box[1])


def _grown_at_most(before: Box, now: Box) -> Box:
    """Return a square about the centre of the new box, about as large as the last box."""
    old = _longer_side(before)
    side = min(max(_longer_side(now), old / MAX_GROWTH), old * MAX_GROWTH)
    x, y = (now[0] + now[2]) / 2, (now[1] + now[3]) / 2
    return x - side / 2, y - side / 2, x + side / 2, y + side / 2


def overlap(first: Box | None, second: Box | None) -> float:
    """Return the intersection of two boxes over their union; 0 where one is None."""
    if first is None or second is None:
        return 0.0
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(0.0, width) * max(0.0, height)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return shared / (sum(areas) - shared)
