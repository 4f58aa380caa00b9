"""Supervised losses on hands. Pure functions; every one is a mean over what is labelled.

A label that is absent has weight 0 and costs nothing, and the mean runs over the present ones
only: a batch without any gives 0, with gradient 0. The batch is that of all processes.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from handrec.errors import UserError
from handrec.losses.processes import per_process

_EPS = 1e-6


def masked_mean(values: Float[Tensor, "b ..."], weight: Float[Tensor, " b"]) -> Float[Tensor, ""]:
    """Return the mean of ``values`` over the samples, each with its weight; 0 if all are 0."""
    per_sample = values.reshape(len(values), -1).mean(1)
    return (per_sample * weight).sum() / per_process(weight.sum()).clamp(min=_EPS)


def keypoints_2d_loss(
    predicted: Float[Tensor, "b 21 2"],
    target: Float[Tensor, "b 21 2"],
    confidence: Float[Tensor, "b 21"],
    image_size: tuple[int, int],
) -> Float[Tensor, ""]:
    """Return the confidence-weighted L1 distance in units of half the crop (-1..1 coordinates).

    PyMAF takes the squared distance; L1 does not let a few wild projections rule the early steps.

    Args:
        predicted: crop pixels.
        target: crop pixels.
        confidence: 0 where there is no target.
        image_size: ``(height, width)`` of the crop.
    """
    half = predicted.new_tensor([image_size[1] / 2, image_size[0] / 2])
    distance = ((predicted - target) / half).abs().mean(-1)
    return (distance * confidence).sum() / per_process(confidence.sum()).clamp(min=_EPS)


def relative_points_loss(
    predicted: Float[Tensor, "b n 3"],
    target: Float[Tensor, "b n 3"],
    predicted_root: Float[Tensor, "b 3"],
    target_root: Float[Tensor, "b 3"],
    weight: Float[Tensor, " b"],
) -> Float[Tensor, ""]:
    """Return the L1 distance, metres, of joints or vertices relative to their wrists.

    Args:
        predicted: metres, camera frame.
        target: metres, camera frame.
        predicted_root: wrist of each prediction.
        target_root: wrist of each target.
        weight: 1 where the target is a label.
    """
    difference = (predicted - predicted_root[:, None]) - (target - target_root[:, None])
    return masked_mean(difference.abs(), weight)


def local_points_loss(
    predicted: Float[Tensor, "b n 3"],
    target: Float[Tensor, "b n 3"],
    predicted_wrist: tuple[Tensor, Tensor],
    target_wrist: tuple[Tensor, Tensor],
    weight: Float[Tensor, " b"],
) -> Float[Tensor, ""]:
    """Return the L1 distance, metres, of points in the frames of their own wrists.

    Args:
        predicted: metres, camera frame.
        target: metres, camera frame.
        predicted_wrist: position ``(B, 3)`` and rotation to the camera frame ``(B, 3, 3)``.
        target_wrist: the same of the target.
        weight: 1 where target and its wrist are labels.
    """

    def into(points: Tensor, wrist: tuple[Tensor, Tensor]) -> Tensor:
        position, rotation = wrist
        return (points - position[:, None]) @ rotation

    with torch.autocast(predicted.device.type, enabled=False):  # it would round millimetres away
        difference = into(predicted, predicted_wrist) - into(target, target_wrist)
    return masked_mean(difference.abs(), weight)


def rotation_loss(
    predicted: Float[Tensor, "b j 3 3"],
    target: Float[Tensor, "b j 3 3"],
    weight: Float[Tensor, " b"],
) -> Float[Tensor, ""]:
    """Return the mean squared difference of rotation matrices (PyMAF)."""
    return masked_mean((predicted - target).square(), weight)


def shape_loss(
    predicted: Float[Tensor, "b 10"], target: Float[Tensor, "b 10"], weight: Float[Tensor, " b"]
) -> Float[Tensor, ""]:
    """Return the mean squared difference of shape coefficients (PyMAF)."""
    return masked_mean((predicted - target).square(), weight)


def dense_loss(
    predicted: Float[Tensor, "b 4 h w"],
    position: Float[Tensor, "b 3 h w"],
    mask: Float[Tensor, "b 1 h w"],
    weight: Float[Tensor, " b"],
) -> Float[Tensor, ""]:
    """Return how far a dense map is from the rendered truth.

    Smooth L1 of the normalised rest position inside the hand (PNCC of PyMAF-X, a mean over the
    hand's pixels where theirs sums over all) plus cross entropy of the mask.

    Args:
        predicted: three channels of rest position and the mask's logit.
        position: rest position in [0, 1] of the surface seen at each pixel.
        mask: 1 on the hand.
        weight: 1 where the truth could be rendered.
    """
    error = F.smooth_l1_loss(predicted[:, :3], position, beta=0.1, reduction="none") * mask
    inside = mask.sum((1, 2, 3)).clamp(min=1.0)
    surface = masked_mean(error.sum((1, 2, 3)) / inside, weight)
    entropy = F.binary_cross_entropy_with_logits(predicted[:, 3:], mask, reduction="none")
    return surface + masked_mean(entropy, weight)


def total(terms: dict[str, Tensor], weights: object) -> Float[Tensor, ""]:
    """Return the weighted sum of the terms, in float32.

    On a CPU a term that is not finite is named at once. On another device that would mean waiting
    for it in every step: there ``methods.watch`` looks a step later.

    Args:
        terms: losses by name.
        weights: has an attribute of every term's name.

    Raises:
        FloatingPointError: a term is NaN or infinite.
        UserError: there is no term.
    """
    if not terms:
        raise UserError("nothing to learn from: no loss has a weight at this step")
    weighted = [getattr(weights, name) * term.float() for name, term in terms.items()]
    loss = torch.stack(weighted).sum()
    if loss.device.type == "cpu" and not torch.isfinite(loss):
        refuse_non_finite({name: bool(torch.isfinite(term)) for name, term in terms.items()})
    return loss


def refuse_non_finite(finite: dict[str, bool]) -> None:
    """Raise an error that names the terms that are not finite.

    Raises:
        FloatingPointError: there is one, or their sum overflowed.
    """
    bad = ", ".join(name for name, good in finite.items() if not good)
    raise FloatingPointError(f"loss term {bad} is not finite" if bad else "the loss overflowed")
