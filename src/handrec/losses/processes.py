"""Sums over all processes of a distributed training; of one process, what is given.

Each process computes its losses on its own part of the batch, and the gradients are averaged. A
mean over what is labelled is then that of the whole batch only if every process divides by the same
number: what is labelled in all parts, per process.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, distributed


def many() -> bool:
    """Return whether there are other processes."""
    running = distributed.is_available() and distributed.is_initialized()
    return running and distributed.get_world_size() > 1


@torch.no_grad()
def per_process(amount: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Return the mean over processes of what each has, without gradient: what a mean is over."""
    if not many():
        return amount
    summed = amount.detach().clone()
    distributed.all_reduce(summed)
    return summed / distributed.get_world_size()


def over_processes(values: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Return the sum over processes, with gradient."""
    if not many():
        return values
    summed: Tensor = _Sum.apply(values)
    return summed


def gathered(rows: Float[Tensor, "n *d"]) -> Float[Tensor, "m *d"]:
    """Return the rows of all processes, in the order of their ranks, with gradient.

    Every process has as many.
    """
    if not many():
        return rows
    count, rank = len(rows), distributed.get_rank()
    padded = rows.new_zeros(count * distributed.get_world_size(), *rows.shape[1:])
    padded[rank * count : (rank + 1) * count] = rows
    return over_processes(padded)


class _Sum(torch.autograd.Function):
    """The sum over processes; what the others' losses say of it comes back."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        summed = values.detach().clone()
        distributed.all_reduce(summed)
        return summed

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        summed = gradient.clone()
        distributed.all_reduce(summed)
        return summed
