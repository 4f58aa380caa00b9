"""Where a command writes: the run directory, and Weights & Biases beside it."""

import csv
import math
import netrc
import os
import shutil
import socket
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlparse

from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter

from handrec.cli import experiments, runs
from handrec.errors import UserError
from handrec.methods.loading import read_checkpoint

#: One checkpoint of a ViT-B is larger than this: a disk with less is as good as full.
FREE_BYTES = 200_000_000


def check_writable(directory: Path) -> None:
    """Raise a UserError unless files can be written below a directory: now, not after training."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as probe:
            probe.write(b"0" * 4096)
    except OSError as error:
        raise UserError(f"cannot write to {directory}: {error.strerror or error}") from error
    free = shutil.disk_usage(directory).free
    if free < FREE_BYTES:
        wanted = FREE_BYTES // 10**6
        raise UserError(
            f"{directory} is on a full disk: {free // 10**6} MB free, {wanted} MB wanted"
        )


class WholeRows(ExperimentWriter):
    """Writes rows; a kill at a new column leaves the table as it was, or whole."""

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        """Write the table with another header beside its place, and move it there."""
        path = Path(self.metrics_file_path)
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        write_rows(path, fieldnames, rows)


def write_rows(path: Path, columns: list[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a table beside its place, and move it there."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns)
        table.writeheader()
        table.writerows(rows)
    partial.replace(path)


class RunLogger(CSVLogger):
    """CSV logs of a run, which a resumed training continues.

    Args:
        logs: `lightning_logs`.
        name: of the experiment.
        resumed: the checkpoint that the training goes on from; later rows are logged anew.
    """

    def __init__(self, logs: Path, name: str, resumed: Path | None = None) -> None:
        run = None if resumed is None else runs.run_of(resumed)
        version = None if run is None else runs.Run(name, run).version
        super().__init__(logs, name=name, version=version, flush_logs_every_n_steps=1)
        self.resumed = resumed

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer, which starts with the rows of before; no kill loses them."""
        if self._experiment is not None:
            return self._experiment
        path = Path(self.log_dir) / "metrics.csv"
        aside = path.with_name(f".{path.name}.before")
        if self.resumed is not None and path.is_file():
            path.replace(aside)  # the writer removes what it finds
        kept = self._kept(aside) if self.resumed is not None and aside.is_file() else []
        self._experiment = writer = WholeRows(log_dir=self.log_dir)
        if kept:
            writer.metrics_keys = list(kept[0])
            write_rows(path, writer.metrics_keys, kept)
        aside.unlink(missing_ok=True)
        return writer

    def _kept(self, path: Path) -> list[dict[str, str]]:
        """Return the rows that the training will not log again."""
        assert self.resumed is not None
        step = int(read_checkpoint(self.resumed)["global_step"])
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return [row for row in rows if _step(row) < step]


def _step(row: dict[str, str]) -> float:
    try:
        return float(row["step"])
    except (KeyError, TypeError, ValueError):  # cut off by a kill
        return math.inf


def run_loggers(
    logs: Path, name: str, *, mirror: bool, resumed: Path | None = None
) -> list[Logger]:
    """Return a training's loggers: CSV first, because the first one owns the run directory.

    Args:
        logs: `lightning_logs`.
        name: of the experiment.
        mirror: whether to log to Weights & Biases too.
        resumed: the checkpoint that the training goes on from, in its own run.
    """
    rows = RunLogger(logs, name, resumed)
    mode = wandb_mode() if mirror else "disabled"
    return (
        [rows]
        if mode == "disabled"
        else [rows, wandb_logger(rows, name, offline=mode == "offline")]
    )


def wandb_logger(csv: CSVLogger, name: str, *, offline: bool) -> Logger:
    """Return the Weights & Biases logger of the run that a CSV logger numbers."""
    import wandb

    run_dir = Path(csv.log_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    settings = wandb.Settings(
        mode="offline" if offline else "online",
        silent=True,
        console="off",
        init_timeout=15,
        x_save_requirements=False,
    )
    wandb.setup(settings)  # silent from here on: Lightning's own call warns before it is
    before = sorted(run_dir.glob("wandb/*run-*"), key=lambda path: path.name)
    earlier: dict[str, Any] = {}
    if before:  # a resumed training goes on in its own run
        earlier = {"id": before[-1].name.rpartition("-")[2], "resume": "allow"}
    return WandbLogger(
        **earlier,
        name=f"{name}/{run_dir.name}",
        group=name,
        project=os.environ.get("WANDB_PROJECT", "handrec"),
        save_dir=run_dir,
        offline=offline,
        settings=settings,
    )


def wandb_mode() -> str:
    """Return online, offline or disabled: `WANDB_MODE`, else online for those who are logged in.

    Never prompts; asks the network only of users who are logged in, and for one second.
    """
    mode = os.environ.get("WANDB_MODE", "").lower()
    if mode in ("online", "offline", "disabled"):
        return mode
    server = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    if not logged_in(server.hostname or ""):
        return "offline"
    if reachable(server.hostname or "", server.port or 443):
        return "online"
    experiments.say("W&B cannot be reached: logging offline; send it later with `wandb sync`")
    return "offline"


def logged_in(host: str) -> bool:
    """Return whether there is a W&B key in the environment or in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def reachable(host: str, port: int, seconds: float = 1.0) -> bool:
    """Return whether a server answers in time; a thread, because name look-ups know no timeout."""
    answers: list[bool] = []

    def ask() -> None:
        try:
            socket.create_connection((host, port), timeout=seconds).close()
            answers.append(True)
        except OSError:
            pass

    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(answers)
