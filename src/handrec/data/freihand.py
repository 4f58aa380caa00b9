"""FreiHAND, version 2: right hands of 32 people, four colour versions of each picture.

C. Zimmermann et al., "FreiHAND: A Dataset for Markerless Capture of Hand Pose and Shape from
Single RGB Images", ICCV 2019. Layout and licence: docs/datasets.md.
"""

from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from handrec.data.checks import FilesError
from handrec.data.columns import hashed_share, image_size, joints_box, numbered, shift_centres
from handrec.data.detections import detected_boxes, one_for_each, read_detections
from handrec.data.json_arrays import read_array
from handrec.data.json_files import label_file
from handrec.data.labels import Annotated, Labels, LabelTable, no_labels
from handrec.data.marked import MARK, labelled_hand
from handrec.data.real import RealHands
from handrec.errors import UserError
from handrec.geometry.camera import project

Version = Literal["gs", "hom", "sample", "auto"]

#: Colour versions in the order of their image numbers: ``k + n * v`` is version ``v`` of hand
#: ``k`` of ``n``: green screen, harmonised, colours by sampled points, automatic colours.
VERSIONS: tuple[Version, ...] = ("gs", "hom", "sample", "auto")

#: Numbers of an entry of ``*_mano.json``: pose, shape, image position of the root and its scale.
_MANO = (1, 61)


class FreiHand(RealHands):
    """FreiHAND v2 as unpacked from its zips.

    Images ``k``, ``k + n``, ``k + 2n``, ``k + 3n`` show the same hand: the validation split takes
    hands by a hash of ``k``, with one colour version each, and the training split none of them.

    Args:
        root: the folder with ``training_xyz.json``, or to evaluate with ``evaluation_K.json``.
        versions: colour versions to train on.
        detections: a detector's file (:func:`~handrec.data.detections.read_detections`), relative
            to the root, whose keypoints and boxes the training part has instead of the labelled
            ones, in all versions; one entry for each of the unique images.
        val_share: of the hands, for validation.
        **options: see :class:`~handrec.data.real.RealHands`.
    """

    name = "freihand"
    folders = ("freihand", "FreiHAND_pub_v2", "FreiHAND")
    marker = "training_xyz.json"
    test_marker = "evaluation_K.json"
    submission = "freihand"
    pose_format = "offsets"

    def __init__(
        self,
        root: str | None = None,
        versions: tuple[Version, ...] = VERSIONS,
        detections: str | None = None,
        val_share: float = 0.05,
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        if not versions or not 0 < val_share < 1:
            raise UserError("freihand wants at least one of its versions and val_share in (0, 1)")
        self.versions, self.val_share = tuple(versions), val_share
        self.detections = detections
        self.projected_keypoints = detections is None
        self.has_detections = detections is not None

    def facts(self) -> dict[str, Any]:
        """Return the options that the labels depend on."""
        return {"versions": self.versions, "detections": self.detections, "masks": self.masks}

    def sources(self, part: str) -> list[Path]:
        """Return the annotation files and the folder of images."""
        kinds = ("K", "xyz", "verts", "mano")
        files = [self.root / f"{part}_{kind}.json" for kind in kinds]
        files += [self.root / self.detections] if self.detections else []
        return [*files, self.root / MARK, self.root / part / "rgb", self.root / part / "mask"]

    def read(self, part: str) -> Annotated:
        """Return all hands in all versions, or those of the evaluation."""
        file = label_file(self.root / f"{part}_K.json", "the cameras, part of FreiHAND v2's zip")
        cameras = read_array(file, (3, 3))
        count = len(cameras)
        versions = self.versions if part == "training" else VERSIONS[:1]
        numbers = [k + count * VERSIONS.index(v) for v in versions for k in range(count)]
        files = [f"{part}/rgb/{number:08d}.jpg" for number in numbers]
        masks = [""] * len(files)
        if part == "training":
            self._check_unpacked(files, "images", count, "--data.versions leaves out versions")
            if self.masks:
                masks = [f"{part}/mask/{number % count:08d}.jpg" for number in numbers]
                self._check_unpacked(masks[:count], "masks", count, "--data.masks=false reads none")
        else:
            self._check_unpacked(files, "images", count, "is the whole set unpacked?")
        labels = self._labels(part, torch.from_numpy(cameras))
        height, width = image_size(self.root / files[0])
        labels = labels._replace(image_size=torch.tensor([[height, width]]).repeat(count, 1))
        if not labels.has_joints_3d.any():
            box = torch.tensor([[0.0, 0.0, width, height]])
            labels = labels._replace(box=box.repeat(count, 1))
        if part == "training" and self.detections is not None:
            labels = self._with_detections(labels)
        sequence, frame = numbered(len(files))
        row = torch.arange(len(files)) % count
        return Annotated(files, masks, row, sequence, frame, labels, labelled_hand(self.root))

    def select(self, split: str, table: LabelTable) -> Int[Tensor, " s"]:
        """Return the samples of a split: hands go to one side or the other by a hash of k."""
        samples = torch.arange(len(table))
        if split == "test":
            return samples
        count = len(table.labels.box)
        share = hashed_share([f"freihand/{k}" for k in range(count)])
        is_val = share < max(self.val_share, float(share.min()) + 1e-12)
        if split == "train":
            return samples[~is_val[table.row]]
        hands = is_val.nonzero().flatten()
        share = hashed_share([f"version/{k}" for k in hands.tolist()])
        version = (share * len(self.versions)).long()
        return (hands + count * version).sort().values

    def _check_unpacked(self, files: list[str], what: str, count: int, remedy: str) -> None:
        """Refuse a set whose zips were not all unpacked; looks at names only."""
        folder = PurePosixPath(files[0]).parent
        present = _names(self.root / folder)
        missing = [name for name in files if PurePosixPath(name).name not in present]
        if missing:
            raise FilesError(
                f"{self.root}: {len(missing):,} of {len(files):,} {what} are missing, the first is"
                f" {missing[0]} ({folder.parts[0]}_K.json has {count:,} entries; {remedy})",
                [f"{self.root / name}: missing" for name in missing],
            )

    def _labels(self, part: str, cameras: Float[Tensor, "n 3 3"]) -> Labels:
        """Return the labels that a part has: those of the evaluation come in a zip of their own."""
        count = len(cameras)
        labels = no_labels(count)._replace(intrinsics=shift_centres(cameras))
        present = torch.ones(count)
        joints = self._array(part, "xyz", (21, 3), count)
        if joints is not None:
            keypoints = project(joints, labels.intrinsics)
            labels = labels._replace(
                joints_3d=joints,
                has_joints_3d=present,
                keypoints_2d=keypoints,
                confidence=torch.ones(count, 21),
                box=joints_box(keypoints),
            )
        vertices = self._array(part, "verts", (None, 3), count)
        if vertices is not None:
            labels = labels._replace(vertices=vertices, has_vertices=present)
        mano = self._array(part, "mano", _MANO, count)
        if mano is not None:
            pose, betas = mano[:, 0, :48], mano[:, 0, 48:58]
            labels = labels._replace(axis_angle=pose, betas=betas, has_pose=present)
        return labels

    def _with_detections(self, labels: Labels) -> Labels:
        """Return labels with a detector's keypoints and boxes."""
        path = self.root / str(self.detections)
        found, names = read_detections(path), [f"{k:08d}.jpg" for k in range(len(labels.box))]
        rows = one_for_each(found, names, str(path))
        keypoints, confidence = found.keypoints[rows], found.confidence[rows]
        box = detected_boxes(keypoints, confidence, labels.image_size)
        return labels._replace(keypoints_2d=keypoints, confidence=confidence, box=box)

    def _array(
        self, part: str, kind: str, shape: tuple[int | None, ...], count: int
    ) -> Tensor | None:
        """Return a list of labels, or None where an evaluation's is not there."""
        path = self.root / f"{part}_{kind}.json"
        if part == "evaluation" and not path.exists():
            return None
        label_file(path, f"labels ({kind}) of the training part, in FreiHAND v2's zip")
        array: np.ndarray = read_array(path, shape)
        if len(array) != count:
            raise UserError(
                f"{path} has {len(array):,} entries, {part}_K.json has {count:,}: expected the same"
            )
        return torch.from_numpy(array)


def _names(folder: Path) -> set[str]:
    """Return the names of the files in a folder; none if there is no folder."""
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()
