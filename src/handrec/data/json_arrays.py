"""Large JSON lists of numbers as arrays, in a few times the memory of the array."""

import json
import math
from pathlib import Path

import numpy as np
from jaxtyping import Float

from handrec.data.json_files import read_json
from handrec.errors import UserError

#: Bytes that are parsed at a time.
CHUNK = 8 << 20


def read_array(path: Path, row: tuple[int | None, ...]) -> Float[np.ndarray, "n *row"]:
    """Return a JSON list of equal lists of numbers, in single precision.

    FreiHAND's vertices are 76 million numbers: as Python objects they would take gigabytes, so the
    text is parsed in pieces, brackets ignored, and looked at closely only if the count is wrong.

    Args:
        path: of the file.
        row: shape of an entry; a None is read off the first entry.

    Raises:
        UserError: not such a list, or a number is not finite; names the entry.
    """
    shape = tuple(
        found if side is None else side
        for side, found in zip(row, _first_shape(path, len(row)), strict=True)
    )
    values, size = _numbers(path), math.prod(shape)
    if values is None or not len(values) or len(values) % size:
        raise UserError(f"{path}: {_culprit(path, shape)}")
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise UserError(f"{path}: entry {bad[0] // size} holds {values[bad[0]]}: expected a number")
    return values.reshape(-1, *shape)


def _numbers(path: Path) -> np.ndarray | None:
    """Return all numbers of a file one after the other, None where something else is between."""
    parts, rest = [], b""
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                text = rest + chunk
                cut = text.rfind(b",")
                parts.append(_parse(text[: max(cut, 0)]))
                rest = text[cut + 1 :]
            parts.append(_parse(rest))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except ValueError:
        return None
    complete = rest.rstrip().endswith(b"]")
    return np.concatenate(parts) if complete else None


def _parse(text: bytes) -> np.ndarray:
    plain = text.translate(None, b"[] \r\n\t")
    return np.array(plain.split(b",") if plain else [], dtype=np.float64).astype(np.float32)


def _first_shape(path: Path, dimensions: int) -> tuple[int, ...]:
    """Return the shape of the first entry of a list of lists."""
    try:
        with path.open("rb") as file:
            head = file.read(1 << 20).decode("latin1")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    start = head.find("[") + 1
    try:
        first, _ = json.JSONDecoder().raw_decode(head[start:].lstrip())
        shape = np.asarray(first, dtype=float).shape
    except (ValueError, TypeError, OverflowError):
        shape = ()
    if len(shape) != dimensions:
        found = ": it is empty" if head.split() in ([], ["[]"], ["{}"]) else ""
        raise UserError(f"{path}: not a list of {dimensions}-dimensional arrays of numbers{found}")
    return shape


def _culprit(path: Path, shape: tuple[int, ...]) -> str:
    """Return which entry is not of the shape; slow, and only asked of files that are wrong."""
    wanted = " x ".join(map(str, shape))
    for index, entry in enumerate(read_json(path)):
        try:
            array = np.asarray(entry, dtype=float)
        except (ValueError, TypeError, OverflowError):
            return f"entry {index} is not {wanted} numbers"
        if array.shape != shape:
            shown = " x ".join(map(str, array.shape)) or "no list"
            return f"entry {index} is {shown}, expected {wanted}"
        if not np.isfinite(array).all():
            return f"entry {index} holds no number where one is expected"
    return f"not a list of {wanted} numbers"
