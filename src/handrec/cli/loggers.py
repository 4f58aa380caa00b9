"""Where a command writes: the run directory, and Weights & Biases beside it."""

import netrc
import os
import shutil
import socket
import tempfile
from pathlib import Path
from threading import Thread
from urllib.parse import urlparse

from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger

from handrec.cli import experiments
from handrec.errors import UserError

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


def run_loggers(logs: Path, name: str, *, mirror: bool) -> list[Logger]:
    """Return a training's loggers: CSV first, because the first one owns the run directory.

    Args:
        logs: `lightning_logs`.
        name: of the experiment.
        mirror: whether to log to Weights & Biases too.
    """
    csv = CSVLogger(logs, name=name)
    mode = wandb_mode() if mirror else "disabled"
    return (
        [csv] if mode == "disabled" else [csv, wandb_logger(csv, name, offline=mode == "offline")]
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
    return WandbLogger(
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
