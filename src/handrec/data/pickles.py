"""Reads the pickles of data sets without running anything that is in them."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handrec.errors import UserError
from handrec.hand.mano_files import _array, _DescribingUnpickler, _Record

_MAX_FILE_SIZE = 16 << 20  # bytes; a frame's annotation has some ten thousand

#: Numbers that numpy pickles by themselves; nothing here needs them.
_IGNORED = {("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar")}


class _Unpickler(_DescribingUnpickler):
    """Describes what the MANO reader describes, and lone numpy numbers."""

    def find_class(self, module: str, name: str) -> type[_Record]:
        if (module, name) in _IGNORED:
            return type(name, (_Record,), {"__slots__": (), "kind": "scalar"})
        return super().find_class(module, name)


def read_pickle(path: Path) -> dict[str, Any]:
    """Return the dictionary in a pickle; arrays stay descriptions, see :func:`array`.

    Raises:
        UserError: there is no such file, it is damaged, or asks for something to run.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    if len(data) > _MAX_FILE_SIZE:
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
    path: Path, content: dict[str, Any], key: str, shape: tuple[int, ...]
) -> NDArray[np.float64]:
    """Return an array of finite numbers from a pickle's dictionary.

    Raises:
        UserError: it is not there, or not of the shape, or not finite.
    """
    wanted = " x ".join(map(str, shape))
    if content.get(key) is None:
        raise UserError(f"{path}: no {key}, expected {wanted} numbers")
    try:
        value = content[key]
        found = _array(value, key) if isinstance(value, _Record) else value
        values = np.array(found, dtype=np.float64)  # a copy: the pickle's bytes are read-only
    except Exception as error:  # descriptions of anything at all
        raise UserError(f"{path}: {key} is not {wanted} numbers") from error
    if values.shape != shape:
        shown = " x ".join(map(str, values.shape)) or "one number"
        raise UserError(f"{path}: {key} is {shown}, expected {wanted}")
    if not np.isfinite(values).all():
        raise UserError(f"{path}: {key} holds a number that is not finite")
    return values
