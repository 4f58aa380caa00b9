"""Finds what `--resume` goes on with: the newest run of the same choices, and its checkpoint."""

import re
import zipfile
from collections.abc import Iterator
from contextlib import suppress
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
    """Return a run's newest checkpoint that is whole, or None if it has none at all.

    A damaged one is named and put aside: it must not become the one before the next.

    Raises:
        UserError: it has some, and none is whole.
    """
    folder = run / runs.CHECKPOINTS
    faults = {}
    for path in (folder / name for name in KEPT):
        if not path.is_file():
            continue
        if fault := damage(path):
            faults[path] = fault
            continue
        for damaged, fault in faults.items():
            aside = damaged.with_name(f"{damaged.name}.damaged")
            with suppress(FileNotFoundError):  # another process was first
                damaged.replace(aside)
            experiments.say(f"warning: {damaged} is damaged ({fault}): kept as {aside.name}")
        return path
    if not faults:
        return None
    best = folder / "best.ckpt"
    other = f"go on from its best one by CKPT={best}, or " if _is_whole(best) else ""
    found = "; ".join(f"{path.name}: {fault}" for path, fault in faults.items())
    raise UserError(f"{run} has no whole checkpoint ({found}): {other}leave RESUME out")


def _is_whole(path: Path) -> bool:
    return path.is_file() and not damage(path)


def damage(path: Path) -> str:
    """Return what is wrong with a checkpoint's file, or nothing; reads all of it."""
    try:
        with zipfile.ZipFile(path) as archive:  # what torch.save writes; its index is at the end
            broken = archive.testzip()
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        return str(error)
    return f"checksum of {broken}" if broken else ""
