"""Time the way of training images from FreiHAND's files to the device-ready batch.

    python benchmarks/loader_speed.py [--data FOLDER] [--out FILE]

Without a folder, synthetic hands are written in the set's layout first. CPU times are of one
thread in one process, each the best of some passes, by what is left out, with a warm page cache;
the memory is resident in the main process, at the end of each epoch. Both are recorded. Images per
second by the wall clock, with worker processes that read, crop and augment, and the main process
that makes float batches with labels of them, are printed only: other processes slow them.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import torch

from handrec.cli.data import synthesize
from handrec.data.augment import Augmentation
from handrec.data.freihand import FreiHand
from handrec.hand.openhand import OpenHand
from handrec.records import write_record

PASSES = 3


def reader(root: Path, folder: Path, augmentation: Augmentation | None, **options: Any) -> FreiHand:
    """Return the data set, set up for training."""
    data = FreiHand(
        str(root), hand=OpenHand(), augmentation=augmentation, cache_dir=str(folder), **options
    )
    data.setup("fit")
    return data


def cpu_ms(work: Callable[[], object], images: int) -> float:
    """Return the CPU milliseconds of this thread per image, the best of some passes."""
    times = []
    for _ in range(PASSES):
        start = time.thread_time()
        work()
        times.append(time.thread_time() - start)
    return 1000 * min(times) / images


def stages(root: Path, folder: Path, batch_size: int) -> dict[str, float]:
    """Return CPU milliseconds per image of the stages of a batch."""
    plain, augmented = (
        reader(root, folder, change, batch_size=batch_size, num_workers=0, masks=masks)
        for change, masks in ((None, False), (Augmentation(), False))
    )
    default = reader(root, folder, Augmentation(), batch_size=batch_size, num_workers=0)
    some = list(range(min(len(plain.crops("train")), 4 * batch_size)))
    batches = [some[i : i + batch_size] for i in range(0, len(some), batch_size)]

    def read(data: FreiHand, augmentation: Augmentation | None) -> Callable[[], object]:
        crops = data.crops("train", augmentation)
        return lambda: [crops.__getitems__(indices) for indices in batches]

    crop = cpu_ms(read(plain, None), len(some))
    change = cpu_ms(read(augmented, augmented.augmentation), len(some))
    masks = cpu_ms(read(default, default.augmentation), len(some))
    crops = default.crops("train", default.augmentation)
    ready = crops.__getitems__(batches[0])
    label = cpu_ms(lambda: default.label(ready), len(batches[0]))
    return {
        "crop_cpu_ms": crop,
        "augment_cpu_ms": change - crop,
        "mask_cpu_ms": masks - change,
        "workers_cpu_ms": masks,
        "label_cpu_ms": label,
        "all_cpu_ms": masks + label,
    }


def resident_mb() -> float:
    """Return the resident memory of this process, 10^6 bytes (Linux; 0 elsewhere)."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0.0
    line = next(x for x in status.read_text().splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1]) * 1024 / 1e6


def epochs(data: FreiHand, number: int) -> tuple[list[float], list[float]]:
    """Return images per second and resident memory of epochs; the first also starts workers."""
    speeds, memory = [], []
    loader = data.train_dataloader()
    for _ in range(number):
        start, images = time.perf_counter(), 0
        for batch in loader:
            images += len(data.on_after_batch_transfer(batch, 0).image)
        speeds.append(images / (time.perf_counter() - start))
        memory.append(resident_mb())
    return speeds, memory


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="of FreiHAND's layout (default: synthetic)")
    parser.add_argument("--count", type=int, default=256, help="synthetic hands, 4 images each")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--out", type=Path, help="a record to write")
    chosen = parser.parse_args()

    begin = time.perf_counter()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = chosen.data or folder / "freihand"
        if chosen.data is None:
            synthesize("freihand", root, chosen.count, 224)
        row: dict[str, float] = stages(root, folder, chosen.batch_size)
        options = {"batch_size": chosen.batch_size, "num_workers": chosen.workers}
        data = reader(root, folder, Augmentation(), **options)
        speeds, memory = epochs(data, chosen.epochs)
        sizes = [path.stat().st_size for path in (root / "training/rgb").glob("*.jpg")]
    row |= {
        "images_per_s_of_workers_on_two_cores": 2000 / row["workers_cpu_ms"],
        "images_per_s_with_labels_on_two_cores": 2000 / row["all_cpu_ms"],
        "memory_growth_mb": memory[-1] - memory[0],
        "resident_mb": memory[-1],
        "jpeg_kb": sum(sizes) / len(sizes) / 1000,
    }
    print(*(f"{key} {value:.3g}" for key, value in row.items()), sep=", ")
    print(f"by the wall clock {max(speeds):.0f} images per second, labels included")
    if chosen.out:
        config = {
            "size": 224, "workers": chosen.workers, "batch_size": chosen.batch_size,
            "images": len(sizes), "data": "synthetic" if chosen.data is None else "given",
        }  # fmt: skip
        seconds = time.perf_counter() - begin
        write_record(chosen.out, "Loader of FreiHAND's layout", row, config, 0, seconds)


if __name__ == "__main__":
    main()
