"""Finds what `--resume` goes on with: the newest run of the same choices, and its checkpoint."""

import errno
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from handrec.cli import experiments, runs
from handrec.errors import UserError

#: What can be gone on from, the newest first: `callbacks.safety` keeps both.
KEPT = ("last.ckpt", "previous.ckpt")
ROOT = "trainer.default_root_dir"
#: What zipfile raises when it meets bits that are not as they were written.
STUMBLES: tuple[type[Exception], ...] = (zipfile.BadZipFile, zlib.error, EOFError, struct.error)
STUMBLES += (RuntimeError, ValueError, LookupError, OverflowError)


def resume_arguments(asked: str, arguments: list[str]) -> Iterator[str]:
    """Yield the options that make a training go on where its newest run was interrupted.

    Args:
        asked: value of `--resume`: 1 or 0.
        arguments: of the command, with its files: the run has the same name, data set and scale,
            and lies below the same folder.
    """
    if asked.lower() not in ("0", "1", "false", "true"):
        raise UserError(f"--resume={asked}: say 1 to go on with the newest run, or leave it out")
    if asked.lower() in ("0", "false"):
        return
    choice = {key: last_of(arguments, key) for key in ("name", "dataset", "scale", ROOT)}
    logs = Path(choice.pop(ROOT) or ".") / runs.LOGS
    run = newest(logs, **{key: value or "" for key, value in choice.items()})
    checkpoint = None if run is None else usable_checkpoint(run)
    if run is None or checkpoint is None:
        why = "there is no such run" if run is None else f"{run} was stopped before its first one"
        experiments.say(f"no checkpoint to go on from ({why}): starting anew")
        return
    experiments.say(f"going on from {checkpoint}")
    yield "--resume=true"
    yield f"--ckpt_path={checkpoint}"


def last_of(arguments: Iterable[str], key: str) -> str | None:
    """Return what a command line gives a key last, by an option or in a file, or None."""
    found: Any = None
    rest = iter(arguments)
    for argument in rest:
        flag, equals, value = argument.partition("=")
        if flag not in ("--config", f"--{key}"):
            continue
        given: Any = value if equals else next(rest, "")
        if flag == "--config":
            given = experiments.read_yaml(Path(given))
            for part in key.split("."):
                given = given.get(part) if isinstance(given, dict) else None
        found = found if given is None else given
    return None if found is None else str(found)


def newest(logs: Path, name: str, dataset: str, scale: str) -> Path | None:
    """Return the newest run of an experiment on a data set at a scale, finished or not."""
    versions = [
        path.parent
        for path in (logs / name).glob(f"version_*/{runs.CONFIG}")
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
        UserError: it has some, and none is whole; or one cannot be read.
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
    """Return what is wrong with a checkpoint's file, or nothing; reads all of it.

    Raises:
        UserError: it cannot be read; that says nothing about what is in it.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # what torch.save writes; its index is at the end
            broken = archive.testzip()
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # to before its beginning: by a wrong index
            raise UserError(
                f"cannot read {path}: {error.strerror}; mend that, or leave RESUME out"
            ) from error
        return str(error)
    except STUMBLES as error:
        return str(error) or type(error).__name__
    return f"checksum of {broken}" if broken else ""
