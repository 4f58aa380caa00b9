"""What each term of CycleHand pulls at, and whether the true error falls that way.

    python benchmarks/cyclehand_gradients.py --run RUN [--start RUN] [--batches 64]
        [--progress 0.25] [--out FILE]

For the last weights of a run of phase 2, or where it started, from the last ones of phase 1
(`--start`), at its own data. Of every term, at the weight of the experiment, the gradient with
respect to backbone and head is set against some that no training sees: of the labels' loss of the
batch's own unlabelled pictures, of other unlabelled ones, and of `val`. `own`, `others` and `val`
are cosines: positive where a small step down the term lowers that error, 0 where it does as much
as any random direction, negative where it raises it. `own` is the mean of single batches, with its
standard error; `others` and `val` are of the mean gradients of a quarter of the batches each.
`size` is the length of such a mean over that of the labels' term, `steady` the length of the mean
of all batches over the mean length: what is left of a term once noise has averaged out. `photo,
hand` is the part of `photo` that reaches the network by way of the hand's pose, not by its texture
and light.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import fields, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor, nn

from _runs import data_of
from handrec.cli import runs
from handrec.data.mixture import MixedBatch, SyntheticMixture
from handrec.losses.hand import total
from handrec.methods.cyclehand import CycleHand, CycleHandWeights
from handrec.methods.handmim import label_terms
from handrec.methods.loading import load_method
from handrec.records import write_record
from handrec.types import HandBatch

#: Names of weights by row of the table; the first is what lengths are measured by.
TERMS = {
    "labels": ("vertices", "joints", "local", "keypoints", "rotations", "shape", "dense"),
    **{
        name: (name,)
        for name in (
            "rendered", "returned", "photo", "photo_returned", "contrast", "limits", "penetration",
        )
    },
}  # fmt: skip
#: Rows whose texture and light are taken as given.
BY_HAND = {"photo, hand": ("photo",), "photo_returned, hand": ("photo_returned",)}
GROUPS = 4


def only(*names: str) -> CycleHandWeights:
    """Return the experiment's weights of some terms, and 0 for the others."""
    off = {field.name: 0.0 for field in fields(CycleHandWeights) if field.name not in names}
    return replace(CycleHandWeights(), **off)


class Probe:
    """Gradients of a method's terms on the data of its run.

    Args:
        run: of phase 2.
        start: of phase 1, whose weights are taken, or None.
        progress: share of the training that is over: what ramps and turns go by.
    """

    def __init__(self, run: Path, start: Path | None, progress: float) -> None:
        method = load_method(runs.choose_checkpoint(run, "last"))
        assert isinstance(method, CycleHand), f"{run}: not of CycleHand"
        assert method.phase == "cycle", f"{run}: not of phase 2"
        if start is not None:
            method.load_base(runs.choose_checkpoint(start, "last"))
        # What a trainer would tell, which there is none of.
        method.progress = lambda: progress  # type: ignore[method-assign]
        method.log_losses = lambda terms, loss: None  # type: ignore[method-assign]
        self.method = method.train()
        self.wanted = [
            p for part in (method.backbone, method.head) for p in part.parameters()
            if p.requires_grad
        ]  # fmt: skip

    def gradient(self, loss: Tensor) -> Tensor:
        """Return a loss's gradient as one vector; 0 where it does not reach."""
        if not loss.requires_grad:
            return torch.zeros(sum(p.numel() for p in self.wanted))
        found = torch.autograd.grad(loss, self.wanted, allow_unused=True)
        parts = (
            torch.zeros_like(p) if g is None else g for g, p in zip(found, self.wanted, strict=True)
        )
        return torch.cat([part.flatten() for part in parts])

    def of_term(
        self, names: tuple[str, ...], batch: HandBatch, seed: int, looks: bool = True
    ) -> Tensor:
        """Return the gradient of some terms at their weights; the same draws for every term.

        Args:
            names: of the weights.
            batch: of the training.
            seed: of the draws.
            looks: whether texture and light pass the gradient on.
        """
        self.method.weights = only(*names)
        torch.manual_seed(seed)
        with nullcontext() if looks else detached_input(self.method.texture):
            return self.gradient(self.method.training_step(batch, 0))

    def of_labels(self, batch: HandBatch) -> Tensor:
        """Return the gradient of the labels' loss of a batch that has all of them."""
        method = self.method
        terms = label_terms(method.see(batch).estimates, batch, method.hand, method.rasterizer)
        return self.gradient(total(terms, CycleHandWeights()))


@contextmanager
def detached_input(module: nn.Module) -> Iterator[None]:
    """Keep gradients from what a module is given."""
    hook = module.register_forward_pre_hook(lambda _, given: tuple(x.detach() for x in given))
    try:
        yield
    finally:
        hook.remove()


def pictures(data: SyntheticMixture, count: int) -> Iterator[tuple[HandBatch, ...]]:
    """Yield batches of the training, and with their labels their unlabelled pictures, others, val.

    None of the others is in any of these batches; the run's own training saw all, without labels.
    """
    train, val = data.tables["train"], data.tables["val"]
    pool = data.target.tables["train"]
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(0))
    mine, others = order.chunk(2)
    some, size = data.count(), data.batch_size
    generator = torch.Generator().manual_seed(1)

    def rows(among: Tensor, number: int) -> Tensor:
        return among[torch.randint(len(among), (number,), generator=generator)]

    for _ in range(count):
        labelled = train.rows(rows(torch.arange(len(train)), size - some))
        shown = pool.rows(rows(mine, some))
        yield (
            data.mix(MixedBatch(labelled, shown)),
            data.target.label(shown),
            data.target.label(pool.rows(rows(others, size))),
            data.label(val.rows(rows(torch.arange(len(val)), size)), "val"),
        )


def cosine(a: Tensor, b: Tensor) -> float:
    """Return the cosine of two gradients; 0 where one is 0."""
    return float(a @ b / (a.norm() * b.norm()).clamp(min=1e-30))


def norm_of_sum(groups: list[dict[str, Tensor]], name: str) -> float:
    """Return the length of all batches' gradients together."""
    return float(torch.stack([group[name] for group in groups]).sum(0).norm())


def summary(name: str, values: list[float]) -> dict[str, float]:
    """Return the mean of a figure's groups and its standard error."""
    error = stdev(values) / len(values) ** 0.5
    return {name: round(fmean(values), 4), f"{name}_error": round(error, 4)}


def measure(probe: Probe, data: SyntheticMixture, batches: int) -> list[dict[str, Any]]:
    """Return a row per term."""
    groups: list[dict[str, Tensor]] = []
    lengths, own = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
    for index, (batch, *told) in enumerate(pictures(data, batches)):
        if index % (batches // GROUPS) == 0:
            groups.append(defaultdict(lambda: torch.zeros(())))
        found = {name: probe.of_term(names, batch, index) for name, names in TERMS.items()}
        for name, names in BY_HAND.items():
            found[name] = probe.of_term(names, batch, index, looks=False)
        mine, others, val = map(probe.of_labels, told)
        for name, gradient in found.items():
            lengths[name].append(float(gradient.norm()))
            own[name].append(cosine(gradient, mine))
        for name, gradient in {**found, "others": others, "val": val}.items():
            groups[-1][name] = groups[-1][name] + gradient
        print(f"batch {index + 1}/{batches}", flush=True)
    return [
        {
            "term": name,
            **summary("size", [float(g[name].norm() / g["labels"].norm()) for g in groups]),
            **summary("own", own[name]),
            **summary("others", [cosine(g[name], g["others"]) for g in groups]),
            **summary("val", [cosine(g[name], g["val"]) for g in groups]),
            "steady": round(norm_of_sum(groups, name) / sum(lengths[name]), 4),
        }
        for name in own
        if any(lengths[name])
    ]


def main() -> None:
    """Measure, print, and write a record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", required=True)
    parser.add_argument("--start", help="a run of phase 1; else the last weights of --run")
    parser.add_argument("--batches", type=int, default=64, help="a multiple of 4")
    parser.add_argument("--progress", type=float, default=0.25, help="of the training, 0 to 1")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    if chosen.batches < GROUPS or chosen.batches % GROUPS:
        parser.error(f"--batches {chosen.batches} is no multiple of {GROUPS}")
    start, run = time.perf_counter(), runs.resolve(chosen.run)
    data = data_of(run)
    assert isinstance(data, SyntheticMixture), f"{run}: not of synthetic_mixture"
    data.maker.make("val")
    data.setup("fit")
    begin = None if chosen.start is None else runs.resolve(chosen.start)
    figures = measure(Probe(run, begin, chosen.progress), data, chosen.batches)
    for row in figures:
        print(row)
    if chosen.out:
        where = run.parent.name if begin is None else begin.parent.name
        config = {"run": run.parent.name, "batches": chosen.batches, "progress": chosen.progress}
        name, seconds = f"gradients at {where}", time.perf_counter() - start
        write_record(chosen.out, name, figures, config, seconds=seconds)


if __name__ == "__main__":
    main()
