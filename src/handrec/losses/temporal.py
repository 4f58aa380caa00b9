"""S2HAND(V)'s losses on clips: motion, texture and shape. Formulas are ours (see the docs page).

Z. Tu et al., "Consistent 3D Hand Reconstruction in Video via Self-Supervised Learning", TPAMI 2023:
the idea is theirs, the formulas could not be checked against the paper. Rows of a batch that follow
each other with one ``sequence`` and rising ``frame`` are a clip; all other rows are single pictures
and cost nothing here.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from handrec.geometry.rotations import matrix_to_quaternion
from handrec.losses.precision import full_precision
from handrec.losses.processes import over_processes, per_process

_EPS = 1e-6

#: From this cosine on, slerp is a normalised straight line.
_NEARLY_EQUAL = 0.9995


class Clips(NamedTuple):
    """Which rows of a batch are frames of which clip.

    Attributes:
        first: row of the clip's first frame, for each row.
        last: row of its last frame.
        time: of each frame within its clip, 0 at the first, 1 at the last.
        in_clip: whether the clip has more than one frame.
    """

    first: Int[Tensor, " b"]
    last: Int[Tensor, " b"]
    time: Float[Tensor, " b"]
    in_clip: Bool[Tensor, " b"]

    @property
    def between(self) -> Bool[Tensor, " b"]:
        """Whether a frame lies between the first and the last of its clip."""
        rows = torch.arange(len(self.first), device=self.first.device)
        return (rows > self.first) & (rows < self.last)


def find_clips(sequence: Int[Tensor, " b"], frame: Int[Tensor, " b"], max_gap: int = 4) -> Clips:
    """Return the clips of a batch.

    Args:
        sequence: see :class:`~handrec.types.HandBatch`.
        frame: its number in the video.
        max_gap: frames of a video farther apart are of two clips.
    """
    rows = torch.arange(len(sequence), device=sequence.device)
    gap = frame[1:] - frame[:-1]
    joined = (sequence[1:] == sequence[:-1]) & (gap > 0) & (gap <= max_gap)
    ends = joined.new_zeros(1)
    starts, stops = ~torch.cat([ends, joined]), ~torch.cat([joined, ends])
    first = torch.where(starts, rows, 0).cummax(0).values
    last = torch.where(stops, rows, len(rows)).flip(0).cummin(0).values.flip(0)
    span = (frame[last] - frame[first]).clamp(min=1)
    return Clips(first, last, (frame - frame[first]).float() / span, last > first)


def slerp(
    start: Float[Tensor, "*b 4"], end: Float[Tensor, "*b 4"], time: Float[Tensor, "*#b"]
) -> Float[Tensor, "*b 4"]:
    """Return unit quaternions on the shorter way from ``start`` to ``end``, at constant speed.

    Finite, with finite gradients, for equal and for opposite rotations.

    Args:
        start: unit quaternions; either sign.
        end: unit quaternions; either sign.
        time: 0 at the start, 1 at the end.
    """
    cosine = (start * end).sum(-1)
    end = torch.where(cosine[..., None] < 0, -end, end)
    cosine = cosine.abs()
    close = cosine > _NEARLY_EQUAL
    angle = torch.where(close, 0.5, cosine).acos()
    weights = [
        torch.where(close, share, (share * angle).sin() / angle.sin()) for share in (1 - time, time)
    ]
    mixed = weights[0][..., None] * start + weights[1][..., None] * end
    return F.normalize(mixed, dim=-1)


@full_precision
def motion_loss(
    rotations: Float[Tensor, "b j 3 3"], clips: Clips, weight: Float[Tensor, " b"]
) -> Float[Tensor, ""]:
    """Return ``mean_{t,j} 1 - <q_tj, slerp(q_1j, q_Tj, time_t)>^2`` over frames between the ends.

    0 where every joint turns about one axis at constant speed; ``sin^2`` of half the angle between
    the rotation and the expected one.

    Args:
        rotations: of joints relative to their parents.
        clips: of the batch.
        weight: of each row; a frame counts with the smallest of its own and both ends'.
    """
    quaternion = matrix_to_quaternion(rotations)
    expected = slerp(quaternion[clips.first], quaternion[clips.last], clips.time[:, None])
    # 1 - <q, e>^2 as the part of q across e: a difference of squares would lose small angles.
    along = (quaternion * expected).sum(-1, keepdim=True)
    error = (quaternion - along * expected).square().sum(-1).mean(1)
    weight = _between(weight, clips)
    return (weight * error).sum() / per_process(weight.sum()).clamp(min=_EPS)


@full_precision
def smooth_loss(
    joints: Float[Tensor, "b j 3"], clips: Clips, weight: Float[Tensor, " b"]
) -> Float[Tensor, ""]:
    """Return ``mean_{t,j} |x_tj - lerp(x_1j, x_Tj, time_t)|`` over frames between the ends.

    ``x`` is relative to the first joint. A length, not its square: the pull on a jitter of a
    millimetre is that on one of a centimetre, where that of :func:`motion_loss` fades.

    Args:
        joints: metres, the first is the wrist.
        clips: of the batch.
        weight: of each row; a frame counts with the smallest of its own and both ends'.
    """
    joints = joints - joints[:, :1]
    time = clips.time[:, None, None].to(joints)
    expected = torch.lerp(joints[clips.first], joints[clips.last], time)
    error = (joints - expected).square().sum(-1).add(_EPS**2).sqrt().mean(1)
    weight = _between(weight, clips)
    return (weight * error).sum() / per_process(weight.sum()).clamp(min=_EPS)


@torch.no_grad()
@full_precision
def straightened(
    values: Float[Tensor, "b ..."], clips: Clips, weight: Float[Tensor, " b"]
) -> Float[Tensor, "b ..."]:
    """Return the values on the straight lines in time that fit clips best (least squares).

    Args:
        values: of each frame.
        clips: of the batch; single pictures keep their values.
        weight: of each row in its line.
    """
    flat, time = values.flatten(1), clips.time[:, None].to(values)
    time = time - _means(time, clips, weight)
    mean, steep = (_means(x, clips, weight) for x in (flat, time * flat))
    slope = steep / _means(time.square(), clips, weight).clamp(min=_EPS)
    return torch.where(clips.in_clip[:, None], mean + slope * time, flat).view_as(values)


@full_precision
def follow_loss(
    values: Float[Tensor, "b j ..."],
    target: Float[Tensor, "b j ..."],
    clips: Clips,
    weight: Float[Tensor, " b"],
) -> Float[Tensor, ""]:
    """Return ``sum_t k_t mean_j |x_tj - y_tj| / sum_t k_t`` over the frames of clips.

    Args:
        values: ``x``, rotation matrices or points.
        target: ``y``; between matrices that lie close, it need not be one itself.
        clips: of the batch.
        weight: ``k`` of each row.
    """
    weight = weight * clips.in_clip
    error = (values - target).flatten(2).square().sum(2).add(_EPS**2).sqrt().mean(1)
    return (weight * error).sum() / per_process(weight.sum()).clamp(min=_EPS)


@full_precision
def spread_loss(
    values: Float[Tensor, "b ..."], clips: Clips, weight: Float[Tensor, " b"]
) -> Float[Tensor, ""]:
    """Return ``sum_t k_t mean|x_t - xbar| / sum_t k_t``, ``xbar = sum k_t x_t / sum k_t`` per clip.

    Args:
        values: ``x``, what should be one over a clip: shape coefficients, albedo before lighting.
        clips: of the batch.
        weight: ``k`` of each row.
    """
    flat = values.flatten(1)
    weight = weight * clips.in_clip
    error = (flat - _means(flat, clips, weight)).abs().mean(1)
    return (weight * error).sum() / per_process(weight.sum()).clamp(min=_EPS)


@full_precision
def within_share_loss(
    values: Float[Tensor, "b ..."], clips: Clips, weight: Float[Tensor, " b"]
) -> Float[Tensor, ""]:
    """Return ``sum_t k_t |x_t - xbar|^2 / sum_t k_t |x_t - m|^2``, ``m`` the mean over all clips.

    The share of the variance that lies within clips: 1 less the intraclass correlation. A spread
    is also small where all clips are given the same; this share is not.

    Args:
        values: ``x``, what tells clips apart and should be one over each: albedo before lighting.
        clips: of the batch.
        weight: ``k`` of each row.
    """
    flat = values.flatten(1)
    weight = weight * clips.in_clip
    amount = over_processes(weight.sum()).clamp(min=_EPS)
    mean = over_processes((weight[:, None] * flat).sum(0)) / amount
    squares = torch.stack([flat - _means(flat, clips, weight), flat - mean]).square().mean(2)
    within, total = over_processes(squares @ weight)
    share: Tensor = within / (total + _EPS * amount)
    return share


def _means(
    values: Float[Tensor, "b d"], clips: Clips, weight: Float[Tensor, " b"]
) -> Float[Tensor, "b d"]:
    """Return, for each row, the weighted mean over its clip."""
    weighted = torch.zeros_like(values).index_add(0, clips.first, values * weight[:, None])
    sums = torch.zeros_like(weight).index_add(0, clips.first, weight)
    return (weighted / sums.clamp(min=_EPS)[:, None])[clips.first]


def _between(weight: Tensor, clips: Clips) -> Tensor:
    """Return the weight of frames between the ends: the smallest of their own and both ends'."""
    ends = torch.minimum(weight[clips.first], weight[clips.last])
    return torch.minimum(weight, ends) * clips.between
