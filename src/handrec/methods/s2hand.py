"""S2HAND: hand reconstruction learned from detected 2D keypoints and the images themselves.

Y. Chen et al., "Model-based 3D Hand Reconstruction via Self-Supervised Learning", CVPR 2021. What
is published, what is fixed and what is ours: docs/methods/s2hand.md. No 3D label and no true mask
is read in training; of a batch the losses see image, intrinsics, keypoints and confidences only.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytorch_lightning as pl
import torch
from jaxtyping import Float
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import BatchNorm1d
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Adam
from torchmetrics import MeanMetric

from handrec.errors import UserError, fraction, not_negative, one_of, positive
from handrec.hand.anatomy import rest_hand
from handrec.hand.base import HandModel
from handrec.losses import photometric, s2hand
from handrec.losses.hand import total
from handrec.losses.photometric import Laplacian
from handrec.methods.base import HandMethod, want_keypoints
from handrec.methods.loading import read_checkpoint
from handrec.methods.optim import fused, warmup_cosine
from handrec.methods.weights import Weights
from handrec.models.base import Backbone
from handrec.models.keypoints import Found, KeypointNetwork
from handrec.models.s2hand import RegressorFactory
from handrec.models.s2hand_appearance import Appearance, AppearanceFactory, draw_hand
from handrec.render.base import Rasterizer
from handrec.types import Camera, HandBatch, HandPrediction, Rendering

logger = logging.getLogger(__name__)


#: Of the joints, see :class:`S2HAND`.
Limits = Literal["anatomical", "mano_axis_angle"]


@dataclass(frozen=True)
class S2HANDWeights(Weights):
    """Weights of the losses, by default the published ones; a term of weight 0 is left out.

    Attributes:
        keypoints: pixels of a 224 crop, see ``losses.s2hand.keypoint_loss``.
        bones: directions on the image.
        heatmaps: pixels of a 224 crop; of the 2D branch.
        likelihood: of the detections under the 2D branch's heat maps; ours, 0 as published.
        consistency: pixels of a 224 crop, between the branches.
        limits: radians out of the joints' limits.
        scale: metres, of the middle finger's proximal phalanx.
        shape: squared coefficients.
        pixels: RGB, of the rendered hand's pixels.
        ssim: structural dissimilarity of the rendered hand's pixels.
        brightness: RGB, of the rendered hand's mean.
        texture: outliers among the colours of the texture.
        laplacian: metres.
    """

    keypoints: float = 1e-3
    bones: float = 0.1
    heatmaps: float = 1e-3
    likelihood: float = 0.0
    consistency: float = 2e-4
    limits: float = 0.1
    scale: float = 0.1
    shape: float = 1e-2
    pixels: float = 5e-3
    ssim: float = 1e-3
    brightness: float = 1e-3
    texture: float = 5e-3
    laplacian: float = 0.1


@dataclass(frozen=True)
class Ramp:
    """When the terms that compare pictures come in: before poses are sane they collapse the hand.

    Attributes:
        start: share of the training without them.
        end: share of the training from which on they have their full weight.
    """

    start: float = 0.1
    end: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end <= 1:
            raise UserError(f"a ramp needs 0 <= start <= end <= 1, not {self.start}, {self.end}")

    def at(self, progress: float) -> float:
        """Return the factor, 0 to 1, at a share of the training."""
        if progress >= self.end:
            return 1.0
        if progress <= self.start:
            return 0.0
        return (progress - self.start) / (self.end - self.start)


class Seen(NamedTuple):
    """What the branches say of a batch.

    Attributes:
        hand: of the 3D branch.
        found: of the 2D branch; None without one.
        appearance: texture and light; None without that head.
    """

    hand: HandPrediction
    found: Found | None
    appearance: Appearance | None


class S2HAND(HandMethod):
    """A regressor that learns from detections and pixels.

    Args:
        backbone: of the 3D branch.
        regressor: builds the 3D branch's heads.
        hand: the hand model.
        rasterizer: draws the hand for the photometric losses.
        appearance: builds texture and light; None leaves the photometric losses out.
        keypoints: the 2D branch; None leaves its losses and the consistency out.
        weights: of the losses.
        ramp: when the losses on pictures come in.
        limits: ``anatomical`` (twist, spread, bend in the joints' frames) or ``mano_axis_angle``
            (components of the axis-angle vectors, as in the public code).
        bone_length: of the middle finger's proximal phalanx, metres; 0.0282 as published for MANO,
            None for that of the hand model at rest.
        texture_gate: samples with a confidence below it have no photometric loss: 0.1 as published
            for FreiHAND, 0 for HO-3D.
        edges: whether outlines of the rendered hand pull on it, not only its shading.
        frozen_norm: whether batch normalisation keeps the statistics that it starts with: for a
            start that is trained, and batches of few pictures or of like ones.
        lr: peak learning rate.
        halvings: of the rate, evenly over the training: 5 as published for training end to end; 0
            takes a warm-up and a cosine instead, ours.
        shape_checkpoint: of a run of ``s2hand_shape``: backbone and regressor start from it.
        keypoints_checkpoint: of a run of ``s2hand_keypoints``: the 2D branch starts from it.
    """

    validated = (*HandMethod.validated, "keypoints_px")

    def __init__(
        self,
        backbone: Backbone,
        regressor: RegressorFactory,
        hand: HandModel,
        rasterizer: Rasterizer,
        appearance: AppearanceFactory | None = None,
        keypoints: KeypointNetwork | None = None,
        weights: S2HANDWeights = S2HANDWeights(),
        ramp: Ramp = Ramp(),
        limits: Limits = "anatomical",
        bone_length: float | None = None,
        texture_gate: float = 0.1,
        edges: bool = True,
        frozen_norm: bool = False,
        lr: float = 1e-3,
        halvings: int = 5,
        shape_checkpoint: str | None = None,
        keypoints_checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        one_of(self, Limits, limits=limits)
        positive(self, lr=lr, bone_length=1.0 if bone_length is None else bone_length)
        if bone_length is not None and bone_length > 0.2:
            raise UserError(f"bone_length is in metres: {bone_length} is no finger's")
        not_negative(self, halvings=halvings)
        fraction(self, texture_gate=texture_gate)
        self.save_hyperparameters()
        self.backbone, self.hand, self.rasterizer = backbone, hand, rasterizer
        self.regressor = regressor(backbone, hand)
        self.appearance = appearance(backbone, hand) if appearance else None
        self.keypoints = keypoints
        self.weights, self.ramp = weights, ramp
        self.limits, self.texture_gate, self.edges = limits, texture_gate, edges
        self.frozen_norm = frozen_norm
        rest = float(s2hand.middle_phalanx(rest_hand(hand).joints)[0])
        self.bone_length = rest if bone_length is None else bone_length
        table = s2hand.axis_angle_limits()
        self.register_buffer("axis_angle_limits", table, persistent=False)
        self.axis_angle_limits: Tensor
        self.surface = Laplacian(hand.template, hand.faces)
        self.lr, self.halvings = lr, halvings
        self.keypoint_error = MeanMetric()
        self.starts = [
            (shape_checkpoint, ("backbone.", "regressor.")),
            (keypoints_checkpoint, ("keypoints.",)),
        ]

    def setup(self, stage: str) -> None:
        """Start from other runs' checkpoints; a resumed training reads its own alone."""
        super().setup(stage)
        if stage == "fit":
            self.check_data(getattr(self.trainer, "datamodule", None))
            for path, prefixes in self.starts:
                if path is not None and not self.goes_on:
                    load_parts(self, Path(path), prefixes)

    def check_data(self, data: Any) -> None:
        """Refuse data without keypoints, batches of one, and metres from unknown cameras.

        Warn of 2D keypoints that come from 3D labels.
        """
        want_keypoints(data, "S2HAND")
        self._check_batch(data)
        if self.regressor.camera == "perspective" and not getattr(data, "intrinsics_known", True):
            raise UserError(
                f"{data.name} does not know its cameras' intrinsics K, without which a place in"
                " metres cannot be learned: give them, or take the weak perspective,"
                " --model.init_args.regressor.init_args.camera=weak"
            )
        warn_of_projected(data)

    def _check_batch(self, data: Any) -> None:
        """Refuse batches of one picture, over which vectors cannot be normalised.

        Over those of several processes they can: statistics are those of the joined batch.
        """
        alone = getattr(data, "batch_size", None) == 1 and self.trainer.world_size == 1
        normalised = any(isinstance(layer, BatchNorm1d) for layer in self.modules())
        if alone and normalised and not self.frozen_norm:
            raise UserError(
                "S2HAND normalises over the pictures of a batch, and batches are of one:"
                " --data.batch_size=2 or more, or --model.init_args.frozen_norm=true"
            )

    def train(self, mode: bool = True) -> "S2HAND":
        """Keep batch normalisation as it is evaluated, where that is wanted."""
        super().train(mode)
        for layer in self.modules():
            if self.frozen_norm and isinstance(layer, _BatchNorm):
                layer.eval()
        return self

    def see(self, batch: HandBatch) -> Seen:
        """Return what every branch says of the images."""
        features = self.backbone.encode(batch.image)
        found = self.keypoints.find(batch.image) if self.keypoints else None
        last = None if found is None else found.keypoints[-1]
        hand = self.regressor.regress(features, batch.camera, last)
        return Seen(hand, found, self.appearance.look(features) if self.appearance else None)

    def reconstruct(self, batch: HandBatch) -> HandPrediction:
        """Return the 3D branch's hands, with texture and light."""
        features = self.backbone.encode(batch.image)
        found = None
        if self.keypoints is not None and self.regressor.lift:
            found = self.keypoints.find(batch.image).keypoints[-1]
        hand = self.regressor.regress(features, batch.camera, found)
        if self.appearance is None:
            return hand
        look = self.appearance.look(features)
        return hand._replace(texture=look.texture, light=look.light)

    def render(
        self,
        hand: HandPrediction,
        camera: Camera,
        background: Float[Tensor, "b 3 h w"] | None = None,
    ) -> Rendering:
        """Return the reconstructed hands drawn with their textures and lights."""
        return draw_hand(
            self.rasterizer, self.hand, hand.vertices, hand.texture, hand.light, camera,
            background, edges=self.edges,
        )  # fmt: skip

    def training_step(self, batch: HandBatch, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        seen = self.see(batch)
        terms = self.terms(seen, batch)
        loss = total(terms, self.weights)
        self.log_losses(terms | self.counts(batch), loss)
        return loss

    def validation_step(self, batch: HandBatch, batch_idx: int) -> None:
        """Measure errors, that against the detected keypoints among them."""
        found = self.reconstruct(batch)
        self.validation_metrics.update(found, batch)
        size = batch.camera.image_size
        distance = s2hand.length(
            s2hand.to_published_pixels(found.keypoints_2d - batch.keypoints_2d, size)
        )
        self.keypoint_error.update(distance, batch.confidence)

    def on_validation_epoch_end(self) -> None:
        """Log ``val/keypoints_px``, which chooses the best checkpoint: it needs no 3D label.

        The mean distance from the detected keypoints, weighted by their confidences, in pixels of
        a crop of 224.
        """
        super().on_validation_epoch_end()
        self.log("val/keypoints_px", self.keypoint_error.compute(), prog_bar=True, sync_dist=True)
        self.keypoint_error.reset()

    def terms(self, seen: Seen, batch: HandBatch) -> dict[str, Tensor]:
        """Return the losses that have a weight, by name."""
        terms = self.keypoint_terms(seen, batch) | self.prior_terms(seen, batch)
        factor = self.ramp.at(self.progress())
        if seen.appearance is not None and factor > 0:
            pictures = self.photometric_terms(seen.hand, seen.appearance, batch)
            terms |= {name: factor * term for name, term in pictures.items()}
        return {name: term for name, term in terms.items() if getattr(self.weights, name) != 0}

    def keypoint_terms(self, seen: Seen, batch: HandBatch) -> dict[str, Tensor]:
        """Return the losses against the detected keypoints and between the branches."""
        size, confidence = batch.camera.image_size, batch.confidence
        detected = s2hand.to_published_pixels(batch.keypoints_2d, size)
        projected = s2hand.to_published_pixels(seen.hand.keypoints_2d, size)
        terms = {
            "keypoints": s2hand.keypoint_loss(projected, detected, confidence),
            "bones": s2hand.bone_direction_loss(projected, detected, confidence),
        }
        if seen.found is not None:
            terms |= heatmap_terms(seen.found, batch, self.weights)
            found = s2hand.to_published_pixels(seen.found.keypoints, size)
            weight = s2hand.confident(confidence)
            terms["consistency"] = s2hand.consistency_loss(projected, found[-1], weight)
        return terms

    def prior_terms(self, seen: Seen, batch: HandBatch) -> dict[str, Tensor]:
        """Return the losses on pose, size, shape and surface."""
        hand, weight = seen.hand, s2hand.confident(batch.confidence)
        return {
            "limits": self.limit_term(hand.pose, weight),
            "scale": s2hand.bone_length_loss(hand.joints, self.bone_length, weight),
            "shape": s2hand.shape_prior(hand.betas, weight),
            "laplacian": self.surface.loss(hand.vertices, weight),
        }

    def limit_term(self, pose: Tensor, weight: Tensor) -> Tensor:
        """Return by how much joints are outside the limits."""
        if self.limits == "mano_axis_angle":
            return s2hand.axis_angle_limit_loss(pose, self.axis_angle_limits, weight)
        return s2hand.anatomical_limit_loss(
            pose, self.hand.joint_axes, self.hand.joint_limits, weight
        )

    def photometric_terms(
        self, hand: HandPrediction, look: Appearance, batch: HandBatch
    ) -> dict[str, Tensor]:
        """Return the losses between the photo and the hand drawn into it."""
        k = photometric.texture_confidence(batch.confidence, self.texture_gate)
        hand = hand._replace(texture=look.texture, light=look.light)
        drawn = self.render(hand, batch.camera, batch.image)
        pictures = drawn.image, batch.image, drawn.mask, k
        terms = {
            "pixels": photometric.pixel_loss(*pictures),
            "brightness": photometric.mean_colour_loss(*pictures),
            "texture": photometric.texture_regularity_loss(look.offsets, k),
        }
        if self.weights.ssim:  # the costly one
            terms["ssim"] = photometric.ssim_loss(*pictures)
        return terms

    def counts(self, batch: HandBatch) -> dict[str, Tensor]:
        """Return figures to log: the share of samples without a confident joint."""
        return {"unseen": 1 - s2hand.confident(batch.confidence).mean()}

    def progress(self) -> float:
        """Return the share of the training that is done."""
        return float(self.global_step / max(1, int(self.trainer.estimated_stepping_batches)))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adam, its rate halved in steps (published), or warm-up and cosine."""
        return adam(self, self.lr, self.halvings)


def warn_of_projected(data: Any) -> None:
    """Warn of data whose 2D keypoints come from 3D labels: that is no learning without them."""
    if getattr(data, "projected_keypoints", False):
        rank_zero_only(logger.warning)(
            "the 2D keypoints of %s are its 3D labels, projected: nothing learnt from them is"
            " learnt without 3D labels; docs/methods/s2hand.md says what to do",
            data.name,
        )


def heatmap_terms(found: Found, batch: HandBatch, weights: S2HANDWeights) -> dict[str, Tensor]:
    """Return the losses of the 2D branch that have a weight."""
    detected, confidence, size = batch.keypoints_2d, batch.confidence, batch.camera.image_size
    stacks, aim = (s2hand.to_published_pixels(x, size) for x in (found.keypoints, detected))
    terms = {"heatmaps": s2hand.heatmap_loss(stacks, aim, confidence)}
    if weights.likelihood:
        cells = found.to_cells(detected)
        terms["likelihood"] = s2hand.likelihood_loss(found.maps, cells, confidence)
    return terms


def load_parts(method: pl.LightningModule, path: Path, prefixes: tuple[str, ...]) -> None:
    """Load the parameters under some prefixes from another method's checkpoint."""
    content: dict[str, Any] = read_checkpoint(path)
    found = {k: v for k, v in content["state_dict"].items() if k.startswith(prefixes)}
    own = method.state_dict()
    wanted = {name for name in own if name.startswith(prefixes)}
    lacking = sorted(wanted - found.keys()) + sorted(found.keys() - wanted)
    lacking += [k for k in wanted & found.keys() if found[k].shape != own[k].shape]
    if lacking or not wanted:
        what = " and ".join(prefix.rstrip(".") for prefix in prefixes)
        raise UserError(
            f"{path} does not hold the {what} that this method has: {len(lacking)} tensors differ"
            f" ({', '.join(lacking[:3])})"
        )
    method.load_state_dict(found, strict=False)


def adam(method: pl.LightningModule, lr: float, halvings: int) -> OptimizerLRScheduler:
    """Return Adam without decay, and its schedule by step: see ``halvings`` of S2HAND."""
    optimizer = fused(Adam, [p for p in method.parameters() if p.requires_grad], lr)
    steps = int(method.trainer.estimated_stepping_batches)
    chosen: Any
    if not halvings:
        chosen = warmup_cosine(optimizer, steps, warmup=0.05, floor=0.01)
    else:
        places = [max(1, round(steps * i / (halvings + 1))) for i in range(1, halvings + 1)]
        chosen = torch.optim.lr_scheduler.MultiStepLR(optimizer, places, gamma=0.5)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": chosen, "interval": "step"}}
