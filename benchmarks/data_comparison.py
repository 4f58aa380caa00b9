"""Trains `handmim` on pictures of one appearance or the other, and tests it on the same splits.

    python benchmarks/data_comparison.py [--scale cpu] [--epochs 3] [--seeds 0 1 2] [--out FILE]

The first version of the synthetic pictures (``Plain``) against today's (``Everyday``): the same
hands, views, steps and seeds; only the pictures of the training split differ. Tested on ``test``
(everyday pictures), ``test_hard_views`` and ``test_shift`` (``Foreign``, on which neither was
trained). The bar: today's are better on every split, in the mean over seeds.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from handrec.cli import runs
from handrec.records import write_record

HANDREC = Path(sys.executable).with_name("handrec")
APPEARANCE = "--data.init_args.appearance=handrec.data.appearance"
DOMAINS = {"plain": "plain.Plain", "everyday": "everyday.Everyday"}


def train_and_test(domain: str, scale: str, epochs: int, seed: int) -> list[dict[str, Any]]:
    """Return a row of errors for each test split."""
    name = f"--name=data_{domain}"
    fit = ["fit", "--exp=handmim", f"--scale={scale}", f"--trainer.max_epochs={epochs}"]
    fit += [f"{APPEARANCE}.{DOMAINS[domain]}", f"--seed_everything={seed}", name]
    start = time.perf_counter()
    subprocess.run([HANDREC, *fit], check=True)
    trained = time.perf_counter() - start
    test = ["test", f"--run=data_{domain}", f"{APPEARANCE}.everyday.Everyday"]
    subprocess.run([HANDREC, *test], check=True)
    rows = []
    (report,) = (runs.resolve(f"data_{domain}") / "eval").glob("*/metrics.json")
    for split, found in json.loads(report.read_text())["splits"].items():
        results = found["results"]
        method = results["HandMIM"]["pa_mpjpe"]
        rows.append(
            {
                "trained_on": domain,
                "split": split,
                "seed": seed,
                "pa_mpjpe_mm": method,
                "pa_mpvpe_mm": results["HandMIM"]["pa_mpvpe"],
                "ratio_to_mean_hand": method / results["mean hand"]["pa_mpjpe"],
                "train_s": round(trained, 1),
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
            rows += train_and_test(domain, chosen.scale, chosen.epochs, seed)
            print(rows[-3:], flush=True)
            if chosen.out:  # after every run: nothing is lost if the next one fails
                config = {"scale": chosen.scale, "epochs": chosen.epochs}
                seconds = time.perf_counter() - start
                write_record(chosen.out, "Old and new synthetic data", rows, config, None, seconds)


if __name__ == "__main__":
    main()
