"""Runs a W&B sweep file on this machine, by Optuna: no account, and it goes on where it stopped."""

import argparse
import csv
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from handrec.cli import experiments, runs, sweep_file
from handrec.cli.sweep_file import FLOATS, Sweep
from handrec.errors import UserError

#: Trials that may fail one after another: then the fault is not in the values.
FAILURES = 3
#: Statuses of a training that somebody stopped. Other signals are of crashes.
STOPPED = (130, -signal.SIGINT, -signal.SIGTERM)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `handrec sweep` takes."""
    parser.add_argument("name", help="of a file in experiments/sweeps, without .yaml")
    parser.add_argument("--trials", type=int, help="how many in all, those of before included")
    parser.add_argument("--seed", type=int, default=0, help="of the choices")
    parser.add_argument(
        "options", nargs="*", help="after `--`: of handrec fit, such as --scale=cpu"
    )


def run(args: argparse.Namespace) -> int:
    """Run the trials that are missing, and write the table and the plot."""
    sweep = sweep_file.read(sweep_file.find(args.name))
    trials = args.trials or sweep.trials or 20
    if trials < 1:
        raise UserError("--trials is at least 1")
    if sweep.method == "grid":
        trials = min(trials, math.prod(map(len, grid_of(sweep).values())))
    folder = Path(runs.LOGS) / "sweeps" / sweep.name
    study = open_study(sweep, folder, args.seed)
    failures = 0
    while len(completed := finished(study)) < trials:
        trial = study.ask()
        values = {name: suggest(trial, name, how) for name, how in sweep.parameters.items()}
        found = measure(sweep, folder, trial.number, values, args.options)
        failures = failures + 1 if found is None else 0
        tell(study, trial, found)
        best = f", best {study.best_value:.4g}" if finished(study) else ""
        shown = "failed" if found is None else f"{sweep.metric} {found:.4g}"
        choice = " ".join(f"{name.rpartition('.')[2]}={values[name]}" for name in values)
        experiments.say(f"trial {len(completed) + 1}/{trials}: {shown}{best} ({choice})")
        if failures == FAILURES:
            log = folder / f"trial_{trial.number}" / "log.txt"
            raise UserError(f"{FAILURES} trials failed in a row: {last_line(log)} ({log})")
    write_table(sweep, study, folder / "results.csv")
    plot(sweep, study, folder / "results.png")
    show(sweep, study, folder)
    return 0


def open_study(sweep: Sweep, folder: Path, seed: int) -> Any:
    """Return the study in a folder, or a new one; trials that were cut off are asked for again."""
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError:
        raise UserError(
            "local sweeps need Optuna: pip install 'handrec[tune]', or use W&B (leave LOCAL out)"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name=sweep.name,
        storage=JournalStorage(JournalFileBackend(str(folder / "study.log"))),
        sampler=sampler_of(sweep, seed),
        direction="maximize" if sweep.maximise else "minimize",
        load_if_exists=True,
    )
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.enqueue_trial(trial.params)
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    return study


def sampler_of(sweep: Sweep, seed: int) -> Any:
    """Return Optuna's sampler for a method of W&B's."""
    from optuna.samplers import GridSampler, RandomSampler, TPESampler

    if sweep.method == "grid":
        grid = {
            name: how.get("values", [how.get("value")]) for name, how in sweep.parameters.items()
        }
        return GridSampler(grid, seed=seed)
    return RandomSampler(seed) if sweep.method == "random" else TPESampler(seed=seed)


def grid_of(sweep: Sweep) -> dict[str, list[Any]]:
    """Return the values of each option of a grid.

    Raises:
        UserError: an option has a range instead.
    """
    ranges = [name for name, how in sweep.parameters.items() if "min" in how]
    if ranges:
        raise UserError(f"sweep {sweep.name}: a grid wants values, not min and max: {ranges[0]}")
    return {name: how.get("values", [how.get("value")]) for name, how in sweep.parameters.items()}


def suggest(trial: Any, name: str, how: Mapping[str, Any]) -> Any:
    """Return a trial's value of an option, chosen as a sweep file says."""
    if "value" in how:
        return trial.suggest_categorical(name, [how["value"]])
    if "values" in how:
        return trial.suggest_categorical(name, how["values"])
    low, high, step = how["min"], how["max"], how.get("q")
    whole = isinstance(low, int) and isinstance(high, int)
    distribution = how.get("distribution", "int_uniform" if whole else "uniform")
    if distribution == "int_uniform":
        return trial.suggest_int(name, low, high)
    if FLOATS[distribution]:
        return trial.suggest_float(name, low, high, log=True)
    return trial.suggest_float(name, low, high, step=step)


def finished(study: Any) -> list[Any]:
    """Return the trials that have a result."""
    from optuna.trial import TrialState

    return list(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))


def tell(study: Any, trial: Any, found: float | None) -> None:
    """Write a trial's result down, or that there is none."""
    from optuna.trial import TrialState

    if found is None:
        study.tell(trial, state=TrialState.FAIL)
    else:
        study.tell(trial, found)


def measure(
    sweep: Sweep, folder: Path, number: int, values: Mapping[str, Any], options: list[str]
) -> float | None:
    """Train with some values; return the metric's last value, or None if the training failed."""
    from handrec.callbacks.safety import ASKED_TO_STOP  # imports torch

    place = folder / f"trial_{number}"
    place.mkdir(parents=True, exist_ok=True)
    name = f"sweeps/{sweep.name}/trial_{number}"
    command = [*sweep_file.command_of(sweep, values), f"--name={name}", *options]
    beside = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": os.pathsep.join([beside, os.environ.get("PATH", "")])}
    if shutil.which(sweep.program, path=environment["PATH"]) is None:
        raise UserError(f"there is no program {sweep.program}: activate the environment it is in")
    with (place / "log.txt").open("a+", encoding="utf-8", errors="replace") as log:
        start = log.tell()
        done = subprocess.run(command, stdout=log, stderr=log, env=environment, check=False)
        log.seek(start)
        stopped = done.returncode in STOPPED or ASKED_TO_STOP in log.read()
        if done.returncode < 0:
            log.write(f"ended by {signal.Signals(-done.returncode).name}\n")
    if stopped:
        raise KeyboardInterrupt  # the sweep stops, too
    logged = sorted(place.glob("version_*/metrics.csv"), key=lambda path: path.stat().st_mtime)
    if done.returncode or not logged:
        return None
    with logged[-1].open(newline="", encoding="utf-8") as file:
        rows = [row[sweep.metric] for row in csv.DictReader(file) if row.get(sweep.metric)]
    return float(rows[-1]) if rows else None


def last_line(log: Path) -> str:
    """Return the last line of a log: what went wrong, as a rule."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].removeprefix("handrec: error: ") if lines else "it said nothing"


def ranked(study: Any, sweep: Sweep) -> list[Any]:
    """Return the finished trials, the best first."""
    sign = -1 if sweep.maximise else 1
    return sorted(finished(study), key=lambda trial: sign * trial.value)


def write_table(sweep: Sweep, study: Any, path: Path) -> None:
    """Write the finished trials down, the best first."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["trial", sweep.metric, *sweep.parameters])
        for trial in ranked(study, sweep):
            table.writerow([trial.number, trial.value, *map(trial.params.get, sweep.parameters)])


def show(sweep: Sweep, study: Any, folder: Path) -> None:
    """Print the best trials and where everything lies."""
    from rich.console import Console
    from rich.table import Table

    table = Table("trial", sweep.metric, *(name.rpartition(".")[2] for name in sweep.parameters))
    for trial in ranked(study, sweep)[:10]:
        values = [f"{trial.params[name]:.4g}" if isinstance(trial.params[name], float)
                  else str(trial.params[name]) for name in sweep.parameters]  # fmt: skip
        table.add_row(str(trial.number), f"{trial.value:.4g}", *values)
    Console().print(table)
    experiments.say(f"all of them: {folder / 'results.csv'}, {folder / 'results.png'}")


def plot(sweep: Sweep, study: Any, path: Path) -> None:
    """Draw the metric over each option, and over the trials."""
    from matplotlib.figure import Figure

    trials = sorted(finished(study), key=lambda trial: int(trial.number))
    panels = ["trial", *sweep.parameters]
    figure = Figure(figsize=(2.8 * len(panels), 3), dpi=110, layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    values = [trial.value for trial in trials]
    for axis, name in zip(axes, panels, strict=True):
        across = [t.number if name == "trial" else t.params[name] for t in trials]
        numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in across)
        axis.plot(across if numbers else list(map(str, across)), values, "o", color="#0072b2")
        if FLOATS.get(sweep.parameters.get(name, {}).get("distribution", "")):
            axis.set_xscale("log")
        axis.set_xlabel(name.removeprefix("model.init_args."))
    axes[0].set_ylabel(sweep.metric)
    figure.savefig(path)
