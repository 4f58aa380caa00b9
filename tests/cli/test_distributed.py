"""What people type to train on several processes and machines, typed."""

import csv
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import pytorch_lightning as pl

from handrec.cli.command_line import CONFIG_KEY
from handrec.cli.main import main
from tests.cli.conftest import REPOSITORY
from tests.cli.test_resume import METHODS, SHORT, checkpoint, differences
from tests.cli.test_resume import SMALL as SMALLEST

HANDREC = Path(sys.executable).with_name("handrec")
PLAIN = "handrec.data.appearance.plain.Plain"
#: An odd number of samples: one process has more of them than the other.
SMALL = [
    "--scale=smoke", f"--data.init_args.appearance={PLAIN}", f"--data.init_args.shifted={PLAIN}",
    "--data.init_args.val_size=3", "--data.init_args.test_size=5",
    "--data.init_args.test_splits=[test]", "--trainer.limit_test_batches=1.0",
]  # fmt: skip
TWO = ["--trainer.devices=2", "--trainer.strategy=ddp"]


def start(folder, *command, **environment):
    """Start a command in a folder, as a user would; its output goes to a file there."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "experiments").exists():
        (folder / "experiments").symlink_to(REPOSITORY / "experiments")
    variables = {**os.environ, "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1", **environment}
    with (folder / "log.txt").open("w") as log:
        return subprocess.Popen(
            list(map(str, command)), cwd=folder, env=variables, stdout=log, stderr=log,
            start_new_session=True,  # a process that fails has Lightning kill the whole group
        )  # fmt: skip


def finish(folder, process):
    """Return what a command printed; it ended well and warned of nothing."""
    assert process.wait(timeout=600) == 0, (folder / "log.txt").read_text()
    printed = (folder / "log.txt").read_text()
    assert "arning" not in printed, printed
    assert "sync_dist" not in printed, printed
    return printed


def logged(folder, name):
    """Return the last figure of each column that a run has logged."""
    path = folder / "lightning_logs" / name / "version_0" / "metrics.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {key: float(row[key]) for row in rows for key in row if row[key]}


def figures(name):
    """Return every number of the latest evaluation, by its place in the file."""
    path = Path("lightning_logs", name, "version_0", "eval", "synthetic", "metrics.json")
    return dict(numbers(json.loads(path.read_text())))


def numbers(content, path=""):
    pairs = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in pairs:
        if isinstance(value, dict | list):
            yield from numbers(value, f"{path}/{key}")
        elif isinstance(value, float | int):
            yield f"{path}/{key}", value


@pytest.mark.slow
def test_processes_of_one_machine_or_of_two_train_and_measure_as_one(tmp_path, monkeypatch):
    name = "handmim"
    fit = [HANDREC, "fit", f"--exp={name}", *SMALL]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    printed = finish(tmp_path, start(tmp_path, *fit, *TWO))
    assert printed.count("handrec: made train,") == printed.count(f"trained  {name}: 2 steps") == 1
    assert [path.name for path in Path("lightning_logs", name).iterdir()] == ["version_0"]
    assert logged(tmp_path, name)["speed/samples_per_s"] > 0
    train_on_two_machines(tmp_path / "machines", fit)
    assert_alike(logged(tmp_path, name), logged(tmp_path / "machines" / "0", name))
    main(["test", f"--run={name}"])
    alone = figures(name)
    assert alone["/splits/test/samples"] == 5
    finish(tmp_path, start(tmp_path, HANDREC, "test", f"--run={name}", *TWO))
    assert_alike(alone, figures(name))


def train_on_two_machines(folder, fit):
    """Start a training by torchrun: two agents on two addresses, with a disk each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    agents = []
    for rank in range(2):
        agent = [
            HANDREC.with_name("torchrun"), "--nnodes=2", "--nproc-per-node=1",
            f"--node-rank={rank}", "--master-addr=127.0.0.1", f"--master-port={port}",
            f"--local-addr=127.0.0.{rank + 1}", "--no-python",
        ]  # fmt: skip
        nodes = ["--trainer.num_nodes=2", "--trainer.devices=1", "--trainer.strategy=ddp"]
        agents.append(start(folder / str(rank), *agent, *fit, *nodes))
    printed = [finish(folder / str(rank), agent) for rank, agent in enumerate(agents)]
    assert ["trained" in text for text in printed] == [True, False]
    assert not (folder / "1" / "lightning_logs").exists()  # the first machine's disk has the run


def assert_alike(one, other):
    """Compare figures by name; what a clock says may differ."""
    assert one.keys() == other.keys()
    pairs = {key: (one[key], other[key]) for key in one if not key.startswith("speed/")}
    different = {
        key: pair
        for key, pair in pairs.items()
        if not math.isclose(*pair, rel_tol=1e-5, abs_tol=1e-9)
    }
    assert not different


class DiskCopy(pl.Callback):
    """Copies the folder of all runs to ``$COPY`` before a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step and trainer.is_global_zero:
            shutil.copytree("lightning_logs", Path(os.environ["COPY"]) / "lightning_logs")


STOPPED = "tests.cli.test_interruption"
#: Callbacks of the tests can be named, as there.
TESTS = os.pathsep.join([str(REPOSITORY), *sys.path])


def little(name, tmp_path):
    """Return the words that train a little of an experiment on two processes."""
    cache = f"--data.init_args.cache_dir={tmp_path / 'cache'}"
    return [
        HANDREC,
        "fit",
        f"--exp={name}",
        *SHORT,
        *SMALLEST["plain"],
        *METHODS[name],
        cache,
        *TWO,
    ]


@pytest.mark.slow
def test_two_processes_go_on_by_the_bit(tmp_path, monkeypatch):
    """From what was on the disk after two steps, as if they had been killed then."""
    name = "s2hand_keypoints"
    command = [*little(name, tmp_path), "--safety.steps=1"]
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    copy = [
        "--trainer.callbacks+=tests.cli.test_distributed.DiskCopy",
        "--trainer.callbacks.step=2",
    ]
    finish(whole, start(whole, *command, *copy, PYTHONPATH=TESTS, COPY=str(torn)))
    printed = finish(torn, start(torn, *command, "--resume=1"))
    assert printed.count("going on from") == 1
    monkeypatch.chdir(whole)
    expected = checkpoint(name)
    monkeypatch.chdir(torn)
    found = checkpoint(name)
    expected[CONFIG_KEY] = found[CONFIG_KEY]  # that of the whole training names the copy
    assert list(differences(expected, found)) == []


@pytest.mark.slow
def test_two_processes_save_when_they_are_asked_to_stop(tmp_path, monkeypatch):
    name = "s2hand_video"
    pause = [f"--trainer.callbacks+={STOPPED}.Pause", "--trainer.callbacks.step=2"]
    longer = ["--trainer.max_epochs=9"]
    process = start(tmp_path, *little(name, tmp_path), *longer, *pause, PYTHONPATH=TESTS)
    deadline = time.monotonic() + 200
    while not (tmp_path / "waiting").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    printed = finish(tmp_path, process)
    assert printed.count("asked to stop (SIGTERM): saved after step") == 1
    monkeypatch.chdir(tmp_path)
    assert 2 < checkpoint(name)["global_step"] < 27


@pytest.mark.slow
def test_two_processes_end_with_the_line_of_the_one_that_diverged(tmp_path):
    poison = [f"--trainer.callbacks+={STOPPED}.Poison", "--trainer.callbacks.process=1"]
    process = start(tmp_path, *little("cyclehand", tmp_path), *poison, PYTHONPATH=TESTS)
    assert process.wait(timeout=300) != 0
    printed = (tmp_path / "log.txt").read_text()
    lines = [line for line in printed.splitlines() if line.startswith("handrec: error: ")]
    assert len(lines) == 1, printed
    assert "loss term" in lines[0]
    failed = tmp_path / "lightning_logs" / "cyclehand" / "version_0" / "failed"
    assert (failed / "step_1_process_1" / "failure.json").is_file()
