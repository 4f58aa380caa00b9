"""How much memory HandMIM's pre-training takes: two steps in a process of its own.

    python benchmarks/pretrain_memory.py [--scale gpu] [--batches 4 8 32] [--out FILE]

The bar: 8192 prototypes, ViT-S/16 at 224 px (`gpu`) and a batch of 32 take at most 20 GiB on a CPU,
in bf16, optimizer included.
"""

import argparse
import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from handrec.records import write_record
from pretrain_step import batch_of, pretraining, step_of

GIB_KIB = 1024**2


def peak(scale: str, count: int) -> float:
    """Return the most memory that this process held in two steps, GiB."""
    method = pretraining(scale, "cpu")
    optimizer: Any = method.configure_optimizers()
    step = step_of(method, batch_of(count, method, "cpu"), "cpu")
    for _ in range(2):
        step()
        method.on_before_optimizer_step(optimizer)
        optimizer.step()
        optimizer.zero_grad()
        method.follow(0.99)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GIB_KIB


def main() -> None:
    """Measure, print, and write a record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scale", default="gpu")
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 8, 32])
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    start, rows = time.perf_counter(), []
    context = multiprocessing.get_context("spawn")
    for count in chosen.batches:
        with ProcessPoolExecutor(1, mp_context=context) as pool:  # a peak is never forgotten
            rows.append(
                {"batch": count, "peak_gib": pool.submit(peak, chosen.scale, count).result()}
            )
        print(rows[-1], flush=True)
    if chosen.out:
        name, seconds = (
            f"Memory of the pre-training on a CPU, scale {chosen.scale}",
            time.perf_counter() - start,
        )
        write_record(chosen.out, name, rows, {"scale": chosen.scale}, seconds=seconds)


if __name__ == "__main__":
    main()
