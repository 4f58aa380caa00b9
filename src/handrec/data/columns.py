"""Steps that readers of labels share."""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from handrec.errors import UserError

#: Published cameras and keypoints have pixel centres at integers, as OpenCV and matplotlib do.
HALF_PIXEL = 0.5

#: EXIF's tag for how a camera was held, and its values for a quarter of a turn.
_ORIENTATION, _SIDEWAYS = 0x0112, (5, 6, 7, 8)


def shift_centres(intrinsics: Float[Tensor, "n 3 3"]) -> Float[Tensor, "n 3 3"]:
    """Return cameras with pixel centres at integer + 0.5, from cameras with integer ones."""
    shifted = intrinsics.clone()
    shifted[:, :2, 2] += HALF_PIXEL
    return shifted


def joints_box(keypoints: Float[Tensor, "n 21 2"]) -> Float[Tensor, "n 4"]:
    """Return the boxes ``(x1, y1, x2, y2)`` around keypoints."""
    return torch.cat([keypoints.amin(1), keypoints.amax(1)], dim=1)


def image_size(path: Path) -> tuple[int, int]:
    """Return ``(height, width)`` of an image file, from its header, as decoding turns it."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION, 1) in _SIDEWAYS
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"{path}: not an image, or none there") from error
    return (width, height) if turned else (height, width)


def hashed_share(names: list[str]) -> Float[Tensor, " n"]:
    """Return a number in [0, 1) for each name: the same on every machine, in every version."""
    numbers = [
        int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48 for name in names
    ]
    return torch.tensor(numbers, dtype=torch.float64)


def held_out(names: list[str], share: float) -> set[str]:
    """Return the names to validate on: the first by hash, at least one, never all of several.

    Args:
        names: may repeat; each counts as often as it comes.
        share: of all names, about.
    """
    unique = sorted(set(names), key=lambda name: float(hashed_share([name])[0]))
    counts: dict[str, int] = dict.fromkeys(unique, 0)
    for name in names:
        counts[name] += 1
    chosen: set[str] = set()
    taken = 0
    for name in unique[: max(1, len(unique) - 1)]:
        if taken >= share * len(names):
            break
        chosen.add(name)
        taken += counts[name]
    return chosen


def numbered(count: int) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """Return ``sequence`` and ``frame`` of images that are of no video."""
    return torch.arange(count), torch.zeros(count, dtype=torch.long)


def videos_by_name(
    files: Sequence[str], sides: Sequence[str]
) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """Return ``sequence`` and ``frame`` of hands in the frames of videos, see :func:`of_video`.

    The two sides are sequences of their own; hands of one side of which an image has several, and
    those in images without a number, are of none.
    """
    places = [(*of_video(file), side) for file, side in zip(files, sides, strict=True)]
    several = {place for place, count in Counter(places).items() if count > 1}
    numbers: dict[Any, int] = {}
    sequence, frame = [], []
    for row, (video, number, side) in enumerate(places):
        alone = number is None or (video, number, side) in several
        name = row if alone else (video, side)
        sequence.append(numbers.setdefault(name, len(numbers)))
        frame.append(0 if number is None or alone else number)
    return torch.tensor(sequence), torch.tensor(frame)


def of_video(file: str) -> tuple[str, int | None]:
    """Return a frame's video and its number in it: the last number in the file's name.

    ``cat/0007.jpg`` is frame 7 of ``cat/``, ``a_0007.jpg`` of ``a_``; there may be no number.
    """
    path = PurePosixPath(file)
    found = re.fullmatch(r"(.*?)(\d*)(\D*)", path.stem)
    assert found is not None  # it matches any name
    before, number, after = found.groups()
    return str(path.parent / f"{before}*{after}"), int(number) if number else None


def held_out_videos(files: Sequence[str], share: float) -> Bool[Tensor, " n"]:
    """Return which frames validate: those of whole videos, of a single video its end.

    Args:
        files: of the frames, see :func:`of_video`.
        share: of the frames, about.
    """
    videos, numbers = zip(*map(of_video, files), strict=True)
    if len(set(videos)) > 1:
        chosen = held_out(list(videos), share)
        return torch.tensor([video in chosen for video in videos])
    frame = torch.tensor([number or 0 for number in numbers])
    last = frame.sort().values[int((1 - share) * len(frame)) :]
    return frame >= last[0]
