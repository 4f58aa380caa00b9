"""Large JSON lists of numbers as arrays, in a few times the memory of the array."""

import json
import math
from codecs import BOM_UTF8
from pathlib import Path

import numpy as np
from jaxtyping import Float

from handrec.data.json_files import read_json
from handrec.errors import UserError

#: Bytes that are parsed at a time.
CHUNK = 8 << 20

#: Brackets and commas that are compared at a time.
WINDOW = 1 << 18

_ALL_BUT_MARKS = bytes(set(range(256)) - set(b"[],"))


def read_array(path: Path, row: tuple[int | None, ...]) -> Float[np.ndarray, "n *row"]:
    """Return a JSON list of equal lists of numbers, in single precision.

    FreiHAND's vertices are 76 million numbers: as Python objects they would take gigabytes, so the
    text is parsed in pieces, brackets apart from the numbers, and looked at closely only if the
    count or a bracket is wrong.

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
    values, size = _numbers(path, shape), math.prod(shape)
    if values is None or not size or not len(values) or len(values) % size:
        raise UserError(f"{path}: {_culprit(path, shape)}")
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise UserError(f"{path}: entry {bad[0] // size} holds {values[bad[0]]}: expected a number")
    return values.reshape(-1, *shape)


class _Brackets:
    """Whether a text's brackets and commas are those of a list of arrays of one shape.

    Lists of other lengths than their neighbours' would shift all numbers after them, and what some
    have too much others may lack: the count does not tell.

    Args:
        shape: of the arrays.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        entry = ""
        for side in reversed(shape):
            entry = f"[{','.join([entry] * side)}]"
        period = entry.encode() + b","
        self.period = len(period)
        self.pattern = period * (2 + WINDOW // self.period)
        self.seen, self.held, self.regular = 0, b"", True

    def feed(self, text: bytes) -> None:
        """Look at the next piece of the text."""
        if not self.regular:
            return
        marks = self.held + text.translate(None, _ALL_BUT_MARKS)
        if not self.seen:  # the list's own bracket
            self.regular = marks[:1] in (b"", b"[")
            self.seen, marks = len(marks[:1]), marks[1:]
        marks, self.held = marks[:-1], marks[-1:]  # the last one closes the list
        for start in range(0, len(marks), WINDOW):
            piece = marks[start : start + WINDOW]
            place = (self.seen - 1) % self.period
            self.regular &= self.pattern[place : place + len(piece)] == piece
            self.seen += len(piece)

    def complete(self) -> bool:
        """Return whether that was all of the list."""
        return self.regular and self.held == b"]" and self.seen % self.period == 0


def _numbers(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return all numbers of a file one after the other, None where something else is between.

    Args:
        path: of the file.
        shape: of the arrays that it is to be a list of.
    """
    parts, rest, brackets = [], b"", _Brackets(shape)
    try:
        with path.open("rb") as file:
            if file.read(len(BOM_UTF8)) != BOM_UTF8:
                file.seek(0)
            while chunk := file.read(CHUNK):
                brackets.feed(chunk)
                text = rest + chunk
                cut = text.rfind(b",")
                parts.append(_parse(text[: max(cut, 0)]))
                rest = text[cut + 1 :]
            parts.append(_parse(rest))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except ValueError:
        return None
    complete = rest.rstrip().endswith(b"]") and brackets.complete()
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
