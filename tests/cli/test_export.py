from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import yaml

from handrec.cli.export import learned_size
from handrec.cli.main import main
from handrec.methods import loading, onnx_export
from handrec.methods.base import HandMethod


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
    assert "--image-size 0: must be at least 1" in refuse(capsys, sizeless, "--image-size=0")
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


@pytest.mark.parametrize("wrong", [None, *onnx_export.OUTPUTS])
@pytest.mark.parametrize("value", [0.5, float("nan")])
def test_a_file_that_says_something_else_is_not_put_in_place(
    tmp_path, monkeypatch, capsys, wrong, value
):
    monkeypatch.chdir(tmp_path)
    found = dict.fromkeys(onnx_export.OUTPUTS, 1e-6) | ({wrong: value} if wrong else {})
    monkeypatch.setattr(loading, "load_method", lambda path: Mock(spec=HandMethod))
    monkeypatch.setattr(
        onnx_export, "export_onnx", lambda method, path, *args: path.write_bytes(b"new")
    )
    monkeypatch.setattr(onnx_export, "largest_differences", lambda *args: found)
    Path("a.onnx").write_bytes(b"old")
    given = [checkpoint("some.ckpt"), "--image-size=32", "--out=a.onnx"]
    if wrong is None:
        assert main(["export", *given]) == 0
    else:
        said = refuse(capsys, *given)
        assert f"a.onnx was not written: ONNX Runtime and PyTorch differ in {wrong} by" in said
    assert Path("a.onnx").read_bytes() == (b"old" if wrong else b"new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "some.ckpt"]
