"""Trains and evaluates the experiment `handmim` as `make train` and `make eval` do.

    python benchmarks/handmim_training.py [--scale cpu] [--seeds 0 1 2] [--out FILE]

The bar on two CPU cores: training ends within 12 minutes, set-up included, with a PA-MPJPE on the
test split clearly below the mean hand's (aim: 0.75 times), falling from the first iteration of the
PyMAF head to the last. `set_up_s` is left to `time make setup` on a fresh clone.
"""

import argparse
import time
from pathlib import Path

from _runs import evaluated, handrec
from handrec.cli import runs
from handrec.records import write_record


def train_and_test(experiment: str, scale: str, seed: int) -> dict[str, float | int]:
    """Return seconds and errors of one seed of an experiment, on the test split."""
    start = time.perf_counter()
    handrec("fit", f"--exp={experiment}", f"--scale={scale}", f"--seed_everything={seed}")
    trained = time.perf_counter()
    results = evaluated(runs.resolve(experiment))["test"]
    tested = time.perf_counter()
    mean = results["mean hand"]["pa_mpjpe"]
    iterations = {
        name.replace("iteration ", "pa_mpjpe_mm_iteration_"): row["pa_mpjpe"]
        for name, row in results.items()
        if name.startswith("iteration")
    }
    method = next(
        row for name, row in results.items() if name != "mean hand" and "iteration" not in name
    )
    return {
        "seed": seed,
        "train_s": round(trained - start, 1),
        "test_s": round(tested - trained, 1),
        "pa_mpjpe_mm": method["pa_mpjpe"],
        "pa_mpvpe_mm": method["pa_mpvpe"],
        "mpjpe_mm": method["mpjpe"],
        "pa_f5": method["pa_f5"],
        "pa_f15": method["pa_f15"],
        "mean_hand_pa_mpjpe_mm": mean,
        "ratio_to_mean_hand": method["pa_mpjpe"] / mean,
        **iterations,
    }


def main() -> None:
    """Measure, print, and write a record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scale", default="cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    start, rows = time.perf_counter(), []
    for seed in chosen.seeds:
        rows.append(train_and_test("handmim", chosen.scale, seed))
        print(rows[-1], flush=True)
        if chosen.out:  # after every seed: nothing is lost if the next one fails
            name, config = f"handmim {chosen.scale}", {"scale": chosen.scale}
            write_record(chosen.out, name, rows, config, seconds=time.perf_counter() - start)


if __name__ == "__main__":
    main()
