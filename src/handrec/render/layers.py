"""Between lists of pixels and whole images.

Written as functions of their own because what autograd makes of the same steps copies whole images
several times over, and whole images are what takes the time.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


def lay(
    values: Float[Tensor, "... c"],
    face_index: Int[Tensor, "b h w"],
    pixels: Int[Tensor, " p"] | None,
    background: Float[Tensor, "b d h w"] | None = None,
) -> Float[Tensor, "b h w c"]:
    """Return values where a face is seen, and the background or zeros elsewhere.

    Args:
        values: at ``pixels``, or at every pixel.
        face_index: -1 where no face is seen.
        pixels: that see a face, indices into the flattened ``face_index``; None for all pixels.
        background: of the first channels; of all of them zeros if None.
    """
    if pixels is not None:
        laid: Tensor = _Lay.apply(values, background, face_index, pixels)
        return laid
    behind = values.new_zeros(()) if background is None else _pad(background, values.shape[-1])
    return torch.where(face_index[..., None] >= 0, values, behind)


def split_mask(
    layers: Float[Tensor, "b h w c"],
) -> tuple[Float[Tensor, "b d h w"], Float[Tensor, "b 1 h w"]]:
    """Return the image and, from the last channel, the mask."""
    image, mask = _SplitMask.apply(layers)
    return image, mask


class _Lay(torch.autograd.Function):
    """See :func:`lay`."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, background: Tensor | None, face_index: Tensor, pixels: Tensor
    ) -> Tensor:
        if background is None:
            laid = values.new_zeros(*face_index.shape, values.shape[-1])
        else:
            laid = _pad(background, values.shape[-1])
        ctx.save_for_backward(face_index, pixels)
        ctx.channels = 0 if background is None else background.shape[1]
        return laid.flatten(0, 2).index_copy_(0, pixels, values).view_as(laid)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        face_index, pixels = ctx.saved_tensors
        behind = None
        if ctx.needs_input_grad[1]:
            behind = torch.where(face_index[:, None] < 0, grad.permute(0, 3, 1, 2), 0)
            behind = behind[:, : ctx.channels]
        return grad.flatten(0, 2).index_select(0, pixels), behind, None, None


class _SplitMask(torch.autograd.Function):
    """See :func:`split_mask`."""

    @staticmethod
    def forward(ctx: Any, layers: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(layers)
        upright = layers.permute(0, 3, 1, 2)
        return upright[:, :-1].contiguous(), upright[:, -1:].contiguous()

    @staticmethod
    def backward(ctx: Any, image: Tensor | None, mask: Tensor | None) -> Tensor:
        (layers,) = ctx.saved_tensors
        grad = torch.empty_like(layers)
        for part, whole in ((grad[..., :-1], image), (grad[..., -1:], mask)):
            part.copy_(part.new_zeros(()) if whole is None else whole.permute(0, 2, 3, 1))
        return grad


def _pad(background: Tensor, channels: int) -> Tensor:
    """Return a background with zeros for the channels that it lacks, channels last."""
    padded = background.new_zeros(len(background), *background.shape[2:], channels)
    padded[..., : background.shape[1]] = background.permute(0, 2, 3, 1)
    return padded


__all__ = ["lay", "split_mask"]
