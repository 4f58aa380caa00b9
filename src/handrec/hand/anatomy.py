"""What a hand can do: joint angles, their limits, and parts that must not run into each other."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from handrec.hand.joints import JOINTS, KINEMATIC_JOINTS

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
#: Spread is positive towards the little finger, bend towards the palm. Bends follow the ranges
#: published with RenderIH (ICCV 2023); spreads keep its ranges for the MCP joints; the tolerances
#: of twist, of hinges sideways and of the thumb are between those of S2HAND (CVPR 2021) and of
#: manotorch's anatomy loss, widened where our gestures need it (our choice).
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
    rotations = axes.mT @ torch.stack(rows, dim=-2) @ axes
    wrist = torch.eye(3, dtype=angles.dtype, device=angles.device).expand(len(angles), 1, 3, 3)
    return torch.cat([wrist, rotations], dim=1)


def limit_excess(
    angles: Float[Tensor, "b 15 3"], limits: Float[Tensor, "15 3 2"]
) -> Float[Tensor, "b 15 3"]:
    """Return by how much each angle is outside its limits, radians, 0 inside."""
    return F.relu(limits[..., 0] - angles) + F.relu(angles - limits[..., 1])
