"""Views of unlabeled images: one affine warp each, whose matrix travels with the view."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from kornia.filters import filter2d_separable, get_gaussian_kernel1d
from torch import Tensor, nn

from handrec.data.colours import colour_map, constant
from handrec.errors import UserError, fraction, not_negative, positive, rising

#: How bright the eye finds red, green and blue (ITU-R BT.601).
_LUMA = (0.299, 0.587, 0.114)

#: Standard deviations of blur, pixels: iBOT's radii; and the taps that hold three of the greatest.
_BLUR = (0.1, 2.0)
_TAPS = 13


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

    def __post_init__(self) -> None:
        low, high = self.scale
        positive(self, smallest_scale=low, greatest_scale=high)
        rising(self, scale=self.scale)
        not_negative(self, rotation=self.rotation, shift=self.shift)


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

    def __post_init__(self) -> None:
        names = ("brightness", "contrast", "saturation", "hue")
        fraction(self, **{f"jitter of {n}": v for n, v in zip(names, self.jitter, strict=True)})
        fraction(self, jitter_share=self.jitter_share, grey=self.grey)
        for name, shares in (("blur", self.blur), ("solarize", self.solarize)):
            fraction(self, **{f"{name} of view {i + 1}": share for i, share in enumerate(shares)})


class TwoViews(nn.Module):
    """Takes two global views of each image, and local ones on request, on the image's device.

    Args:
        size: side of the global views, pixels; None takes the images'.
        geometry: of the views.
        colours: of the views.
        local_views: number of local views; 0 is iBOT's default.
        local_size: their side, pixels, less than the global views'; None for 3/7 of that (DINO's
            96 of 224), to the next 16.
        local_geometry: of the local views.
    """

    def __init__(
        self,
        size: int | None = None,
        geometry: Geometry = Geometry(),
        colours: Colours = Colours(),
        local_views: int = 0,
        local_size: int | None = None,
        local_geometry: Geometry = Geometry(scale=(1.6, 2.6), shift=0.5),
    ) -> None:
        super().__init__()
        positive(self, size=size or 1, local_size=1 if local_size is None else local_size)
        not_negative(self, local_views=local_views)
        self.size, self.geometry = size, geometry
        self.local_views, self.local_size, self.local_geometry = (
            local_views,
            local_size,
            local_geometry,
        )
        self.looks = nn.ModuleList(Look(colours, i) for i in range(2))

    @torch.no_grad()
    def take(self, image: Float[Tensor, "b 3 h w"]) -> tuple[list[View], list[View]]:
        """Return the two global views and the local ones, in full precision under autocast."""
        size = self.size or image.shape[-1]
        with torch.autocast(image.device.type, enabled=False):
            image = image.float()
            views = [self._view(image, size, self.geometry, look) for look in self.looks]
            local = [
                self._view(image, self._local(size), self.local_geometry, self.looks[1])
                for _ in range(self.local_views)
            ]
        return views, local

    def _local(self, size: int) -> int:
        """Return the side of local views beside global ones of a side."""
        local = self.local_size or max(16, 16 * round(size * 3 / 7 / 16))
        if local >= size:
            raise UserError(f"views.local_size is {local}, not less than the global views' {size}")
        return local

    def _view(self, image: Tensor, size: int, geometry: Geometry, look: nn.Module) -> View:
        matrix = sample_matrices(len(image), geometry, image.device)
        return View(look(warp(image, matrix, size)), matrix)


class Look(nn.Module):
    """Changes the colours of a view.

    Brightness, contrast, saturation, hue and grey are one matrix of RGB for each image: one after
    another, a way through HSV among them, they took a quarter of a tiny ViT's step.

    Args:
        colours: what may happen.
        view: 0 or 1.
    """

    def __init__(self, colours: Colours, view: int) -> None:
        super().__init__()
        self.colours = colours
        self.blur, self.solarize = colours.blur[view], colours.solarize[view]

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Return the images in other colours, in [0, 1]."""
        if self.colours.jitter_share or self.colours.grey:
            image = recolour(image, *sample_colours(len(image), self.colours, image.device))
        image = image.clamp(0, 1)
        if self.blur:
            image = _blur_some(image, self.blur)
        if self.solarize:
            chosen = torch.rand(len(image), 1, 1, 1, device=image.device) < self.solarize
            image = torch.where(chosen & (image >= 0.5), 1 - image, image)
        return image


def _blur_some(image: Tensor, share: float) -> Tensor:
    """Blur a share of the images and no others: a blur is most of a look's cost.

    The host draws how many, so that it need not wait for the device, which draws which.
    """
    count, device = len(image), image.device
    blurred = int((torch.rand(count) < share).sum())
    if blurred == count:
        return blur(image)
    rows = torch.rand(count, device=device).argsort()[:blurred]
    return image.index_copy(0, rows, blur(image[rows])) if blurred else image


def blur(image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Return images blurred by Gaussians of random widths, mirrored beyond their borders."""
    low, high = _BLUR
    sigma = low + (high - low) * torch.rand(len(image), 1, device=image.device)
    kernel = get_gaussian_kernel1d(_TAPS, sigma)
    blurred: Tensor = filter2d_separable(image, kernel, kernel)
    return blurred


def sample_colours(
    count: int,
    colours: Colours,
    device: torch.device,
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, "b 3 3"], Float[Tensor, " b"]]:
    """Return random changes of brightness, contrast, saturation and hue, see :func:`colour_map`."""
    draw = torch.rand(6, count, generator=generator, device=device)
    reach = constant(tuple(colours.jitter), device)[:, None]
    change = (2 * draw[:4] - 1) * reach * (draw[4] < colours.jitter_share)
    brightness, contrast, saturation = 1 + change[:3]
    return colour_map(brightness, contrast, saturation * (draw[5] >= colours.grey), change[3])


def recolour(
    image: Float[Tensor, "b 3 h w"], matrix: Float[Tensor, "b 3 3"], lift: Float[Tensor, " b"]
) -> Float[Tensor, "b 3 h w"]:
    """Return pictures changed by what :func:`colour_map` returned; the range is not clipped."""
    luma = image.mean((2, 3)) @ constant(_LUMA, image.device).to(image)
    return torch.baddbmm((lift * luma)[:, None, None], matrix, image.flatten(2)).view_as(image)


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
