"""Forearms and sleeves: tubes that carry on where the mesh of a hand ends.

A forearm starts on the skin itself, at a cut through the wrist, so its first ring fits any pose and
shape. Its texture is the hand's own: the strip before the cut, mirrored back and forth.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn import functional as F

from handrec.geometry.rotations import axis_angle_to_matrix
from handrec.hand.anatomy import rest_hand
from handrec.hand.base import HandModel

#: Vertices of a ring.
SIDES = 20

#: The strip of the hand that the forearm repeats, metres.
_STRIP = 0.025

#: Rings of a forearm, metres behind the cut. The first is a skirt inside of the hand, which no gap
#: is seen past; the last one closes the tube. Folds of the strip lie on rings.
_LENGTHS = torch.tensor(
    [
        -0.004,
        *(i * _STRIP / 4 for i in range(5)),
        0.0375,
        *(i * _STRIP for i in range(2, 10)),
        0.3,
        0.4,
        0.5,
        0.6,
    ]
)

#: Rings of a sleeve: the first lies on the skin, the last one closes it.
_SLEEVE_RINGS = 26

#: Where sleeves end, metres behind the cut: out of sight, as forearms do.
_SLEEVE_END = 0.55

#: A wrist bends over this length, metres.
_BEND_LENGTH = 0.035


class Wrist(NamedTuple):
    """Where a forearm joins on, and how the hand's texture lies on it; of one hand model.

    Attributes:
        face: of the hand, cut by each of the rays from the middle of the cut.
        weights: barycentric, of the point that is hit.
        past: 1 for the vertices past the cut.
        uv: at the corners of each face of the forearm.
        rest: vertices of the forearm of the hand at rest, metres.
    """

    face: Int[Tensor, " n"]
    weights: Float[Tensor, "n 3"]
    past: Float[Tensor, "v 1"]
    uv: Float[Tensor, "u 2"]
    rest: Float[Tensor, "w 3"]


class Arm(NamedTuple):
    """Forearms before they are meshed.

    Attributes:
        origin: middle of the cut, metres.
        frame: columns are the hand's axes: away from the fingers, dorsal, towards the thumb.
        ring: the skin around the cut, in ``frame``, metres.
        bend: axis and angle that the wrist turns the forearm by, in ``frame``; its first is 0.
        girth: growth of its radii towards the elbow.
    """

    origin: Float[Tensor, "b 3"]
    frame: Float[Tensor, "b 3 3"]
    ring: Float[Tensor, "b n 3"]
    bend: Float[Tensor, "b 3"]
    girth: Float[Tensor, "b 1"]


def grid_faces(rows: int, columns: int) -> Int[Tensor, "f 3"]:
    """Return the faces of a tube of rings: rings along +x, columns turning from +y to +z.

    They are counter-clockwise seen from outside.
    """
    first = torch.arange(rows - 1)[:, None] * columns + torch.arange(columns)
    right = torch.arange(rows - 1)[:, None] * columns + (torch.arange(columns) + 1) % columns
    quads = torch.stack([first, right, right + columns, first + columns], dim=-1).view(-1, 4)
    return quads[:, [0, 1, 3, 1, 2, 3]].view(-1, 3)


def grid_normals(points: Float[Tensor, "b r n 3"]) -> Float[Tensor, "b r n 3"]:
    """Return unit normals of a grid as :func:`grid_faces` meshes it, from differences."""
    around = points.roll(-1, 2) - points.roll(1, 2)
    padded = torch.cat([points[:, :1], points, points[:, -1:]], dim=1)
    along = padded[:, 2:] - padded[:, :-2]
    return F.normalize(torch.linalg.cross(around, along, dim=-1), dim=-1, eps=1e-12)


@lru_cache(maxsize=8)
@torch.no_grad()
def find_wrist(hand: HandModel, device: torch.device) -> Wrist:
    """Return where a forearm joins on to a hand model, found once."""
    template, faces = hand.template.cpu(), hand.faces.cpu()
    middle = rest_hand(hand).joints[0, 0].cpu()
    pairs = faces[:, [0, 1, 1, 2, 2, 0]].view(-1, 2).sort(1).values
    edges, count = torch.unique(pairs, dim=0, return_counts=True)
    border = template[edges[count == 1].flatten(), 0]
    # At the joint, or just before the hole of a mesh that ends there.
    cut = min(float(border.amin()) - 0.001 if len(border) else math.inf, float(middle[0]))
    near = template[(template[:, 0] - cut).abs() < 0.008]
    centre = torch.stack([torch.tensor(cut), *((near.amin(0) + near.amax(0)) / 2)[1:]])
    folded = (_LENGTHS.clamp(min=0) + _STRIP) % (2 * _STRIP)
    before = (folded - _STRIP).abs()
    rings = _cast(template, faces, centre, before, torch.arange(SIDES))
    uv = _mirror_uv(hand, centre, before, rings)
    first = len(_LENGTHS[_LENGTHS < 0])
    start = rings.point[first]
    rest = start + torch.stack([_LENGTHS, *2 * [torch.zeros_like(_LENGTHS)]], 1)[:, None]
    past = (template[:, :1] > cut).float()
    found = Wrist(rings.face[first], rings.weights[first], past, uv, rest.flatten(0, 1))
    return Wrist(*(column.to(device) for column in found))


class _Hits(NamedTuple):
    """Where rays leave the hand: face, barycentric weights, point."""

    face: Int[Tensor, "r n"]
    weights: Float[Tensor, "r n 3"]
    point: Float[Tensor, "r n 3"]


def _cast(
    template: Tensor, faces: Tensor, centre: Tensor, before: Tensor, columns: Tensor
) -> _Hits:
    """Cast rays at right angles to the arm, from so far before the cut, outwards."""
    angle = columns * (2 * math.pi / SIDES)
    ray = torch.stack([torch.zeros_like(angle), angle.cos(), angle.sin()], dim=1)
    start = centre - torch.stack([before, *2 * [torch.zeros_like(before)]], dim=1)
    origins = start[:, None].expand(-1, len(ray), -1).reshape(-1, 1, 3)
    rays = ray.expand(len(start), -1, -1).reshape(-1, 1, 3)
    a, b, c = template[faces].unbind(1)
    e1, e2 = b - a, c - a
    cross = torch.linalg.cross(rays, e2[None], dim=-1)
    scale = 1 / (e1 * cross).sum(-1)
    offset = origins - a
    u = (offset * cross).sum(-1) * scale
    normal = torch.linalg.cross(offset, e1[None].expand_as(offset), dim=-1)
    v = (rays * normal).sum(-1) * scale
    distance = (e2 * normal).sum(-1) * scale
    outside = torch.stack([u, v, 1 - u - v]).amin(0) < -1e-4
    distance = torch.where(outside | ~distance.isfinite(), -1.0, distance)
    far, face = distance.max(1)
    u, v = (x.gather(1, face[:, None])[:, 0] for x in (u, v))
    weights = torch.stack([1 - u - v, u, v], dim=-1)
    shape = (len(before), len(columns))
    point = (origins + rays * far[:, None, None])[:, 0]
    return _Hits(face.view(shape), weights.view(*shape, 3), point.view(*shape, 3))


def _mirror_uv(hand: HandModel, centre: Tensor, before: Tensor, rings: _Hits) -> Tensor:
    """Return the uv of each face's corners, every quad within one island of the atlas."""
    template, faces = hand.template.cpu(), hand.faces.cpu()
    uv, uv_faces = hand.uv.cpu(), hand.uv_faces.cpu()
    island = _islands(uv_faces, len(uv))
    quads = _cast(
        template, faces, centre, (before[1:] + before[:-1]) / 2, torch.arange(SIDES) + 0.5
    )
    owner = quads.face.flatten()
    corners = grid_faces(len(before), SIDES).view(len(owner), 6)
    own = rings.face.flatten()[corners]
    exact = (rings.weights.view(-1, 1, 3) @ uv[uv_faces[rings.face.flatten()]])[:, 0][corners]
    # A corner on another island gets the uv that the quad's own face has when carried on.
    a, b, c = template[faces[owner]].unbind(1)
    plane = torch.stack([b - a, c - a], dim=-1)
    offset = rings.point.view(-1, 3)[corners] - a[:, None]
    along = (torch.linalg.pinv(plane) @ offset.mT).mT
    at_a, at_b, at_c = uv[uv_faces[owner]].unbind(1)
    steps = torch.stack([at_b - at_a, at_c - at_a], dim=1)
    carried = at_a[:, None] + along @ steps
    same = island[own] == island[owner][:, None]
    return torch.where(same[..., None], exact, carried).view(-1, 2)


def _islands(uv_faces: Tensor, count: int) -> Int[Tensor, " f"]:
    """Return the number of the atlas's island that each face lies on."""
    first, second = uv_faces[:, [0, 1]].T.numpy(), uv_faces[:, [1, 2]].T.numpy()
    pairs = torch.cat([torch.from_numpy(first), torch.from_numpy(second)], dim=1).numpy()
    graph = coo_array(([1] * pairs.shape[1], (pairs[0], pairs[1])), shape=(count, count))
    labels = connected_components(graph, directed=False)[1]
    return torch.from_numpy(labels).long()[uv_faces[:, 0]]


def forearm_faces() -> Int[Tensor, "f 3"]:
    """Return the faces of a forearm."""
    return grid_faces(len(_LENGTHS), SIDES)


def forearm_vertices(arm: Arm) -> Float[Tensor, "b r n 3"]:
    """Return the rings of forearms, metres, in the frame that the arm is given in."""
    lengths = _LENGTHS.to(arm.ring).expand(len(arm.ring), -1)
    offsets = _outline(arm, lengths)
    offsets[:, 0] *= 0.93
    offsets[:, -1] = 0
    return _sweep(arm, lengths, offsets)


def sleeve_faces() -> Int[Tensor, "f 3"]:
    """Return the faces of a sleeve."""
    return grid_faces(_SLEEVE_RINGS, SIDES)


def sleeve_vertices(
    arm: Arm,
    start: Float[Tensor, "b 1"],
    slack: Float[Tensor, "b 1"],
    folds: Float[Tensor, "b 4"],
) -> tuple[Float[Tensor, "b r n 3"], Float[Tensor, "b r"]]:
    """Return the rings of sleeves, metres, and how far behind the cut each lies.

    Args:
        arm: inside of the sleeve.
        start: of the sleeve, metres behind the cut.
        slack: between skin and cloth, metres.
        folds: depth as a share of the slack, length in metres, slant and phase in radians.
    """
    share = torch.linspace(0, 1, _SLEEVE_RINGS - 2).to(start)
    # Closer to each other near the cuff, which is seen best.
    lengths = start + share.pow(1.5) * (_SLEEVE_END - start)
    lengths = torch.cat([lengths[:, :1], lengths, lengths[:, -1:]], dim=1)
    angle = torch.arange(SIDES).to(start) * (2 * math.pi / SIDES)
    depth, period, slant, phase = folds[:, :, None, None].unbind(1)
    wave = 2 * math.pi * lengths[..., None] / period + slant * (angle + phase).cos() + phase
    wrinkle = depth * (wave.sin() + 0.5 * (2.7 * wave + 2 * angle).sin())
    # The cuff itself lies flat.
    wrinkle = wrinkle * ((lengths - start) / 0.03).clamp(0, 1)[..., None]
    thick = slack[..., None] * (1 + wrinkle)
    offsets = _outline(arm, lengths)
    radius = offsets.norm(dim=-1)
    offsets = offsets * ((radius + thick) / radius)[..., None]
    offsets[:, 0] *= (radius[:, 0] * 0.97 / (radius[:, 0] + thick[:, 0]))[..., None]
    offsets[:, -1] = 0
    return _sweep(arm, lengths, offsets), lengths


def _outline(arm: Arm, lengths: Float[Tensor, "b r"]) -> Float[Tensor, "b r n 3"]:
    """Return the skin around the middle line: the wrist's outline, soon an ellipse, widening."""
    angle = torch.arange(SIDES).to(lengths) * (2 * math.pi / SIDES)
    half = (arm.ring.amax(1) - arm.ring.amin(1)) / 2
    circle = torch.stack([torch.zeros_like(angle), angle.cos(), angle.sin()], dim=1)
    smooth = (lengths / 0.07).clamp(0, 1)
    smooth = (smooth * smooth * (3 - 2 * smooth))[..., None, None]
    ellipse = (half[:, None] * circle)[:, None]
    # An arm of an elbow's girth goes on behind the elbow.
    far = (lengths.clamp(0, 0.25) / 0.25)[..., None]
    growth = arm.girth[:, None] * far.pow(1.3)
    # Towards the elbow an arm grows rounder: more so the thin way.
    wider = torch.stack([growth, 1.5 * growth, growth], dim=-1) + 1
    return torch.lerp(arm.ring[:, None], ellipse, smooth) * wider


def _sweep(arm: Arm, lengths: Tensor, offsets: Tensor) -> Float[Tensor, "b r n 3"]:
    """Place rings along the middle line: an arc of a circle at the wrist, then straight."""
    angle = arm.bend.norm(dim=-1, keepdim=True)
    side = torch.stack([torch.zeros_like(angle[:, 0]), arm.bend[:, 2], -arm.bend[:, 1]], dim=-1)
    side = side / angle.clamp(min=1e-6)
    inside = lengths.clamp(0, _BEND_LENGTH)
    turned = angle * inside / _BEND_LENGTH
    straight = lengths - inside
    forward = inside * torch.sinc(turned / math.pi) + straight * turned.cos()
    aside = inside * torch.sinc(turned / (2 * math.pi)) * (turned / 2).sin()
    aside = aside + straight * turned.sin()
    centres = aside[..., None] * side[:, None]
    centres = torch.cat([forward[..., None], centres[..., 1:]], dim=-1)
    turns = axis_angle_to_matrix(arm.bend[:, None] * (inside / _BEND_LENGTH)[..., None])
    local = centres[:, :, None] + offsets @ turns.mT
    return arm.origin[:, None, None] + local @ arm.frame[:, None].mT


__all__ = [
    "SIDES", "Arm", "Wrist", "find_wrist", "forearm_faces", "forearm_vertices",
    "grid_faces", "grid_normals", "sleeve_faces", "sleeve_vertices",
]  # fmt: skip
