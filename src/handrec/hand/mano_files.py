"""Finds and reads MANO's files without chumpy, and without running anything that is in them.

``MANO_RIGHT.pkl`` and ``MANO_LEFT.pkl`` are Python 2 pickles of chumpy objects, and unpickling is
running a program. Here the pickle only *describes*: every name that it may ask for becomes a
record of what was asked (:class:`Record`), any other name is refused, and the arrays are built
from the records afterwards, by code that knows what a MANO file holds. Nothing that a pickle
names is imported or called.
"""

import hashlib
import math
import os
import pickle
import pickletools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from handrec.errors import UserError
from handrec.hand.joints import KINEMATIC_PARENTS

Side = Literal["right", "left"]

#: MD5 of the files of the current release, as published by the FreiHAND and HO-3D toolkits.
KNOWN_MD5 = {
    "right": "fd5a9d35f914987cf1cc04ffe338caa1",
    "left": "11aeaca8631aa20db964d4eba491e885",
}

#: Arrays of a MANO file that matter here, under the names that the file gives them.
SHAPES: dict[str, tuple[int, ...]] = {
    "v_template": (778, 3),
    "shapedirs": (778, 3, 10),
    "posedirs": (778, 3, 135),
    "J_regressor": (16, 778),
    "weights": (778, 16),
    "kintree_table": (2, 16),
    "f": (1538, 3),
    "hands_components": (45, 45),
    "hands_mean": (45,),
}
_INTEGERS = ("kintree_table", "f")

#: What a MANO pickle may ask for, as Python 2 wrote it or as Python 3 re-saves it, and what we call
#: it. ``_frombuffer`` is how protocol 5 stores an array.
_KINDS = {
    ("numpy.core.multiarray", "_reconstruct"): "array",
    ("numpy._core.multiarray", "_reconstruct"): "array",
    ("numpy.core.numeric", "_frombuffer"): "buffer",
    ("numpy._core.numeric", "_frombuffer"): "buffer",
    ("numpy", "ndarray"): "type",
    ("numpy", "dtype"): "dtype",
    ("_codecs", "encode"): "encode",
    ("__builtin__", "set"): "set",
    ("builtins", "set"): "set",
    ("scipy.sparse.csc", "csc_matrix"): "sparse",
    ("scipy.sparse._csc", "csc_matrix"): "sparse",
    ("chumpy.ch", "Ch"): "chumpy",
    ("chumpy.reordering", "Select"): "select",
}

#: Plain numbers only: an object, void or structured dtype never matches.
_DTYPE = re.compile(r"[iuf][1248]")

_MAX_FILE_SIZE = 64 << 20  # bytes; a MANO file has four million
_MAX_MEMO = 100_000  # a MANO file remembers a few hundred objects; unpickling allocates up to here


class ManoFileError(UserError):
    """A file that is no MANO file, is damaged, or asks for what a MANO file has no need of."""


class ManoNotFoundError(UserError, FileNotFoundError):
    """No MANO file where it was looked for."""


@dataclass(frozen=True, eq=False)
class ManoArrays:
    """What a MANO file holds, as the file holds it; units are metres and radians.

    Attributes:
        v_template: ``(778, 3)`` rest vertices.
        shapedirs: ``(778, 3, 10)`` displacement per shape coefficient.
        posedirs: ``(778, 3, 135)`` displacement per entry of ``R - I`` of joints 1 to 15.
        J_regressor: ``(16, 778)`` rest joints from rest vertices, dense.
        weights: ``(778, 16)`` skinning weights.
        parents: ``(16,)`` parent of each kinematic joint, -1 for the wrist.
        faces: ``(1538, 3)``.
        hands_components: ``(45, 45)`` rows are principal components of the axis-angle pose.
        hands_mean: ``(45,)`` mean axis-angle pose.
        side: told by the geometry: a right hand's fingers point along -x.
    """

    v_template: NDArray[np.float64]
    shapedirs: NDArray[np.float64]
    posedirs: NDArray[np.float64]
    J_regressor: NDArray[np.float64]
    weights: NDArray[np.float64]
    parents: NDArray[np.int64]
    faces: NDArray[np.int64]
    hands_components: NDArray[np.float64]
    hands_mean: NDArray[np.float64]
    side: Side


def mano_folders() -> list[Path]:
    """Return the folders searched for MANO, first one first."""
    named = os.environ.get("HANDREC_MANO")
    folders = [Path(named).expanduser()] if named else []
    return [*folders, Path("models/mano"), Path("~/.cache/handrec/mano").expanduser()]


def find_mano(side: Side, explicit: str | Path | None = None) -> Path:
    """Return the path of the MANO file of one side.

    Looked for, in this order: ``explicit`` (a file, or a folder; nothing else is then tried),
    ``$HANDREC_MANO``, ``./models/mano``, ``~/.cache/handrec/mano``. In a folder a converted
    ``MANO_RIGHT.npz`` comes before the original ``MANO_RIGHT.pkl``.

    Raises:
        ManoNotFoundError: says where MANO comes from and where to put it.
    """
    places = mano_folders() if explicit is None else [Path(explicit).expanduser()]
    name = f"MANO_{side.upper()}"
    for place in places:
        candidates = [place, place / f"{name}.npz", place / f"{name}.pkl"]
        for candidate in candidates:
            if candidate.is_file():
                return candidate
    raise ManoNotFoundError(
        f"{name}.pkl not found (looked in {', '.join(map(str, places))}): register at "
        "https://mano.is.tue.mpg.de, download the models, and put MANO_RIGHT.pkl and MANO_LEFT.pkl "
        "in models/mano or in the folder that $HANDREC_MANO names; "
        "the default hand, OpenHand, needs none of this"
    )


def read_mano(path: str | Path) -> ManoArrays:
    """Return the arrays of an original MANO pickle or of an ``.npz`` written by :func:`save_mano`.

    Pickles that other tools cleaned of chumpy are read as well. The file is trusted with nothing
    but numbers: see the module's docstring.

    Raises:
        ManoNotFoundError: there is no such file.
        ManoFileError: it is not a MANO file, or a damaged one.
    """
    path = Path(path)
    if not path.is_file():
        raise ManoNotFoundError(f"{path} not found")
    if path.stat().st_size > _MAX_FILE_SIZE:
        raise ManoFileError(f"{path} is too big to be a MANO file ({path.stat().st_size:,} bytes)")
    data = path.read_bytes()
    try:
        read = _read_npz if data.startswith(b"PK") else _read_pickle
        return _validate(read(data))
    except UserError as error:
        raise ManoFileError(f"{path.name} {error}") from error
    except Exception as error:  # a damaged file can fail in any way
        raise ManoFileError(f"{path.name} is damaged, or not a MANO file") from error


def save_mano(arrays: ManoArrays, path: str | Path) -> None:
    """Write an ``.npz`` of plain arrays, under MANO's own names, so that smplx reads it as well."""
    kintree_table = np.stack([arrays.parents, np.arange(len(arrays.parents))])
    renamed = {"kintree_table": kintree_table, "f": arrays.faces}
    plain = {name: renamed[name] if name in renamed else getattr(arrays, name) for name in SHAPES}
    np.savez(path, allow_pickle=False, **plain)


def md5(path: str | Path) -> str:
    """Return the MD5 of a file, to compare with :data:`KNOWN_MD5`."""
    return hashlib.md5(Path(path).read_bytes(), usedforsecurity=False).hexdigest()


def _read_npz(data: bytes) -> dict[str, NDArray[Any]]:
    with np.load(BytesIO(data), allow_pickle=False) as archive:
        return {name: archive[name] for name in SHAPES if name in archive}


def _read_pickle(data: bytes) -> dict[str, NDArray[Any]]:
    for opcode, argument, _ in pickletools.genops(data):
        if "PUT" in opcode.name and isinstance(argument, int) and argument > _MAX_MEMO:
            raise UserError("is damaged, or not a MANO file: it wants too much memory")
    content = DescribingUnpickler(BytesIO(data), encoding="latin1").load()
    if not isinstance(content, dict):
        raise UserError("is not a MANO file: it holds no dictionary")
    return {name: array_of(content[name], name) for name in SHAPES if name in content}


class Record:
    """What a pickle says of an object: which kind, made from which arguments, with which state."""

    __slots__ = ("args", "state")
    kind: ClassVar[str]
    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any) -> "Record":
        """Record what it is made from."""
        record = super().__new__(cls)
        record.args, record.state = args, None
        return record

    def __setstate__(self, state: Any) -> None:
        self.state = state


class DescribingUnpickler(pickle.Unpickler):
    """Unpickles to records: the only callables that it ever hands out make one."""

    def find_class(self, module: str, name: str) -> type[Record]:
        """Return a class that records what is asked of it."""
        kind = _KINDS.get((module, name))
        if kind is None:
            asked = repr(f"{module}.{name}"[:80])
            raise UserError(f"asks for {asked}: refused; it is not a MANO file")
        # A new class each time: what a pickle does to it ends with it.
        return type(name, (Record,), {"__slots__": (), "kind": kind})


def array_of(value: Any, name: str) -> NDArray[Any]:
    """Return the array that a record describes."""
    kind = value.kind if isinstance(value, Record) else type(value).__name__
    if kind == "array":
        _, shape, dtype, fortran, raw = value.state
        return _frombytes(raw, dtype, shape, "F" if fortran else "C")
    if kind == "buffer":
        return _frombytes(*value.args)
    if kind == "chumpy":
        return array_of(value.state["x"], name)
    if kind == "select":  # chumpy's Select: entries of the flattened source, in a given shape
        source, index = array_of(value.state["a"], name), array_of(value.state["idxs"], name)
        selected: NDArray[Any] = source.reshape(-1)[index].reshape(value.state["preferred_shape"])
        return selected
    if kind == "sparse":
        return _dense(value.state, name)
    raise UserError(f"is not a MANO file: its {name!r} is no array but a {kind}")


def _frombytes(raw: Any, dtype: Any, shape: Any, layout: Any) -> NDArray[Any]:
    if isinstance(raw, Record) and raw.kind == "encode" and raw.args[1] == "latin1":
        raw = raw.args[0]  # how Python 3 writes bytes in protocol 2
    if isinstance(raw, str):
        raw = raw.encode("latin1")
    values = np.frombuffer(raw, _dtype(dtype))
    if values.size != math.prod(shape):  # reshape would guess a -1
        raise ValueError("an array's size is not that of its data")
    return values.reshape(shape, order=layout)


def _dtype(record: Record) -> np.dtype[Any]:
    """Return the dtype that a record describes; plain numbers only."""
    text, order = record.args[0], record.state[1] if record.state else "="
    if not isinstance(text, str) or not _DTYPE.fullmatch(text) or order not in ("<", ">", "=", "|"):
        raise UserError(f"asks for the dtype {text!r:.80}: refused; it is not a MANO file")
    return np.dtype(order + text)


def _dense(state: Mapping[str, Any], name: str) -> NDArray[np.float64]:
    """Return a compressed-column matrix, dense; every index is checked, as scipy's are not."""
    rows, columns = state["_shape"]
    if (rows, columns) != SHAPES[name]:
        raise UserError(f"is not a MANO file: its {name!r} has the shape {(rows, columns)}")
    data, indices, indptr = (array_of(state[key], name) for key in ("data", "indices", "indptr"))
    column = np.repeat(np.arange(columns), np.diff(indptr))
    if indices.min() < 0:
        raise ValueError("a negative row")
    dense = np.zeros((rows, columns))
    np.add.at(dense, (indices, column), data)
    return dense


def _validate(content: Mapping[str, NDArray[Any]]) -> ManoArrays:
    """Return the arrays, or say which of them a MANO file would not hold."""
    for name, shape in SHAPES.items():
        if name not in content:
            raise UserError(f"is not a MANO file: it holds no {name!r}")
        if content[name].shape != shape:
            found = content[name].shape
            raise UserError(f"is not a MANO file: its {name!r} has the shape {found}, not {shape}")
        if content[name].dtype.kind not in ("iu" if name in _INTEGERS else "fiu"):
            raise UserError(f"is not a MANO file: its {name!r} is of {content[name].dtype}")
        if not np.isfinite(content[name]).all():
            raise UserError(f"is damaged: its {name!r} holds numbers that are not finite")
    faces, parents = content["f"], content["kintree_table"][0]
    if (faces < 0).any() or (faces >= SHAPES["v_template"][0]).any():
        raise UserError("is damaged: its 'f' names vertices that do not exist")
    if not np.array_equal(parents[1:], KINEMATIC_PARENTS[1:]):  # the root's is -1 or 4294967295
        raise UserError("is not a MANO file: its 'kintree_table' is not a hand's")
    floats = {name: content[name].astype(np.float64) for name in SHAPES if name not in _INTEGERS}
    wrist, middle = (floats["J_regressor"] @ floats["v_template"])[[0, 4]]
    right, left = get_args(Side)
    return ManoArrays(
        **floats,
        parents=np.array(KINEMATIC_PARENTS),
        faces=faces.astype(np.int64),
        side=right if middle[0] < wrist[0] else left,
    )
