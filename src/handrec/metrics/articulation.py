"""How the fingers are bent: joints without place, direction and size, and whether they are told.

PA-MPJPE falls when a method that does not know how fingers are bent says so, and answers with the
mean hand. A correlation does not: what is the same for every picture has none.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from handrec.geometry.procrustes import align
from handrec.metrics.hand import first_of_each, name_samples
from handrec.types import HandBatch, HandPrediction

#: What :class:`ArticulationMetrics` computes.
ARTICULATION = ("articulation_r", "articulation_sd")

#: Spreads below this share of the labels' are rounding.
_SAME = 1e-5


def articulation(
    joints: Float[Tensor, "n j 3"], like: Float[Tensor, "m j 3"] | None = None
) -> Float[Tensor, "n j 3"]:
    """Return joints without what PA-MPJPE ignores: in one place, turned alike, of one size.

    That is their mean size, so that distances stay millimetres of a hand.

    Args:
        joints: any unit.
        like: turned onto the mean of these, and of their size; None for ``joints`` themselves.
    """
    like = joints if like is None else like
    onto, size = _unit(like)
    mean = _turned(onto, onto[:1]).mean(0, keepdim=True)
    turned: Tensor = _turned(_unit(joints)[0], mean) * size.mean(0)
    return turned


def _unit(joints: Float[Tensor, "n j 3"]) -> tuple[Tensor, Tensor]:
    """Return centred joints of unit norm, and their sizes ``(n, 1, 1)``."""
    centred = joints - joints.mean(1, keepdim=True)
    size = torch.linalg.matrix_norm(centred)[:, None, None].clamp(min=1e-9)
    return centred / size, size


def _turned(unit: Float[Tensor, "n j 3"], onto: Float[Tensor, "m j 3"]) -> Float[Tensor, "n j 3"]:
    """Return centred points of unit norm, turned onto others."""
    aligned = align(unit, onto.expand_as(unit), reflection=False)
    aligned = aligned - aligned.mean(1, keepdim=True)
    alike: Tensor = aligned / torch.linalg.matrix_norm(aligned)[:, None, None].clamp(min=1e-9)
    return alike


def agreement(
    prediction: Float[Tensor, "n j 3"], target: Float[Tensor, "n j 3"]
) -> tuple[float, float]:
    """Return how far predicted articulation goes with the labels', and how far it goes at all.

    Both are turned onto the labels' mean and taken relative to their own mean over the samples:
    ``r = sum <p, t> / sqrt(sum |p|^2 sum |t|^2)`` and the ratio of standard deviations
    ``sqrt(sum |p|^2 / sum |t|^2)``. In the mean square, r is the best ratio: more is boldness.

    Returns:
        1 and 1 for perfect predictions, 0 and 0 for one hand whatever the picture, NaN for fewer
        than two samples and for labels that are all alike.
    """
    if len(target) < 2:
        return float("nan"), float("nan")
    predicted, known = articulation(prediction, target), articulation(target)
    predicted, known = predicted - predicted.mean(0), known - known.mean(0)
    spread, truth = float(predicted.norm()), float(known.norm())
    if truth <= _SAME * float(target.norm()):
        return float("nan"), float("nan")
    if spread <= _SAME * truth:
        return 0.0, 0.0
    return float((predicted * known).sum()) / (spread * truth), spread / truth


class ArticulationMetrics(Metric):
    """Whether a method knows how the fingers are bent, over the labelled samples of a split.

    ``compute`` gives ``articulation_r`` and ``articulation_sd``, see :func:`agreement`. In a
    distributed run, samples that the sampler repeated count once.
    """

    is_differentiable = False
    full_state_update = False

    ids: list[Tensor]
    joints: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for state in ("ids", "joints"):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def update(self, prediction: HandPrediction, batch: HandBatch) -> None:
        """Keep a batch's joints.

        Args:
            prediction: what the method says of the batch.
            batch: its labels; only those whose ``has_joints_3d`` is set count.
        """
        known = torch.where(batch.has_joints_3d[:, None, None] > 0, batch.joints_3d, torch.nan)
        joints = torch.stack([prediction.joints.detach(), known.to(prediction.joints)], dim=1)
        self.ids.append(name_samples(batch.sample_id, self.device))
        self.joints.append(joints.float().to(self.device))

    def compute(self) -> dict[str, Tensor]:
        """Return both figures."""
        joints = dim_zero_cat(self.joints)[first_of_each(dim_zero_cat(self.ids))].cpu().double()
        joints = joints[joints.isfinite().flatten(1).all(1)]
        figures = agreement(joints[:, 0], joints[:, 1])
        return dict(zip(ARTICULATION, map(torch.tensor, figures), strict=True))
