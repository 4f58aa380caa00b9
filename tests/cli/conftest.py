import shutil
from pathlib import Path

import pytest
import yaml

from handrec.cli.main import main

REPOSITORY = Path(__file__).parents[2]

EXPERIMENT = {
    "bases": ["_base/short.yaml"],
    "dataset": "dummy",
    "model": {
        "class_path": "tests.cli.dummies.DummyMethod",
        "init_args": {"part": {"class_path": "tests.cli.dummies.Part"}, "weights": {"photo": 2.0}},
    },
}
SHORT = {
    "seed_everything": 0,
    "trainer": {
        "max_epochs": 2,
        "log_every_n_steps": 1,
        "num_sanity_val_steps": 0,
        "enable_model_summary": False,
    },
}


def write_yaml(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """An empty folder with an experiments directory of its own, made the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.delenv("HANDREC_DEBUG", raising=False)
    monkeypatch.delenv("JSONARGPARSE_DEBUG", raising=False)
    experiments = tmp_path / "experiments"
    write_yaml(experiments / "dummy.yaml", EXPERIMENT)
    write_yaml(experiments / "_base" / "short.yaml", SHORT)
    write_yaml(
        experiments / "data" / "dummy.yaml", {"data": {"class_path": "tests.cli.dummies.DummyData"}}
    )
    write_yaml(experiments / "data" / "synthetic.yaml", {"data": {"class_path": "nowhere.Data"}})
    for scale in ("cpu", "gpu", "smoke"):
        write_yaml(experiments / "scale" / f"{scale}.yaml", {"trainer": {"accelerator": "cpu"}})
    return tmp_path


@pytest.fixture
def trained(workspace, tmp_path_factory):
    """A workspace with one finished run; trained once, copied for each test."""
    kept = tmp_path_factory.getbasetemp() / "trained"
    if not kept.exists():
        assert main(["fit", "--exp=dummy", "--scale=smoke"]) == 0
        shutil.copytree(workspace / "lightning_logs", kept)
    else:
        shutil.copytree(kept, workspace / "lightning_logs")
    return workspace / "lightning_logs" / "dummy" / "version_0"


@pytest.fixture
def refuse(workspace, capsys):
    """Run a command that must fail; return its one line."""

    def run(*args):
        capsys.readouterr()
        assert main(list(args)) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        errors = [line for line in lines if line.startswith("handrec: error: ")]
        assert len(errors) == 1
        assert not any("Traceback" in line for line in lines)
        return errors[0].removeprefix("handrec: error: ")

    return run
