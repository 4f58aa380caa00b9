"""Half precision is left to the machines that have it."""

import platform
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import Namespace
from torch.nn import functional as F

from handrec.cli import trainer_checks
from handrec.cli.main import main
from tests.cli.conftest import write_yaml
from tests.cli.test_benchmarks import load


def trained_in(workspace, capsys, *options):
    """Train at a scale that says bf16-mixed; return the run's precision and what was said."""
    trainer = {"accelerator": "cpu", "precision": "bf16-mixed"}
    write_yaml(workspace / "experiments" / "scale" / "smoke.yaml", {"trainer": trainer})
    assert main(["fit", "--exp=dummy", "--scale=smoke", *options]) == 0
    config = yaml.safe_load(Path("lightning_logs/dummy/version_0/config.yaml").read_text())
    return config["trainer"]["precision"], capsys.readouterr().out


@pytest.mark.parametrize(("has", "precision"), [(True, "bf16-mixed"), (False, "32-true")])
def test_a_scale_s_half_precision_is_for_cpus_that_have_it(
    has, precision, workspace, monkeypatch, capsys
):
    monkeypatch.setattr(trainer_checks, "has_bf16", lambda: has)
    found, said = trained_in(workspace, capsys)
    assert found == precision
    assert ("no bfloat16: 32-true instead of bf16-mixed" in said) != has


@pytest.mark.parametrize(
    "option", [["--trainer.precision=bf16-mixed"], ["--trainer.precision", "bf16-mixed"]]
)
def test_a_typed_precision_is_taken(option, workspace, monkeypatch, capsys):
    monkeypatch.setattr(trainer_checks, "has_bf16", lambda: False)
    found, said = trained_in(workspace, capsys, *option)
    assert found == "bf16-mixed"
    assert "bfloat16" not in said


@pytest.mark.parametrize("given", ["64-true", "bf16-true", None, "32-true"])
def test_other_precisions_and_other_devices_are_left_alone(given, monkeypatch):
    monkeypatch.setattr(trainer_checks, "has_bf16", lambda: False)
    trainer = Namespace(precision=given, accelerator="cpu")
    trainer_checks.settle_precision(trainer, [])
    assert trainer.precision == given
    trainer = Namespace(precision="bf16-mixed", accelerator="cuda")
    trainer_checks.settle_precision(trainer, [])
    assert trainer.precision == "bf16-mixed"


def test_what_the_cpu_has_is_what_its_flags_say():
    flags = Path("/proc/cpuinfo")
    if platform.machine() != "x86_64" or not flags.is_file():
        pytest.skip("the flags are those of Linux on x86")
    words = flags.read_text().split()
    assert trainer_checks.has_bf16() == ("avx512_bf16" in words or "amx_bf16" in words)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_the_benchmark_multiplies_halves_as_torch_does(half):
    """Up to the roundings of a half; torch's own loops are the reference."""

    def outcome(mode):
        torch.manual_seed(0)
        weight = torch.randn(4, 3, 3, 3, requires_grad=True)
        linear = torch.nn.Linear(4, 5)
        with mode, torch.autocast("cpu", half):
            found = linear(F.conv2d(torch.randn(2, 3, 6, 6), weight).mean((2, 3)))
            found = (found[:, :, None] @ found[:, None]).float()
            found.square().sum().backward()
        return [found.detach(), weight.grad, linear.weight.grad]

    rounding = torch.finfo(half).eps
    for found, expected in zip(
        outcome(load("precision").SummedInFloat32()), outcome(nullcontext()), strict=True
    ):
        assert found.isfinite().all()
        assert (found - expected).norm() < 4 * rounding * expected.norm()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "batch"),
    [("handmim", 2), ("handmim_pretrain", 2), ("s2hand_video", 8), ("cyclehand", 2)],
)
def test_float16_begins_with_nearly_the_same_loss(name, batch, tmp_path, monkeypatch):
    """Over many steps, with bfloat16 and of the other experiments: `benchmarks/precision.py`."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    precisions = load("precision")
    full, half = (
        precisions.train(name, precision, 1, batch, str(tmp_path))
        for precision in ("32-true", "16-mixed")
    )
    row = precisions.row(name, "16-mixed", half, full)
    assert (row["not_finite"], row["steps"]) == (0, 1)
    assert row["first_step_percent"] < 1
