"""The hand and everything before or behind it as one mesh, so that what hides what is exact."""

import math
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from handrec.data.appearance import arms, solids
from handrec.data.appearance.arms import SIDES, Arm, Wrist
from handrec.data.appearance.base import Stage
from handrec.data.appearance.props import Props
from handrec.geometry.mesh import vertex_normals
from handrec.geometry.rotations import axis_angle_to_matrix
from handrec.hand.anatomy import SphereProxies, pose_from_angles
from handrec.hand.base import HandModel
from handrec.types import Hand

#: A forearm within so many degrees of the line of sight would hide the hand: it is left out.
_END_ON = 25.0


class Part(IntEnum):
    """What a face belongs to."""

    HAND = 0
    FOREARM = 1
    SLEEVE = 2
    THING = 3
    OTHER_HAND = 4
    OTHER_FOREARM = 5


#: Parts that show skin: their uv lies in an atlas.
SKIN = (Part.HAND, Part.FOREARM, Part.OTHER_HAND, Part.OTHER_FOREARM)


class Meshes(NamedTuple):
    """The hand and its props, metres, camera frame. What is absent is collapsed to a point.

    Attributes:
        vertices: the hand's first.
        faces: counter-clockwise seen from outside, but for a left hand's; the hand's first.
        part: :class:`Part` of each face.
        normals: unit, outwards, zero where there is no surface.
        shade: gain on the albedo.
        uv: atlas coordinates of skin; of cloth and things, cycles of their pattern.
        uv_faces: rows of ``uv`` at the corners of each face.
        rest: of the hand's and the forearm's vertices, in the hand's rest frame.
    """

    vertices: Float[Tensor, "b v 3"]
    faces: Int[Tensor, "f 3"]
    part: Int[Tensor, " f"]
    normals: Float[Tensor, "b v 3"]
    shade: Float[Tensor, "b v 1"]
    uv: Float[Tensor, "b u 2"]
    uv_faces: Int[Tensor, "f 3"]
    rest: Float[Tensor, "w 3"]


class _Piece(NamedTuple):
    """A part before it is joined with the others."""

    vertices: Tensor  # (B, n, 3)
    normals: Tensor  # (B, n, 3)
    shade: Tensor  # (B, n, 1)
    uv: Tensor  # (B, u, 2)


@torch.no_grad()
def build(stage: Stage, props: Props) -> Meshes:
    """Return the meshes of a stage with its props.

    Args:
        stage: posed hands.
        props: one row per hand, on the same device.
    """
    hand, device = stage.hand, stage.posed.vertices.device
    topology = _topology(hand, device)
    own = _limb(hand, stage.posed, stage.pose[:, 0], props.arm, props.bend[:, 0])
    wears = own.present & (props.sleeve[:, :1] > 0)
    pieces = [own.hand, own.forearm, _sleeve(own.arm, wears, props), _thing(stage, props)]
    rows = props.other[:, 0].nonzero()[:, 0]
    pieces += _other(stage, props, rows) if len(rows) else []
    vertices, normals, shade, uv = (torch.cat(columns, 1) for columns in zip(*pieces, strict=True))
    rest = torch.cat([hand.template, topology.wrist.rest])
    # The other hand comes last: where none has one, there are no faces for it.
    count = len(topology.part) if len(rows) else topology.before_other
    faces, part, uv_faces = topology.faces, topology.part, topology.uv_faces
    return Meshes(vertices, faces[:count], part[:count], normals, shade, uv, uv_faces[:count], rest)


class _Topology(NamedTuple):
    """What all meshes of a hand model share."""

    faces: Int[Tensor, "f 3"]
    part: Int[Tensor, " f"]
    uv_faces: Int[Tensor, "f 3"]
    before_other: int
    wrist: Wrist
    spheres: SphereProxies


@lru_cache(maxsize=8)
def _topology(hand: HandModel, device: torch.device) -> _Topology:
    """Return the joined faces, in the order of :class:`Part`."""
    wrist = arms.find_wrist(hand, device)
    skin = hand.faces.cpu(), hand.uv_faces.cpu(), len(hand.template), len(hand.uv)
    arm = arms.forearm_faces()
    arm_uv = torch.arange(3 * len(arm)).view(-1, 3)
    forearm = arm, arm_uv, len(wrist.rest), 3 * len(arm)
    cloth = arms.sleeve_faces()
    rings = int(cloth.max() + 1) // SIDES
    sleeve = cloth, _unwrapped(rings), rings * SIDES, rings * (SIDES + 1)
    solid = solids.solid_faces()
    count = int(solid.max()) + 1
    faces, uv_faces, parts, vertices, uvs = [], [], [], 0, 0
    thing = solid, solid, count, count
    for part, piece in zip(Part, (skin, forearm, sleeve, thing, skin, forearm), strict=True):
        faces.append(piece[0] + vertices)
        uv_faces.append(piece[1] + uvs)
        parts.append(torch.full((len(piece[0]),), int(part)))
        vertices, uvs = vertices + piece[2], uvs + piece[3]
    return _Topology(
        faces=torch.cat(faces).to(device),
        part=torch.cat(parts).to(device),
        uv_faces=torch.cat(uv_faces).to(device),
        before_other=sum(len(piece) for piece in faces[: Part.OTHER_HAND]),
        wrist=wrist,
        spheres=SphereProxies(hand).to(device),
    )


def _unwrapped(rings: int) -> Int[Tensor, "f 3"]:
    """Return a tube's faces with a column more, so that a pattern closes behind."""
    faces = arms.grid_faces(rings, SIDES)
    row, column = faces // SIDES, faces % SIDES
    wraps = (column == 0) & (column.amax(1, keepdim=True) == SIDES - 1)
    return row * (SIDES + 1) + torch.where(wraps, SIDES, column)


class _Limb(NamedTuple):
    """A hand with its forearm."""

    hand: _Piece
    forearm: _Piece
    arm: Arm
    present: Bool[Tensor, "b 1"]


def _limb(hand: HandModel, posed: Hand, turn: Tensor, look: Tensor, bend: Tensor) -> _Limb:
    """Return a hand whose mesh ends at the wrist's cut if it has a forearm, and the forearm."""
    topology = _topology(hand, posed.vertices.device)
    wrist = topology.wrist
    normals = vertex_normals(posed.vertices, hand.faces)
    corners = hand.faces[wrist.face]
    ring, ring_normals = (
        (values[:, corners] * wrist.weights[..., None]).sum(2)
        for values in (posed.vertices, normals)
    )
    origin = ring.mean(1)
    bend = torch.cat([torch.zeros_like(bend[:, :1]), bend], dim=1)
    arm = Arm(origin, turn, (ring - origin[:, None]) @ turn, bend, look[:, 1:2])
    arm, end_on = _look_past(arm)
    present = (look[:, :1] > 0) & ~end_on
    tube = arms.forearm_vertices(arm)
    tube_normals = arms.grid_normals(tube)
    tube_normals[:, :2] = F.normalize(ring_normals, dim=-1)[:, None]
    # What is past the cut is laid into the plane of the cut: it would show where the wrist bends.
    outwards = ((posed.vertices - origin[:, None]) * turn[:, None, :, 0]).sum(-1, keepdim=True)
    pushed = outwards.relu() * wrist.past * present[:, None]
    vertices = posed.vertices - pushed * turn[:, None, :, 0]
    shade = _ambient_occlusion(topology.spheres, posed, normals)
    # Nor may normals turn into the cap there: they would draw a line along the seam.
    axis = wrist.past * present[:, None] * turn[:, None, :, 0]
    level = F.normalize(normals - (normals * axis).sum(-1, keepdim=True) * axis, dim=-1, eps=1e-6)
    skin = _Piece(vertices, level, shade, hand.uv.expand(len(vertices), -1, -1))
    lighter = (torch.linspace(0, 1.5, tube.shape[1]).clamp(max=1)).to(tube)[:, None]
    tone = (1 + look[:, 2, None, None] * lighter).repeat_interleave(SIDES, 1)
    forearm = _Piece(
        torch.where(present[:, None], tube.flatten(1, 2), origin[:, None]),
        tube_normals.flatten(1, 2),
        tone,
        wrist.uv.expand(len(tube), -1, -1),
    )
    return _Limb(skin, forearm, arm, present)


def _look_past(arm: Arm) -> tuple[Arm, Bool[Tensor, "b 1"]]:
    """Bend arms along the line of sight the other way; say which still point at the camera.

    One that comes towards the camera would hide the hand; of one that goes away the end is seen.
    """
    away = torch.tensor([1.0, 0.0, 0.0]).to(arm.bend)
    to_camera = -F.normalize(arm.origin, dim=-1)

    def towards(bend: Tensor) -> Tensor:
        direction = arm.frame @ axis_angle_to_matrix(bend) @ away
        return (direction * to_camera).sum(-1, keepdim=True)

    here, there = towards(arm.bend), towards(-arm.bend)
    flip = (here.abs() > 0.7) & (there.abs() < here.abs())
    bend = torch.where(flip, -arm.bend, arm.bend)
    end_on = torch.where(flip, there, here) > math.cos(math.radians(_END_ON))
    return arm._replace(bend=bend), end_on


def _ambient_occlusion(
    spheres: SphereProxies, posed: Hand, normals: Tensor
) -> Float[Tensor, "b v 1"]:
    """Return the share of their surroundings that vertices see past the hand's own spheres."""
    centres = spheres.mixture @ posed.joints
    # Written out: matrix products instead of (B, V, S, 3) differences.
    along = normals @ centres.mT - (normals * posed.vertices).sum(-1, keepdim=True)
    distance = torch.cdist(posed.vertices, centres).clamp(min=1e-4)
    hidden = along.relu() * spheres.radii.square() / distance**3
    return torch.exp(-1.2 * hidden.sum(-1, keepdim=True))


def _sleeve(arm: Arm, present: Tensor, props: Props) -> _Piece:
    _, start, slack, *_ = props.sleeve[:, :, None].unbind(1)
    rings, lengths = arms.sleeve_vertices(arm, start, slack, props.sleeve[:, 3:])
    normals = arms.grid_normals(rings).flatten(1, 2)
    vertices = torch.where(present[:, None], rings.flatten(1, 2), arm.origin[:, None])
    turn = torch.arange(SIDES + 1).to(rings) / SIDES
    cycles = props.cloth[:, 6:8, None, None]
    along = (cycles[:, 0] * lengths[..., None]).expand(-1, -1, SIDES + 1)
    around = (cycles[:, 1] * turn).expand_as(along)
    uv = torch.stack([along, around], dim=-1).flatten(1, 2)
    return _Piece(vertices, normals, torch.ones_like(vertices[..., :1]), uv)


def _thing(stage: Stage, props: Props) -> _Piece:
    """Return the thing, where it is held or beside the line of sight."""
    held, absent = props.thing[:, None] == 1, props.thing[:, None] == 0
    at = solids.hold(stage.posed.joints, props.thing_half[:, :1], props.thing_turn[:, :1] * 0.2)
    radius = torch.where(held, at.radius, props.thing_half[:, :1])
    half = torch.cat([radius, radius * props.thing_half[:, 1:2], props.thing_half[:, 2:]], dim=1)
    # What is before a hand hides a part of it, not all.
    half = torch.where(props.thing[:, None] == 2, 0.6 * half, half)
    ball = (props.thing_roundness[:, :1] > 0.9).expand_as(half)
    half = torch.where(ball, half[:, :1].expand_as(half), half)
    behind = props.thing[:, None] == 3
    gap = props.thing_place[:, 2:] * torch.where(behind, -1.0, 1.0)
    size = half.norm(dim=-1, keepdim=True)
    centre = solids.beside(stage.posed.vertices, props.thing_place[:, :2], gap, size)
    centre = torch.where(held, at.centre, centre)
    free = axis_angle_to_matrix(props.thing_turn)
    frame = torch.where(held[..., None], at.frame, free)
    local, normals = solids.superquadric(half, props.thing_roundness)
    vertices = torch.where(absent[:, None], 0.0, local @ frame.mT) + centre[:, None]
    cycles = props.thing_paint[:, None, 6:8] * local.new_tensor([1.0, 4.0])
    uv = torch.stack([local @ local.new_tensor(k) for k in _GRAIN], dim=-1) * cycles
    return _Piece(vertices, normals @ frame.mT, torch.ones_like(vertices[..., :1]), uv)


#: Directions that a thing's pattern varies along.
_GRAIN = ((0.25, 0.15, 1.0), (1.0, -0.4, 0.1))


def _other(stage: Stage, props: Props, rows: Int[Tensor, " n"]) -> list[_Piece]:
    """Return the other hand and its forearm, made only for the rows that have one."""
    hand = stage.hand
    own = stage.posed.vertices
    chosen = Props(*(column[rows] for column in props))
    pose = pose_from_angles(chosen.other_angles, hand.joint_axes)
    pose[:, 0] = chosen.other_turn
    posed = hand.decode(pose, chosen.other_betas, torch.zeros_like(pose[:, 0, 0]))
    middle = posed.vertices.mean(1, keepdim=True)
    posed = Hand(posed.vertices - middle, posed.joints - middle)
    limb = _limb(hand, posed, pose[:, 0], chosen.arm, chosen.bend[:, 1])
    # A left hand is a right one in a mirror; its faces then turn the other way.
    mirror = torch.ones_like(middle)
    mirror[:, 0, 0] -= 2 * chosen.other[:, 1]
    shift = _apart(own[rows], posed.vertices * mirror, limb.arm, mirror[:, 0], chosen.other_place)
    pieces = []
    for piece in (limb.hand, limb.forearm):
        count = piece.vertices.shape[1]
        vertices = own.mean(1, keepdim=True).repeat(1, count, 1)
        vertices[rows] = piece.vertices * mirror + shift[:, None]
        blank = torch.zeros_like(vertices)
        normals = blank.index_copy(0, rows, piece.normals * mirror)
        shade = blank[..., :1].index_copy(0, rows, piece.shade)
        pieces.append(_Piece(vertices, normals, shade, piece.uv[:1].expand(len(own), -1, -1)))
    return pieces


def _apart(
    own: Tensor, other: Tensor, arm: Arm, mirror: Tensor, place: Float[Tensor, "b 4"]
) -> Float[Tensor, "b 3"]:
    """Return where to put the other hand: towards its own forearm, so that this leaves the hand."""
    low, high = own.amin(1), own.amax(1)
    reach = (high - low + other.amax(1) - other.amin(1)) / 2
    away = arm.frame[:, :2, 0] * mirror[:, :2]
    angle = torch.atan2(away[:, 1], away[:, 0]) + place[:, 3]
    direction = torch.stack([angle.cos(), angle.sin()], dim=-1)
    touching = (reach[:, :2] / direction.abs().clamp(min=1e-3)).amin(1)
    kind, share, gap = place[:, 0].long(), place[:, 1], place[:, 2]
    # Behind, before, beside: how much of the way apart, from and to.
    nearest, farthest = (place.new_tensor(x)[kind] for x in ((0.35, 0.55, 0.85), (0.9, 0.9, 1.1)))
    distance = touching * torch.lerp(nearest, farthest, share)
    side = place.new_tensor((1.0, -1.0, 0.0))[kind]
    depth = side * (reach[:, 2] + 0.04 * gap)
    middle = (low + high) / 2 - (other.amax(1) + other.amin(1)) / 2
    shift = middle + torch.cat([direction * distance[:, None], depth[:, None]], dim=1)
    return torch.cat([shift[:, :2], shift[:, 2:].clamp(min=0.2)], dim=1)


__all__ = ["SKIN", "Meshes", "Part", "build"]
