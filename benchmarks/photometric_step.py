"""What drawing the hand and comparing it with the photo costs, of a whole training step of S2HAND.

    python benchmarks/photometric_step.py [--batch 8] [--repeats 5] [--out FILE]

The bar, on a CPU at 224 px: rendering and photometric losses, forward and backward, take at most
35 % of the step of the experiment `s2hand` (its own network, in full precision). Beside it are that
network without its 2D branch, and those of `SCALE=cpu`, in bfloat16 as there, where the CPU has it.
A step is forward, losses, backward and optimizer; hands are where they should be, so that as many
pixels are drawn as in a training that goes well. CPU time of one thread.
"""

import argparse
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from handrec.cli.command_line import expand
from handrec.cli.hand_cli import HandCLI
from handrec.cli.trainer_checks import has_bf16
from handrec.data.synthetic import SyntheticHands
from handrec.losses import photometric
from handrec.losses.hand import total
from handrec.methods.s2hand import S2HAND, Seen
from handrec.models.s2hand_appearance import Appearance
from handrec.records import write_record
from handrec.render.warp_backend import WarpRasterizer
from handrec.types import HandBatch, HandPrediction

#: What it is, scale, side of the crops, further options; the bar is the first row's.
NETWORKS = (
    ("EfficientNet-B3, hourglass", "paper", 224, ()),
    ("EfficientNet-B3 alone", "paper", 224, ("--model.init_args.keypoints=null",)),
    ("of SCALE=cpu", "cpu", 224, ("--model.init_args.backbone.init_args.image_size=224",)),
    ("of SCALE=cpu", "cpu", 64, ()),
)

BAR = 0.35


class Builder(HandCLI):
    """Builds what a training is made of, and does not train."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def build(scale: str, options: tuple[str, ...]) -> S2HAND:
    """Return the network of the experiment at a scale, past the ramp of its photometric losses."""
    arguments = [f"--scale={scale}", "--trainer.logger=false", "--trainer.accelerator=cpu"]
    method = Builder(expand(["fit", "--exp=s2hand", *arguments, *options])).model
    assert isinstance(method, S2HAND)
    method.progress = lambda: 1.0
    method.log_losses = lambda *_: None
    return method.train()


def batch_of(method: S2HAND, size: int, count: int) -> HandBatch:
    """Return a batch of synthetic hands."""
    with TemporaryDirectory() as folder:
        data = SyntheticHands(
            method.hand, WarpRasterizer(), size, count, count, 1, 1, detector="typical",
            cache_dir=folder,
        )  # fmt: skip
        data.prepare_data()
        data.setup("fit")
        return data.label(next(iter(data.train_dataloader())))


def put_in_place(method: S2HAND, batch: HandBatch) -> None:
    """Make a method draw the labelled hands; gradients go where they would have gone."""
    see = method.see

    def seen(given: HandBatch) -> Seen:
        found = see(given)
        hand = found.hand
        vertices = batch.vertices + hand.vertices - hand.vertices.detach()
        return found._replace(hand=hand._replace(vertices=vertices))

    method.see = seen


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    """Return the CPU time of the fastest run after the first."""
    times = []
    for _ in range(repeats + 1):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return 1000 * min(times[1:])


def measure(
    name: str, scale: str, size: int, options: tuple[str, ...], count: int, repeats: int
) -> dict[str, str | int | float]:
    """Return milliseconds per step of one network, and the photometric part's share."""
    torch.manual_seed(0)
    method = build(scale, options)
    batch = batch_of(method, size, count)
    put_in_place(method, batch)
    optimizer = torch.optim.Adam(method.parameters(), lr=1e-4)
    half = scale == "cpu" and has_bf16()
    precision = torch.autocast("cpu", torch.bfloat16) if half else contextlib.nullcontext()

    def step() -> None:
        optimizer.zero_grad()
        with precision:
            loss = method.training_step(batch, 0)
        loss.backward()
        optimizer.step()

    whole = milliseconds(step, repeats)
    with precision, torch.no_grad():
        hand, look = leaves(method.see(batch))
    weight = torch.ones_like(batch.has_mask)
    blank = batch.image.clone().requires_grad_()

    def draw() -> Tensor:
        return method.render(hand, batch.camera, batch.image).image.sum()

    def ssim() -> Tensor:
        return photometric.ssim_loss(blank, batch.image, batch.mask, weight)

    def compare() -> Tensor:
        return total(method.photometric_terms(hand, look, batch), method.weights)

    part = milliseconds(lambda: compare().backward(), repeats)
    return {
        "network": name,
        "size_px": size,
        "precision": "bfloat16" if half else "float32",
        "step_ms": whole,
        "photometric_ms": part,
        "drawing_ms": milliseconds(lambda: draw().backward(), repeats),
        "ssim_ms": milliseconds(lambda: ssim().backward(), repeats),
        "share": part / whole,
    }


def leaves(seen: Seen) -> tuple[HandPrediction, Appearance]:
    """Return hand and look as if they were parameters."""
    assert seen.appearance is not None
    look = seen.appearance
    light = type(look.light)(*(x.clone().requires_grad_() for x in look.light))
    offsets = look.offsets.clone().requires_grad_()
    look = Appearance(look.texture.clone().requires_grad_(), offsets, light)
    hand = seen.hand
    vertices = hand.vertices.clone().requires_grad_()
    return hand._replace(vertices=vertices, texture=look.texture, light=light), look


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="a record to write")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    start, rows = time.perf_counter(), []
    for network in NETWORKS:
        rows.append(measure(*network, chosen.batch, chosen.repeats))
        print(rows[-1], flush=True)
    met = float(rows[0]["share"]) <= BAR
    bar = f"photometric share of the step of s2hand at 224 px on one thread at most {BAR:.0%}"
    print(f"{bar}: met: {met}")
    if chosen.out:
        config = {"batch": chosen.batch, "repeats": chosen.repeats, "bar": bar, "met": met}
        seconds = time.perf_counter() - start
        write_record(chosen.out, "Photometric share of a step", rows, config, 0, seconds)


if __name__ == "__main__":
    main()
