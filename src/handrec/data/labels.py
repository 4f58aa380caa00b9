"""The labels of an annotated data set as columns, kept in one file."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from handrec.errors import UserError

_FACTS = "facts"


class Labels(NamedTuple):
    """Annotated hands, a row each, in their whole images; absent labels as in ``HandBatch``.

    Attributes:
        image_size: ``(height, width)`` that the labels are for, pixels; 0 where unknown.
        box: ``(x1, y1, x2, y2)`` around the hand, pixels.
        is_left: 1 for a left hand; its labels are as they are seen, not mirrored.
        intrinsics: ``K``, pixel centres at integer + 0.5.
        keypoints_2d: pixels, centres at integer + 0.5.
        confidence: of the keypoints.
        visibility: 1 where a keypoint is not hidden.
        has_visibility: 1 where ``visibility`` is a label.
        joints_3d: metres, OpenCV camera frame.
        has_joints_3d: 1 where ``joints_3d`` is a label.
        vertices: metres, camera frame, of the hand that the set was labelled with; none where
            they follow from the pose.
        has_vertices: 1 where ``vertices`` is a label.
        axis_angle: pose of the 16 kinematic joints as published; the wrist's is in camera frame.
        betas: shape coefficients.
        has_pose: 1 where ``axis_angle`` and ``betas`` are labels.
    """

    image_size: Int[Tensor, "n 2"]
    box: Float[Tensor, "n 4"]
    is_left: Float[Tensor, " n"]
    intrinsics: Float[Tensor, "n 3 3"]
    keypoints_2d: Float[Tensor, "n 21 2"]
    confidence: Float[Tensor, "n 21"]
    visibility: Float[Tensor, "n 21"]
    has_visibility: Float[Tensor, " n"]
    joints_3d: Float[Tensor, "n 21 3"]
    has_joints_3d: Float[Tensor, " n"]
    vertices: Float[Tensor, "n v 3"]
    has_vertices: Float[Tensor, " n"]
    axis_angle: Float[Tensor, "n 48"]
    betas: Float[Tensor, "n 10"]
    has_pose: Float[Tensor, " n"]

    def rows(self, index: Int[Tensor, " b"]) -> "Labels":
        """Return some rows."""
        return Labels(*(column[index] for column in self))


def no_labels(count: int) -> Labels:
    """Return rows of which everything is absent."""
    return Labels(
        image_size=torch.zeros(count, 2, dtype=torch.long),
        box=torch.zeros(count, 4),
        is_left=torch.zeros(count),
        intrinsics=torch.eye(3).repeat(count, 1, 1),
        keypoints_2d=torch.zeros(count, 21, 2),
        confidence=torch.zeros(count, 21),
        visibility=torch.zeros(count, 21),
        has_visibility=torch.zeros(count),
        joints_3d=torch.zeros(count, 21, 3),
        has_joints_3d=torch.zeros(count),
        vertices=torch.zeros(count, 0, 3),
        has_vertices=torch.zeros(count),
        axis_angle=torch.zeros(count, 48),
        betas=torch.zeros(count, 10),
        has_pose=torch.zeros(count),
    )


@dataclass(frozen=True)
class Annotated:
    """The samples of a part of a data set: images with the hands in them.

    Attributes:
        files: of the image of each sample, relative to the root.
        masks: of its mask, empty where there is none.
        row: of each sample's hand in ``labels``: images of one hand share it.
        sequence: number of the video that each sample is a frame of, else of the sample.
        frame: number in the video.
        labels: of the hands.
        hand: name of the hand model whose parameters and vertices the labels are.
        skipped: a line for each image that was left out.
    """

    files: Sequence[str]
    masks: Sequence[str]
    row: Int[Tensor, " s"]
    sequence: Int[Tensor, " s"]
    frame: Int[Tensor, " s"]
    labels: Labels
    hand: str = "Mano"
    skipped: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.row)


class LabelTable:
    """The samples of a part of a data set, mapped into memory.

    File names are kept as arrays of characters: lists of strings would be copied, page by page,
    into every process that counts references to them.

    Args:
        path: of the file that :func:`save` wrote.
    """

    def __init__(self, path: Path) -> None:
        try:
            with safe_open(path, "pt") as file:
                facts = json.loads((file.metadata() or {})[_FACTS])
            columns = load_file(path)
        except (SafetensorError, KeyError) as error:
            raise UserError(f"{path} is damaged ({error}): delete it and start again") from error
        self.fingerprint: str = facts["sha256"]
        self.hand: str = facts["hand"]
        self.skipped: list[str] = facts["skipped"]
        self.labels = Labels(*(columns[name] for name in Labels._fields))
        self.row, self.sequence, self.frame = (columns[n] for n in ("row", "sequence", "frame"))
        self.files, self.masks = (_characters(columns[name]) for name in ("files", "masks"))

    def __len__(self) -> int:
        return len(self.row)


def save(path: Path, part: Annotated) -> None:
    """Write a part; the file appears only when it is complete.

    Raises:
        UserError: it cannot be written.
    """
    columns = part.labels._asdict() | {
        "row": part.row,
        "sequence": part.sequence,
        "frame": part.frame,
        "files": _codes(part.files),
        "masks": _codes(part.masks),
    }
    layout = torch.contiguous_format
    columns = {name: column.clone(memory_format=layout) for name, column in columns.items()}
    facts = {"sha256": _sha256(columns), "hand": part.hand, "skipped": list(part.skipped)}
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(columns, partial, {_FACTS: json.dumps(facts)})
        partial.replace(path)
    except OSError as error:
        raise UserError(f"cannot write the labels to {path.parent}: {error}") from error
    finally:
        with suppress(OSError):  # its folder may be what could not be made
            partial.unlink(missing_ok=True)


def cache_path(folder: Path, name: str, sources: Sequence[Path], facts: Mapping[str, Any]) -> Path:
    """Return where a part is kept: another name as soon as a source or a fact changes.

    Args:
        folder: of the files.
        name: of the data set and its part.
        sources: files and folders; their sizes and times of change count.
        facts: what else the labels depend on.
    """
    known: dict[str, Any] = dict(facts)
    for source in sources:
        try:
            stat = source.stat()
            known[str(source.resolve())] = (stat.st_size, stat.st_mtime_ns)
        except OSError:
            known[str(source)] = None
    key = hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()
    return folder / f"{name}-{key[:16]}.safetensors"


def _sha256(columns: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, column in sorted(columns.items()):
        digest.update(f"{name}{tuple(column.shape)}".encode())
        digest.update(column.numpy().tobytes())
    return digest.hexdigest()


def _codes(names: Sequence[str]) -> Tensor:
    """Return names as rows of UTF-8 bytes, filled up with zeros."""
    encoded = np.array([name.encode() for name in names] or [b""])
    return torch.from_numpy(encoded.view(np.uint8).reshape(len(encoded), -1).copy())


def _characters(codes: Tensor) -> np.ndarray:
    """Return the names behind :func:`_codes`, as an array of bytes."""
    array = codes.numpy()
    return np.ascontiguousarray(array).view(f"S{array.shape[1]}")[:, 0]
