"""Optimizer and schedule shared by the methods."""

import math
from typing import Any, TypeVar, cast

from pytorch_lightning.utilities.types import OptimizerLRScheduler
from timm.optim import param_groups_layer_decay
from torch import nn
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from handrec.errors import fraction, not_negative, positive

_Adam = TypeVar("_Adam", bound=Adam)


def fused(kind: type[_Adam], groups: Any, lr: float) -> _Adam:
    """Return an optimizer whose step is one kernel: a third of the time of torch's default.

    Args:
        kind: of optimizer.
        groups: parameters, or groups of them.
        lr: of groups that have none of their own.
    """
    optimizer: Any = kind(groups, lr=lr, fused=True)
    # It could take the scaled gradients of 16-mixed, too, but then nobody could clip them before.
    optimizer._step_supports_amp_scaling = False
    return cast(_Adam, optimizer)


def adamw_layer_decay(
    backbone: nn.Module, rest: list[nn.Module], lr: float, weight_decay: float, layer_decay: float
) -> AdamW:
    """Return AdamW whose rate falls by ``layer_decay`` per layer towards the backbone's input.

    BEiT's fine-tuning recipe as timm groups it; biases and 1-D parameters are not decayed, and
    everything in ``rest`` has the full rate.
    """
    groups = param_groups_layer_decay(backbone, weight_decay=weight_decay, layer_decay=layer_decay)
    groups = [
        {
            "params": group["params"],
            "weight_decay": group["weight_decay"],
            "lr": lr * group["lr_scale"],
        }
        for group in groups
    ]
    parameters = [p for module in rest for p in module.parameters() if p.requires_grad]
    for decay, chosen in (
        (weight_decay, [p for p in parameters if p.ndim > 1]),
        (0.0, [p for p in parameters if p.ndim <= 1]),
    ):
        if chosen:
            groups.append({"params": chosen, "weight_decay": decay, "lr": lr})
    return fused(AdamW, groups, lr)


def optimization(
    owner: object, lr: float, weight_decay: float, layer_decay: float, warmup: float
) -> tuple[float, float, float]:
    """Return the numbers of :func:`adamw_warmup_cosine`, or raise a UserError if one is absurd."""
    positive(owner, lr=lr, layer_decay=layer_decay)
    not_negative(owner, weight_decay=weight_decay)
    fraction(owner, layer_decay=layer_decay, warmup=warmup)
    return lr, weight_decay, layer_decay


def warmup_cosine(optimizer: Optimizer, steps: int, warmup: float, floor: float) -> LambdaLR:
    """Return a linear warm-up and a cosine to ``floor`` of the rate, to be advanced every step.

    Args:
        optimizer: each group keeps its own rate as the peak.
        steps: of the whole training.
        warmup: share of the steps spent warming up.
        floor: share of the peak rate left at the end.
    """
    rising = max(1, round(warmup * steps))

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        progress = min(1.0, (step - rising) / max(1, steps - rising))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, factor)


def adamw_warmup_cosine(
    backbone: nn.Module,
    rest: list[nn.Module],
    optimization: tuple[float, float, float],
    steps: int,
    warmup: float,
) -> OptimizerLRScheduler:
    """Return AdamW with layer decay, its rate warmed up and then on a cosine, for Lightning.

    Args:
        backbone: see :func:`adamw_layer_decay`.
        rest: see :func:`adamw_layer_decay`.
        optimization: peak rate, weight decay and layer decay.
        steps: of the whole training.
        warmup: share of the steps spent warming up.
    """
    optimizer = adamw_layer_decay(backbone, rest, *optimization)
    schedule = warmup_cosine(optimizer, steps, warmup, floor=0.01)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
