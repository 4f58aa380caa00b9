"""Things that hands hold, and that get in their way: superquadrics, and where they are put.

Superquadrics (Barr, 1981): boxes, cylinders, ellipsoids and what lies between, of one topology.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from handrec.data.appearance.arms import grid_faces
from handrec.hand.joints import FINGERS, JOINTS, PARENTS

_ROWS, _COLUMNS = 13, 16

#: From the joints of the palm to its skin, and from a finger's bone to its, metres.
_PALM_DEPTH, _FINGER_DEPTH = 0.014, 0.008

_KNUCKLES = [JOINTS.index(f"{finger}_mcp") for finger in FINGERS[1:]]
#: Bones that close around a thing: those beyond the knuckles, of the thumb too.
_BONES = [i for i, name in enumerate(JOINTS) if name.endswith(("_pip", "_dip", "_ip", "_tip"))]


class Placement(NamedTuple):
    """Where a thing is.

    Attributes:
        centre: metres.
        frame: columns are its axes; the last one is the long one.
        radius: the thickest cross-section that fits, metres.
    """

    centre: Float[Tensor, "b 3"]
    frame: Float[Tensor, "b 3 3"]
    radius: Float[Tensor, "b 1"]


def solid_faces() -> Int[Tensor, "f 3"]:
    """Return the faces of a superquadric, counter-clockwise seen from outside."""
    return grid_faces(_ROWS, _COLUMNS)


def superquadric(
    half: Float[Tensor, "b 3"], roundness: Float[Tensor, "b 2"]
) -> tuple[Float[Tensor, "b n 3"], Float[Tensor, "b n 3"]]:
    """Return vertices about the origin, and their normals from the implicit form.

    Args:
        half: half axes, metres.
        roundness: exponents of the outline along the last axis and of the cross-section: 1 is an
            ellipse, towards 0 a rectangle.
    """
    height = torch.linspace(-math.pi / 2, math.pi / 2, _ROWS).to(half)[:, None]
    turn = (torch.arange(_COLUMNS).to(half) + 0.5) * (2 * math.pi / _COLUMNS)
    circle = torch.stack(
        # At the poles a cosine may be rounded to below 0.
        torch.broadcast_tensors(height.cos().relu(), height.sin(), turn.cos(), turn.sin())
    )
    circle = circle.flatten(1)[:, None]  # (4, 1, N)
    up, around = roundness[:, :1], roundness[:, 1:]

    def point(up: Tensor, around: Tensor) -> Tensor:
        ring = _power(circle[0], up)
        parts = ring * _power(circle[2], around), ring * _power(circle[3], around)
        return torch.stack([*parts, _power(circle[1], up)], dim=-1)

    vertices = point(up, around) * half[:, None]
    return vertices, F.normalize(point(2 - up, 2 - around) / half[:, None], dim=-1, eps=1e-12)


def _power(base: Tensor, exponent: Tensor) -> Tensor:
    """Return the power of the magnitude, with the sign of the base."""
    return base.sign() * base.abs() ** exponent


def hold(
    joints: Float[Tensor, "b 21 3"],
    thickest: Float[Tensor, "b 1"],
    tilt: Float[Tensor, "b 1"],
) -> Placement:
    """Return the thickest cross-section that fits between palm and fingers, up to a limit.

    It lies on the palm; its long axis runs across it. Candidates of some radii and places along
    the palm are checked against the fingers' bones, in the plane at a right angle to the axis.

    Args:
        joints: metres.
        thickest: radius, metres.
        tilt: of the long axis towards the fingers, radians.
    """
    knuckles = joints[:, _KNUCKLES]
    across = F.normalize(knuckles[:, 0] - knuckles[:, -1], dim=-1)
    fingers = F.normalize(knuckles[:, 1] - joints[:, 0], dim=-1)
    palmar = F.normalize(torch.linalg.cross(across, fingers, dim=-1), dim=-1)
    fingers = torch.linalg.cross(palmar, across, dim=-1)
    across, fingers = (
        tilt.cos() * across + tilt.sin() * fingers,
        tilt.cos() * fingers - tilt.sin() * across,
    )
    middle = knuckles.mean(1)
    plane = torch.stack([fingers, palmar], dim=-1)
    bones = (joints - middle[:, None]) @ plane
    parents = bones[:, [PARENTS[i] for i in _BONES]]
    bones = torch.cat([bones[:, _BONES], (bones[:, _BONES] + parents) / 2], dim=1)
    share = torch.linspace(0.08, 1, 12).to(joints)
    shift = torch.linspace(-0.045, 0.03, 6).to(joints)
    radius = (thickest * share)[:, :, None].expand(-1, -1, len(shift))
    places = torch.stack([shift.expand_as(radius), radius + _PALM_DEPTH], dim=-1).flatten(1, 2)
    radius = radius.flatten(1)
    room = torch.cdist(places, bones).amin(-1) - _FINGER_DEPTH - radius
    # The thickest that fits; of those, the nearest to the fingers. If none does, the least wrong.
    best = torch.where(room > 0, 1 + 100 * radius - room, room).argmax(1, keepdim=True)
    place = places.gather(1, best[..., None].expand(-1, -1, 2))[:, 0]
    centre = middle + (plane @ place[..., None])[..., 0]
    return Placement(centre, torch.stack([palmar, fingers, across], dim=-1), radius.gather(1, best))


def beside(
    vertices: Float[Tensor, "b v 3"],
    offset: Float[Tensor, "b 2"],
    gap: Float[Tensor, "b 1"],
    size: Float[Tensor, "b 1"],
) -> Float[Tensor, "b 3"]:
    """Return a place before or behind the hand, seen where a part of the hand is.

    Args:
        vertices: of the hand, metres, camera frame.
        offset: from the middle of the hand's box, in half boxes.
        gap: to the hand's nearest point if positive, to its farthest if negative, metres.
        size: radius of what is put there, metres.
    """
    low, high = vertices.amin(1), vertices.amax(1)
    middle, half = (low + high) / 2, (high - low) / 2
    depth = torch.where(gap > 0, low[:, 2:] - gap - size, high[:, 2:] - gap + size)
    depth = depth.clamp(min=0.12)
    seen = middle[:, :2] + offset * half[:, :2]
    return torch.cat([seen / middle[:, 2:] * depth, depth], dim=-1)


__all__ = ["Placement", "beside", "hold", "solid_faces", "superquadric"]
