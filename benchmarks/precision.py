"""How far the losses of half precision are from those of float32, for every method.

    python benchmarks/precision.py [--steps 200] [--methods handmim s2hand ...] [--out FILE]

Each method trains at `smoke` scale from the same weights on the same batches with the same random
numbers, in `32-true`, `bf16-mixed` and `16-mixed`; differences are relative to the loss of the same
step in float32, and grow as the weights drift apart. On a CPU `--trainer.precision=16-mixed` is
refused by Lightning, which takes bf16-mixed instead; here torch's float16 autocast and its
`GradScaler` are asked for directly. The bar: all losses are finite, or the status is 1.

A CPU without bfloat16 does products of halves by plain loops: 200 steps would take hours. There
they are done as hardware does them, summed in float32 and rounded; the record says so.
"""

import argparse
import contextlib
import math
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from handrec.cli.command_line import expand
from handrec.cli.hand_cli import HandCLI
from handrec.cli.trainer_checks import has_bf16
from handrec.records import write_record

METHODS = (
    "handmim", "handmim_finetune", "handmim_pretrain", "s2hand", "s2hand_shape", "s2hand_keypoints",
    "s2hand_finetune", "s2hand_video", "cyclehand_base", "cyclehand",
)  # fmt: skip
HALVES = ("bf16-mixed", "16-mixed")

aten = torch.ops.aten
PRODUCTS = {
    aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default,
    aten.convolution.default, aten.convolution_backward.default,
}  # fmt: skip


class SummedInFloat32(TorchDispatchMode):
    """Does products of halves in float32 and rounds the results."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        tensors = [argument for argument in args if isinstance(argument, Tensor)]
        halves = {t.dtype for t in tensors} & {torch.bfloat16, torch.float16}
        if func not in PRODUCTS or not halves:
            return func(*args, **(kwargs or {}))
        (half,) = halves
        result = func(*tree_map_only(Tensor, Tensor.float, args), **(kwargs or {}))
        return tree_map_only(Tensor, lambda tensor: tensor.to(half), result)


class Losses(pl.Callback):
    """Keeps the loss of every step, and how many steps a gradient scaler left out."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.left_out = 0
        self._scale = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the scale that the scaler begins with."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self._scale = scaler.get_scale() if scaler is not None else 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any
    ) -> None:
        """Keep the loss."""
        self.losses.append(float(outputs["loss"]))
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None:  # it halves its scale when it leaves a step out
            self.left_out += scaler.get_scale() < self._scale
            self._scale = scaler.get_scale()


class Trained(HandCLI):
    """Trains, keeps its losses and leaves no files."""

    precision = "32-true"

    def _run_subcommand(self, subcommand: str) -> None:
        self.kept = Losses()
        self.trainer.callbacks = [self.kept]
        if self.precision != "32-true":
            device = self.trainer.strategy.root_device.type
            self.trainer.strategy.precision_plugin = MixedPrecision(self.precision, device)
        super()._run_subcommand(subcommand)


def train(method: str, precision: str, steps: int, batch: int, cache: str) -> Losses:
    """Return the losses of a training."""
    plain = "handrec.data.appearance.plain.Plain"
    options = [
        "--trainer.logger=false", "--trainer.enable_checkpointing=false",
        "--trainer.enable_progress_bar=false", "--trainer.callbacks=null",
        "--trainer.precision=32-true", "--trainer.max_epochs=-1", f"--trainer.max_steps={steps}",
        "--trainer.limit_train_batches=1.0", "--trainer.limit_val_batches=0",
        f"--data.init_args.train_size={16 * batch}", f"--data.init_args.batch_size={batch}",
        f"--data.init_args.appearance={plain}", f"--data.init_args.shifted={plain}",
        f"--data.init_args.cache_dir={cache}", "--data.init_args.cached=true",
    ]  # fmt: skip
    chosen = type("Chosen", (Trained,), {"precision": precision})
    with contextlib.nullcontext() if has_halves() else SummedInFloat32():
        kept: Losses = chosen(expand(["fit", f"--exp={method}", "--scale=smoke", *options])).kept
    return kept


def has_halves() -> bool:
    """Return whether the device multiplies halves itself."""
    return torch.cuda.is_available() or has_bf16()


def row(method: str, precision: str, half: Losses, full: Losses) -> dict[str, str | int | float]:
    """Return how far a training's losses are from those in float32."""
    pairs = list(zip(half.losses, full.losses, strict=True))
    apart = [abs(h - f) / abs(f) if math.isfinite(h) else math.nan for h, f in pairs]
    finite = [a for a in apart if math.isfinite(a)]
    tail = max(1, len(pairs) // 10)
    return {
        "method": method,
        "precision": precision,
        "steps": len(pairs),
        "first_step_percent": 100 * apart[0],
        "mean_percent": 100 * statistics.mean(finite or [math.nan]),
        "largest_percent": 100 * max(finite, default=math.nan),
        "loss_at_the_end": statistics.mean(h for h, _ in pairs[-tail:]),
        "in_float32": statistics.mean(f for _, f in pairs[-tail:]),
        "not_finite": len(pairs) - len(finite),
        "steps_left_out": half.left_out,
    }


def main() -> None:
    """Measure, print, and write a record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--out", type=Path, help="a record to write")
    chosen = parser.parse_args()
    start, rows = time.perf_counter(), []
    with TemporaryDirectory() as cache:
        for method in chosen.methods:
            full = train(method, "32-true", chosen.steps, chosen.batch, cache)
            for precision in HALVES:
                half = train(method, precision, chosen.steps, chosen.batch, cache)
                rows.append(row(method, precision, half, full))
                print(*(f"{key} {value}" for key, value in rows[-1].items()), sep=", ", flush=True)
    if chosen.out:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        config = {"scale": "smoke", "batch": chosen.batch, "device": device}
        config["products"] = "the device's" if has_halves() else "float32, rounded"
        seconds = time.perf_counter() - start
        write_record(chosen.out, "Precision", rows, config, 0, seconds)
    sys.exit(any(row["not_finite"] for row in rows))


if __name__ == "__main__":
    main()
