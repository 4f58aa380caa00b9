"""Trains with compiled networks."""

import pytorch_lightning as pl
import torch

from handrec.models.compiling import compile_networks


class Compiled(pl.Callback):
    """Compiles a method's networks for its training steps.

    Validations run as evaluations do, not compiled: their last batches have other shapes.

    Args:
        backend: of ``torch.compile``.
    """

    def __init__(self, backend: str = "inductor") -> None:
        self.backend = backend

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Compile before a strategy wraps the method."""
        if stage == "fit":
            compile_networks(pl_module, self.backend)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Call the networks as they were."""
        torch.compiler.set_stance("force_eager")

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Leave nothing behind."""
        torch.compiler.set_stance("default")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on compiled."""
        torch.compiler.set_stance("default")
