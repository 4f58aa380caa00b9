"""Trains and evaluates CycleHand, its ablations and plain training on as many drawings.

    python benchmarks/cyclehand_training.py [--scale cpu] [--seeds 0 1 2] [--rows base cycle ...]
        [--out FILE]

For each seed the experiment `cyclehand_base` is trained once; every row then goes on from it for
the same number of steps on the same pictures, and is evaluated on `test`, `test_hard_views` and
`test_shift`. Each row is one command, which is printed. Rows of the ablation add one term each to
the row before; `sampled` adds drawings of random hands instead of reconstructed ones.

The bars, against `base`: PA-MPJPE at least 15 % lower on `test_hard_views`, at least 10 % lower on
`test_shift`, on `test` at most 2 % higher; with the mechanical terms less penetration.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

from handrec.cli import runs
from handrec.records import write_record

HANDREC = Path(sys.executable).with_name("handrec")
SPLITS = ("test", "test_hard_views", "test_shift")
FIGURES = ("pa_mpjpe", "pa_mpvpe", "mpjpe", "penetration", "penetration_share")

#: What is off, in the order in which the rows turn it on.
_TERMS = (
    ("rendered", ("rendered",)),
    ("returned", ("returned",)),
    ("photometric", ("photo", "photo_returned")),
    ("contrastive", ("contrast",)),
    ("mechanical", ("limits", "penetration")),
)


def without(*names: str) -> list[str]:
    """Return the options that turn terms off."""
    return [f"--model.init_args.weights.{name}=0" for name in names]


def ablation() -> dict[str, list[str]]:
    """Return the options of `cyclehand` that make each row."""
    mechanical = without("limits", "penetration")
    table = {"base": ["--model.init_args.phase=base", *mechanical]}
    for index, (row, _) in enumerate(_TERMS):
        later = [name for _, names in _TERMS[index + 1 :] for name in names]
        table[row] = without(*later)
    flow = "--model.init_args.flow"
    table["sampled"] = [
        f"{flow}.hands=sampled", f"{flow}.kept.texture=0", f"{flow}.kept.background=0",
        *without("photo"), *mechanical,
    ]  # fmt: skip
    return table


def handrec(*arguments: str) -> None:
    """Run a command, and print it."""
    print("handrec", shlex.join(arguments), flush=True)
    subprocess.run([HANDREC, *arguments], check=True)


def train_base(scale: str, seed: int) -> Path:
    """Return the checkpoint of phase 1, trained without mechanical terms."""
    choice = [f"--scale={scale}", f"--seed_everything={seed}"]
    handrec("fit", "--exp=cyclehand_base", *choice, *without("limits", "penetration"))
    return runs.choose_checkpoint(newest("cyclehand_base"), "last")


def newest(experiment: str) -> Path:
    """Return the directory of an experiment's newest run."""
    return [run.path for run in runs.all_runs() if run.experiment == experiment][-1]


def train_and_test(scale: str, seed: int, checkpoint: Path, options: list[str]) -> dict[str, float]:
    """Return seconds and errors of one row, by split."""
    start = time.perf_counter()
    choice = [f"--scale={scale}", f"--seed_everything={seed}"]
    handrec(
        "fit", "--exp=cyclehand", *choice, f"--model.init_args.checkpoint={checkpoint}", *options
    )
    trained = time.perf_counter()
    run = newest("cyclehand")
    handrec("test", f"--run={run}", "--which=last")
    (report,) = (run / "eval").glob("*/metrics.json")
    splits = json.loads(report.read_text())["splits"]
    figures = {"train_s": round(trained - start, 1)}
    for split in SPLITS:
        results = splits[split]["results"]["CycleHand"]
        for name in FIGURES:
            unit = "" if name.endswith("share") else "_mm"
            figures[f"{split}_{name}{unit}"] = results[name]
    return figures


def main() -> None:
    """Measure, print, and write a record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scale", default="cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rows", nargs="+", choices=list(ablation()), default=list(ablation()))
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    start, measured = time.perf_counter(), []
    for seed in chosen.seeds:
        checkpoint = train_base(chosen.scale, seed)
        for row in chosen.rows:
            figures = train_and_test(chosen.scale, seed, checkpoint, ablation()[row])
            measured.append({"row": row, "seed": seed, **figures})
            print(measured[-1], flush=True)
            if chosen.out:  # after every run: nothing is lost if the next one fails
                name, config = f"cyclehand {chosen.scale}", {"scale": chosen.scale}
                seconds = time.perf_counter() - start
                write_record(chosen.out, name, measured, config, seconds=seconds)


if __name__ == "__main__":
    main()
