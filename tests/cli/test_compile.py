"""Compiled networks train as the others do, and leave the same files."""

import csv
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch._dynamo.utils import counters

from handrec.callbacks.compiling import Compiled
from handrec.cli.main import main
from tests.cli.test_resume import (  # noqa: F401
    METHODS,
    SHORT,
    SMALL,
    cache,
    folder,
)


def losses(name, version):
    path = Path("lightning_logs", name, f"version_{version}", "metrics.csv")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {row["step"]: row["train/loss"] for row in rows if row["train/loss"]}


def test_a_compiled_and_resumed_training_logs_what_a_plain_one_does(folder, cache):  # noqa: F811
    """By the bit; that its weights are the same, too, ``test_resume`` says of every experiment."""
    name = "handmim_pretrain"
    torch._dynamo.reset()
    counters.clear()
    command = ["fit", f"--exp={name}", *SHORT, *SMALL["plain"], cache, *METHODS[name]]
    assert main(command) == 0
    assert counters["stats"]["unique_graphs"] == 0
    stop = ["--trainer.callbacks+=tests.cli.test_resume.Interruption"]
    with pytest.raises(RuntimeError, match="killed"):
        main([*command, "--compile=eager", *stop, "--trainer.callbacks.step=3"])
    assert main([*command, "--compile=eager", "--resume=1"]) == 0
    assert counters["stats"]["unique_graphs"] >= 2
    assert len(losses(name, 0)) == 6
    assert losses(name, 1) == losses(name, 0)


def test_a_validation_is_not_compiled():
    torch._dynamo.reset()
    counters.clear()
    layer = torch.nn.Linear(2, 2)
    layer.compile(backend="eager")
    callback, nothing = Compiled("eager"), (pl.Trainer(logger=False), pl.LightningModule())
    callback.on_validation_start(*nothing)
    layer(torch.zeros(3, 2))
    assert counters["stats"]["unique_graphs"] == 0
    callback.on_validation_end(*nothing)
    layer(torch.zeros(3, 2))
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("maybe", "--compile=maybe: give true, or one of"),
        ("true", "cannot work here: InvalidCxxCompiler: No working C++ compiler found"),
    ],
)
def test_what_cannot_compile_is_refused_in_one_line(given, said, folder, capsys):  # noqa: F811
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        assert main(["fit", "--exp=s2hand_keypoints", *SHORT, f"--compile={given}"]) == 2
    errors = capsys.readouterr().err
    assert errors.count("handrec: error:") == 1
    assert said in errors.strip().splitlines()[-1]
    assert "Traceback" not in errors
