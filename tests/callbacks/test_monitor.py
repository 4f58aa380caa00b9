"""Figures of a training whose clock the test moves: what takes how long is exact."""

import csv
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.profilers import SimpleProfiler
from torch import nn
from torch.utils.data import DataLoader, Dataset

from handrec.callbacks import monitor
from handrec.callbacks.actions import Overheard, stage_of
from handrec.callbacks.monitor import Monitor, rows_of

ROWS, BATCH = 16, 4
SECONDS = {"data": 3.0, "draw": 1.0, "step": 4.0, "validation": 1000.0}


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(monitor, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


class Slow(Dataset):
    """Rows of which a whole batch takes its time."""

    def __init__(self, clock, seconds):
        self.clock, self.seconds = clock, seconds

    def __len__(self):
        return ROWS

    def __getitem__(self, row):
        self.clock.now += self.seconds / BATCH
        return torch.full((3,), float(row))


class Regression(pl.LightningModule):
    def __init__(self, clock):
        super().__init__()
        self.clock, self.layer, self.norms = clock, nn.Linear(3, 1), []

    def on_after_batch_transfer(self, batch, dataloader_idx):
        self.clock.now += SECONDS["draw"]
        return batch

    def training_step(self, batch, batch_idx):
        self.clock.now += SECONDS["step"]
        return self.layer(batch).square().mean()

    def on_after_backward(self):
        squares = [float(p.grad.double().square().sum()) for p in self.parameters()]
        self.norms.append(sum(squares) ** 0.5)

    def validation_step(self, batch, batch_idx):
        self.clock.now += SECONDS["validation"]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-4)


def train(clock, folder, **options):
    method = Regression(clock)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=2, log_every_n_steps=2, val_check_interval=1,
        num_sanity_val_steps=0, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, logger=CSVLogger(folder), callbacks=[Monitor()], **options,
    )  # fmt: skip
    loaders = (DataLoader(Slow(clock, s), BATCH) for s in (SECONDS["data"], 50.0))
    trainer.fit(method, *loaders)
    with open(f"{trainer.log_dir}/metrics.csv", newline="") as file:
        rows = [{key: float(v) for key, v in row.items() if v} for row in csv.DictReader(file)]
    return method, trainer, rows


def test_shares_and_throughput_of_a_slow_loader(clock, tmp_path):
    _, trainer, rows = train(clock, tmp_path)
    figures = [row for row in rows if "speed/data_wait" in row]
    assert len(figures) == 4  # every second of eight steps
    for row in figures:  # of the training's seconds alone: validations in between do not count
        assert row["speed/data_wait"] == pytest.approx(3 / 8)
        assert row["speed/draw"] == pytest.approx(1 / 8)
        assert row["speed/samples_per_s"] == pytest.approx(BATCH / 8)
        assert "speed/gpu_memory_gb" not in row
    assert not isinstance(trainer.profiler, Overheard)


def test_gradient_norm_before_clipping(clock, tmp_path):
    method, _, rows = train(clock, tmp_path, gradient_clip_val=1e-3)
    logged = [row["train/gradient_norm"] for row in rows if "train/gradient_norm" in row]
    assert logged == pytest.approx(method.norms[1::2])
    assert min(logged) > 1e-3


def test_accumulated_batches_are_logged_once_a_step(clock, tmp_path):
    _, _, rows = train(clock, tmp_path, accumulate_grad_batches=2)
    speeds = [row["speed/samples_per_s"] for row in rows if "speed/samples_per_s" in row]
    assert speeds == pytest.approx([BATCH / 8] * 2)


def test_the_users_profiler_goes_on(clock, tmp_path):
    profiler = SimpleProfiler()
    train(clock, tmp_path, profiler=profiler)
    durations = profiler.recorded_durations["[_TrainingEpochLoop].train_dataloader_next"]
    assert len(durations) >= 2 * ROWS // BATCH


def test_rows_of_whatever_a_loader_yields():
    assert rows_of({"scale": torch.tensor(1.0), "rows": [torch.zeros(5, 2)]}) == 5
    assert rows_of("nothing") == 0


def test_evaluations_are_no_stages_of_training():
    assert stage_of("[_EvaluationLoop].val_next") is None
    assert stage_of("[Strategy]DDPStrategy.validation_step") is None
    assert stage_of("[Strategy]DDPStrategy.training_step") == "forward"
