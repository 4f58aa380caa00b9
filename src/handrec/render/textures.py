"""Textures: images laid on faces, mip-mapped, looked up with gradients.

A texture that is looked up at every second texel or less is drawn from a smaller copy of itself
(L. Williams, "Pyramidal parametrics", SIGGRAPH 1983): without, it flickers, and its gradients see
only the few texels that pixels happen to fall on.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


class Texture(NamedTuple):
    """An image and how it lies on the faces.

    Attributes:
        image: RGB in [0, 1].
        uv: coordinates in [0, 1], v up: (0, 0) is the image's lower left corner, (1, 1) its upper
            right corner; texel centres lie between.
        uv_faces: rows of ``uv`` at the corners of each face.
        mipmaps: whether to look it up trilinearly in a pyramid, else bilinearly in the image.
    """

    image: Float[Tensor, "#b 3 th tw"]
    uv: Float[Tensor, "u 2"]
    uv_faces: Int[Tensor, "f 3"]
    mipmaps: bool = True


class Pyramid(NamedTuple):
    """An image at full size, half, a quarter, ... down to one texel.

    Attributes:
        texels: of all levels one after the other, row by row from the top.
        sizes: ``(height, width)`` of each level.
    """

    texels: Float[Tensor, "t n c"]
    sizes: tuple[tuple[int, int], ...]


def build_pyramid(image: Float[Tensor, "t c h w"], mipmaps: bool = True) -> Pyramid:
    """Return the means of 2 x 2 texels, and of those, and so on.

    Where a side is odd, the windows overlap by a texel.

    Args:
        image: one for all, or one for each image of a batch.
        mipmaps: False gives the first level only.
    """
    levels = [image]
    while mipmaps and max(levels[-1].shape[-2:]) > 1:
        height, width = (max(1, side // 2) for side in levels[-1].shape[-2:])
        levels.append(F.adaptive_avg_pool2d(levels[-1], (height, width)))
    texels = torch.cat([level.flatten(2) for level in levels], dim=2).mT
    return Pyramid(texels.contiguous(), tuple((x.shape[-2], x.shape[-1]) for x in levels))


#: Looks up ``(pyramid, uv, level, image_index)``, flat lists of pixels: see :func:`look_up`.
LookUp = Callable[[Pyramid, Tensor, Tensor, Tensor | None], Tensor]


def sample_texture(
    texture: Float[Tensor, "t c h w"] | Pyramid,
    uv: Float[Tensor, "... 2"],
    image_index: Int[Tensor, "..."] | None = None,
    dx: Float[Tensor, "... 2"] | None = None,
    dy: Float[Tensor, "... 2"] | None = None,
    *,
    sampler: LookUp | None = None,
) -> Float[Tensor, "... c"]:
    """Return a texture's colours over any batch of pixels; a shader's way to :func:`look_up`.

    Args:
        texture: of one image for all, or one per image of the batch.
        uv: v up, see :class:`Texture`.
        image_index: of the :class:`~handrec.render.base.Surface`; None where the first axis of
            ``uv`` is the batch.
        dx: slope of ``uv``, ``uv_dx`` of the surface; None looks up the first level.
        dy: slope of ``uv``, ``uv_dy`` of the surface.
        sampler: None takes :func:`look_up`.
    """
    pyramid = texture if isinstance(texture, Pyramid) else build_pyramid(texture.float(), False)
    leading, index = uv.shape[:-1], None
    if len(pyramid.texels) > 1:
        if image_index is None:
            image_index = torch.arange(len(uv), device=uv.device)
            image_index = image_index.view(-1, *[1] * (len(leading) - 1))
        index = image_index.expand(leading).flatten()
    level = uv.new_zeros(leading)
    if dx is not None and dy is not None:
        level = level_of_detail(dx, dy, pyramid)
    colours = (sampler or look_up)(pyramid, uv.reshape(-1, 2), level.flatten(), index)
    return colours.view(*leading, colours.shape[-1])


def level_of_detail(
    dx: Float[Tensor, "... 2"], dy: Float[Tensor, "... 2"], pyramid: Pyramid
) -> Float[Tensor, "..."]:
    """Return the level whose texels are as long as the longer axis of a pixel on the texture.

    That axis is the larger singular value of the Jacobian from pixels to texels.

    Args:
        dx: change of uv from a pixel to the one to its right.
        dy: change of uv from a pixel to the one below.
        pyramid: that is to be looked up.
    """
    (height, width), levels = pyramid.sizes[0], len(pyramid.sizes)
    (u_dx, v_dx), (u_dy, v_dy) = dx.unbind(-1), dy.unbind(-1)
    u_dx, v_dx, u_dy, v_dy = u_dx * width, v_dx * height, u_dy * width, v_dy * height
    # A turn and a mirrored turn make up the Jacobian; along its longer axis their lengths add up.
    turn, mirrored = torch.hypot(u_dx + v_dy, v_dx - u_dy), torch.hypot(u_dx - v_dy, v_dx + u_dy)
    return ((turn + mirrored) / 2).clamp(1, 2.0 ** (levels - 1)).log2()


def look_up(
    pyramid: Pyramid,
    uv: Float[Tensor, "p 2"],
    level: Float[Tensor, " p"],
    image_index: Int[Tensor, " p"] | None = None,
) -> Float[Tensor, "p c"]:
    """Return colours, bilinear between texels and linear between levels.

    The border goes on beyond itself. Differentiable in the texels and ``uv``, not in ``level``.

    Args:
        pyramid: of one image, or of several.
        uv: v up, see :class:`Texture`.
        level: from 0, the image itself, to the number of levels less 1.
        image_index: which of several images; None if there is one.
    """
    level = level.detach()
    if len(pyramid.sizes) == 1:
        return _look_up_level(pyramid, uv, level.long(), image_index)
    lower = level.long().clamp(max=len(pyramid.sizes) - 2)
    near, far = (_look_up_level(pyramid, uv, k, image_index) for k in (lower, lower + 1))
    return torch.lerp(near, far, (level - lower)[:, None])


def _look_up_level(
    pyramid: Pyramid, uv: Tensor, level: Tensor, image_index: Tensor | None
) -> Tensor:
    """Return colours between the texels of one level, each pixel's own."""
    sizes = torch.tensor(pyramid.sizes, device=uv.device)
    starts = sizes.prod(1).cumsum(0) - sizes.prod(1)
    height, width = sizes[level].unbind(-1)
    x = (uv[:, 0] * width - 0.5).clamp(min=0).minimum(width - 1)
    y = ((1 - uv[:, 1]) * height - 0.5).clamp(min=0).minimum(height - 1)
    left, top = x.detach().long(), y.detach().long()
    right, bottom = (left + 1).minimum(width - 1), (top + 1).minimum(height - 1)
    right_share, bottom_share = (x - left)[:, None], (y - top)[:, None]
    first = starts[level]
    if image_index is not None and len(pyramid.texels) > 1:
        first = first + image_index * pyramid.texels.shape[1]

    def row(at: Tensor) -> Tensor:
        ends = (first + at * width + column for column in (left, right))
        first_end, last_end = (pyramid.texels.flatten(0, 1).index_select(0, end) for end in ends)
        return torch.lerp(first_end, last_end, right_share)

    return torch.lerp(row(top), row(bottom), bottom_share)


__all__ = [
    "LookUp",
    "Pyramid",
    "Texture",
    "build_pyramid",
    "level_of_detail",
    "look_up",
    "sample_texture",
]
