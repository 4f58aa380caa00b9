"""Cast shadows by a shadow map: what the light sees is lit."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from handrec.render.base import Attribute, Rasterizer
from handrec.types import Camera

#: A light so many times the scene's radius away is as good as at infinity.
_FAR = 40.0

#: Depth by which a surface must be behind another to lie in its shadow: in texels, and metres.
_BIAS_TEXELS, _BIAS = 1.5, 0.0008


class ShadowMap(NamedTuple):
    """Depths seen from a light.

    Attributes:
        nearest: depth around each texel, 3 x 3 in reading order, metres; far where nothing is.
        turn: rows are the axes of the light's camera; the last one points away from the light.
        shift: from the turned camera frame to the light's, metres.
        focal: of the light's camera, texels.
        bias: metres.
        size: texels along a side.
    """

    nearest: Float[Tensor, "b n 9"]
    turn: Float[Tensor, "b 3 3"]
    shift: Float[Tensor, "b 3"]
    focal: Float[Tensor, "b 1"]
    bias: Float[Tensor, "b 1"]
    size: int


@torch.no_grad()
def cast(
    rasterizer: Rasterizer,
    vertices: Float[Tensor, "b v 3"],
    faces: Int[Tensor, "f 3"],
    focus: Float[Tensor, "b p 3"],
    direction: Float[Tensor, "b 3"],
    size: int,
) -> ShadowMap:
    """Return what a distant light sees.

    Args:
        rasterizer: any backend.
        vertices: metres, camera frame.
        faces: shared by the batch.
        focus: points around which shadows fall; what is farther off is lit, metres.
        direction: towards the light, any length.
        size: of the map, texels.
    """
    turn = _facing(direction)
    low, high = focus.amin(1), focus.amax(1)
    centre = (low + high) / 2
    radius = 1.1 * (focus - centre[:, None]).norm(dim=-1).amax(1, keepdim=True)
    distance = _FAR * radius
    shift = -(turn @ centre[..., None])[..., 0]
    shift = torch.cat([shift[:, :2], shift[:, 2:] + distance], dim=1)
    focal = size / 2 * distance / radius
    intrinsics = torch.zeros_like(turn)
    intrinsics[:, 0, 0] = intrinsics[:, 1, 1] = focal[:, 0]
    intrinsics[:, :2, 2], intrinsics[:, 2, 2] = size / 2, 1
    seen = rasterizer.render(
        vertices @ turn.mT + shift[:, None],
        faces,
        {"blank": Attribute(torch.zeros_like(vertices[:1, :, :1]))},
        Camera(intrinsics, (size, size)),
        lambda surface: surface["blank"],
    )
    depth = torch.where(seen.mask > 0, seen.depth, 1e3 * distance[..., None, None])
    nearest = F.unfold(F.pad(depth, (1, 1, 1, 1), mode="replicate"), 3).mT
    bias = _BIAS + _BIAS_TEXELS * 2 * radius / size
    return ShadowMap(nearest.contiguous(), turn, shift, focal, bias, size)


def _facing(direction: Float[Tensor, "b 3"]) -> Float[Tensor, "b 3 3"]:
    """Return rotations to a camera that looks away from the light; its roll does not matter."""
    ahead = -F.normalize(direction, dim=-1)
    # Any axis that is not nearly parallel.
    aid = F.one_hot(ahead.abs().argmin(-1), 3).to(ahead)
    right = F.normalize(torch.linalg.cross(aid, ahead, dim=-1), dim=-1)
    return torch.stack([right, torch.linalg.cross(ahead, right, dim=-1), ahead], dim=1)


def lit(
    shadows: ShadowMap,
    points: Float[Tensor, "... 3"],
    image: Int[Tensor, "..."],
) -> Float[Tensor, "... 1"]:
    """Return the share of the light that reaches points, softened over 3 x 3 texels.

    Args:
        shadows: of every image.
        points: metres, camera frame.
        image: that each point belongs to; broadcasts against the points.
    """
    x, y, depth = (
        (points * shadows.turn[image, row]).sum(-1) + shadows.shift[image, row] for row in range(3)
    )
    scale, middle = shadows.focal[image, 0] / depth, shadows.size / 2
    x, y = x * scale + middle, y * scale + middle
    column, row = x.floor(), y.floor()
    inside = (column >= 0) & (column < shadows.size) & (row >= 0) & (row < shadows.size)
    texel = (image * shadows.size + row.long()) * shadows.size + column.long()
    around = shadows.nearest.flatten(0, 1)[torch.where(inside, texel, 0)]
    clear = (around > (depth - shadows.bias[image, 0])[..., None]).to(points)
    # A box of two texels, slid to the point: the outer taps share what is off the middle.
    across, down = x - column, y - row
    wide = torch.stack([1 - across, torch.ones_like(across), across], dim=-1) / 2
    tall = torch.stack([1 - down, torch.ones_like(down), down], dim=-1) / 2
    weights = (tall[..., :, None] * wide[..., None, :]).flatten(-2)
    share = (clear * weights).sum(-1, keepdim=True)
    return torch.where(inside[..., None], share, 1.0)


__all__ = ["ShadowMap", "cast", "lit"]
