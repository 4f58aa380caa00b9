"""Losses that make a picture and a drawing of the same hand look alike to a network.

Pure functions, float32. A hand and its turned self must never be a plain positive pair: that would
teach features to forget the global rotation. :func:`turn_features` turns them back first.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from handrec.losses.distillation import cross_entropy, teacher_targets
from handrec.losses.hand import masked_mean


def info_nce(
    first: Float[Tensor, "n d"],
    second: Float[Tensor, "n d"],
    temperature: float = 0.5,
    weight: Float[Tensor, " n"] | None = None,
) -> Float[Tensor, ""]:
    """Return NT-Xent (T. Chen et al., SimCLR, ICML 2020, eq. 1) over two views of N samples.

    ``-1/(2N) sum_i log(exp(z_i . z_i+ / t) / sum_{k != i} exp(z_i . z_k / t))`` of unit vectors.
    ``log(2N - 1)`` where all are equal.

    Args:
        first: features of one domain.
        second: of the other; row i is the positive of row i.
        temperature: t.
        weight: of each pair in the mean; all samples are others of each. None for the same of all.
    """
    weight = torch.ones_like(first[:, 0]) if weight is None else weight
    with torch.autocast(first.device.type, enabled=False):
        unit = F.normalize(torch.cat([first, second]).float(), dim=-1)
        logits = unit @ unit.mT / temperature
        itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
        logits = logits.masked_fill(itself, -torch.inf)
        positive = torch.arange(len(unit), device=unit.device).roll(len(first))
        each = F.cross_entropy(logits, positive, reduction="none")
    return (each * weight.repeat(2)).sum() / (2 * weight.sum()).clamp(min=1e-6)


def domain_consistency(
    student: Float[Tensor, "2 n k"],
    teacher: Float[Tensor, "2 n k"],
    centre: Float[Tensor, " k"],
    weight: Float[Tensor, " n"] | None = None,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.04,
) -> Float[Tensor, ""]:
    """Return the mean of ``H(teacher of one domain, student of the other)`` (DINO's form).

    M. Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021, with
    two domains in place of two crops.

    Args:
        student: logits of prototypes; the two domains of the same samples.
        teacher: the same of the moving average; passes no gradient.
        centre: of the teacher's logits.
        weight: of each sample in the mean; None for the same of all.
        student_temperature: of the student's softmax.
        teacher_temperature: lower: the targets are sharper.
    """
    targets = teacher_targets(teacher.float(), centre, teacher_temperature)
    each = cross_entropy(targets.flip(0), student.float(), student_temperature).mean(0)
    return masked_mean(each, torch.ones_like(each) if weight is None else weight)


def turn_features(
    features: Float[Tensor, "n d"], rotation: Float[Tensor, "n 3 3"]
) -> Float[Tensor, "n d"]:
    """Return features, read as points of space, turned: ``R z`` for each three of their numbers.

    As PeCLR (Spurr et al., ICCV 2021) does in the plane: a network whose features are to be equal
    after turning them back must keep the rotation in them.

    Args:
        features: a multiple of 3 wide.
        rotation: of each sample.
    """
    points = features.float().unflatten(1, (-1, 3))
    turned: Tensor = (rotation[:, None] * points[:, :, None]).sum(-1)
    return turned.flatten(1)
