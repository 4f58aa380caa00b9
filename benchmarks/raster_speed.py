"""How fast the rasterizers draw hands: coverage, lit images, and their gradients.

    python benchmarks/raster_speed.py [--repeats 10] [--out FILE]

On the CPU, and on a GPU where there is one. The bar, on a CPU, for Warp on one thread: coverage in
at most 0.7 ms per image, and a textured, lit image with all its gradients (of vertices, texture and
light, visibility included) in at most 8 ms. Hands of 2,314 faces fill some 20 % of 224 x 224
pixels; smooth normals, a directional light, a mip-mapped texture of 256 x 256; batch of 32. The
gradient of the image is given: no loss is timed with the rasterizer.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from handrec.geometry.camera import project
from handrec.geometry.rotations import axis_angle_to_matrix
from handrec.hand.openhand import OpenHand
from handrec.records import write_record
from handrec.render.base import Rasterizer
from handrec.render.shading import Light, Texture, render_lit
from handrec.render.torch_reference import TorchRasterizer
from handrec.render.warp_backend import WarpRasterizer
from handrec.types import Camera

SIZE, BATCH, TEXTURE = 224, 32, 256
COVERAGE_BAR, TEXTURED_BAR = 0.7, 8.0


def scene(hand: OpenHand, device: str) -> tuple[Tensor, Camera]:
    """Return the vertices of hands in all orientations, and their camera."""
    generator = torch.Generator().manual_seed(0)
    pose = hand.mean_pose.repeat(BATCH, 1, 1, 1)
    turns = torch.randn(BATCH, 3, generator=generator) * 2
    pose[:, 0] = axis_angle_to_matrix(turns).to(device)
    zeros = torch.zeros(BATCH, 10, device=device)
    vertices = hand.decode(pose, zeros, zeros[:, :3]).vertices
    vertices = vertices - vertices.mean(1, keepdim=True) + vertices.new_tensor([0, 0, 0.6])
    intrinsics = torch.tensor([[650.0, 0, SIZE / 2], [0, 650, SIZE / 2], [0, 0, 1]], device=device)
    return vertices, Camera(intrinsics.expand(BATCH, 3, 3), (SIZE, SIZE))


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
    hand = OpenHand().to(device)
    vertices, camera = scene(hand, device)
    pixels = project(vertices, camera.intrinsics)
    screen = torch.cat([pixels, vertices[..., 2:]], dim=-1)
    light = [torch.full((BATCH, 3), x, device=device) for x in (0.4, 0.6, -1.0)]
    picture = torch.rand(1, 3, TEXTURE, TEXTURE, generator=torch.Generator().manual_seed(0))
    leaves = [vertices, picture.to(device), *light]
    generator = torch.Generator().manual_seed(1)
    incoming = torch.randn(BATCH, 3, SIZE, SIZE, generator=generator).to(device)

    def cover() -> Tensor:
        return rasterizer.cover(screen, hand.faces, (SIZE, SIZE))

    def draw(textured: bool, learning: bool) -> None:
        moving, image, *bulb = (x.clone().requires_grad_(learning) for x in leaves)
        texture = Texture(image, hand.uv, hand.uv_faces) if textured else None
        drawn = render_lit(rasterizer, moving, hand.faces, Light(*bulb), camera, texture=texture)
        if learning:
            torch.autograd.backward(drawn.image, incoming)

    times = {"coverage_ms": per_image(cover, repeats, device)}
    for name, textured in (("lit", False), ("textured", True)):
        for suffix, learning in (("ms", False), ("and_gradient_ms", True)):
            work = partial(draw, textured, learning)
            times[f"{name}_{suffix}"] = per_image(work, repeats, device)
    return times, (cover() >= 0).float().mean().item()


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
    warp = next(row for row in rows if row["on"] == "CPU, 1 thread")
    met = warp["coverage_ms"] <= COVERAGE_BAR and warp["textured_and_gradient_ms"] <= TEXTURED_BAR
    bar = (
        f"Warp on one thread: coverage at most {COVERAGE_BAR} ms, textured with gradients at most"
        f" {TEXTURED_BAR} ms"
    )
    config = {
        "size": SIZE,
        "batch": BATCH,
        "texture": TEXTURE,
        "filled": round(filled, 3),
        "repeats": chosen.repeats,
        "bar": bar,
        "met": met,
    }
    print(f"{bar}: met: {met}")
    if chosen.out:
        seconds = time.perf_counter() - start
        write_record(chosen.out, "Rasterizers, ms per image", rows, config, 0, seconds)


if __name__ == "__main__":
    main()
