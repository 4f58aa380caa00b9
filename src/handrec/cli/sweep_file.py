"""Reads W&B sweep files for those who run them without W&B."""

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from handrec.cli import experiments
from handrec.errors import UserError

METHODS = ("bayes", "random", "grid")
#: W&B's words for distributions, by what Optuna is asked for.
FLOATS = {"uniform": False, "q_uniform": False, "log_uniform_values": True}
FLOATS |= {"q_log_uniform_values": True}
KEYS = {"value", "values", "min", "max", "distribution", "q", "probabilities"}
#: Distributions by the key that they go with.
DISTRIBUTIONS: dict[str, tuple[str, ...]] = {"value": ("constant",), "values": ("categorical",)}
DISTRIBUTIONS |= {"min": (*FLOATS, "int_uniform")}
SCALARS = (int, float, str, bool, type(None))
#: What a file's keys hold.
KINDS: dict[str, tuple[type, str]] = {
    "method": (str, "a word"),
    "metric": (dict, "{name: ..., goal: minimize}"),
    "parameters": (dict, "options and their choices: {model.init_args.lr: {values: [...]}}"),
    "command": (list, 'a list of words: ["${env}", "${program}", fit, "${args}"]'),
    "program": (str, "a word"),
}


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
    missing = [key for key in ("method", "metric", "parameters", "command") if not content.get(key)]
    if missing:
        raise UserError(f"{path} has no {', '.join(missing)}")
    for key, (kind, what) in KINDS.items():
        if key in content and not isinstance(content[key], kind):
            raise UserError(f"{path}: {key} wants {what}, not {content[key]}")
    if content["method"] not in METHODS:
        raise UserError(f"{path}: method {content['method']} is none of {', '.join(METHODS)}")
    goal = content["metric"].get("goal", "minimize")
    named = isinstance(content["metric"].get("name"), str)
    if goal not in ("minimize", "maximize") or not named:
        raise UserError(f"{path}: metric wants a name and a goal, minimize or maximize")
    cap = content.get("run_cap")
    if cap is not None and (not _is_whole(cap) or cap < 1):
        raise UserError(f"{path}: run_cap wants a whole number above 0, not {cap}")
    for name, choice in content["parameters"].items():
        check(f"{path}: {name}", choice)
    return Sweep(
        path.stem,
        content["method"],
        content["metric"]["name"],
        goal == "maximize",
        {str(name): choice for name, choice in content["parameters"].items()},
        [str(part) for part in content["command"]],
        content.get("program", "handrec"),
        cap,
    )


def check(where: str, choice: Any) -> None:
    """Refuse what is no choice of values.

    Raises:
        UserError: says what is wrong.
    """
    if not isinstance(choice, dict):
        raise UserError(
            f"{where}: wants {{value: ...}}, {{values: [...]}} or {{min: ..., max: ...}}"
        )
    unknown = sorted(str(key) for key in choice.keys() - KEYS)
    if unknown:
        known = experiments.did_you_mean(unknown[0], KEYS)
        raise UserError(f"{where}: unknown key {', '.join(unknown)}{known}")
    if "probabilities" in choice:
        raise UserError(
            f"{where}: probabilities are for W&B alone (leave LOCAL out), or go without"
        )
    kinds = [key for key in ("value", "values", "min") if key in choice]
    if len(kinds) != 1 or (kinds == ["min"]) != ("max" in choice):
        raise UserError(f"{where}: wants one of value, values, or min and max")
    check_distribution(where, choice, DISTRIBUTIONS[kinds[0]])
    if kinds == ["min"]:
        check_range(where, choice)
        return
    values = choice.get("values", [choice.get("value")])
    if not isinstance(values, list) or not values:
        raise UserError(f"{where}: values wants a list of at least one, not {values}")
    if not all(isinstance(value, SCALARS) for value in values):
        raise UserError(f"{where}: a value is a number, a word, true, false or null")


def check_distribution(where: str, choice: Mapping[str, Any], fitting: Collection[str]) -> None:
    """Refuse a distribution that is unknown, or of other keys; see :func:`check`."""
    distribution = choice.get("distribution")
    if distribution is None or distribution in list(fitting):
        return
    known = sorted({*FLOATS, "int_uniform", "constant", "categorical"})
    if distribution in known:
        raise UserError(f"{where}: distribution {distribution} wants other keys than these")
    close = experiments.did_you_mean(str(distribution), known)
    raise UserError(f"{where}: distribution {distribution} is not understood{close}")


def check_range(where: str, choice: Mapping[str, Any]) -> None:
    """Refuse ends and steps that make no range; see :func:`check`."""
    for key in ("min", "max", "q"):
        number = choice.get(key, 1)
        if not (_is_whole(number) or (isinstance(number, float) and math.isfinite(number))):
            written = " (YAML reads 1e-3 as a word: write 1.0e-3)" if _is_number(number) else ""
            raise UserError(f"{where}: {key} wants a number, not {number}{written}")
    low, high, kind = choice["min"], choice["max"], distribution_of(choice)
    if not low < high:
        raise UserError(f"{where}: min {low} is not below max {high}")
    if kind == "int_uniform" and not all(_is_whole(choice.get(k, 1)) for k in ("min", "max", "q")):
        raise UserError(f"{where}: int_uniform wants whole numbers")
    if FLOATS.get(kind) and low <= 0:
        raise UserError(f"{where}: {kind} wants a min above 0, not {low}")
    if "q" in choice:
        if choice["q"] <= 0:
            raise UserError(f"{where}: q is above 0, not {choice['q']}")
        first, last = multiples(choice)
        if first > last:
            raise UserError(f"{where}: no multiple of q {choice['q']} is in {low} to {high}")


def distribution_of(choice: Mapping[str, Any]) -> str:
    """Return the distribution of a range; W&B's where a file names none."""
    whole = all(_is_whole(choice.get(key, 1)) for key in ("min", "max", "q"))
    return str(choice.get("distribution") or ("int_uniform" if whole else "uniform"))


def multiples(choice: Mapping[str, Any]) -> tuple[int, int]:
    """Return the first and the last whole number that, times ``q``, lies within a range."""
    low, high, step = choice["min"], choice["max"], choice["q"]
    return math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)


def _is_whole(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)


def _is_number(word: Any) -> bool:
    try:
        return math.isfinite(float(word))
    except (TypeError, ValueError):
        return False


def command_of(sweep: Sweep, values: Mapping[str, Any]) -> list[str]:
    """Return the command that W&B's agent would run for some values."""
    flags = [f"--{name}={value}" for name, value in values.items()]
    parts = {"${env}": ["/usr/bin/env"], "${program}": [sweep.program], "${args}": flags}
    parts |= {"${interpreter}": ["python"]}
    return [word for part in sweep.command for word in parts.get(part, [part])]
