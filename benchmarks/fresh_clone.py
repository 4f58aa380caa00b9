"""How long a new user waits: from an empty folder to the end of a first training.

    python benchmarks/fresh_clone.py [--experiments handmim_pretrain] [--out FILE]

Clones the repository that this file lies in (what is committed), sets it up and trains, as the
README says. The bar: `make train EXP=handmim_pretrain` ends within 12 minutes on two cores, set-up
included, and the probe of its frozen features is then clearly better than before. How long the
set-up takes depends on where pip finds the packages.
"""

import argparse
import os
import subprocess
import tempfile
import time
from pathlib import Path

from _runs import last_values
from handrec.records import write_record

REPOSITORY = Path(__file__).parents[1]


def clean_environment() -> dict[str, str]:
    """Return the environment without what belongs to this checkout."""
    own = ("PYTHONPATH", "VIRTUAL_ENV", "OMP_NUM_THREADS")
    return {name: value for name, value in os.environ.items() if name not in own}


def seconds_of(folder: Path, *command: str) -> float:
    """Return the seconds that a command takes; one that fails ends the benchmark."""
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, env=clean_environment(), check=True)
    return round(time.perf_counter() - start, 1)


def measure(folder: Path, experiment: str) -> dict[str, str | float]:
    """Return the seconds of set-up and training, and what the training ended with."""
    clone = folder / experiment
    subprocess.run(["git", "clone", "--quiet", REPOSITORY, clone], check=True)
    setup = seconds_of(clone, "make", "setup")
    training = seconds_of(clone, "make", "train", f"EXP={experiment}")
    (run,) = (clone / "lightning_logs" / experiment).glob("version_*")
    ends = {
        name.removeprefix("val/"): value
        for name, value in last_values(run).items()
        if name.startswith("val/probe") or name == "val/pa_mpvpe_mm"
    }
    total = round(setup + training, 1)
    seconds = {"setup_s": setup, "train_s": training, "total_s": total}
    return {"experiment": experiment, **seconds, **ends}


def main() -> None:
    """Measure, print, and write a record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--experiments", nargs="+", default=["handmim_pretrain"])
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    start, measured = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as folder:
        for experiment in chosen.experiments:
            measured.append(measure(Path(folder), experiment))
            print(measured[-1], flush=True)
    if chosen.out:
        config = {"experiments": chosen.experiments}
        seconds = time.perf_counter() - start
        write_record(chosen.out, "fresh clone", measured, config, seconds=seconds)


if __name__ == "__main__":
    main()
