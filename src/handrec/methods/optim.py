"""Optimizer and schedule shared by the methods."""

import math

from pytorch_lightning.utilities.types import OptimizerLRScheduler
from timm.optim import param_groups_layer_decay
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from handrec.errors import fraction, not_negative, positive


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
    return AdamW(groups, lr=lr)


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
