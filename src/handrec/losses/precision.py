"""Losses keep full precision, whatever autocast does around them."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

import torch
from torch import Tensor

Parameters = ParamSpec("Parameters")


def full_precision(function: Callable[Parameters, Tensor]) -> Callable[Parameters, Tensor]:
    """Take a function out of autocast; halves among its arguments become float32.

    float64 stays float64, so that gradients can be checked in it.
    """

    @wraps(function)
    def wrapped(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Tensor:
        positional: Any = [_full(arg) for arg in args]
        named: Any = {name: _full(arg) for name, arg in kwargs.items()}
        tensors = [arg for arg in (*positional, *named.values()) if isinstance(arg, Tensor)]
        with torch.autocast(tensors[0].device.type, enabled=False):
            return function(*positional, **named)

    return wrapped


def _full(value: object) -> object:
    half = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if half and isinstance(value, Tensor) else value
