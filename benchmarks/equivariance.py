"""Turns pictures and looks whether the pseudo keypoints turn with them.

    python benchmarks/equivariance.py [--run handmim_pretrain] [--images 128] [--out FILE]
        [--picture FILE]

For a run of `handmim_pretrain` on synthetic data: each picture of the validation split is turned
about its centre, the teacher's pseudo keypoints are found and turned back (aligned). Where they
stay, the network knows how the hand is turned. How far they move is given in units of the distance
at which they lie from their centre, so that a network cannot win by putting all points in one
place. The bar: trained, they move less than with random weights.
"""

import argparse
import math
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from _runs import data_of, untrained
from handrec.cli import runs
from handrec.data.synthetic import SyntheticHands
from handrec.data.views import similarity, warp
from handrec.geometry.mesh import farthest_point_sampling
from handrec.methods.handmim_pretrain import HandMIMPretrain
from handrec.methods.loading import load_method
from handrec.models.prototypes import Branch
from handrec.records import write_record

ANGLES = (-60, -40, -20, -10, 10, 20, 40, 60)
SHOWN = (-40, -20, 0, 20, 40)
POINTS = 10


def validation_images(run: Path, count: int) -> Tensor:
    """Return pictures of the validation split that a run was trained with."""
    data = data_of(run)
    assert isinstance(data, SyntheticHands), "equivariance: the run is not of synthetic data"
    data.maker.make("val")
    data.setup("validate")
    table = data.tables["val"]
    return data.label(table.rows(torch.arange(min(count, len(table)))), "val").image


@torch.no_grad()
def keypoints(
    method: HandMIMPretrain, branch: Branch, images: Tensor, angle: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the turned pictures, their pseudo keypoints, and these once aligned."""
    turn = torch.full((len(images),), math.radians(angle))
    matrix = similarity(turn, torch.ones_like(turn), torch.zeros(len(images), 2))
    turned = warp(images, matrix, images.shape[-1])
    tokens = branch.backbone.encode(turned).pooled
    seen = branch.token_head.points(branch.token_head.embed(tokens))
    return turned, seen, method.keypoints(branch.token_head, tokens, matrix)


def movement(method: HandMIMPretrain, branch: Branch, images: Tensor) -> dict[int, float]:
    """Return how far aligned points move from where they are in upright pictures, by angle."""
    upright = keypoints(method, branch, images, 0.0)[2]
    reach = (upright - upright.mean(1, keepdim=True)).norm(dim=-1).mean()
    moved = {
        angle: (keypoints(method, branch, images, angle)[2] - upright).norm(dim=-1).mean() / reach
        for angle in ANGLES
    }
    return {angle: float(value) for angle, value in moved.items()}


def plot(
    method: HandMIMPretrain, images: Tensor, figures: dict[str, dict[int, float]], path: Path
) -> None:
    """Draw one picture turned, with its points and with all angles' points aligned; and the curves.

    Of the points that stay inside the picture some are shown that lie far from each other.
    """
    branch = method.teacher
    _, upright, _ = keypoints(method, branch, images[:1], 0.0)
    inside = (upright[0].norm(dim=-1) < 1).nonzero().flatten()
    chosen = inside[farthest_point_sampling(upright[0, inside], min(POINTS, len(inside)))]
    colours = plt.get_cmap("tab10")(range(len(chosen)))
    figure, axes = plt.subplots(1, len(SHOWN) + 2, figsize=(13, 2.3), width_ratios=[1] * 6 + [1.4])
    for axis, angle in zip(axes, SHOWN, strict=False):
        turned, seen, aligned = keypoints(method, branch, images[:1], angle)
        for where, points, picture in ((axis, seen, turned), (axes[-2], aligned, images[:1])):
            where.imshow(picture[0].permute(1, 2, 0), extent=(-1, 1, 1, -1))
            where.scatter(*points[0, chosen].T, c=colours, s=14, edgecolors="black", linewidths=0.4)
            where.set(xticks=[], yticks=[], xlim=(-1, 1), ylim=(1, -1))
        axis.set_title(f"turned by {angle}°", fontsize=8)
    axes[-2].set_title("all of them aligned", fontsize=8)
    for name, moved in figures.items():
        axes[-1].plot([*moved], [*moved.values()], marker="o", markersize=3, label=name)
    axes[-1].set_xlabel("turned by, degrees", fontsize=7)
    axes[-1].set_ylabel("movement once aligned", fontsize=7)
    axes[-1].tick_params(labelsize=7)
    axes[-1].set_ylim(bottom=0)
    axes[-1].legend(fontsize=7)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main() -> None:
    """Measure, print, and write a record and a picture where asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", default="handmim_pretrain", help="experiment or run directory")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--picture", type=Path)
    chosen = parser.parse_args()
    start, run = time.perf_counter(), runs.resolve(chosen.run)
    torch.manual_seed(0)
    method = load_method(runs.choose_checkpoint(run, "last"))
    assert isinstance(method, HandMIMPretrain)
    method.eval()
    other = untrained(run).eval()
    assert isinstance(other, HandMIMPretrain)
    images = validation_images(run, chosen.images)
    branches = {"trained": method.teacher, "random weights": other.teacher}
    figures = {name: movement(method, branch, images) for name, branch in branches.items()}
    rows = [
        {"weights": name} | {f"moved_at_{angle}": round(value, 3) for angle, value in moved.items()}
        for name, moved in figures.items()
    ]
    print(*rows, sep="\n")
    if chosen.picture:
        plot(method, images, figures, chosen.picture)
    if chosen.out:
        seconds = time.perf_counter() - start
        write_record(chosen.out, "Equivariance", rows, {"images": len(images)}, 0, seconds)


if __name__ == "__main__":
    main()
