"""The default rasterizer: Warp kernels, on CPU and CUDA."""

import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import BackwardCFunction, FunctionCtx

from handrec.render.base import Attribute, Rasterizer
from handrec.render.torch_reference import EMPTY


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
        _launch("cover", (len(screen), len(faces)), inputs, [keys])
        return keys.int()

    def interpolate(
        self,
        screen: Float[Tensor, "b v 3"],
        faces: Int[Tensor, "f 3"],
        face_index: Int[Tensor, "b h w"],
        attributes: list[Attribute],
    ) -> list[Tensor]:
        """Return each attribute at each pixel, ``(B, H, W, C)``, zero off the mesh."""
        faces, face_index = faces.int(), face_index.int()
        weights = _Weigh.apply(screen, faces, face_index)
        return [
            _Blend.apply(values.float(), weights, faces if rows is None else rows.int(), face_index)
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
        flowing: Tensor = _EdgeFlux.apply(image, screen, faces.int(), face_index.int())
        return flowing


class _Weigh(torch.autograd.Function):
    """Perspective-correct barycentric weights, ``(B, H, W, 3)``, zero off the mesh."""

    @staticmethod
    def forward(ctx: FunctionCtx, screen: Tensor, faces: Tensor, face_index: Tensor) -> Tensor:
        weights = screen.new_zeros(*face_index.shape, 3)
        _launch("weigh", face_index.shape, [screen, faces, face_index], [weights])
        ctx.save_for_backward(screen, faces, face_index)
        return weights

    @staticmethod
    def backward(ctx: BackwardCFunction, grad: Tensor) -> tuple[Tensor, None, None]:
        saved: tuple[Tensor, ...] = ctx.saved_tensors
        screen, _, face_index = saved
        screen_grad = screen.new_zeros(screen.shape)
        _launch("weigh_backward", face_index.shape, [*saved, grad], [screen_grad])
        return screen_grad, None, None


class _Blend(torch.autograd.Function):
    """The weighted mean of the values at each face's corners, ``(B, H, W, C)``."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, values: Tensor, weights: Tensor, rows: Tensor, face_index: Tensor
    ) -> Tensor:
        blended = values.new_zeros(*face_index.shape, values.shape[-1])
        _launch("blend", face_index.shape, [values, rows, face_index, weights], [blended])
        ctx.save_for_backward(values, rows, face_index, weights)
        return blended

    @staticmethod
    def backward(ctx: BackwardCFunction, grad: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        saved: tuple[Tensor, ...] = ctx.saved_tensors
        values, _, face_index, weights = saved
        images = len(face_index) if ctx.needs_input_grad[0] else 0
        # One gradient per image even of shared values: images may run on different threads.
        values_grad = values.new_zeros(images, *values.shape[1:])
        weights_grad = weights.new_zeros(weights.shape)
        _launch("blend_backward", face_index.shape, [*saved, grad], [values_grad, weights_grad])
        if len(values) < images:
            values_grad = values_grad.sum(0, keepdim=True)
        return values_grad if images else None, weights_grad, None, None


class _EdgeFlux(torch.autograd.Function):
    """See the reference's."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, image: Tensor, screen: Tensor, faces: Tensor, face_index: Tensor
    ) -> Tensor:
        ctx.save_for_backward(screen, faces, face_index, image)
        return image.view_as(image)

    @staticmethod
    def backward(ctx: BackwardCFunction, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        saved: tuple[Tensor, ...] = ctx.saved_tensors
        screen, _, face_index, _ = saved
        screen_grad = screen.new_zeros(screen.shape)
        _launch("edge_flux", face_index.shape, [*saved, grad], [screen_grad])
        return grad, screen_grad, None, None


@cache
def _kernels(device: torch.device) -> ModuleType:
    """Return the kernels, compiled for the device."""
    import warp as wp

    if wp.config.log_level == wp.LOG_INFO:  # the default: a greeting, and a line per module
        wp.config.log_level = wp.LOG_WARNING
    with _no_driver_warning():
        wp.init()
    from handrec.render import warp_kernels

    wp.load_module(warp_kernels, device=wp.device_from_torch(device))
    return warp_kernels


@contextmanager
def _no_driver_warning() -> Iterator[None]:
    """Close the process's stderr: where there is no GPU, Warp's native code warns of it."""
    if torch.cuda.is_available():
        yield
        return
    sys.stderr.flush()
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count())


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork


def _launch(
    name: str, shape: Sequence[int], inputs: Sequence[Tensor | float], outputs: Sequence[Tensor]
) -> None:
    """Run a kernel over images and their elements.

    Args:
        name: of the kernel; it takes the inputs, the first image, the outputs.
        shape: number of images, then of elements along each axis.
        inputs: tensors and numbers.
        outputs: tensors, written in place.
    """
    import warp as wp

    (images, *elements), device = shape, outputs[0].device
    if 0 in shape:
        return
    kernel = getattr(_kernels(device), name)
    # The tensors must outlive the launch: Warp's views of them do not hold them.
    tensors = [x.detach().contiguous() if isinstance(x, Tensor) else x for x in (*inputs, *outputs)]
    types = [argument.type for argument in kernel.adj.args]
    del types[len(inputs)]  # the first image
    views = [_as_warp(x, of) for x, of in zip(tensors, types, strict=True)]
    before, after = views[: len(inputs)], views[len(inputs) :]

    def run(first: int, last: int) -> None:
        share = (last - first, *elements)
        wp.launch(kernel, share, [*before, first, *after], device=wp_device, stream=stream)

    wp_device, stream = wp.device_from_torch(device), None
    if device.type == "cuda":
        stream = wp.stream_from_torch(device)
    threads = min(images, torch.get_num_threads()) if device.type == "cpu" else 1
    if threads == 1:
        run(0, images)
        return
    bounds = [images * i // threads for i in range(threads + 1)]
    list(_pool().map(run, bounds[:-1], bounds[1:]))


def _as_warp(value: Tensor | float, of: Any) -> Any:
    """Return Warp's view of a tensor, of the element type that the kernel declares."""
    import warp as wp

    return wp.from_torch(value, of.dtype, return_ctype=True) if isinstance(value, Tensor) else value
