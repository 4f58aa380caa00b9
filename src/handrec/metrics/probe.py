"""A linear probe: how well frozen features tell 2D keypoints."""

import torch
from jaxtyping import Float
from torch import Tensor, distributed

from handrec.types import HandBatch

#: Of the kernel, whose mean diagonal is 1.
_RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)


class KeypointProbe:
    """Ridge regression, in closed form, from features to keypoints; no training, no randomness.

    Half of the samples fit it, a quarter chooses its strength, and the last quarter measures it:
    samples take turns in the order of their ids.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all samples."""
        self.features: dict[str, list[Tensor]] = {}
        self.targets: dict[str, list[Tensor]] = {}
        self.ids: dict[str, list[Tensor]] = {}

    def update(self, name: str, features: Float[Tensor, "b c"], batch: HandBatch) -> None:
        """Take in a batch's features under the name of the network they are of."""
        targets = batch.keypoints_2d / batch.image.shape[-1]
        self.features.setdefault(name, []).append(features.detach().double().cpu())
        self.targets.setdefault(name, []).append(targets.detach().double().cpu().flatten(1))
        self.ids.setdefault(name, []).append(batch.sample_id.cpu())

    def compute(self) -> dict[str, float]:
        """Return the mean distance of the keypoints, per cent of the crop's side, by name.

        Over the samples of all processes: every one has to ask.
        """
        results = {}
        for name in self.features:
            parts = (self.features[name], self.targets[name], self.ids[name])
            features, targets, ids = _of_all([torch.cat(part) for part in parts])
            order = ids.argsort(stable=True)
            results[name] = keypoint_error(features[order], targets[order])
        return results


def _of_all(columns: list[Tensor]) -> list[Tensor]:
    """Return the rows of all processes."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return columns
    parts: list[list[Tensor]] = [[]] * distributed.get_world_size()
    distributed.all_gather_object(parts, columns)
    return [torch.cat(column) for column in zip(*parts, strict=True)]


def keypoint_error(features: Float[Tensor, "n c"], targets: Float[Tensor, "n d"]) -> float:
    """Return the error of :class:`KeypointProbe` on its last quarter, per cent."""
    turn = torch.arange(len(features)) % 4
    fitting, choosing, measuring = turn < 2, turn == 2, turn == 3
    if int(measuring.sum()) == 0:
        return float("nan")
    mean, std = features[fitting].mean(0), features[fitting].std(0).clamp(min=1e-6)
    x = (features - mean) / std
    offset = targets[fitting].mean(0)
    # In the span of the samples: there may be many more features.
    kernel = x @ x[fitting].T / features.shape[1]
    values, vectors = torch.linalg.eigh(kernel[fitting])
    moment = vectors.T @ (targets[fitting] - offset)

    def error(ridge: float, rows: Tensor) -> float:
        weights = vectors @ (moment / (values.clamp(min=0) + ridge)[:, None])
        distance = (kernel[rows] @ weights + offset - targets[rows]).unflatten(1, (-1, 2))
        return 100 * float(distance.norm(dim=-1).mean())

    best = min(_RIDGES, key=lambda ridge: error(ridge, choosing))
    return error(best, measuring)
