"""How long users wait before anything happens: imports and help, each in a process of its own.

    python benchmarks/startup.py [--repeats 7] [--out FILE]

The bars, on a CPU: `import handrec` adds at most 0.3 s to `import torch`, and `handrec --help`
answers within 3 s. What a training imports is shown beside them: nearly all of it is Lightning.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from handrec.records import write_record

HELP = "import sys; from handrec.cli.main import main; sys.exit(main(['--help']))"

#: Code whose seconds count, the code that its process runs before, and the bar in seconds.
STEPS = {
    "import torch": ("import torch", "", None),
    "import handrec, after torch": ("import handrec", "import torch", 0.3),
    "import handrec.methods.handmim, after torch": (
        "import handrec.methods.handmim",
        "import torch",
        None,
    ),
}


def seconds_of(code: str, before: str) -> float:
    """Return the seconds that code takes in a new process."""
    lines = ["import time", before, "s = time.perf_counter()", code]
    timed = "\n".join([*lines, "print(time.perf_counter() - s)"])
    done = subprocess.run([sys.executable, "-c", timed], check=True, capture_output=True, text=True)
    return float(done.stdout)


def seconds_of_help() -> float:
    """Return the seconds from starting `handrec --help` to its end."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", HELP], check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, help="a record to write")
    chosen = parser.parse_args()

    start = time.perf_counter()
    runs: dict[str, list[float]] = {}
    for _ in range(chosen.repeats + 1):  # the first fills the disk's cache
        for step, (code, before, _) in STEPS.items():
            runs.setdefault(step, []).append(seconds_of(code, before))
        runs.setdefault("handrec --help", []).append(seconds_of_help())
    bars = {step: bar for step, (_, _, bar) in STEPS.items()} | {"handrec --help": 3.0}
    rows = []
    for step, seconds in runs.items():
        median = statistics.median(seconds[1:])
        rows.append({"step": step, "median_s": median, "slowest_s": max(seconds[1:])})
        if bars[step]:
            rows[-1] |= {"bar_s": bars[step], "met": median <= bars[step]}
        print(*(f"{key} {value}" for key, value in rows[-1].items()), sep=", ")
    if chosen.out:
        config = {"repeats": chosen.repeats}
        write_record(chosen.out, "Start-up", rows, config, seconds=time.perf_counter() - start)


if __name__ == "__main__":
    main()
