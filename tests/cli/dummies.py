"""The smallest method, data module and prediction writer the command line can drive."""

from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from handrec.data.datamodule import HandDataModule
from handrec.errors import UserError
from handrec.methods.base import HandMethod


@dataclass(frozen=True)
class DummyWeights:
    photo: float = 1.0
    silhouette: float = 0.1


class Part(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.layer = nn.Linear(3, width)


class DummyMethod(HandMethod):
    """Regresses the mean of three numbers."""

    def __init__(
        self,
        part: Part,
        lr: float = 0.1,
        weights: DummyWeights = DummyWeights(),
        fail: str = "",
    ) -> None:
        super().__init__()
        if fail:
            raise UserError(fail)
        self.save_hyperparameters()
        self.part = part
        self.readout = nn.Linear(part.layer.out_features, 1)
        self.lr = lr
        self.weights = weights

    def reconstruct(self, batch):
        raise NotImplementedError

    def error(self, batch):
        values = batch[0]
        return (
            (self.readout(self.part.layer(values)) - values.mean(1, keepdim=True)).square().mean()
        )

    def training_step(self, batch, batch_idx):
        loss = self.weights.photo * self.error(batch)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/pa_mpvpe", 1000 * self.error(batch), prog_bar=True)

    def on_validation_epoch_end(self):
        pass

    def test_step(self, batch, batch_idx):
        self.log("test/photo_weight", self.weights.photo)
        self.log("test/pa_mpvpe", 1000 * self.error(batch))

    def predict_step(self, batch, batch_idx):
        return batch[0].mean(1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class OtherMethod(DummyMethod):
    pass


class DrawingMethod(DummyMethod):
    """Has something that draws."""

    def __init__(self, part: Part, rasterizer: str = "warp") -> None:
        super().__init__(part)


class DummyData(HandDataModule):
    def __init__(self, size: int = 8, batch_size: int = 4, name: str = "dummy") -> None:
        super().__init__()
        self.size, self.batch_size, self.name = size, batch_size, name

    def _loader(self):
        generator = torch.Generator().manual_seed(0)
        values = torch.rand(self.size, 3, generator=generator)
        return DataLoader(TensorDataset(values), batch_size=self.batch_size)

    train_dataloader = val_dataloader = test_dataloader = predict_dataloader = _loader


class DummyPhotos(DummyData):
    def __init__(self, input: Path, boxes: Path | None = None, batch_size: int = 4) -> None:  # noqa: A002
        super().__init__(3, batch_size, "photos")
        self.input, self.boxes = input, boxes


class DummyWriter(pl.Callback):
    def __init__(self, out: Path = Path("predictions")) -> None:
        self.out = Path(out)

    def on_predict_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0):
        self.out.mkdir(parents=True, exist_ok=True)
        for index, value in enumerate(outputs.tolist()):
            (self.out / f"{batch_idx}_{index}.json").write_text(str(value))
