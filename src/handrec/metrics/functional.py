"""Errors of predicted hands, per sample; metres in, metres out.

Convention:
    Points are in the camera frame. *Root-relative*: both hands are moved so that their wrist joint
    (which counts with error 0) is at the origin. *Aligned* (PA): each sample is moved, turned and
    scaled onto its target, joints by their own similarity and the mesh by another, as in the
    official FreiHAND and HO-3D evaluations; see ``geometry.procrustes``. Everything is computed in
    float64.
"""

from concurrent.futures import ThreadPoolExecutor
from itertools import repeat

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from handrec.geometry.procrustes import align

#: Thresholds of the PCK curves in metres, as in the official evaluations.
PCK_THRESHOLDS = torch.from_numpy(np.linspace(0.0, 0.05, 100))

#: Thresholds of the F-scores in metres.
F_THRESHOLDS = (0.005, 0.015)


def point_errors(
    prediction: Float[Tensor, "b n 3"], target: Float[Tensor, "b n 3"]
) -> Float[Tensor, "b n"]:
    """Return the distance of each point to its counterpart, unaligned (camera space)."""
    errors: Tensor = torch.linalg.vector_norm(prediction.double() - target.double(), dim=-1)
    return errors


def root_relative_errors(
    prediction: Float[Tensor, "b n 3"],
    target: Float[Tensor, "b n 3"],
    prediction_root: Float[Tensor, "b 3"],
    target_root: Float[Tensor, "b 3"],
) -> Float[Tensor, "b n"]:
    """Return the distance of each point to its counterpart once the roots coincide.

    Args:
        prediction: joints or vertices.
        target: their counterparts.
        prediction_root: the predicted wrist joint.
        target_root: the wrist joint of the label.
    """
    return point_errors(
        prediction.double() - prediction_root[:, None], target.double() - target_root[:, None]
    )


def aligned_errors(
    prediction: Float[Tensor, "b n 3"], target: Float[Tensor, "b n 3"], reflection: bool = True
) -> Float[Tensor, "b n"]:
    """Return the distance of each point to its counterpart after Procrustes alignment.

    Args:
        prediction: joints or vertices.
        target: their counterparts.
        reflection: whether the alignment may reflect (the official protocol).
    """
    return point_errors(align(prediction.double(), target.double(), reflection), target)


def cs_mpjpe(
    prediction: Float[Tensor, "b n 3"], target: Float[Tensor, "b n 3"]
) -> Float[Tensor, " b"]:
    """Return the mean joint error in camera space: no alignment at all."""
    return point_errors(prediction, target).mean(-1)


def mpjpe(
    prediction: Float[Tensor, "b n 3"], target: Float[Tensor, "b n 3"], root: int = 0
) -> Float[Tensor, " b"]:
    """Return the mean joint error relative to the joint ``root``, which is counted too."""
    return root_relative_errors(prediction, target, prediction[:, root], target[:, root]).mean(-1)


def pa_mpjpe(
    prediction: Float[Tensor, "b n 3"], target: Float[Tensor, "b n 3"], reflection: bool = True
) -> Float[Tensor, " b"]:
    """Return the mean joint error after alignment of the joints."""
    return aligned_errors(prediction, target, reflection).mean(-1)


def mpvpe(
    prediction: Float[Tensor, "b v 3"],
    target: Float[Tensor, "b v 3"],
    prediction_root: Float[Tensor, "b 3"],
    target_root: Float[Tensor, "b 3"],
) -> Float[Tensor, " b"]:
    """Return the mean vertex error relative to the wrist joint."""
    return root_relative_errors(prediction, target, prediction_root, target_root).mean(-1)


def pa_mpvpe(
    prediction: Float[Tensor, "b v 3"], target: Float[Tensor, "b v 3"], reflection: bool = True
) -> Float[Tensor, " b"]:
    """Return the mean vertex error after alignment of the mesh by its own vertices."""
    return aligned_errors(prediction, target, reflection).mean(-1)


def pck_curve(
    errors: Float[Tensor, "b n"], thresholds: Float[Tensor, " t"] = PCK_THRESHOLDS
) -> Float[Tensor, "b t"]:
    """Return the fraction of each sample's points with an error ``<=`` each threshold.

    Args:
        errors: metres.
        thresholds: metres, ascending.
    """
    thresholds = thresholds.to(errors)
    # The first threshold that is not below an error is the first at which the point counts.
    first = torch.bucketize(errors, thresholds)
    counts = errors.new_zeros(len(errors), len(thresholds) + 1)
    counts.scatter_add_(1, first, torch.ones_like(errors))
    return counts[:, :-1].cumsum(1) / errors.shape[1]


def auc(
    curve: Float[Tensor, "*b t"], thresholds: Float[Tensor, " t"] = PCK_THRESHOLDS
) -> Float[Tensor, "*b"]:
    """Return the area under PCK curves (trapezoids) as a share of the thresholds' range.

    Linear in the curve: the mean over samples is the official figure, which is the mean over
    joints of the area under each joint's curve.
    """
    thresholds = thresholds.to(curve)
    area: Tensor = torch.trapezoid(curve, thresholds, dim=-1) / (thresholds[-1] - thresholds[0])
    return area


def f_scores(
    prediction: Float[Tensor, "b n 3"],
    target: Float[Tensor, "b m 3"],
    thresholds: tuple[float, ...] = F_THRESHOLDS,
) -> Float[Tensor, "b t"]:
    """Return the F-scores of each point set: ``2 P R / (P + R)``, 0 where ``P + R`` is 0.

    P is the share of predicted points with a target point strictly nearer than the threshold, R
    the share of target points with such a predicted point. The sets need no correspondence.

    Args:
        prediction: points in metres.
        target: points in metres.
        thresholds: metres.
    """
    predictions, targets = prediction.double().cpu().numpy(), target.double().cpu().numpy()
    # A k-d tree releases the GIL while it is built and asked, so plain threads use every core.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        scores = list(pool.map(_sample_f_scores, predictions, targets, repeat(thresholds)))
    return torch.tensor(scores, dtype=torch.float64, device=prediction.device).reshape(
        len(prediction), len(thresholds)
    )


def _sample_f_scores(
    prediction: NDArray[np.float64], target: NDArray[np.float64], thresholds: tuple[float, ...]
) -> list[float]:
    """Return the F-scores of one sample."""
    reach = max(thresholds)  # farther neighbours count as infinitely far: the search stops early
    to_target, _ = cKDTree(target).query(prediction, distance_upper_bound=reach)
    to_prediction, _ = cKDTree(prediction).query(target, distance_upper_bound=reach)
    scores = []
    for threshold in thresholds:
        precision = float(np.mean(to_target < threshold))
        recall = float(np.mean(to_prediction < threshold))
        total = precision + recall
        scores.append(2 * precision * recall / total if total > 0 else 0.0)
    return scores
