"""Watches the memory of a training of many tiny steps: it must stay flat.

    python benchmarks/memory_flat.py [--steps 20000] [--experiment handmim_pretrain] [--out FILE]
    make bench BENCH=memory_flat

One process trains at smoke scale through everything a long run goes through: epochs, validations,
checkpoints, logging. Its resident memory is read from the system at 100 moments (and on a GPU what
is allocated there). The bar: over the second half of the training, a straight line through the
readings rises by less than 1 % of them. With `--out FILE.json` the curve is drawn to FILE.png.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure

from handrec.cli.main import main as handrec
from handrec.records import write_record

#: Pictures drawn plainly; epochs of 100 steps, so that 20,000 steps are 200 validations.
SMALL = [
    "--scale=smoke",
    "--trainer.limit_train_batches=100",
    "--trainer.limit_val_batches=1",
    "--data.init_args.train_size=200",
    "--data.init_args.appearance=handrec.data.appearance.plain.Plain",
    "--data.init_args.shifted=handrec.data.appearance.plain.Plain",
]
#: A rise over the second half that counts as flat, share of the mean.
FLAT = 0.01


class Memory(pl.Callback):
    """Reads the memory of this process every so many steps.

    Args:
        every: steps.
        file: where the readings go, one line each: step, resident MB, allocated MB on the GPU.
    """

    def __init__(self, every: int, file: str) -> None:
        self.every, self.file = every, file

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        """Read it if it is time."""
        if trainer.global_step % self.every:
            return
        device = torch.cuda.memory_allocated() / 1e6 if torch.cuda.is_available() else 0.0
        with Path(self.file).open("a", encoding="utf-8") as file:
            file.write(f"{trainer.global_step} {resident()} {device}\n")


def resident() -> float:
    """Return the resident memory of this process, MB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def rise(readings: np.ndarray) -> float:
    """Return by what share of their mean readings rise along a straight line through them."""
    at = np.linspace(0.0, 1.0, len(readings))
    return float(np.polyfit(at, readings, 1)[0] / max(readings.mean(), 1e-9))


def draw(table: np.ndarray, experiment: str, path: Path) -> None:
    """Draw the readings over the steps."""
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(table[:, 0], table[:, 1], label="resident")
    if table[:, 2].any():
        axes.plot(table[:, 0], table[:, 2], label="on the GPU")
        axes.legend()
    axes.set(
        xlabel="step", ylabel="memory, MB", title=experiment, ylim=(0, 1.1 * table[:, 1:].max())
    )
    figure.savefig(path, dpi=150)


def train(folder: Path, experiment: str, steps: int, options: list[str]) -> np.ndarray:
    """Train so many steps below a folder; return the readings, ``(n, 3)``."""
    readings = folder / "memory.txt"
    status = handrec(
        [
            "fit", f"--exp={experiment}", *SMALL, f"--trainer.max_steps={steps}",
            "--trainer.max_epochs=-1", f"--trainer.default_root_dir={folder}",
            f"--data.init_args.cache_dir={folder / 'cache'}",
            f"--trainer.callbacks+={__name__}.Memory",
            f"--trainer.callbacks.every={max(1, steps // 100)}",
            f"--trainer.callbacks.file={readings}", *options,
        ]
    )  # fmt: skip
    if status:
        sys.exit(status)
    return np.loadtxt(readings)


def main() -> None:
    """Measure, print, and write a record and a figure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--experiment", default="handmim_pretrain")
    parser.add_argument("--out", type=Path)
    chosen, options = parser.parse_known_args()  # the rest is handrec's
    if chosen.steps < 20:
        parser.error("--steps must be at least 20")
    os.environ["WANDB_MODE"] = "disabled"
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        table = train(Path(folder), chosen.experiment, chosen.steps, options)
    late = table[len(table) // 2 :]
    rises = {"resident_rise": rise(late[:, 1]), "device_rise": rise(late[:, 2])}
    flat = max(rises.values()) < FLAT
    figures = {
        "experiment": chosen.experiment, "steps": chosen.steps,
        "resident_half_way_mb": round(float(late[0, 1]), 1),
        "resident_end_mb": round(float(late[-1, 1]), 1),
        **{name: round(value, 4) for name, value in rises.items()}, "flat": flat,
    }  # fmt: skip
    print(figures)
    if chosen.out:
        seconds = time.perf_counter() - begun
        write_record(chosen.out, "memory_flat", figures, {"steps": chosen.steps}, 0, seconds)
        draw(table, chosen.experiment, chosen.out.with_suffix(".png"))
    sys.exit(not flat)


if __name__ == "__main__":
    main()
