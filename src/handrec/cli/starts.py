"""Finds the checkpoints that a training starts from, where they are named by a pattern."""

from glob import glob
from pathlib import Path

import yaml
from jsonargparse import Namespace

from handrec.cli import runs
from handrec.cli.experiments import say
from handrec.errors import UserError


def choose_starts(options: Namespace, scale: str, resumed: Path | None) -> None:
    """Put a path in the place of each checkpoint that is named by a pattern (``*``).

    So the run's configuration says what it started from, and a resumed training starts from the
    same, whatever was trained since.

    Args:
        options: of the method, changed in place; those of its parts under ``part.init_args.name``.
        scale: of the training; a start is of the same.
        resumed: the run that is gone on with.
    """
    for name, pattern in list(options.items()):
        if name.endswith("checkpoint") and isinstance(pattern, str) and "*" in pattern:
            before = None if resumed is None else _started_from(resumed, name)
            options[name] = before or str(_newest(pattern, scale))
            say(f"starts from {options[name]}")


def _started_from(run: Path, name: str) -> str | None:
    """Return what a run's configuration says that it started from."""
    found = yaml.safe_load((run / runs.CONFIG).read_text(encoding="utf-8"))
    for part in ("model", "init_args", *name.split(".")):
        found = found.get(part, {}) if isinstance(found, dict) else {}
    return found or None


def _newest(pattern: str, scale: str) -> Path:
    """Return the checkpoint that was written last, of those of runs at a scale."""
    found = [path for path in map(Path, glob(pattern)) if _scale_of(path) == scale]
    if not found:
        parts = Path(pattern).parts
        train = (
            f": `make train EXP={parts[1]} SCALE={scale}` first" if parts[0] == runs.LOGS else ""
        )
        raise UserError(f"no {pattern} of a run at scale {scale} to start from{train}")
    return max(found, key=lambda path: path.stat().st_mtime_ns)


def _scale_of(checkpoint: Path) -> str | None:
    """Return the scale of the run that a checkpoint lies in."""
    run = runs.run_of(checkpoint)
    if run is None:
        return None
    lines = (run / runs.CONFIG).read_text(encoding="utf-8").splitlines()
    return next(
        (line.removeprefix("scale: ") for line in lines if line.startswith("scale: ")), None
    )
