"""Linear blend skinning in float32, for any number of vertices."""

from collections.abc import Sequence
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from handrec.hand.joints import (
    JOINTS,
    KINEMATIC_JOINTS,
    KINEMATIC_PARENTS,
    KINEMATIC_THEN_TIPS,
    PARENTS,
    TIPS,
    order,
)

_TREE_FROM_JOINTS = order(JOINTS, KINEMATIC_THEN_TIPS)
_JOINTS_FROM_TREE = order(KINEMATIC_THEN_TIPS, JOINTS)
_TREE_PARENTS = KINEMATIC_PARENTS + tuple(
    KINEMATIC_JOINTS.index(JOINTS[PARENTS[JOINTS.index(tip)]]) for tip in TIPS
)


def forward_kinematics(
    rotations: Float[Tensor, "b k 3 3"],
    joints: Float[Tensor, "b k 3"],
    parents: Sequence[int],
) -> tuple[Float[Tensor, "b k 3 3"], Float[Tensor, "b k 3"]]:
    """Return the global rotation and the posed position of each joint.

    Args:
        rotations: relative to the parent; the root's turns everything about the root joint.
        joints: positions at rest, metres.
        parents: of each joint, -1 for the root; a parent comes before its children.
    """
    order = [0]
    turns, positions = rotations[:, order], joints[:, order]
    for level in _levels(tuple(parents)):
        above = [parents[joint] for joint in level]
        slots = [order.index(parent) for parent in above]
        offsets = joints[:, level] - joints[:, above]
        moved = positions[:, slots] + (turns[:, slots] @ offsets[..., None]).squeeze(-1)
        positions = torch.cat([positions, moved], dim=1)
        turns = torch.cat([turns, turns[:, slots] @ rotations[:, level]], dim=1)
        order += level
    back = [order.index(joint) for joint in range(len(parents))]
    return turns[:, back], positions[:, back]


@cache
def _levels(parents: tuple[int, ...]) -> list[list[int]]:
    """Return the joints below the root by their depth: a level can be posed at once."""
    depth = [0] * len(parents)
    for joint, parent in enumerate(parents[1:], start=1):
        depth[joint] = depth[parent] + 1
    return [
        [joint for joint, at in enumerate(depth) if at == level]
        for level in range(1, max(depth) + 1)
    ]


def posed_joints(
    pose: Float[Tensor, "b 16 3 3"], rest: Float[Tensor, "21 3"]
) -> Float[Tensor, "b 21 3"]:
    """Return the 21 joints in a pose, the tips carried rigidly by the last phalanges.

    Far cheaper than skinning; tips differ from those on the skin by what the skin deforms there.

    Args:
        pose: absolute rotations of the 16 kinematic joints.
        rest: the joints at rest, metres.
    """
    tips = torch.eye(3, device=pose.device).expand(len(pose), 5, 3, 3)
    joints = rest[_TREE_FROM_JOINTS].expand(len(pose), -1, -1)
    with torch.autocast(pose.device.type, enabled=False):
        rotations = torch.cat([pose.float(), tips], dim=1)
        _, positions = forward_kinematics(rotations, joints, _TREE_PARENTS)
    return positions[:, _JOINTS_FROM_TREE]


def skin(
    vertices: Float[Tensor, "b v 3"],
    joints: Float[Tensor, "b k 3"],
    rotations: Float[Tensor, "b k 3 3"],
    weights: Float[Tensor, "v k"],
    parents: Sequence[int],
) -> tuple[Float[Tensor, "b v 3"], Float[Tensor, "b k 3"]]:
    """Return the posed vertices and joints: every vertex moves with its weighted bones.

    Args:
        vertices: at rest, after shaping, metres.
        joints: at rest, after shaping, metres.
        rotations: see :func:`forward_kinematics`.
        weights: of each vertex on each joint, summing to 1.
        parents: see :func:`forward_kinematics`.
    """
    with torch.autocast(vertices.device.type, enabled=False):
        rotations, joints, vertices = rotations.float(), joints.float(), vertices.float()
        turns, positions = forward_kinematics(rotations, joints, parents)
        # x -> R (x - J) + P, blended as a 3 x 4 matrix per vertex.
        shift = positions - (turns @ joints[..., None]).squeeze(-1)
        bones = torch.cat([turns, shift[..., None]], dim=-1)  # (B, K, 3, 4)
        blended = torch.einsum("vk,bkij->bvij", weights.float(), bones)
        # A sum of products: a matrix product of thousands of 3 x 3 is three times slower on CPUs.
        posed = (blended[..., :3] * vertices[..., None, :]).sum(-1) + blended[..., 3]
    return posed, positions
