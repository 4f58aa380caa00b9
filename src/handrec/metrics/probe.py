"""A linear probe: how well frozen features tell 2D keypoints, and how fingers are bent."""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, distributed

from handrec.metrics.articulation import articulation
from handrec.types import HandBatch

#: Of the kernel, whose mean diagonal is 1.
_RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
_OFFSET = 1e5
#: Samples kept of each network: the cost grows with their third power.
MOST = 1024


@dataclass
class Samples:
    """Rows of some columns, evenly spaced over all that were taken in, at most ``MOST``."""

    spacing: int = 1
    seen: int = 0
    batches: list[list[Tensor]] = field(default_factory=list)

    def add(self, columns: list[Tensor]) -> None:
        """Take in the rows of a batch."""
        first = -self.seen % self.spacing
        self.seen += len(columns[0])
        self.batches.append([column[first :: self.spacing].cpu() for column in columns])
        while sum(len(batch[0]) for batch in self.batches) > MOST:
            self.batches = [[column[::2] for column in self.columns()]]
            self.spacing *= 2

    def columns(self) -> list[Tensor]:
        """Return the rows that were kept."""
        return [torch.cat(column) for column in zip(*self.batches, strict=True)]


class KeypointProbe:
    """Ridge regression, in closed form, from features to keypoints; no training, no randomness.

    Every sample is predicted from all the others, a frame from those of other videos: a few hundred
    are enough to tell networks apart. Besides 2D keypoints, whose variance is mostly where the hand
    lies and how it is turned, 3D joints are predicted of which place, direction and size are taken
    away: what is left is how the fingers are bent. Samples without these labels are left out.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all samples."""
        self.samples: dict[str, Samples] = {}

    def update(self, name: str, features: Float[Tensor, "b c"], batch: HandBatch) -> None:
        """Take in a batch's features under the name of the network they are of."""
        columns = [
            features.detach().float(),
            batch.keypoints_2d / batch.image.shape[-1],
            batch.joints_3d,
            (batch.confidence > 0).all(1),
            batch.has_joints_3d > 0,
            batch.sequence,
        ]
        self.samples.setdefault(name, Samples()).add(columns)

    def compute(self) -> dict[str, float]:
        """Return the mean distance of the keypoints, per cent of the crop's side, by name.

        And that of the joints, millimetres, by ``{name}_pose``. Over the samples of all processes:
        every one has to ask. NaN where there are too few labelled samples.
        """
        found = {}
        for name, samples in self.samples.items():
            features, keypoints, joints, in_2d, in_3d, video = _of_all(samples.columns())
            found[name] = 100 * linear_error(features[in_2d], keypoints[in_2d], video[in_2d])
            bent = articulation(joints[in_3d])
            found[f"{name}_pose"] = 1000 * linear_error(features[in_3d], bent, video[in_3d])
        return found


def _of_all(columns: list[Tensor]) -> list[Tensor]:
    """Return rows of all processes, evenly spaced, ``MOST`` in all and a few for rounding."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return columns
    counts = [0] * distributed.get_world_size()
    distributed.all_gather_object(counts, len(columns[0]))
    spacing = max(1, math.ceil(sum(counts) / MOST))
    parts: list[list[Tensor]] = [[]] * len(counts)
    distributed.all_gather_object(parts, [column[::spacing].clone() for column in columns])
    return [torch.cat(column) for column in zip(*parts, strict=True)]


def linear_error(
    features: Float[Tensor, "n c"], targets: Float[Tensor, "n j d"], groups: Int[Tensor, " n"]
) -> float:
    """Return the mean distance of points from those read off the features.

    The ridge is chosen on every other sample and measured on the rest, and the other way round.
    NaN where there are fewer than four groups.
    """
    if len(groups.unique()) < 4:
        return float("nan")
    residuals = leave_group_out(features.double(), targets.double().flatten(1), groups)
    errors = residuals.unflatten(2, targets.shape[1:]).norm(dim=-1).mean(-1)
    first, second = errors[:, ::2], errors[:, 1::2]
    chosen = (first[second.mean(1).argmin()], second[first.mean(1).argmin()])
    return float(torch.cat(chosen).mean())


def leave_group_out(
    features: Float[Tensor, "n c"], targets: Float[Tensor, "n d"], groups: Int[Tensor, " n"]
) -> Float[Tensor, "r n d"]:
    """Return the residual of each sample predicted from all of other groups, for each ridge.

    With ``K`` the kernel of the standardised features, those of a group ``g`` are
    ``(G_gg)^-1 [G y]_g``, ``G = (K + ridge)^-1``: one eigendecomposition gives them all. In the
    span of the samples, as there may be many more features. A large constant in ``K`` leaves the
    offset free: with a mean over all samples, the others would tell which one is missing.
    """
    x = (features - features.mean(0)) / features.std(0).clamp(min=1e-6)
    values, vectors = torch.linalg.eigh(x @ x.T / features.shape[1] + _OFFSET)
    moment = vectors.T @ (targets - targets.mean(0))
    groups, sizes = groups.unique(return_inverse=True, return_counts=True)[1:]
    shared = [torch.nonzero(groups == group).flatten() for group in torch.nonzero(sizes > 1)]
    residuals = []
    for ridge in _RIDGES:
        scaled = vectors / (values.clamp(min=0) + ridge)
        residual = (scaled @ moment) / (scaled * vectors).sum(1, keepdim=True)
        for index in shared:
            residual[index] = torch.linalg.solve(
                scaled[index] @ vectors[index].T, (scaled @ moment)[index]
            )
        residuals.append(residual)
    return torch.stack(residuals)
