"""Pins agree, hooks refuse, make helps."""

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import torch
import yaml
from jaxtyping import TypeCheckError
from packaging.requirements import Requirement

from handrec.geometry.camera import project
from tests.cli.conftest import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
USED = [*PROJECT["dependencies"], *EXTRAS["onnx"], *EXTRAS["tune"]]  # by handrec's own code
REQUIREMENTS = [*USED, *(x for x in EXTRAS["dev"] if not x.startswith("handrec["))]


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
    lines = [x for x in (REPOSITORY / "constraints.txt").read_text().splitlines() if x[0] != "#"]
    pins = dict(line.split("==") for line in lines)
    assert all(re.fullmatch(r"[\w.]+", version) for version in pins.values())  # no local versions
    versions = {normal(name): version for name, version in pins.items()}
    for text in REQUIREMENTS:
        requirement = Requirement(text)
        assert requirement.specifier.contains(versions[normal(text)]), text


def imported_distributions(folder):
    """Return what the Python files below a folder import, lazily or not: distributions by name."""
    modules = set()
    for path in (REPOSITORY / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module.partition(".")[0])
    installed = packages_distributions()
    own = {"handrec", "tests"} | {path.stem for path in (REPOSITORY / folder).glob("*.py")}
    foreign = modules - set(sys.stdlib_module_names) - own
    return {name: set(map(normal, installed.get(name, [name]))) for name in foreign}


@pytest.mark.parametrize("folder", ["src", "scripts", "benchmarks", "tests"])
def test_everything_imported_is_required(folder):
    required = set(map(normal, REQUIREMENTS if folder == "tests" else USED))
    imported = imported_distributions(folder)
    assert [name for name, names in imported.items() if not names & required] == []


def test_everything_required_is_imported():
    imported = set().union(*imported_distributions("src").values())
    unused = set(map(normal, PROJECT["dependencies"])) - imported
    assert unused == {"torchvision"}  # timm's; named because it must match torch


def test_every_test_checks_shapes():
    with pytest.raises(TypeCheckError, match="b=2"):
        project(torch.zeros(2, 5, 3), torch.eye(3)[None])


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
    # The tests may run inside of `make test`, whose own options must not reach this make.
    outside = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    return subprocess.run(
        ["make", *args], cwd=REPOSITORY, capture_output=True, text=True, check=False, env=outside
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


def test_links_between_pages_lead_somewhere():
    pages = [REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md")]
    for page in pages:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
        links = re.findall(r'\]\(([^)#:\s]+)(?:#[^)]*)?\)|src="([^":]+)"', text)
        for link in (one or other for one, other in links):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
