"""The default rasterizer: Warp kernels, on CPU and CUDA."""

from itertools import accumulate
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from handrec.render.base import Attribute, Rasterizer
from handrec.render.neighbours import find_neighbours
from handrec.render.textures import Pyramid
from handrec.render.torch_reference import EMPTY
from handrec.render.warp_launch import launch, shares, shares_at


class WarpRasterizer(Rasterizer):
    """The reference's algorithm as kernels; compiled on first use, then cached on disk.

    On a CPU, where a Warp kernel runs on one core, the batch is spread over torch's threads.
    """

    def cover(
        self,
        screen: Float[Tensor, "b v 3"],
        faces: Int[Tensor, "f 3"],
        size: tuple[int, int],
    ) -> Int[Tensor, "b h w"]:
        """Return the face seen at each pixel centre, -1 for none."""
        keys = torch.full((len(screen), *size), EMPTY, device=screen.device)
        inputs: list[Tensor | float] = [screen, faces.int(), self.near]
        launch("cover", shares(len(screen), screen.device), inputs, [keys], [len(faces)])
        return keys.int()

    def interpolate(
        self,
        screen: Float[Tensor, "b v 3"],
        faces: Int[Tensor, "f 3"],
        face_index: Int[Tensor, "b h w"],
        attributes: list[Attribute],
    ) -> list[Tensor]:
        """Return each attribute at each pixel, ``(B, H, W, C)``, zero off the mesh."""
        found = self._blend(screen, faces, face_index, attributes, None)
        return [values.view(*face_index.shape, -1) for values in found]

    def interpolate_at(
        self,
        screen: Float[Tensor, "b v 3"],
        faces: Int[Tensor, "f 3"],
        face_index: Int[Tensor, "b h w"],
        attributes: list[Attribute],
        pixels: Int[Tensor, " p"],
    ) -> list[Tensor]:
        """Return each attribute at some pixels that see a face, ``(P, C)``."""
        return self._blend(screen, faces, face_index, attributes, pixels)

    def _blend(
        self,
        screen: Tensor,
        faces: Tensor,
        face_index: Tensor,
        attributes: list[Attribute],
        pixels: Tensor | None,
    ) -> list[Tensor]:
        faces, seen = faces.int(), _seen(face_index, pixels)
        weights = _Weigh.apply(screen, faces, seen)
        return [
            _Blend.apply(values.float(), weights, faces if rows is None else rows.int(), seen)
            for values, rows, _ in attributes
        ]

    def visibility(
        self,
        image: Float[Tensor, "b h w c"],
        screen: Float[Tensor, "b v 3"],
        faces: Int[Tensor, "f 3"],
        face_index: Int[Tensor, "b h w"],
    ) -> Float[Tensor, "b h w c"]:
        """Return ``image`` unchanged, but passing its gradient on to ``screen`` by visibility."""
        flowing: Tensor = _EdgeFlux.apply(
            image, screen, faces.int(), find_neighbours(faces), face_index.int()
        )
        return flowing

    def look_up(
        self,
        pyramid: Pyramid,
        uv: Float[Tensor, "p 2"],
        level: Float[Tensor, " p"],
        image_index: Int[Tensor, " p"] | None,
    ) -> Float[Tensor, "p c"]:
        """Return a texture's colours: see :func:`handrec.render.textures.look_up`."""
        if pyramid.texels.shape[-1] != 3:  # the kernels read RGB
            return super().look_up(pyramid, uv, level, image_index)
        colours: Tensor = _LookUp.apply(
            pyramid.texels, uv, level.detach(), image_index, pyramid.sizes
        )
        return colours


class _Seen(NamedTuple):
    """The pixels that a kernel runs over, and how its threads share them: whole images each."""

    image_at: Tensor
    face_at: Tensor
    pixels: Tensor
    size: tuple[int, int]
    shares: list[int]


def _seen(face_index: Tensor, pixels: Tensor | None) -> _Seen:
    images, height, width = face_index.shape
    bounds = [image * height * width for image in shares(images, face_index.device)]
    face_at = face_index.int().flatten()
    if pixels is None:
        every = torch.arange(len(face_at), dtype=torch.int32, device=face_at.device)
        return _Seen(every // (height * width), face_at, every, (width, height), bounds)
    face_at, every = face_at.index_select(0, pixels), pixels.int()
    bounds = shares_at(pixels, bounds)
    return _Seen(every // (height * width), face_at, every, (width, height), bounds)


class _Weigh(torch.autograd.Function):
    """Perspective-correct barycentric weights, ``(P, 3)``, zero off the mesh."""

    @staticmethod
    def forward(ctx: Any, screen: Tensor, faces: Tensor, seen: _Seen) -> Tensor:
        weights = screen.new_zeros(len(seen.pixels), 3)
        launch("weigh", seen.shares, [screen, faces, *seen[:3], *seen.size], [weights])
        ctx.save_for_backward(screen, faces)
        ctx.seen = seen
        return weights

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        saved: tuple[Tensor, ...] = ctx.saved_tensors
        seen: _Seen = ctx.seen
        screen_grad = torch.zeros_like(saved[0])
        launch("weigh_backward", seen.shares, [*saved, *seen[:3], *seen.size, grad], [screen_grad])
        return screen_grad, None, None


class _Blend(torch.autograd.Function):
    """The weighted mean of the values at each face's corners, ``(P, C)``."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weights: Tensor, rows: Tensor, seen: _Seen) -> Tensor:
        blended = values.new_zeros(len(seen.pixels), values.shape[-1])
        launch("blend", seen.shares, [values, rows, *seen[:2], weights], [blended])
        ctx.save_for_backward(values, weights, rows)
        ctx.seen = seen
        return blended

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        saved: tuple[Tensor, ...] = ctx.saved_tensors
        (values, weights, rows), seen = saved, ctx.seen
        values_grad = _ValuesGrad(values, ctx.needs_input_grad[0], len(seen.shares) - 1)
        weights_grad = torch.zeros_like(weights)
        inputs = [values, rows, *seen[:2], weights, grad]
        launch("blend_backward", seen.shares, inputs, [values_grad.parts, weights_grad])
        return values_grad.total(), weights_grad, None, None


class _LookUp(torch.autograd.Function):
    """See :func:`handrec.render.textures.look_up`."""

    @staticmethod
    def forward(
        ctx: Any,
        texels: Tensor,
        uv: Tensor,
        level: Tensor,
        image_index: Tensor | None,
        sizes: tuple[tuple[int, int], ...],
    ) -> Tensor:
        starts = accumulate((height * width for height, width in sizes), initial=0)
        table = [(start, *size) for start, size in zip(starts, sizes, strict=False)]
        levels = torch.tensor(table, dtype=torch.int32, device=uv.device)
        if image_index is None or len(texels) == 1:
            index, ctx.shares = levels.new_empty(0), shares(len(uv), uv.device)
        else:
            images = shares(len(texels), uv.device)
            index, ctx.shares = image_index.int(), shares_at(image_index, images)
        colours = texels.new_empty(len(uv), 3)
        inputs = [texels, levels, uv, level, index]
        launch("look_up", ctx.shares, inputs, [colours])
        ctx.save_for_backward(*inputs)
        return colours

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None, None, None]:
        texels, _, uv, *_ = saved = ctx.saved_tensors
        texels_grad = _ValuesGrad(texels, ctx.needs_input_grad[0], len(ctx.shares) - 1)
        uv_grad = torch.empty_like(uv)
        launch("look_up_backward", ctx.shares, [*saved, grad], [texels_grad.parts, uv_grad])
        return texels_grad.total(), uv_grad, None, None, None


class _ValuesGrad:
    """The gradient of values that threads add to: each to its own images, or to its own copy."""

    def __init__(self, values: Tensor, needed: bool, threads: int) -> None:
        self.needed = needed
        copies = threads if len(values) == 1 else 1
        sums = [values.new_zeros(len(values) * needed, *values.shape[1:]) for _ in range(copies)]
        self.parts = sums if len(values) == 1 else sums * threads
        self.sums = sums

    def total(self) -> Tensor | None:
        """Return the sum over the threads, None if nobody wants it."""
        return torch.stack(self.sums).sum(0) if self.needed else None


class _EdgeFlux(torch.autograd.Function):
    """See the reference's."""

    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        screen: Tensor,
        faces: Tensor,
        neighbours: Tensor,
        face_index: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(screen, faces, neighbours, face_index, image)
        return image.view_as(image)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        saved: tuple[Tensor, ...] = ctx.saved_tensors
        screen, _, _, face_index, _ = saved
        screen_grad = torch.zeros_like(screen)
        images = shares(len(screen), screen.device)
        _, height, width = face_index.shape
        span = width if screen.device.type == "cpu" else 1  # a CPU is faster without so many starts
        elements = [height, width // span]
        launch("edge_flux", images, [*saved, grad, span], [screen_grad], elements)
        return grad, screen_grad, None, None, None


__all__ = ["WarpRasterizer"]
