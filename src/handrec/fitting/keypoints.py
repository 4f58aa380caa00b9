"""A hand from 2D joints: many starts in closed form, the best of them refined by their energy."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from handrec.fitting.parameters import HandParameters, HandPrior, place_of
from handrec.geometry.camera import project
from handrec.geometry.rotations import axis_angle_to_matrix, matrix_to_interleaved_6d
from handrec.hand.anatomy import joint_angles, rest_hand
from handrec.hand.base import HandModel
from handrec.hand.sampler import GESTURES, PoseSampler
from handrec.hand.skinning import posed_joints
from handrec.types import HandBatch

#: Standard deviation of a keypoint, of the longer side of the box around all of them.
KEYPOINT_SIGMA = 0.01

#: Directions that starts are seen from.
VIEWS = 96

#: Successive halving: how many starts are kept, for how many steps, and from which learning rate.
ROUNDS = ((64, 60, 0.1), (8, 80, 0.05), (2, 120, 0.03))

#: Nearest start, metres.
NEAREST = 0.1


def hand_box(
    keypoints: Float[Tensor, "b 21 2"], confidence: Float[Tensor, "b 21"]
) -> Float[Tensor, "b 4"]:
    """Return ``(x1, y1, x2, y2)`` of the box around the keypoints of positive confidence."""
    seen = (confidence > 0)[..., None]
    low = torch.where(seen, keypoints, math.inf).amin(1)
    high = torch.where(seen, keypoints, -math.inf).amax(1)
    return torch.cat([low, high], dim=1)


def box_side(
    keypoints: Float[Tensor, "b 21 2"], confidence: Float[Tensor, "b 21"]
) -> Float[Tensor, " b"]:
    """Return the longer side of :func:`hand_box`."""
    box = hand_box(keypoints, confidence)
    return (box[:, 2:] - box[:, :2]).amax(1)


def keypoint_energy(
    joints: Float[Tensor, "b 21 3"], target: HandBatch, sigma: float = KEYPOINT_SIGMA
) -> Float[Tensor, " b"]:
    """Return the Huber energy of the reprojection, each joint weighted with its confidence.

    Args:
        joints: metres, camera frame, any number of hands for the one target.
        target: a batch of one.
        sigma: of a keypoint, relative to the box; Huber's bend is at three of them.
    """
    count = len(joints)
    projected = project(joints, target.intrinsics.expand(count, 3, 3))
    side = box_side(target.keypoints_2d, target.confidence)
    distance = (projected - target.keypoints_2d).square().sum(-1).add(1e-6).sqrt()
    residual = distance / (sigma * side)
    energy = F.huber_loss(residual, torch.zeros_like(residual), reduction="none", delta=3.0)
    return (energy * target.confidence).sum(1)


def reprojection_error(
    projected: Float[Tensor, "b 21 2"], target: HandBatch
) -> Float[Tensor, " b"]:
    """Return the mean distance from the keypoints of positive confidence, pixels of the crop."""
    seen = (target.confidence > 0).float()
    distance = (projected - target.keypoints_2d).norm(dim=-1)
    error: Tensor = (distance * seen).sum(1) / seen.sum(1)
    return error


def views(count: int) -> Float[Tensor, "count 3 3"]:
    """Return rotations that show a hand from directions spread evenly over the sphere.

    Convention:
        Row 2 is the direction (a Fibonacci lattice) that ends up along the camera's z axis; the
        turn about it is arbitrary.
    """
    index = torch.arange(count, dtype=torch.float64) + 0.5
    height, turn = 1 - 2 * index / count, index * (math.pi * (1 + 5**0.5))
    flat = (1 - height**2).sqrt()
    forward = torch.stack([flat * turn.cos(), flat * turn.sin(), height], dim=1)
    # The axis with the smallest share in the direction is never parallel to it.
    helper = F.one_hot(forward.abs().argmin(1), 3).double()
    right = F.normalize(torch.linalg.cross(helper, forward), dim=1)
    down = torch.linalg.cross(forward, right)
    return torch.stack([right, down, forward], dim=1).float()


@torch.no_grad()
def starts(hand: HandModel, target: HandBatch, count: int) -> HandParameters:
    """Return the best weak-perspective views of the suite's gestures, one for each direction.

    For every gesture and direction, the turn in the image, scale and shift that bring the
    projected joints nearest to the keypoints are those of a complex regression: with both centred,
    ``a = sum(w conj(p) q) / sum(w |p|^2)`` turns by ``arg a`` and scales by ``|a|``.

    Args:
        hand: any hand model.
        target: a batch of one.
        count: how many directions to keep, those of the smallest distance.
    """
    sampler = PoseSampler(hand)
    gestures = torch.stack([sampler.gesture(name) for name in GESTURES])
    shapes = posed_joints(gestures, rest_hand(hand).joints[0])
    seen_from = views(VIEWS).to(shapes)
    points = torch.einsum("vij,gnj->vgni", seen_from, shapes)  # (V, G, 21, 3)
    weight = target.confidence[0] / target.confidence.sum()
    middle = (weight[:, None] * points).sum(-2)
    goal = (weight[:, None] * target.keypoints_2d[0]).sum(0)
    p = torch.view_as_complex((points - middle[..., None, :])[..., :2].contiguous())
    q = torch.view_as_complex((target.keypoints_2d[0] - goal).contiguous())
    power = (weight * p.abs().square()).sum(-1)
    factor = (weight * p.conj() * q).sum(-1) / power
    # What the regression leaves is sum(w |q|^2), the same for all, less this:
    explained, gesture = (factor.abs().square() * power).max(1)
    view = explained.topk(min(count, VIEWS)).indices
    gesture = gesture[view]
    factor, middle = factor[view, gesture], middle[view, gesture]
    turn = _turn_in_image(factor.angle())
    translation = _translation(target, goal, factor.abs(), (turn @ middle[..., None])[..., 0])
    return HandParameters(
        matrix_to_interleaved_6d(turn @ seen_from[view]),
        joint_angles(gestures[gesture], hand.joint_axes),
        torch.zeros(len(view), 10).to(shapes),
        place_of(translation, target.camera),
    )


def _turn_in_image(angle: Float[Tensor, " b"]) -> Float[Tensor, "b 3 3"]:
    """Return rotations about the z axis."""
    axis = torch.stack([torch.zeros_like(angle), torch.zeros_like(angle), angle], dim=-1)
    return axis_angle_to_matrix(axis)


def _translation(
    target: HandBatch,
    pixel: Float[Tensor, " 2"],
    scale: Float[Tensor, " b"],
    middle: Float[Tensor, "b 3"],
) -> Float[Tensor, "b 3"]:
    """Return the translation, metres, that shows a hand's middle at a pixel and at a scale.

    Args:
        target: whose camera sees it.
        pixel: where.
        scale: pixels per metre.
        middle: of the hand before it is translated, metres.
    """
    focal = target.intrinsics[0, [0, 1], [0, 1]]
    depth = (focal.mean() / scale).clamp(min=NEAREST)
    ray = (pixel - target.intrinsics[0, :2, 2]) / focal
    translation = torch.cat([ray, ray.new_ones(1)]) * depth[:, None] - middle
    return torch.cat([translation[:, :2], translation[:, 2:].clamp(min=NEAREST)], dim=1)


def fit_keypoints(hand: HandModel, prior: HandPrior, target: HandBatch) -> HandParameters:
    """Return the hand of the smallest energy: that of the keypoints plus the prior's.

    Args:
        hand: any hand model.
        prior: of that model.
        target: a batch of one; its intrinsics, keypoints and confidence are used.
    """
    kept = starts(hand, target, ROUNDS[0][0])
    for count, steps, rate in ROUNDS:
        kept = kept.take(_energy(hand, prior, kept, target).topk(count, largest=False).indices)
        kept = _descend(hand, prior, kept, target, steps, rate)
    return kept.take(_energy(hand, prior, kept, target).argmin()[None])


def _energy(
    hand: HandModel, prior: HandPrior, parameters: HandParameters, target: HandBatch
) -> Float[Tensor, " b"]:
    joints = parameters.decode(hand, target.camera).joints
    return keypoint_energy(joints, target) + prior.energy(parameters, joints)


def _descend(
    hand: HandModel,
    prior: HandPrior,
    start: HandParameters,
    target: HandBatch,
    steps: int,
    rate: float,
) -> HandParameters:
    """Return parameters after so many steps of Adam; hands do not influence each other."""
    free = start.free()
    optimizer = torch.optim.Adam(free, lr=rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, rate / 20)
    for _ in range(steps):
        optimizer.zero_grad()
        _energy(hand, prior, free, target).sum().backward()
        optimizer.step()
        schedule.step()
    return free
