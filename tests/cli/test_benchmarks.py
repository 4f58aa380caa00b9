"""Benchmarks that watch over trainings: what is no pass is not taken for one."""

import importlib.util
import json
import math
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from handrec import records
from tests.cli.conftest import REPOSITORY


def load(name):
    path = REPOSITORY / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("saves", [False, True])
def test_chaos_counts_the_kills_that_fell_after_a_checkpoint(saves, tmp_path, monkeypatch):
    chaos = load("chaos")
    starts = []

    def start(folder, experiment, epochs):
        starts.append(experiment)
        if saves and len(starts) == 2:
            last = folder / "lightning_logs" / experiment / "version_0" / "checkpoints/last.ckpt"
            last.parent.mkdir(parents=True)
            last.touch()
        seconds = 60 if len(starts) < 4 else 0
        command = [sys.executable, "-c", f"import time; time.sleep({seconds})"]
        return subprocess.Popen(command, start_new_session=True)

    monkeypatch.setattr(chaos, "start", start)
    draw = random.Random(0)
    monkeypatch.setattr(draw, "uniform", lambda *_: 0.05 if len(starts) < 4 else 30.0)
    told = chaos.disturb(tmp_path, "any", 1, 60.0, 1.0, draw)
    assert told == {"kills": 3, "kills_after_a_checkpoint": 2 * saves, "failures": 0}


def test_precision_takes_losses_that_are_not_finite_for_what_they_are():
    precision = load("precision")
    full, half = precision.Losses(), precision.Losses()
    full.losses, half.losses = [1.0, 2.0], [math.nan, math.inf]
    row = precision.row("any", "16-mixed", half, full)
    assert row["not_finite"] == 2
    assert math.isnan(row["first_step_percent"])
    half.losses = [math.nan, 1.0]
    row = precision.row("any", "16-mixed", half, full)
    assert row["not_finite"] == 1
    assert row["mean_percent"] == row["largest_percent"] == 50.0
    assert math.isnan(row["first_step_percent"])


def test_overhead_ends_with_status_1_above_its_bars(monkeypatch):
    overhead = load("overhead")
    for met in (True, False):
        monkeypatch.setattr(overhead, "measure", lambda *_, met=met: {"met": met})
        monkeypatch.setattr(sys, "argv", ["overhead", "--experiments", "any"])
        with pytest.raises(SystemExit) as exit_:
            overhead.main()
        assert bool(exit_.value.code) is not met


def pretend_a_run(name: str, epochs_over: int, of: int) -> None:
    """Write what a benchmark reads of a training: its options, and the epochs its weights saw."""
    run = Path("lightning_logs") / name / "version_0"
    (run / "checkpoints").mkdir(parents=True)
    progress = {"epoch_progress": {"current": {"completed": epochs_over}}}
    content = {"state_dict": {}, "loops": {"fit_loop": progress}}
    torch.save(content, run / "checkpoints/last.ckpt")
    (run / "config.yaml").write_text(f"trainer: {{max_epochs: {of}}}\n")


def test_a_training_that_was_stopped_is_not_taken_for_a_whole_one(tmp_path, monkeypatch):
    shared = load("_runs")
    monkeypatch.chdir(tmp_path)

    def handrec(_, name):
        pretend_a_run(name.removeprefix("--name="), epochs_over=1, of=2)

    monkeypatch.setattr(shared, "handrec", handrec)
    with pytest.raises(SystemExit, match=r"version_0 was stopped: .*--resume=1"):
        shared.trained("row")
    with pytest.raises(SystemExit, match="was cut short"):  # nor by the next call
        shared.trained("row")


def test_a_run_of_other_options_is_not_taken_for_the_wanted_one(tmp_path, monkeypatch):
    shared = load("_runs")
    monkeypatch.chdir(tmp_path)
    trained = []

    def handrec(_, name, *arguments):
        pretend_a_run(name.removeprefix("--name="), epochs_over=2, of=2)
        trained.append(arguments)

    monkeypatch.setattr(shared, "handrec", handrec)
    for _ in range(2):
        run, seconds = shared.trained("row", "--a=1", "--b=x y")
        assert run.name == "version_0"
        assert seconds >= 0
    assert trained == [("--a=1", "--b=x y")]
    assert shared.trained_at(run) == records.commit()
    (run / shared.WHOLE).write_text('{"seconds": 1}')  # of before it was noted
    assert shared.trained_at(run) is None
    (run / shared.WHOLE).write_text('{"seconds": 1, "arguments": ["--a=1", "--b=x y"]}')
    with pytest.raises(SystemExit, match=r"was trained with other options .*--a=1.*now --a=2"):
        shared.trained("row", "--a=2", "--b=x y")
    (run / shared.WHOLE).unlink()
    with pytest.raises(SystemExit, match="was cut short"):
        shared.trained("row", "--a=1", "--b=x y")


def test_a_record_of_another_kind_is_not_gone_on_with(tmp_path):
    shared = load("_runs")
    path, rows = tmp_path / "record.json", [{"row": "a"}]
    assert shared.measured_before(path, "name", {"scale": "cpu"}) == []
    path.write_text(json.dumps({"name": "name", "config": {"scale": "cpu"}, "figures": rows}))
    assert shared.measured_before(path, "name", {"scale": "cpu"}) == rows
    for name, scale in (("name", "gpu"), ("other", "cpu")):
        with pytest.raises(SystemExit, match="give another --out"):
            shared.measured_before(path, name, {"scale": scale})


def pretend_an_evaluation(name, errors, sha256="a" * 64):
    """Write what a benchmark reads of an evaluation: whose samples, and the error of each."""
    pretend_a_run(name, epochs_over=1, of=1)
    folder = Path("lightning_logs") / name / "version_0/eval/synthetic"
    (folder / "test").mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps({"splits": {"test": {"split_sha256": sha256}}}))
    lines = [f"{number},{error}" for number, error in enumerate(errors)]
    (folder / "test/per_sample.csv").write_text("\n".join(["id,pa_mpjpe", *lines]) + "\n")


def test_differences_are_told_as_surely_as_the_samples_decide_them(tmp_path, monkeypatch, capsys):
    paired = load("paired_difference")
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    old = draw.uniform(5, 25, 400)
    apart = draw.normal(0, 2, 400)
    pretend_an_evaluation("base-0", old - apart)
    pretend_an_evaluation("base-1", old + apart)  # their mean is `old`
    new = 0.9 * old + draw.normal(0, 1, 400)
    pretend_an_evaluation("new", new)
    pretend_an_evaluation("tenth", 0.9 * old)
    pretend_an_evaluation("elsewhere", old, sha256="b" * 64)

    def told(ours):
        paths = [Path("lightning_logs") / run / "version_0" for run in (ours, "base-0", "base-1")]
        (row,) = paired.compare(paths[:1], paths[1:], "pa_mpjpe")
        return row["change_percent"], row["from_percent"], row["to_percent"]

    assert told("tenth") == (-10.0, -10.0, -10.0)  # pairs: of each sample the same
    change, low, high = told("new")
    ratio = new.mean() / old.mean()
    assert change == pytest.approx(100 * (ratio - 1), abs=0.01)
    error = 100 * (new - ratio * old).std() / old.mean() / math.sqrt(400)  # to first order
    assert (low, high) == pytest.approx((change - 1.96 * error, change + 1.96 * error), abs=0.1)
    with pytest.raises(SystemExit, match="no split that all runs were evaluated on"):
        told("elsewhere")
    arguments = ["--runs", "new", "--against", "base-0", "base-1", "--out", "record.json"]
    monkeypatch.setattr(sys, "argv", ["paired_difference", *arguments])
    paired.main()
    assert f"'change_percent': {change}" in capsys.readouterr().out
    record = json.loads(Path("record.json").read_text())
    assert record["figures"][0]["samples"] == 400
    assert record["config"] == {"runs": ["new"], "against": ["base-0", "base-1"]}
