"""Unlabelled images in a folder: for pre-training."""

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from handrec.data.columns import held_out, numbered
from handrec.data.crops import default_intrinsics
from handrec.data.decode import decode, read_encoded
from handrec.data.labels import Annotated, LabelTable, no_labels
from handrec.data.photos import find_photos
from handrec.data.real import RealHands
from handrec.errors import UserError

logger = logging.getLogger(__name__)


class Folder(RealHands):
    """The images below a folder, each of them one crop, without labels.

    Each image is decoded once before the first training: what cannot be read, and what is smaller
    than ``min_size``, is left out, counted and listed. Grey, transparent and CMYK images, and
    those turned by EXIF, become upright RGB.

    Args:
        root: the folder; images in folders in it are taken too.
        min_size: shortest side of an image that is taken, pixels.
        val_share: of the images, for validation, by a hash of their names.
        **options: see :class:`~handrec.data.real.RealHands`; ``crop`` is always ``image``.
    """

    name = "folder"
    folders = ("folder",)
    marker = "."
    intrinsics_known = False
    mirrored = True
    parts = MappingProxyType({"train": "images", "val": "images", "test": "images"})

    def __init__(
        self, root: str | None = None, min_size: int = 32, val_share: float = 0.02, **options: Any
    ) -> None:
        super().__init__(root, crop="image", **options)
        self.min_size, self.val_share = min_size, val_share
        self.skipped: list[str] = []

    def facts(self) -> dict[str, Any]:
        """Return the options and the files that the samples depend on."""
        files = {name: path.stat().st_mtime_ns for name, path in self._photos().items()}
        return {"min_size": self.min_size, "files": files}

    def sources(self, part: str) -> list[Path]:
        """Return the folder and those in it."""
        return [self.root, *sorted(self.root.rglob("*/"))]

    def setup(self, stage: str) -> None:
        """Map the list of images into memory, and say what was left out."""
        super().setup(stage)
        self.skipped = self.tables["images"].skipped
        if self.skipped:
            logger.warning(
                "%s: %d of %d images left out, such as %s", self.root, len(self.skipped),
                len(self.skipped) + len(self.tables["images"]), "; ".join(self.skipped[:3]),
            )  # fmt: skip

    def read(self, part: str) -> Annotated:
        """Return the images that can be read."""
        photos = self._photos()
        with ThreadPoolExecutor(max_workers=4) as pool:
            sizes = list(pool.map(self._size_or_reason, photos.values()))
        found = [(n, s) for n, s in zip(photos, sizes, strict=True) if not isinstance(s, str)]
        skipped = [size for size in sizes if isinstance(size, str)]
        if not found:
            raise UserError(f"{self.root}: no image to train on ({'; '.join(skipped[:3])})")
        names, kept = [name for name, _ in found], [size for _, size in found]
        box = torch.tensor([[0.0, 0.0, width, height] for height, width in kept])
        cameras = [torch.from_numpy(default_intrinsics(*size)).float() for size in kept]
        labels = no_labels(len(kept))._replace(
            image_size=torch.tensor(kept), box=box, intrinsics=torch.stack(cameras)
        )
        sequence, frame = numbered(len(kept))
        return Annotated(
            names, [""] * len(names), torch.arange(len(kept)), sequence, frame, labels,
            skipped=skipped,
        )  # fmt: skip

    def select(self, split: str, table: LabelTable) -> Int[Tensor, " s"]:
        """Return the images of a split; those of the test are those of the validation."""
        names = [name.decode() for name in table.files]
        chosen = held_out(names, self.val_share)
        is_val = torch.tensor([name in chosen for name in names])
        samples = torch.arange(len(table))
        return samples[~is_val] if split == "train" else samples[is_val]

    def _photos(self) -> dict[str, Path]:
        return find_photos(self.root, recursive=True)

    def _size_or_reason(self, path: Path) -> tuple[int, int] | str:
        """Return ``(height, width)``, or why an image is left out."""
        try:
            height, width = decode(read_encoded(path), path).shape[:2]
        except UserError as error:
            return str(error)
        if min(height, width) < self.min_size:
            return f"{path}: {width} x {height} pixels, smaller than {self.min_size}"
        return height, width
