"""Similarity Procrustes alignment of point sets.

Convention:
    Points are rows. The least-squares similarity takes ``source`` onto ``target`` after both are
    centred and divided by their Frobenius norm plus 1e-8, as in the official FreiHAND and HO-3D
    evaluations. There the orthogonal factor may be a *reflection*: a mirrored hand aligns without
    error. ``reflection=False`` keeps to proper rotations (determinant +1).

    At the singularity (all points of one set equal) the scale is 0, so that the aligned points are
    finite and lie at the target's mean.
"""

import torch
from jaxtyping import Float
from torch import Tensor

#: Added to the Frobenius norms, as the official evaluations do.
EPSILON = 1e-8


def align(
    source: Float[Tensor, "b n d"], target: Float[Tensor, "b n d"], reflection: bool
) -> Float[Tensor, "b n d"]:
    """Return ``source`` moved, turned and scaled onto ``target``, each sample by itself.

    Computed in float64, returned in the type of ``source``.

    Args:
        source: points to move.
        target: their counterparts, row by row.
        reflection: whether the orthogonal factor may have determinant -1 (the official protocol).
    """
    *_, source_unit = _normalise(source.double())
    target_mean, target_norm, target_unit = _normalise(target.double())
    left, singular, right = torch.linalg.svd(source_unit.mT @ target_unit)
    if not reflection:
        # Kabsch: where the best orthogonal factor reflects, flip its least significant axis.
        sign = torch.where(torch.linalg.det(left @ right) < 0, -1.0, 1.0).to(singular)
        flip = torch.ones_like(singular)
        flip[:, -1] = sign
        left, singular = left * flip[:, None], singular * flip
    scale = singular.sum(-1)[:, None, None] * target_norm
    aligned: Tensor = source_unit @ (left @ right) * scale + target_mean
    return aligned.to(source.dtype)


def _normalise(points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean ``(B, 1, D)``, the norm ``(B, 1, 1)`` and the centred points of unit norm."""
    mean = points.mean(1, keepdim=True)
    centred = points - mean
    norm = torch.linalg.matrix_norm(centred)[:, None, None] + EPSILON
    return mean, norm, centred / norm
