"""What two processes on one machine give, and what checkpoints cost: samples per second.

    python benchmarks/processes.py [--experiments handmim s2hand] [--scale cpu] [--out FILE]

Short trainings of `handrec fit`, all with the same samples in a step: one process with one thread
and with two, two processes with a thread each (`ddp`, gloo), and one that writes a checkpoint after
every step, which trainings do every ten minutes. The median over the logged steps but the first.
"""

import argparse
import csv
import os
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from _runs import handrec
from handrec.records import write_record

#: Threads of a process, and options.
ROWS: dict[str, tuple[int, list[str]]] = {
    "one process": (1, []),
    "one process, two threads": (2, []),
    "two processes": (1, ["--trainer.devices=2", "--trainer.strategy=ddp"]),
    "a checkpoint after every step": (1, ["--safety.steps=1"]),
}
BATCH, EVERY = 64, 5


def samples_per_second(experiment: str, scale: str, row: str, steps: int, root: str) -> float:
    """Return what a short training logs."""
    threads, options = ROWS[row]
    os.environ["OMP_NUM_THREADS"] = str(threads)
    batch = BATCH // 2 if row == "two processes" else BATCH
    name = f"{experiment} {row}".replace(" ", "-").replace(",", "")
    handrec(
        "fit", f"--exp={experiment}", f"--scale={scale}", f"--name={name}", *options,
        f"--trainer.default_root_dir={root}", f"--trainer.max_steps={steps}",
        f"--trainer.log_every_n_steps={EVERY}", "--trainer.limit_val_batches=0",
        f"--data.init_args.batch_size={batch}", f"--data.init_args.train_size={BATCH * steps}",
        f"--data.init_args.cache_dir={root}/cache",
    )  # fmt: skip
    run = Path(root) / "lightning_logs" / name / "version_0"
    with (run / "metrics.csv").open(encoding="utf-8") as file:
        found = [row["speed/samples_per_s"] for row in csv.DictReader(file)]
    return statistics.median([float(value) for value in found if value][1:])


def main() -> None:
    """Measure, print, and write a record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--experiments", nargs="+", default=["handmim", "s2hand"])
    parser.add_argument("--scale", default="cpu")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", type=Path, help="a record to write")
    chosen = parser.parse_args()
    start, rows = time.perf_counter(), list[dict[str, Any]]()
    with TemporaryDirectory() as root:
        for experiment in chosen.experiments:
            for row in ROWS:
                found = samples_per_second(experiment, chosen.scale, row, chosen.steps, root)
                rows.append({"experiment": experiment, "row": row, "samples_per_s": found})
                rows[-1]["of_one_process"] = (
                    found / rows[-1 - list(ROWS).index(row)]["samples_per_s"]
                )
                print(rows[-1], flush=True)
    if chosen.out:
        config = {"scale": chosen.scale, "batch": BATCH, "steps": chosen.steps}
        write_record(chosen.out, "Processes", rows, config, 0, time.perf_counter() - start)


if __name__ == "__main__":
    main()
