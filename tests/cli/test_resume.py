"""A training that was interrupted anywhere ends as if it had not been."""

import csv
import errno
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch._dynamo.utils import counters

from handrec.callbacks.safety import WholeCheckpoints
from handrec.cli import loggers, resume
from handrec.cli.command_line import CONFIG_KEY
from handrec.cli.main import main
from handrec.data.layouts import write_ho3d
from handrec.hand.openhand import OpenHand
from tests.cli.conftest import write_yaml
from tests.cli.test_experiments import SHIPPED
from tests.sets import drawn, rows

#: The least of each method; what it draws is what matters here.
SMALL = {
    "plain": [
        "--data.init_args.appearance=handrec.data.appearance.plain.Plain",
        "--data.init_args.shifted=handrec.data.appearance.plain.Plain",
        "--data.init_args.image_size=32",
    ],
    "pymaf": [
        "--model.init_args.head.init_args.iterations=1",
        "--model.init_args.head.init_args.map_channels=8",
        "--model.init_args.head.init_args.grid=5",
        "--model.init_args.head.init_args.width=16",
        "--model.init_args.backbone.init_args.image_size=32",
        "--model.init_args.backbone.init_args.options={depth: 1, embed_dim: 48, num_heads: 3}",
    ],
    "s2hand": [
        "--model.init_args.backbone.init_args.image_size=32",
        "--model.init_args.ramp={start: 0.0, end: 0.3}",
    ],
}
HALF = "--trainer.precision=bf16-mixed"
METHODS = {
    "handmim": SMALL["pymaf"],
    "handmim_finetune": [*SMALL["pymaf"], HALF],
    "handmim_pretrain": [],
    "s2hand": SMALL["s2hand"],
    "s2hand_shape": SMALL["s2hand"],
    "s2hand_finetune": ["--model.init_args.backbone.init_args.image_size=32"],
    "s2hand_keypoints": [],
    "s2hand_video": [
        *SMALL["s2hand"],
        "--model.init_args.disturb=handrec.data.augment.Augmentation",
        "--data.init_args.clip.length=3",
        "--data.init_args.batch_size=4",
    ],
    "cyclehand_base": [*SMALL["pymaf"], "--model.init_args.texture_size=32"],
    "cyclehand": [
        *SMALL["pymaf"],
        "--model.init_args.texture_size=32",
        "--model.init_args.weights.distill=0.1",
        "--data.init_args.target=handrec.data.appearance.plain.Plain",
    ],
}
SHORT = [
    "--scale=smoke",
    "--trainer.max_epochs=2",
    "--trainer.limit_train_batches=3",
    "--trainer.limit_val_batches=1",
    "--trainer.precision=32-true",
    "--safety.steps=2",
]


class Interruption(pl.Callback):
    """Ends a training after so many steps, as a kill would: nothing is saved for it."""

    def __init__(self, step: int, hook: str = "on_train_batch_start") -> None:
        def kill(trainer, *_):
            if trainer.global_step == step and not trainer.sanity_checking:
                torch.rand(7)  # what a new process draws is not where the old one was
                raise RuntimeError("killed")

        setattr(self, hook, kill)


def differences(first, second, path=""):
    """Yield where two checkpoints differ, by the bit."""
    if isinstance(first, dict):
        if first.keys() != second.keys():
            yield f"{path}: {first.keys() ^ second.keys()}"
        for key in first.keys() & second.keys():
            yield from differences(first[key], second[key], f"{path}/{key}")
    elif isinstance(first, list | tuple):
        if len(first) != len(second):
            yield f"{path}: {len(first)} and {len(second)}"
        for index, pair in enumerate(zip(first, second, strict=False)):
            yield from differences(*pair, f"{path}/{index}")
    elif isinstance(first, torch.Tensor):
        if not isinstance(second, torch.Tensor) or not torch.equal(first, second):
            yield path
    elif repr(first) != repr(second):  # NaN equals NaN
        yield f"{path}: {first!r} and {second!r}"


def checkpoint(name, which="last", version=0):
    path = Path("lightning_logs") / name / f"version_{version}" / "checkpoints" / f"{which}.ckpt"
    content = torch.load(path, map_location="cpu", weights_only=True)
    content["callbacks"] = [  # the score of the latest validation is of no use, nor saved
        {key: value for key, value in state.items() if key != "current_score"}
        for state in content["callbacks"].values()
    ]
    return content


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return f"--data.init_args.cache_dir={tmp_path_factory.mktemp('cache')}"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    return tmp_path


FAST = ("handmim", "s2hand_keypoints")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in FAST else [pytest.mark.slow]) for n in METHODS]
)
def test_a_resumed_training_equals_an_uninterrupted_one(name, folder, cache):
    """By the bit, though its last part is compiled: ``eager`` calls torch's own kernels."""
    torch._dynamo.reset()
    counters.clear()
    command = ["fit", f"--exp={name}", *SHORT, *SMALL["plain"], cache, *METHODS[name]]
    assert_resumed(name, command, "--compile=eager")
    assert counters["stats"]["unique_graphs"] >= 2


@pytest.mark.slow
def test_a_training_on_files_is_resumed_too(folder, cache):
    """Clips of them, read and augmented by a worker."""
    video = drawn("OpenHand", 4)
    write_ho3d(Path("set"), [rows(video, 0, 12)], [rows(video, 12, 16)], OpenHand(), "v3")
    options = ["root=set", "image_size=32", "num_workers=1", "batch_size=4", "clip.length=2"]
    command = ["fit", "--exp=s2hand_video", "--dataset=ho3d_v3", *SHORT, *SMALL["s2hand"], cache]
    assert_resumed("s2hand_video", [*command, *(f"--data.init_args.{x}" for x in options)])


def assert_resumed(name, command, *last):
    assert main(command) == 0
    whole = checkpoint(name)
    shutil.rmtree("lightning_logs")
    stops = ["--trainer.callbacks+=tests.cli.test_resume.Interruption"]
    for step in (3, 5):  # between the epochs; a step after a checkpoint within an epoch
        with pytest.raises(RuntimeError, match="killed"):
            main([*command, "--resume=1", *stops, f"--trainer.callbacks.step={step}"])
    assert main([*command, "--resume=1", *last]) == 0
    if last:  # the configuration says so
        whole[CONFIG_KEY] = checkpoint(name)[CONFIG_KEY]
    assert [path.name for path in Path("lightning_logs", name).iterdir()] == ["version_0"]
    assert list(differences(whole, checkpoint(name))) == []


#: Lightning's hook before a step.
BEFORE = "on_train_batch_start"


def log_of(name):
    """Return the rows of a run's log, without what its clock says."""
    path = Path("lightning_logs", name, "version_0", "metrics.csv")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if v and "speed/" not in k} for row in rows]


@pytest.mark.parametrize(
    ("options", "kills"),
    [
        pytest.param([], [(2, BEFORE), (3, BEFORE)], id="steps"),
        pytest.param(
            [],
            [(3, "on_validation_start"), (4, BEFORE), (5, BEFORE)],
            id="validation, then the first steps after it",
        ),
        pytest.param(
            [],
            [(3, "on_validation_end"), (3, "on_train_epoch_end"), (4, BEFORE)],
            id="end of an epoch, then the first step after it",
        ),
        pytest.param(
            [],
            [(5, "on_train_batch_end"), (6, "on_validation_start"), (6, "on_train_epoch_end")],
            id="end",
        ),
        pytest.param(
            ["--trainer.max_steps=100"],
            [(3, BEFORE), (3, BEFORE), (6, BEFORE)],
            id="first steps of epochs that max_steps counts, too",
        ),
        pytest.param(
            ["--trainer.max_epochs=-1", "--trainer.max_steps=8"],
            [(3, BEFORE), (4, "on_train_batch_end"), (6, "on_validation_start"), (7, BEFORE)],
            id="a training of so many steps",
        ),
        pytest.param(
            ["--trainer.val_check_interval=0.5", "--trainer.limit_train_batches=4"],
            [(2, BEFORE), (3, BEFORE), (4, BEFORE), (6, BEFORE), (7, BEFORE)],
            id="validations within an epoch",
        ),
        pytest.param(
            ["--trainer.val_check_interval=2", "--trainer.check_val_every_n_epoch=null"],
            [(2, BEFORE), (3, BEFORE), (4, BEFORE), (5, BEFORE)],
            id="validations by steps",
        ),
        pytest.param(
            ["--trainer.overfit_batches=3"],
            [(2, BEFORE), (5, BEFORE)],
            id="the same batches again and again",
        ),
    ],
)
def test_kills_after_each_other_change_nothing(options, kills, folder, cache):
    """Whatever was going on, and however soon the next one comes."""
    name = "s2hand_keypoints"
    command = ["fit", f"--exp={name}", *SHORT, *SMALL["plain"], cache, "--safety.steps=1"]
    command += ["--trainer.log_every_n_steps=1", "--trainer.max_epochs=3", *options]
    assert main(command) == 0
    whole, logged = checkpoint(name), log_of(name)
    shutil.rmtree("lightning_logs")
    for step, hook in kills:
        stop = ["--trainer.callbacks+=tests.cli.test_resume.Interruption"]
        stop += [f"--trainer.callbacks.step={step}", f"--trainer.callbacks.hook={hook}"]
        with pytest.raises(RuntimeError, match="killed"):
            main([*command, "--resume=1", *stop])
    assert main([*command, "--resume=1"]) == 0
    assert list(differences(whole, checkpoint(name))) == []
    assert log_of(name) == logged


def test_every_experiment_is_resumed():
    assert sorted(METHODS) == SHIPPED


def test_a_kill_while_the_log_is_taken_over_loses_no_row(trained, monkeypatch):
    """The rows of a run survive a resumption that is killed at once, and those logged anew go."""
    log = trained / "metrics.csv"
    before = log.read_text()
    last = trained / "checkpoints" / "last.ckpt"
    with monkeypatch.context() as patch:
        patch.setattr(loggers, "WholeRows", lambda log_dir: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            _ = loggers.RunLogger(Path("lightning_logs"), "dummy", last).experiment
    assert loggers.RunLogger(Path("lightning_logs"), "dummy", last).experiment
    assert log.read_text() == before
    assert [path.name for path in trained.glob(".*")] == []
    first = trained / "checkpoints" / "previous.ckpt"  # two steps of four
    assert loggers.RunLogger(Path("lightning_logs"), "dummy", first).experiment
    steps = [line.split(",") for line in log.read_text().splitlines()]
    at = steps[0].index("step")
    assert {int(row[at]) for row in steps[1:]} == {0, 1}


def test_a_kill_while_the_configuration_is_written_leaves_the_old_one(trained, monkeypatch):
    config = trained / "config.yaml"
    before = config.read_text()

    def killed(self, target):
        raise RuntimeError("killed")

    resume = ["fit", "--exp=dummy", "--scale=smoke", "--resume=1", "--trainer.max_epochs=3"]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(RuntimeError, match="killed"):
            main(resume)
    assert config.read_text() == before
    assert main(resume) == 0
    assert [path.name for path in trained.parent.iterdir()] == ["version_0"]
    assert "max_epochs: 3" in config.read_text()


def test_a_kill_while_a_column_is_added_leaves_the_table_as_it_was(tmp_path, monkeypatch):
    writer = loggers.RunLogger(tmp_path, "run").experiment
    writer.log_metrics({"loss": 1.0}, step=0)
    writer.save()
    path = Path(writer.metrics_file_path)
    before = path.read_text()
    writer.log_metrics({"loss": 2.0, "other": 3.0}, step=1)
    with monkeypatch.context() as patch:
        patch.setattr(csv.DictWriter, "writerows", lambda self, rows: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            writer.save()
    assert path.read_text() == before
    writer.metrics_keys = ["loss", "step"]
    writer.save()
    assert path.read_text().split() == ["loss,other,step", "1.0,,0", "2.0,3.0,1"]


@pytest.mark.parametrize("chosen", ["--name=own", "--name own", "--config=own.yaml"])
def test_the_same_command_goes_on_wherever_its_run_lies(chosen, workspace):
    """Beside a newer run of the experiment in the usual place."""
    write_yaml(workspace / "own.yaml", {"name": "own"})
    command = ["fit", "--exp=dummy", "--scale=smoke"]
    elsewhere = [*command, *chosen.split(), "--trainer.default_root_dir=elsewhere"]
    assert main([*elsewhere, "--trainer.max_epochs=1"]) == 0
    assert main([*command, "--trainer.max_epochs=1", "--trainer.default_root_dir=elsewhere"]) == 0
    assert main([*command, "--trainer.max_epochs=1"]) == 0
    assert main([*elsewhere, "--resume=1", "--trainer.max_epochs=3"]) == 0
    logs = Path("elsewhere", "lightning_logs")
    epochs = {"own": 3, "dummy": 1}
    for name, epoch in epochs.items():
        assert [path.name for path in (logs / name).iterdir()] == ["version_0"]
        path = logs / name / "version_0" / "checkpoints" / "last.ckpt"
        assert torch.load(path, weights_only=True)["epoch"] + 1 == epoch
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["dummy"]
    assert [path.name for path in Path("lightning_logs", "dummy").iterdir()] == ["version_0"]


def test_a_trial_of_few_steps_goes_on_with_nothing(trained, refuse):
    dev = "--trainer.fast_dev_run=true"
    assert "leave one out" in refuse("fit", "--exp=dummy", "--scale=smoke", "--resume=1", dev)


def test_any_flipped_bit_is_damage_and_never_a_traceback(tmp_path):
    path = tmp_path / "last.ckpt"
    torch.save({"weight": torch.arange(6.0), "step": 3}, path)
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        ends = archive.start_dir
        heads = [info.header_offset for info in archive.infolist()]
    places = [*range(ends, len(content)), *(head + k for head in heads for k in range(30))]
    found = 0
    for place in places:
        for bit in (0, 6):
            flipped = bytearray(content)
            flipped[place] ^= 1 << bit
            path.write_bytes(flipped)
            found += bool(resume.damage(path))  # other bits, such as of dates, are of no matter
    assert found > 0.3 * 2 * len(places)
    path.write_bytes(content)
    assert resume.damage(path) == ""


@pytest.mark.parametrize("error", [zlib.error("x"), EOFError(), RuntimeError("x"), ValueError("x")])
def test_what_zipfile_stumbles_over_is_damage(error, tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    torch.save({}, path)
    monkeypatch.setattr(zipfile.ZipFile, "testzip", raising(error))
    assert resume.damage(path)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_a_checkpoint_that_cannot_be_read_is_not_put_aside(number, trained, refuse, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "testzip", raising(OSError(number, os.strerror(number))))
        line = refuse("fit", "--exp=dummy", "--scale=smoke", "--resume=1")
    assert f"last.ckpt: {os.strerror(number)}; mend that" in line
    assert (trained / "checkpoints" / "last.ckpt").is_file()
    assert not list(trained.glob("checkpoints/*.damaged"))


def raising(error):
    def raises(*_):
        raise error

    return raises


def test_what_killed_writers_left_is_removed(tmp_path):
    over = subprocess.Popen([sys.executable, "-c", ""])
    over.wait()
    dead = tmp_path / f".last.ckpt.{over.pid}.partial"
    alive = tmp_path / f".last.ckpt.{os.getppid()}.partial"
    for path in dead, alive:
        path.touch()
    writer = WholeCheckpoints()
    writer.save_checkpoint({}, tmp_path / "last.ckpt")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([alive.name, "last.ckpt"])
