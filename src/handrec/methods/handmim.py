"""HandMIM's regression stage: a ViT with a PyMAF head, trained with labels.

Z. Liu et al., "HandMIM: Pose-Aware Self-Supervised Learning for 3D Hand Mesh Estimation",
arXiv 2307.16061. Known from the abstract: a vanilla ViT, a PyMAF head after the tokens that
regresses mesh parameters. The losses and the recipe are our formulation (docs/methods/handmim.md).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor

from handrec.hand.base import HandModel
from handrec.losses.hand import (
    dense_loss,
    keypoints_2d_loss,
    local_points_loss,
    relative_points_loss,
    rotation_loss,
    shape_loss,
    total,
)
from handrec.methods.base import HandMethod, want_keypoints, want_meshes
from handrec.methods.optim import adamw_warmup_cosine, optimization
from handrec.methods.weights import Weights
from handrec.models.base import Backbone, Estimates, HeadFactory
from handrec.models.mechanics import Mechanics
from handrec.render.base import Rasterizer
from handrec.render.shading import render_positions
from handrec.types import HandBatch, HandPrediction


@dataclass(frozen=True)
class HandMIMWeights(Weights):
    """Weights of the losses; each is summed over the iterations, ``dense`` counts once.

    Attributes:
        vertices: L1, metres, relative to the wrist.
        joints: L1, metres, relative to the wrist.
        local: L1 of the vertices, metres, in the wrist's own frame: without it, while the global
            rotation is still wrong, curled fingers are the cheapest answer.
        keypoints: L1, half crops.
        rotations: squared difference of matrices.
        shape: squared difference of coefficients.
        dense: see ``losses.hand.dense_loss``.
        limits: of the last iteration's joints, see ``models.mechanics``; for data whose labels say
            little of them.
        penetration: of the last iteration's hands into themselves.
    """

    vertices: float = 20.0
    joints: float = 20.0
    local: float = 40.0
    keypoints: float = 2.0
    rotations: float = 20.0
    shape: float = 0.1
    dense: float = 5.0
    limits: float = 0.0
    penetration: float = 0.0


class HandMIM(HandMethod):
    """ViT + PyMAF regression of a hand mesh.

    Args:
        backbone: a ViT by default; any backbone works.
        head: builds the mesh head for the backbone and the hand.
        hand: the hand model.
        rasterizer: draws the targets of the dense supervision.
        weights: of the losses.
        lr: peak learning rate of head and last layer.
        weight_decay: of matrices.
        layer_decay: factor of the rate per backbone layer, towards the input.
        warmup: share of the training spent warming up.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: HeadFactory,
        hand: HandModel,
        rasterizer: Rasterizer,
        weights: HandMIMWeights = HandMIMWeights(),
        lr: float = 1e-4,
        weight_decay: float = 0.05,
        layer_decay: float = 1.0,
        warmup: float = 0.05,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.backbone = backbone
        self.hand = hand
        self.head = head(backbone, hand)
        self.rasterizer = rasterizer
        self.weights = weights
        self.mechanics = Mechanics(hand) if weights.limits or weights.penetration else None
        self.optimization = optimization(self, lr, weight_decay, layer_decay, warmup)
        self.warmup = warmup

    def setup(self, stage: str) -> None:
        """Refuse to train without labels."""
        super().setup(stage)
        if stage == "fit":
            data = getattr(self.trainer, "datamodule", None)
            want_keypoints(data, "HandMIM")
            want_meshes(data, "HandMIM")

    def estimate(self, batch: HandBatch) -> Estimates:
        """Return every iteration's hand and the dense map."""
        return self.head.regress(self.backbone.encode(batch.image), batch.camera)

    def reconstruct(self, batch: HandBatch) -> HandPrediction:
        """Return the last iteration's hands."""
        return self.estimate(batch).iterations[-1]

    def iterations(self, batch: HandBatch) -> list[HandPrediction]:
        """Return every iteration's hands; the report shows whether the error falls."""
        return self.estimate(batch).iterations

    def training_step(self, batch: HandBatch, batch_idx: int) -> Tensor:
        """Return the loss of a labelled batch."""
        estimates = self.estimate(batch)
        terms = label_terms(estimates, batch, self.hand, self.rasterizer)
        if self.mechanics is not None:
            terms |= self.mechanics.terms(estimates.iterations[-1])
        loss = total(terms, self.weights)
        self.log_losses(terms, loss)
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with layer decay; warm-up and cosine by step."""
        steps = int(self.trainer.estimated_stepping_batches)
        return adamw_warmup_cosine(
            self.backbone.model, [self.head], self.optimization, steps, self.warmup
        )


def label_terms(
    estimates: Estimates, batch: HandBatch, hand: HandModel, rasterizer: Rasterizer
) -> dict[str, Tensor]:
    """Return the losses by name, summed over the iterations, and that of the dense map."""
    per_iteration = [supervised_terms(hands, batch) for hands in estimates.iterations]
    terms = {
        name: torch.stack([terms[name] for terms in per_iteration]).sum()
        for name in per_iteration[0]
    }
    if estimates.dense is not None:
        terms["dense"] = dense_term(estimates.dense, batch, hand, rasterizer)
    return terms


def dense_term(
    dense: Float[Tensor, "b 4 h w"], batch: HandBatch, hand: HandModel, rasterizer: Rasterizer
) -> Float[Tensor, ""]:
    """Compare the dense map with the true mesh, drawn in the colours of its rest positions."""
    height, width = dense.shape[-2:]
    position, mask = render_positions(
        rasterizer, hand, batch.vertices, batch.camera, (height, width)
    )
    return dense_loss(dense.float(), position, mask, batch.has_vertices)


def supervised_terms(hand: HandPrediction, batch: HandBatch) -> dict[str, Tensor]:
    """Return the losses of one iteration by name."""
    root, true_root = hand.joints[:, 0], batch.joints_3d[:, 0]
    return {
        "vertices": relative_points_loss(
            hand.vertices, batch.vertices, root, true_root, batch.has_vertices
        ),
        "joints": relative_points_loss(
            hand.joints, batch.joints_3d, root, true_root, batch.has_joints_3d
        ),
        "local": local_points_loss(
            hand.vertices,
            batch.vertices,
            (root, hand.pose[:, 0]),
            (true_root, batch.pose[:, 0]),
            batch.has_pose * batch.has_vertices,
        ),
        "keypoints": keypoints_2d_loss(
            hand.keypoints_2d, batch.keypoints_2d, batch.confidence, batch.camera.image_size
        ),
        "rotations": rotation_loss(hand.pose, batch.pose, batch.has_pose),
        "shape": shape_loss(hand.betas, batch.betas, batch.has_pose),
    }
