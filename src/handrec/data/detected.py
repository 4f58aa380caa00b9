"""Images with 2D keypoints as a detector left them: what S2HAND learns from, and no more."""

import logging
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from handrec.data.boxes import Side, read_intrinsics
from handrec.data.columns import held_out, held_out_videos, image_size, numbered, videos_by_name
from handrec.data.crops import default_intrinsics
from handrec.data.detections import detected_boxes, find_images, read_detections
from handrec.data.keypoint_orders import PRESETS, to_canonical
from handrec.data.labels import Annotated, LabelTable, no_labels
from handrec.data.photos import find_photos
from handrec.data.real import RealHands
from handrec.errors import UserError

logger = logging.getLogger(__name__)


class DetectedHands(RealHands):
    """Images below a folder with the hands that a detector found in them.

    The file is that of S2HAND's public code or an ``.npz``
    (:func:`~handrec.data.detections.read_detections`), in any order: entries find their images by
    path, name or number. An image may have several entries; those without one are left out,
    counted and listed. An entry without a confident joint is kept, shows the whole image, and
    teaches S2HAND nothing; they are counted too.

    With ``clip``, images are frames of videos (:func:`~handrec.data.columns.videos_by_name`).

    Args:
        root: folder of the images; images in folders in it are taken too.
        detections: the detector's file, relative to the root; None takes the only ``.json`` or
            ``.npz`` in it.
        intrinsics: JSON file with ``K`` of all images, or one per path, see
            :class:`~handrec.data.photos.Photos`; None assumes ordinary cameras, with which methods
            that want metres do not train.
        keypoints: name of the file's order of joints, or 21 names.
        side: of all hands.
        val_share: of the images, for validation, by a hash of their names; with ``clip`` of whole
            videos, of a single one its end. 0 trains and validates on all of them.
        box_scale: side of the crop over the longer side of the box around the confident joints.
        **options: see :class:`~handrec.data.real.RealHands`.
    """

    name = "detected"
    has_videos = True
    has_detections = True
    folders = ("detected",)
    marker = "."
    parts = MappingProxyType({"train": "images", "val": "images", "test": "images"})

    def __init__(
        self,
        root: str | None = None,
        detections: str | None = None,
        intrinsics: str | None = None,
        keypoints: str | tuple[str, ...] = "freihand",
        side: Side = "right",
        val_share: float = 0.05,
        box_scale: float = 1.5,
        **options: Any,
    ) -> None:
        super().__init__(root, box_scale=box_scale, **options)
        if isinstance(keypoints, str) and keypoints not in PRESETS:
            raise UserError(f"keypoints={keypoints}: unknown order, there are {', '.join(PRESETS)}")
        self.detections, self.intrinsics = detections, intrinsics
        self.keypoints = PRESETS[keypoints] if isinstance(keypoints, str) else keypoints
        if not 0 <= val_share < 1:
            raise UserError(f"val_share must lie in [0, 1), not {val_share:g}: 0 validates on all")
        self.side, self.val_share = side, val_share
        self.intrinsics_known = intrinsics is not None
        self.skipped: list[str] = []

    def facts(self) -> dict[str, Any]:
        """Return the options and the files that the samples depend on."""
        files = {name: path.stat().st_mtime_ns for name, path in self._images().items()}
        facts = {"keypoints": self.keypoints, "side": self.side, "files": files}
        return facts if self.clip is None else facts | {"videos": True}

    def sources(self, part: str) -> list[Path]:
        """Return the detector's file, and that of the cameras."""
        cameras = [] if self.intrinsics is None else [self.root / self.intrinsics]
        if self.detections is not None:
            return [self.root / self.detections, *cameras]
        found = sorted(
            path
            for path in self.root.iterdir()
            if path.suffix in (".json", ".npz") and path not in cameras
        )
        if len(found) != 1:
            names = ", ".join(path.name for path in found[:5]) or "none"
            raise UserError(
                f"{self.root}: expected one file of a detector, there is {names}:"
                " choose with --data.detections=FILE"
            )
        return [*found, *cameras]

    def setup(self, stage: str) -> None:
        """Map the labels into memory, and say what was left out."""
        super().setup(stage)
        self.skipped = self.tables["images"].skipped
        if self.skipped:
            logger.warning(
                "%s: %d images have no entry and are left out, such as %s",
                self.root, len(self.skipped), self.skipped[0],
            )  # fmt: skip

    def read(self, part: str) -> Annotated:
        """Return the hands that were found."""
        path, *_ = self.sources(part)
        images = list(self._images())
        found = read_detections(path, to_canonical(self.keypoints, str(path)))
        if not found.names:
            raise UserError(f"{path}: no hand in it")
        indices = find_images(found, images, str(path))
        files = [images[index] for index in indices]
        known = {name: image_size(self.root / name) for name in dict.fromkeys(files)}
        sizes = torch.tensor([known[name] for name in files])
        labels = no_labels(len(files))._replace(
            image_size=sizes,
            box=detected_boxes(found.keypoints, found.confidence, sizes),
            is_left=torch.full((len(files),), float(self.side == "left")),
            intrinsics=self._cameras(files, sizes),
            keypoints_2d=found.keypoints,
            confidence=found.confidence,
        )
        sequence, frame = numbered(len(files))
        if self.clip is not None:
            sequence, frame = videos_by_name(files, [self.side] * len(files))
        return Annotated(
            files, [""] * len(files), torch.arange(len(files)), sequence, frame, labels,
            skipped=[name for name in images if name not in known],
        )  # fmt: skip

    def select(self, split: str, table: LabelTable) -> Int[Tensor, " s"]:
        """Return the hands of a split; those of the test are those of the validation."""
        samples = torch.arange(len(table))
        if self.val_share == 0:
            return samples
        names = [name.decode() for name in table.files]
        if self.clip is not None:
            is_val = held_out_videos(names, self.val_share)
            return samples[~is_val] if split == "train" else samples[is_val]
        chosen = held_out(names, self.val_share)
        is_val = torch.tensor([name in chosen for name in names])
        return samples[~is_val] if split == "train" else samples[is_val]

    def _images(self) -> dict[str, Path]:
        return find_photos(self.root, recursive=True)

    def _cameras(self, files: list[str], sizes: Int[Tensor, "n 2"]) -> Tensor:
        """Return ``K`` of each image: the given one, or an ordinary one."""
        if self.intrinsics is None:
            cameras = np.stack([default_intrinsics(*size) for size in sizes.tolist()])
            return torch.from_numpy(cameras).float()
        path = self.root / self.intrinsics
        given = read_intrinsics(path)
        if isinstance(given, dict):
            missing = [name for name in files if name not in given]
            if missing:
                raise UserError(f"{path}: no K for {missing[0]} (and {len(missing) - 1} more)")
            return torch.from_numpy(np.stack([given[name] for name in files])).float()
        return torch.from_numpy(given).float().repeat(len(files), 1, 1)
