"""Records of measurements: figures, and everything needed to repeat them. Standard library only."""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

#: Whose versions can change a figure.
PACKAGES = ("handrec", "torch", "pytorch-lightning", "warp-lang", "timm", "kornia", "numpy")

Figures = Mapping[str, Any] | Sequence[Mapping[str, Any]]


def write_record(
    path: str | Path,
    name: str,
    figures: Figures,
    config: Mapping[str, Any] | None = None,
    seed: int | None = None,
    seconds: float | None = None,
) -> Path:
    """Write a measurement as JSON and return its path.

    Args:
        path: of the file, below `results/`; folders are made.
        name: of what was measured; records of the same name share a table in `docs/results/`.
        figures: one row of the table, or several; say the unit in the key (`pa_mpjpe_mm`).
        config: what was varied or chosen.
        seed: of the random numbers, if there were any.
        seconds: how long the measurement took.
    """
    rows = [dict(figures)] if isinstance(figures, Mapping) else [dict(row) for row in figures]
    record = {
        "name": name,
        "figures": rows,
        "config": dict(config or {}),
        "seed": seed,
        "seconds": None if seconds is None else round(seconds, 2),
        "command": command(),
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine(),
        "versions": versions(),
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2, default=str) + "\n", encoding="utf-8")
    return path


def command() -> str:
    """Return the command that is running, without the place of the program."""
    program, *args = sys.argv
    return shlex.join([Path(program).name, *args])


def commit() -> str | None:
    """Return the commit of the working tree, with `+` if it has changes, or None outside git.

    Records and the pages made of them do not count: measuring changes them.
    """
    try:
        head = git("rev-parse", "--short=12", "HEAD")
        outside = (":/", ":(top,exclude)results", ":(top,exclude)docs/results")
        changes = git("status", "--porcelain", "--untracked-files=no", "--", *outside)
        return f"{head}+" if changes else head
    except (OSError, subprocess.SubprocessError):
        return None


def git(*args: str) -> str:
    """Return what git prints in the directory of the package."""
    where = Path(__file__).parent
    done = subprocess.run(
        ["git", *args], cwd=where, capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Return what the figures were measured on; no host name, no user."""
    return {
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "memory_gb": memory_gb(),
        "gpu": gpu_model(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def usable_cores() -> int:
    """Return the cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_model() -> str:
    """Return the processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def memory_gb() -> float | None:
    """Return the machine's memory in units of 10^9 bytes."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (ValueError, OSError, AttributeError):
        return None


def gpu_model() -> str | None:
    """Return the GPU's name; asks torch only where the measurement has imported it already."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return str(torch.cuda.get_device_name())
