"""Steps that readers of labels share."""

import hashlib
from pathlib import Path

import torch
from jaxtyping import Float, Int
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from handrec.errors import UserError

#: Published cameras and keypoints have pixel centres at integers, as OpenCV and matplotlib do.
HALF_PIXEL = 0.5


def shift_centres(intrinsics: Float[Tensor, "n 3 3"]) -> Float[Tensor, "n 3 3"]:
    """Return cameras with pixel centres at integer + 0.5, from cameras with integer ones."""
    shifted = intrinsics.clone()
    shifted[:, :2, 2] += HALF_PIXEL
    return shifted


def joints_box(keypoints: Float[Tensor, "n 21 2"]) -> Float[Tensor, "n 4"]:
    """Return the boxes ``(x1, y1, x2, y2)`` around keypoints."""
    return torch.cat([keypoints.amin(1), keypoints.amax(1)], dim=1)


def image_size(path: Path) -> tuple[int, int]:
    """Return ``(height, width)`` of an image file, from its header."""
    try:
        with Image.open(path) as image:
            width, height = image.size
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"{path}: not an image, or none there") from error
    return height, width


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
