"""Strips of CycleHand's flow, written while it trains."""

from pathlib import Path
from typing import Any

import cv2
import pytorch_lightning as pl
import torch

from handrec.methods.cycle_flow import pick_batch
from handrec.methods.cyclehand import CycleHand
from handrec.types import HandBatch
from handrec.viz.drawing import Picture
from handrec.viz.strips import cycle_strip

#: Of the rows and turns of all strips.
_SEED = 0


class CycleStrips(pl.Callback):
    """Writes ``strips/epoch_<n>.png`` into the run, and logs it to loggers that take pictures.

    The same pictures every time, spread over the training's first batch: of a mixture, labelled
    and unlabelled ones.

    Args:
        every: epochs from one strip to the next; the last epoch also has one.
        hands: at most; the flow's share of them is drawn.
    """

    def __init__(self, every: int = 1, hands: int = 12) -> None:
        self.every = every
        self.hands = hands
        self._batch: HandBatch | None = None

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: HandBatch,
        batch_idx: int,
    ) -> None:
        """Keep some pictures."""
        if self._batch is None and trainer.is_global_zero:
            count = len(batch.image)
            rows = torch.linspace(0, count - 1, min(self.hands, count)).round().long()
            self._batch = pick_batch(batch, rows.to(batch.image.device))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw a strip."""
        epoch, last = trainer.current_epoch, trainer.current_epoch + 1 == trainer.max_epochs
        if self._batch is None or (epoch % self.every and not last):
            return
        assert isinstance(pl_module, CycleHand)
        picture = draw_strip(pl_module, self._batch)
        if trainer.log_dir is not None:
            path = Path(trainer.log_dir) / "strips" / f"epoch_{epoch:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        for logger in trainer.loggers:
            log_image = getattr(logger, "log_image", None)
            if log_image is not None:
                log_image("train/strip", [picture], step=trainer.global_step)


@torch.no_grad()
def draw_strip(method: CycleHand, batch: HandBatch) -> Picture:
    """Return a strip of some of a batch's pictures; the method is left as it was."""
    training = method.training
    method.eval()
    with torch.random.fork_rng():
        torch.manual_seed(_SEED)
        sight = method.see(batch)
        looks = method.texture(sight.features)
        cycle = method.cycle(batch, sight, looks, method.choose(len(batch.image)))
        source = pick_batch(batch, cycle.rows)
        drawn = method.draw(cycle.first, looks.rows(cycle.rows), source)
    method.train(training)
    return cycle_strip(batch, cycle, drawn, method.hand.faces, method.rasterizer)
