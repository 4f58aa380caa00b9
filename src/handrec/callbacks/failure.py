"""What a training that broke off leaves to look at."""

import json
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from handrec.methods.base import Method
from handrec.types import HandBatch
from handrec.viz.drawing import to_picture
from handrec.viz.report import encode_png

#: How many of a batch's pictures are shown, at most.
SHOWN = 16


class FailureDump(pl.Callback):
    """Writes the batch at which a loss stopped being finite: pictures, tensors, ids.

    Files go to ``<run directory>/failed/step_<n>/``: ``batch.png``, ``batch.safetensors`` and
    ``failure.json``. On a GPU the loss is looked at a step later; ``methods.watch`` keeps its batch
    until then.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ask where the run lies: all processes have to, and one may fail alone."""
        self._run = Path(trainer.log_dir or trainer.default_root_dir)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Write the files, and say so in the error."""
        if not isinstance(exception, FloatingPointError) or not isinstance(pl_module, Method):
            return
        batch, step = pl_module.watch.failed or (pl_module.last_batch, trainer.global_step)
        where = f"at step {step}"
        if not isinstance(batch, HandBatch):
            exception.add_note(where)
            return
        ids = batch.sample_id.tolist()
        where += f", samples {', '.join(map(str, ids[:8]))}{', ...' if len(ids) > 8 else ''}"
        process = f"_process_{trainer.global_rank}" if trainer.world_size > 1 else ""
        folder = self._run / "failed" / f"step_{step}{process}"
        what = {"error": str(exception), "step": step, "sample_ids": ids}
        try:
            dump(folder, batch, what)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            exception.add_note(f"{where} (cannot write {folder}: {reason})")
        else:
            exception.add_note(f"{where} (look at {folder})")


def dump(folder: Path, batch: HandBatch, what: dict[str, Any]) -> None:
    """Write a batch down."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = {name: column.detach().cpu().clone() for name, column in batch._asdict().items()}
    finite = {name: bool(column.isfinite().all()) for name, column in columns.items()}
    content = what | {"not_finite_in_batch": [name for name in finite if not finite[name]]}
    (folder / "failure.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    save_file(columns, folder / "batch.safetensors")
    (folder / "batch.png").write_bytes(encode_png(to_picture(tiled(columns["image"][:SHOWN]))))


def tiled(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "3 y x"]:
    """Return pictures side by side, four in a row."""
    images = images.float().nan_to_num(1.0, 1.0, 0.0).clamp(0, 1)
    missing = -len(images) % min(4, len(images))
    images = torch.cat([images, images.new_ones(missing, *images.shape[1:])])
    rows = images.unflatten(0, (-1, min(4, len(images))))
    return torch.cat([torch.cat(list(row), dim=-1) for row in rows], dim=-2)
