"""The terms of the cycle rotate, redraw, reconstruct, rotate back, and of what a hand can do.

States are called as in CycleHand's overview: (a) is reconstructed from the image, (b) is (a) turned
and drawn, (c) is reconstructed from (b), (d) is (c) turned back. Pure functions, float32; the forms
are our formulation (docs/methods/cyclehand.md).
"""

import torch
from jaxtyping import Float
from kornia.metrics import ssim
from torch import Tensor

from handrec.geometry.rotations import geodesic_distance
from handrec.losses.hand import keypoints_2d_loss, masked_mean, shape_loss
from handrec.losses.precision import full_precision
from handrec.types import HandBatch, HandPrediction

#: A metre of joints costs as much as so many radians.
JOINTS_PER_METRE = 20.0

#: Half a crop of keypoints costs as much as so many radians.
KEYPOINTS_PER_HALF_CROP = 2.0

#: Share of the squared difference of shape coefficients.
SHAPE = 0.1

#: Window of the structural similarity, pixels.
WINDOW = 5


def geodesic_loss(
    predicted: Float[Tensor, "b j 3 3"],
    target: Float[Tensor, "b j 3 3"],
    weight: Float[Tensor, " b"],
) -> Float[Tensor, ""]:
    """Return the mean angle between rotations, radians.

    Convention:
        See :func:`~handrec.geometry.rotations.geodesic_distance`: no infinite slope at 0 or pi.
    """
    return masked_mean(geodesic_distance(predicted, target), weight)


def in_wrist_frame(
    points: Float[Tensor, "b n 3"],
    wrist: Float[Tensor, "b 3"],
    rotation: Float[Tensor, "b 3 3"],
) -> Float[Tensor, "b n 3"]:
    """Return ``g^T (X - X_wrist)``: what a rotation and a shift of the whole hand leave as it is.

    Args:
        points: metres, camera frame.
        wrist: position of the wrist joint, camera frame.
        rotation: ``g``, of the wrist to the camera frame.
    """
    # (g^T x)_j = sum_i g_ij x_i, written out: autocast would round a matrix product.
    offset = points - wrist[:, None]
    return (offset[..., :, None] * rotation[:, None]).sum(-2)


def rendered_view_loss(
    predicted: HandPrediction, rendered: HandBatch, weight: Float[Tensor, " b"]
) -> Float[Tensor, ""]:
    """Return the distance of (c) from the labels of (b), which are exact.

    ``L_bc = d(g_c, g_b) + mean_j d(q_c, q_b) + 20 |J_c - J_b|_1 + 2 |pi(J_c) - pi(J_b)|_1
    + 0.1 |beta_c - beta_b|^2`` with the geodesic angle d, joints in metres relative to the wrist
    (no picture tells how far off a hand is) and projections in half crops; means over joints.

    Args:
        predicted: (c).
        rendered: (b); its labels pass no gradient.
        weight: 0 leaves a sample out.
    """
    pose, joints, betas = (x.detach() for x in (rendered.pose, rendered.joints_3d, rendered.betas))
    relative = predicted.joints - predicted.joints[:, :1] - (joints - joints[:, :1])
    confidence = weight[:, None].expand(-1, joints.shape[1])
    keypoints = keypoints_2d_loss(
        predicted.keypoints_2d,
        rendered.keypoints_2d.detach(),
        confidence,
        rendered.camera.image_size,
    )
    return (
        geodesic_loss(predicted.pose[:, :1], pose[:, :1], weight)
        + geodesic_loss(predicted.pose[:, 1:], pose[:, 1:], weight)
        + JOINTS_PER_METRE * masked_mean(relative.abs(), weight)
        + KEYPOINTS_PER_HALF_CROP * keypoints
        + SHAPE * shape_loss(predicted.betas, betas, weight)
    )


def round_trip_loss(
    first: HandPrediction, returned: HandPrediction, weight: Float[Tensor, " b"]
) -> Float[Tensor, ""]:
    """Return the distance of (d) from (a), with gradient to both.

    ``L_ad = d(g_d, g_a) + 20 |J^rel_d - J^rel_a|_1`` with ``J^rel`` of :func:`in_wrist_frame`.

    Args:
        first: (a).
        returned: (d).
        weight: 0 leaves a sample out.
    """
    relative = [in_wrist_frame(x.joints, x.joints[:, 0], x.pose[:, 0]) for x in (first, returned)]
    angle = geodesic_loss(returned.pose[:, :1], first.pose[:, :1], weight)
    return angle + JOINTS_PER_METRE * masked_mean((relative[1] - relative[0]).abs(), weight)


@full_precision
def photometric_loss(
    drawn: Float[Tensor, "b 3 h w"],
    image: Float[Tensor, "b 3 h w"],
    mask: Float[Tensor, "b 1 h w"],
    weight: Float[Tensor, " b"],
    structure: float = 0.2,
) -> Float[Tensor, ""]:
    """Return how a drawn hand differs from a picture where both show it.

    ``|M (X - I)|_1 / |M|_1 + structure * |M (1 - SSIM(M X, M I))|_1 / |M|_1`` per image.

    Args:
        drawn: ``X``, RGB in [0, 1].
        image: ``I``.
        mask: ``M``; passes no gradient, or growing the mask of a bad fit would be punished and
            shrinking it rewarded.
        weight: 0 leaves a sample out, as does an empty mask.
        structure: weight of the structural similarity (Wang et al., 2004), windows of 5 pixels.
    """
    mask = mask.detach()
    drawn, image = drawn * mask, image * mask
    area = mask.sum((1, 2, 3))
    seen = weight * (area > 0)
    difference = (drawn - image).abs().mean(1, keepdim=True)
    if structure:
        unlike = 1 - ssim(drawn, image, WINDOW).mean(1, keepdim=True)
        difference = difference + structure * mask * unlike
    return masked_mean(difference.sum((1, 2, 3)) / area.clamp(min=1.0), seen)


def limits_loss(excess: Float[Tensor, "b 15 3"]) -> Float[Tensor, ""]:
    """Return the squared excess over joint limits, radians: summed over axes, mean of joints.

    Args:
        excess: see :func:`~handrec.hand.anatomy.limit_excess`.
    """
    return excess.square().sum(-1).mean()


def penetration_loss(depth: Float[Tensor, "b p"]) -> Float[Tensor, ""]:
    """Return the squared depth of spheres in each other, square centimetres, summed over pairs.

    Args:
        depth: metres, see :meth:`~handrec.hand.anatomy.SphereProxies.penetration`.
    """
    return (100 * depth).square().sum(-1).mean()


def total_variation(image: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
    """Return the mean difference of neighbouring pixels, across and down."""
    across, down = image.diff(dim=-1).abs(), image.diff(dim=-2).abs()
    return across.mean() + down.mean()


def gaussian_divergence(
    mean: Float[Tensor, "b z"], log_variance: Float[Tensor, "b z"]
) -> Float[Tensor, ""]:
    """Return ``KL(N(mean, variance), N(0, 1))``, nats, summed over dimensions, mean of samples."""
    terms = mean.square() + log_variance.exp() - 1 - log_variance
    return terms.sum(1).mean() / 2


@torch.no_grad()
def outline_overlap(
    logits: Float[Tensor, "b 1 h w"], mask: Float[Tensor, "b 1 h w"]
) -> Float[Tensor, " b"]:
    """Return the intersection over union of a guessed and a drawn outline; no gradient.

    Args:
        logits: of the guess; pixels count as far as it is sure of them.
        mask: drawn; where it is empty nothing overlaps.
    """
    guess = logits.float().sigmoid()
    both = (guess * mask).sum((1, 2, 3))
    either = (guess + mask - guess * mask).sum((1, 2, 3))
    return both / either.clamp(min=1e-6)


def keypoint_agreement(
    keypoints: Float[Tensor, "b 21 2"],
    target: Float[Tensor, "b 21 2"],
    confidence: Float[Tensor, "b 21"],
    image_size: tuple[int, int],
    tolerance: float,
) -> Float[Tensor, " b"]:
    """Return ``exp(-e / tolerance)``, the trust in a reconstruction; no gradient.

    Args:
        keypoints: of the reconstruction, pixels.
        target: detected, or those of another guess, pixels.
        confidence: of each; a hand without any is trusted fully.
        image_size: ``(height, width)``.
        tolerance: ``e``, the mean distance, is in crops, and so is this.
    """
    with torch.no_grad():
        distance = (keypoints - target).norm(dim=-1) / max(image_size)
        mean = (distance * confidence).sum(1) / confidence.sum(1).clamp(min=1e-6)
        trust: Tensor = (-mean / tolerance).exp()
    return trust
