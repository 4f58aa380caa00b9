"""Pictures of a training: what a method makes of the same few images after every validation."""

from pathlib import Path
from typing import Any

import cv2
import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn

from handrec.errors import positive
from handrec.types import HandBatch
from handrec.viz.drawing import Picture
from handrec.viz.training import draw_training

#: Of what is drawn for a picture, such as masks: the same every time.
_SEED = 0


class Pictures(pl.Callback):
    """Writes ``pictures/epoch_<n>.png`` into the run, and logs it to loggers that take pictures.

    What is on them: ``viz.training.draw_training``. The same images every time, spread over the
    first batch of the validation.

    Args:
        every: validations from one picture to the next.
        hands: in a picture, at most.
    """

    def __init__(self, every: int = 1, hands: int = 6) -> None:
        positive(self, every=every, hands=hands)
        self.every, self.hands = every, hands
        self._batch: HandBatch | None = None
        self._validations = 0

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep some images."""
        training = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if self._batch is None and training and trainer.is_global_zero:
            count = len(batch.image)
            rows = torch.linspace(0, count - 1, min(self.hands, count)).round().long()
            self._batch = HandBatch(*(column[rows.to(column.device)] for column in batch))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw them."""
        if self._batch is None:
            return
        self._validations += 1
        if (self._validations - 1) % self.every:
            return
        picture = drawn(pl_module, self._batch)
        if picture is not None:
            keep_picture(trainer, "pictures", "epoch", picture)


@torch.no_grad()
def drawn(method: pl.LightningModule, batch: HandBatch) -> Picture | None:
    """Return a picture of a method; it and all random numbers are left as they were."""
    training, device = method.training, batch.image.device
    method.eval()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(_SEED)
        picture = draw_training(method, batch)
    method.train(training)
    return picture


def keep_picture(trainer: pl.Trainer, folder: str, name: str, picture: Picture) -> None:
    """Write ``<folder>/<name>_<epoch>.png`` into the run, and log it; the first process's only.

    Args:
        trainer: of the training.
        folder: in the run.
        name: of the picture.
        picture: to keep.
    """
    run = Path(trainer.loggers[0].log_dir or ".") if trainer.loggers else None
    if run is not None:
        path = run / folder / f"{name}_{trainer.current_epoch:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    for logger in trainer.loggers:
        log_image = getattr(logger, "log_image", None)
        if log_image is not None:
            log_image(f"{folder}/{name}", [picture], step=trainer.global_step)
