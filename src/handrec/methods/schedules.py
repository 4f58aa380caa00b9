"""Schedules by step, as DINO and iBOT define them."""

import math


def cosine(
    step: int, steps: int, base: float, final: float, warmup: int = 0, start: float = 0.0
) -> float:
    """Return a linear warm-up from ``start`` to ``base``, then half a cosine towards ``final``.

    The warm-up's last step has ``base``, as has the first after it; ``final`` is not quite reached.

    Args:
        step: from 0 on.
        steps: of the whole schedule.
        base: peak, or where there is no warm-up the first value.
        final: what the last value comes near.
        warmup: steps.
        start: first value of the warm-up.
    """
    if step < warmup:
        return start + (base - start) * step / max(1, warmup - 1)
    phase = (step - warmup) / max(1, steps - warmup)
    return final + 0.5 * (base - final) * (1 + math.cos(math.pi * min(1.0, phase)))


def ramp(epoch: int, first: float, last: float, epochs: int) -> float:
    """Return the value of an epoch: from ``first`` to ``last`` in so many epochs, then constant."""
    if epochs < 2:
        return last
    return first + (last - first) * min(epoch, epochs - 1) / (epochs - 1)
