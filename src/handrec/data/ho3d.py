"""HO-3D, versions 2 and 3: videos of right hands that hold objects.

S. Hampali et al., "HOnnotate: A Method for 3D Annotation of Hand and Object Poses", CVPR 2020.
Layout and licence: docs/datasets.md.
"""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from rich.progress import Progress
from scipy.spatial.transform import Rotation
from torch import Tensor

from handrec.data.checks import FilesError
from handrec.data.columns import held_out, image_size, joints_box, shift_centres
from handrec.data.detections import detected_boxes, one_for_each, read_detections
from handrec.data.json_arrays import read_array
from handrec.data.labels import Annotated, Labels, LabelTable, no_labels
from handrec.data.marked import MARK, labelled_hand
from handrec.data.pickles import array, read_pickle
from handrec.data.real import RealHands
from handrec.errors import UserError, unread
from handrec.geometry.camera import project
from handrec.hand.joints import JOINTS, KINEMATIC_THEN_TIPS, order

#: Suffix of the images of each version.
SUFFIXES = {"v2": ".png", "v3": ".jpg"}

#: OpenGL's camera frame (x right, y up, z backwards) to OpenCV's, and back.
OPENGL = np.array([1.0, -1.0, -1.0])

#: The set's joints, in its order, are MANO's 16 and then the tips, thumb to little finger.
TO_CANONICAL = order(KINEMATIC_THEN_TIPS, JOINTS)


class _Frame(NamedTuple):
    """One frame's annotation, converted: OpenCV frame, the suite's joint order."""

    camera: Float[np.ndarray, "3 3"]
    joints: Float[np.ndarray, "21 3"]
    pose: Float[np.ndarray, "48"]
    betas: Float[np.ndarray, "10"]
    box: Float[np.ndarray, "4"]


class HO3D(RealHands):
    """HO-3D as unpacked from its zips.

    The evaluation's joints and vertices are read from ``evaluation_xyz.json`` and
    ``evaluation_verts.json`` in the root, if they are there: they come in a zip of their own.

    The validation split holds whole recordings out: sequences whose names differ only in their
    number show the same hand and object, often at the same time from another camera.

    Args:
        root: the folder with ``train.txt``, or to evaluate with ``evaluation.txt``.
        version: ``v2`` (images are PNG) or ``v3`` (JPEG).
        detections: a detector's file (:func:`~handrec.data.detections.read_detections`), relative
            to the root, whose keypoints and boxes the training part has instead of the labelled
            ones; one entry for each of its frames, named as in ``train.txt`` or by its path.
        val_share: of the frames, about, for validation.
        **options: see :class:`~handrec.data.real.RealHands`.
    """

    marker = "train.txt"
    test_marker = "evaluation.txt"
    has_videos = True
    pose_format = "vectors"

    def __init__(
        self,
        root: str | None = None,
        version: Literal["v2", "v3"] = "v3",
        detections: str | None = None,
        val_share: float = 0.05,
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        if not 0 < val_share < 1:
            raise UserError("val_share must lie in (0, 1)")
        self.version, self.val_share = version, val_share
        self.detections = detections
        self.projected_keypoints = detections is None
        self.has_detections = detections is not None
        self.name = f"ho3d_{version}"
        self.submission = "ho3d_v2" if version == "v2" else "ho3d_v3"
        self.folders = (self.name, f"HO3D_{version}", f"HO-3D_{version}")

    def facts(self) -> dict[str, Any]:
        """Return the options that the labels depend on."""
        facts = {"version": self.version}
        return facts if self.detections is None else facts | {"detections": self.detections}

    def sources(self, part: str) -> list[Path]:
        """Return the list of frames, the evaluation's labels, and the sequences' folders."""
        names = [f"{_folder(part)}.txt", MARK, _folder(part)]
        if part == "evaluation":
            names += ["evaluation_xyz.json", "evaluation_verts.json"]
        elif self.detections is not None:
            names.append(self.detections)
        inner = sorted((self.root / _folder(part)).glob("*/*/"))  # rgb and meta of each sequence
        return [*(self.root / name for name in names), *inner]

    def read(self, part: str) -> Annotated:
        """Return the frames of a part, sequence by sequence, as its list has them."""
        folder, frames = _folder(part), self._frames(part)
        files = [f"{folder}/{s}/rgb/{f}{SUFFIXES[self.version]}" for s, f in frames]
        self._check_version(files)
        metas = [self.root / folder / s / "meta" / f"{f}.pkl" for s, f in frames]
        what = f"{self.name}: reading {len(metas):,} annotations"
        read = _training_frame if part == "training" else _evaluation_frame
        with Progress(transient=True) as progress:  # ends its display whatever goes wrong
            read_frames = [read(meta) for meta in progress.track(metas, description=what)]
        labels = _labels(read_frames, part == "training")
        if part == "evaluation":
            labels = self._evaluation_labels(labels)
        height, width = image_size(self.root / files[0])
        labels = labels._replace(image_size=torch.tensor([[height, width]]).repeat(len(files), 1))
        if part == "training" and self.detections is not None:
            labels = self._with_detections(labels, [f"{s}/{f}" for s, f in frames])
        numbers = {name: i for i, name in enumerate(dict.fromkeys(s for s, _ in frames))}
        return Annotated(
            files,
            [""] * len(files),
            torch.arange(len(files)),
            torch.tensor([numbers[s] for s, _ in frames]),
            torch.tensor([int(f) for _, f in frames]),
            labels,
            labelled_hand(self.root),
        )

    def select(self, split: str, table: LabelTable) -> Int[Tensor, " s"]:
        """Return the samples of a split: recordings go to one side or the other."""
        samples = torch.arange(len(table))
        if split == "test":
            return samples
        names = [_recording(file.decode().split("/")[1]) for file in table.files]
        chosen = held_out(names, self.val_share)
        if len(chosen) == len(set(names)):
            raise UserError(
                f"{self.root}: all frames are of one recording, {names[0]}: none would be left to"
                " train on beside the validation split"
            )
        is_val = torch.tensor([name in chosen for name in names])
        return samples[~is_val] if split == "train" else samples[is_val]

    def _frames(self, part: str) -> list[tuple[str, str]]:
        """Return the sequence and the frame that each line of a part's list names."""
        path = self.root / f"{_folder(part)}.txt"
        try:
            lines = path.read_text(encoding="utf-8").split()
        except OSError as error:
            raise unread(path, error) from error
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 text") from error
        frames = []
        for number, line in enumerate(lines, start=1):
            sequence, _, frame = line.partition("/")
            if not frame.isdigit():
                raise UserError(f"{path}: line {number} is {line!r}, expected SEQUENCE/FRAME")
            frames.append((sequence, frame))
        if not frames:
            raise UserError(f"{path} is empty")
        return frames

    def _check_version(self, files: Sequence[str]) -> None:
        """Refuse a set of the other version, and one that is not all there."""
        missing = [name for name in files if not (self.root / name).is_file()]
        if not missing:
            return
        (other,) = set(SUFFIXES) - {self.version}
        if (self.root / missing[0]).with_suffix(SUFFIXES[other]).is_file():
            raise UserError(
                f"{self.root} holds HO-3D {other} ({SUFFIXES[other]} images), {self.version}"
                f" ({SUFFIXES[self.version]}) was asked for: use DATA=ho3d_{other}"
            )
        raise FilesError(
            f"{self.root}: {len(missing):,} of {len(files):,} images are missing, the first is"
            f" {missing[0]}: is the data set wholly unpacked?",
            [f"{self.root / name}: missing" for name in missing],
        )

    def _evaluation_labels(self, labels: Labels) -> Labels:
        """Return the labels with the published joints and vertices, if they are there."""
        present = torch.ones(len(labels.box))
        if (joints := self._published("xyz", (21, 3), len(present))) is not None:
            joints = joints[:, TO_CANONICAL]
            labels = labels._replace(
                joints_3d=joints,
                has_joints_3d=present,
                keypoints_2d=project(joints, labels.intrinsics),
                confidence=torch.ones(len(present), 21),
            )
        if (vertices := self._published("verts", (None, 3), len(present))) is not None:
            labels = labels._replace(vertices=vertices, has_vertices=present)
        return labels

    def _with_detections(self, labels: Labels, frames: Sequence[str]) -> Labels:
        """Return labels with a detector's keypoints and boxes."""
        path = self.root / str(self.detections)
        found = read_detections(path)
        named = found._replace(names=[_in_list(name) for name in found.names])
        rows = one_for_each(named, frames, str(path))
        keypoints, confidence = found.keypoints[rows], found.confidence[rows]
        box = detected_boxes(keypoints, confidence, labels.image_size)
        return labels._replace(keypoints_2d=keypoints, confidence=confidence, box=box)

    def _published(self, kind: str, shape: tuple[int | None, ...], count: int) -> Tensor | None:
        """Return a list of the evaluation's labels in OpenCV's frame, None if it is not there."""
        path = self.root / f"evaluation_{kind}.json"
        if not path.exists():
            return None
        points = read_array(path, shape)
        if len(points) != count:
            hint = f" (HO-3D {'v2' if self.version == 'v3' else 'v3'}'s?)"
            raise UserError(
                f"{path} has {len(points):,} entries, evaluation.txt has {count:,} frames{hint}"
            )
        return torch.from_numpy(points * OPENGL.astype(np.float32))


def _folder(part: str) -> str:
    return "train" if part == "training" else part


def _in_list(name: str) -> str:
    """Return a frame's name as ``train.txt`` has it: ``ABF10/0007`` for its path, or as it is."""
    path = PurePosixPath(name)
    if path.parts[0] != "train":
        return name
    return "/".join(part for part in path.with_suffix("").parts[1:] if part != "rgb")


def _recording(sequence: str) -> str:
    """Return a sequence's name without its number: ``ABF10`` to ``ABF14`` are one recording."""
    return sequence.rstrip("0123456789")


def _training_frame(path: Path) -> _Frame:
    """Return the annotation of a training frame."""
    content = read_pickle(path)
    if content.get("handPose") is None:
        raise UserError(f"{path}: no handPose, though train.txt lists the frame as annotated")
    pose = array(path, content, "handPose", (48,))
    wrist = Rotation.from_matrix(np.diag(OPENGL)) * Rotation.from_rotvec(pose[:3])
    return _Frame(
        array(path, content, "camMat", (3, 3)),
        (array(path, content, "handJoints3D", (21, 3)) * OPENGL)[TO_CANONICAL],
        np.concatenate([wrist.as_rotvec(), pose[3:]]),
        array(path, content, "handBeta", (10,)),
        np.zeros(4),  # of the joints
    )


def _evaluation_frame(path: Path) -> _Frame:
    """Return what the evaluation's frames say: camera and box; of the joints, only the wrist."""
    content = read_pickle(path)
    return _Frame(
        array(path, content, "camMat", (3, 3)),
        np.zeros((21, 3)),
        np.zeros(48),
        np.zeros(10),
        array(path, content, "handBoundingBox", (4,)),
    )


def _labels(frames: list[_Frame], annotated: bool) -> Labels:
    """Return frames as columns."""
    camera, joints, pose, betas, box = (
        torch.from_numpy(np.stack(column)).float() for column in zip(*frames, strict=True)
    )
    present = torch.full((len(frames),), float(annotated))
    labels = no_labels(len(frames))._replace(intrinsics=shift_centres(camera), box=box)
    if not annotated:
        return labels
    keypoints = project(joints, labels.intrinsics)
    return labels._replace(
        keypoints_2d=keypoints,
        confidence=torch.ones(len(frames), 21),
        box=joints_box(keypoints),
        joints_3d=joints,
        has_joints_3d=present,
        axis_angle=pose,
        betas=betas,
        has_pose=present,
    )
