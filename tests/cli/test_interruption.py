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

import cv2
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


@pytest.mark.slow
def test_sigterm_at_the_last_step_lets_the_training_end(folder, cache):
    command = ["fit", "--exp=s2hand_keypoints", *SHORT, *SMALL["plain"], cache]
    pause = [f"--trainer.callbacks+={HERE}.Pause", "--trainer.callbacks.step=5"]
    status, said = terminated([*command, *pause])
    assert status == 0, said
    assert "trained  s2hand_keypoints: 6 steps, 2 epochs" in said
    assert "asked to stop" not in said


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


class Poison(pl.Callback):
    """Makes a label infinite before a step, or a gradient after it."""

    def __init__(
        self,
        step: int = 1,
        column: str = "keypoints_2d",
        gradient: bool = False,
        process: int = 0,
    ) -> None:
        self.step, self.column, self.gradient, self.process = step, column, gradient, process

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        here = trainer.global_rank == self.process
        if trainer.global_step == self.step and here and not self.gradient:
            getattr(batch, self.column)[0, ..., 0] = torch.inf

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step == self.step and self.gradient:
            next(p for p in pl_module.parameters() if p.grad is not None).grad.fill_(torch.nan)


POISON = [f"--trainer.callbacks+={HERE}.Poison"]


def refused(command, capsys):
    """Run a command that must fail; return its one line."""
    capsys.readouterr()
    assert main(command) == 2
    said = capsys.readouterr().err.splitlines()
    assert not any("Traceback" in line for line in said)
    (line,) = [line for line in said if line.startswith("handrec: error: ")]
    return line.removeprefix("handrec: error: ")


@pytest.mark.parametrize(
    ("name", "precision", "column", "terms"),
    [
        ("handmim", "32-true", "keypoints_2d", "loss term keypoints is"),
        ("handmim", "bf16-mixed", "joints_3d", "loss term vertices, joints, local is"),
        ("s2hand", "bf16-mixed", "keypoints_2d", "loss term keypoints, bones"),
    ],
)
def test_a_loss_that_is_not_finite_is_named_and_dumped(
    name, precision, column, terms, folder, cache, capsys
):
    own = ["--model.init_args.ramp={start: 0.5, end: 1}"] if name == "s2hand" else []
    command = [
        "fit", f"--exp={name}", *SHORT, *SMALL["plain"], cache, *METHODS[name], *own,
        f"--trainer.precision={precision}", *POISON, f"--trainer.callbacks.column={column}",
        "--safety.steps=1",
    ]  # fmt: skip
    line = refused(command, capsys)
    assert line.startswith(terms)
    failed = Path("lightning_logs", name, "version_0", "failed", "step_1")
    told = json.loads((failed / "failure.json").read_text())
    ids = ", ".join(map(str, told["sample_ids"]))
    assert f"at step 1, samples {ids} (look at {failed}): the training diverged" in line
    assert told["step"] == 1
    assert told["not_finite_in_batch"] == [column]
    batch = HandBatch(**load_file(failed / "batch.safetensors"))
    assert batch.sample_id.tolist() == told["sample_ids"]
    assert not getattr(batch, column).isfinite().all()
    picture = cv2.imread(str(failed / "batch.png"))
    expected = batch.image[0].permute(1, 2, 0).flip(-1) * 255
    assert abs(picture[: len(expected), : len(expected)] - expected.numpy()).max() < 1
    last = torch.load(failed.parents[1] / "checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 1, "the last good checkpoint is kept"


@pytest.mark.slow
def test_a_training_without_checkpoints_leaves_a_dump_too(folder, cache, capsys):
    command = [
        "fit", "--exp=s2hand_keypoints", *SHORT, *SMALL["plain"], cache, *POISON,
        "--trainer.callbacks.step=0", "--trainer.enable_checkpointing=false",
    ]  # fmt: skip
    failed = Path("lightning_logs", "s2hand_keypoints", "version_0", "failed", "step_0")
    assert f"(look at {failed})" in refused(command, capsys)
    assert (failed / "failure.json").is_file()


def test_a_gradient_that_is_not_finite_reaches_no_checkpoint(trained, refuse):
    last = trained / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    options = ["--trainer.callbacks.step=5", "--trainer.callbacks.gradient=true"]
    line = refuse(*DUMMY, "--resume=1", "--trainer.max_epochs=4", *POISON, *options)
    assert line.startswith(
        "parameter part.layer.weight is not finite: a gradient was not at step 6"
    )
    assert last.read_bytes() == before


class Hungry(pl.Callback):
    """Asks for more memory than there is, on the CPU in earnest."""

    def __init__(self, device: str) -> None:
        self.device = device

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        match self.device:
            case "cpu":
                torch.empty(2**60, dtype=torch.uint8)
            case "cuda":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            case "warp":
                raise RuntimeError("Failed to allocate 4096 bytes on device 'cuda:0'")


@pytest.mark.parametrize("device", ["cpu", "cuda", "warp"])
def test_out_of_memory_names_the_knobs(workspace, refuse, device):
    hungry = [f"--trainer.callbacks+={HERE}.Hungry", f"--trainer.callbacks.device={device}"]
    line = refuse(*DUMMY, *hungry)
    assert line.startswith("out of memory: ")
    for knob in ("batch_size", "accumulate_grad_batches", "image_size", "precision"):
        assert knob in line
    assert "chunk" not in line, "it draws nothing"


PART = ["--model.init_args.part=tests.cli.dummies.Part"]


def test_out_of_memory_names_the_knob_of_what_draws(workspace, refuse):
    """A method's rasterizer, by its option."""
    hungry = [f"--trainer.callbacks+={HERE}.Hungry", "--trainer.callbacks.device=cuda"]
    line = refuse(*DUMMY, "--model=tests.cli.dummies.DrawingMethod", *PART, *hungry)
    assert line.startswith("out of memory: ")
    assert "(--model.init_args.rasterizer.init_args.chunk=8); --trainer.precision" in line


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("trainer.strategy=dpp", "--trainer.strategy=dpp is none (did you mean 'ddp'?)"),
        ("trainer.devices=-1", "means all GPUs: on a CPU say how many processes"),
        ("trainer.devices=0", "--trainer.devices=0: it is at least 1"),
        ("trainer.num_nodes=0", "--trainer.num_nodes=0: it is at least 1"),
        ("trainer.accumulate_grad_batches=0", "accumulate_grad_batches=0: it is at least 1"),
        ("trainer.gradient_clip_val=-1", "gradient_clip_val=-1: it is at least 0"),
        ("trainer.limit_train_batches=0", "limit_train_batches=0: nothing would be trained"),
        ("trainer.max_steps=0", "--trainer.max_steps=0: nothing would be trained"),
        ("trainer.max_epochs=0", "--trainer.max_epochs=0: nothing would be trained"),
        ("trainer.precision=bf16-true", "precision=bf16-true: weights are float32; give 32-true"),
        ("trainer.precision=64-true", "precision=64-true: weights are float32"),
        ("seed_everything=-1", "--seed_everything=-1: it is 0 to 4294967295"),
    ],
)
def test_a_trainer_that_cannot_be_is_refused(option, expected, refuse):
    assert expected in refuse(*DUMMY, f"--{option}")
    assert not list(Path().glob("lightning_logs/*/*"))


def test_a_full_disk_elsewhere_is_one_line_too(refuse, workspace, monkeypatch):
    def full(args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "metrics.csv")

    monkeypatch.setattr("handrec.cli.command_line.expand", full)
    line = refuse("fit")
    assert "No space left on device: 'metrics.csv' (make room" in line


@pytest.mark.parametrize(
    ("experiment", "option", "expected"),
    [
        ("handmim", "model.init_args.lr=-1", "HandMIM: lr must be above 0, not -1"),
        ("handmim", "model.init_args.lr=nan", "model.lr: expected float, got nan"),
        ("handmim", "model.init_args.weight_decay=-1", "weight_decay must be at least 0, not -1"),
        ("handmim", "model.init_args.layer_decay=2", "layer_decay must be 0 to 1, not 2"),
        ("handmim", "model.init_args.warmup=3", "HandMIM: warmup must be 0 to 1, not 3"),
        ("handmim", "model.init_args.head.init_args.iterations=0", "PyMAF: iterations must be"),
        ("handmim", "model.init_args.head.init_args.dropout=2", "PyMAF: dropout must be 0 to 1"),
        ("handmim", "model.init_args.weights.joints=-1", "joints must be at least 0, not -1"),
        ("handmim", "model.init_args.rasterizer.init_args.chunk=0", "chunk must be above 0"),
        ("handmim", "model.init_args.backbone.init_args.drop_path=2", "drop_path must be 0 to 1"),
        ("handmim", "data.init_args.batch_size=0", "batch_size 0 must lie between 1 and"),
        ("handmim", "data.init_args.num_workers=-1", "num_workers must be at least 0, not -1"),
        ("handmim", "trainer.max_epochs=-2", "`max_epochs` must be a non-negative integer or -1"),
        ("handmim", "checkpoint.mode=least", "`mode` can be"),
        ("handmim", "checkpoint.monitor=typo", "HandMIM logs no typo; there is val/mpjpe"),
        ("handmim", "checkpoint.monitor=val/pa_mpvp", "(did you mean 'val/pa_mpvpe'?)"),
        ("handmim", "safety.minutes=-1", "safety: minutes is at least 0"),
        ("handmim_pretrain", "model.init_args.prototypes=0", "prototypes must be above 0"),
        ("handmim_pretrain", "model.init_args.teacher.momentum=2", "momentum must be 0 to 1"),
        ("s2hand", "model.init_args.lr=0", "S2HAND: lr must be above 0, not 0"),
        ("s2hand", "model.init_args.halvings=-1", "halvings must be at least 0"),
        ("s2hand_keypoints", "model.init_args.keypoints.init_args.stacks=0", "stacks must be"),
        ("cyclehand", "model.init_args.flow.share=0", "Flow: share must be above 0"),
        ("cyclehand", "model.init_args.texture_size=0", "TextureVAE: size must be above 0"),
    ],
)
def test_absurd_numbers_are_refused_before_anything_is_drawn(
    experiment, option, expected, folder, capsys
):
    data = [] if experiment == "cyclehand" else SMALL["plain"]
    command = ["fit", f"--exp={experiment}", "--scale=smoke", *data, *METHODS[experiment]]
    cache = "--data.init_args.cache_dir=drawn"
    assert expected in refused([*command, cache, f"--{option}"], capsys)
    assert not Path("drawn").exists()
    assert not list(Path().glob("lightning_logs/*/*"))


@pytest.mark.parametrize("monitor", ["val/keypoints_px", "train/loss", "train/bones", "null"])
def test_what_a_method_logs_can_choose_the_best_checkpoint(monitor):
    from handrec.cli.hand_cli import check_monitor
    from handrec.methods.s2hand import S2HAND, S2HANDWeights

    method = S2HAND.__new__(S2HAND)
    pl.LightningModule.__init__(method)
    method.weights = S2HANDWeights()
    check_monitor(None if monitor == "null" else monitor, method)
