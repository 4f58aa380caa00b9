"""Which weights are kept as the best where the value that chooses them is NaN."""

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from handrec.callbacks.best import BestCheckpoint


class Logs(pl.LightningModule):
    """Logs given values, one after each epoch, whose number is its only weight."""

    def __init__(self, values):
        super().__init__()
        self.values = values
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, batch_idx):
        return 0 * self.weight

    def on_train_epoch_end(self):
        self.weight.data.fill_(float(self.current_epoch))

    def validation_step(self, batch, batch_idx):
        self.log("val/x", self.values[self.current_epoch])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


NAN = float("nan")


@pytest.mark.parametrize(
    ("values", "mode", "kept"),
    [
        ([NAN, NAN, NAN], "min", 2),
        ([NAN, 3.0, NAN, 4.0], "min", 1),
        ([3.0, NAN, 2.0, NAN], "min", 2),
        ([NAN, 3.0, 4.0, NAN], "max", 2),
    ],
)
def test_the_newest_are_kept_until_there_is_a_number(values, mode, kept, tmp_path):
    best = BestCheckpoint(tmp_path, "best", monitor="val/x", mode=mode)
    data = DataLoader(torch.zeros(1, 1))
    trainer = pl.Trainer(
        max_epochs=len(values), accelerator="cpu", logger=False, callbacks=[best],
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(Logs(values), data, data)
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["best.ckpt"]
    saved = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert saved["epoch"] == kept
    (key,) = saved["callbacks"]
    assert key.startswith("ModelCheckpoint{")
