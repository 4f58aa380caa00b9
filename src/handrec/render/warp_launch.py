"""Starting Warp kernels on torch's tensors: on CUDA at once, on a CPU spread over its threads."""

import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

#: Of the rasterizer's kernels.
_MODULES = (
    "handrec.render.warp_kernels",
    "handrec.render.warp_edge_kernels",
    "handrec.render.warp_light_kernels",
    "handrec.render.warp_normal_kernels",
    "handrec.render.warp_texture_kernels",
)


def shares(count: int, device: torch.device) -> list[int]:
    """Return the bounds of the threads' shares of so many images: one share on CUDA."""
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    threads = max(1, min(count, threads))
    return [count * i // threads for i in range(threads + 1)]


def shares_at(ascending: Tensor, bounds: Sequence[int]) -> list[int]:
    """Return where a list reaches the bounds' values, its length for the last one."""
    if len(bounds) == 2:
        return [0, len(ascending)]  # without waiting for a GPU
    return torch.searchsorted(ascending, ascending.new_tensor(bounds)).tolist()


def launch(
    name: str,
    bounds: Sequence[int],
    inputs: Sequence[Tensor | float | int],
    outputs: Sequence[Tensor | Sequence[Tensor]],
    elements: Sequence[int] = (),
    modules: tuple[str, ...] = _MODULES,
) -> None:
    """Run a kernel over images and the elements of each, or over a list.

    Args:
        name: of the kernel. It takes the inputs, the first image, the outputs. Over a list it takes
            the inputs, the first item, the end, the step from item to item, the outputs: a CPU is
            faster when it starts once and walks from item to item.
        bounds: of the threads' shares, see :func:`shares`.
        inputs: tensors and numbers.
        outputs: tensors, written in place; a list of them has one for each thread.
        elements: along each further axis; none for a list.
        modules: that hold the kernel.
    """
    import warp as wp

    if bounds[-1] == 0 or 0 in elements:
        return
    device = next(x.device for x in inputs if isinstance(x, Tensor))
    kernel = _kernels(device, modules)[name]
    wp_device, stream = wp.device_from_torch(device), None
    if device.type == "cuda":
        stream = wp.stream_from_torch(device)
    types = [argument.type for argument in kernel.adj.args]
    del types[len(inputs) : len(inputs) + (1 if elements else 3)]  # where to start and to end
    tensors = [_readable(x, of) for x, of in zip(inputs, types, strict=False)]  # outlive the launch
    before = [_as_warp(x, of) for x, of in zip(tensors, types, strict=False)]

    def run(share: int) -> None:
        first, last = bounds[share : share + 2]
        mine = (x if isinstance(x, Tensor) else x[share] for x in outputs)
        after = [_as_warp(x, of) for x, of in zip(mine, types[len(inputs) :], strict=True)]
        size, place = (last - first, *elements), [first]
        if not elements:
            starts = 1 if device.type == "cpu" else last - first
            size, place = (starts,), [first, last, starts]
        wp.launch(kernel, size, [*before, *place, *after], device=wp_device, stream=stream)

    threads = len(bounds) - 1
    if threads == 1:
        run(0)
    else:
        list(_pool().map(run, range(threads)))


def _readable(value: Tensor | float | int, of: Any) -> Tensor | float | int:
    """Return a tensor as Warp can read it: any strides, but vectors in one piece."""
    if not isinstance(value, Tensor):
        return value
    return value.detach() if value.dim() == of.ndim else value.detach().contiguous()


def _as_warp(value: Tensor | float | int, of: Any) -> Any:
    """Return Warp's view of a tensor, of the element type that the kernel declares."""
    import warp as wp

    return wp.from_torch(value, of.dtype, return_ctype=True) if isinstance(value, Tensor) else value


@cache
def _kernels(device: torch.device, modules: tuple[str, ...]) -> dict[str, Any]:
    """Return the kernels by name, compiled for the device."""
    import warp as wp

    if wp.config.log_level == wp.LOG_INFO:  # the default: a greeting, and a line per module
        wp.config.log_level = wp.LOG_WARNING
    with _no_driver_warning():
        wp.init()
    kernels: dict[str, Any] = {}
    for module in map(import_module, modules):
        wp.load_module(module, device=wp.device_from_torch(device))
        kernels |= vars(module)
    return kernels


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
    return ThreadPoolExecutor(os.cpu_count(), initializer=_own_team)


def _own_team() -> None:
    """Start a team of OpenMP's threads in a thread of ours.

    Torch's threads wait for its next operation in a loop, for some 10 ms, on the very cores that
    the kernels need. When there are more of OpenMP's threads than cores, GNU's lets them sleep.
    """
    torch.zeros(1 << 16).add_(1)


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork


__all__ = ["launch", "shares", "shares_at"]
