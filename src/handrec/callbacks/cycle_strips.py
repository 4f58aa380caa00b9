"""Strips of CycleHand's flow, written while it trains."""

from typing import Any

import pytorch_lightning as pl
import torch

from handrec.callbacks.pictures import keep_picture
from handrec.data.boxes import Side
from handrec.data.photos import Photos
from handrec.errors import UserError, positive
from handrec.methods.cycle_flow import pick_batch
from handrec.methods.cyclehand import CycleHand
from handrec.types import HandBatch
from handrec.viz.drawing import Picture
from handrec.viz.strips import cycle_strip

#: Of the turns and looks of all strips.
_SEED = 0


class CycleStrips(pl.Callback):
    """Writes ``strips/epoch_<n>.png`` into the run, and logs it to loggers that take pictures.

    The same pictures every time (others once a training is gone on with), spread over the first
    batch: of a mixture, labelled and unlabelled ones. Photos of yours get a strip of their own,
    ``strips/photos_<n>.png``.

    Args:
        every: epochs from one strip to the next; the last epoch also has one.
        hands: in a strip, at most.
        photos: image or folder of photos, never trained on; None for none.
        boxes: around their hands, see :class:`~handrec.data.photos.Photos`; without, each photo is
            the crop of one hand.
        side: of the photos' hands where no box says it.
    """

    def __init__(
        self,
        every: int = 1,
        hands: int = 6,
        photos: str | None = None,
        boxes: str | None = None,
        side: Side = "right",
    ) -> None:
        positive(self, every=every, hands=hands)
        self.every, self.hands = every, hands
        self.photos, self.boxes, self.side = photos, boxes, side
        self._batches: dict[str, HandBatch] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse before the training what could be drawn only after it."""
        if stage == "fit" and not isinstance(pl_module, CycleHand):
            raise UserError(f"CycleStrips draws CycleHand, not {type(pl_module).__name__}")
        if stage == "fit" and self.photos is not None:
            Photos(self.photos, boxes=self.boxes, side=self.side).setup("predict")

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: HandBatch,
        batch_idx: int,
    ) -> None:
        """Keep some pictures; phase 1 has no cycle to show."""
        assert isinstance(pl_module, CycleHand)
        if self._batches or not trainer.is_global_zero or pl_module.phase == "base":
            return
        count, device = len(batch.image), batch.image.device
        rows = torch.linspace(0, count - 1, min(self.hands, count)).round().long()
        self._batches["epoch"] = pick_batch(batch, rows.to(device))
        if self.photos is not None:
            size = batch.image.shape[-1]
            shown = read_photos(self.photos, self.boxes, size, self.hands, self.side)
            self._batches["photos"] = HandBatch(*(field.to(device) for field in shown))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw a strip."""
        epoch, last = trainer.current_epoch, trainer.current_epoch + 1 == trainer.max_epochs
        if epoch % self.every and not last:
            return
        assert isinstance(pl_module, CycleHand)
        for name, batch in self._batches.items():  # of the first process
            with torch.compiler.set_stance("force_eager"):  # six pictures, and in evaluation
                picture = draw_strip(pl_module, batch)
            keep_picture(trainer, "strips", name, picture)


def read_photos(
    source: str, boxes: str | None, size: int, count: int, side: Side = "right"
) -> HandBatch:
    """Return the first hands of photos as a batch without labels.

    Args:
        source: image or folder.
        boxes: around the hands, JSON file or None.
        size: of the crops, pixels.
        count: of hands, at most.
        side: of hands whose side no box names.
    """
    photos = Photos(source, boxes=boxes, side=side, image_size=size, batch_size=count)
    photos.setup("predict")
    batch: HandBatch = next(iter(photos.predict_dataloader()))
    return batch


@torch.no_grad()
def draw_strip(method: CycleHand, batch: HandBatch) -> Picture:
    """Return a strip of a batch's pictures; the method is left as it was."""
    training, device = method.training, batch.image.device
    method.eval()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(_SEED)
        sight = method.see(batch)
        looks = method.texture(sight.features)
        rows = torch.arange(len(batch.image), device=batch.image.device)
        cycle = method.cycle(batch, sight, looks, rows)
        source = pick_batch(batch, cycle.rows)
        drawn = method.draw(cycle.first, looks, source)
    method.train(training)
    return cycle_strip(batch, cycle, drawn, method.hand.faces, method.rasterizer)
