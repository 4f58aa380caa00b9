"""What every method shares: reconstruct, validate, hand over its predictions."""

from abc import ABC, abstractmethod
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor

from handrec.data.sampler import seed_step
from handrec.errors import UserError
from handrec.hand.base import HandModel
from handrec.methods.watch import Watch, refuse_broken_weights
from handrec.metrics.hand import AREAS, LENGTHS, HandMetrics
from handrec.metrics.keypoints import KEYPOINTS
from handrec.models.joint_norm import JointBatchNorm
from handrec.types import HandBatch, HandPrediction


class Method(pl.LightningModule, ABC):
    """Anything that trains on batches of hands, pre-training included.

    Attributes:
        after_fit: what to type after a training, ``{name}`` being the experiment.
        after_test: what to type after an evaluation; empty for nothing.
        last_batch: that the training is at, to look at if it fails.
        validated: what a validation logs under ``val/``: one of it chooses the best checkpoint.
            Empty if it is not known before; then a mistyped name is found after an epoch.
    """

    after_fit = "make eval EXP={name}"
    after_test = ""
    last_batch: Any = None
    validated: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.watch = Watch()

    @property
    def goes_on(self) -> bool:
        """Whether a checkpoint is loaded: what a training starts from is then not read again.

        It may be gone.
        """
        return getattr(self.trainer, "ckpt_path", None) is not None

    def setup(self, stage: str) -> None:
        """Refuse endless trainings; have several processes learn what one would."""
        ends = (getattr(self.trainer, name, None) for name in ("max_epochs", "max_steps"))
        if stage == "fit" and all(end == -1 for end in ends):
            raise UserError(
                "rates follow the share of the training that is done, so its end must be known:"
                " --trainer.max_epochs or --trainer.max_steps; --safety.minutes saves in between"
            )
        strategy = self.trainer.strategy
        if stage != "fit" or not isinstance(strategy, DDPStrategy):
            return
        # A term may leave a part of the network out, from some step on or before it.
        strategy._ddp_kwargs.setdefault("find_unused_parameters", True)
        # Buffers are equal without it; in validation processes have unequally many batches.
        strategy._ddp_kwargs.setdefault("broadcast_buffers", False)
        strategy._layer_sync = JointBatchNorm(strategy.root_device.type)

    def on_fit_start(self) -> None:
        """Put layers into training as the method wants it: Lightning leaves them as they are."""
        self.train()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed what the step draws: a resumed training drops, masks and cuts as it would have."""
        self.watch.check()
        self.last_batch = batch
        seed_step(self.trainer, stage=1)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take the step and let go of the gradients: the next forward pass has their memory.

        Lightning frees them only after that pass.
        """
        super().optimizer_step(*args, **kwargs)
        self.zero_grad()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the last good checkpoint: what is not finite is not written."""
        self.watch.check(wait=True)
        refuse_broken_weights(self.named_parameters())

    def log_losses(self, terms: dict[str, Tensor], loss: Tensor) -> None:
        """Log a step's loss terms and their weighted sum under ``train/`` when loggers look.

        Lightning's bookkeeping of every value in every step would cost a tenth of a step on CPUs.
        """
        if loss.is_cuda:
            self.watch.note(terms, self.last_batch, self.global_step)
        trainer: Any = self.trainer  # its loggers' side is untyped
        if (self.global_step + 1) % trainer.log_every_n_steps == 0:
            self.log_dict({f"train/{name}": term.detach() for name, term in terms.items()})
            self.log("train/loss", loss.detach(), prog_bar=True)


class HandMethod(Method):
    """A way of learning hand reconstruction.

    A method implements ``reconstruct``, ``training_step`` and ``configure_optimizers``, and calls
    ``self.save_hyperparameters()`` in its constructor, so that a checkpoint rebuilds it. Testing
    and prediction hand each batch's ``HandPrediction`` to the callbacks.

    Attributes:
        hand: the hand model whose topology the method predicts.
    """

    hand: HandModel
    validated = (*LENGTHS, *AREAS, *KEYPOINTS)
    after_test = "make predict EXP={name} INPUT=<image or folder>"

    def __init__(self) -> None:
        super().__init__()
        self.validation_metrics = HandMetrics(f_scores=False, warn=False)

    @abstractmethod
    def reconstruct(self, batch: HandBatch) -> HandPrediction:
        """Return the hands of a batch from its images and intrinsics alone."""

    def setup(self, stage: str) -> None:
        """Refuse to learn from labels on another mesh than the method's."""
        super().setup(stage)
        drawn = getattr(getattr(self.trainer, "datamodule", None), "hand", None)
        if (
            stage == "fit"
            and isinstance(drawn, HandModel)
            and not torch.equal(drawn.faces.cpu(), self.hand.faces.cpu())
        ):
            names = f"{type(drawn).__name__}, the method's {type(self.hand).__name__}"
            raise UserError(
                f"the data's hand is {names}:"
                " give --data.init_args.hand and --model.init_args.hand the same"
            )

    def validation_step(self, batch: HandBatch, batch_idx: int) -> None:
        """Measure the error of a batch."""
        self.validation_metrics.update(self.reconstruct(batch), batch)

    def on_validation_epoch_end(self) -> None:
        """Log the errors of the split under ``val/``."""
        figures = self.validation_metrics.compute()
        # Equal on all processes already; sync_dist says so to Lightning.
        named = {f"val/{name}": figure for name, figure in figures.items()}
        self.log_dict(named, sync_dist=True)
        shown = figures["pa_mpvpe"]
        self.log("val/pa_mpvpe_mm", shown, prog_bar=True, logger=False, sync_dist=True)
        self.validation_metrics.reset()

    # Lightning asks callbacks about the output only, and takes any.
    def test_step(  # type: ignore[override]
        self, batch: HandBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> HandPrediction:
        """Return the hands of a batch, for the evaluation's callbacks."""
        return self.reconstruct(batch)

    def predict_step(self, batch: HandBatch, batch_idx: int) -> HandPrediction:
        """Return the hands of a batch, for the prediction's callbacks."""
        return self.reconstruct(batch)


def want_meshes(data: Any, method: str) -> None:
    """Refuse data that were told to bring no meshes: their labels cannot be drawn.

    Args:
        data: module of a training; None if there is none.
        method: that draws them, for the message.
    """
    if getattr(data, "hand", ...) is None:
        raise UserError(f"data.hand is null, and {method} draws the labels' hands: give it a hand")


def want_keypoints(data: Any, method: str) -> None:
    """Refuse data without joints: every loss would be 0, and a training of nothing end well.

    Sets with 3D labels have their projections, so 2D keypoints tell.

    Args:
        data: module of a training; None if there is none.
        method: that learns from joints, for the message.

    Raises:
        UserError: says where to get some, and what learns without.
    """
    if not getattr(data, "has_keypoints", True):
        raise UserError(
            f"{data.name} has no 2D keypoints, and {method} learns from joints: `handrec data"
            " keypoints` finds some in photos and videos for S2HAND, then DATA=coco_hands (with a"
            " detector's own file DATA=detected); pictures alone are for EXP=handmim_pretrain"
        )
