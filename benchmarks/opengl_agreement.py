"""Whether the rasterizers draw what OpenGL draws, and how long both take on one thread of a CPU.

    python benchmarks/opengl_agreement.py [--hands 32] [--repeats 5] [--seed 0] [--out FILE]

Random hands at 224 x 224, through EGL without a window: by Mesa's llvmpipe where no GPU's driver is
installed. The bar: more than 99.5 % of the pixels on hands show the same face, and the others lie
on an edge, nearer than the 1/256 pixel that OpenGL rounds to, or where two faces are equally deep.
Times are CPU time of the whole process per image, the picture read back; OpenGL gets its normals
ready-made.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["LP_NUM_THREADS"] = "0"  # llvmpipe works in the calling thread
sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests' OpenGL is the reference

import torch
from tests.render.opengl import Lit, OpenGL, create_context, unlike
from torch import Tensor

from handrec.cli.results import table
from handrec.data.appearance.plain import Plain, skin_colours
from handrec.data.scenes import Scenes, sample_scenes, scene_camera
from handrec.geometry.camera import project
from handrec.geometry.mesh import vertex_normals
from handrec.hand.openhand import OpenHand
from handrec.records import write_record
from handrec.render.base import Rasterizer
from handrec.render.shading import Light, render_lit
from handrec.render.torch_reference import TorchRasterizer
from handrec.render.warp_backend import WarpRasterizer

SIZE = 224
SUBPIXEL = 1 / 256


def fastest(work: Callable[[], object], repeats: int, images: int) -> float:
    """Return the CPU milliseconds per image of the fastest run after the first."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds[1:]) / images * 1e3


class Hands:
    """What is drawn: random scenes, lit, before black."""

    def __init__(self, scenes: Scenes) -> None:
        hand = OpenHand()
        self.faces = hand.faces
        look = Plain().sample(len(scenes.pose), torch.Generator().manual_seed(0))
        self.vertices = hand.decode(scenes.pose, scenes.betas, scenes.translation).vertices
        self.camera = scene_camera(scenes, SIZE)
        pixels = project(self.vertices, self.camera.intrinsics)
        self.screen = torch.cat([pixels, self.vertices[..., 2:]], dim=-1)
        self.colours = skin_colours(look, hand)
        self.light = Light(look["ambient"], look["directional"], look["light_direction"])

    def cover(self, rasterizer: Rasterizer) -> Tensor:
        """Return the face seen at each pixel."""
        return rasterizer.cover(self.screen, self.faces, self.camera.image_size)

    def lit(self, rasterizer: Rasterizer) -> Tensor:
        """Return the pictures."""
        args = (rasterizer, self.vertices, self.faces, self.light, self.camera)
        with torch.no_grad():
            return render_lit(*args, colours=self.colours).image


def ours(hands: Hands, theirs: list[Any], repeats: int) -> list[dict[str, Any]]:
    """Return a row for each rasterizer."""
    count, faces, rows = len(theirs), hands.faces.numpy(), []
    for name, rasterizer in (("warp", WarpRasterizer()), ("torch", TorchRasterizer())):
        drawn = hands.cover(rasterizer).numpy()
        shares, unexplained, farthest = [], 0, 0.0
        for screen, one, other in zip(hands.screen.numpy(), drawn, theirs, strict=True):
            distance, depth_apart = unlike(screen, faces, one, other)
            shares.append(100 * (1 - len(distance) / ((one >= 0) | (other >= 0)).sum()))
            unequal = distance[depth_apart > 1e-6]
            unexplained += int((unequal >= SUBPIXEL).sum())
            farthest = max(farthest, unequal.max(initial=0))
        row = {
            "rasterizer": name,
            "same_face_percent": sum(shares) / count,
            "worst_hand_percent": float(min(shares)),
            "off_edges_pixels": unexplained,
            "farthest_from_edge_px": float(farthest),
            "met": bool(min(shares) > 99.5 and not unexplained),
        }
        row["coverage_cpu_ms"] = fastest(lambda r=rasterizer: hands.cover(r), repeats, count)
        row["lit_cpu_ms"] = fastest(lambda r=rasterizer: hands.lit(r), repeats, count)
        rows.append(row)
    return rows


def opengl(hands: Hands, context: Any, repeats: int) -> tuple[list[Any], dict[str, Any]]:
    """Return the faces that OpenGL shows in each picture, and its row."""
    gl = OpenGL(context, hands.faces.numpy(), hands.screen.shape[1], hands.camera.image_size)
    screens = hands.screen.numpy()
    normals = vertex_normals(hands.vertices, hands.faces).numpy()
    parts = [normals, hands.colours.numpy(), *(part.numpy() for part in hands.light)]
    lights = [Lit(*row) for row in zip(*parts, strict=True)]

    def lit() -> None:
        for screen, light in zip(screens, lights, strict=True):
            gl.lit(screen, light)

    row = {"rasterizer": f"OpenGL: {context.info['GL_RENDERER']}"}
    timings = {
        "coverage_cpu_ms": lambda: [gl.face_index(screen) for screen in screens],
        "lit_cpu_ms": lit,
    }
    row |= {name: fastest(work, repeats, len(screens)) for name, work in timings.items()}
    return [gl.face_index(screen) for screen in screens], row


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--hands", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="two hands, to see that it runs")
    parser.add_argument("--out", type=Path, help="a record to write")
    chosen = parser.parse_args()
    count, repeats = (2, 1) if chosen.smoke else (chosen.hands, chosen.repeats)

    start = time.perf_counter()
    torch.set_num_threads(1)
    try:
        context = create_context()
    except Exception as error:
        # `make bench` goes on to the next benchmark.
        print(f"not measured: no OpenGL (Debian: libegl1 libgl1 libgl1-mesa-dri): {error}")
        return
    hands = Hands(sample_scenes(OpenHand(), count, chosen.seed))
    theirs, row = opengl(hands, context, repeats)
    rows = [*ours(hands, theirs, repeats), row]
    print(table(rows))
    if chosen.out:
        config = {"hands": count, "size": SIZE, "repeats": repeats, "threads": 1}
        config["bar"] = "over 99.5 % of each hand's pixels, the others within 1/256 px of an edge"
        seconds = time.perf_counter() - start
        write_record(chosen.out, "Agreement with OpenGL", rows, config, chosen.seed, seconds)


if __name__ == "__main__":
    main()
