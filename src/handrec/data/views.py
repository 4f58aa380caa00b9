"""Views of unlabeled images: one affine warp each, whose matrix travels with the view."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import kornia.augmentation as K
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class View(NamedTuple):
    """One view of each image.

    Attributes:
        image: RGB in [0, 1].
        matrix: ``A``: a point ``q`` of the image, in coordinates from -1 to 1 across it, is seen at
            ``A q`` in the view, from -1 to 1 across that.
    """

    image: Float[Tensor, "b 3 h w"]
    matrix: Float[Tensor, "b 3 3"]


@dataclass(frozen=True)
class Geometry:
    """From where a view may be taken. No flips: they would make left hands.

    Attributes:
        rotation: greatest angle, degrees (PeCLR: 45).
        scale: smallest and greatest size of the hand in the view relative to the image.
        shift: greatest shift, share of the view's side.
    """

    rotation: float = 45.0
    scale: tuple[float, float] = (0.8, 1.3)
    shift: float = 0.12


@dataclass(frozen=True)
class Colours:
    """What may happen to a view's colours: iBOT's strengths; the two views differ as there.

    Attributes:
        jitter: brightness, contrast, saturation, hue.
        jitter_share: of the images.
        grey: share of grey images.
        blur: share of blurred images, first and second view.
        solarize: share of solarized images, first and second view.
    """

    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    jitter_share: float = 0.8
    grey: float = 0.2
    blur: tuple[float, float] = (1.0, 0.1)
    solarize: tuple[float, float] = (0.0, 0.2)


class TwoViews(nn.Module):
    """Takes two global views of each image, and local ones on request, on the image's device.

    Args:
        size: side of the global views, pixels; None takes the images'.
        geometry: of the views.
        colours: of the views.
        local_views: number of local views; 0 is iBOT's default.
        local_size: their side, pixels.
        local_geometry: of the local views.
    """

    def __init__(
        self,
        size: int | None = None,
        geometry: Geometry = Geometry(),
        colours: Colours = Colours(),
        local_views: int = 0,
        local_size: int = 96,
        local_geometry: Geometry = Geometry(scale=(1.6, 2.6), shift=0.5),
    ) -> None:
        super().__init__()
        self.size, self.geometry = size, geometry
        self.local_views, self.local_size, self.local_geometry = (
            local_views,
            local_size,
            local_geometry,
        )
        self.looks = nn.ModuleList(_look(colours, i) for i in range(2))

    @torch.no_grad()
    def take(self, image: Float[Tensor, "b 3 h w"]) -> tuple[list[View], list[View]]:
        """Return the two global views and the local ones."""
        size = self.size or image.shape[-1]
        views = [self._view(image, size, self.geometry, look) for look in self.looks]
        local = [
            self._view(image, self.local_size, self.local_geometry, self.looks[1])
            for _ in range(self.local_views)
        ]
        return views, local

    def _view(self, image: Tensor, size: int, geometry: Geometry, look: nn.Module) -> View:
        matrix = sample_matrices(len(image), geometry, image.device)
        return View(look(warp(image, matrix, size)).clamp(0, 1), matrix)


def _look(colours: Colours, view: int) -> nn.Sequential:
    look = nn.Sequential()
    if colours.jitter_share:
        look.append(K.ColorJiggle(*colours.jitter, p=colours.jitter_share))
    if colours.grey:
        look.append(K.RandomGrayscale(p=colours.grey))
    if colours.blur[view]:
        look.append(K.RandomGaussianBlur((3, 3), (0.1, 1.5), p=colours.blur[view]))
    if colours.solarize[view]:
        look.append(K.RandomSolarize(p=colours.solarize[view]))
    return look


def sample_matrices(
    count: int,
    geometry: Geometry,
    device: torch.device,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "b 3 3"]:
    """Return random similarities ``[[s cos, -s sin, dx], [s sin, s cos, dy], [0, 0, 1]]``."""
    draw = torch.rand(4, count, generator=generator, device=device)
    angle = math.radians(geometry.rotation) * (2 * draw[0] - 1)
    low, high = geometry.scale
    scale = low * (high / low) ** draw[1]
    shift = 2 * geometry.shift * (2 * draw[2:] - 1)  # the side is 2 long
    return similarity(angle, scale, shift.T)


def similarity(
    angle: Float[Tensor, " b"], scale: Float[Tensor, " b"], shift: Float[Tensor, "b 2"]
) -> Float[Tensor, "b 3 3"]:
    """Return rotation and scale about the centre, then a shift, as homogeneous matrices."""
    cos, sin = scale * angle.cos(), scale * angle.sin()
    zero, one = torch.zeros_like(cos), torch.ones_like(cos)
    rows = [cos, -sin, shift[:, 0], sin, cos, shift[:, 1], zero, zero, one]
    return torch.stack(rows, dim=1).view(-1, 3, 3)


def warp(
    image: Float[Tensor, "b 3 h w"], matrix: Float[Tensor, "b 3 3"], size: int
) -> Float[Tensor, "b 3 size size"]:
    """Sample each image once, so that what is at ``q`` is seen at ``A q``.

    Beyond its border the image is mirrored: black corners would give the angle away.
    """
    with torch.autocast(image.device.type, enabled=False):
        backwards = torch.linalg.inv_ex(matrix.float()).inverse
        grid = F.affine_grid(backwards[:, :2], [len(image), 3, size, size], align_corners=False)
        return F.grid_sample(image.float(), grid, padding_mode="reflection", align_corners=False)
