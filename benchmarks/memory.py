"""What a training keeps on every device whatever its batch: weights, gradients, optimizer.

    python benchmarks/memory.py [--scale paper] [--out FILE]

It is what sharding (FSDP) would spread over devices. Measured: one optimizer step with all
gradients, and the bytes of every tensor counted.
"""

import argparse
import time
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from handrec.cli.command_line import expand
from handrec.cli.hand_cli import HandCLI
from handrec.records import write_record

#: Experiments, and what they would read from a run before.
EXPERIMENTS: dict[str, tuple[str, ...]] = {
    "handmim": (),
    "handmim_pretrain": (),
    "s2hand": (),
    "s2hand_keypoints": (),
    "s2hand_video": ("--model.init_args.checkpoint=null",),
    "cyclehand_base": (),
    "cyclehand": ("--model.init_args.checkpoint=null",),
}


class Builder(HandCLI):
    """Builds what a training is made of, and does not train."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def megabytes(tensors: Iterable[Tensor]) -> float:
    """Return the size of tensors, units of 10^6 bytes."""
    return sum(tensor.nbytes for tensor in tensors) / 1e6


def measure(name: str, scale: str) -> dict[str, str | float]:
    """Return the sizes of what a training of an experiment keeps."""
    options = ["--trainer.logger=false", "--trainer.accelerator=cpu"]
    arguments = ["fit", f"--exp={name}", f"--scale={scale}", *options, *EXPERIMENTS[name]]
    method = Builder(expand(arguments)).model
    method._trainer = SimpleNamespace(estimated_stepping_batches=100, max_epochs=1)
    configured = method.configure_optimizers()
    optimizer = configured["optimizer"] if isinstance(configured, dict) else configured
    optimizer = optimizer[0][0] if isinstance(optimizer, tuple) else optimizer
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    states = (x for s in optimizer.state.values() for x in s.values() if isinstance(x, Tensor))
    kept = {
        "weights_mb": megabytes([*method.parameters(), *method.buffers()]),
        "gradients_mb": megabytes(p.grad for p in trained),
        "optimizer_mb": megabytes(states),
    }
    millions = sum(p.numel() for p in trained) / 1e6
    return {
        "experiment": name,
        "trained_millions": millions,
        **kept,
        "in_all_mb": sum(kept.values()),
    }


def main() -> None:
    """Measure, print, and write a record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scale", default="paper")
    parser.add_argument("--out", type=Path, help="a record to write")
    chosen = parser.parse_args()
    start, rows = time.perf_counter(), []
    for name in EXPERIMENTS:
        rows.append(measure(name, chosen.scale))
        print(*(f"{key} {value}" for key, value in rows[-1].items()), sep=", ", flush=True)
    if chosen.out:
        config = {"scale": chosen.scale}
        write_record(chosen.out, "Memory", rows, config, seconds=time.perf_counter() - start)


if __name__ == "__main__":
    main()
