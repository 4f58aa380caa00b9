"""A profile of a training whose clock the test moves."""

import json
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
from torch.utils.data import DataLoader

from handrec.callbacks import profile
from handrec.callbacks.profile import Profile
from handrec.errors import UserError
from tests.callbacks.test_monitor import BATCH, SECONDS, Regression, Slow


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(profile, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def test_stages_of_the_timed_steps_and_a_trace_of_others(clock, tmp_path, capsys):
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=50, default_root_dir=tmp_path, logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        callbacks=[Profile(warmup=1, timed=3, traced=2)],
    )  # fmt: skip
    trainer.fit(Regression(clock), DataLoader(Slow(clock, SECONDS["data"]), BATCH))
    assert trainer.global_step == 6
    table = (tmp_path / "profile" / "table.txt").read_text()
    assert table in capsys.readouterr().out
    lines = table.splitlines()
    assert lines[0] == "8000.0 ms a step, mean of 3 steps"
    stages = {line.split()[0]: line.split()[1] for line in lines[1:7]}
    assert stages == {
        "data": "3000.0", "draw": "1000.0", "forward": "4000.0", "backward": "0.0",
        "optimizer": "0.0", "rest": "0.0",
    }  # fmt: skip
    assert any("aten::" in line and " 2 x " not in line for line in lines)
    trace = json.loads((tmp_path / "profile" / "trace.json").read_text())
    names = [event.get("name") for event in trace["traceEvents"]]
    assert names.count("handrec: forward") == names.count("handrec: backward") == 2


def test_less_than_a_step_is_refused():
    with pytest.raises(UserError, match="timed, traced and rows at least 1"):
        Profile(timed=0)
