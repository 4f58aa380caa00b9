"""Where hands are and what the camera is, as people write it: boxes and intrinsics."""

import json
import logging
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from jaxtyping import Float

from handrec.data.crops import Box, default_intrinsics, square_box
from handrec.data.json_files import read_json
from handrec.errors import UserError

Side = Literal["right", "left"]

#: A box with a side shorter than this is a mistake, not a hand (pixels).
MIN_BOX = 8

#: Hands whose box has no side of this length are predicted with a warning (pixels).
SMALL_BOX = 64

#: What is known of cameras: one ``K`` for everything, one per name, or a focal length in pixels.
Cameras = Float[np.ndarray, "3 3"] | dict[str, Float[np.ndarray, "3 3"]] | float

logger = logging.getLogger(__name__)


class HandBox(NamedTuple):
    """Where a hand is.

    Attributes:
        box: ``(x1, y1, x2, y2)`` around it, pixels of the upright picture.
        side: of the body.
    """

    box: Box
    side: Side


#: Hands of a video: of each frame, or those that are followed, by the frame they start in.
VideoBoxes = dict[int, list[HandBox]]


def read_boxes(path: Path, side: Side) -> dict[str, list[HandBox]]:
    """Return the hands of each photo (format: see :class:`~handrec.data.photos.Photos`)."""
    boxes = {}
    for name, hands in _read_names(path).items():
        if not isinstance(hands, list):
            raise UserError(f"{path}: {name}: not a list of hands")
        boxes[name] = [
            _parse_hand(f"{path}: {name}, hand {i}", h, side) for i, h in enumerate(hands)
        ]
    return boxes


def read_video_boxes(path: Path, side: Side) -> dict[str, tuple[bool, VideoBoxes]]:
    """Return whether a video's hands are to be followed, and its boxes (format: see ``Videos``)."""
    boxes: dict[str, tuple[bool, VideoBoxes]] = {}
    for name, hands in _read_names(path).items():
        where = f"{path}: {name}"
        if isinstance(hands, dict):
            boxes[name] = (
                False,
                {
                    _parse_frame(where, number): [
                        _parse_hand(f"{where}, frame {number}, hand {i}", hand, side)
                        for i, hand in enumerate(_as_list(f"{where}, frame {number}", found))
                    ]
                    for number, found in hands.items()
                },
            )
            continue
        starts: VideoBoxes = {}
        for i, hand in enumerate(_as_list(where, hands)):
            given = dict(hand) if isinstance(hand, dict) else hand
            frame = given.pop("frame", 0) if isinstance(given, dict) else 0
            found = _parse_hand(f"{where}, hand {i}", given, side)
            starts.setdefault(_parse_frame(where, frame), []).append(found)
        boxes[name] = True, starts
    return boxes


def _read_names(path: Path) -> dict[str, Any]:
    """Return the entries of a boxes file by name."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f'{path}: not of the form {{"photo.jpg": [{{"box": ...}}, ...], ...}}')
    return content


def _as_list(where: str, hands: Any) -> list[Any]:
    if not isinstance(hands, list):
        raise UserError(f"{where}: not a list of hands")
    return hands


def _parse_frame(where: str, number: Any) -> int:
    """Return the number of a frame."""
    if not str(number).isdecimal():
        raise UserError(f"{where}: not the number of a frame, from 0 on: {json.dumps(number)}")
    return int(number)


def _parse_hand(where: str, hand: Any, side: Side) -> HandBox:
    """Return one entry of a boxes file."""
    if not isinstance(hand, dict) or "box" not in hand or hand.keys() - {"box", "side"}:
        raise UserError(f'{where}: wants the keys "box" and "side", got {json.dumps(hand)}')
    if (box := _numbers(hand["box"], (4,))) is None:
        raise UserError(f"{where}: box is not [x1, y1, x2, y2]: {json.dumps(hand['box'])}")
    if (hand_side := hand.get("side", side)) not in ("right", "left"):
        raise UserError(f'{where}: side is neither "right" nor "left": {json.dumps(hand_side)}')
    return HandBox(cast(Box, tuple(box.tolist())), hand_side)


def place_box(
    where: str, image_size: tuple[int, int], box: Box | None, scale: float
) -> tuple[Box, Box]:
    """Return a hand's box and the square to crop.

    Args:
        where: the box is from, for messages.
        image_size: ``(height, width)`` of the picture.
        box: around the hand; None is the whole picture, in a square of its longer side.
        scale: side of the square over the longer side of the box.

    Raises:
        UserError: the box can hold no hand.
    """
    height, width = image_size
    if box is None:
        box = (0.0, 0.0, float(width), float(height))
        return box, square_box(box, 1.0)
    check_box(where, image_size, box)
    left, top, right, bottom = box
    if max(right - left, bottom - top) < SMALL_BOX:
        shown = _shown(where, box)
        logger.warning("%s is smaller than %d pixels: expect a poor hand", shown, SMALL_BOX)
    return box, square_box(box, scale)


def check_box(where: str, image_size: tuple[int, int], box: Box) -> None:
    """Refuse a box that can hold no hand.

    Args:
        where: the box is from, for messages.
        image_size: ``(height, width)`` of the picture.
        box: around the hand, pixels.

    Raises:
        UserError: it is inverted, outside the picture, far larger than it or tiny.
    """
    (height, width), (left, top, right, bottom) = image_size, box
    shown = _shown(where, box)
    if right <= left or bottom <= top:
        raise UserError(f"{shown} is inverted: it wants [x1, y1, x2, y2], x1 < x2, y1 < y2")
    if right <= 0 or bottom <= 0 or left >= width or top >= height:
        raise UserError(f"{shown} lies outside the image ({width} x {height} pixels)")
    if max(right - left, bottom - top) > 4 * max(width, height):
        raise UserError(f"{shown} is far larger than the image ({width} x {height} pixels)")
    if min(right - left, bottom - top) < MIN_BOX:
        raise UserError(f"{shown} is smaller than {MIN_BOX} pixels")


def _shown(where: str, box: Box) -> str:
    return f"{where}: box {[round(x, 1) for x in box]}"


def read_cameras(given: str) -> Cameras:
    """Return cameras from what was typed: a JSON file, or a focal length in pixels.

    Args:
        given: name of a file as :class:`~handrec.data.photos.Photos` describes it, or a number.
    """
    try:
        focal = float(given)
    except ValueError:
        return read_intrinsics(Path(given))
    if not 0 < focal < float("inf"):
        raise UserError(f"focal length {given}: must be a positive number of pixels")
    return focal


def camera_of(
    cameras: Cameras | None, name: str, image_size: tuple[int, int]
) -> tuple[Float[np.ndarray, "3 3"], bool]:
    """Return ``K`` of a picture, and whether it was given.

    Args:
        cameras: that are known.
        name: of the picture.
        image_size: ``(height, width)``.
    """
    assumed = default_intrinsics(*image_size)
    if isinstance(cameras, float):
        return np.diag([cameras, cameras, 1.0]) + np.triu(assumed, 1), True
    given = cameras.get(name) if isinstance(cameras, dict) else cameras
    return (assumed, False) if given is None else (given, True)


def read_intrinsics(
    path: Path,
) -> Float[np.ndarray, "3 3"] | dict[str, Float[np.ndarray, "3 3"]]:
    """Return the camera matrix of all pictures, or of each by name."""
    content = read_json(path)
    if isinstance(content, dict):
        return {name: _parse_camera(f"{path}: {name}", matrix) for name, matrix in content.items()}
    return _parse_camera(str(path), content)


def _parse_camera(where: str, content: Any) -> Float[np.ndarray, "3 3"]:
    """Return a camera matrix, checked."""
    matrix = _numbers(content, (3, 3))
    if matrix is None or matrix[2].tolist() != [0, 0, 1] or min(matrix[0, 0], matrix[1, 1]) <= 0:
        raise UserError(f"{where}: not a camera matrix [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]")
    return matrix


def _numbers(content: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return an array of finite numbers of the given shape, or None if it is not one."""
    if not _holds_numbers(content):  # NumPy takes true for 1, and "1" too
        return None
    try:
        array = np.asarray(content, dtype=float)
    except (TypeError, ValueError, OverflowError):
        return None
    return array if array.shape == shape and np.isfinite(array).all() else None


def _holds_numbers(content: Any) -> bool:
    """Return whether all that is in lists of lists is numbers."""
    if isinstance(content, list):
        return all(map(_holds_numbers, content))
    return isinstance(content, int | float) and not isinstance(content, bool)
