"""Trains and evaluates the experiment `s2hand` as `make train` and `make eval` do.

    python benchmarks/s2hand_training.py [--scale cpu] [--seeds 0] [--out FILE]

The bar: from detected 2D keypoints and pixels alone, in minutes on two CPU cores, a PA-MPJPE on the
test split of at most 0.8 times the mean hand's.
"""

import argparse
import time
from pathlib import Path

from handmim_training import train_and_test
from handrec.records import write_record


def main() -> None:
    """Measure, print, and write a record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scale", default="cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    start, rows = time.perf_counter(), []
    for seed in chosen.seeds:
        rows.append(train_and_test("s2hand", chosen.scale, seed))
        print(rows[-1], flush=True)
        if chosen.out:
            name, config = f"s2hand {chosen.scale}", {"scale": chosen.scale}
            write_record(chosen.out, name, rows, config, seconds=time.perf_counter() - start)


if __name__ == "__main__":
    main()
