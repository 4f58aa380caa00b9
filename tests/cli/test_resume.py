"""A training that was interrupted anywhere ends as if it had not been."""

import shutil
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from handrec.cli import loggers
from handrec.cli.main import main
from handrec.data.layouts import write_ho3d
from handrec.hand.openhand import OpenHand
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
METHODS = {
    "handmim": SMALL["pymaf"],
    "handmim_finetune": SMALL["pymaf"],
    "handmim_pretrain": [],
    "s2hand": SMALL["s2hand"],
    "s2hand_shape": SMALL["s2hand"],
    "s2hand_finetune": ["--model.init_args.backbone.init_args.image_size=32"],
    "s2hand_keypoints": [],
    "s2hand_video": [
        *SMALL["s2hand"],
        "--data.init_args.clip.length=3",
        "--data.init_args.batch_size=4",
    ],
    "cyclehand_base": [*SMALL["pymaf"], "--model.init_args.texture_size=16"],
    "cyclehand": [
        *SMALL["pymaf"],
        "--model.init_args.texture_size=16",
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
    """Ends a training before a step, as a kill would: nothing is saved for it."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            torch.rand(7)  # what a new process draws is not where the old one was
            raise RuntimeError("killed")


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
    command = ["fit", f"--exp={name}", *SHORT, *SMALL["plain"], cache, *METHODS[name]]
    assert_resumed(name, command)


@pytest.mark.slow
def test_a_training_on_files_is_resumed_too(folder, cache):
    """Clips of them, read and augmented by a worker."""
    video = drawn("OpenHand", 4)
    write_ho3d(Path("set"), [rows(video, 0, 12)], [rows(video, 12, 16)], OpenHand(), "v3")
    options = ["root=set", "image_size=32", "num_workers=1", "batch_size=4", "clip.length=2"]
    command = ["fit", "--exp=s2hand_video", "--dataset=ho3d_v3", *SHORT, *SMALL["s2hand"], cache]
    assert_resumed("s2hand_video", [*command, *(f"--data.init_args.{x}" for x in options)])


def assert_resumed(name, command):
    assert main(command) == 0
    whole = checkpoint(name)
    shutil.rmtree("lightning_logs")
    stops = ["--trainer.callbacks+=tests.cli.test_resume.Interruption"]
    for step in (3, 5):  # between the epochs; a step after a checkpoint within an epoch
        with pytest.raises(RuntimeError, match="killed"):
            main([*command, "--resume=1", *stops, f"--trainer.callbacks.step={step}"])
    assert main([*command, "--resume=1"]) == 0
    assert [path.name for path in Path("lightning_logs", name).iterdir()] == ["version_0"]
    assert list(differences(whole, checkpoint(name))) == []


def test_every_experiment_is_resumed():
    assert sorted(METHODS) == SHIPPED


def test_a_kill_while_the_log_is_taken_over_loses_no_row(trained, monkeypatch):
    """The rows of a run survive a resumption that is killed at once, and those logged anew go."""
    log = trained / "metrics.csv"
    before = log.read_text()
    last = trained / "checkpoints" / "last.ckpt"
    with monkeypatch.context() as patch:
        patch.setattr(loggers.CSVLogger, "experiment", property(lambda self: 1 / 0))
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
