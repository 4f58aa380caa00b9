"""Every sweep file: a command that W&B's agent would run too, and that parses."""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import reduce
from pathlib import Path

import pytest
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from handrec.callbacks.safety import ASKED_TO_STOP
from handrec.cli import experiments, sweep, sweep_file
from handrec.cli.experiments import read_yaml
from handrec.cli.main import main
from handrec.errors import UserError
from tests.cli.conftest import REPOSITORY, write_yaml
from tests.cli.test_project import make

SWEEPS = sorted(path.stem for path in (REPOSITORY / "experiments" / "sweeps").glob("*.yaml"))


def ends(sweep):
    """Return the first and the last value of every option."""
    for index, end in ((0, "min"), (-1, "max")):
        yield {
            name: how.get("value", how["values"][index] if "values" in how else how.get(end))
            for name, how in sweep.parameters.items()
        }


def agents_command(sweep, values):
    """Return what W&B's agent makes of a sweep file, by W&B's own functions."""
    flags = create_sweep_command_args({"args": {k: {"value": v} for k, v in values.items()}})
    words = create_sweep_command(list(sweep.command))
    flags |= {"env": ["/usr/bin/env"], "program": [sweep.program]}  # as wandb_agent.py has it
    stands_for = {f"${{{name}}}": value for name, value in flags.items()}
    return [word for part in words for word in stands_for.get(part, [part])]


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_file_means_to_us_what_it_means_to_wandb(name):
    sweep = sweep_file.read(sweep_file.find(name))
    for values in ends(sweep):
        assert sweep_file.command_of(sweep, values) == agents_command(sweep, values)


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_looks_around_the_recipe_of_cpu_scale(name):
    """What its experiment sets there is among the choices."""
    args = experiments.experiment_arguments(name, "synthetic", "cpu")
    paths = [Path(arg.partition("=")[2]) for arg in args if arg.startswith("--config=")]
    for option, choice in sweep_file.read(sweep_file.find(name)).parameters.items():
        *parents, last = option.split(".")
        recipe = None
        for path in paths:
            part = reduce(lambda found, key: found.get(key) or {}, parents, read_yaml(path))
            recipe = part.get(last, recipe)
        if recipe is not None and "min" in choice:
            assert choice["min"] <= recipe <= choice["max"], option
        elif recipe is not None:
            assert recipe in choice.get("values", [choice.get("value")]), option


@pytest.mark.slow
@pytest.mark.parametrize("name", SWEEPS)
def test_every_value_of_a_sweep_parses(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sweep = sweep_file.read(sweep_file.find(name))
    for values in ends(sweep):
        program, *args = agents_command(sweep, values)[1:]
        assert program == "handrec"
        with pytest.raises(SystemExit) as exit_:
            main([*args, "--scale=smoke", "--print_config"])
        assert exit_.value.code in (0, None)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"min": 1, "max": 1}, "min 1 is not below max 1"),
        ({"value": 1, "values": [1]}, "wants one of value, values, or min and max"),
        ({"min": 1, "max": 2, "distribution": "unifrm"}, "did you mean 'uniform'"),
        ({"vales": [1]}, "did you mean 'values'"),
        (3, "lr: wants {value: ...}, {values: [...]} or {min: ..., max: ...}"),
        ({"values": 3}, "values wants a list of at least one, not 3"),
        ({"values": []}, "values wants a list of at least one, not []"),
        ({"values": [[1, 2]]}, "a value is a number, a word, true, false or null"),
        ({"values": [1, 2], "probabilities": [0.9, 0.1]}, "probabilities are for W&B alone"),
        ({"min": "a", "max": 2}, "min wants a number, not a"),
        ({"min": "1e-5", "max": 2}, "min wants a number, not 1e-5 (YAML reads 1e-3 as a word"),
        ({"min": 0, "max": 1, "distribution": "log_uniform_values"}, "wants a min above 0, not 0"),
        ({"min": 0.5, "max": 2, "distribution": "int_uniform"}, "int_uniform wants whole numbers"),
        ({"min": 1, "max": 2, "distribution": "categorical"}, "wants other keys than these"),
        ({"min": 1, "max": 9, "q": 0}, "q is above 0, not 0"),
        ({"min": 1, "max": 9, "q": 10}, "no multiple of q 10 is in 1 to 9"),
    ],
)
def test_a_choice_that_makes_no_sense_is_refused(choice, message, tmp_path):
    content = {"method": "random", "metric": {"name": "x"}, "command": ["fit"]}
    path = write_yaml(tmp_path / "x.yaml", {**content, "parameters": {"lr": choice}})
    with pytest.raises(UserError, match=re.escape(message)):
        sweep_file.read(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("parameters", ["lr"], "parameters wants options and their choices"),
        ("parameters", {}, "has no parameters"),
        ("metric", "loss", "metric wants {name: ..., goal: minimize}, not loss"),
        ("metric", {"goal": "minimize"}, "metric wants a name"),
        ("run_cap", "many", "run_cap wants a whole number above 0, not many"),
        ("run_cap", 0, "run_cap wants a whole number above 0, not 0"),
        ("command", "fakerun", "command wants a list of words"),
        ("method", ["grid"], "method wants a word"),
        ("method", "hyperband", "method hyperband is none of bayes, random, grid"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(key, value, message, tmp_path):
    content = {"method": "random", "metric": {"name": "x"}, "command": ["fit"]}
    content |= {"parameters": {"lr": {"value": 1}}, key: value}
    with pytest.raises(UserError, match=re.escape(message)):
        sweep_file.read(write_yaml(tmp_path / "x.yaml", content))


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGTERM])
def test_a_crash_fails_a_trial_and_a_stop_stops_the_sweep(number, tmp_path):
    dies = [sys.executable, "-c", f"import os; os.kill(os.getpid(), {int(number)})"]
    chosen = sweep_file.Sweep("x", "random", "loss", False, {}, dies, sys.executable, None)
    if number == signal.SIGTERM:
        with pytest.raises(KeyboardInterrupt):
            sweep.measure(chosen, tmp_path, 0, {}, [])
    else:
        assert sweep.measure(chosen, tmp_path, 0, {}, []) is None
        assert sweep.last_line(tmp_path / "trial_0" / "log.txt") == f"ended by {number.name}"


def test_a_trial_that_saved_and_ended_when_asked_to_is_not_finished(tmp_path):
    says = [sys.executable, "-c", "import sys; print(sys.argv[1])"]
    for said, stops in ((ASKED_TO_STOP, True), ("trained", False)):
        chosen = sweep_file.Sweep(
            "x", "random", "loss", False, {}, [*says, said], sys.executable, None
        )
        if stops:
            with pytest.raises(KeyboardInterrupt):
                sweep.measure(chosen, tmp_path, 0, {}, [])
        else:  # what the log of a trial says from before is of no matter
            assert sweep.measure(chosen, tmp_path, 0, {}, []) is None


#: A trial that ends well when it is asked to.
PATIENT = """
import pathlib, signal, sys, time
def end(*_):
    pathlib.Path("ended").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
pathlib.Path("waiting").touch()
time.sleep(60)
"""
#: A sweep of it.
SWEEPING = """
import pathlib, sys
from handrec.cli import experiments, sweep, sweep_file
trial = [sys.executable, "-c", pathlib.Path("patient.py").read_text()]
chosen = sweep_file.Sweep("x", "random", "loss", False, {}, trial, sys.executable, None)
try:
    sweep.measure(chosen, pathlib.Path(), 0, {}, [])
except KeyboardInterrupt:
    sys.exit(7)
"""


def appears(name, seconds=60):
    deadline = time.monotonic() + seconds
    while not Path(name).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return Path(name).exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_training_is_left_by_a_sweep_that_is_stopped(number, tmp_path, monkeypatch):
    if number == signal.SIGKILL and sys.platform != "linux":
        pytest.skip("the system tells nobody that its parent was killed")
    monkeypatch.chdir(tmp_path)
    Path("patient.py").write_text(PATIENT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", SWEEPING], env=environment)
    assert appears("waiting")
    process.send_signal(number)
    assert process.wait(60) == (7 if number == signal.SIGTERM else -signal.SIGKILL)
    assert appears("ended")


#: In the place of a training: logs a metric that is known of its option.
FAKE = """
import pathlib, sys
options = dict(word[2:].split("=", 1) for word in sys.argv[1:])
lr = options["lr"]
if lr == "stop":
    sys.exit(130 if not pathlib.Path("again").exists() else 0)
run = pathlib.Path("lightning_logs", options["name"], "version_0")
run.mkdir(parents=True)
value = {"bad": "nan", "worse": "inf"}.get(lr) or str((float(lr) - 3) ** 2)
(run / "metrics.csv").write_text(f"loss,step\\n9,0\\n,1\\n{value},2\\n")
if "seen" in options:
    with open("seen", "a") as file:
        file.write(options["seen"])
"""


@pytest.fixture
def begin(workspace):
    """Write a sweep file `fake` of one option, lr; run it."""
    (workspace / "fake.py").write_text(FAKE)

    def run(choice, *args, method="random", **more):
        content = {"program": sys.executable, "method": method, "metric": {"name": "loss"}}
        content |= {"parameters": {"lr": choice}, **more}
        content |= {"command": ["${program}", str(workspace / "fake.py"), "${args}"]}
        write_yaml(workspace / "experiments" / "sweeps" / "fake.yaml", content)
        return main(["sweep", "fake", *args])

    return run


RESULTS = Path("lightning_logs", "sweeps", "fake")


def results():
    """Return a sweep's table: number of the trial, metric, lr."""
    with (RESULTS / "results.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["trial", "loss", "lr"]
    return [(int(trial), float(loss), lr) for trial, loss, lr in rows]


def test_a_grid_is_run_to_its_end(begin, capsys):
    assert begin({"values": [5, 3, 4]}, method="grid") == 0
    assert [row[1:] for row in results()] == [(0.0, "3"), (1.0, "4"), (4.0, "5")]
    assert "trial 3/3" in capsys.readouterr().out
    assert (RESULTS / "results.png").read_bytes().startswith(b"\x89PNG")
    assert begin({"values": [5, 3, 4]}, method="grid") == 0  # nothing is left
    assert "trial 1/3" not in capsys.readouterr().out


def test_a_metric_that_is_not_finite_fails_its_trial(begin, capsys):
    assert begin({"values": ["bad", 3, "worse"]}, method="grid") == 0
    assert [row[1:] for row in results()] == [(0.0, "3")]
    assert capsys.readouterr().out.count(": failed") == 2


def test_nothing_but_nan_ends_a_sweep_with_a_line(begin, capsys):
    assert begin({"values": ["bad"]}, "--trials=9") == 2
    assert "3 trials failed in a row: loss is nan at the end" in capsys.readouterr().err
    shutil.rmtree(RESULTS)
    assert begin({"values": ["bad"]}, method="grid") == 2
    assert "no trial gave a loss" in capsys.readouterr().err


def test_who_goes_on_gets_new_trials(begin):
    choice = {"min": 0.0, "max": 9.0}
    assert begin(choice, "--trials=2") == 0
    first = sorted(results())
    assert begin(choice, "--trials=4") == 0
    trials = sorted(results())
    assert trials[:2] == first
    assert len({lr for _, _, lr in trials}) == 4
    assert [loss for _, loss, _ in trials] == [
        pytest.approx((float(x[2]) - 3) ** 2) for x in trials
    ]
    ranked = [loss for _, loss, _ in results()]
    assert ranked == sorted(ranked)
    shutil.rmtree(RESULTS)
    assert begin(choice, "--trials=4") == 0  # the same as in two parts
    assert sorted(results()) == trials


def test_a_trial_that_was_stopped_is_run_again(begin):
    assert begin({"values": ["stop"]}, "--trials=1") == 130
    Path("again").touch()
    folder = RESULTS / "trial_1" / "version_0"  # of the fake program, which only ends well
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("loss,step\n2.5,0\n")
    assert begin({"values": ["stop"]}, "--trials=1") == 0
    assert results() == [(1, 2.5, "stop")]


def test_a_sweep_goes_on_with_its_own_choices_only(begin, refuse):
    assert begin({"values": [3]}, "--trials=1", "--", "--seen=a") == 0
    assert Path("seen").read_text() == "a"
    others = {
        "parameters ({'lr': {'values': [3]}}, now": [
            {"values": [3, 4]},
            "--trials=2",
            "--",
            "--seen=a",
        ],
        "options (--seen=a, now --seen=b)": [{"values": [3]}, "--trials=2", "--", "--seen=b"],
        "options (--seen=a, now none)": [{"values": [3]}, "--trials=2"],
    }
    for what, command in others.items():
        with pytest.raises(UserError, match=re.escape(what)) as error:
            begin_raising(begin, *command)
        assert f"move {RESULTS} away" in str(error.value)
    assert begin({"values": [3]}, "--trials=2", "--", "--seen=a") == 0
    assert Path("seen").read_text() == "aa"
    (RESULTS / "sweep.json").unlink()
    with pytest.raises(UserError, match="does not say what it was begun with"):
        begin_raising(begin, {"values": [3]}, "--", "--seen=a")


def begin_raising(begin, *args):
    """Run a sweep whose errors are raised."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("handrec.cli.main.mistake", lambda error: None)
        return begin(*args)


@pytest.mark.parametrize("order", [["fake", "--trials=1"], ["--trials", "1", "fake"]])
def test_options_after_two_dashes_go_to_the_training(begin, order):
    assert begin({"values": [3]}, "--trials=1") == 0
    shutil.rmtree(RESULTS)
    assert main(["sweep", *order, "--", "--seen=x"]) == 0
    assert Path("seen").read_text() == "x"


@pytest.mark.parametrize("option", ["--name=mine", "--trainer.default_root_dir=x", "--resume=1"])
def test_where_a_trial_lies_is_not_chosen(option, begin, capsys):
    assert begin({"values": [3]}, "--trials=1", "--", option) == 2
    assert f"{option}: a sweep names and places its trials itself" in capsys.readouterr().err
    assert not RESULTS.exists()


def test_no_trials_are_refused(begin, capsys):
    assert begin({"values": [3]}, "--trials=0") == 2
    assert "--trials is at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("how", "possible"),
    [
        ({"min": 0, "max": 11, "q": 5}, {0, 5, 10}),
        ({"min": 0.1, "max": 0.35, "q": 0.1, "distribution": "q_uniform"}, {0.1, 0.2, 0.3}),
        ({"min": 8, "max": 40, "q": 8, "distribution": "q_log_uniform_values"}, range(8, 41, 8)),
    ],
)
def test_values_are_multiples_of_q(how, possible):
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    assert {sweep.suggest(study.ask(), "x", how) for _ in range(60)} == set(possible)


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_make_does_not_drop_what_only_local_sweeps_take():
    for option in ("SCALE=cpu", "TRIALS=3", "DATA=ho3d_v3", "ARGS=--seed_everything=1"):
        done = make("need-sweep", "SWEEP=handmim", option)
        assert done.returncode != 0
        assert "go with LOCAL=1" in done.stdout
        assert make("need-sweep", "SWEEP=handmim", option, "LOCAL=1").returncode == 0
