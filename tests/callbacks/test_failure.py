"""The dump of a failed step is of that step, and what cannot be written is told."""

import json

import pytest
import pytorch_lightning as pl
import torch
from safetensors import SafetensorError

from handrec.callbacks import failure
from handrec.types import HandBatch
from tests.cli.dummies import DummyMethod, Part


class Late:
    """A copy that has arrived when it is asked for the second time, as of a GPU."""

    def __init__(self):
        self.asked = 0

    def query(self):
        self.asked += 1
        return self.asked > 1


def batch(number):
    """Return a batch of one sample of that number."""
    shapes = {
        "image": (3, 8, 8), "intrinsics": (3, 3), "keypoints_2d": (21, 2), "confidence": (21,),
        "joints_3d": (21, 3), "vertices": (5, 3), "pose": (16, 3, 3), "betas": (10,),
        "translation": (3,), "mask": (1, 8, 8), "visibility": (21,), "crop_to_image": (3, 3),
    }  # fmt: skip
    columns = {name: torch.zeros(1, *shapes.get(name, ())) for name in HandBatch._fields}
    whole = torch.tensor([number])
    return HandBatch(**(columns | {"sample_id": whole, "sequence": whole, "frame": whole}))


def broken_off(folder):
    """Have a method fail a step after its loss; return what is said of it."""
    method = DummyMethod(Part())
    method.last_batch = batch(70)
    method.watch.note({"photo": torch.tensor(torch.nan)}, method.last_batch, 7)
    method.watch._looks[0] = method.watch._looks[0]._replace(arrived=Late())
    method.watch.check()  # it has not arrived
    method.last_batch = batch(80)
    with pytest.raises(FloatingPointError, match="photo") as error:
        method.watch.check()
    dump = failure.FailureDump()
    dump._run = folder
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    dump.on_exception(trainer, method, error.value)
    return error.value.__notes__[0]


def test_a_loss_that_is_looked_at_late_is_dumped_with_its_own_batch(tmp_path):
    assert broken_off(tmp_path) == f"at step 7, samples 70 (look at {tmp_path}/failed/step_7)"
    told = json.loads((tmp_path / "failed" / "step_7" / "failure.json").read_text())
    assert told["step"] == 7
    assert told["sample_ids"] == [70]


def test_tensors_that_cannot_be_written_are_told(tmp_path, monkeypatch):
    def full(*_):
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(failure, "save_file", full)
    said = broken_off(tmp_path)
    assert said.startswith("at step 7, samples 70 (cannot write ")
    assert said.endswith("step_7: I/O error: No space left on device)")
