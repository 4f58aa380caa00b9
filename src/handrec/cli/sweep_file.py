"""Reads W&B sweep files for those who run them without W&B."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from handrec.cli import experiments
from handrec.errors import UserError

METHODS = ("bayes", "random", "grid")
#: W&B's words for distributions, by what Optuna is asked for.
FLOATS = {"uniform": False, "q_uniform": False, "log_uniform_values": True}
FLOATS |= {"q_log_uniform_values": True}
KEYS = {"value", "values", "min", "max", "distribution", "q", "probabilities"}


class Sweep(NamedTuple):
    """What a sweep file says.

    Attributes:
        name: of the file.
        method: ``bayes``, ``random`` or ``grid``.
        metric: its name, as it is logged.
        maximise: whether more is better.
        parameters: of each option, how its values are chosen, in W&B's words.
        command: that W&B's agent runs, with its ``${...}``.
        program: that ``${program}`` stands for.
        trials: how many are run unless somebody says; None for as many as anyone likes.
    """

    name: str
    method: str
    metric: str
    maximise: bool
    parameters: dict[str, dict[str, Any]]
    command: list[str]
    program: str
    trials: int | None


def available() -> list[str]:
    """Return the names of the sweep files there are."""
    return sorted(path.stem for path in (experiments.experiments_dir() / "sweeps").glob("*.yaml"))


def find(name: str) -> Path:
    """Return the sweep file of a name, or raise a UserError that lists those there are."""
    if name not in (known := available()):
        close = experiments.did_you_mean(name, known)
        raise UserError(f"unknown SWEEP '{name}'{close}; {experiments.listing(known)}")
    return experiments.experiments_dir() / "sweeps" / f"{name}.yaml"


def read(path: Path) -> Sweep:
    """Return a sweep file's content.

    Raises:
        UserError: names the key that is missing or not understood.
    """
    content = experiments.read_yaml(path)
    missing = [key for key in ("method", "metric", "parameters", "command") if key not in content]
    if missing:
        raise UserError(f"{path} has no {', '.join(missing)}")
    if content["method"] not in METHODS:
        raise UserError(f"{path}: method {content['method']} is none of {', '.join(METHODS)}")
    goal = content["metric"].get("goal", "minimize")
    if goal not in ("minimize", "maximize") or "name" not in content["metric"]:
        raise UserError(f"{path}: metric wants a name and a goal, minimize or maximize")
    for name, choice in content["parameters"].items():
        check(f"{path}: {name}", choice)
    return Sweep(
        path.stem,
        content["method"],
        content["metric"]["name"],
        goal == "maximize",
        content["parameters"],
        [str(part) for part in content["command"]],
        str(content.get("program", "handrec")),
        content.get("run_cap"),
    )


def check(where: str, choice: Mapping[str, Any]) -> None:
    """Refuse what is no choice of values.

    Raises:
        UserError: says what is wrong.
    """
    unknown = choice.keys() - KEYS
    if unknown:
        known = experiments.did_you_mean(sorted(unknown)[0], KEYS)
        raise UserError(f"{where}: unknown key {', '.join(sorted(unknown))}{known}")
    kinds = [key for key in ("value", "values", "min") if key in choice]
    if len(kinds) != 1 or (kinds == ["min"]) != ("max" in choice):
        raise UserError(f"{where}: wants one of value, values, or min and max")
    distribution = choice.get("distribution")
    known_kinds = {*FLOATS, "int_uniform", "constant", "categorical"}
    if distribution is not None and distribution not in known_kinds:
        close = experiments.did_you_mean(distribution, known_kinds)
        raise UserError(f"{where}: distribution {distribution} is not understood{close}")
    if kinds == ["min"] and not choice["min"] < choice["max"]:
        raise UserError(f"{where}: min {choice['min']} is not below max {choice['max']}")


def command_of(sweep: Sweep, values: Mapping[str, Any]) -> list[str]:
    """Return the command that W&B's agent would run for some values."""
    flags = [f"--{name}={value}" for name, value in values.items()]
    parts = {"${env}": ["/usr/bin/env"], "${program}": [sweep.program], "${args}": flags}
    parts |= {"${interpreter}": ["python"]}
    return [word for part in sweep.command for word in parts.get(part, [part])]
