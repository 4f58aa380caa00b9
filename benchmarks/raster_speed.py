"""How fast the rasterizers draw hands: coverage, lit images, and their gradients.

    python benchmarks/raster_speed.py [--repeats 10] [--out FILE]

On the CPU, and on a GPU where there is one. The bar, on a CPU: coverage by Warp in at most 0.7 ms
per image on one thread, at least four times faster than PyTorch on two. Hands of 2,314 faces fill
some 20 % of 224 x 224 pixels, batch of 32.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from handrec.geometry.camera import project
from handrec.geometry.rotations import axis_angle_to_matrix
from handrec.hand.openhand import OpenHand
from handrec.records import write_record
from handrec.render.base import Rasterizer
from handrec.render.shading import Light, render_lit
from handrec.render.torch_reference import TorchRasterizer
from handrec.render.warp_backend import WarpRasterizer
from handrec.types import Camera

SIZE, BATCH = 224, 32


def scene(device: str) -> tuple[Tensor, Tensor, Camera]:
    """Return hands in all orientations, their faces and their camera."""
    hand = OpenHand().to(device)
    generator = torch.Generator().manual_seed(0)
    pose = hand.mean_pose.repeat(BATCH, 1, 1, 1)
    turns = torch.randn(BATCH, 3, generator=generator) * 2
    pose[:, 0] = axis_angle_to_matrix(turns).to(device)
    zeros = torch.zeros(BATCH, 10, device=device)
    vertices = hand.decode(pose, zeros, zeros[:, :3]).vertices
    vertices = vertices - vertices.mean(1, keepdim=True) + vertices.new_tensor([0, 0, 0.6])
    intrinsics = torch.tensor([[650.0, 0, SIZE / 2], [0, 650, SIZE / 2], [0, 0, 1]], device=device)
    return vertices, hand.faces, Camera(intrinsics.expand(BATCH, 3, 3), (SIZE, SIZE))


def per_image(work: Callable[[], object], repeats: int, device: str) -> float:
    """Return the milliseconds per image of the fastest of some runs after the first."""
    best = float("inf")
    for run in range(repeats + 1):
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start) if run else best
    return best / BATCH * 1e3


def measure(
    rasterizer: Rasterizer, threads: int, device: str, repeats: int
) -> tuple[dict[str, float], float]:
    """Return the milliseconds per image of each step, and the share of pixels filled."""
    torch.set_num_threads(threads)
    vertices, faces, camera = scene(device)
    pixels = project(vertices, camera.intrinsics)
    screen = torch.cat([pixels, vertices[..., 2:]], dim=-1)
    light = Light(*(torch.full((BATCH, 3), x, device=device) for x in (0.4, 0.6, -1.0)))
    colours = torch.full_like(vertices, 0.7)

    def draw(moving: Tensor) -> Tensor:
        image = render_lit(rasterizer, moving, faces, light, camera, colours=colours).image
        return image.square().sum()

    def learn() -> None:
        draw(vertices.clone().requires_grad_()).backward()

    with torch.no_grad():
        coverage = per_image(lambda: rasterizer.cover(screen, faces, (SIZE, SIZE)), repeats, device)
        forward = per_image(lambda: draw(vertices), repeats, device)
    filled = (rasterizer.cover(screen, faces, (SIZE, SIZE)) >= 0).float().mean().item()
    both = per_image(learn, repeats, device)
    return {"coverage_ms": coverage, "lit_ms": forward, "lit_and_gradient_ms": both}, filled


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out", type=Path, help="a record to write")
    chosen = parser.parse_args()

    start = time.perf_counter()
    places = [("cpu", 1), ("cpu", 2)] + [("cuda", 1)] * torch.cuda.is_available()
    rows = []
    for backend in (WarpRasterizer, TorchRasterizer):
        for device, threads in places:
            place = "GPU" if device == "cuda" else f"CPU, {threads} thread{'s' * (threads > 1)}"
            figures, filled = measure(backend(), threads, device, chosen.repeats)
            rows.append({"rasterizer": backend.__name__, "on": place, **figures})
            print(*(f"{x:.3f}" if isinstance(x, float) else f"{x:16}" for x in rows[-1].values()))
    warp, torch_2 = (
        next(row["coverage_ms"] for row in rows if (row["rasterizer"], row["on"]) == key)
        for key in (("WarpRasterizer", "CPU, 1 thread"), ("TorchRasterizer", "CPU, 2 threads"))
    )
    bar = "coverage at most 0.7 ms on one thread, 4 times faster than PyTorch on two"
    config = {
        "size": SIZE,
        "batch": BATCH,
        "filled": round(filled, 3),
        "repeats": chosen.repeats,
        "bar": bar,
    }
    config |= {"met": warp <= 0.7 and torch_2 >= 4 * warp}
    print(f"{bar}: {warp:.2f} ms, {torch_2 / warp:.1f} times; met: {config['met']}")
    if chosen.out:
        seconds = time.perf_counter() - start
        write_record(chosen.out, "Rasterizers, ms per image", rows, config, 0, seconds)


if __name__ == "__main__":
    main()
