"""Cast shadows by a shadow map: what the light sees is lit."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from handrec.render.base import Attribute, Rasterizer
from handrec.types import Camera

#: A light so many times the scene's radius away is as good as at infinity.
_FAR = 400.0

#: Depth by which a surface must be behind another to lie in its shadow: in texels, and metres.
_BIAS_TEXELS, _BIAS = 1.5, 0.0008

#: What is around the focus casts shadows too: the map reaches so many times as far.
_MARGIN = 1.35

#: Depth of what is not there, metres.
_NOTHING = 1e3


class ShadowMap(NamedTuple):
    """Depths seen from a light, in its direction, from the middle of what it shines on.

    Attributes:
        depth: of each texel, bias included, metres; with a border of two texels of nothing.
        to_map: from the camera frame to column, row (texels, centres at + 0.5, the inner one of the
            border's texels included) and depth (metres); affine.
    """

    depth: Float[Tensor, "b m m"]
    to_map: Float[Tensor, "b 3 4"]


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
        focus: points around which shadows are cast; what is farther off casts none, metres.
        direction: towards the light, any length.
        size: of the map, texels.
    """
    turn = _facing(direction)
    low, high = focus.amin(1), focus.amax(1)
    centre = (low + high) / 2
    radius = _MARGIN * (focus - centre[:, None]).norm(dim=-1).amax(1)
    distance = _FAR * radius
    intrinsics = torch.zeros_like(turn)
    intrinsics[:, 0, 0] = intrinsics[:, 1, 1] = size / 2 * _FAR
    intrinsics[:, :2, 2], intrinsics[:, 2, 2] = size / 2, 1
    middle = torch.stack([torch.zeros_like(distance)] * 2 + [distance], dim=-1)
    seen = rasterizer.render(
        (vertices - centre[:, None]) @ turn.mT + middle[:, None],
        faces,
        {"blank": Attribute(torch.zeros_like(vertices[:1, :, :1]))},
        Camera(intrinsics, (size, size)),
        lambda surface: surface["blank"],
    )
    bias = _BIAS + _BIAS_TEXELS * 2 * radius / size
    depth = seen.depth + (bias - distance)[:, None, None, None]
    depth = F.pad(torch.where(seen.mask > 0, depth, _NOTHING), (2, 2, 2, 2), value=_NOTHING)
    texels = (size / 2 / radius)[:, None, None]
    to_map = torch.cat([turn[:, :2] * texels, turn[:, 2:]], dim=1)
    shift = (
        turn.new_tensor([size / 2 + 1, size / 2 + 1, 0.0]) - (to_map @ centre[..., None])[..., 0]
    )
    return ShadowMap(depth[:, 0], torch.cat([to_map, shift[..., None]], dim=-1))


def _facing(direction: Float[Tensor, "b 3"]) -> Float[Tensor, "b 3 3"]:
    """Return rotations to a camera that looks away from the light; its roll does not matter."""
    ahead = -F.normalize(direction, dim=-1)
    # Any axis that is not nearly parallel.
    aid = F.one_hot(ahead.abs().argmin(-1), 3).to(ahead)
    right = F.normalize(torch.linalg.cross(aid, ahead, dim=-1), dim=-1)
    return torch.stack([right, torch.linalg.cross(ahead, right, dim=-1), ahead], dim=1)


def place(shadows: ShadowMap, points: Float[Tensor, "b n 3"]) -> Float[Tensor, "b n 3"]:
    """Return column, row and depth of points (metres, camera frame) in the map.

    They are affine in the points: interpolate them.
    """
    return points @ shadows.to_map[..., :3].mT + shadows.to_map[:, None, :, 3]


__all__ = ["ShadowMap", "cast", "place"]
