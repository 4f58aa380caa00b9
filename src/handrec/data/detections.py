"""2D keypoints that a detector found, in the files that hand detectors leave behind."""

import logging
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from handrec.data.columns import HALF_PIXEL
from handrec.data.json_files import read_json
from handrec.errors import UserError

logger = logging.getLogger(__name__)

#: Joints found with less are not relied on to say where a hand is; published for the textures.
LEAST_CONFIDENCE = 0.1

_FORM = "expected [keypoints (N, 21, 2), confidences (N, 21), names (N)]"


class Detections(NamedTuple):
    """Hands that were found, a row each.

    Attributes:
        names: of the images: a path, a file's name, or its number.
        keypoints: pixels of the images, centres at integer + 0.5; 21 in the file's order.
        confidence: in [0, 1]; 0 where nothing was found.
    """

    names: list[str]
    keypoints: Float[Tensor, "n 21 2"]
    confidence: Float[Tensor, "n 21"]


def read_detections(path: Path, order: Sequence[int] = tuple(range(21))) -> Detections:
    """Return the content of a detector's file.

    The JSON of S2HAND's public code is a list of three: ``N x 21 x 2`` pixels with centres at
    integers, ``N x 21 (x 1)`` confidences, ``N (x 1)`` names or numbers of images. An ``.npz``
    holds the same as ``keypoints``, ``confidence``, ``names``. Confidences are clipped to [0, 1].

    Args:
        path: of the file.
        order: ``keypoints[:, order]`` are in the suite's order.

    Raises:
        UserError: the file is not like this; names the entry.
    """
    parts = _read_npz(path) if path.suffix == ".npz" else read_json(path)
    if not isinstance(parts, list) or len(parts) != 3:
        raise UserError(f"{path}: not a detector's file: {_FORM}")
    if not isinstance(parts[2], list):
        raise UserError(f"{path}: names are {parts[2]!r}: {_FORM}")
    names = [str(x[0] if isinstance(x, list) and len(x) == 1 else x) for x in parts[2]]
    count = len(names)
    keypoints = _numbers(path, "keypoints", parts[0], (count, 21, 2))
    confidence = _numbers(path, "confidences", parts[1], (count, 21))
    confidence = confidence.clip(0, 1)[:, order]
    found = (keypoints[:, order] + HALF_PIXEL) * (confidence > 0)[..., None]
    return Detections(names, torch.from_numpy(found).float(), torch.from_numpy(confidence).float())


def _read_npz(path: Path) -> list[Any]:
    """Return the three arrays of an ``.npz`` as the JSON has them."""
    try:
        with np.load(path, allow_pickle=False) as content:
            names: list[Any] = content["names"].tolist()
            return [content["keypoints"], content["confidence"], names]
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except (KeyError, ValueError, TypeError, AttributeError, EOFError, BadZipFile) as error:
        raise UserError(f"{path}: not a detector's file: {_FORM} ({error})") from error


def _numbers(path: Path, what: str, values: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return an array of finite numbers of a shape; a last side of length 1 may be left over."""
    wanted = f"expected {' x '.join(map(str, shape))} for {shape[0]} names"
    try:
        array = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        raise UserError(f"{path}: {what} are not equal rows of numbers, {wanted}") from None
    if array.shape == (*shape, 1):
        array = array[..., 0]
    if array.shape != shape:
        raise UserError(f"{path}: {what} are {' x '.join(map(str, array.shape))}, {wanted}")
    bad = np.flatnonzero(~np.isfinite(array.reshape(shape[0], -1)).all(1))
    if len(bad):
        raise UserError(f"{path}: entry {bad[0]}: {what} are not finite")
    return array


def find_images(found: Detections, images: Sequence[str], where: str) -> list[int]:
    """Return for each entry which image it is of: by path, else by name, else by number.

    Args:
        found: the entries, in any order.
        images: paths of the images, relative to the data set's root, with forward slashes.
        where: the entries come from, for messages.

    Raises:
        UserError: an entry names none of the images, or several.
    """
    paths = {path: index for index, path in enumerate(images)}
    keys: dict[str, list[int]] = {}
    for index, path in enumerate(images):
        keys.setdefault(_key(path), []).append(index)
    indices, unknown = [], []
    for name in found.names:
        candidates = [paths[name]] if name in paths else keys.get(_key(name), [])
        if len(candidates) > 1:
            first, second, *_ = (images[index] for index in candidates)
            raise UserError(f"{where}: {name} may be {first} or {second}: name it with its folder")
        if candidates:
            indices.append(candidates[0])
        else:
            unknown.append(name)
    if unknown:
        raise UserError(
            f"{where} has {len(found.names):,} entries for {len(images):,} images:"
            f" {len(unknown):,} are of none of them, the first is {unknown[0]}"
        )
    return indices


def one_for_each(found: Detections, images: Sequence[str], where: str) -> Int[Tensor, " n"]:
    """Return the row of every image, each of which must have exactly one.

    Args:
        found: the entries, in any order.
        images: see :func:`find_images`.
        where: the entries come from, for messages.

    Raises:
        UserError: not one for each.
    """
    indices = find_images(found, images, where)
    rows = dict(zip(indices, range(len(indices)), strict=True))
    if len(rows) < len(images):
        missing = next(i for i in range(len(images)) if i not in rows)
        raise UserError(
            f"{where} has {len(found.names):,} entries for {len(images):,} images:"
            f" {len(images) - len(rows):,} have none, the first is {images[missing]}"
        )
    if len(rows) < len(indices):
        twice = next(i for i in indices if indices.count(i) > 1)
        raise UserError(f"{where}: {images[twice]} has several entries, expected one")
    return torch.tensor([rows[i] for i in range(len(images))])


def count_blank(where: str, confidence: Float[Tensor, "n 21"]) -> None:
    """Say how many hands teach nothing, if there are any.

    Args:
        where: the hands come from.
        confidence: of their keypoints.
    """
    blank = int((confidence <= 0).all(1).sum())
    if blank:
        logger.warning(
            "%s: %d of %d hands have no joint with a confidence above 0: they teach nothing",
            where, blank, len(confidence),
        )  # fmt: skip


def detected_boxes(
    keypoints: Float[Tensor, "n 21 2"],
    confidence: Float[Tensor, "n 21"],
    image_size: Int[Tensor, "n 2"],
) -> Float[Tensor, "n 4"]:
    """Return boxes ``(x1, y1, x2, y2)`` around what was found with some confidence.

    The whole image, ``(height, width)`` pixels, where that is no two joints in different places.
    """
    sure = (confidence >= LEAST_CONFIDENCE)[..., None]
    low = keypoints.masked_fill(~sure, torch.inf).amin(1)
    high = keypoints.masked_fill(~sure, -torch.inf).amax(1)
    whole = torch.cat([torch.zeros_like(image_size), image_size.flip(1)], dim=1).to(keypoints)
    return torch.where((high > low).all(1)[:, None], torch.cat([low, high], dim=1), whole)


def _key(name: str) -> str:
    """Return a file's name without folder and suffix; of a number, without leading zeros."""
    stem = PurePosixPath(name).stem
    return str(int(stem)) if stem.isdecimal() else stem
