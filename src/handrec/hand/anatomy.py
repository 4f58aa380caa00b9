"""What a hand can do: joint angles, their limits, and parts that must not run into each other."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from handrec.geometry.mesh import face_normals, vertex_normals
from handrec.hand.base import HandModel
from handrec.hand.joints import FINGERS, JOINTS, KINEMATIC_JOINTS, KINEMATIC_PARENTS, PARENTS
from handrec.types import Hand

#: Direction of the back of each finger in the common rest frame (see ``HandModel``). From the
#: joint frames of the rig behind OpenHand, whose axes follow the WebXR convention (y dorsal).
DORSAL = {
    "thumb": (0.56, 0.31, 0.76),
    "index": (0.0, 1.0, 0.0),
    "middle": (0.0, 0.99, -0.07),
    "ring": (0.0, 0.98, -0.18),
    "little": (0.0, 0.95, -0.30),
}

#: Lower and upper limit of (twist, spread, bend) in degrees, from the rest pose of OpenHand.
#: Spread is positive towards the little finger, bend towards the palm. Fingers: bends and MCP
#: spreads are those published with RenderIH (ICCV 2023), mirrored per finger, MCP bends raised to
#: manotorch's 90; a hinge's 5 degrees of twist and spread are S2HAND's (CVPR 2021). The thumb's
#: lie between these three, and all MCP twists are our choice: what our gestures need.
LIMITS = {
    "thumb_cmc": ((-30, 30), (-30, 35), (-25, 45)),
    "thumb_mcp": ((-10, 10), (-10, 10), (-15, 60)),
    "thumb_ip": ((-5, 5), (-5, 5), (-20, 90)),
    "index_mcp": ((-10, 10), (-25, 15), (-25, 90)),
    "middle_mcp": ((-10, 10), (-15, 15), (-25, 90)),
    "ring_mcp": ((-10, 10), (-15, 25), (-25, 90)),
    "little_mcp": ((-15, 15), (-20, 30), (-25, 90)),
    "pip": ((-5, 5), (-5, 5), (-8, 110)),
    "dip": ((-5, 5), (-5, 5), (-8, 90)),
}


def anatomical_axes(joints: Float[Tensor, "21 3"]) -> Float[Tensor, "15 3 3"]:
    """Return the twist, spread and bend axes (rows) of kinematic joints 1 to 15.

    Convention:
        Twist runs along the bone at rest; spread is palmar, at a right angle to the bone; bend is
        ``twist x spread``. A positive bend closes the finger towards the palm, a positive spread
        moves it towards the little finger's side.

    Args:
        joints: the rest joints in the common rest frame, metres.
    """
    axes = []
    for name in KINEMATIC_JOINTS[1:]:
        start = JOINTS.index(name)
        twist = F.normalize(joints[start + 1] - joints[start], dim=0)
        palmar = -joints.new_tensor(DORSAL[name.split("_")[0]])
        spread = F.normalize(palmar - (palmar @ twist) * twist, dim=0)
        axes.append(torch.stack([twist, spread, torch.linalg.cross(twist, spread)]))
    return torch.stack(axes)


def joint_limits() -> Float[Tensor, "15 3 2"]:
    """Return the limits of (twist, spread, bend) of kinematic joints 1 to 15, radians."""
    rows = [LIMITS.get(name, LIMITS.get(name.split("_")[1])) for name in KINEMATIC_JOINTS[1:]]
    return torch.tensor(rows) * (math.pi / 180)


def joint_angles(
    rotations: Float[Tensor, "b j 3 3"], axes: Float[Tensor, "15 3 3"]
) -> Float[Tensor, "b 15 3"]:
    """Return (twist, spread, bend) of each joint, radians.

    Convention:
        In a joint's frame ``R = R_bend R_spread R_twist``: the bone twists about itself, swings
        sideways, then bends about an axis that the parent bone holds. Twist and bend are in
        (-pi, pi], spread in [-pi/2, pi/2]; singular at a spread of 90 degrees.

    Args:
        rotations: relative to the parent, of the 15 joints or a full pose of 16 (the wrist's is
            left out).
        axes: see :func:`anatomical_axes`.
    """
    with torch.autocast(axes.device.type, enabled=False):
        local = axes @ rotations[:, -15:] @ axes.mT
    twist = torch.atan2(local[..., 2, 1], local[..., 2, 2])
    forward = torch.hypot(local[..., 0, 0], local[..., 1, 0])
    spread = torch.atan2(-local[..., 2, 0], forward)
    bend = torch.atan2(local[..., 1, 0], local[..., 0, 0])
    return torch.stack([twist, spread, bend], dim=-1)


def pose_from_angles(
    angles: Float[Tensor, "b 15 3"], axes: Float[Tensor, "15 3 3"]
) -> Float[Tensor, "b 16 3 3"]:
    """Return the full pose with the given (twist, spread, bend), the wrist at identity.

    The inverse of :func:`joint_angles`.
    """
    cos, sin = angles.cos().unbind(-1), angles.sin().unbind(-1)
    (ct, cs, cb), (st, ss, sb) = cos, sin
    rows = [
        torch.stack([cb * cs, cb * ss * st - sb * ct, cb * ss * ct + sb * st], dim=-1),
        torch.stack([sb * cs, sb * ss * st + cb * ct, sb * ss * ct - cb * st], dim=-1),
        torch.stack([-ss, cs * st, cs * ct], dim=-1),
    ]
    with torch.autocast(axes.device.type, enabled=False):
        rotations = axes.mT @ torch.stack(rows, dim=-2) @ axes
    wrist = torch.eye(3, dtype=angles.dtype, device=angles.device).expand(len(angles), 1, 3, 3)
    return torch.cat([wrist, rotations], dim=1)


def limit_excess(
    angles: Float[Tensor, "b 15 3"], limits: Float[Tensor, "15 3 2"]
) -> Float[Tensor, "b 15 3"]:
    """Return by how much each angle is outside its limits, radians, 0 inside."""
    return F.relu(limits[..., 0] - angles) + F.relu(angles - limits[..., 1])


#: Where spheres sit along the bone that ends at a joint of that kind: 0 its start, 1 its end.
SPHERE_PLACES = {
    "mcp": (0.45, 0.72, 0.95),
    "pip": (0.3, 0.55, 0.8, 1.0),
    "dip": (0.35, 0.7, 1.0),
    "tip": (0.35, 0.7),
    "thumb_cmc": (),
    "thumb_mcp": (0.5, 1.0),
    "thumb_ip": (0.35, 0.7, 1.0),
    "thumb_tip": (0.35, 0.7),
}


@torch.no_grad()
def rest_hand(hand: HandModel) -> Hand:
    """Return a batch of one hand at rest with zero shape."""
    zero = hand.template.new_zeros(1, 10)
    identity = torch.eye(3, device=zero.device).expand(1, 16, 3, 3)
    return hand.decode(identity, zero, zero[:, :3])


class SphereProxies(nn.Module):
    """Spheres inside the hand that must not run into each other.

    Centres are fixed mixtures of the 21 joints, so they follow any pose and shape, of any hand
    model, from the joints alone. Each sphere is the largest one inside the skin at rest, so what
    they report is a true penetration of the skin (not every shallow one). Pairs of one bone, of
    neighbouring bones, and pairs that already touch at rest are left out.

    Attributes (buffers):
        mixture: ``(S, 21)`` centres from joints.
        radii: ``(S,)`` at zero shape, metres.
        pairs: ``(2, P)`` spheres that are compared.
    """

    mixture: Float[Tensor, "s 21"]
    radii: Float[Tensor, " s"]
    pairs: Int[Tensor, "2 p"]

    def __init__(self, hand: HandModel) -> None:
        super().__init__()
        vertices, joints = rest_hand(hand)
        rows, owners = [], []
        for end, name in enumerate(JOINTS[1:], start=1):
            for place in SPHERE_PLACES.get(name, SPHERE_PLACES.get(name.split("_")[1], ())):
                row = torch.zeros(len(JOINTS))
                row[PARENTS[end]], row[end] = 1 - place, place
                rows.append(row)
                owners.append(end)
        mixture = torch.stack(rows).to(joints)
        centres = mixture @ joints[0]
        radii = torch.cdist(centres, vertices[0]).amin(1)
        gaps = torch.cdist(centres, centres) - radii[:, None] - radii
        apart = torch.tensor([[_apart(a, b) for b in owners] for a in owners]).to(gaps.device)
        pairs = torch.nonzero(torch.triu(apart & (gaps > 0), diagonal=1)).T
        for key, buffer in (("mixture", mixture), ("radii", radii), ("pairs", pairs)):
            self.register_buffer(key, buffer, persistent=False)

    def penetration(self, joints: Float[Tensor, "b 21 3"]) -> Float[Tensor, "b p"]:
        """Return how deep the spheres of each pair run into each other, metres, 0 when apart."""
        with torch.autocast(joints.device.type, enabled=False):
            centres = self.mixture @ joints.float()
        first, second = self.pairs
        offset = centres[:, first] - centres[:, second]
        # Centres may meet: keep the gradient of the norm finite.
        distance = (offset.square().sum(-1) + 1e-12).sqrt()
        return F.relu(self.radii[first] + self.radii[second] - distance)


def _apart(first: int, second: int) -> bool:
    """Say whether the bones that end at two joints are neither equal nor neighbours."""
    if first == second or PARENTS[first] == second or PARENTS[second] == first:
        return False
    palm = {JOINTS.index(f"{finger}_mcp") for finger in FINGERS[1:]}
    return not {first, second} <= palm


#: A vertex deeper than this in another part is not found, metres: no part is twice as thick.
DEEPEST = 0.02


class Parts(NamedTuple):
    """The parts of a surface that can run into each other.

    Attributes:
        part: of each vertex.
        apart: whether two parts neither are the same nor hang together.
    """

    part: Int[Tensor, " v"]
    apart: Bool[Tensor, "p p"]

    def cpu(self) -> "Parts":
        """Return the parts on the CPU."""
        return Parts(self.part.cpu(), self.apart.cpu())


def hand_parts(hand: HandModel) -> Parts:
    """Return palm (0) and phalanges (1 to 15, as kinematic joints) by the nearest bone at rest.

    A part hangs together with the part it grows out of.
    """
    vertices, joints = rest_hand(hand)
    distances, owners = [], []
    for end in range(1, len(JOINTS)):
        name = JOINTS[PARENTS[end]]
        start, bone = joints[0, PARENTS[end]], joints[0, end] - joints[0, PARENTS[end]]
        along = ((vertices[0] - start) @ bone / bone.square().sum()).clamp(0, 1)
        distances.append((vertices[0] - start - along[:, None] * bone).norm(dim=1))
        owners.append(KINEMATIC_JOINTS.index(name))
    part = torch.tensor(owners, device=joints.device)[torch.stack(distances).argmin(0)]
    apart = ~torch.eye(len(KINEMATIC_JOINTS), dtype=torch.bool, device=joints.device)
    for child, parent in enumerate(KINEMATIC_PARENTS[1:], start=1):
        apart[child, parent] = apart[parent, child] = False
    return Parts(part, apart)


@torch.no_grad()
def vertex_penetration(
    vertices: Float[Tensor, "b v 3"], faces: Int[Tensor, "f 3"], parts: Parts
) -> Float[Tensor, "b v"]:
    """Return how deep each vertex is inside of parts that its own is apart from, metres, else 0.

    A vertex is inside if these parts wind about it by more than half a turn (A. Jacobson et al.,
    "Robust Inside-Outside Segmentation Using Generalized Winding Numbers", SIGGRAPH 2013): they
    need not be closed where they were cut from the rest. Its depth is its distance from the plane
    of the nearest of their faces that it lies behind. Not looked at are vertices that are farther
    than :data:`DEEPEST` from each part or clearly before its nearest vertex's tangent plane. For
    evaluation; no gradient.

    Args:
        vertices: metres, any frame.
        faces: counter-clockwise seen from outside.
        parts: of the surface.
    """
    # About their own middle: distances are taken by a matrix product, which loses digits far off.
    vertices = vertices.float() - vertices.float().mean(1, keepdim=True)
    apart = parts.apart[parts.part][:, parts.part]
    # A face belongs to the part of its first corner.
    counts = apart[:, faces[:, 0]]
    normals = vertex_normals(vertices, faces)
    depth = torch.zeros_like(vertices[..., 0])
    for points, normal, found in zip(vertices, normals, depth, strict=True):
        rows = _suspects(points, normal, parts)
        inside = rows[_winding(points[rows], points, faces, counts[rows]) > 0.5]
        found[inside] = _depth(points[inside], points, faces, counts[inside])
    return depth


def _suspects(
    points: Float[Tensor, "v 3"], normals: Float[Tensor, "v 3"], parts: Parts
) -> Int[Tensor, " n"]:
    """Return the vertices that may be inside of a part: all others are clearly outside."""
    order = parts.part.argsort()
    sizes = torch.bincount(parts.part, minlength=len(parts.apart)).tolist()
    suspect = torch.zeros_like(parts.part, dtype=torch.bool)
    blocks = torch.cdist(points, points[order]).split(sizes, dim=1)
    for part, (block, members) in enumerate(zip(blocks, order.split(sizes), strict=True)):
        if not len(members):
            continue
        distance, nearest = block.min(1)
        nearest = members[nearest]
        above = ((points - points[nearest]) * normals[nearest]).sum(1)
        close = (distance < DEEPEST) & (above < distance / 5)
        suspect |= close & parts.apart[part][parts.part]
    return suspect.nonzero()[:, 0]


def _winding(
    places: Float[Tensor, "n 3"],
    vertices: Float[Tensor, "v 3"],
    faces: Int[Tensor, "f 3"],
    counts: Bool[Tensor, "n f"],
) -> Float[Tensor, " n"]:
    """Return how often faces wind about points: solid angles (van Oosterom and Strackee) / 4 pi.

    With corners a, b, c seen from a point p, ``tan(angle / 2) = a . (b x c) / (|a||b||c| + (a . b)
    |c| + (b . c) |a| + (c . a) |b|)``. The volume is linear in p, and the products follow from
    lengths. A face that the point is a corner of is seen edge on: it does not count.
    """
    a, b, c = vertices[faces].unbind(1)
    twice_area = torch.linalg.cross(b - a, c - a)
    volume = (a * twice_area).sum(1) - places @ twice_area.mT
    squares = torch.cdist(places, vertices, compute_mode="donot_use_mm_for_euclid_dist").square()
    sa, sb, sc = (squares[:, corner] for corner in faces.unbind(1))
    la, lb, lc = sa.sqrt(), sb.sqrt(), sc.sqrt()
    ab, bc, ca = ((x - y).square().sum(1) for x, y in ((a, b), (b, c), (c, a)))
    lengths = la * lb * lc
    products = (sa + sb - ab) * lc + (sb + sc - bc) * la + (sc + sa - ca) * lb
    angles = 2 * torch.atan2(volume, lengths + products / 2)
    return (angles * (counts & (lengths > 0))).sum(1) / (4 * math.pi)


def _depth(
    places: Float[Tensor, "n 3"],
    vertices: Float[Tensor, "v 3"],
    faces: Int[Tensor, "f 3"],
    counts: Bool[Tensor, "n f"],
) -> Float[Tensor, " n"]:
    """Return the distance of points from the plane of the nearest face that they lie behind."""
    centres = vertices[faces].mean(1)
    normals = F.normalize(face_normals(vertices, faces), dim=1, eps=1e-20)
    behind = (centres * normals).sum(1) - places @ normals.mT
    distance = torch.cdist(places, centres).masked_fill(~counts | (behind <= 0), torch.inf)
    return behind.gather(1, distance.argmin(1, keepdim=True))[:, 0].relu()
