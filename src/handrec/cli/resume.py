"""Finds what `--resume` goes on with: the newest run of the same choices, and its checkpoint."""

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from handrec.cli import experiments, runs
from handrec.errors import UserError

#: What can be gone on from, the newest first: `callbacks.safety` keeps both.
KEPT = ("last.ckpt", "previous.ckpt")


def resume_arguments(asked: str, labels: list[str]) -> Iterator[str]:
    """Yield the options that make a training go on where its newest run was interrupted.

    Args:
        asked: value of `--resume`: 1 or 0.
        labels: `--name=`, `--dataset=` and `--scale=` of the command: the run's are the same.
    """
    if asked.lower() not in ("0", "1", "false", "true"):
        raise UserError(f"--resume={asked}: say 1 to go on with the newest run, or leave it out")
    if asked.lower() in ("0", "false"):
        return
    choice = dict(label.removeprefix("--").split("=", 1) for label in labels)
    run = newest(choice["name"], choice["dataset"], choice["scale"])
    checkpoint = None if run is None else usable_checkpoint(run)
    if run is None or checkpoint is None:
        why = "there is no such run" if run is None else f"{run} was stopped before its first one"
        experiments.say(f"no checkpoint to go on from ({why}): starting anew")
        return
    experiments.say(f"going on from {checkpoint}")
    yield "--resume=true"
    yield f"--ckpt_path={checkpoint}"


def newest(name: str, dataset: str, scale: str) -> Path | None:
    """Return the newest run of an experiment on a data set at a scale, finished or not."""
    versions = [
        path.parent
        for path in (Path(runs.LOGS) / name).glob(f"version_*/{runs.CONFIG}")
        if path.parent.name.removeprefix("version_").isdigit() and _is(path, dataset, scale)
    ]
    return max(versions, key=lambda path: runs.Run(name, path).version, default=None)


def _is(config: Path, dataset: str, scale: str) -> bool:
    text = config.read_text(encoding="utf-8")
    wanted = {"dataset": dataset, "scale": scale}
    return all(re.search(rf"^{k}: {re.escape(v)}$", text, re.M) for k, v in wanted.items())


def usable_checkpoint(run: Path) -> Path | None:
    """Return a run's newest checkpoint that is whole; say of each that is not."""
    for name in KEPT:
        path = run / runs.CHECKPOINTS / name
        if path.is_file():
            if not (fault := damage(path)):
                return path
            experiments.say(f"warning: {path} is damaged ({fault}); trying the one before it")
    return None


def damage(path: Path) -> str:
    """Return what is wrong with a checkpoint's file, or nothing; reads all of it."""
    try:
        with zipfile.ZipFile(path) as archive:  # what torch.save writes; its index is at the end
            broken = archive.testzip()
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        return str(error)
    return f"checksum of {broken}" if broken else ""
