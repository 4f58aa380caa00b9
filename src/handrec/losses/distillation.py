"""Self-distillation between a teacher and a student: iBOT's terms (Zhou et al., ICLR 2022) and kin.

Logits are of prototypes; the teacher's are centred and sharpened into targets, and pass no
gradient. Everything is float32. Pure functions; :class:`Centre` owns the running means.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from handrec.losses.precision import full_precision
from handrec.losses.processes import gathered, over_processes, per_process

_EPS = 1e-8
#: Below every sum in float64 that is not 0.
_LEAST = 1e-300
#: Elements of an array that a CPU's cache holds.
_BLOCK = 2**20


class Centre(nn.Module):
    """The running mean of the teacher's logits, subtracted against collapse onto one prototype.

    ``c <- m c + (1 - m) mean``, after the loss, once per optimizer step; the mean is over all
    processes, and over the batches of a step. Buffers hold what is added until then: a training
    that goes on amid a step loses nothing.

    Args:
        prototypes: number of logits.
        momentum: m.
    """

    value: Float[Tensor, " k"]
    total: Float[Tensor, " k"]
    count: Float[Tensor, ""]

    def __init__(self, prototypes: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(prototypes))
        self.register_buffer("total", torch.zeros(prototypes))
        self.register_buffer("count", torch.zeros(()))
        self._waiting = False

    @torch.no_grad()
    def add(self, mean: Float[Tensor, " k"]) -> None:
        """Take in the mean of a batch's logits, which :meth:`step` is to count."""
        self.total += per_process(mean.to(self.value))
        self.count += 1
        self._waiting = True

    @torch.no_grad()
    def step(self) -> None:
        """Move by the mean of what was added, if anything was."""
        if not self._waiting:
            return
        self.value.lerp_(self.total / self.count, 1 - self.momentum)
        self.total.zero_()
        self.count.zero_()
        self._waiting = False

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take checkpoints of a time when every batch moved the centre, too."""
        for name in ("total", "count"):
            state_dict.setdefault(prefix + name, torch.zeros_like(getattr(self, name)))
        super()._load_from_state_dict(state_dict, prefix, *args)


def teacher_targets(
    logits: Float[Tensor, "*n k"], centre: Float[Tensor, " k"], temperature: float
) -> Float[Tensor, "*n k"]:
    """Return ``softmax((t - c) / T)``, without gradient."""
    flat, shift = logits.detach().reshape(-1, logits.shape[-1]), -centre / temperature
    targets = torch.empty_like(flat, dtype=torch.result_type(flat, shift))
    for rows in _blocks(flat):
        scaled = torch.add(shift, flat[rows], alpha=1 / temperature)
        torch.softmax(scaled, -1, out=targets[rows])
    return targets.view(logits.shape)


@torch.no_grad()
def sinkhorn_knopp(
    logits: Float[Tensor, "n k"],
    temperature: float,
    iterations: int = 3,
    weight: Float[Tensor, " n"] | None = None,
) -> Float[Tensor, "n k"]:
    """Return targets that use every prototype alike (SwAV; DINOv2's alternative to centres).

    Rows and columns of ``exp(t / T)`` are scaled in turn until each prototype has the same share
    and each row sums to 1. Sums over rows are over all processes.

    Args:
        logits: of the teacher.
        temperature: T.
        iterations: rounds of scaling.
        weight: 0 leaves a row out (a filler in a batch of fixed shape).
    """
    # Subtracting one number changes nothing but keeps exp() finite; it must be one for all
    # processes, and one constant is: logits are cosines. In float64, or what a prototype that no
    # row is near gets were nothing next to a guard against dividing by 0.
    shares = ((logits.double() - 1) / temperature).exp()
    weight = torch.ones_like(shares[:, 0]) if weight is None else (weight > 0).to(shares)
    shares = shares * weight[:, None]
    for _ in range(iterations):
        shares = shares / over_processes(shares.sum(0)).clamp(min=_LEAST)
        shares = shares / shares.sum(1, keepdim=True).clamp(min=_LEAST)
    return shares.to(logits)


def cross_entropy(
    targets: Float[Tensor, "*n k"], logits: Float[Tensor, "*n k"], temperature: float
) -> Float[Tensor, "*n"]:
    """Return ``H(p, s) = -sum_k p_k log softmax(s / T)_k`` of each row; no gradient to targets."""
    flat = [array.reshape(-1, logits.shape[-1]) for array in (targets.detach(), logits)]
    entropy: Tensor = _CrossEntropy.apply(*flat, temperature)
    return entropy.view(logits.shape[:-1])


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy whose gradient, ``(softmax(s / T) sum p - p) / T``, is found on the way.

    Written with tensors' operations it passes seven times over arrays of all rows; here a CPU sees
    a few rows at a time, which its cache holds, and keeps one such array.
    """

    @staticmethod
    def forward(ctx: Any, targets: Tensor, logits: Tensor, temperature: float) -> Tensor:
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[1] else None
        entropies = []
        for rows in _blocks(logits):
            wanted = targets[rows]
            logs = (logits[rows] / temperature).log_softmax(-1)
            entropies.append(-(wanted * logs).sum(-1))
            if gradient is not None:
                expected = logs.exp_().mul_(wanted.sum(-1, keepdim=True))
                torch.sub(expected, wanted, out=gradient[rows])
        ctx.save_for_backward(gradient)
        ctx.temperature = temperature
        return torch.cat(entropies)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[None, Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return None, gradient * (above / ctx.temperature)[..., None], None


def _blocks(array: Float[Tensor, "n k"]) -> list[slice]:
    """Return slices of rows that a CPU's cache holds; on other devices all rows at once."""
    count, width = array.shape
    step = max(1, _BLOCK // width if array.device.type == "cpu" else count)
    return [slice(at, at + step) for at in range(0, max(1, count), step)]


def class_loss(
    targets: Float[Tensor, "g b k"], logits: Float[Tensor, "v b k"], temperature: float
) -> Float[Tensor, ""]:
    """Return the mean of ``H`` over ordered pairs of a teacher's and another view of the student.

    Args:
        targets: of the global views.
        logits: of the student's views, the global ones first and in the same order.
        temperature: the student's.
    """
    pairs = [
        cross_entropy(target, student, temperature).mean()
        for i, target in enumerate(targets)
        for j, student in enumerate(logits)
        if i != j
    ]
    return torch.stack(pairs).mean()


def keypoint_loss(
    targets: Float[Tensor, "g b p 2"], points: Float[Tensor, "v b p 2"]
) -> Float[Tensor, ""]:
    """Return the smooth L1 distance of aligned points, over the same pairs as :func:`class_loss`.

    Args:
        targets: the teacher's, of the global views.
        points: the student's, the global views first and in the same order.
    """
    pairs = [
        F.smooth_l1_loss(student, target, beta=0.1)
        for i, target in enumerate(targets)
        for j, student in enumerate(points)
        if i != j
    ]
    return torch.stack(pairs).mean()


def patch_loss(
    targets: Float[Tensor, "n k"],
    logits: Float[Tensor, "n k"],
    weight: Float[Tensor, " n"],
    temperature: float,
) -> Float[Tensor, ""]:
    """Return the weighted sum of ``H`` over masked patches, see :func:`patch_weights`."""
    return (cross_entropy(targets, logits, temperature) * weight).sum()


def patch_weights(mask: Float[Tensor, "i n"]) -> Float[Tensor, "i n"]:
    """Return iBOT's weight of each patch: a mean over the masked ones of each image, then over all.

    Images without a masked patch count in the second mean, with 0.
    """
    return mask / mask.sum(1, keepdim=True).clamp(min=1) / len(mask)


@full_precision
def koleo(tokens: Float[Tensor, "b c"]) -> Float[Tensor, ""]:
    """Return ``-mean log(distance to the nearest other + 1e-8)`` of unit vectors (DINOv2).

    The others are those of all processes.
    """
    tokens = gathered(F.normalize(tokens, dim=-1))
    with torch.no_grad():
        similarity = tokens @ tokens.T
        nearest = similarity.fill_diagonal_(-2).argmax(1)
    distance: Tensor = (tokens - tokens[nearest]).norm(dim=-1)
    return -(distance + _EPS).log().mean()


@full_precision
def reconstruction_loss(
    predicted: Float[Tensor, "n d"],
    patches: Float[Tensor, "n d"],
    weight: Float[Tensor, " n"],
    normalise: bool = False,
) -> Float[Tensor, ""]:
    """Return the L1 error of the masked patches' pixels (SimMIM), a mean over masked pixels.

    Args:
        predicted: values of each patch's pixels and channels.
        patches: the true ones.
        weight: 0 leaves a patch out.
        normalise: standardise each target patch first (MAE).
    """
    if normalise:
        mean, variance = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True)
        patches = (patches - mean) / (variance + 1e-6).sqrt()
    chosen = (weight > 0).to(predicted)
    error = (predicted - patches).abs().mean(-1)
    return (error * chosen).sum() / per_process(chosen.sum()).clamp(min=_EPS)


def spread_penalty(points: Float[Tensor, "b p 2"], floor: float = 0.4) -> Float[Tensor, ""]:
    """Return how far the spread of each sample's points falls short of a floor, per axis.

    ``mean relu(floor - std)``: without it, all points at one place satisfy every alignment. With a
    floor far below a hand's own spread they shrink to it: a small cloud need not be turned.

    Args:
        points: in coordinates of the image, -1 to 1 across it.
        floor: a hand's own keypoints have 0.24 and 0.32 in our crops.
    """
    variance = (points - points.mean(1, keepdim=True)).square().mean(1)
    return (floor - (variance + 1e-8).sqrt()).relu().mean()


@torch.no_grad()
def entropy(targets: Float[Tensor, "n k"]) -> Float[Tensor, ""]:
    """Return the mean entropy of each row, nats: 0 says one prototype, log K none."""
    return -(targets * (targets + _EPS).log()).sum(-1).mean()


@torch.no_grad()
def divergence_from_uniform(targets: Float[Tensor, "n k"]) -> Float[Tensor, ""]:
    """Return ``KL(mean of the rows, uniform)``, nats: log K where all fell onto one prototype."""
    mean = targets.mean(0)
    return (mean * (mean + _EPS).log()).sum() + math.log(targets.shape[-1])


@torch.no_grad()
def effective_rank(points: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """Return ``exp(entropy of the covariance's normalised eigenvalues)`` over the batch.

    Between 1 (all vary along one direction, or not at all) and the smaller of B - 1 and D.
    """
    values = torch.linalg.svdvals((points - points.mean(0)).float()).square()
    share = values / values.sum().clamp(min=_EPS)
    spread: Tensor = -(share * (share + _EPS).log()).sum()
    return spread.exp()


def gather_masked(
    mask: Float[Tensor, "i n"], bound: int
) -> tuple[Int[Tensor, " m"], Float[Tensor, " m"]]:
    """Return flat indices of all masked patches, and 1 for each; fillers at the end have 0.

    Args:
        mask: 1 where masked.
        bound: how many to return, at least as many as are masked: known without looking at the
            mask, so that a device need not be waited for.
    """
    chosen, index = mask.flatten().topk(bound)
    return index, chosen
