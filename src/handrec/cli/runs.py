"""Finds runs and their checkpoints: `lightning_logs/<experiment>/version_<n>/`."""

import argparse
import re
from pathlib import Path
from typing import NamedTuple

from handrec.errors import UserError

LOGS = "lightning_logs"
CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"


class Run(NamedTuple):
    """A finished or interrupted training.

    Attributes:
        experiment: its name, as typed after EXP=.
        path: the run directory.
    """

    experiment: str
    path: Path

    @property
    def version(self) -> int:
        """The n of version_n."""
        return int(self.path.name.removeprefix("version_"))


def all_runs(logs: Path | None = None) -> list[Run]:
    """Return every run that has a configuration and a checkpoint, by experiment and version.

    Versions sort as numbers: 10 comes after 2.
    """
    logs = logs or Path(LOGS)
    runs = [
        Run(str(config.parent.parent.relative_to(logs)), config.parent)
        for config in logs.rglob(f"version_*/{CONFIG}")
        if config.parent.name.removeprefix("version_").isdigit()
        and any((config.parent / CHECKPOINTS).glob("*.ckpt"))
    ]
    return sorted(runs, key=lambda run: (run.experiment, run.version))


def latest(experiment: str | None = None) -> Path:
    """Return the newest run of an experiment, or of all of them when none is named.

    Smoke runs have learned nothing: they are passed over where there is any other.
    """
    runs = all_runs()
    if experiment is None:
        if not runs:
            raise UserError(f"no run in {LOGS}/: train one first, e.g. `make train EXP=handmim`")
        return max(_trained(runs), key=lambda run: (run.path / CONFIG).stat().st_mtime).path
    own = [run for run in runs if run.experiment == experiment]
    if not own:
        others = sorted({run.experiment for run in runs})
        there = f" (there are runs of {', '.join(others)})" if others else ""
        how = f"train it with `make train EXP={experiment}`"
        raise UserError(f"no run of '{experiment}' in {LOGS}/{there}: {how}")
    return _trained(own)[-1].path


def _trained(runs: list[Run]) -> list[Run]:
    """Return the runs at other scales than smoke, or all if there are only those."""
    smoke = re.compile(r"^scale: smoke$", re.M)
    return [run for run in runs if not smoke.search((run.path / CONFIG).read_text())] or runs


def resolve(name: str) -> Path:
    """Return the run that a directory or an experiment's name means."""
    path = Path(name)
    if (path / CONFIG).is_file():
        return path
    if path.is_dir() and path.name.startswith("version_"):
        raise UserError(f"{path} is no run: it has no {CONFIG}")
    return latest(name)


def choose_checkpoint(run: Path, which: str = "best") -> Path:
    """Return a run's best checkpoint where there is one, else its last; `last` asks for that."""
    if which not in ("best", "last"):
        raise UserError(f"--which={which}: choose best or last")
    order = ("best", "last") if which == "best" else ("last",)
    for name in order:
        path = run / CHECKPOINTS / f"{name}.ckpt"
        if path.is_file():
            return path
    found = sorted((run / CHECKPOINTS).glob("*.ckpt"))
    if not found:
        raise UserError(f"{run} has no checkpoint: its training ended before the first was written")
    return found[-1]


def run_of(checkpoint: Path) -> Path | None:
    """Return the run directory a checkpoint lies in, if it still lies in one."""
    run = checkpoint.resolve().parent.parent
    return run if (run / CONFIG).is_file() else None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `handrec runs` takes."""
    parser.add_argument("action", choices=["latest", "list"], nargs="?", default="list")
    parser.add_argument("experiment", nargs="?", help="of this experiment only")


def run(args: argparse.Namespace) -> int:
    """Print the newest run's directory, or every run with its checkpoints."""
    if args.action == "latest":
        print(latest(args.experiment))
        return 0
    for found in all_runs():
        if args.experiment in (None, found.experiment):
            names = sorted(path.stem for path in (found.path / CHECKPOINTS).glob("*.ckpt"))
            print(f"{found.path}  {' '.join(names)}")
    return 0
