"""Turns the names people type (EXP, DATA, SCALE, a run) into a chain of configuration files.

Everything happens before LightningCLI parses: its own options see `--config` files only, most
general first, so that later files win and what is typed on the command line wins over all of them.
Nothing here imports torch unless the default scale has to be chosen.
"""

import difflib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from handrec.errors import UserError

#: Where each kind of overlay lies below the experiments directory, and how make calls it.
FOLDERS = {"EXP": "", "DATA": "data", "SCALE": "scale"}
#: Folders of the experiments directory that hold no experiment.
NOT_EXPERIMENTS = ("_base", "data", "scale", "sweeps")


def experiments_dir() -> Path:
    """Return `./experiments` if there is one, else that of the repository the package lies in."""
    here = Path("experiments")
    root = here if here.is_dir() else Path(__file__).parents[3] / "experiments"
    if not root.is_dir():
        raise UserError("there is no experiments/ here: run handrec in a clone of its repository")
    return root.resolve()


def available(kind: str) -> list[str]:
    """Return the names that EXP, DATA or SCALE can take, sorted."""
    root = experiments_dir()
    folder = root / FOLDERS[kind]
    names = (path.relative_to(folder).with_suffix("") for path in folder.rglob("*.yaml"))
    if kind == "EXP":
        return sorted(str(name) for name in names if name.parts[0] not in NOT_EXPERIMENTS)
    return sorted(str(name) for name in names if len(name.parts) == 1)


def find(kind: str, name: str) -> Path:
    """Return the file behind a name, or raise a UserError that lists the names there are."""
    known = available(kind)
    if name not in known:
        raise UserError(f"unknown {kind} '{name}'{did_you_mean(name, known)}; {listing(known)}")
    return experiments_dir() / FOLDERS[kind] / f"{name}.yaml"


def listing(names: Iterable[str]) -> str:
    """Return `there is a, b, c`, or that there is none."""
    return f"there is {', '.join(names) or 'none'}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the closest known word, or nothing."""
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def read_yaml(path: Path) -> dict[str, Any]:
    """Return a configuration file's mapping."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no configuration file {path}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a configuration: expected `key: value` lines")
    return content


def config_chain(path: Path, descendants: tuple[Path, ...] = ()) -> list[Path]:
    """Return a configuration's ancestors, most general first, then the configuration itself.

    Parents are named by its `bases:` key, relative to the file. A base shared by two parents is
    applied once.
    """
    path = path.resolve()
    if path in descendants:
        raise UserError(f"{path} is its own base: {' -> '.join(p.name for p in descendants)}")
    bases = read_yaml(path).get("bases") or []
    chain = [p for base in bases for p in config_chain(path.parent / base, (*descendants, path))]
    return list(dict.fromkeys([*chain, path]))


def expand_bases(args: Iterable[str]) -> list[str]:
    """Replace every `--config=file`, `--config file` or `-c file` by one per member of its chain.

    A form missed here would still parse, silently without its bases.
    """
    expanded: list[str] = []
    rest = iter(args)
    for arg in rest:
        flag, equals, value = arg.partition("=")
        if flag in ("-c", "--config"):
            path = value if equals else next(rest, "")
            expanded += [f"--config={member}" for member in config_chain(Path(path))]
        else:
            expanded.append(arg)
    return expanded


def take(args: Iterable[str], names: tuple[str, ...]) -> tuple[dict[str, str], list[str]]:
    """Split `--name value` and `--name=value` off a command line; the last of a name wins."""
    taken: dict[str, str] = {}
    left: list[str] = []
    rest = iter(args)
    for arg in rest:
        flag, equals, value = arg.partition("=")
        name = flag.removeprefix("--")
        if flag.startswith("--") and name in names:
            taken[name] = value if equals else next(rest, "")
            if not taken[name]:
                raise UserError(f"{flag} needs a value")
        else:
            left.append(arg)
    return taken, left


def default_scale() -> tuple[str, str]:
    """Return the scale to use where none was named, and why."""
    import torch

    if torch.cuda.is_available():
        return "gpu", f"{torch.cuda.get_device_name()} found; choose with SCALE"
    return "cpu", "no CUDA device found; choose with SCALE"


def overlays(scale: str, dataset: str, experiment: str = "") -> Iterator[Path]:
    """Yield a scale's file, then its tuning for the data set and for the experiment, if any.

    Last comes what the experiment changes in this data set alone: ``data/DATA/EXP.yaml``.
    """
    yield find("SCALE", scale)
    folder = experiments_dir() / "scale" / scale
    for name in filter(None, (dataset, experiment)):
        if (folder / f"{name}.yaml").is_file():
            yield folder / f"{name}.yaml"
    own = experiments_dir() / "data" / dataset / f"{experiment}.yaml"
    if experiment and own.is_file():
        yield own


def experiment_arguments(name: str, dataset: str | None, scale: str | None) -> list[str]:
    """Return the options that an experiment, a data set and a scale stand for.

    The experiment's chain may name its own data set (`dataset:`); the default is `synthetic`.
    """
    chain = config_chain(find("EXP", name))
    preferred = [read_yaml(path).get("dataset") for path in chain]
    dataset = dataset or next(filter(None, reversed(preferred)), "synthetic")
    reason = ""
    if scale is None:
        scale, reason = default_scale()
    chain += config_chain(find("DATA", dataset))
    for overlay in overlays(scale, dataset, name):
        chain += config_chain(overlay)
    choice = f"{name} · data {dataset} · scale {scale}"
    say(f"{choice} ({reason})" if reason else choice)
    labels = [f"--name={name}", f"--dataset={dataset}", f"--scale={scale}"]
    return [*(f"--config={path}" for path in chain), *labels]


def say(line: str) -> None:
    """Print what was chosen, once per command: not again in every process of a distributed run."""
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        print(f"handrec: {line}", flush=True)
