"""Trains `handmim` on pictures of one appearance or the other, and tests it on the same splits.

    python benchmarks/data_comparison.py [--scale cpu] [--epochs 3] [--seeds 0 1 2] [--out FILE]

The first version of the synthetic pictures (``Plain``) against today's (``Everyday``): the same
hands, views, steps and seeds; only the pictures of the training split differ. Tested on ``test``
and ``video`` (everyday pictures), ``test_hard_views`` and ``test_shift`` (``Foreign``, on which
neither was trained). The bar: today's are better on every split, in the mean over seeds.
"""

import argparse
import time
from pathlib import Path
from typing import Any

from _runs import evaluated, trained
from handrec.records import write_record

APPEARANCE = "--data.init_args.appearance=handrec.data.appearance"
DOMAINS = {"plain": "plain.Plain", "everyday": "everyday.Everyday"}
SPLITS = "--data.init_args.test_splits=[test, test_hard_views, test_shift, video]"


def train_and_test(domain: str, scale: str, epochs: int, seed: int) -> list[dict[str, Any]]:
    """Return a row of errors for each test split."""
    fit = ["--exp=handmim", f"--scale={scale}", f"--trainer.max_epochs={epochs}"]
    fit += [f"{APPEARANCE}.{DOMAINS[domain]}", f"--seed_everything={seed}"]
    run, seconds = trained(f"data_{domain}-{scale}-{epochs}-{seed}", *fit)
    rows = []
    splits = evaluated(run, SPLITS, f"{APPEARANCE}.everyday.Everyday")
    for split, results in splits.items():
        method = results["HandMIM"]["pa_mpjpe"]
        rows.append(
            {
                "trained_on": domain,
                "split": split,
                "seed": seed,
                "pa_mpjpe_mm": method,
                "pa_mpvpe_mm": results["HandMIM"]["pa_mpvpe"],
                "ratio_to_mean_hand": method / results["mean hand"]["pa_mpjpe"],
                "train_s": seconds,
            }
        )
    return rows


def main() -> None:
    """Measure, print, and write a record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scale", default="cpu")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    start, rows = time.perf_counter(), []
    for seed in chosen.seeds:
        for domain in DOMAINS:
            found = train_and_test(domain, chosen.scale, chosen.epochs, seed)
            print(*found, sep="\n", flush=True)
            rows += found
            if chosen.out:  # after every run: nothing is lost if the next one fails
                config = {"scale": chosen.scale, "epochs": chosen.epochs}
                seconds = time.perf_counter() - start
                write_record(chosen.out, "Old and new synthetic data", rows, config, None, seconds)


if __name__ == "__main__":
    main()
