"""S2HAND's published stage before the fine-tuning: the 2D branch, from detected keypoints."""

from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor

from handrec.errors import not_negative, positive
from handrec.losses.hand import total
from handrec.losses.s2hand import length
from handrec.methods.base import Method, want_keypoints
from handrec.methods.s2hand import S2HANDWeights, adam, heatmap_terms, warn_of_projected
from handrec.models.keypoints import KeypointNetwork
from handrec.types import HandBatch

PUBLISHED = S2HANDWeights()


class S2HANDKeypoints(Method):
    """The 2D branch by itself.

    Args:
        keypoints: the 2D branch.
        weights: of which ``heatmaps`` and ``likelihood`` count.
        lr: peak learning rate.
        halvings: see :class:`~handrec.methods.s2hand.S2HAND`.
    """

    validated = ("keypoints_percent",)

    def __init__(
        self,
        keypoints: KeypointNetwork,
        weights: S2HANDWeights = PUBLISHED,
        lr: float = 1e-3,
        halvings: int = 5,
    ) -> None:
        super().__init__()
        positive(self, lr=lr)
        not_negative(self, halvings=halvings)
        self.save_hyperparameters()
        self.keypoints, self.weights = keypoints, weights
        self.lr, self.halvings = lr, halvings

    def setup(self, stage: str) -> None:
        """Refuse data without 2D keypoints; warn of those that come from 3D."""
        super().setup(stage)
        if stage == "fit":
            data = getattr(self.trainer, "datamodule", None)
            want_keypoints(data, "S2HAND")
            warn_of_projected(data)

    def training_step(self, batch: HandBatch, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        terms = heatmap_terms(self.keypoints.find(batch.image), batch, self.weights)
        loss = total(terms, self.weights)
        self.log_losses(terms, loss)
        return loss

    def validation_step(self, batch: HandBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log the mean distance to the given keypoints, per cent of the crop's side.

        NaN where not one is given: no error would be a perfect score.
        """
        found = self.keypoints.find(batch.image).keypoints[-1]
        distance = length(found - batch.keypoints_2d) / max(batch.camera.image_size)
        present = batch.confidence > 0
        # Each keypoint counts the same, on every process, and a batch without any not at all.
        count = int(present.sum())
        error = 100 * (distance * present).sum() / max(1, count)
        self.log("val/keypoints_percent", error, prog_bar=True, batch_size=count, sync_dist=True)

    test_step = validation_step

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return Adam with halvings, as S2HAND's."""
        return adam(self, self.lr, self.halvings)
