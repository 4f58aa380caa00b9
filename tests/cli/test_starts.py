"""Which checkpoint a pattern means: the last of the same scale; when resumed, the run's own."""

import os

import pytest
from jsonargparse import Namespace

from handrec.cli.starts import choose_starts
from handrec.errors import UserError

PATTERN = "lightning_logs/s2hand/version_*/checkpoints/last.ckpt"


@pytest.fixture
def logs(tmp_path, monkeypatch):
    """Runs of three scales, written in another order than their numbers."""
    monkeypatch.chdir(tmp_path)
    for number, (scale, written) in enumerate([("cpu", 3), ("cpu", 1), ("smoke", 9), ("gpu", 2)]):
        run = tmp_path / "lightning_logs" / "s2hand" / f"version_{number}"
        (run / "checkpoints").mkdir(parents=True)
        (run / "config.yaml").write_text(f"name: s2hand\nscale: {scale}\n")
        path = run / "checkpoints" / "last.ckpt"
        path.touch()
        os.utime(path, (written, written))
    return tmp_path / "lightning_logs"


@pytest.mark.parametrize(("scale", "version"), [("cpu", 0), ("smoke", 2), ("gpu", 3)])
def test_the_last_written_of_the_scale(logs, scale, version, capsys):
    name = "backbone.init_args.checkpoint"
    options = Namespace({"shape_checkpoint": PATTERN, "lr": "*", name: PATTERN, "checkpoint": None})
    choose_starts(options, scale, None)
    expected = PATTERN.replace("*", str(version))
    assert options.as_flat().__dict__ == {
        "shape_checkpoint": expected, "lr": "*", name: expected, "checkpoint": None,
    }  # fmt: skip
    assert f"starts from {expected}" in capsys.readouterr().out


def test_a_resumed_training_starts_from_what_it_started_from(logs):
    run = logs / "s2hand_video" / "version_0"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("model: {init_args: {checkpoint: mine.ckpt}}\n")
    options = Namespace(checkpoint=PATTERN)
    choose_starts(options, "cpu", run)
    assert options.checkpoint == "mine.ckpt"


def test_what_is_missing_is_told(logs):
    with pytest.raises(UserError, match=r"at scale paper .*`make train EXP=s2hand SCALE=paper`"):
        choose_starts(Namespace(checkpoint=PATTERN), "paper", None)
