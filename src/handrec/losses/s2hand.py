"""S2HAND's losses on keypoints, pose and shape: all of them read detections only, no 3D label.

Y. Chen et al., "Model-based 3D Hand Reconstruction via Self-Supervised Learning", CVPR 2021. The
formulas are those of the public code; docs/methods/s2hand.md names what differs and why. Pure
functions; distances on the image are in pixels of a crop of 224 (see :func:`to_published_pixels`),
``c`` is the detector's confidence, ``u`` the detected and ``p`` the projected keypoint. A sample
without a confident joint contributes nothing: its confidences or its ``weight`` are 0, and means
run over what has a weight. A batch of such samples only gives 0, with gradient 0.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from handrec.geometry.rotations import matrix_to_axis_angle
from handrec.hand.anatomy import joint_angles, limit_excess
from handrec.hand.joints import JOINTS, KINEMATIC_JOINTS, PARENTS, TIPS
from handrec.losses.hand import masked_mean
from handrec.losses.precision import full_precision
from handrec.losses.processes import per_process

#: Side of the crops that the published weights are for, pixels.
PUBLISHED_SIZE = 224

#: Where the piecewise norm turns from square to straight, pixels.
KNEE = 5.0

#: Limits of MANO's axis-angle components (x, y, z), degrees, as published: by joint or its kind.
AXIS_ANGLE_LIMITS = {
    "mcp": ((-5, 5), (-10, 10), (-10, 100)),
    "little_mcp": ((-20, 5), (-10, 20), (-10, 100)),
    "pip": ((-5, 5), (-5, 5), (-10, 100)),
    "dip": ((-5, 5), (-5, 5), (-10, 100)),
    "thumb_cmc": ((0, 90), (-22.5, 33.75), (-22.5, 22.5)),
    "thumb_mcp": ((-5, 5), (-5, 5), (-22.5, 22.5)),
    "thumb_ip": ((-5, 5), (-5, 5), (-20, 100)),
}

#: Of the three angles of a joint; the last one bends it.
AXIS_WEIGHTS = (1.0, 1.0, 2.0)

_EPS = 1e-6
_PROXIMAL = JOINTS.index("middle_mcp"), JOINTS.index("middle_pip")


def to_published_pixels(
    keypoints: Float[Tensor, "*b 21 2"], image_size: tuple[int, int]
) -> Float[Tensor, "*b 21 2"]:
    """Return keypoints in pixels of a crop of 224, whatever the crop's own size.

    Args:
        keypoints: crop pixels.
        image_size: ``(height, width)`` of the crop.
    """
    return keypoints * (PUBLISHED_SIZE / max(image_size))


def axis_angle_limits() -> Float[Tensor, "15 3 2"]:
    """Return the published limits of kinematic joints 1 to 15, radians."""
    table = AXIS_ANGLE_LIMITS
    rows = [table.get(name, table.get(name.split("_")[1])) for name in KINEMATIC_JOINTS[1:]]
    return torch.tensor(rows) * (math.pi / 180)


def joint_weights() -> Float[Tensor, " 21"]:
    """Return ``w_j``: 2 for the wrist, 1.5 for the tips, 1 for the others."""
    weights = [2.0 if n == "wrist" else 1.5 if n in TIPS else 1.0 for n in JOINTS]
    return torch.tensor(weights)


def length(vectors: Float[Tensor, "*b d"]) -> Float[Tensor, "*b"]:
    """Return Euclidean lengths; the gradient at 0 is 0."""
    squared = vectors.square().sum(-1)
    zero = squared == 0
    return torch.where(zero, 1.0, squared).sqrt().masked_fill(zero, 0.0)


def piecewise_norm(distance: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """Return ``H(d) = d^2 / 10`` below 5 px, ``d - 2.5`` above: continuous, with its slope."""
    return torch.where(distance < KNEE, distance.square() / (2 * KNEE), distance - KNEE / 2)


@full_precision
def keypoint_loss(
    predicted: Float[Tensor, "b 21 2"],
    detected: Float[Tensor, "b 21 2"],
    confidence: Float[Tensor, "b 21"],
) -> Float[Tensor, ""]:
    """Return ``sum_bj (w_j c_bj)^2 H(|u_bj - p_bj|) / sum_bj (w_j c_bj)^2`` (``open_2dj``)."""
    weight = (joint_weights().to(confidence) * confidence).square()
    norm = piecewise_norm(length(detected - predicted))
    return (weight * norm).sum() / per_process(weight.sum()).clamp(min=_EPS)


@full_precision
def bone_direction_loss(
    predicted: Float[Tensor, "b 21 2"],
    detected: Float[Tensor, "b 21 2"],
    confidence: Float[Tensor, "b 21"],
) -> Float[Tensor, ""]:
    """Return ``mean_b 1/20 sum_bones c_a c_b |d(p) - d(u)|^2`` (``open_bone_direc``).

    ``d`` is the bone from joint ``a`` to joint ``b`` on the image over its length plus 1e-4. The
    mean runs over the samples with a confident joint.
    """
    difference = _bone_directions(predicted) - _bone_directions(detected)
    pairs = confidence[:, 1:] * confidence[:, PARENTS[1:]]
    return masked_mean(pairs * difference.square().sum(-1), confident(confidence))


def _bone_directions(keypoints: Float[Tensor, "b 21 2"]) -> Float[Tensor, "b 20 2"]:
    bones = keypoints[:, 1:] - keypoints[:, PARENTS[1:]]
    return bones / (length(bones)[..., None] + 1e-4)


@full_precision
def heatmap_loss(
    stacks: Float[Tensor, "s b 21 2"],
    detected: Float[Tensor, "b 21 2"],
    confidence: Float[Tensor, "b 21"],
) -> Float[Tensor, ""]:
    """Return ``sum_s [sum_bj c_bj^2 |u_bj - h_sbj| / sum_bj c_bj^2]`` (``hm_integral``).

    Args:
        stacks: ``h``, the keypoints of every stack of the 2D branch.
        detected: ``u``.
        confidence: ``c``.
    """
    weight = confidence.square()
    present = per_process(weight.sum()).clamp(min=_EPS)
    return (weight * length(stacks - detected)).sum() / present


@full_precision
def likelihood_loss(
    maps: Float[Tensor, "s b 21 h w"],
    cells: Float[Tensor, "b 21 2"],
    confidence: Float[Tensor, "b 21"],
) -> Float[Tensor, ""]:
    """Return ``sum_s [sum_bj c_bj^2 CE(g(u_bj), softmax m_sbj) / sum_bj c_bj^2]``, ours.

    ``g`` is a Gaussian about the detection, one cell wide, that adds up to 1 over the cells. Where
    a soft argmax of one broad map passes a gradient to all cells alike, this one says which cell is
    right; a network learns to see joints in half the steps. A detection outside the maps counts
    nothing.

    Args:
        maps: ``m``, logits of every stack of the 2D branch.
        cells: ``u``, columns and rows of the maps (``Found.to_cells``).
        confidence: ``c``.
    """
    target: Tensor = cells.new_ones(())
    inside = torch.ones_like(confidence, dtype=torch.bool)
    for axis, side in ((1, maps.shape[-2]), (0, maps.shape[-1])):
        offset = torch.arange(side, device=maps.device) - cells[..., axis, None]
        shape = (-1, 1) if axis else (1, -1)
        target = target * (-offset.square() / 2).softmax(-1).unflatten(-1, shape)
        inside &= (cells[..., axis] > -1) & (cells[..., axis] < side)
    weight = confidence.square() * inside
    entropy = -(target.flatten(-2) * maps.flatten(-2).log_softmax(-1)).sum(-1)
    return (weight * entropy).sum() / per_process(weight.sum()).clamp(min=_EPS)


@full_precision
def consistency_loss(
    predicted: Float[Tensor, "b 21 2"], found: Float[Tensor, "b 21 2"], weight: Float[Tensor, " b"]
) -> Float[Tensor, ""]:
    """Return ``mean_bj H(|h_bj - p_bj|)`` (``kp_cons``); gradients go into both branches.

    Args:
        predicted: ``p``.
        found: ``h``, of the 2D branch's last stack.
        weight: of each sample.
    """
    return masked_mean(piecewise_norm(length(found - predicted)), weight)


@full_precision
def axis_angle_limit_loss(
    pose: Float[Tensor, "b 16 3 3"], limits: Float[Tensor, "15 3 2"], weight: Float[Tensor, " b"]
) -> Float[Tensor, ""]:
    """Return ``mean_b 1/48 sum_ja w_a (max(0, low - r) + max(0, r - high))`` (``tsa_poses``).

    ``r_bja`` are the components of each finger joint's axis-angle vector, radians; the published
    mean counts the wrist too, which is always inside its limits.

    Args:
        pose: absolute rotations of the 16 joints.
        limits: see :func:`axis_angle_limits`.
        weight: of each sample.
    """
    return _limit_loss(matrix_to_axis_angle(pose[:, 1:]), limits, weight)


@full_precision
def anatomical_limit_loss(
    pose: Float[Tensor, "b 16 3 3"],
    axes: Float[Tensor, "15 3 3"],
    limits: Float[Tensor, "15 3 2"],
    weight: Float[Tensor, " b"],
) -> Float[Tensor, ""]:
    """Return ``mean_b 1/48 sum_ja w_a (max(0, low - r) + max(0, r - high))`` of joints' angles.

    ``r_bja`` are (twist, spread, bend) in the joints' own frames.

    Args:
        pose: absolute rotations of the 16 joints.
        axes: see :func:`handrec.hand.anatomy.anatomical_axes`.
        limits: of the three angles, radians.
        weight: of each sample.
    """
    return _limit_loss(joint_angles(pose, axes), limits, weight)


def _limit_loss(angles: Tensor, limits: Tensor, weight: Tensor) -> Tensor:
    excess = limit_excess(angles, limits.to(angles)) * angles.new_tensor(AXIS_WEIGHTS)
    return masked_mean(excess, weight) * (15 / 16)


@full_precision
def bone_length_loss(
    joints: Float[Tensor, "b 21 3"], target: float, weight: Float[Tensor, " b"]
) -> Float[Tensor, ""]:
    """Return ``mean_b | |J_9 - J_10| - target |`` (``mscale``): what fixes the absolute size.

    Args:
        joints: metres.
        target: length of the middle finger's proximal phalanx, metres; 0.0282 as published.
        weight: of each sample.
    """
    return masked_mean((middle_phalanx(joints) - target).abs(), weight)


def middle_phalanx(joints: Float[Tensor, "b 21 3"]) -> Float[Tensor, " b"]:
    """Return the length of the middle finger's proximal phalanx."""
    first, second = _PROXIMAL
    return length(joints[:, first] - joints[:, second])


@full_precision
def shape_prior(betas: Float[Tensor, "b 10"], weight: Float[Tensor, " b"]) -> Float[Tensor, ""]:
    """Return ``mean_bk beta_bk^2`` (``mshape``)."""
    return masked_mean(betas.square(), weight)


def confident(confidence: Float[Tensor, "b 21"]) -> Float[Tensor, " b"]:
    """Return 1 for samples with at least one confident joint, 0 for the others."""
    return (confidence > 0).any(1).to(confidence)
