"""Kills a training again and again: it must end with the weights of an undisturbed one.

    python benchmarks/chaos.py [--minutes 10] [--experiment handmim_pretrain] [--out FILE]
    make bench BENCH=chaos

Every start is the same command, `handrec fit ... --resume=1`, as `make train EXP=... RESUME=1` runs
it. It is killed (SIGKILL) at a random moment; while checkpoints are written, too. When the time is
up, one start is left alone to finish. The bar: nothing in the two last checkpoints differs by a bit
(but for the validation's latest score, which none reads), the logs have the same rows (but for what
the clock says), no start failed by itself, and a kill fell after a checkpoint.
"""

import argparse
import atexit
import csv
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from handrec.cli import experiments, runs
from handrec.records import write_record

HANDREC = [sys.executable, "-c", "import sys; from handrec.cli.main import main; sys.exit(main())"]
#: Smoke scale; single pictures drawn plainly, because kills are to hit steps, not preparations.
SMALL = [
    "--scale=smoke",
    "--safety.steps=1",
    "--trainer.limit_train_batches=4",
    "--trainer.limit_val_batches=1",
    "--data.init_args.appearance=handrec.data.appearance.plain.Plain",
    "--data.init_args.shifted=handrec.data.appearance.plain.Plain",
]


def start(folder: Path, experiment: str, epochs: int, *options: str) -> subprocess.Popen[bytes]:
    """Start a training in a folder, or go on with it."""
    folder.mkdir(parents=True, exist_ok=True)
    choice = [f"--exp={experiment}", f"--trainer.max_epochs={epochs}", "--resume=1"]
    cache = f"--data.init_args.cache_dir={folder.parent / 'cache'}"
    environment = {**os.environ, "WANDB_MODE": "disabled"}
    link = folder / "experiments"
    if not link.exists():
        link.symlink_to(experiments.experiments_dir())
    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            [*HANDREC, "fit", *choice, *SMALL, cache, *options],
            cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    atexit.register(end, process)
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    """Leave no training behind when the benchmark itself is stopped."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def undisturbed(folder: Path, experiment: str, epochs: int) -> None:
    """Train in peace; end with what the training said if it fails."""
    if start(folder, experiment, epochs).wait():
        sys.exit((folder / "log.txt").read_text(errors="replace"))


def pace(root: Path, experiment: str, epochs: int = 10) -> tuple[float, float]:
    """Return about how many seconds a start and an epoch take."""
    undisturbed(root / "warm", experiment, 1)  # draws the data
    began = time.perf_counter()
    undisturbed(root / "first", experiment, 1)
    once = time.perf_counter() - began
    undisturbed(root / "longer", experiment, 1 + epochs)
    longer = time.perf_counter() - began - once
    return once, max(0.01 * once, (longer - once) / epochs)


def last_checkpoint(folder: Path, experiment: str) -> Path:
    """Return where a training's last checkpoint lies: every start goes on in the same run."""
    run = runs.all_runs(folder / "lightning_logs")[-1]
    assert run.experiment == experiment
    return run.path / "checkpoints" / "last.ckpt"


def log_of(folder: Path, experiment: str) -> list[dict[str, str]]:
    """Return the rows of the run's log, without what its clock says."""
    path = last_checkpoint(folder, experiment).parents[1] / "metrics.csv"
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [
        found
        for row in rows
        if (found := {k: v for k, v in row.items() if v and not k.startswith("speed/")})
    ]


def kill(process: subprocess.Popen[bytes], after: float) -> int | None:
    """Kill a training after so many seconds; return its status if it has ended before."""
    try:
        return process.wait(after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None


def leaves(content: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what a checkpoint holds, by name."""
    if isinstance(content, dict | list | tuple):
        pairs = content.items() if isinstance(content, dict) else enumerate(content)
        for key, value in pairs:
            yield from leaves(value, f"{name}/{key}")
    else:
        yield name, content


def differing(first: Path, second: Path) -> list[str]:
    """Return the names of what differs between two checkpoints."""
    both = [torch.load(path, map_location="cpu", weights_only=True) for path in (first, second)]
    one, other = (
        {name: value for name, value in leaves(content) if not name.endswith("/current_score")}
        for content in both
    )
    equal = {
        name: torch.equal(one[name], other[name])
        if isinstance(one[name], torch.Tensor)
        else repr(one[name]) == repr(other[name])
        for name in one.keys() & other.keys()
    }
    return sorted([*(one.keys() ^ other.keys()), *(name for name in equal if not equal[name])])


def disturb(
    folder: Path, experiment: str, epochs: int, seconds: float, start_s: float, draw: random.Random
) -> dict[str, int]:
    """Kill a training for so long, then let it finish; return what happened.

    Args:
        folder: of the training.
        experiment: its name.
        epochs: of the training.
        seconds: how long to kill.
        start_s: about how long a start takes until its first step.
        draw: of the moments.
    """
    end, kills, after, failures = time.monotonic() + seconds, 0, 0, 0
    while time.monotonic() < end:
        status = kill(start(folder, experiment, epochs), draw.uniform(0.5, 2.5) * start_s)
        kills += status is None
        after += status is None and any(folder.glob("lightning_logs/*/*/checkpoints/last.ckpt"))
        failures += status not in (None, 0)
        if status == 0:
            break
    failures += start(folder, experiment, epochs).wait() != 0
    return {"kills": kills, "kills_after_a_checkpoint": after, "failures": failures}


def main() -> None:
    """Measure, print, and write a record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--experiment", default="handmim_pretrain")
    parser.add_argument("--epochs", type=int, help="default: as fit into the minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as root:
        whole, torn = Path(root, "undisturbed"), Path(root, "disturbed")
        once, each = pace(Path(root), chosen.experiment)
        epochs = chosen.epochs or math.ceil(60 * chosen.minutes / each)
        undisturbed(whole, chosen.experiment, epochs)
        figures: dict[str, Any] = dict(
            disturb(torn, chosen.experiment, epochs, 60 * chosen.minutes, once,
                    random.Random(chosen.seed))
        )  # fmt: skip
        log = (torn / "log.txt").read_text(errors="replace")
        figures["resumed"] = log.count("going on from")
        figures["damaged"] = log.count("is damaged")
        pair = (last_checkpoint(folder, chosen.experiment) for folder in (whole, torn))
        differs = differing(*pair)
        logs = [log_of(folder, chosen.experiment) for folder in (whole, torn)]
    if figures["failures"]:
        print(*log.splitlines()[-20:], sep="\n")
    equal = {"equal": not differs, "log_equal": logs[0] == logs[1]}
    figures = {"experiment": chosen.experiment, "steps": 4 * epochs, **figures, **equal}
    print(figures, *differs[:5])
    if chosen.out:
        seconds = time.perf_counter() - begun
        config = {"minutes": chosen.minutes, "experiment": chosen.experiment}
        write_record(chosen.out, "chaos", figures, config, chosen.seed, seconds)
    if not figures["kills_after_a_checkpoint"]:
        print("no kill fell after the first checkpoint: nothing was shown; give it more --minutes")
    passed = all(equal.values()) and figures["kills_after_a_checkpoint"]
    sys.exit(not passed or bool(figures["failures"]))


if __name__ == "__main__":
    main()
