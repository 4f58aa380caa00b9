"""How fast the rasterizers draw hands: coverage, lit images, and their gradients.

    python benchmarks/raster_speed.py [--device cuda] [--out FILE]

The bar on a CPU: coverage by Warp in at most 0.7 ms per image on one thread, at least four times
faster than PyTorch on two. Hands of 2,314 faces fill some 20 % of 224 x 224 pixels, batch of 32.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from handrec.geometry.camera import project
from handrec.geometry.rotations import axis_angle_to_matrix
from handrec.hand.openhand import OpenHand
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


def measure(rasterizer: Rasterizer, threads: int, device: str, repeats: int) -> dict[str, float]:
    """Return the milliseconds per image of each step."""
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
    return {"coverage": coverage, "lit": forward, "lit_and_gradient": both, "filled": filled}


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    args = parser.parse_args()

    results = {}
    for backend in (WarpRasterizer, TorchRasterizer):
        for threads in (1, 2):
            name = f"{backend.__name__}, {threads} thread{'s' * (threads > 1)}"
            results[name] = measure(backend(), threads, args.device, args.repeats)
            row = "  ".join(f"{key} {value:8.3f}" for key, value in results[name].items())
            print(f"{name:28} {row}")
    warp = results["WarpRasterizer, 1 thread"]["coverage"]
    ratio = results["TorchRasterizer, 2 threads"]["coverage"] / warp
    passed = warp <= 0.7 and ratio >= 4
    print(f"coverage: Warp {warp:.2f} ms per image, {ratio:.1f} times faster than PyTorch")
    if args.out:
        machine = f"{platform.machine()}, {torch.get_num_threads()} threads"
        if args.device == "cuda":
            machine = torch.cuda.get_device_name()
        report = {"machine": machine, "torch": torch.__version__, "unit": "ms per image"}
        report |= {"size": SIZE, "batch": BATCH, "results": results, "passed": passed}
        args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
