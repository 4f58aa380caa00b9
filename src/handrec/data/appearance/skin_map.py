"""Where things are on the skin of a hand: palm and back, joints, creases, nails, veins.

All of it follows from rest positions, normals and joints, so any hand model has it, and both sides
of a border between islands of the atlas agree. The proportions are our own, after anatomical
drawings: no published measurement is behind them.
"""

from itertools import pairwise
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from handrec.hand.anatomy import DORSAL
from handrec.hand.base import HandModel
from handrec.hand.joints import FINGERS, JOINTS, PARENTS
from handrec.render.atlas import Atlas, bake_atlas

#: Wrist to middle knuckle of the hand in which all lengths below are given, metres.
_ADULT = 0.092

#: Flexion creases of the fingers: the bone's end joint, how far along the bone (1: at the joint),
#: an offset towards the tip in metres, and how deep.
_CREASES = (
    *((f"{f}_{j}", 1.0, shift, depth)
      for f in FINGERS[1:]
      for j, shift, depth in (("dip", -0.0015, 1.0), ("pip", -0.0022, 1.0), ("pip", 0.0009, 0.8))),
    *((f"{f}_pip", 0.43, shift, depth)
      for f in FINGERS[1:] for shift, depth in ((0.0, 0.9), (0.0028, 0.5))),
    ("thumb_ip", 1.0, -0.0018, 1.0), ("thumb_ip", 1.0, 0.0014, 0.6),
    ("thumb_mcp", 1.0, 0.001, 0.8), ("thumb_mcp", 1.0, 0.005, 0.5),
)  # fmt: skip

#: The lines of the palm as Bezier curves, and how deep: heart, head, life, fate. Coordinates run
#: along the hand (0 wrist, 1 middle knuckle) and across it (0 middle knuckle, positive towards the
#: thumb, in widths from index to little knuckle).
_PALM_LINES = (
    (((0.70, -0.78), (0.84, -0.45), (0.86, 0.05), (1.10, 0.20)), 0.9),
    (((0.81, 0.62), (0.78, 0.20), (0.60, -0.15), (0.44, -0.56)), 0.9),
    (((0.80, 0.62), (0.74, 0.12), (0.34, -0.06), (0.02, 0.16)), 1.0),
    (((0.22, -0.05), (0.40, -0.10), (0.60, -0.08), (0.80, -0.02)), 0.3),
)

#: Veins of the back, in the same coordinates: from the wrist to the webs, and arches between.
_VEINS = (
    ((-0.25, 0.20), (0.30, 0.35), (0.60, 0.35), (0.98, 0.20)),
    ((-0.25, 0.05), (0.35, 0.10), (0.55, -0.20), (0.98, -0.14)),
    ((-0.25, -0.25), (0.20, -0.35), (0.60, -0.40), (0.92, -0.46)),
    ((-0.25, 0.35), (0.10, 0.45), (0.45, 0.60), (0.85, 0.62)),
    ((0.50, 0.36), (0.62, 0.15), (0.58, 0.0), (0.66, -0.17)),
    ((0.70, -0.17), (0.60, -0.25), (0.66, -0.33), (0.56, -0.42)),
)


class SkinMap(NamedTuple):
    """What the painter knows of each painted texel; lengths as if every hand were one adult's.

    Attributes:
        points: rest position, metres.
        anchors: the same of the vertices, which do not depend on the size of the atlas.
        grain: position in the frame of its finger or palm: along, across, up, metres.
        dorsal: cosine to the dorsal side about the nearest bone: 1 on the back, -1 on the palm;
            not below -0.15 on the forearm, which has no palm.
        crease: signed distance to the nearest flexion crease, metres, and how deep it is there.
        lines: the same for each of the lines of the palm.
        vein: the same for the nearest vein of the back.
        knuckle: signed distance along the finger from the nearest dorsal joint and across it,
            metres, and how wrinkled the skin is there.
        flush: how much a texel belongs to the knuckles, the fingertips, the pads of the palm.
        nail: position on the nail plate: along (-1 at the cuticle, 1 at the tip) and across (-1 to
            1); far outside where there is none.
        pitch: metres between texels.
    """

    points: Float[Tensor, "n 3"]
    anchors: Float[Tensor, "v 3"]
    grain: Float[Tensor, "n 3"]
    dorsal: Float[Tensor, " n"]
    crease: Float[Tensor, "2 n"]
    lines: Float[Tensor, "4 2 n"]
    vein: Float[Tensor, "2 n"]
    knuckle: Float[Tensor, "3 n"]
    flush: Float[Tensor, "3 n"]
    nail: Float[Tensor, "2 n"]
    pitch: float


class _Bones(NamedTuple):
    """The texels as the skeleton sees them.

    Attributes:
        points: metres from the wrist, of an adult's hand.
        joints: the same.
        share: of the bone that ends at each joint (0: the forearm), sums to 1.
        along: unit direction of each bone.
        dorsal: unit dorsal direction of each bone, at a right angle to it.
        height: cosine to the dorsal side.
    """

    points: Float[Tensor, "n 3"]
    joints: Float[Tensor, "21 3"]
    share: Float[Tensor, "n 21"]
    along: Float[Tensor, "21 3"]
    dorsal: Float[Tensor, "21 3"]
    height: Float[Tensor, " n"]

    def belongs(self, finger: str, first: int = 2) -> Float[Tensor, " n"]:
        """Return the share of a finger's bones, the ``first`` of its four on."""
        base = 4 * FINGERS.index(finger)
        return self.share[:, base + first : base + 5].sum(1)

    def from_joint(self, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """Return the position from a joint: along both its bones, across, dorsal."""
        joint = JOINTS.index(name)
        after = min(joint + 1, 4 * ((joint - 1) // 4) + 4)
        along = F.normalize(self.along[joint] + self.along[after], dim=0)
        across = torch.linalg.cross(along, self.dorsal[joint])
        offset = self.points - self.joints[joint]
        return offset @ along, offset @ across, offset @ self.dorsal[joint]


_MAPPED: WeakKeyDictionary[HandModel, dict[tuple[int, torch.device], SkinMap]] = WeakKeyDictionary()


def map_skin(hand: HandModel, size: int) -> SkinMap:
    """Return the map of a hand's painted texels (``Atlas.texels``), made once per device."""
    mapped = _MAPPED.setdefault(hand, {})
    key = (size, hand.template.device)
    if key not in mapped:
        with torch.inference_mode(mode=False), torch.no_grad():
            fields: dict[str, Any] = _map(hand, bake_atlas(hand, size))._asdict()
            tensors = {k: x.to(key[1]) for k, x in fields.items() if isinstance(x, Tensor)}
            mapped[key] = SkinMap(**{**fields, **tensors})
    return mapped[key]


def _map(hand: HandModel, atlas: Atlas) -> SkinMap:
    pose = torch.eye(3).to(hand.template).expand(1, 16, 3, 3)
    zero = hand.template.new_zeros(1, 10)
    joints = hand.decode(pose, zero, zero[:, :3]).joints[0].detach().cpu().clone()
    points, normals = (
        x.flatten(1)[:, atlas.texels].T.cpu() for x in (atlas.position, atlas.normal)
    )
    scale = _ADULT / float((joints[JOINTS.index("middle_mcp")] - joints[0]).norm())
    bones = _bones((points - joints[0]) * scale, normals, (joints - joints[0]) * scale)
    palm, width = _palm_coordinates(bones)
    palmar, dorsal = step(bones.height, 0.1, -0.35), step(bones.height, -0.1, 0.35)
    arm = step(bones.points @ bones.along[0], 0.006, -0.022)
    hand_plane = 1 - sum(bones.belongs(finger) for finger in FINGERS[1:])
    off_thumb = 1 - bones.belongs("thumb", 3)
    lines = [
        torch.stack([distance, taper * depth * palmar * off_thumb])
        for control, depth in _PALM_LINES
        for distance, taper in [_curve(palm, width, control)]
    ]
    return SkinMap(
        points=bones.points.contiguous(),
        anchors=(hand.template.detach().cpu() - joints[0]) * scale,
        grain=_grain(bones),
        dorsal=torch.maximum(bones.height, 0.85 * arm - 1),
        crease=_creases(bones, palmar),
        lines=torch.stack(lines),
        vein=_veins(palm, width, dorsal * hand_plane * off_thumb),
        knuckle=_knuckles(bones, dorsal),
        flush=_flush(bones, palm, palmar, dorsal),
        nail=_nails(bones),
        pitch=atlas.pitch * scale,
    )


def _bones(points: Tensor, normals: Tensor, joints: Tensor) -> _Bones:
    start, end = joints[list(PARENTS)], joints.clone()
    start[0], end[0] = 0.0, -joints[JOINTS.index("middle_mcp")]  # the forearm goes on the other way
    along = F.normalize(end - start, dim=1)
    along[0] = -along[0]
    fingers = [joints.new_tensor(DORSAL[f]) for f in FINGERS for _ in range(4)]
    # The ball of the thumb is palm all round its metacarpal, up to where the hand's back begins.
    fingers[:2] = [joints.new_tensor((0.35, 0.85, 0.4))] * 2
    dorsal = torch.stack([joints.new_tensor((0.0, 1.0, 0.0)), *fingers])
    dorsal = F.normalize(dorsal - (dorsal * along).sum(1, keepdim=True) * along, dim=1)
    radial, share = [], []
    for a, b in zip(start, end, strict=True):
        t = ((points - a) @ (b - a) / (b - a).square().sum()).clamp(0, 1)
        offset = points - a - t[:, None] * (b - a)
        radial.append(offset)
        share.append(offset.norm(dim=1))
    weights = torch.softmax(-torch.stack(share, dim=1) / 0.002, dim=1)
    offsets = torch.stack(radial, dim=1)
    # About the bone: the part along it, beyond the last joint, says nothing of the side.
    offsets = offsets - (offsets * along).sum(-1, keepdim=True) * along
    side = (F.normalize(offsets, dim=-1, eps=1e-9) * dorsal).sum(-1)
    facing = normals @ dorsal.T
    height = (weights * (side + facing) / 2).sum(1)
    return _Bones(points, joints, weights, along, dorsal, height)


def _palm_coordinates(bones: _Bones) -> tuple[Float[Tensor, "n 2"], Float[Tensor, " 2"]]:
    """Return positions in the plane of the palm, metres, and the units of the curves' points."""
    index, middle, little = (
        bones.joints[JOINTS.index(f"{f}_mcp")] for f in FINGERS[1::1] if f != "ring"
    )
    along = F.normalize(middle, dim=0)
    across = index - little
    across = F.normalize(across - (across @ along) * along, dim=0)
    axes = torch.stack([along, across], dim=1)
    units = torch.stack([middle @ along, (index - little) @ across])
    origin = torch.stack([units.new_tensor(0.0), middle @ across])
    return bones.points @ axes - origin, units


def _curve(
    plane: Float[Tensor, "n 2"],
    units: Float[Tensor, " 2"],
    control: tuple[tuple[float, float], ...],
) -> tuple[Tensor, Tensor]:
    """Return the signed distance to a Bezier curve, and 1 along it, falling to 0 at its ends."""
    t = torch.linspace(0, 1, 33)[:, None]
    a, b, c, d = (units * units.new_tensor(point) for point in control)
    line = (1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * b + 3 * (1 - t) * t**2 * c + t**3 * d
    best = torch.full((len(plane),), torch.inf)
    place, sign = torch.zeros_like(best), torch.zeros_like(best)
    for i, (start, end) in enumerate(pairwise(line)):
        segment, offset = end - start, plane - start
        s = (offset @ segment / segment.square().sum()).clamp(0, 1)
        distance = (offset - s[:, None] * segment).norm(dim=1)
        nearer = distance < best
        best = torch.where(nearer, distance, best)
        place = torch.where(nearer, (i + s) / 32, place)
        cross = segment[0] * offset[:, 1] - segment[1] * offset[:, 0]
        sign = torch.where(nearer, cross.sign(), sign)
    taper = step(place, 0.0, 0.06) * step(place, 1.0, 0.85)
    return best * sign, taper


def _nearest(distances: list[Tensor], strengths: list[Tensor]) -> Float[Tensor, "2 n"]:
    """Return the signed distance to whichever is nearest, and its strength."""
    # What has no strength here is far away.
    distance, strength = torch.stack(distances), torch.stack(strengths)
    rows = (distance.abs() + 0.02 * (strength < 0.05)).argmin(0, keepdim=True)
    return torch.cat([distance.gather(0, rows), strength.gather(0, rows)])


def _creases(bones: _Bones, palmar: Tensor) -> Float[Tensor, "2 n"]:
    distances, strengths = [], []
    for name, fraction, shift, depth in _CREASES:
        finger = name.split("_")[0]
        along, across, _ = bones.from_joint(name)
        joint = JOINTS.index(name)
        length = (bones.joints[joint] - bones.joints[PARENTS[joint]]).norm()
        bow = 12.0 * across.square() * (1 if fraction == 1 else -1)
        distances.append(along + (1 - fraction) * length - shift - bow)
        strengths.append(depth * palmar * step(bones.belongs(finger), 0.2, 0.8))
    x = bones.points @ bones.along[0]
    wrist = [-x - shift for shift in (0.004, 0.012)]
    inner = palmar * step(bones.points @ bones.along[0], 0.03, 0.01)
    return _nearest([*distances, *wrist], [*strengths, 0.8 * inner, 0.5 * inner])


def _veins(plane: Tensor, units: Tensor, dorsal: Tensor) -> Float[Tensor, "2 n"]:
    curves = [_curve(plane, units, control) for control in _VEINS]
    return _nearest([d for d, _ in curves], [dorsal * t for _, t in curves])


def _knuckles(bones: _Bones, dorsal: Tensor) -> Float[Tensor, "3 n"]:
    """Return the offsets from the nearest dorsal joint and how wrinkled the skin is there."""
    rows = []
    for finger in FINGERS:
        wrinkled = {"mcp": 0.35, "pip": 1.0, "dip": 0.55, "ip": 0.9}
        for joint, amount in wrinkled.items():
            name = f"{finger}_{joint}"
            if name in JOINTS:
                along, across, _ = bones.from_joint(name)
                reach = 0.0055 if joint in ("pip", "mcp") else 0.0035
                near = torch.exp(-((along / reach) ** 2) - (across / 0.011) ** 2)
                own = bones.belongs(finger, 1)
                rows.append(torch.stack([along, across, amount * near * dorsal * own]))
    stacked = torch.stack(rows)
    best = stacked[:, 2].argmax(0)[None, None].expand(1, 3, -1)
    return stacked.gather(0, best)[0]


def _flush(bones: _Bones, plane: Tensor, palmar: Tensor, dorsal: Tensor) -> Float[Tensor, "3 n"]:
    knuckle, tip = torch.zeros_like(palmar), torch.zeros_like(palmar)
    pads = torch.zeros_like(palmar)
    for finger in FINGERS:
        own = bones.belongs(finger, 1)
        names = [n for n in JOINTS if n.startswith(finger) and not n.endswith(("cmc", "tip"))]
        for name in names:
            square = (bones.points - bones.joints[JOINTS.index(name)]).square().sum(1)
            knuckle += own * dorsal * torch.exp(-square / 0.011**2)
        end = bones.joints[JOINTS.index(f"{finger}_tip")]
        tip += bones.belongs(finger) * torch.exp(-(bones.points - end).square().sum(1) / 0.011**2)
        base = bones.joints[JOINTS.index(f"{finger}_mcp")]
        pads += palmar * torch.exp(-(bones.points - base).square().sum(1) / 0.016**2)
    index, little = (bones.joints[JOINTS.index(f"{f}_mcp")] for f in ("index", "little"))
    hypothenar = 0.45 * little + 0.1 * (little - index)
    pads += palmar * torch.exp(-(bones.points - hypothenar).square().sum(1) / 0.024**2)
    return torch.stack([knuckle, tip, pads]).clamp(0, 1)


def _nails(bones: _Bones) -> Float[Tensor, "2 n"]:
    nail = torch.full((2, len(bones.points)), 9.0)
    for finger in FINGERS:
        joint = JOINTS.index(f"{finger}_tip")
        offset = bones.points - bones.joints[joint - 1]
        axes = bones.along[joint], torch.linalg.cross(bones.along[joint], bones.dorsal[joint])
        along, across = (offset @ axis for axis in axes)
        own = bones.share[:, joint] > 0.5
        end = torch.quantile(along[own], 0.995)
        middle = own & (along > 0.35 * end) & (along < 0.75 * end)
        radius = torch.quantile(across[middle].abs(), 0.9)
        half = 0.76 * radius
        # The plate ends just short of the fingertip and is a little longer than wide.
        place = (along - (end - 0.2 * radius - 1.12 * half)) / (1.12 * half)
        on = own & (bones.height > 0)
        nail = torch.where(on, torch.stack([place, across / half]), nail)
    return nail


def _grain(bones: _Bones) -> Float[Tensor, "n 3"]:
    """Return positions in the frame of the finger a point is on, or of the palm."""
    palm = bones.along[JOINTS.index("middle_mcp")], bones.dorsal[0]
    grain = bones.points @ _axes(*palm)
    for finger in FINGERS:
        joint = JOINTS.index(f"{finger}_mcp") + 1
        turned = bones.points @ _axes(bones.along[joint], bones.dorsal[joint])
        grain = torch.where((bones.belongs(finger) > 0.5)[:, None], turned, grain)
    return grain


def _axes(along: Float[Tensor, " 3"], up: Float[Tensor, " 3"]) -> Float[Tensor, "3 3"]:
    """Return columns along, across and up, at right angles."""
    across = F.normalize(torch.linalg.cross(along, up), dim=0)
    return torch.stack([along, across, torch.linalg.cross(across, along)], dim=1)


def step(x: Tensor, low: float, high: float) -> Tensor:
    """Return 0 below ``low``, 1 above ``high`` and a smooth step between (or the other way)."""
    t = ((x - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)
