"""How sure the difference of two methods is, as far as the test hands decide it.

    python benchmarks/paired_difference.py --runs A [B ...] --against C [D ...]
        [--figure pa_mpjpe] [--out FILE]

Reads what the last evaluation of each run left of every sample (`per_sample.csv`), takes the mean
of the runs of a side (seeds, say), and writes by how many per cent the mean over the samples
differs, with its 95 % interval as far as other samples would change it (bias-corrected bootstrap,
scipy). Both sides see the same samples. What another training would change it does not say.
"""

import argparse
import csv
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

from handrec.cli import runs
from handrec.records import write_record


def splits_of(run: Path) -> dict[str, Path]:
    """Return the folders of a run's last evaluation, by the content of the data."""
    found = list((run / "eval").glob("*/metrics.json"))
    if len(found) != 1:
        sys.exit(f"{run} was evaluated on {len(found)} data sets, not on one")
    splits: dict[str, Any] = json.loads(found[0].read_text())["splits"]
    return {
        f"{name} {facts['split_sha256'][:12]}": found[0].parent / name
        for name, facts in splits.items()
    }


def samples(folder: Path, figure: str) -> dict[str, float]:
    """Return a figure of every sample, by its number."""
    with (folder / "per_sample.csv").open(encoding="utf-8") as file:
        return {row["id"]: float(row[figure]) for row in csv.DictReader(file)}


def mean_of(folders: list[Path], figure: str, ids: list[str]) -> NDArray[np.float64]:
    """Return of each of the samples the mean of several evaluations."""
    tables = [samples(folder, figure) for folder in folders]
    return np.array([[table[number] for number in ids] for table in tables]).mean(0)


def change_percent(new: NDArray[np.float64], old: NDArray[np.float64], axis: int = -1) -> Any:
    """Return by how many per cent the mean over the samples is higher than that of others."""
    return 100 * (new.mean(axis) / old.mean(axis) - 1)


def difference(new: NDArray[np.float64], old: NDArray[np.float64]) -> dict[str, Any]:
    """Return the change in per cent and its interval."""
    told = bootstrap(
        (new, old), change_percent, paired=True, vectorized=True, rng=np.random.default_rng(0)
    )
    low, high = told.confidence_interval
    return {
        "samples": len(new),
        "change_percent": round(float(change_percent(new, old)), 2),
        "from_percent": round(float(low), 2),
        "to_percent": round(float(high), 2),
    }


def compare(ours: list[Path], theirs: list[Path], figure: str) -> list[dict[str, Any]]:
    """Return the differences on every split that all runs were evaluated on."""
    sides = [[splits_of(run) for run in side] for side in (ours, theirs)]
    every = [splits for side in sides for splits in side]
    rows = []
    for split in every[0]:
        if not all(split in splits for splits in every):
            continue
        ids = list(samples(every[0][split], figure))
        new, old = (mean_of([splits[split] for splits in side], figure, ids) for side in sides)
        rows.append({"split": split, "figure": figure, **difference(new, old)})
    if not rows:
        sys.exit("no split that all runs were evaluated on: evaluate them on the same data")
    return rows


def main() -> None:
    """Compare, print, and write a record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", nargs="+", required=True)
    parser.add_argument("--against", nargs="+", required=True)
    parser.add_argument("--figure", default="pa_mpjpe", help="a column of per_sample.csv")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    start = time.perf_counter()
    ours, theirs = ([runs.resolve(name) for name in side] for side in (chosen.runs, chosen.against))
    rows = compare(ours, theirs, chosen.figure)
    for row in rows:
        print(row)
    if chosen.out:
        name = f"difference of {chosen.runs[0]} and {chosen.against[0]}"
        config = {"runs": chosen.runs, "against": chosen.against}
        write_record(chosen.out, name, rows, config, seconds=time.perf_counter() - start)


if __name__ == "__main__":
    main()
