"""What is behind the hand: drawn scenes, or photos from a folder.

Every family keeps a bank of square pictures, made once, and a look is a crop of one of them:
drawing a batch costs a look-up, a resampling and a blur, on any device.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from handrec.data.appearance.lens import blur_kernel, convolve, to_display, to_linear
from handrec.data.appearance.otherworld import OTHERWORLD
from handrec.data.appearance.scenery import SNAPSHOTS, Kind
from handrec.data.crops import read_image
from handrec.data.photos import find_photos
from handrec.data.scenes import Uniform
from handrec.errors import UserError

logger = logging.getLogger(__name__)

#: Side of the pictures of a bank, pixels.
_SIDE = 320
#: Smaller banks serve smaller pictures: a crop shows at most all of a bank's picture.
_DETAIL = 1.5
_SMALLEST = 32
_CHUNK = 2


class Backgrounds(ABC):
    """A family of backgrounds. A look is drawn on the CPU, from a generator, as columns of numbers.

    Columns (row i is look i): ``scene``, which picture, a share of the bank; ``place`` (x, y) and
    ``zoom`` of the crop, shares of what fits; ``turn``, radians; ``flip``, 1 if mirrored; ``tint``,
    gains of linear RGB; ``blur``, radius of the disc that a point becomes, share of the side.

    Args:
        blur: probability of a blur beyond a touch.
        blur_radius: greatest, share of the picture's side (at most 0.06).

    Attributes:
        version: raise it whenever the same columns give another picture.
    """

    version: int = 1

    def __init__(self, blur: float = 0.6, blur_radius: float = 0.05) -> None:
        self.blur = blur
        self.blur_radius = blur_radius
        self._banks: dict[tuple[int, torch.device], Tensor] = {}
        self._pictures: Tensor | None = None

    @abstractmethod
    def make(self) -> UInt8[Tensor, "n 3 s s"]:
        """Return the bank's pictures, sRGB, on the CPU; called once."""

    def sample(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return ``count`` independent looks."""
        draw = Uniform(generator)
        blurred = draw(0.0, 1.0, count) < self.blur
        return {
            "scene": draw(0.0, 1.0, count),
            "place": draw(0.0, 1.0, count, 2),
            "zoom": draw(0.5, 1.0, count),
            "turn": 0.1 * draw.normal(count),
            "flip": (draw(0.0, 1.0, count) < 0.5).float(),
            "tint": torch.exp(0.25 * draw.normal(count, 1) + 0.06 * draw.normal(count, 3)),
            "blur": torch.where(blurred, self.blur_radius * draw(0.0, 1.0, count), 0.002),
        }

    @torch.no_grad()
    def draw(self, columns: dict[str, Tensor], size: int) -> Float[Tensor, "b 3 {size} {size}"]:
        """Return the backgrounds of looks, RGB in [0, 1], on the device of the columns.

        Args:
            columns: see the class.
            size: side of the pictures, pixels.
        """
        scene = columns["scene"]
        bank = self.bank(size, scene.device)
        index = (scene * len(bank)).long().clamp(max=len(bank) - 1)
        picture = F.grid_sample(
            bank[index].float(),
            _crop(columns, size),
            padding_mode="reflection",
            align_corners=False,
        )
        light = to_linear(picture.div_(255)).mul_(columns["tint"][..., None, None])
        still = torch.zeros_like(columns["place"])
        return to_display(convolve(light, blur_kernel(still, columns["blur"], size)))

    def bank(self, size: int, device: torch.device) -> Tensor:
        """Return the pictures, as small as pictures of ``size`` pixels want them."""
        if self._pictures is None:
            self._pictures = self.make()
        side = min(self._pictures.shape[-1], max(_SMALLEST, round(_DETAIL * size)))
        if (side, device) not in self._banks:
            smaller = [_shrink(part, side) for part in self._pictures.split(_CHUNK)]
            self._banks[side, device] = torch.cat(smaller).to(device)
        return self._banks[side, device]


def _shrink(pictures: Tensor, side: int) -> Tensor:
    small = F.interpolate(pictures.float(), (side, side), mode="bilinear", antialias=True)
    return small.round().clamp(0, 255).to(torch.uint8)


def _crop(columns: dict[str, Tensor], size: int) -> Float[Tensor, "b s s 2"]:
    """Return where a look's pixels lie in its scene, for ``grid_sample``."""
    zoom, turn = columns["zoom"], columns["turn"]
    centre = (2 * columns["place"] - 1) * (1 - zoom[:, None])
    cos, sin = zoom * turn.cos(), zoom * turn.sin()
    mirror = 1 - 2 * columns["flip"]
    rows = [cos * mirror, -sin, centre[:, 0], sin * mirror, cos, centre[:, 1]]
    return F.affine_grid(
        torch.stack(rows, dim=1).view(-1, 2, 3), [len(zoom), 3, size, size], align_corners=False
    )


class ProceduralScenes(Backgrounds):
    """Drawn scenes: rooms, desks, streets, landscapes, cloth, walls, people and more.

    Args:
        scenes: how many different ones.
        seed: of the scenes.
        blur: see :class:`Backgrounds`.
        blur_radius: see :class:`Backgrounds`.
    """

    kinds: Sequence[Kind] = SNAPSHOTS

    def __init__(
        self, scenes: int = 256, seed: int = 0, blur: float = 0.6, blur_radius: float = 0.05
    ) -> None:
        super().__init__(blur, blur_radius)
        if scenes < 1:
            raise UserError(f"scenes {scenes} must be at least 1")
        self.scenes = scenes
        self.seed = seed

    @torch.no_grad()
    def make(self) -> UInt8[Tensor, "n 3 s s"]:
        """Return as many scenes of each kind, up to one."""
        share, more = divmod(self.scenes, len(self.kinds))
        pictures = []
        for number, kind in enumerate(self.kinds):
            # A generator of its own: changing a kind leaves the others as they are.
            draw = Uniform(torch.Generator().manual_seed(1000 * self.seed + number))
            wanted = share + (number < more)
            for count in [_CHUNK] * (wanted // _CHUNK) + [wanted % _CHUNK] * (wanted % _CHUNK > 0):
                picture = kind(draw, count, _SIDE)
                pictures.append((picture * 255).round().to(torch.uint8))
        return torch.cat(pictures)


class OtherScenes(ProceduralScenes):
    """Drawn scenes that look like no snapshot: loud colours, patterns, flat shapes, writing.

    For evaluation under a shift of domain; those of the evaluation's seed are never trained on.
    """

    kinds = OTHERWORLD


class FolderBackgrounds(Backgrounds):
    """Square crops of the photos in a folder and its folders.

    Files that cannot be read, or are smaller than 64 pixels, are skipped; ``skipped`` counts them.

    Args:
        folder: of photos of any size, grey or with alpha too.
        limit: take at most so many, spread evenly over the sorted names.
        blur: see :class:`Backgrounds`.
        blur_radius: see :class:`Backgrounds`.
    """

    def __init__(
        self, folder: str, limit: int = 1000, blur: float = 0.3, blur_radius: float = 0.03
    ) -> None:
        super().__init__(blur, blur_radius)
        if limit < 1:
            raise UserError(f"limit {limit} must be at least 1")
        self.folder = Path(folder)
        self.limit = limit
        self.skipped = 0

    def make(self) -> UInt8[Tensor, "n 3 s s"]:
        """Return the middle square of each photo, resized."""
        if not self.folder.is_dir():
            raise UserError(f"{self.folder}: no such folder of backgrounds")
        paths = list(find_photos(self.folder, recursive=True).values())
        step = max(1.0, len(paths) / self.limit)
        paths = [paths[int(number * step)] for number in range(min(len(paths), self.limit))]
        with ThreadPoolExecutor() as threads:
            squares = [square for square in threads.map(_square, paths) if square is not None]
        self.skipped = len(paths) - len(squares)
        if not squares:
            raise UserError(f"{self.folder}: none of its {len(paths)} images can be used")
        if self.skipped:
            logger.warning("%s: skipped %d of %d images", self.folder, self.skipped, len(paths))
        return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).contiguous()


def _square(path: Path) -> UInt8[np.ndarray, "s s 3"] | None:
    """Return the middle square of a photo, or None if it is of no use."""
    try:
        image = read_image(path)
    except UserError:
        return None
    height, width = image.shape[:2]
    side = min(height, width)
    if side < 64:
        return None
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side]
    shrinks = side > _SIDE
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(square, (_SIDE, _SIDE), interpolation=how), dtype=np.uint8)
