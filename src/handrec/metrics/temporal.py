"""How smooth and how consistent predictions are along videos.

Convention:
    Rows are frames: ``sequence`` names the video, ``frame`` counts along it, rows come in any
    order. A difference is taken only between frames that follow each other as most of the videos'
    do: by one number, or by more where a set has every so manieth frame only. Joints are
    relative to the wrist joint, so that an unknowable depth does not hide the fingers. Metres in;
    times come from the frame rate, so an acceleration is in metres per square second (some papers
    report the plain second difference per frame under that unit: 900 times less at 30 fps).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from handrec.hand.joints import PARENTS
from handrec.types import HandBatch, HandPrediction

#: Frame numbers per second, where a data set says nothing else.
FRAME_RATE = 30.0

#: What :class:`TemporalMetrics` computes: mm/s^2, m/s^3, standard deviations, mm, levels of 255.
TEMPORAL = ("accel_error", "jitter", "shape_sd", "bone_sd", "texture_sd")

#: Faces or texels of a texture that are kept of each frame, spread evenly over it.
_PLACES = 512


def usual_step(sequence: Int[Tensor, " n"], frame: Int[Tensor, " n"]) -> int:
    """Return by how much the numbers of frames after each other mostly differ; 1 without videos."""
    order = _in_order(sequence, frame)
    gaps = frame[order].diff()[sequence[order].diff() == 0]
    return max(1, int(gaps.mode().values)) if len(gaps) else 1


def runs(
    sequence: Int[Tensor, " n"], frame: Int[Tensor, " n"], length: int, step: int = 1
) -> Int[Tensor, "r l"]:
    """Return the rows of every ``length`` frames of a video that follow each other by a step."""
    order = _in_order(sequence, frame)
    windows = order.unfold(0, length, 1) if len(order) >= length else order.new_empty(0, length)
    steps = step * torch.arange(length, device=frame.device)
    together = (sequence[windows] == sequence[windows[:, :1]]).all(1)
    return windows[together & (frame[windows] - frame[windows[:, :1]] == steps).all(1)]


def _in_order(sequence: Int[Tensor, " n"], frame: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    order = torch.argsort(frame, stable=True)
    return order[torch.argsort(sequence[order], stable=True)]


def acceleration_error(
    prediction: Float[Tensor, "n j 3"],
    target: Float[Tensor, "n j 3"],
    sequence: Int[Tensor, " n"],
    frame: Int[Tensor, " n"],
    rate: float = FRAME_RATE,
    step: int = 1,
) -> Float[Tensor, " r"]:
    """Return how far accelerations are from the labels', metres per square second.

    The mean over joints of the length of the difference of second differences, for each three
    frames after each other (as in VIBE, CVPR 2020).

    Args:
        prediction: joints, metres, the first is the wrist.
        target: their labels.
        sequence: video of each row.
        frame: number of each row in its video.
        rate: frame numbers per second.
        step: between the numbers of frames that follow each other.
    """
    error = _relative(prediction) - _relative(target)
    first, second, third = error[runs(sequence, frame, 3, step)].unbind(1)
    accelerations: Tensor = torch.linalg.vector_norm(third - 2 * second + first, dim=-1)
    return accelerations.mean(1) * (rate / step) ** 2


def jitter(
    prediction: Float[Tensor, "n j 3"],
    sequence: Int[Tensor, " n"],
    frame: Int[Tensor, " n"],
    rate: float = FRAME_RATE,
    step: int = 1,
) -> Float[Tensor, " r"]:
    """Return the mean jerk of the joints, metres per cubic second, without looking at labels.

    The length of the third difference, for each four frames after each other. A moving hand has
    some itself: compare it with that of the labels.

    Args:
        prediction: joints, metres, the first is the wrist.
        sequence: video of each row.
        frame: number of each row in its video.
        rate: frame numbers per second.
        step: between the numbers of frames that follow each other.
    """
    first, second, third, fourth = _relative(prediction)[runs(sequence, frame, 4, step)].unbind(1)
    jerks: Tensor = torch.linalg.vector_norm(fourth - 3 * third + 3 * second - first, dim=-1)
    return jerks.mean(1) * (rate / step) ** 3


def spread(values: Float[Tensor, "n k"], sequence: Int[Tensor, " n"]) -> Float[Tensor, " s"]:
    """Return by how much what should be constant varies in each video.

    Args:
        values: shape coefficients or bone lengths of each frame.
        sequence: video of each row.

    Returns:
        The (population) standard deviation along each video, mean over the values. Single pictures
        are no videos.
    """
    mean, video = _means(values, sequence)
    variance, _ = _means((values - mean[video]).square(), sequence)
    return variance[torch.bincount(video) > 1].sqrt().mean(1)


def spread_between(values: Float[Tensor, "n k"], sequence: Int[Tensor, " n"]) -> Float[Tensor, ""]:
    """Return by how much the means of the videos differ from each other.

    What is constant along videos is worth little where all videos are given the same.

    Args:
        values: see :func:`spread`.
        sequence: video of each row.

    Returns:
        The (population) standard deviation over the videos, mean over the values.
    """
    mean, _ = _means(values, sequence)
    return mean.std(0, correction=0).mean()


def _means(
    values: Float[Tensor, "n k"], sequence: Int[Tensor, " n"]
) -> tuple[Float[Tensor, "s k"], Int[Tensor, " n"]]:
    """Return the mean of each video, and which one each row is of."""
    _, video, count = torch.unique(sequence, return_inverse=True, return_counts=True)
    sums = values.new_zeros(len(count), values.shape[1]).index_add(0, video, values)
    return sums / count[:, None].to(values), video


def bone_lengths(joints: Float[Tensor, "n 21 3"]) -> Float[Tensor, "n 20"]:
    """Return the lengths of the bones, metres."""
    lengths: Tensor = torch.linalg.vector_norm(joints[:, 1:] - joints[:, PARENTS[1:]], dim=-1)
    return lengths


class TemporalMetrics(Metric):
    """Smoothness and consistency over the videos of a split.

    ``compute`` gives ``accel_error`` (mm/s^2, labelled frames), ``jitter`` (m/s^3), ``shape_sd``
    (standard deviations of shape coefficients along a video), ``bone_sd`` (mm) and, for methods
    that predict one, ``texture_sd`` (levels of 255, of the colours without light at 512 places of
    the texture); nothing where there is no video. ``shape_between`` and ``texture_between`` are how
    much the means of the videos differ: a method that says the same of everybody is constant, too.

    Args:
        rate: frame numbers per second.
    """

    is_differentiable = False
    full_state_update = False

    names: list[Tensor]
    frames: list[Tensor]

    def __init__(self, rate: float = FRAME_RATE) -> None:
        super().__init__()
        self.rate = rate
        for state in ("names", "frames"):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def update(self, prediction: HandPrediction, batch: HandBatch) -> None:
        """Keep a batch's joints, shapes and textures.

        Args:
            prediction: what the method says of the batch.
            batch: its labels and the place of its rows in videos.
        """
        labelled = (batch.has_joints_3d > 0).long()
        names = torch.stack([batch.sequence, batch.frame, labelled, batch.sample_id], dim=1)
        joints = [prediction.joints.flatten(1), batch.joints_3d.flatten(1)]
        self.names.append(names.to(self.device))
        values = torch.cat([*joints, prediction.betas, _colours(prediction)], dim=1)
        self.frames.append(values.detach().float().to(self.device))

    def compute(self) -> dict[str, Tensor]:
        """Return the means over all videos."""
        names, values = dim_zero_cat(self.names).cpu(), dim_zero_cat(self.frames).double().cpu()
        kept = _first_of_each(names)  # a distributed sampler may repeat frames
        (sequence, frame, labelled, _), values = names[kept].unbind(1), values[kept]
        joints = values[:, :63].unflatten(1, (21, 3))
        target = values[:, 63:126].unflatten(1, (21, 3))
        step = usual_step(sequence, frame)
        if len(runs(sequence, frame, 4, step)) == 0:
            return {}
        known = labelled > 0
        accelerations = acceleration_error(
            joints[known], target[known], sequence[known], frame[known], self.rate, step
        )
        figures = {
            "accel_error": 1000 * accelerations.mean(),
            "jitter": jitter(joints, sequence, frame, self.rate, step).mean(),
            "shape_sd": spread(values[:, 126:136], sequence).mean(),
            "shape_between": spread_between(values[:, 126:136], sequence),
            "bone_sd": 1000 * spread(bone_lengths(joints), sequence).mean(),
        }
        if values.shape[1] > 136:
            figures["texture_sd"] = 255 * spread(values[:, 136:], sequence).mean()
            figures["texture_between"] = 255 * spread_between(values[:, 136:], sequence)
        return {name: figure.float() for name, figure in figures.items()}


def _relative(joints: Float[Tensor, "n j 3"]) -> Float[Tensor, "n j 3"]:
    return joints - joints[:, :1]


def _colours(prediction: HandPrediction) -> Float[Tensor, "b n"]:
    """Return RGB at some places of the textures; of no length without textures."""
    texture = prediction.texture
    if texture is None:
        return prediction.betas[:, :0]
    places = texture if texture.ndim == 3 else texture.flatten(2).mT  # (B, N, 3)
    chosen = torch.linspace(0, places.shape[1] - 1, min(_PLACES, places.shape[1])).round().long()
    colours: Tensor = places[:, chosen.to(places.device)].flatten(1)
    return colours.to(prediction.betas)


def _first_of_each(names: Int[Tensor, "n 4"]) -> Int[Tensor, " m"]:
    """Return one row of each different name."""
    _, group = torch.unique(names, dim=0, return_inverse=True)
    order = torch.argsort(group, stable=True)
    first = torch.cat([order.new_ones(1), group[order][1:] - group[order][:-1]]) > 0
    return order[first]
