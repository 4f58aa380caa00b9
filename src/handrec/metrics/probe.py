"""A linear probe: how well frozen features tell 2D keypoints."""

import torch
from jaxtyping import Float
from torch import Tensor, distributed

from handrec.types import HandBatch

#: Of the kernel, whose mean diagonal is 1.
_RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
_OFFSET = 1e5


class KeypointProbe:
    """Ridge regression, in closed form, from features to keypoints; no training, no randomness.

    Every sample is predicted from all the others: a few hundred are enough to tell networks apart.
    Samples that lack a keypoint are left out.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all samples."""
        self.features: dict[str, list[Tensor]] = {}
        self.targets: dict[str, list[Tensor]] = {}

    def update(self, name: str, features: Float[Tensor, "b c"], batch: HandBatch) -> None:
        """Take in a batch's features under the name of the network they are of."""
        labelled = (batch.confidence > 0).all(1)
        targets = batch.keypoints_2d / batch.image.shape[-1]
        self.features.setdefault(name, []).append(features.detach()[labelled].double().cpu())
        self.targets.setdefault(name, []).append(targets[labelled].double().cpu().flatten(1))

    def compute(self) -> dict[str, float]:
        """Return the mean distance of the keypoints, per cent of the crop's side, by name.

        Over the samples of all processes: every one has to ask. NaN where there are too few
        labelled samples.
        """
        return {
            name: keypoint_error(*_of_all([torch.cat(self.features[name]), torch.cat(targets)]))
            for name, targets in self.targets.items()
        }


def _of_all(columns: list[Tensor]) -> list[Tensor]:
    """Return the rows of all processes."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return columns
    parts: list[list[Tensor]] = [[]] * distributed.get_world_size()
    distributed.all_gather_object(parts, columns)
    return [torch.cat(column) for column in zip(*parts, strict=True)]


def keypoint_error(features: Float[Tensor, "n c"], targets: Float[Tensor, "n d"]) -> float:
    """Return the error of :class:`KeypointProbe`, per cent.

    The ridge is chosen on every other sample and measured on the rest, and the other way round.
    """
    if len(features) < 4:
        return float("nan")
    errors = 100 * leave_one_out(features, targets).unflatten(2, (-1, 2)).norm(dim=-1).mean(-1)
    first, second = errors[:, ::2], errors[:, 1::2]
    chosen = (first[second.mean(1).argmin()], second[first.mean(1).argmin()])
    return float(torch.cat(chosen).mean())


def leave_one_out(
    features: Float[Tensor, "n c"], targets: Float[Tensor, "n d"]
) -> Float[Tensor, "r n d"]:
    """Return the residual of each sample when it is predicted from all others, for each ridge.

    With ``K`` the kernel of the standardised features it is ``[G y]_i / G_ii``,
    ``G = (K + ridge)^-1``: one eigendecomposition gives them all. In the span of the samples, as
    there may be many more features. A large constant in ``K`` leaves the offset free: with a mean
    over all samples, the others would tell which one is missing.
    """
    x = (features - features.mean(0)) / features.std(0).clamp(min=1e-6)
    values, vectors = torch.linalg.eigh(x @ x.T / features.shape[1] + _OFFSET)
    moment = vectors.T @ (targets - targets.mean(0))
    residuals = []
    for ridge in _RIDGES:
        scale = 1 / (values.clamp(min=0) + ridge)
        diagonal = vectors.square() @ scale
        residuals.append(vectors @ (scale[:, None] * moment) / diagonal[:, None])
    return torch.stack(residuals)
