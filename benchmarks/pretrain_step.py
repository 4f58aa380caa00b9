"""What a step of HandMIM's pre-training costs over the bare networks, and where the rest goes.

    python benchmarks/pretrain_step.py [--scales gpu cpu] [--batch 32] [--repeats 5] [--out FILE]

The model is that of the experiment `handmim_pretrain` at a scale: `gpu` is a ViT-S/16 at 224 px,
with 8192 prototypes. The bar: at most 1.25 times the teacher's forward of two views plus the
student's forward and backward of them, in bf16, on a CPU (one thread, by its CPU time) or a GPU.
What each term costs is the difference that its removal makes. The optimizer's step and the
teacher's average stand beside: they are as long for any batch.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from jsonargparse import ArgumentParser

from handrec.cli.experiments import config_chain, find, overlays
from handrec.methods.handmim_pretrain import HandMIMPretrain
from handrec.models.masking import draw_masks
from handrec.records import write_record
from handrec.types import HandBatch

TERMS = ("tokens", "patches", "pixels")


def pretraining(scale: str, device: str, without: tuple[str, ...] = ()) -> HandMIMPretrain:
    """Return the method as the experiment has it at a scale, ready for single steps."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(HandMIMPretrain, "model")
    chain = config_chain(find("EXP", "handmim_pretrain"))
    for path in overlays(scale, "synthetic", "handmim_pretrain"):
        chain += config_chain(path)
    config = None
    for path in chain:
        if found := yaml.safe_load(path.read_text()).get("model"):
            config = parser.parse_object({"model": found}, cfg_base=config)
    assert config is not None
    for name in without:
        config[f"model.init_args.weights.{name}"] = 0.0
    method: HandMIMPretrain = parser.instantiate_classes(config)["model"]
    method.trainer = pl.Trainer(logger=False, barebones=True, accelerator="cpu")
    method.trainer.log_every_n_steps = 10**9  # type: ignore[attr-defined]
    return method.to(device).train()


def batch_of(count: int, method: HandMIMPretrain, device: str) -> HandBatch:
    """Return random images; no label is read."""
    side = method.student.backbone.model.patch_embed.img_size[0]
    image = torch.rand(count, 3, side, side, device=device)
    return HandBatch(*[torch.zeros(count)] * len(HandBatch._fields))._replace(image=image)


def milliseconds(work: dict[str, Callable[[], Any]], device: str, repeats: int) -> dict[str, float]:
    """Return the median of some calls of each, in turn: CPU time of one thread, or a GPU's time.

    Short calls are repeated for half a minute, whatever `repeats` is: they scatter more.
    """
    clock = time.perf_counter if device == "cuda" else time.thread_time
    seconds: dict[str, list[float]] = {name: [] for name in work}
    begun = time.perf_counter()
    while len(seconds["step"]) <= repeats or time.perf_counter() - begun < 30:
        for name, call in work.items():
            start = clock()
            call()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(clock() - start)
    return {name: 1000 * median(values[1:]) for name, values in seconds.items()}


def step_of(method: HandMIMPretrain, batch: HandBatch, device: str) -> Callable[[], None]:
    """Return a step without the optimizer."""

    def step() -> None:
        with torch.autocast(device, torch.bfloat16):
            loss = method.training_step(batch, 0)
        loss.backward()

    return step


def bare(method: HandMIMPretrain, batch: HandBatch, device: str) -> dict[str, Callable[[], None]]:
    """Return the networks alone, on two views."""
    views = torch.cat([batch.image, batch.image])

    def teacher() -> None:
        with torch.no_grad(), torch.autocast(device, torch.bfloat16):
            method.teacher.backbone.encode(views)

    def student() -> None:
        with torch.autocast(device, torch.bfloat16):
            seen = method.student.backbone.encode(views)
            loss = seen.grid.float().mean() + seen.pooled.float().mean()
        loss.backward()

    return {"teacher": teacher, "student": student}


def measure(scale: str, count: int, repeats: int, device: str) -> dict[str, Any]:
    """Return the figures of one scale."""
    method = pretraining(scale, device)
    batch = batch_of(count, method, device)
    views = torch.cat([batch.image, batch.image])
    optimizer: torch.optim.Optimizer = method.configure_optimizers()  # type: ignore[assignment]

    def update() -> None:
        method.on_before_optimizer_step(optimizer)
        optimizer.step()
        method.follow(0.99)

    work = bare(method, batch, device) | {
        "step": step_of(method, batch, device),
        "optimizer_and_average": update,
        "views": lambda: method.views.take(batch.image),
        "masks": lambda: draw_masks(views, method.patch, method.masking),
    }
    for term in TERMS:
        work[term] = step_of(pretraining(scale, device, (term,)), batch, device)
    found = milliseconds(work, device, repeats)
    for term in TERMS:
        found[term] = found["step"] - found[term]
    ratio = found["step"] / (found["teacher"] + found["student"])
    parts = {f"{name}_ms": round(value, 1) for name, value in found.items()}
    return {"scale": scale, "device": device, "batch": count, "ratio": ratio, **parts}


def main() -> None:
    """Measure, print, and write a record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scales", nargs="+", default=["gpu", "cpu"])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    if chosen.device == "cpu":
        torch.set_num_threads(1)
    torch.manual_seed(0)
    start, rows = time.perf_counter(), []
    for scale in chosen.scales:
        rows.append(measure(scale, chosen.batch, chosen.repeats, chosen.device))
        print(rows[-1], flush=True)
    if chosen.out:
        config = {"batch": chosen.batch, "repeats": chosen.repeats}
        name, seconds = "Step of the pre-training", time.perf_counter() - start
        write_record(chosen.out, name, rows, config, seed=0, seconds=seconds)


if __name__ == "__main__":
    main()
