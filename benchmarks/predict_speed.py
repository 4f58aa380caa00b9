"""How fast hands in photos are predicted: batched against one by one, stage by stage.

    python benchmarks/predict_speed.py [--count 64] [--threads 1] [--out FILE]

Photos of 640 x 480 pixels, a box in each, random weights. One by one is what a loop over photos in
a user's own script does: a batch of one for each. Crop and network are timed, on one thread by its
CPU time, so that a busy machine does not blur it. The bar: batches of 16 hands are three times as
fast as single ones with the small ViT of the `cpu` scale.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch

from handrec.data.photos import Photos
from handrec.hand.openhand import OpenHand
from handrec.methods.base import HandMethod
from handrec.methods.handmim import HandMIM
from handrec.models.backbones import TimmBackbone
from handrec.models.pymaf import PyMAF
from handrec.records import write_record
from handrec.render.warp_backend import WarpRasterizer
from handrec.types import HandBatch

BATCHES = (1, 4, 16, 64)
SMALL = "ViT of SCALE=cpu"


def small_vit() -> tuple[HandMethod, int]:
    """Return HandMIM as `SCALE=cpu` makes it, and the size of its crops."""
    backbone = TimmBackbone("vit_tiny_patch16_224", 64, stem="conv", options={"depth": 2})
    head = partial(
        PyMAF, iterations=2, levels=3, map_channels=64, grid=13, width=512, dropout=0.0,
        activation=True, dense_feedback=True,
    )  # fmt: skip
    return HandMIM(backbone, head, OpenHand(), WarpRasterizer()).eval(), 64


def published_vit() -> tuple[HandMethod, int]:
    """Return HandMIM with a ViT-S/16 and crops of 224 pixels."""
    method = HandMIM(TimmBackbone(), PyMAF, OpenHand(), WarpRasterizer())
    return method.eval(), 224


def write_photos(folder: Path, count: int) -> Path:
    """Write photos, and the boxes beside their folder; return the path of the boxes."""
    rng = np.random.default_rng(0)
    boxes = {}
    (folder / "photos").mkdir()
    for index in range(count):
        coarse = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        picture = cv2.resize(coarse, (640, 480), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"photos/{index:04d}.jpg"), picture)
        left, top = (int(x) for x in rng.integers(0, 200, 2))
        side = "left" if index % 3 == 0 else "right"
        boxes[f"{index:04d}.jpg"] = [{"box": [left, top, left + 220, top + 240], "side": side}]
    path = folder / "boxes.json"
    path.write_text(json.dumps(boxes))
    return path


def measure(
    method: HandMethod, photos: Photos, size: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Return milliseconds per hand of crop (with collation) and network; the best of 2 runs.

    Args:
        method: that predicts.
        photos: in memory after the first run: decoding is the same for every batch size.
        size: of a batch.
        clock: in seconds.
    """
    photos.batch_size = size
    best: dict[str, float] = {}
    for _ in range(2):
        spent = {"crop": 0.0, "network": 0.0}
        batches = iter(photos.predict_dataloader())
        while True:
            start = clock()
            batch: HandBatch | None = next(batches, None)
            middle = clock()
            if batch is None:
                break
            with torch.inference_mode():
                method.reconstruct(batch)
            spent["crop"] += middle - start
            spent["network"] += clock() - middle
        rate = {name: 1000 * seconds / len(photos.items) for name, seconds in spent.items()}
        if not best or sum(rate.values()) < sum(best.values()):
            best = rate
    return best


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=64, help="photos")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a record to write")
    chosen = parser.parse_args()
    begin = time.perf_counter()
    torch.set_num_threads(chosen.threads)
    clock = time.thread_time if chosen.threads == 1 else time.perf_counter
    rows: list[dict[str, str | float]] = []
    gains = {}
    with tempfile.TemporaryDirectory() as name:
        boxes = write_photos(Path(name), chosen.count)
        for what, make, batches in (
            (SMALL, small_vit, BATCHES),
            ("ViT-S/16, 224 px", published_vit, (1, 16)),
        ):
            method, size = make()
            photos = Photos(str(boxes.parent / "photos"), boxes=str(boxes), image_size=size)
            photos.setup("predict")
            per_hand = {}
            for batch in batches:
                spent = measure(method, photos, batch, clock)
                per_hand[batch] = sum(spent.values())
                rows.append(
                    {
                        "network": what,
                        "batch": batch,
                        "crop_ms": spent["crop"],
                        "network_ms": spent["network"],
                        "hands_per_s": 1000 / per_hand[batch],
                        "times_one_by_one": per_hand[1] / per_hand[batch],
                    }
                )
                print(", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}"
                                for k, v in rows[-1].items()), flush=True)  # fmt: skip
            gains[what] = per_hand[1] / per_hand[16]
    bar = "with the small ViT, batches of 16 are 3 times as fast as one by one"
    met = gains[SMALL] >= 3
    print(f"{bar}: met: {met}")
    if chosen.out:
        config = {"photos": chosen.count, "threads": chosen.threads, "bar": bar, "met": met}
        seconds = time.perf_counter() - begin
        write_record(chosen.out, "Hands in photos per second", rows, config, 0, seconds)


if __name__ == "__main__":
    main()
