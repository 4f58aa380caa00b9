"""Runs a W&B sweep file on this machine, by Optuna: no account, and it goes on where it stopped."""

import argparse
import csv
import ctypes
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from handrec.cli import experiments, runs, sweep_file
from handrec.cli.sweep_file import FLOATS, Sweep
from handrec.errors import UserError

#: Trials that may fail one after another: then the fault is not in the values.
FAILURES = 3
#: Trials of a sweep where nobody says how many.
TRIALS = 20
#: Lie in a sweep's folder: its trials, and what they were begun with.
STUDY, CHOICES = "study.log", "sweep.json"
#: Options of a training that say where its run lies, which the sweep does.
OWN = ("--name", "--trainer.default_root_dir", "--resume")
#: Of Linux's prctl: the signal that a process gets when its parent dies.
PR_SET_PDEATHSIG = 1
#: Statuses of a training that somebody stopped. Other signals are of crashes.
STOPPED = (130, -signal.SIGINT, -signal.SIGTERM)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `handrec sweep` takes."""
    parser.usage = "handrec sweep [-h] [--trials N] [--seed N] NAME [-- OPTIONS OF handrec fit]"
    parser.add_argument("name", help="of a file in experiments/sweeps, without .yaml")
    parser.add_argument("--trials", type=int, help="how many in all, those of before included")
    parser.add_argument("--seed", type=int, default=0, help="of the choices")
    parser.set_defaults(options=[])  # what follows `--`: of handrec fit, such as --scale=cpu


def run(args: argparse.Namespace) -> int:
    """Run the trials that are missing, and write the table and the plot."""
    sweep = sweep_file.read(sweep_file.find(args.name))
    trials = next(n for n in (args.trials, sweep.trials, TRIALS) if n is not None)
    if trials < 1 or args.seed < 0:
        raise UserError("--trials is at least 1, --seed at least 0")
    for option in args.options:
        if option.partition("=")[0] in OWN:
            raise UserError(f"{option}: a sweep names and places its trials itself, leave it out")
    if sweep.method == "grid":
        trials = min(trials, len(grid_of(sweep)))
    folder = Path(runs.LOGS) / "sweeps" / sweep.name
    study = open_study(sweep, folder, args.options)
    search(sweep, study, folder, trials, args)
    if not finished(study):
        raise UserError(f"no trial gave a {sweep.metric}: look at {folder}/trial_*/log.txt")
    write_table(sweep, study, folder / "results.csv")
    plot(sweep, study, folder / "results.png")
    show(sweep, study, folder)
    return 0


def search(sweep: Sweep, study: Any, folder: Path, trials: int, args: argparse.Namespace) -> None:
    """Run trials until so many have a result, or a grid is at its end.

    Raises:
        UserError: several failed one after another.
    """
    failed: list[Any] = []
    failures = 0
    while len(completed := finished(study)) < trials:
        trial = next_trial(sweep, study, args.seed, failed)
        if trial is None:
            break
        values = {name: suggest(trial, name, how) for name, how in sweep.parameters.items()}
        found = measure(sweep, folder, trial.number, values, args.options)
        failures = failures + 1 if found is None else 0
        tell(study, trial, found)
        if found is None:
            failed.append(trial.params)
        best = f", best {study.best_value:.4g}" if finished(study) else ""
        shown = "failed" if found is None else f"{sweep.metric} {found:.4g}"
        choice = " ".join(f"{name.rpartition('.')[2]}={values[name]}" for name in values)
        experiments.say(f"trial {len(completed) + 1}/{trials}: {shown}{best} ({choice})")
        if failures == FAILURES:
            log = folder / f"trial_{trial.number}" / "log.txt"
            raise UserError(f"{FAILURES} trials failed in a row: {last_line(log)} ({log})")


def open_study(sweep: Sweep, folder: Path, options: list[str]) -> Any:
    """Return the study in a folder, or a new one; trials that were cut off are asked for again."""
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError:
        raise UserError(
            "local sweeps need Optuna: pip install -e '.[tune]' in handrec's folder, or use W&B"
            " (leave LOCAL out)"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    check_same(sweep, folder, options)
    study = optuna.create_study(
        study_name=sweep.name,
        storage=JournalStorage(JournalFileBackend(str(folder / STUDY))),
        direction="maximize" if sweep.maximise else "minimize",
        load_if_exists=True,
    )
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        if trial.params.keys() == sweep.parameters.keys():
            study.enqueue_trial(trial.params)
    return study


def check_same(sweep: Sweep, folder: Path, options: list[str]) -> None:
    """Write down what a folder's study is of, or refuse to go on with one of something else.

    Raises:
        UserError: says what differs, and which folder to move away.
    """
    folder.mkdir(parents=True, exist_ok=True)
    choices = {**sweep._asdict(), "options": options}
    del choices["name"], choices["trials"]
    path, study = folder / CHOICES, folder / STUDY
    if not study.is_file():
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(json.dumps(choices, indent=2, default=str) + "\n", encoding="utf-8")
        partial.replace(path)
        return
    mend = f"move {folder} away to begin anew"
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        raise UserError(f"{study} does not say what it was begun with: {mend}") from None
    now = json.loads(json.dumps(choices, default=str))
    differ = [name for name in now if before.get(name) != now[name]]
    if differ:
        was, is_ = _short(before.get(differ[0]), now[differ[0]])
        raise UserError(
            f"the sweep in {folder} was begun with other {differ[0]} ({was}, now {is_}): {mend}"
        )


def _short(was: Any, is_: Any) -> list[str]:
    """Return two choices as a few words each: of mappings, what differs."""
    if isinstance(was, dict) and isinstance(is_, dict):
        changed = [key for key in {**was, **is_} if was.get(key) != is_.get(key)]
        was, is_ = ({key: side.get(key) for key in changed[:1]} for side in (was, is_))
    texts = (" ".join(x) if isinstance(x, list) else str(x) for x in (was, is_))
    return [text or "none" for text in texts]


def next_trial(sweep: Sweep, study: Any, seed: int, failed: list[Any]) -> Any | None:
    """Return the next trial, or None if a grid has no other.

    The choices follow from the seed and the number of trials so far: who goes on gets new ones.

    Args:
        sweep: that is run.
        study: with the trials so far.
        seed: of the choices.
        failed: what the trials of this command chose that failed: a grid tries it again in another.
    """
    from optuna.samplers import RandomSampler, TPESampler
    from optuna.trial import TrialState

    state = np.random.SeedSequence([seed, len(study.get_trials(deepcopy=False))])
    number = int(state.generate_state(1)[0])
    study.sampler = TPESampler(seed=number) if sweep.method == "bayes" else RandomSampler(number)
    if sweep.method == "grid" and not study.get_trials(False, (TrialState.WAITING,)):
        tried = [*(trial.params for trial in finished(study)), *failed]
        before = [trial.params for trial in study.get_trials(False, (TrialState.FAIL,))]
        left = [point for point in grid_of(sweep) if point not in tried]
        if not left:
            return None
        study.enqueue_trial(min(left, key=before.count))
    return study.ask()


def grid_of(sweep: Sweep) -> list[dict[str, Any]]:
    """Return the points of a grid.

    Raises:
        UserError: an option has a range instead.
    """
    ranges = [name for name, how in sweep.parameters.items() if "min" in how]
    if ranges:
        raise UserError(f"sweep {sweep.name}: a grid wants values, not min and max: {ranges[0]}")
    axes = [how.get("values", [how.get("value")]) for how in sweep.parameters.values()]
    points = dict.fromkeys(itertools.product(*axes))
    return [dict(zip(sweep.parameters, point, strict=True)) for point in points]


def suggest(trial: Any, name: str, how: Mapping[str, Any]) -> Any:
    """Return a trial's value of an option, chosen as a sweep file says."""
    if "min" not in how:
        return trial.suggest_categorical(name, how.get("values", [how.get("value")]))
    kind, low, high = sweep_file.distribution_of(how), how["min"], how["max"]
    if kind == "int_uniform":
        return stepped(trial.suggest_int(name, low, high), how)
    return stepped(trial.suggest_float(name, low, high, log=FLOATS[kind]), how)


def stepped(value: Any, how: Mapping[str, Any]) -> Any:
    """Return the multiple of `q` within `min` and `max` that is nearest to a value, if there is q.

    Optuna keeps the value; the training gets, and tables and plots show, what this makes of it.
    """
    step = how.get("q")
    if step is None:
        return value
    first, last = sweep_file.multiples(how)
    multiple = min(max(round(value / step), first), last) * step
    return multiple if isinstance(multiple, int) else float(f"{multiple:.12g}")


def chosen(sweep: Sweep, trial: Any) -> dict[str, Any]:
    """Return what a trial chose of each option."""
    return {name: stepped(trial.params[name], how) for name, how in sweep.parameters.items()}


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


def _end_with_parent() -> None:
    """Have a training stop with a sweep that is killed: nobody would look at what it finds."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def _handed_on(training: "subprocess.Popen[bytes]") -> Iterator[list[int]]:
    """Hand SIGTERM on to a training, which then saves and ends; yield whether there was one."""
    asked: list[int] = []

    def hand_on(number: int, frame: object) -> None:
        asked.append(number)
        training.terminate()

    before = signal.signal(signal.SIGTERM, hand_on)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


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
        training = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment,
            preexec_fn=_end_with_parent,  # noqa: PLW1509 (no other threads here)
        )  # fmt: skip
        with _handed_on(training) as asked:
            status = training.wait()
        log.seek(start)
        stopped = bool(asked) or status in STOPPED or ASKED_TO_STOP in log.read()
        if status < 0:
            log.write(f"ended by {signal.Signals(-status).name}\n")
    if stopped:
        raise KeyboardInterrupt  # the sweep stops, too
    if status:
        return None
    logged = sorted(place.glob("version_*/metrics.csv"), key=lambda path: path.stat().st_mtime)
    found = last_value(logged[-1], sweep.metric) if logged else None
    if found is None or not math.isfinite(found):  # Optuna would take NaN for no trial at all
        what = "was not logged" if found is None else f"is {found} at the end"
        with (place / "log.txt").open("a", encoding="utf-8") as log:
            log.write(f"{sweep.metric} {what}\n")
        return None
    return found


def last_value(metrics: Path, name: str) -> float | None:
    """Return the last value of a metric in a run's log, or None if there is none."""
    with metrics.open(newline="", encoding="utf-8") as file:
        values = [row[name] for row in csv.DictReader(file) if row.get(name)]
    return float(values[-1]) if values else None


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
            table.writerow([trial.number, trial.value, *chosen(sweep, trial).values()])


def show(sweep: Sweep, study: Any, folder: Path) -> None:
    """Print the best trials and where everything lies."""
    from rich.console import Console
    from rich.table import Table

    table = Table("trial", sweep.metric, *(name.rpartition(".")[2] for name in sweep.parameters))
    for trial in ranked(study, sweep)[:10]:
        values = [
            f"{value:.4g}" if isinstance(value, float) else str(value)
            for value in chosen(sweep, trial).values()
        ]
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
    choices = [chosen(sweep, trial) | {"trial": trial.number} for trial in trials]
    for axis, name in zip(axes, panels, strict=True):
        across = [choice[name] for choice in choices]
        numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in across)
        axis.plot(across if numbers else list(map(str, across)), values, "o", color="#0072b2")
        if FLOATS.get(sweep.parameters.get(name, {}).get("distribution", "")):
            axis.set_xscale("log")
        axis.tick_params(axis="x", which="both", labelrotation=45, labelsize="small")
        axis.set_xlabel(name.removeprefix("model.init_args."))
    axes[0].set_ylabel(sweep.metric)
    figure.savefig(path)
