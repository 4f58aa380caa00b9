"""Batch normalisation over the batches of all processes."""

from typing import Any, cast

import torch
from jaxtyping import Float
from pytorch_lightning.plugins.layer_sync import LayerSync
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from handrec.losses.processes import many, over_processes


class JointBatchNorm(LayerSync):
    """Has a distributed training normalise as one process with the joined batch would.

    On CUDA by torch's ``SyncBatchNorm``, converted by timm: torch's own conversion would drop the
    activations that timm's layers hold. Elsewhere, where torch has none, by ours.

    Args:
        device: kind of the processes' devices.
    """

    def __init__(self, device: str) -> None:
        self.device = device

    def apply(self, model: nn.Module) -> nn.Module:
        """Return the model with its layers changed; their parameters stay theirs."""
        if self.device == "cuda":
            return cast(nn.Module, convert_sync_batchnorm(model))
        for layer in model.modules():
            if isinstance(layer, _BatchNorm) and not isinstance(layer, _Joint):
                kind = type(layer)
                layer.__class__ = type(f"Joint{kind.__name__}", (_Joint, kind), {})
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Return the model as it is: a checkpoint's names and tensors are the same either way."""
        return model


class _Joint(nn.Module):
    """Mixed into a batch normalisation, timm's with an activation included."""

    def forward(self, image: Float[Tensor, "b c *d"]) -> Float[Tensor, "b c *d"]:
        if not (self.training and many()):
            return cast(Tensor, super().forward(image))
        layer: Any = self
        normal = _normalised(layer, image)
        return cast(Tensor, layer.act(layer.drop(normal)) if hasattr(layer, "act") else normal)


def _normalised(layer: Any, image: Tensor) -> Tensor:
    """Normalise by mean and variance over all processes, and keep their running averages."""
    dims = [d for d in range(image.ndim) if d != 1]
    shape = [-1 if d == 1 else 1 for d in range(image.ndim)]
    with torch.autocast(image.device.type, enabled=False):
        values = image.float()
        count = values.new_tensor([values.numel() / values.shape[1]])
        total = over_processes(torch.cat([values.sum(dims), count]))
        number = total[-1].detach()
        mean = total[:-1] / number
        centred = values - mean.view(shape)
        variance = over_processes(centred.square().sum(dims)) / number
        normal = centred * (variance + layer.eps).rsqrt().view(shape)
        if layer.affine:
            normal = normal * layer.weight.view(shape) + layer.bias.view(shape)
    if layer.track_running_stats:
        _remember(layer, mean.detach(), variance.detach(), number)
    rounded: Tensor = normal.to(image.dtype)
    return rounded


@torch.no_grad()
def _remember(layer: Any, mean: Tensor, variance: Tensor, number: Tensor) -> None:
    layer.num_batches_tracked.add_(1)
    momentum = layer.momentum
    if momentum is None:  # a plain average
        momentum = 1 / float(layer.num_batches_tracked)
    layer.running_mean.lerp_(mean.to(layer.running_mean), momentum)
    unbiased = variance * number / (number - 1).clamp(min=1)
    layer.running_var.lerp_(unbiased.to(layer.running_var), momentum)
