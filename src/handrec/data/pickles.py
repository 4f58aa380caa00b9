"""Reads the pickles of data sets without running anything that is in them."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handrec.errors import UserError, unread
from handrec.hand.mano_files import DescribingUnpickler, Record, array_of

#: Greatest size of a frame's annotation, bytes: they have some ten thousand.
FRAME_SIZE = 16 << 20

#: Numbers that numpy pickles by themselves; nothing here needs them.
_IGNORED = {("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar")}


class _Unpickler(DescribingUnpickler):
    """Describes what the MANO reader describes, and lone numpy numbers."""

    def find_class(self, module: str, name: str) -> type[Record]:
        if (module, name) in _IGNORED:
            return type(name, (Record,), {"__slots__": (), "kind": "scalar"})
        return super().find_class(module, name)


def read_pickle(path: Path, largest: int = FRAME_SIZE) -> dict[Any, Any]:
    """Return the dictionary in a pickle; arrays stay descriptions, see :func:`array`.

    Args:
        path: of the file.
        largest: size of a file that is read, bytes.

    Raises:
        UserError: there is no such file, it is damaged, or asks for something to run.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise unread(path, error) from error
    if len(data) > largest:
        raise UserError(f"{path}: too big to be an annotation ({len(data):,} bytes)")
    try:
        content = _Unpickler(BytesIO(data), encoding="latin1").load()
    except UserError as error:
        asked = str(error).partition(";")[0]
        raise UserError(f"{path}: {asked}; an annotation has no need of it") from error
    except Exception as error:  # a damaged file can fail in any way
        raise UserError(f"{path}: damaged, or no pickle") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a dictionary")
    return content


def array(
    where: object, content: dict[str, Any], key: str, shape: tuple[int, ...]
) -> NDArray[np.float64]:
    """Return an array of finite numbers from a pickle's dictionary.

    Args:
        where: the dictionary is from, for the message: a file, or an entry of one.
        content: the dictionary.
        key: of the array.
        shape: that it must have.

    Raises:
        UserError: it is not there, or not of the shape, or not finite.
    """
    wanted = " x ".join(map(str, shape))
    if content.get(key) is None:
        raise UserError(f"{where}: no {key}, expected {wanted} numbers")
    try:
        value = content[key]
        found = array_of(value, key) if isinstance(value, Record) else value
        values = np.array(found, dtype=np.float64)  # a copy: the pickle's bytes are read-only
    except Exception as error:  # descriptions of anything at all
        raise UserError(f"{where}: {key} is not {wanted} numbers") from error
    if values.shape != shape:
        shown = " x ".join(map(str, values.shape)) or "one number"
        raise UserError(f"{where}: {key} is {shown}, expected {wanted}")
    if not np.isfinite(values).all():
        raise UserError(f"{where}: {key} holds a number that is not finite")
    return values
