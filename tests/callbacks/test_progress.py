"""What a training prints: figures of labels that the data lacks are left out."""

from unittest.mock import MagicMock

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from handrec.callbacks.progress import ProgressLines
from handrec.callbacks.summary import best_rows


def test_figures_of_absent_labels_are_left_out(capsys, monkeypatch):
    figures = {"train/loss": 0.25, "val/probe": float("nan"), "val/loss": 2.0}
    lines = ProgressLines()
    monkeypatch.setattr(lines, "get_metrics", lambda *_: figures)
    trainer = MagicMock(pl.Trainer, global_step=2, estimated_stepping_batches=4, current_epoch=0)
    lines.on_train_epoch_end(trainer, MagicMock(pl.LightningModule))
    printed = capsys.readouterr().out
    assert "train/loss 0.25 · val/loss 2" in printed
    assert "nan" not in printed


@pytest.mark.parametrize(("first", "left"), [(0, "1 min 0 s left"), (60, "4 min 0 s left")])
def test_the_time_left_is_told_by_the_steps_of_this_call(first, left, capsys, monkeypatch):
    """Of 120 steps 80 are done after two minutes: all of them, or the last 20, by this call."""
    now = iter([0.0, 0.0, 120.0])
    monkeypatch.setattr("handrec.callbacks.progress.time.monotonic", lambda: next(now))
    lines = ProgressLines()
    trainer = MagicMock(pl.Trainer, estimated_stepping_batches=120, current_epoch=0)
    monkeypatch.setattr(lines, "get_metrics", lambda *_: {})
    trainer.global_step = first
    lines.on_train_start(trainer, MagicMock(pl.LightningModule))
    trainer.global_step = 80
    lines.on_train_epoch_end(trainer, MagicMock(pl.LightningModule))
    assert left in capsys.readouterr().out


@pytest.mark.parametrize(("score", "shown"), [(float("inf"), "x.ckpt"), (2.5, "val/p 2.5: x.ckpt")])
def test_the_best_of_absent_labels_has_no_figure(score, shown):
    callback = ModelCheckpoint(monitor="val/p")
    callback.best_model_path, callback.best_model_score = "x.ckpt", torch.tensor(score)
    trainer = MagicMock(pl.Trainer, checkpoint_callbacks=[callback])
    assert best_rows(trainer) == [("best", shown)]
