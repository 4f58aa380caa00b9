"""Seconds by stage of a pipeline."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class Stages:
    """Adds up wall-clock seconds by the name of a stage, in this process.

    Attributes:
        seconds: so far, in the order in which stages came first.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time what is done inside ``with``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - start)

    def add(self, name: str, seconds: float) -> None:
        """Add seconds to a stage."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds


def describe_stages(seconds: Mapping[str, float], counts: Mapping[str, int]) -> str:
    """Return one line: how many per second, and the milliseconds of each stage for one of them.

    Args:
        seconds: by stage.
        counts: how many of what were done; the first is what the figures are for, the stage of
            the same place in the line aside.
    """
    (name, count), *_ = counts.items()
    whole = sum(seconds.values())
    if not count or not whole:
        return "nothing was timed"
    parts = ", ".join(f"{stage} {1000 * spent / count:.1f}" for stage, spent in seconds.items())
    return f"{count / whole:.1f} {name} per second; ms for each: {parts}"
