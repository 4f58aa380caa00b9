"""The files of the official evaluations: ground truth, predictions, submissions, scores.

A file of points is a JSON list with a list of ``[x, y, z]`` in metres for each sample; predictions
are ``[joints of all samples, vertices of all samples]``. A ``.zip`` stands for the file in it.
"""

import csv
import json
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from handrec import __version__
from handrec.errors import UserError
from handrec.metrics.functional import F_THRESHOLDS, PCK_THRESHOLDS
from handrec.metrics.official import VERTICES, Points, Scores

JOINTS = 21

#: So many points, or more, are a mesh rather than joints.
_MESH = 100

#: Digits after the point in submissions: a tenth of a micrometre, finer than float32 at arm's
#: length.
_DIGITS = 7

#: What files are, and where they come from.
_ORIGIN = {
    "evaluation_xyz.json": "evaluation_xyz.json, the labelled joints of the data set's evaluation",
    "evaluation_verts.json": "evaluation_verts.json, the labelled meshes of the data set's"
    " evaluation",
    "pred.json": "pred.json or pred.zip of a test run",
}

#: In no file of points; NumPy would take them for numbers.
_NO_NUMBERS = ("true", "false", '"')

_WHITESPACE = " \t\n\r"


def read_ground_truth(xyz: Path, verts: Path | None) -> Points:
    """Return the labels of an evaluation.

    Args:
        xyz: ``evaluation_xyz.json``.
        verts: ``evaluation_verts.json``, or None to evaluate joints only. Its meshes may have any
            number of vertices, the same in all samples.
    """
    joints = _read_points(xyz, "evaluation_xyz.json", JOINTS)
    if verts is None:
        return Points(joints, None)
    vertices = _read_points(verts, "evaluation_verts.json", None)
    if len(vertices) != len(joints):
        raise UserError(
            f"{verts} has {len(vertices):,} samples, {xyz} has {len(joints):,}:"
            " they must be of the same evaluation"
        )
    return Points(joints, vertices)


def read_prediction(path: Path, samples: int, vertices: int | None = VERTICES) -> Points:
    """Return the predictions of a ``pred.json``, or of a ``pred.zip`` that holds one.

    Args:
        path: of the file.
        samples: how many there must be.
        vertices: of each mesh, as many as those of the ground truth; None reads joints only.
    """
    reader = _Reader(path, "pred.json")
    wanted = (("joints", JOINTS), ("vertices", vertices))
    lists: list[Tensor] = []
    for part in reader.elements("[joints of all samples, vertices of all samples]"):
        if part >= len(wanted):
            raise UserError(f"{path}: a third list; expected [joints, vertices] of all samples")
        what, count = wanted[part]
        if count is None:
            reader.skip()
            continue
        lists.append(reader.points(count, f"{what} of "))
        if len(lists[-1]) != samples:
            raise UserError(
                f"{path}: {len(lists[-1]):,} samples of {what}, the ground truth has {samples:,}"
            )
    reader.end()
    if len(lists) != 1 + (vertices is not None):
        raise UserError(f"{path}: {len(lists)} lists; expected [joints, vertices] of all samples")
    return Points(lists[0], None if vertices is None else lists[1])


def write_submission(folder: Path, points: Points) -> Path:
    """Write ``pred.json`` and ``pred.zip``, which the servers take; return the latter.

    Args:
        folder: where, made if missing.
        points: in the protocol's order and axes, see ``official.to_protocol``.
    """
    if points.vertices is None:
        raise ValueError("a submission holds vertices")
    folder.mkdir(parents=True, exist_ok=True)
    plain, packed = folder / "pred.json", folder / "pred.zip"
    with plain.open("w", encoding="utf-8") as file:
        for opening, part in (("[[", points.joints), ("], [", points.vertices)):
            file.write(opening)
            for index, sample in enumerate(part.double().cpu().numpy()):
                rows = sample.round(_DIGITS).tolist()
                file.write((", " if index else "") + json.dumps(rows, allow_nan=False))
        file.write("]]\n")
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(plain, plain.name)
    return packed


def write_scores(folder: Path, scores: Scores, warnings: list[str]) -> None:
    """Write all figures.

    ``scores.txt`` has the official keys and nothing else, cm and shares in full precision;
    ``scores.json`` also the figures without reflections; ``pck_data.json`` the PCK curves over
    thresholds in cm; ``scores.csv`` every sample.

    Args:
        folder: made if missing.
        scores: what was measured.
        warnings: to keep with the figures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figures = scores.official()
    lines = [f"{key}: {value!r}\n" for key, value in figures.items()]
    (folder / "scores.txt").write_text("".join(lines), encoding="utf-8")
    report = {
        "protocol": scores.protocol.title,
        "samples": len(scores.reflected),
        "units": "*_mean3d in cm, everything else a share in [0, 1]",
        "official": figures,
        "without_reflections": scores.rigid(),
        "reflected_samples": int(scores.reflected.sum()),
        "warnings": warnings,
        "handrec": __version__,
    }
    _write_json(folder / "scores.json", report)
    thresholds = (100 * PCK_THRESHOLDS).tolist()
    curves = {
        key: [thresholds, scores.curves[name].tolist()]
        for name, key in scores.protocol.keys.items()
        if name in scores.curves
    }
    _write_json(folder / "pck_data.json", curves)
    _write_samples(folder / "scores.csv", scores)


def _write_samples(path: Path, scores: Scores) -> None:
    """Write the errors (mm) and F-scores of every sample."""
    columns = {f"{name}_mm": (1000 * error).tolist() for name, error in scores.errors.items()}
    for name, values in scores.f_scores.items():
        for threshold, column in zip(F_THRESHOLDS, values.unbind(1), strict=True):
            columns[f"{name}_f{round(1000 * threshold)}"] = column.tolist()
    columns["reflected"] = scores.reflected.int().tolist()
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["sample", *columns])
        for index, row in enumerate(zip(*columns.values(), strict=True)):
            writer.writerow([index, *(f"{value:.7g}" for value in row)])


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _read_points(path: Path, member: str, count: int | None) -> Float[Tensor, "n p 3"]:
    """Return the points of a ground-truth file; None takes as many as its first sample has."""
    reader = _Reader(path, member)
    points = reader.points(count)
    reader.end()
    return points


class _Reader:
    """Reads a JSON file sample by sample: as Python objects, all would take gigabytes."""

    def __init__(self, path: Path, member: str) -> None:
        self.path = path
        self.text = _text(path, member)
        self.decoder = json.JSONDecoder()
        self.position = 0

    def points(self, count: int | None, what: str = "") -> Float[Tensor, "n p 3"]:
        """Return the list of samples at the cursor.

        Args:
            count: points of each sample; None: of a mesh, as many as the first one has.
            what: they are, for messages.
        """
        expected = f"a list of samples with {count or VERTICES} points [x, y, z] each"
        samples = []
        for index in self.elements(expected):
            start = self.position
            value = self.value()
            if any(self.text.find(word, start, self.position) >= 0 for word in _NO_NUMBERS):
                value = None  # NumPy takes true for 1, and "1" too
            count = count or _mesh_size(value)
            samples.append(self._checked(value, index, count, what))
        if not samples:
            raise UserError(f"{self.path}: no samples; expected {expected}")
        return torch.from_numpy(np.stack(samples))

    def skip(self) -> None:
        """Read over the array at the cursor."""
        for _ in self.elements("a list"):
            self.value()

    def elements(self, expected: str) -> Iterator[int]:
        """Yield the index of each element of the array at the cursor; the caller reads it."""
        if self._peek() != "[":
            raise UserError(f"{self.path}: expected {expected}")
        self.position += 1
        if self._peek() == "]":
            self.position += 1
            return
        index = 0
        while True:
            self._peek()
            yield index
            index += 1
            separator = self._peek()
            self.position += 1
            if separator == "]":
                return
            if separator != ",":
                raise self._broken("expected ',' or ']'")

    def value(self) -> Any:
        """Return the value at the cursor."""
        # orjson is seven times as fast, but wants the whole of a value and nothing else. Points end
        # where two brackets close; all else, damage too, is left to json, which says where it is.
        end = self.text.find("]]", self.position) + 2
        if end > 1:
            try:
                value = orjson.loads(self.text[self.position : end])
            except orjson.JSONDecodeError:
                pass
            else:
                self.position = end
                return value
        try:
            value, self.position = self.decoder.raw_decode(self.text, self.position)
        except (ValueError, RecursionError) as error:  # of JSON, or a number of thousands of digits
            raise self._broken(str(error).partition(":")[0]) from error
        return value

    def end(self) -> None:
        """Refuse anything but blanks after what was read."""
        if self._peek():
            raise self._broken("expected the end")

    def _peek(self) -> str:
        """Skip blanks and return the next character, none at the end."""
        text, position = self.text, self.position
        while position < len(text) and text[position] in _WHITESPACE:
            position += 1
        self.position = position
        return text[position : position + 1]

    def _broken(self, problem: str) -> UserError:
        place = f"character {self.position:,} of {len(self.text):,}"
        return UserError(f"{self.path} is damaged, or no JSON: {problem} ({place})")

    def _checked(self, value: Any, index: int, count: int, what: str) -> NDArray[np.float64]:
        """Return a sample's points."""
        where = f"{self.path}: {what}sample {index}"
        try:
            if value is None:
                raise TypeError
            points = np.asarray(value, dtype=np.float64)
        except (ValueError, TypeError, OverflowError):
            raise UserError(f"{where}: not {count} points [x, y, z] of numbers") from None
        if points.shape != (count, 3):
            found = " x ".join(map(str, points.shape)) or "one number"
            hint = _guess(points, count, labels=not what)
            raise UserError(f"{where}: expected {count} x 3, found {found}{hint}")
        finite = np.isfinite(points).all(axis=1)
        if not finite.all():
            raise UserError(f"{where}: point {int(finite.argmin())} is not finite")
        return points


def _mesh_size(value: Any) -> int:
    """Return how many vertices a sample has; MANO's number if it cannot be a mesh."""
    try:
        shape = np.shape(value)
    except ValueError:
        return VERTICES
    return shape[0] if len(shape) == 2 and shape[0] >= _MESH and shape[1] == 3 else VERTICES


def _guess(points: NDArray[np.float64], count: int, labels: bool) -> str:
    """Return what may have been given instead, of labels or of predictions."""
    if points.shape[1:] == (3,):
        is_mesh = len(points) >= _MESH
        if len(points) == JOINTS or (is_mesh and count == JOINTS):
            return ": are joints and vertices swapped?"
        if is_mesh:
            return ": the mesh of another hand model? Without --gt-verts joints alone are scored"
    if labels and points.shape[1:] == (JOINTS, 3):
        return ": is this a file of predictions?"
    if not labels and points.shape == (3,):
        return ": is this a file of labels?"
    return ""


def _text(path: Path, member: str) -> str:
    """Return the text of a file, or of the file of that name in a zip (else its only JSON)."""
    try:
        if path.suffix != ".zip":
            return path.read_text(encoding="utf-8-sig")
        with zipfile.ZipFile(path) as archive:
            return archive.read(_member(path, archive.namelist(), member)).decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path} not found: expected {_ORIGIN[member]}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is damaged, or no JSON: not UTF-8") from None
    except (zipfile.BadZipFile, zlib.error, EOFError):
        raise UserError(f"{path} is damaged, or no zip") from None
    except (RuntimeError, NotImplementedError):  # of a member with a password, or of other packing
        raise UserError(f"{path} cannot be unpacked here: zip it anew without password") from None
    except OSError as error:
        raise UserError(f"{path}: cannot read it ({error.strerror})") from error


def _member(path: Path, names: list[str], wanted: str) -> str:
    """Return which file of a zip is meant."""
    files = [name for name in names if name.endswith(".json") and "__MACOSX" not in name]
    named = [name for name in files if Path(name).name == wanted]
    chosen = named or files
    if len(chosen) != 1:
        held = ", ".join(names[:5]) or "nothing"
        raise UserError(f"{path}: expected one {wanted} in it, it holds {held}")
    return chosen[0]
