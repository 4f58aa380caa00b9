"""Running the `handrec` command in benchmarks of trainings, and reading what it reports."""

import csv
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from handrec.cli import runs
from handrec.data.datamodule import HandDataModule
from handrec.errors import UserError
from handrec.methods.base import Method
from handrec.methods.loading import read_checkpoint
from handrec.records import commit

HANDREC = Path(sys.executable).with_name("handrec")

#: Lies in a run that a benchmark has trained to its end.
WHOLE = "trained.json"


def handrec(*arguments: str) -> None:
    """Run a command, and print it; classes of the benchmarks can be named in it."""
    print("handrec", shlex.join(arguments), flush=True)
    here = str(Path(__file__).parent)
    path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    subprocess.run([HANDREC, *arguments], check=True, env={**os.environ, "PYTHONPATH": path})


def trained(name: str, *arguments: str) -> tuple[Path, float | None]:
    """Return the run of that name and the seconds that it took; None if it does not say.

    One that is there is not trained again; one that was cut short, or trained with other options,
    ends the benchmark.
    """
    try:
        run = runs.resolve(name)
    except UserError:
        start = time.perf_counter()
        handrec("fit", f"--name={name}", *arguments)
        run = runs.resolve(name)
        seconds = round(time.perf_counter() - start, 1)
        if stopped(run):  # SIGTERM is no failure to the command: it saves and ends well
            sys.exit(f"{run} was stopped: the same command with --resume=1 goes on")
        told = {"seconds": seconds, "arguments": arguments, "commit": commit()}
        (run / WHOLE).write_text(json.dumps(told))
    if not (run / WHOLE).is_file():
        sys.exit(f"{run} was cut short: remove it (or, if it is whole, write {{}} to its {WHOLE})")
    told = json.loads((run / WHOLE).read_text())
    if told.get("arguments", list(arguments)) != list(arguments):
        before, now = shlex.join(told["arguments"]), shlex.join(arguments)
        sys.exit(f"{run} was trained with other options ({before}; now {now}): remove or rename it")
    return run, told.get("seconds")


def stopped(run: Path) -> bool:
    """Return whether a run's last weights are of before its last epoch was over."""
    content = read_checkpoint(runs.choose_checkpoint(run, "last"))
    epochs = yaml.safe_load((run / runs.CONFIG).read_text())["trainer"]["max_epochs"]
    over: int = content["loops"]["fit_loop"]["epoch_progress"]["current"]["completed"]
    return over < epochs


def trained_at(run: Path) -> str | None:
    """Return the commit whose code trained a run; None if it does not say."""
    told: dict[str, str] = json.loads((run / WHOLE).read_text())
    return told.get("commit")


def measured_before(out: Path | None, name: str, config: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a record that is to be gone on with; of another kind ends the benchmark.

    Args:
        out: the record's file, which need not be there.
        name: of the record.
        config: of the record.
    """
    if out is None or not out.exists():
        return []
    record = json.loads(out.read_text())
    if (record["name"], record["config"]) != (name, config):
        before, now = (f"{n} {c}" for n, c in ((record["name"], record["config"]), (name, config)))
        sys.exit(f"{out} holds rows of {before}, not of {now}: give another --out")
    rows: list[dict[str, Any]] = record["figures"]
    return rows


def evaluated(run: Path, *arguments: str) -> dict[str, dict[str, Any]]:
    """Return the results of a run's last weights, by split and by what was measured."""
    handrec("test", f"--run={run}", "--which=last", *arguments)
    (report,) = (run / "eval").glob("*/metrics.json")
    return {k: v["results"] for k, v in json.loads(report.read_text())["splits"].items()}


def last_values(run: Path) -> dict[str, float]:
    """Return the last value that a run logged under each name."""
    with (run / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: float(value) for row in rows for name, value in row.items() if value}


def data_of(run: Path) -> HandDataModule:
    """Return the data that a run was trained with."""
    data = _built(run, "data", HandDataModule)
    assert isinstance(data, HandDataModule)
    return data


def untrained(run: Path) -> Method:
    """Return the method of a run as it was built, with other random weights."""
    method = _built(run, "model", Method)
    assert isinstance(method, Method)
    return method


def _built(run: Path, name: str, kind: type) -> object:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(kind, name)
    config = yaml.safe_load((run / runs.CONFIG).read_text())[name]
    built: object = parser.instantiate_classes(parser.parse_object({name: config}))[name]
    return built


def without(*names: str) -> list[str]:
    """Return the options that turn losses off."""
    return [f"--model.init_args.weights.{name}=0" for name in names]
