"""Stand-ins for files that cannot be shipped: a made-up hand in the exact layout of MANO's pickles.

Nothing of MANO is in here: the mesh is a box of a palm with five square fingers grown out of it,
with MANO's counts (778 vertices, 1538 faces, a border of 16 edges at the wrist), frame, joint
order, array names, dtypes and pickling.
"""

import pickle
import struct
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal

import numpy as np
from scipy.sparse import csc_matrix

from handrec.hand.joints import KINEMATIC_PARENTS
from handrec.hand.mano import Mano

#: Joints base to tip of each finger, in MANO's right-hand rest frame (fingers along -x).
_MILLIMETRES = {
    "index": [(8, 0, 27), (-24, 1, 31), (-46, 0, 33), (-70, -2, 35)],
    "middle": [(2, 2, 5), (-29, 4, 6), (-53, 4, 6), (-80, 2, 6)],
    "little": [(22, -4, -34), (-8, -4, -42), (-23, -5, -47), (-43, -7, -53)],
    "ring": [(12, -1, -16), (-16, 1, -21), (-40, 0, -24), (-65, -2, -27)],
    "thumb": [(70, -8, 34), (48, -16, 57), (26, -20, 75), (5, -24, 92)],
}
_FINGERS = {finger: np.array(points) / 1000 for finger, points in _MILLIMETRES.items()}
_WRIST = (0.096, 0.002, 0.002)

#: Vertices that some convention or other calls the tip of a finger.
_TIPS = {
    "thumb": (744, 745, 728),
    "index": (320, 333, 317, 353),
    "middle": (443, 444, 445, 442),
    "ring": (555, 554, 556, 576),
    "little": (672, 671, 673, 694),
}
_PALM_RINGS, _FINGER_RINGS = 10, 30
_Faces = list[tuple[int, int, int]]


def mano_content(side: str = "right", seed: int = 0) -> dict[str, np.ndarray]:
    """Return the arrays of a made-up hand under MANO's names; ``J_regressor`` is dense.

    As in MANO's release, the left hand is the mirrored right one, except for its ``shapedirs``,
    which are not mirrored (https://github.com/vchoutas/smplx/issues/48).
    """
    random = np.random.default_rng(seed)
    vertices, faces = _mesh()
    joints = np.array([_WRIST, *(point for finger in _FINGERS.values() for point in finger[:3])])
    components = np.linalg.qr(random.normal(size=(45, 45)))[0]
    mean = random.normal([0, 0, 0.3], 0.05, (15, 3))
    regressor, weights = _regressor(vertices, joints), _weights(vertices, joints)
    shapedirs = random.normal(0, 3e-4, (778, 3, 10))
    shapedirs[..., 0] += 0.05 * (vertices - joints[0])
    content = {
        "v_template": vertices,
        "shapedirs": shapedirs,
        # As in MANO, a joint's correction stays near the joint.
        "posedirs": random.normal(0, 5e-4, (778, 3, 135))
        * np.repeat(weights[:, 1:], 9, 1)[:, None],
        "J_regressor": regressor,
        "weights": weights,
        "kintree_table": np.array([(2**32 - 1, *KINEMATIC_PARENTS[1:]), range(16)], np.uint32),
        "f": faces.astype(np.uint32),
        "hands_components": components,
        "hands_coeffs": random.normal(size=(1554, 45)),
        "hands_mean": mean.reshape(-1),
        "J": regressor @ vertices,
    }
    return mirror(content) | {"shapedirs": shapedirs} if side == "left" else content


def mirror(content: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the hand reflected at the plane x = 0, written out element by element."""
    flipped = {name: array.copy() for name, array in content.items()}
    flipped["v_template"][:, 0] *= -1
    flipped["shapedirs"][:, 0] *= -1
    flipped["J"][:, 0] *= -1
    flipped["f"] = flipped["f"][:, ::-1].copy()
    for feature in range(135):  # entry (i, j) of R - I changes its sign if one of i, j is x
        i, j = divmod(feature % 9, 3)
        for axis in range(3):
            flips = (axis == 0) + (i == 0) + (j == 0)
            flipped["posedirs"][:, axis, feature] *= (-1) ** flips
    for element in range(45):  # an axis is a pseudovector: it keeps x
        if element % 3 != 0:
            flipped["hands_mean"][element] *= -1
            flipped["hands_components"][:, element] *= -1
    return flipped


def write_mano_pickle(
    path: str | Path,
    side: str = "right",
    seed: int = 0,
    content: dict[str, Any] | None = None,
) -> Path:
    """Write a hand (:func:`mano_content`, if none is given) as Python 2 and chumpy wrote MANO's."""
    content = dict(mano_content(side, seed) if content is None else content)
    shapedirs = content.get("shapedirs")
    if isinstance(shapedirs, np.ndarray):  # ten of twenty, picked out of the flattened array
        more = np.concatenate([shapedirs, np.zeros_like(shapedirs)], axis=2)
        index = np.arange(more.size).reshape(more.shape)[:, :, : shapedirs.shape[2]].reshape(-1)
        content["shapedirs"] = Select(Ch(more), index, shapedirs.shape)
    if isinstance(content.get("J_regressor"), np.ndarray):
        content["J_regressor"] = OldCsc(content["J_regressor"])
    content |= {"bs_style": b"lbs", "bs_type": b"lrotmin"}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        Python2Pickler(file).dump(content)
    return path


def standin_mano(side: Literal["right", "left"] = "right") -> Mano:
    """Return a ``Mano`` of a made-up hand."""
    with TemporaryDirectory() as folder:
        return Mano(str(write_mano_pickle(Path(folder) / "mano.pkl", side)), side)


class Ch:
    """State of a ``chumpy.ch.Ch``."""

    def __init__(self, x: np.ndarray) -> None:
        self.x = x
        self._dirty_vars = {"x"}
        self._itr = None
        self._depends_on_deps: dict[str, Any] = {}
        self._make_dense = self._make_sparse = False


class Select:
    """State of a ``chumpy.reordering.Select``."""

    def __init__(self, a: Ch, idxs: np.ndarray, preferred_shape: tuple[int, ...]) -> None:
        self.a, self.idxs, self.preferred_shape = a, idxs, preferred_shape
        self._dirty_vars = {"a", "idxs", "preferred_shape"}
        self._itr = None
        self._depends_on_deps: dict[str, Any] = {}
        self._make_dense = self._make_sparse = False


class OldCsc:
    """State of a ``scipy.sparse.csc.csc_matrix`` of old."""

    def __init__(self, dense: np.ndarray) -> None:
        sparse = csc_matrix(dense)
        self._shape, self.maxprint, self.format = dense.shape, 50, "csc"
        self.data, self.indices, self.indptr = sparse.data, sparse.indices, sparse.indptr


class Python2Pickler(pickle._Pickler):
    """Pickles as Python 2 did in protocol 2: byte strings for text and arrays, old module names."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)
    names: ClassVar = {
        Ch: "chumpy.ch Ch",
        Select: "chumpy.reordering Select",
        OldCsc: "scipy.sparse.csc csc_matrix",
        np.ndarray: "numpy ndarray",
        np.dtype: "numpy dtype",
        np.zeros(0).__reduce__()[0]: "numpy.core.multiarray _reconstruct",
        set: "__builtin__ set",
    }

    def __init__(self, file: Any) -> None:
        super().__init__(file, protocol=2)

    def save_string(self, text: str | bytes) -> None:
        raw = text.encode("latin1") if isinstance(text, str) else text
        size = len(raw)
        head = struct.pack("<cB", b"U", size) if size < 256 else struct.pack("<ci", b"T", size)
        self.write(head + raw)
        self.memoize(text)

    def save_named(self, thing: Any, name: str | None = None) -> None:
        known = self.names.get(thing)
        module, attribute = (known or f"{thing.__module__} {thing.__name__}").split(" ")
        self.write(f"c{module}\n{attribute}\n".encode())
        self.memoize(thing)

    save_global = save_named
    dispatch[str] = dispatch[bytes] = save_string
    dispatch[type] = save_named


def _mesh() -> tuple[np.ndarray, np.ndarray]:
    """Return a tube of a palm, open at the wrist, with a finger grown out of each of five quads."""
    across = np.array([0.036, 0.017, 0.014, -0.004, -0.008, -0.025, -0.029, -0.045])
    depth = np.repeat([0.014, -0.014], 8)
    vertices: list[np.ndarray] = []
    faces: _Faces = []
    for x in np.linspace(0.101, 0.006, _PALM_RINGS):
        width = np.concatenate([across, across[::-1]]) * (1 - 2.5 * max(x - 0.006, 0))
        vertices += list(np.stack([np.full(16, x), depth, width], axis=1))
    for ring in range(_PALM_RINGS - 1):
        for k in range(16):
            a, b = 16 * ring + k, 16 * ring + (k + 1) % 16
            cell = (a, b, b + 16, a + 16)
            faces += _quad(*cell) if (ring, k) != (3, 15) else _grow(vertices, cell, "thumb")
    last = 16 * (_PALM_RINGS - 1)
    for k in range(7):  # four fingers, and the webs between them
        cell = (last + k, last + k + 1, last + 14 - k, last + 15 - k)
        finger = ("index", "middle", "ring", "little")[k // 2]
        faces += _quad(*cell) if k % 2 else _grow(vertices, cell, finger)
    while len(vertices) < 778:  # centres of faces, until the count is MANO's
        a, b, c = faces.pop(0)
        new = len(vertices)
        vertices.append((vertices[a] + vertices[b] + vertices[c]) / 3)
        faces += [(a, b, new), (b, c, new), (c, a, new)]
    return _renumber(np.array(vertices), np.array(faces))


def _quad(a: int, b: int, c: int, d: int) -> _Faces:
    return [(a, b, c), (a, c, d)]


def _grow(vertices: list[np.ndarray], cell: tuple[int, ...], finger: str) -> _Faces:
    """Add the rings of a finger on a quad, in place, and return its faces."""
    faces: _Faces = []
    base = np.mean([vertices[corner] for corner in cell], axis=0)
    path = np.array([base, *_FINGERS[finger][1:]])
    along = path[-1] - base
    up = np.cross(np.cross(along, [0, 1, 0]), along)
    up /= np.linalg.norm(up)
    side = np.cross(along, up) / np.linalg.norm(along)
    signs = [np.sign([(vertices[k] - base) @ up, (vertices[k] - base) @ side]) for k in cell]
    for step in np.arange(1, _FINGER_RINGS + 1) / _FINGER_RINGS * 3:
        centre = [np.interp(step, range(4), path[:, axis]) for axis in range(3)]
        radius = 0.0085 - 0.001 * step
        ring = tuple(range(len(vertices), len(vertices) + 4))
        vertices += [centre + radius * (u * up + v * side) for u, v in signs]
        for k in range(4):
            faces += _quad(cell[k], cell[(k + 1) % 4], ring[(k + 1) % 4], ring[k])
        cell = ring
    return faces + _quad(*cell)


def _renumber(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give the ends of the fingers the numbers of MANO's fingertips."""
    old_of_new = list(range(len(vertices)))
    for finger, numbers in _TIPS.items():
        distance = np.linalg.norm(vertices - _FINGERS[finger][3], axis=1)
        for old, new in zip(np.argsort(distance, kind="stable"), numbers, strict=False):
            place = old_of_new.index(old)
            old_of_new[place], old_of_new[new] = old_of_new[new], old_of_new[place]
    return vertices[old_of_new], np.argsort(old_of_new)[faces]


def _regressor(vertices: np.ndarray, joints: np.ndarray) -> np.ndarray:
    """Return each joint as the mean of the 16 vertices nearest to it."""
    regressor = np.zeros((16, len(vertices)))
    for row, joint in zip(regressor, joints, strict=True):
        row[np.argsort(np.linalg.norm(vertices - joint, axis=1))[:16]] = 1 / 16
    return regressor


def _weights(vertices: np.ndarray, joints: np.ndarray) -> np.ndarray:
    """Return weights that fall off with the distance to the bone behind each joint."""
    ends = [np.mean(joints[1::3], axis=0)]
    ends += [point for finger in _FINGERS.values() for point in finger[1:]]
    weights = np.zeros((len(vertices), 16))
    for column, start, end in zip(weights.T, joints, np.array(ends), strict=True):
        bone = end - start
        along = np.clip((vertices - start) @ bone / (bone @ bone), 0, 1)
        distance = np.linalg.norm(vertices - start - along[:, None] * bone, axis=1)
        column[:] = np.exp(-((distance / 0.008) ** 2))
    return weights / weights.sum(axis=1, keepdims=True)
