"""In which order rows are fetched: known from seed and number of the batch alone, on every process.

Nothing has to be saved with a checkpoint but how many batches were trained on, which Lightning
counts. Processes share the rows without overlap and without repeating one.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytorch_lightning as pl
import torch
from torch.utils.data import Sampler


class Rows(list[int]):
    """The rows of a batch, and a seed for whatever else is drawn for it."""

    def __init__(self, rows: Sequence[int], seed: int) -> None:
        super().__init__(rows)
        self.seed = seed


def generator_of(rows: Sequence[int]) -> torch.Generator | None:
    """Return a generator for what a batch brings beside its rows; None (torch's) without a seed."""
    seed = getattr(rows, "seed", None)
    return None if seed is None else torch.Generator().manual_seed(seed)


@contextmanager
def seeded(rows: Sequence[int]) -> Iterator[None]:
    """Draw torch's numbers on the CPU by a batch's own seed, wherever it is fetched; if it has one.

    They are others than those of :func:`generator_of`.
    """
    seed = getattr(rows, "seed", None)
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.default_generator.manual_seed(mix(seed, 1))
        yield


def mix(*numbers: int) -> int:
    """Return a seed that depends on all the numbers; the same on every machine."""
    return hash(numbers) % 2**63  # of integers Python's hash is not salted


class TrainingBatches(Sampler[Rows]):
    """Every row once an epoch, in a new order each time; what is left of the last batch is dropped.

    Batch ``n`` of a training is the same whenever it is asked for. Of each ``processes * size``
    rows in order, process ``r`` has the ``r``-th ``size``, so that many processes with small
    batches see what one with a large batch sees.

    Args:
        rows: of the data set.
        size: of a batch of one process.
        seed: of the orders.
        position: says how many batches each process has had so far.
        rank: of this process.
        processes: how many there are.
    """

    def __init__(
        self,
        rows: int,
        size: int,
        seed: int,
        position: Callable[[], int] = lambda: 0,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.rows, self.size, self.seed, self.position = rows, size, seed, position
        self.rank, self.processes = rank, processes

    def __len__(self) -> int:
        return self.rows // (self.size * self.processes)

    def __iter__(self) -> Iterator[Rows]:
        first, order = self.position(), torch.empty(0)
        for number in range(first, first + len(self)):
            epoch, place = divmod(number, len(self))
            if place == 0 or number == first:
                generator = torch.Generator().manual_seed(mix(self.seed, epoch))
                order = torch.randperm(self.rows, generator=generator)
            start = (place * self.processes + self.rank) * self.size
            seed = mix(self.seed, number, self.rank, self.processes)
            yield Rows(order[start : start + self.size].tolist(), seed)


class EvaluationBatches(Sampler[list[int]]):
    """Every row once, in order: process ``r`` of ``p`` has rows ``r, r + p, r + 2 p, ...``.

    Args:
        rows: of the data set.
        size: of a batch.
        rank: of this process.
        processes: how many there are.
    """

    def __init__(self, rows: int, size: int, rank: int = 0, processes: int = 1) -> None:
        self.own, self.size = range(rank, rows, processes), size

    def __len__(self) -> int:
        return len(range(0, len(self.own), self.size))

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(0, len(self.own), self.size):
            yield list(self.own[start : start + self.size])


def global_seed() -> int:
    """Return the seed of the run (`seed_everything`)."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


def batches_so_far(trainer: pl.Trainer) -> int:
    """Return how many batches a process has trained on, those before a resumption included."""
    return trainer.fit_loop.epoch_loop.batch_progress.total.ready


def seed_step(trainer: pl.Trainer, stage: int) -> None:
    """Seed torch by the number of the step: a resumed training draws what it would have drawn.

    Processes differ; the CPU's and the device's generators are seeded alike.

    Args:
        trainer: of the training.
        stage: of the step, 0 the batch's, 1 the method's: they must not draw the same numbers.
    """
    number = batches_so_far(trainer)
    seed = mix(global_seed(), number, trainer.global_rank, trainer.world_size, stage)
    # Not torch.manual_seed: where there is no GPU it writes down a stack each time, 2 % of a step.
    torch.default_generator.manual_seed(seed)
    device = trainer.strategy.root_device
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)
