"""A training that is stopped, starved of disk or memory, or diverges: nothing is lost, one line."""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import load_file

from handrec.callbacks import safety
from handrec.cli.main import main
from handrec.types import HandBatch
from tests.cli.conftest import REPOSITORY
from tests.cli.test_resume import METHODS, SHORT, SMALL, cache, checkpoint, differences, folder

__all__ = ["cache", "folder"]  # fixtures
HERE = "tests.cli.test_interruption"
HANDREC = [sys.executable, "-c", "import sys; from handrec.cli.main import main; sys.exit(main())"]
DUMMY = ["fit", "--exp=dummy", "--scale=smoke"]


class Pause(pl.Callback):
    """Waits before a step until a signal has come, after having said that it waits."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            Path("waiting").touch()
            deadline = time.monotonic() + 120
            asked = next(c for c in trainer.callbacks if isinstance(c, safety.Safety))
            while not asked._asked and time.monotonic() < deadline:
                time.sleep(0.01)


def terminated(command):
    """Run a command in a process of its own, send it SIGTERM when it waits; return what it said."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path]),
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.Popen(
        [*HANDREC, *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not Path("waiting").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    return process.returncode, said


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 2], ids=["within an epoch", "at the end of an epoch"])
def test_sigterm_saves_ends_well_and_can_be_gone_on_from(step, folder, cache):
    options = [o for o in SHORT if not o.startswith("--safety")]
    command = ["fit", "--exp=handmim", *options, *SMALL["plain"], cache, *METHODS["handmim"]]
    assert main(command) == 0
    whole = checkpoint("handmim")
    shutil.rmtree("lightning_logs")
    pause = [f"--trainer.callbacks+={HERE}.Pause", f"--trainer.callbacks.step={step}"]
    status, said = terminated([*command, *pause])
    assert status == 0, said
    assert f"asked to stop (SIGTERM): saved after step {step + 1}; the same command" in said
    assert "Traceback" not in said
    assert checkpoint("handmim")["global_step"] == step + 1
    assert main([*command, "--resume=1"]) == 0
    assert list(differences(whole, checkpoint("handmim"))) == []


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, flip, empty])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(trained, damage, capsys):
    folder = trained.relative_to(Path.cwd()) / "checkpoints"
    before = (folder / "previous.ckpt").read_bytes()
    damage(folder / "last.ckpt")
    assert main([*DUMMY, "--resume=1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    warnings = [line for line in lines if "warning" in line]
    assert len(warnings) == 1
    assert f"warning: {folder}/last.ckpt is damaged" in warnings[0]
    assert (folder / "last.ckpt.damaged").is_file()
    assert f"handrec: going on from {folder}/previous.ckpt" in lines
    assert torch.load(folder / "last.ckpt", weights_only=True)["epoch"] == 1
    assert (folder / "previous.ckpt").read_bytes() == before, "a damaged one replaced it"


def test_two_damaged_checkpoints_are_one_error(trained, refuse):
    folder = trained / "checkpoints"
    for name in safety.LAST, safety.PREVIOUS:
        truncate(folder / name)
    line = refuse(*DUMMY, "--resume=1")
    assert "no whole checkpoint" in line
    assert "CKPT=" in line
    assert [path.name for path in trained.parent.iterdir()] == ["version_0"]
    (folder / "best.ckpt").unlink()
    assert "leave RESUME out" in refuse(*DUMMY, "--resume=1")


def goes_on(trained, epochs=4):
    """Go on with a run; return how many epochs it then has had."""
    assert main([*DUMMY, "--resume=1", f"--trainer.max_epochs={epochs}"]) == 0
    return torch.load(trained / "checkpoints/last.ckpt", weights_only=True)["epoch"] + 1


def test_a_full_disk_ends_a_training_with_a_line_and_keeps_the_last_checkpoint(trained, refuse):
    last = trained / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) - 200, limits[1]))
    try:
        line = refuse(*DUMMY, "--resume=1", "--trainer.max_epochs=4")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert line.startswith("cannot write checkpoint ")
    assert "File too large" in line
    assert "go on with RESUME=1" in line
    assert last.read_bytes() == before
    assert not list(last.parent.glob(".*")), "half a checkpoint was left on a full disk"
    assert goes_on(trained) == 4


@pytest.mark.parametrize("name", ["last", "best"])
def test_no_space_while_a_checkpoint_is_written(trained, refuse, monkeypatch, name):
    path = trained / "checkpoints" / f"{name}.ckpt"
    before = path.read_bytes()

    def half(checkpoint, file):
        if name in file.name:
            file.write(before[: len(before) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save(checkpoint, file)

    save = torch.save
    with monkeypatch.context() as patch:
        patch.setattr(safety.torch, "save", half)
        line = refuse(*DUMMY, "--resume=1", "--trainer.max_epochs=4")
    assert f"{name}.ckpt: No space left on device" in line
    assert f"{name}.ckpt is still the one before" in line
    assert path.read_bytes() == before
    assert goes_on(trained) == 4
