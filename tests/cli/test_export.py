from pathlib import Path

import pytest
import torch
import yaml

from handrec.cli.export import learned_size
from handrec.cli.main import main


def refuse(capsys, *args):
    assert main(["export", *args]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line.removeprefix("handrec: error: ")


def checkpoint(path, config=None, **content):
    torch.save({"state_dict": {}, "handrec_config": yaml.safe_dump(config), **content}, path)
    return f"--ckpt={path}"


def test_what_cannot_be_exported_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "no run in lightning_logs/" in refuse(capsys)
    assert "no run of 'mine'" in refuse(capsys, "mine")
    assert refuse(capsys, "--ckpt=none.ckpt") == "no checkpoint none.ckpt"
    Path("text.ckpt").write_text("no checkpoint")
    assert "not a PyTorch file" in refuse(capsys, "--ckpt=text.ckpt")
    sizeless = checkpoint("some.ckpt")
    assert "does not say the size of its crops: give --image-size" in refuse(capsys, sizeless)
    assert "which method wrote it" in refuse(capsys, sizeless, "--image-size=32")
    assert "must end with .onnx" in refuse(capsys, sizeless, "--out=a.pt")
    assert "--batch 0: must be at least 1" in refuse(capsys, sizeless, "--batch=0")


@pytest.mark.parametrize(
    ("config", "size"),
    [
        (None, None),
        ({"data": {"class_path": "x"}}, None),
        ({"data": {"class_path": "x", "init_args": {"image_size": 64}}}, 64),
    ],
)
def test_the_size_of_the_crops_is_that_of_the_training(config, size):
    assert learned_size({"handrec_config": yaml.safe_dump(config)}) == size
