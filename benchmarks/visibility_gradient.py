"""How right the gradient of visibility is: against finite differences of finer renderings.

    python benchmarks/visibility_gradient.py [--hands 24] [--motions 4] [--seed 0] [--out FILE]

Hands in random poses and orientations move along random smooth fields, and the loss is their image
times a random smooth weight, as a mean over the picture. Its derivative by backpropagation at 112
and 224 pixels is compared with central differences of the loss at 1536: `slope` is that of the
regression through zero (1 is right), `correlation` the cosine between the two lists (1 is right).
The bar: silhouettes have slopes of 0.95 to 1.05 and correlations of at least 0.99; lit hands, with
a texture, a background and fingers before each other, slopes of 0.9 to 1.1 and correlations of at
least 0.95; the gradients of `warp` and `torch` differ by at most 1e-4 of their norm.
"""

import argparse
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from handrec.cli.results import table
from handrec.geometry.camera import resize_camera
from handrec.geometry.rotations import random_rotations
from handrec.hand.openhand import OpenHand
from handrec.hand.sampler import PoseSampler
from handrec.records import write_record
from handrec.render.base import Rasterizer
from handrec.render.shading import Light, render_lit
from handrec.render.torch_reference import TorchRasterizer
from handrec.render.warp_backend import WarpRasterizer
from handrec.types import Camera, Rendering

SIZES = (112, 224)
FINE = 1536
#: Half of the finite difference, pixels of the fine rendering that a typical vertex moves: a step
#: of less is lost in the staircase of the edges, of more in their curvature.
STEP = 4.0
DISTANCE = 0.6

#: Of each image: the least and the greatest slope, the least correlation.
BARS = {"silhouette": (0.95, 1.05, 0.99), "lit and textured": (0.9, 1.1, 0.95)}
NONE = "no visibility gradient"


class Unseen(WarpRasterizer):
    """A rasterizer as it would be without its gradient of visibility."""

    def visibility(
        self, image: Tensor, mask: Tensor, screen: Tensor, faces: Tensor, face_index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return image and mask."""
        return image, mask


RASTERIZERS: dict[str, Rasterizer] = {
    "warp": WarpRasterizer(),
    "torch": TorchRasterizer(),
    NONE: Unseen(),
}


class Wave(NamedTuple):
    """A random smooth function of points: a constant, a linear part, and one sine per output."""

    constant: Tensor
    linear: Tensor
    direction: Tensor
    amplitude: Tensor
    phase: Tensor

    def __call__(self, points: Tensor) -> Tensor:
        """Return the values ``(..., outputs)`` at points in units of the scene's half size."""
        sine = (points @ self.direction.mT + self.phase).sin()
        return self.constant + points @ self.linear.mT + self.amplitude * sine


def wave(inputs: int, outputs: int, generator: torch.Generator) -> Wave:
    """Return a function whose parts are of about equal size; its sine has about one period."""
    shapes = ((outputs,), (outputs, inputs), (outputs, inputs), (outputs,), (outputs,))
    parts = [torch.randn(shape, generator=generator) for shape in shapes]
    return Wave(parts[0], 0.7 * parts[1], 2.0 * parts[2], parts[3], 3.0 * parts[4])


class Scene(NamedTuple):
    """Hands and what is needed to draw them; the camera is of one pixel."""

    vertices: Tensor
    faces: Tensor
    colours: Tensor
    light: Light
    camera: Camera

    def row(self, index: int) -> "Scene":
        """Return the scene of one hand."""
        rows = slice(index, index + 1)
        light = Light(*(part[rows] for part in self.light))
        camera = Camera(self.camera.intrinsics[rows], self.camera.image_size)
        return Scene(self.vertices[rows], self.faces, self.colours[rows], light, camera)


def sample_scene(count: int, generator: torch.Generator) -> Scene:
    """Return hands that fill some 90 % of the picture's width or height, all sides, all poses."""
    hand = OpenHand()
    pose = PoseSampler(hand).sample(count, generator)
    pose[:, 0] = random_rotations(count, generator)
    betas = torch.randn(count, 10, generator=generator).clamp(-2, 2)
    vertices = hand.decode(pose, betas, torch.zeros(count, 3)).vertices
    middle = (vertices.amin(1, keepdim=True) + vertices.amax(1, keepdim=True)) / 2
    vertices = vertices - middle + torch.tensor([0.0, 0.0, DISTANCE])
    reach = (vertices[..., :2] / vertices[..., 2:]).abs().flatten(1).amax(1)
    intrinsics = torch.eye(3).repeat(count, 1, 1)
    intrinsics[:, 0, 0] = intrinsics[:, 1, 1] = 0.45 / reach
    intrinsics[:, :2, 2] = 0.5
    # Waves of some 7 cm in each colour: finer ones are undersampled at 112 pixels where the surface
    # turns away. Lit from the camera's side.
    waves = torch.randn(count, 3, 3, generator=generator) * (2 * math.pi / 0.12)
    phase = torch.rand(count, 1, 3, generator=generator) * 2 * math.pi
    colours = 0.55 + 0.35 * (hand.template @ waves + phase).sin()
    direction = torch.randn(count, 3, generator=generator)
    direction[:, 2] = -direction[:, 2].abs() - 0.5
    ambient, directional = torch.full((count, 3), 0.4), torch.full((count, 3), 0.6)
    light = Light(ambient, directional, direction)
    return Scene(vertices, hand.faces, colours, light, Camera(intrinsics, (1, 1)))


def draw(rasterizer: Rasterizer, scene: Scene, vertices: Tensor, size: int) -> Rendering:
    """Return the lit hands before a grey that is a colour of theirs, too."""
    return render_lit(
        rasterizer,
        vertices,
        scene.faces,
        scene.light,
        resize_camera(scene.camera, (size, size)),
        colours=scene.colours,
        background=torch.full((len(vertices), 3, size, size), 0.4),
    )


def weigh(weight: Wave, size: int) -> Tensor:
    """Return the weights ``(3, H, W)`` of the pixels, a function of their place alone."""
    line = 2 * (torch.arange(size) + 0.5) / size - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    return weight(torch.stack([x, y], dim=-1)).permute(2, 0, 1)


def losses(drawn: Rendering, weights: Tensor) -> Tensor:
    """Return the losses ``(2,)`` of the silhouette and of the lit image."""
    area = weights[0].numel()
    mask, image = drawn.mask[:, 0].double(), drawn.image.double()
    return torch.stack([(mask * weights[0]).sum(), (image * weights).sum()]) / area


class Trial(NamedTuple):
    """One hand, its motion (metres per unit of step) and its weight."""

    scene: Scene
    motion: Tensor
    weight: Wave


def sample_trials(scene: Scene, motions: int, generator: torch.Generator) -> list[Trial]:
    """Return trials of unit motion: a pixel of a picture of one pixel, as root of mean square."""
    trials = []
    for index in range(len(scene.vertices)):
        one = scene.row(index)
        focal = one.camera.intrinsics[0, 0, 0]
        centred = (one.vertices - one.vertices.mean(1, keepdim=True)) / 0.1
        for _ in range(motions):
            field = wave(3, 3, generator)(centred)
            in_pixels = field[..., :2].square().sum(-1).mean().sqrt() * focal / DISTANCE
            trials.append(Trial(one, field / in_pixels, wave(2, 3, generator)))
    return trials


@torch.no_grad()
def expected(trials: list[Trial]) -> Tensor:
    """Return the derivatives ``(trials, 2)`` by central differences of fine renderings."""
    rasterizer, step = WarpRasterizer(), STEP / FINE
    rows = []
    for scene, motion, weight in trials:
        weights = weigh(weight, FINE)
        ahead, behind = (
            losses(draw(rasterizer, scene, scene.vertices + way * step * motion, FINE), weights)
            for way in (1, -1)
        )
        rows.append((ahead - behind) / (2 * step))
    return torch.stack(rows)


def gradients(rasterizer: Rasterizer, trials: list[Trial], size: int) -> Tensor:
    """Return the gradients ``(trials, 2, V, 3)`` by backpropagation at ``size`` pixels."""
    rows = []
    for scene, _, weight in trials:
        vertices = scene.vertices.clone().requires_grad_()
        both = losses(draw(rasterizer, scene, vertices, size), weigh(weight, size))
        parts = [torch.autograd.grad(loss, vertices, retain_graph=True)[0] for loss in both]
        rows.append(torch.cat(parts))
    return torch.stack(rows)


def agreement(analytic: Tensor, numeric: Tensor) -> dict[str, float | None]:
    """Return how well some derivatives agree with what they should be."""
    slope = (analytic @ numeric / (numeric @ numeric)).item()
    both = torch.stack([analytic, numeric])
    return {"slope": slope, "correlation": both.corrcoef()[0, 1].item() if slope else None}


def measure(trials: list[Trial], size: int, numeric: Tensor) -> list[dict[str, Any]]:
    """Return a row for each image and rasterizer at a size."""
    motion = torch.stack([trial.motion for trial in trials])
    grads = {name: gradients(backend, trials, size) for name, backend in RASTERIZERS.items()}
    apart = (grads["warp"] - grads["torch"]).flatten(2).norm(dim=2)
    apart = (apart / grads["torch"].flatten(2).norm(dim=2)).amax(0)
    rows = []
    for i, image in enumerate(BARS):
        for name in RASTERIZERS:
            analytic = (grads[name] * motion).sum((2, 3)).double()
            row = {"image": image, "gradient": name, "size": f"{size} px"}
            row |= agreement(analytic[:, i], numeric[:, i])
            rows.append(row | {"warp_to_torch": apart[i].item()} if name == "warp" else row)
    return rows


def passes(row: dict[str, Any]) -> bool:
    """Return whether a row reaches its bar."""
    low, high, correlation = BARS[row["image"]]
    return (
        low <= row["slope"] <= high
        and row["correlation"] >= correlation
        and row.get("warp_to_torch", 0.0) <= 1e-4
    )


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--hands", type=int, default=24)
    parser.add_argument("--motions", type=int, default=4, help="of each hand")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="two hands, to see that it runs")
    parser.add_argument("--out", type=Path, help="a record to write")
    chosen = parser.parse_args()
    hands, motions = (2, 1) if chosen.smoke else (chosen.hands, chosen.motions)

    start = time.perf_counter()
    generator = torch.Generator().manual_seed(chosen.seed)
    trials = sample_trials(sample_scene(hands, generator), motions, generator)
    numeric = expected(trials)
    rows = [row for size in SIZES for row in measure(trials, size, numeric)]
    rows = [row if row["gradient"] == NONE else row | {"met": passes(row)} for row in rows]
    rows.sort(key=lambda row: row["image"], reverse=True)
    print(table(rows))
    if chosen.out:
        config = {"hands": hands, "motions": motions, "reference_px": FINE, "bars": BARS}
        seconds = time.perf_counter() - start
        name = "Gradient of visibility, against finite differences"
        write_record(chosen.out, name, rows, config, chosen.seed, seconds)


if __name__ == "__main__":
    main()
