"""Pins agree, hooks refuse, make helps."""

import importlib.util
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
REQUIREMENTS = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]


def normal(name):
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", name).group()).lower()


def load_script(name):
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_conda_users_get_the_same_pins():
    environment = yaml.safe_load((REPOSITORY / "environment.yml").read_text())
    conda, pip = environment["dependencies"][:-1], environment["dependencies"][-1]["pip"]
    options = [line for line in pip if line.startswith("-")]
    assert options == ["-c constraints.txt", "-e ."]
    assert sorted(set(pip) - set(options)) == sorted(REQUIREMENTS)
    python = next(line for line in conda if line.startswith("python"))
    assert PROJECT["requires-python"] in python.replace("python", "")


def test_constraints_pin_every_requirement_within_its_range():
    packaging = pytest.importorskip("packaging.requirements")
    lines = [x for x in (REPOSITORY / "constraints.txt").read_text().splitlines() if x[0] != "#"]
    pins = dict(line.split("==") for line in lines)
    assert all(re.fullmatch(r"[\w.]+", version) for version in pins.values())  # no local versions
    versions = {normal(name): version for name, version in pins.items()}
    for text in REQUIREMENTS:
        requirement = packaging.Requirement(text)
        assert requirement.specifier.contains(versions[normal(text)]), text


def test_the_hook_refuses_licensed_large_and_secret_files(tmp_path, capsys):
    hook = load_script("refuse_files")
    for name in ("MANO_RIGHT.pkl", "mano_left.npz", "big.bin", "key.txt", "fine.txt"):
        (tmp_path / name).write_text("x")
    (tmp_path / "big.bin").write_bytes(b"0" * 500_001)
    (tmp_path / "key.txt").write_text("-----BEGIN RSA " + "PRIVATE KEY-----\nabc")
    (tmp_path / "even.bin").write_bytes(b"0" * 500_000)
    assert hook.main([str(path) for path in sorted(tmp_path.iterdir())]) == 1
    refused = [line.split(": ")[1] for line in capsys.readouterr().err.splitlines()]
    assert {Path(path).name for path in refused} == {
        "MANO_RIGHT.pkl", "mano_left.npz", "big.bin", "key.txt",
    }  # fmt: skip
    assert hook.main([str(tmp_path / "fine.txt")]) == 0


def test_no_tracked_file_would_be_refused():
    hook = load_script("refuse_files")
    done = subprocess.run(
        ["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip("not a git checkout")
    assert [name for name in done.stdout.splitlines() if hook.complaint(REPOSITORY / name)] == []


def make(*args):
    return subprocess.run(
        ["make", *args], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_make_helps_and_refuses_before_setting_anything_up():
    listed = make().stdout
    targets = re.findall(r"^([a-z]+):.*## ", (REPOSITORY / "Makefile").read_text(), re.M)
    assert len(targets) >= 11
    assert all(f"  {target} " in listed for target in targets)
    for target, word in {
        "train": "EXP=",
        "eval": "EXP=",
        "predict": "INPUT=",
        "sweep": "SWEEP=",
    }.items():
        done = make(target)
        assert done.returncode != 0
        assert done.stdout.startswith(f"usage: make {target} {word}")


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_make_passes_on_what_was_chosen(tmp_path):
    stamp = [f"VENV={tmp_path}", f"STAMP={REPOSITORY}/pyproject.toml"]
    train = make(
        "-n", "train", "EXP=a", "DATA=b", "SCALE=c", "CKPT=d e", "ARGS=--f=1", *stamp
    ).stdout
    assert 'fit --exp="a" --scale="c" --dataset="b" --ckpt_path="d e" --f=1' in train
    predict = make("-n", "predict", "INPUT=my photos", "BOXES=b.json", *stamp).stdout
    assert 'predict  --input="my photos" --boxes="b.json"' in predict
