"""Every sweep file: a command that W&B's agent would run too, and that parses."""

import signal
import sys

import pytest
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from handrec.callbacks.safety import ASKED_TO_STOP
from handrec.cli import sweep, sweep_file
from handrec.cli.main import main
from handrec.errors import UserError
from tests.cli.conftest import REPOSITORY, write_yaml

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
    ],
)
def test_a_choice_that_makes_no_sense_is_refused(choice, message, tmp_path):
    content = {"method": "random", "metric": {"name": "x"}, "command": [], "parameters": {}}
    path = write_yaml(tmp_path / "x.yaml", {**content, "parameters": {"lr": choice}})
    with pytest.raises(UserError, match=message):
        sweep_file.read(path)


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
