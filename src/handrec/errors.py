"""Errors that are the user's to mend."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args


class UserError(Exception):
    """A mistake the user can mend: shown as one line."""


def unread(path: Path, error: OSError) -> UserError:
    """Return what to raise for a file of a data set that cannot be read."""
    absent = isinstance(error, FileNotFoundError)
    hint = ": is the data set wholly unpacked?" if absent else ""
    return UserError(f"{path}: {error.strerror}{hint}")


def keep_inputs(option: str, outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Raise a UserError if a file that is to be written is one of those that are read.

    Args:
        option: that says where is written.
        outputs: files that will be written.
        inputs: files that are read.
    """
    read = {path.resolve(): path for path in inputs}
    for path in outputs:
        if path.resolve() in read:
            raise UserError(f"{option} would write over {read[path.resolve()]}, which is read")


def positive(owner: object, **numbers: float | int) -> None:
    """Raise a UserError that names the first argument that is not above 0.

    Args:
        owner: whose arguments they are.
        numbers: by name.
    """
    for name, number in numbers.items():
        if not 0 < number < math.inf:  # NaN neither
            raise UserError(f"{type(owner).__name__}: {name} must be above 0, not {number:g}")


def not_negative(owner: object, **numbers: float | int) -> None:
    """Raise a UserError that names the first argument that is below 0; see :func:`positive`."""
    for name, number in numbers.items():
        if not 0 <= number < math.inf:
            raise UserError(f"{type(owner).__name__}: {name} must be at least 0, not {number:g}")


def fraction(owner: object, **numbers: float | int) -> None:
    """Raise a UserError that names the first argument outside 0 to 1; see :func:`positive`."""
    for name, number in numbers.items():
        if not 0 <= number <= 1:
            raise UserError(f"{type(owner).__name__}: {name} must be 0 to 1, not {number:g}")


def one_of(owner: object, options: Any, **values: str) -> None:
    """Raise a UserError that names the first argument that is no option.

    Files and commands are checked as they are read; from Python a typing error would choose
    whatever comes last.

    Args:
        owner: whose arguments they are.
        options: a ``Literal``.
        values: by name.
    """
    known = get_args(options)
    for name, value in values.items():
        if value not in known:
            told = ", ".join(known)
            raise UserError(f"{type(owner).__name__}: {name} is one of {told}, not {value}")


def rising(owner: object, **ranges: tuple[float, float]) -> None:
    """Raise a UserError that names the first range whose end lies below its start.

    Args:
        owner: whose arguments they are.
        ranges: by name, start and end.
    """
    for name, (low, high) in ranges.items():
        if not low <= high:
            raise UserError(
                f"{type(owner).__name__}: {name} goes from the lower to the higher number,"
                f" not from {low:g} to {high:g}"
            )
