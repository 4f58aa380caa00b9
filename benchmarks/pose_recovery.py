"""How often a hand is found from a picture of it, with and without the gradient of visibility.

    python benchmarks/pose_recovery.py [--starts 20] [--steps 300] [--seed 0] [--out FILE]

Random hands are drawn in their light at 112 x 112 pixels. From a start whose pose, shape and place
are off, Adam fits all of them to the silhouette and the shading, by backpropagation through the
rasterizer alone: no keypoints, no prior. A start converges if the vertices end up within 3 mm of
where they should be, in the mean and relative to the mean vertex; `in_place` counts those that do
so in absolute position, too, though one picture hardly tells a near hand from a big one. The bar:
at least twice as many converge with the gradient of visibility as without.
"""

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from handrec.cli.results import table
from handrec.data.appearance.plain import Plain, skin_colours
from handrec.data.scenes import Scenes, sample_scenes, scene_camera
from handrec.geometry.rotations import axis_angle_to_matrix
from handrec.hand.openhand import OpenHand
from handrec.records import write_record
from handrec.render.base import Rasterizer
from handrec.render.shading import Light, render_lit
from handrec.render.warp_backend import WarpRasterizer
from handrec.types import Rendering
from handrec.viz.drawing import to_picture
from handrec.viz.report import encode_png

SIZE = 112
#: Metres, of the mean distance between vertices.
CONVERGED = 0.003
#: Of the picture and of its halvings: blurred pictures pull from farther off.
LEVELS = 3
#: Of Adam at first, in standard deviations of the start; it falls to zero along a cosine.
RATE = 0.1


class Unseen(WarpRasterizer):
    """A rasterizer as it would be without its gradient of visibility."""

    def visibility(
        self, image: Tensor, mask: Tensor, screen: Tensor, faces: Tensor, face_index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return image and mask."""
        return image, mask


class Offsets(NamedTuple):
    """What is fitted, relative to the truth, each in units of the start's standard deviation.

    Attributes:
        rotation: of the whole hand, axis-angle in the camera frame.
        fingers: principal components of the finger pose.
        shape: shape coefficients.
        place: translation.
    """

    rotation: Tensor
    fingers: Tensor
    shape: Tensor
    place: Tensor


#: Standard deviations of the start: radians, radians, shape coefficients, metres.
SPREAD = Offsets(*map(torch.tensor, (0.15, 0.15, 0.5, 0.01)))
#: Principal components of the finger pose that are off and fitted.
COMPONENTS = 12
PARTS = (3, COMPONENTS, 10, 3)


class Problem:
    """Hands to find: their pictures, and what vertices offsets from the truth give."""

    def __init__(self, scenes: Scenes) -> None:
        self.hand = OpenHand()
        self.scenes = scenes
        self.camera = scene_camera(scenes, SIZE)
        look = Plain().sample(len(scenes.pose), torch.Generator().manual_seed(0))
        self.light = Light(look["ambient"], look["directional"], look["light_direction"])
        self.colours = skin_colours(look, self.hand)
        self.components = self.hand.components_from_pose(scenes.pose)
        count = len(scenes.pose)
        nothing = Offsets(*(torch.zeros(count, n) for n in PARTS))
        self.truth = self.vertices(nothing)
        with torch.no_grad():
            self.picture = self.draw(WarpRasterizer(), self.truth)

    def vertices(self, offsets: Offsets) -> Tensor:
        """Return the hands."""
        rotation, fingers, shape, place = (
            part * scale for part, scale in zip(offsets, SPREAD, strict=True)
        )
        moved = F.pad(fingers, (0, 45 - COMPONENTS)) + self.components
        pose = self.hand.pose_from_components(moved)
        turned = axis_angle_to_matrix(rotation) @ self.scenes.pose[:, 0]
        pose = torch.cat([turned[:, None], pose[:, 1:]], dim=1)
        betas = self.scenes.betas + shape
        return self.hand.decode(pose, betas, self.scenes.translation + place).vertices

    def draw(self, rasterizer: Rasterizer, vertices: Tensor) -> Rendering:
        """Return the hands in their light, before black."""
        args = (rasterizer, vertices, self.hand.faces, self.light, self.camera)
        return render_lit(*args, colours=self.colours)

    def mismatch(self, drawn: Rendering) -> Tensor:
        """Return how far silhouette and shading are from the pictures, one number per hand."""
        apart = torch.cat([drawn.mask - self.picture.mask, drawn.image - self.picture.image], dim=1)
        total = torch.zeros(len(apart))
        for _ in range(LEVELS):
            total = total + apart.square().mean((1, 2, 3))
            apart = F.avg_pool2d(apart, 2)
        return total


def fit(problem: Problem, start: Offsets, rasterizer: Rasterizer, steps: int) -> Offsets:
    """Return where Adam ends up."""
    moving = Offsets(*(part.clone().requires_grad_() for part in start))
    optimizer = torch.optim.Adam(moving, lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        vertices = problem.vertices(moving)
        loss = problem.mismatch(problem.draw(rasterizer, vertices)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return Offsets(*(part.detach() for part in moving))


def errors(problem: Problem, offsets: Offsets) -> tuple[Tensor, Tensor]:
    """Return the mean distance of each hand's vertices, relative to their mean and absolute."""
    apart = problem.vertices(offsets) - problem.truth
    relative = apart - apart.mean(1, keepdim=True)
    return relative.norm(dim=-1).mean(1), apart.norm(dim=-1).mean(1)


def summary(name: str, relative: Tensor, absolute: Tensor) -> dict[str, Any]:
    """Return a row."""
    return {
        "gradient of visibility": name,
        "converged": int((relative < CONVERGED).sum()),
        "in_place": int(((absolute < CONVERGED) & (relative < CONVERGED)).sum()),
        "median_mm": relative.median().item() * 1e3,
        "median_in_place_mm": absolute.median().item() * 1e3,
    }


def save_pictures(problem: Problem, rows: list[Offsets], path: Path) -> None:
    """Write the targets, and below them what each of the rows looks like."""
    drawn = [problem.draw(WarpRasterizer(), problem.vertices(row)).image for row in rows]
    images = torch.stack([problem.picture.image, *drawn])[:, :10].detach()
    picture = to_picture(images.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(picture))


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--starts", type=int, default=20)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0, help="of the hands; the starts' is one more")
    parser.add_argument("--smoke", action="store_true", help="two starts, to see that it runs")
    parser.add_argument("--pictures", type=Path, help="PNG to write: targets, starts, ends")
    parser.add_argument("--out", type=Path, help="a record to write")
    chosen = parser.parse_args()
    starts, steps = (2, 5) if chosen.smoke else (chosen.starts, chosen.steps)

    begin = time.perf_counter()
    problem = Problem(sample_scenes(OpenHand(), starts, chosen.seed))
    generator = torch.Generator().manual_seed(chosen.seed + 1)
    start = Offsets(*(torch.randn(starts, n, generator=generator) for n in PARTS))
    ends = [fit(problem, start, backend, steps) for backend in (WarpRasterizer(), Unseen())]
    names = ("(at the start)", "with", "without")
    rows = [
        summary(name, *errors(problem, offsets))
        for name, offsets in zip(names, (start, *ends), strict=True)
    ]
    met = rows[1]["converged"] >= max(1, 2 * rows[2]["converged"])
    print(table(rows))
    print(f"at least twice as many with as without: {met}")
    if chosen.pictures:
        save_pictures(problem, [start, *ends], chosen.pictures)
    if chosen.out:
        config = {"starts": starts, "steps": steps, "size": SIZE, "learning_rate": RATE}
        config |= {"bar": "at least twice as many converge with as without", "met": met}
        seconds = time.perf_counter() - begin
        name = "Hands found from a picture"
        write_record(chosen.out, name, rows, config, chosen.seed, seconds)


if __name__ == "__main__":
    main()
