"""Notices numbers that are not finite without making the training wait for its device."""

from collections import deque
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from handrec.losses.hand import refuse_non_finite


class _Look(NamedTuple):
    """A copy on its way to the CPU."""

    names: tuple[str, ...]
    finite: Tensor
    arrived: torch.cuda.Event | None
    batch: Any
    step: int


class Watch:
    """Looks at the terms of a step when they have arrived, as a rule during the next step.

    Attributes:
        failed: the batch and the number of the step whose terms were not finite.
    """

    def __init__(self) -> None:
        self._looks: deque[_Look] = deque()
        self.failed: tuple[Any, int] | None = None

    def note(self, terms: dict[str, Tensor], batch: Any = None, step: int = 0) -> None:
        """Start copying whether a step's terms are finite; nobody waits for it."""
        finite = torch.stack([term.detach().isfinite().all() for term in terms.values()])
        arrived = None
        if finite.is_cuda:
            finite = finite.to("cpu", non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        self._looks.append(_Look(tuple(terms), finite, arrived, batch, step))

    def check(self, wait: bool = False) -> None:
        """Raise if what has arrived so far, or after waiting for all of it, is not finite.

        Raises:
            FloatingPointError: names the terms.
        """
        while self._looks:
            names, finite, arrived, batch, step = self._looks[0]
            if arrived is not None and not arrived.query():
                if not wait:
                    return
                arrived.synchronize()
            self._looks.popleft()
            if not finite.all():
                self._looks.clear()
                self.failed = batch, step
                refuse_non_finite(dict(zip(names, finite.tolist(), strict=True)))


def refuse_broken_weights(parameters: Iterable[tuple[str, Tensor]]) -> None:
    """Raise if a weight is not finite: a gradient was not, though the loss was.

    Raises:
        FloatingPointError: names the first parameter.
    """
    named = dict(parameters)
    if not named:
        return
    norms = torch.stack([norm.float().cpu() for norm in torch._foreach_norm(list(named.values()))])
    if not norms.isfinite().all():
        bad = list(named)[int((~norms.isfinite()).nonzero()[0])]
        raise FloatingPointError(f"parameter {bad} is not finite: a gradient was not")
