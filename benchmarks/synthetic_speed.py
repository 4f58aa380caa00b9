"""How fast synthetic pictures are drawn, and how fast cached ones are loaded.

    python benchmarks/synthetic_speed.py [--size 128] [--count 10000] [--out FILE]

Drawing: each appearance, on the CPU and on a GPU where there is one. Loading: a cached set through
its loader, and with labels. The bars, on a CPU: 120 everyday pictures of 128 px drawn per second on
two cores, 3,000 cached pictures loaded per second on one. One thread is timed by its CPU time, so
that a busy machine does not blur it; several by the clock on the wall.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from handrec.data.appearance.base import Appearance, Stage
from handrec.data.appearance.everyday import Everyday
from handrec.data.appearance.foreign import Foreign
from handrec.data.appearance.plain import Plain
from handrec.data.scenes import Scenes, sample_scenes, scene_camera
from handrec.data.synthetic import SyntheticHands
from handrec.hand.openhand import OpenHand
from handrec.records import write_record
from handrec.render.warp_backend import WarpRasterizer

#: A line for each domain.
APPEARANCES: tuple[Appearance, ...] = (Plain(), Everyday(), Foreign())

BATCH = 64


def per_second(work: Callable[[], int], device: str, seconds: float = 4.0) -> float:
    """Return pictures per second of the fastest of some runs after the first."""
    alone = device == "cpu" and torch.get_num_threads() == 1
    clock = time.thread_time if alone else time.perf_counter
    work()
    best, begin = 0.0, clock()
    while best == 0.0 or clock() - begin < seconds:
        start = clock()
        count = work()
        if device == "cuda":
            torch.cuda.synchronize()
        best = max(best, count / (clock() - start))
    return best


def drawing(appearance: Appearance, size: int, device: str) -> float:
    """Return pictures drawn per second."""
    hand = OpenHand()
    look = appearance.sample(BATCH, torch.Generator().manual_seed(0))
    scenes = Scenes(*(column.to(device) for column in sample_scenes(hand, BATCH, seed=0)))
    look = {name: column.to(device) for name, column in look.items()}
    hand.to(device)
    rasterizer = WarpRasterizer().to(device)

    def draw() -> int:
        posed = hand.decode(scenes.pose, scenes.betas, scenes.translation)
        camera = scene_camera(scenes, size)
        stage = Stage(hand, posed, scenes.pose, camera, scenes.noise_seed, rasterizer)
        appearance.draw(stage, look)
        return BATCH

    return per_second(draw, device)


def loading(size: int, count: int) -> tuple[float, float]:
    """Return cached pictures per second: through the loader, and labelled as batches."""
    with tempfile.TemporaryDirectory() as folder:
        data = SyntheticHands(
            OpenHand(), WarpRasterizer(), size, BATCH, count, 1, 1, cached=True, cache_dir=folder
        )
        data.maker.make("train")
        data.maker.make("val")
        data.setup("fit")

        def load(label: bool) -> int:
            for batch in data.train_dataloader():
                if label:
                    data.label(batch)
            return count // BATCH * BATCH

        return per_second(lambda: load(False), "cpu"), per_second(lambda: load(True), "cpu")


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--out", type=Path, help="a record to write")
    chosen = parser.parse_args()

    start = time.perf_counter()
    torch.set_num_threads(1)
    rows: list[dict[str, str | float]] = []
    drawn = {}
    for appearance in APPEARANCES:
        for device, threads in [("cpu", 1), ("cpu", 2), ("cuda", 1)][
            : 2 + torch.cuda.is_available()
        ]:
            torch.set_num_threads(threads)
            place = "GPU" if device == "cuda" else f"CPU, {threads} thread" + "s" * (threads > 1)
            speed = drawn[appearance.name, place] = drawing(appearance, chosen.size, device)
            rows.append({"what": f"drawing {appearance.name}", "on": place, "per_s": speed})
            print(f"{rows[-1]['what']}, {place}: {speed:.0f} pictures/s", flush=True)
    torch.set_num_threads(1)
    loaded, labelled = loading(chosen.size, chosen.count)
    for what, speed in (("loading cached", loaded), ("loading and labelling", labelled)):
        rows.append({"what": what, "on": "CPU, 1 thread", "per_s": speed})
        print(f"{what}: {speed:.0f} pictures/s")
    bar = "120 everyday pictures drawn on two threads and 3,000 cached ones loaded per second"
    config = {"size": chosen.size, "count": chosen.count, "batch": BATCH, "bar": bar}
    config |= {"met": loaded >= 3000 and drawn["everyday", "CPU, 2 threads"] >= 120}
    print(f"{bar}: met: {config['met']}")
    if chosen.out:
        seconds = time.perf_counter() - start
        write_record(chosen.out, "Synthetic pictures per second", rows, config, 0, seconds)


if __name__ == "__main__":
    main()
