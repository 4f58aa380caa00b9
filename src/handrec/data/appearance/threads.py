"""Drawing on all cores: torch gains little from a second thread on arrays of a few pictures."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch

from handrec.data.appearance.base import Look, Picture, Stage, stage_rows

#: Pictures drawn at a time by a thread: enough to be fast, few enough to stay in its cache.
_SHARE = 16


@cache
def _pool() -> ThreadPoolExecutor:
    """Return threads that live on: new ones would ask the system for all their memory anew."""
    return ThreadPoolExecutor(os.cpu_count())


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork


def draw_in_threads(draw: Callable[[Stage, Look], Picture], stage: Stage, look: Look) -> Picture:
    """Return what ``draw`` returns; on a CPU few pictures at a time, and others in each thread.

    The kernels release the interpreter's lock. Meanwhile torch runs each operation on one thread,
    everywhere in the process: the setting is global.

    Args:
        draw: of any rows; without gradients. What it caches must be there already.
        stage: to be drawn.
        look: a row per hand.
    """
    threads, count = torch.get_num_threads(), len(stage.pose)
    size = min(_SHARE, -(-count // threads))
    if stage.pose.device.type != "cpu" or count <= size:
        return draw(stage, look)

    def share(rows: torch.Tensor) -> Picture:
        return draw(stage_rows(stage, rows), {name: x[rows] for name, x in look.items()})

    shares = torch.arange(count).split(size)
    torch.set_num_threads(1)
    try:
        parts = list(_pool().map(share, shares) if threads > 1 else map(share, shares))
    finally:
        torch.set_num_threads(threads)
    return Picture(*(torch.cat(column) for column in zip(*parts, strict=True)))
