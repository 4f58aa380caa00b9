"""What the framework costs over a hand-written loop of the same step, and the wait for data.

    python benchmarks/overhead.py [--experiments handmim s2hand] [--scale cpu] [--out FILE]

The bars: at most 3 % over the loop, and 5 % of the step waiting for data, or the status is 1. One
training alternates between blocks of steps that Lightning takes, with the loggers and callbacks of
`handrec fit`, and blocks that the loop takes, with the same network, optimizer, data and precision:
what the machine does beside it meets both. CPU time of the process (on a GPU seconds, waiting for
it); the median over pairs of blocks, all of one epoch: the checkpoint at its end is in none.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from handrec.cli.command_line import expand
from handrec.cli.hand_cli import HandCLI
from handrec.records import write_record

OVERHEAD_BAR, WAIT_BAR = 0.03, 0.05


class Alternating(pl.Callback):
    """Takes as many steps by hand as Lightning took, again and again.

    Args:
        block: steps of a block.
    """

    def __init__(self, block: int) -> None:
        self.block, self.steps = block, 0
        self.framework: list[float] = []
        self.by_hand: list[float] = []
        self.waits: list[float] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self.device = pl_module.device
        self.batches = self._endless(trainer)
        self.began = self.now()

    def now(self) -> float:
        """Return seconds: of this process on a CPU."""
        if self.device.type != "cuda":
            return time.process_time()
        torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @staticmethod
    def _endless(trainer: pl.Trainer) -> Iterator[Any]:
        while True:
            yield from trainer.datamodule.train_dataloader()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Take a block by hand after each of Lightning's."""
        self.steps += 1
        if "speed/data_wait" in trainer.callback_metrics:
            self.waits.append(float(trainer.callback_metrics["speed/data_wait"]))
        if self.steps % self.block:
            return
        self.framework.append(self.now() - self.began)
        log, pl_module.log_losses = pl_module.log_losses, lambda *_: None
        began = self.now()
        for _ in range(self.block):
            self.step(trainer, pl_module)
        self.by_hand.append(self.now() - began)
        pl_module.log_losses = log
        self.began = self.now()

    def step(self, trainer: pl.Trainer, method: Any) -> None:
        """Take a step without Lightning."""
        optimizer = trainer.optimizers[0]
        batch = trainer.datamodule.transfer_batch_to_device(next(self.batches), self.device, 0)
        batch = trainer.datamodule.on_after_batch_transfer(batch, 0)
        optimizer.zero_grad()
        half = "bf16" in str(trainer.precision)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            loss: Tensor = method.training_step(batch, 0)
        loss.backward()
        method.on_before_optimizer_step(optimizer)
        if trainer.gradient_clip_val:
            torch.nn.utils.clip_grad_norm_(method.parameters(), trainer.gradient_clip_val)
        optimizer.step()
        for scheduled in trainer.lr_scheduler_configs:
            scheduled.scheduler.step()


class Measured(HandCLI):
    """A training as of `handrec fit`, but for the blocks by hand."""

    block = 10

    def _run_subcommand(self, subcommand: str) -> None:
        self.alternating = Alternating(self.block)
        self.trainer.callbacks.append(self.alternating)  # the last: all others are Lightning's part
        super()._run_subcommand(subcommand)


def measure(name: str, scale: str, pairs: int, block: int, root: str) -> dict[str, Any]:
    """Return the framework's overhead and the wait for data of an experiment."""
    options = [
        f"--trainer.default_root_dir={root}", "--trainer.limit_val_batches=0",
        f"--trainer.max_steps={(pairs + 1) * block}",
    ]  # fmt: skip
    chosen = type("Chosen", (Measured,), {"block": block})
    found = chosen(expand(["fit", f"--exp={name}", f"--scale={scale}", *options])).alternating
    each = zip(found.framework[1:], found.by_hand[1:], strict=True)  # the first warms up
    overhead = statistics.median(framework / by_hand - 1 for framework, by_hand in each)
    if not found.waits:
        sys.exit(
            f"{name}: no wait for data was logged in {found.steps} steps: give it more --pairs"
        )
    # What is logged is a share of all time, blocks by hand among it.
    passed = sum(found.framework) + sum(found.by_hand)
    wait = statistics.median(found.waits) * passed / sum(found.framework)
    return {
        "experiment": name,
        "scale": scale,
        "step_ms": 1000 * statistics.median(found.by_hand[1:]) / block,
        "overhead_percent": 100 * overhead,
        "data_wait_percent": 100 * wait,
        "met": overhead <= OVERHEAD_BAR and wait <= WAIT_BAR,
    }


def main() -> None:
    """Measure, print, and write a record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--experiments", nargs="+", default=["handmim", "s2hand"])
    parser.add_argument("--scale", default="cpu")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--block", type=int, default=10, help="steps")
    parser.add_argument("--out", type=Path, help="a record to write")
    chosen = parser.parse_args()
    start, rows = time.perf_counter(), []
    with TemporaryDirectory() as root:
        for name in chosen.experiments:
            rows.append(measure(name, chosen.scale, chosen.pairs, chosen.block, root))
            print(*(f"{key} {value}" for key, value in rows[-1].items()), sep=", ", flush=True)
    if chosen.out:
        config = {"pairs": chosen.pairs, "block": chosen.block}
        write_record(chosen.out, "Overhead", rows, config, 0, time.perf_counter() - start)
    sys.exit(not all(row["met"] for row in rows))


if __name__ == "__main__":
    main()
