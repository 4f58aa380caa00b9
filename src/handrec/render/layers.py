"""Between lists of pixels and whole images.

Whole images are what takes the time: no more of them is made, and none is read, than has to be.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class Seen(NamedTuple):
    """The pixels that see a face, in the order of the images.

    Attributes:
        image: that each belongs to.
        face: that it sees.
        pixel: its place among all pixels of all images.
    """

    image: Int[Tensor, " p"]
    face: Int[Tensor, " p"]
    pixel: Int[Tensor, " p"]


def find_seen(face_index: Int[Tensor, "b h w"]) -> Seen:
    """Return the pixels that see a face; waits for a GPU.

    Args:
        face_index: -1 where no face is seen.
    """
    images, height, width = face_index.shape
    pixel = (face_index.flatten() >= 0).nonzero().squeeze(1)
    bounds = torch.arange(images + 1, device=pixel.device) * (height * width)
    counts = torch.searchsorted(pixel, bounds).diff()  # a division of each place takes longer
    numbers = torch.arange(images, dtype=torch.int32, device=pixel.device)
    image = numbers.repeat_interleave(counts, output_size=len(pixel))
    return Seen(image, face_index.flatten().index_select(0, pixel), pixel)


def lay(
    values: Float[Tensor, "... c"],
    face_index: Int[Tensor, "b h w"],
    seen: Seen | None,
    background: Float[Tensor, "b d h w"] | None = None,
) -> Float[Tensor, "b c h w"]:
    """Return values where a face is seen, and the background or zeros elsewhere.

    Args:
        values: at the pixels of ``seen``, or at every pixel.
        face_index: -1 where no face is seen.
        seen: the pixels that see a face; None if the values are those of all pixels.
        background: of the first channels; of all of them zeros if None.
    """
    if seen is not None:
        laid: Tensor = _Lay.apply(values, background, face_index, seen)
        return laid
    behind = values.new_zeros(()) if background is None else _pad(background, values.shape[-1])
    return torch.where(face_index[:, None] >= 0, values.permute(0, 3, 1, 2), behind)


class _Lay(torch.autograd.Function):
    """See :func:`lay`. What autograd makes of the same steps copies whole images several times."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, background: Tensor | None, face_index: Tensor, seen: Seen
    ) -> Tensor:
        images, height, width = face_index.shape
        channels = values.shape[-1]
        if background is None:
            laid = values.new_zeros(images, channels, height, width)
        else:
            laid = _pad(background, channels).contiguous()
        ctx.save_for_backward(face_index)
        ctx.channels = 0 if background is None else background.shape[1]
        ctx.first = first = seen.pixel + seen.image * ((channels - 1) * height * width)
        for plane, value in zip(_planes(laid), values.unbind(-1), strict=True):
            plane.index_copy_(0, first, value)
        return laid

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        (face_index,) = ctx.saved_tensors
        behind = None
        if ctx.needs_input_grad[1]:
            behind = torch.where(face_index[:, None] < 0, grad[:, : ctx.channels], 0)
        planes = _planes(grad.contiguous())
        picked = torch.stack([plane.index_select(0, ctx.first) for plane in planes], dim=-1)
        return picked, behind, None, None


def _planes(images: Float[Tensor, "b c h w"]) -> list[Tensor]:
    """Return each channel as it lies in memory, from its first image on."""
    return [images.flatten()[k * images[0, 0].numel() :] for k in range(images.shape[1])]


def _pad(background: Tensor, channels: int) -> Tensor:
    """Return a copy of a background, with zeros for the channels that it lacks."""
    return F.pad(background, (0, 0, 0, 0, 0, channels - background.shape[1]))


__all__ = ["Seen", "find_seen", "lay"]
