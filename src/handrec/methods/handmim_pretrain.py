"""HandMIM's pre-training: masked image modelling and pose-aware class tokens, without labels.

Z. Liu et al., "HandMIM: Pose-Aware Self-Supervised Learning for 3D Hand Mesh Estimation",
arXiv 2307.16061. Known from the abstract: a teacher and a student, patch tokens distilled as in
masked image modelling, class tokens made aware of the pose by pseudo keypoint alignment, pixels
reconstructed. The terms' forms are iBOT's (Zhou et al., ICLR 2022) and our formulation
(docs/methods/handmim.md).
"""

import logging
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from handrec.data.views import TwoViews, View
from handrec.errors import UserError, fraction, not_negative, one_of, positive
from handrec.losses import distillation as distil
from handrec.losses.hand import total
from handrec.methods.base import Method
from handrec.methods.optim import fused
from handrec.methods.schedules import cosine, ramp
from handrec.methods.weights import Weights
from handrec.metrics.probe import KeypointProbe
from handrec.models.base import Backbone, Features
from handrec.models.masking import (
    IBOT_MASKING,
    Masking,
    Masks,
    draw_masks,
    encode_masked,
    patchify,
    want_vit,
)
from handrec.models.prototypes import Branch, PrototypeHead, align
from handrec.types import HandBatch

logger = logging.getLogger(__name__)

#: ``proto``: the aligned points of a class token are scored against prototypes. ``invariant``: the
#: same without alignment, plain class-token distillation. ``regress``: the aligned points of
#: student and teacher are compared themselves.
Alignment = Literal["proto", "invariant", "regress"]

#: How a teacher's scores become targets: as in iBOT, or as in SwAV and DINOv2.
Targets = Literal["centre", "sinkhorn"]


@dataclass(frozen=True)
class HandMIMPretrainWeights(Weights):
    """Weights of the terms; a term of weight 0 is not computed.

    Attributes:
        tokens: distillation of the class token, its pseudo keypoints aligned.
        patches: distillation of the masked patches.
        pixels: reconstruction of the masked patches.
        koleo: spread of the class tokens over the sphere.
        spread: floor under the spread of pseudo keypoints; counts in mode ``regress`` only.
    """

    tokens: float = 1.0
    patches: float = 1.0
    pixels: float = 1.0
    koleo: float = 0.0
    spread: float = 1.0


@dataclass(frozen=True)
class Teacher:
    """How targets are made.

    Attributes:
        momentum: of the weights' moving average, at the start; 1 at the end.
        temperature: of the targets at the first epoch, and after the warm-up.
        warmup_epochs: epochs from the one to the other.
        student_temperature: of the student's softmax.
        targets: ``centre`` (iBOT) or ``sinkhorn`` (SwAV, DINOv2).
    """

    momentum: float = 0.996
    temperature: tuple[float, float] = (0.04, 0.07)
    warmup_epochs: int = 30
    student_temperature: float = 0.1
    targets: Targets = "centre"

    def __post_init__(self) -> None:
        one_of(self, Targets, targets=self.targets)
        fraction(self, momentum=self.momentum)
        first, last = self.temperature
        positive(self, first_temperature=first, last_temperature=last)
        positive(self, student_temperature=self.student_temperature)
        not_negative(self, warmup_epochs=self.warmup_epochs)


class HandMIMPretrain(Method):
    """Teacher-student pre-training of a ViT on images alone.

    Labels are read by the probe in validation only: ridge regression from frozen features to 2D
    keypoints, and to how the fingers are bent, whose errors show within minutes whether anything is
    learned.

    Args:
        backbone: a ViT; the teacher's is what :command:`handrec export-backbone` writes.
        views: takes the views.
        weights: of the terms.
        alignment: see :data:`Alignment`.
        scale_shift: see ``models.prototypes.align``.
        masking: of the student's views.
        teacher: of targets.
        prototypes: K of each head.
        hidden: width of the heads.
        shared_head: one head for class and patch tokens.
        standardise: the heads' outputs over the batch. At the start all tokens look alike to a
            head, and a short training ends before it finds a difference; this shows it at once.
            Not of points that are compared themselves (``regress``): what no picture says of its
            view would have to vary, too.
        normalise_pixels: standardise the target patches of the reconstruction.
        lr: peak learning rate.
        weight_decay: at the start and towards the end.
        warmup: share of the training that the rate rises.
        clip: greatest norm of each parameter's gradient; set no ``gradient_clip_val``.
        freeze_prototypes: epochs at the start in which prototypes do not move.
    """

    def __init__(
        self,
        backbone: Backbone,
        views: TwoViews,
        weights: HandMIMPretrainWeights = HandMIMPretrainWeights(),
        alignment: Alignment = "proto",
        scale_shift: bool = False,
        masking: Masking = IBOT_MASKING,
        teacher: Teacher = Teacher(),
        prototypes: int = 8192,
        hidden: int = 2048,
        shared_head: bool = True,
        standardise: bool = False,
        normalise_pixels: bool = False,
        lr: float = 5e-4,
        weight_decay: tuple[float, float] = (0.04, 0.4),
        warmup: float = 0.1,
        clip: float = 3.0,
        freeze_prototypes: int = 1,
    ) -> None:
        super().__init__()
        one_of(self, Alignment, alignment=alignment)
        positive(self, lr=lr, clip=clip, prototypes=prototypes, hidden=hidden)
        if prototypes < 2:
            raise UserError("HandMIMPretrain: of a single prototype there is nothing to tell")
        first, last = weight_decay
        not_negative(self, first_weight_decay=first, last_weight_decay=last)
        not_negative(self, freeze_prototypes=freeze_prototypes)
        fraction(self, warmup=warmup)
        if standardise and shared_head:
            raise UserError(
                "standardise=true wants a head for class tokens and one for patches, whose averages"
                " differ (and alignment=regress standardises the latter alone): shared_head=false"
            )
        self.save_hyperparameters()
        self.views, self.weights = views, weights
        self.alignment, self.scale_shift = alignment, scale_shift
        self.masking, self.recipe = masking, teacher
        standardised = (standardise and alignment != "regress", standardise)
        self.student = Branch(backbone, prototypes, hidden, shared_head, standardised)
        self.teacher = deepcopy(self.student).requires_grad_(False).eval()
        self.mask_token = nn.Parameter(torch.zeros(backbone.channels))
        self.patch = want_vit(backbone).patch
        self.decoder = nn.Linear(backbone.channels, 3 * self.patch**2)
        self.normalise_pixels = normalise_pixels
        self.token_centre = distil.Centre(prototypes)
        self.patch_centre = distil.Centre(prototypes)
        self.lr, self.weight_decay, self.warmup = lr, weight_decay, warmup
        self.clip, self.freeze_prototypes = clip, freeze_prototypes
        self.probe = KeypointProbe()
        self._untrained: list[Backbone] = [_untrained(backbone)]  # no child: never saved
        self._freeze_idle()

    after_fit = "handrec export-backbone {name}"
    validated = ("probe", "probe_pose")

    def setup(self, stage: str) -> None:
        """Say so if prototypes are to rest all the time."""
        super().setup(stage)
        epochs = self.trainer.max_epochs
        if stage == "fit" and epochs is not None and 0 < epochs <= self.freeze_prototypes:
            rank_zero_only(logger.warning)(
                "prototypes rest for %s of %s epochs: they will not learn;"
                " --model.init_args.freeze_prototypes=0 lets them",
                self.freeze_prototypes,
                epochs,
            )

    def _freeze_idle(self) -> None:
        """Freeze what no term reaches: processes of a distributed training would wait for it."""
        used: list[nn.Module] = [self.student.backbone]
        if self.weights.tokens:
            used.append(self.student.token_head.mlp)
        if self.weights.tokens and self.alignment != "regress":
            used.append(self.student.token_head.prototypes)
        if self.weights.patches:
            used.append(self.student.patch_head)
        if self.weights.pixels:
            used.append(self.decoder)
        reached = {parameter for module in used for parameter in module.parameters()}
        for parameter in {*self.student.parameters(), *self.decoder.parameters()} - reached:
            parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> "HandMIMPretrain":
        """Train the student; the teacher sees without dropout.

        Its batch norms keep statistics of their own, of whole images: the student's are of masked
        ones and of other weights.
        """
        super().train(mode)
        self.teacher.eval()
        for layer in self.teacher.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.train(mode)
        return self

    def training_step(self, batch: HandBatch, batch_idx: int) -> Tensor:
        """Return the loss of a batch of images."""
        views, local = self.views.take(batch.image)
        images = torch.cat([view.image for view in views])
        matrices = torch.cat([view.matrix for view in views])
        with torch.no_grad():
            seen = self.teacher.backbone.encode(images)
        masks = draw_masks(images, self.patch, self.masking)
        guessed = encode_masked(self.student.backbone, images, masks.mask, self.mask_token)
        terms: dict[str, Tensor] = {}
        figures: dict[str, Tensor] = {"masked": masks.mask.mean()}
        if self.weights.tokens:
            terms |= self._token_terms(seen, guessed, matrices, local, figures)
        if self.weights.patches:
            terms["patches"] = self._patch_term(seen, guessed, masks, figures)
        if self.weights.pixels:
            terms["pixels"] = self._pixel_term(guessed, images, masks)
        if self.weights.koleo:
            tokens = guessed.pooled.chunk(2)
            terms["koleo"] = sum((distil.koleo(t) for t in tokens), torch.zeros(())) / 2
        loss = total(terms, self.weights) + 0 * self.mask_token.sum()
        self.log_losses(terms | figures, loss)
        return loss

    def _token_terms(
        self,
        seen: Features,
        guessed: Features,
        matrices: Tensor,
        local: list[View],
        figures: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """Distil the class tokens of each view from the teacher's of the other, once aligned."""
        with torch.no_grad():
            target = self.keypoints(self.teacher.token_head, seen.pooled, matrices)
        tokens = [guessed.pooled]
        for view in local:
            tokens.append(self.student.backbone.encode(view.image).pooled)
            matrices = torch.cat([matrices, view.matrix])
        points = self.keypoints(self.student.token_head, torch.cat(tokens), matrices)
        figures["token_std"] = F.normalize(seen.pooled.float(), dim=-1).std(0).mean()
        if self._logs():
            figures["keypoint_rank"] = distil.effective_rank(target.flatten(1))
        count = len(target) // 2
        if self.alignment == "regress":
            term = distil.keypoint_loss(
                target.unflatten(0, (2, count)), points.unflatten(0, (-1, count))
            )
            spread = {"spread": distil.spread_penalty(points)} if self.weights.spread else {}
            return {"tokens": term} | spread
        return {"tokens": self._class_term(target.flatten(1), points.flatten(1), figures)}

    def _class_term(self, target: Tensor, points: Tensor, figures: dict[str, Tensor]) -> Tensor:
        """Compare the prototypes that aligned points fall to."""
        count = len(target) // 2
        scores = self.teacher.token_head.score(target)
        targets = self._targets(scores, self.token_centre, None)
        logits = self.student.token_head.score(points)
        self.token_centre.add(scores.mean(0))
        if self._logs():
            figures["token_entropy"] = distil.entropy(targets)
            figures["token_divergence"] = distil.divergence_from_uniform(targets)
        return distil.class_loss(
            targets.unflatten(0, (2, count)),
            logits.unflatten(0, (-1, count)),
            self.recipe.student_temperature,
        )

    def keypoints(
        self, head: PrototypeHead, tokens: Float[Tensor, "v c"], matrices: Float[Tensor, "v 3 3"]
    ) -> Float[Tensor, "v p 2"]:
        """Return pseudo keypoints in coordinates of the images, or of the views if not aligned.

        In float32: at first all tokens look alike, and what tells them apart would be rounded away.
        """
        with torch.autocast(tokens.device.type, enabled=False):
            points = head.points(head.embed(tokens.float()))
        if self.alignment == "invariant":
            return points
        return align(points, matrices, scale_shift=self.scale_shift)

    def _patch_term(
        self, seen: Features, guessed: Features, masks: Masks, figures: dict[str, Tensor]
    ) -> Tensor:
        """Distil the masked patches from the teacher, who sees them."""
        head, sinkhorn = self.teacher.patch_head, self.recipe.targets == "sinkhorn"
        with torch.no_grad():
            tokens = _tokens(seen)
            if sinkhorn:
                chosen = head.embed(tokens[masks.rows])
            else:  # a centre is the mean over all patches
                embedded = head.embed(tokens)
                chosen = embedded[masks.rows]
            targets = self._targets(head.score(chosen), self.patch_centre, masks.weight)
            if not sinkhorn:
                self.patch_centre.add(head.mean_score(embedded))
        head = self.student.patch_head
        logits = head.score(head.embed(_tokens(guessed)[masks.rows]))
        if self._logs():
            figures["patch_entropy"] = distil.entropy(targets)
            figures["patch_divergence"] = distil.divergence_from_uniform(targets)
        return distil.patch_loss(targets, logits, masks.weight, self.recipe.student_temperature)

    def _targets(self, scores: Tensor, centre: distil.Centre, weight: Tensor | None) -> Tensor:
        temperature = ramp(self.current_epoch, *self.recipe.temperature, self.recipe.warmup_epochs)
        if self.recipe.targets == "sinkhorn":
            return distil.sinkhorn_knopp(scores, temperature, weight=weight)
        return distil.teacher_targets(scores, centre.value, temperature)

    def _pixel_term(self, guessed: Features, images: Tensor, masks: Masks) -> Tensor:
        """Reconstruct the masked patches' pixels from the student's tokens."""
        predicted = self.decoder(_tokens(guessed)[masks.rows])
        patches = patchify(images, self.patch)[masks.rows]
        return distil.reconstruction_loss(
            predicted, patches, masks.weight, normalise=self.normalise_pixels
        )

    @torch.no_grad()
    def fill_in(
        self, image: Float[Tensor, "b 3 h w"], mask: Float[Tensor, "b n"]
    ) -> Float[Tensor, "b 3 h w"]:
        """Return images whose masked patches the student reconstructs.

        Args:
            image: RGB in [0, 1].
            mask: 1 where a patch is masked, row by row.
        """
        guessed = encode_masked(self.student.backbone, image, mask, self.mask_token)
        predicted, patches = self.decoder(_tokens(guessed)), patchify(image, self.patch)
        if self.normalise_pixels:  # a patch's mean and spread are not what was learned
            spread = (patches.var(-1, keepdim=True) + 1e-6).sqrt()
            predicted = patches.mean(-1, keepdim=True) + spread * predicted
        filled = torch.where(mask.flatten()[:, None] > 0, predicted.to(patches), patches)
        columns = filled.unflatten(0, (len(image), -1)).transpose(1, 2)
        size = (image.shape[-2], image.shape[-1])
        return F.fold(columns, size, self.patch, stride=self.patch).clamp(0, 1)

    def _logs(self) -> bool:
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return (self.global_step + 1) % every == 0

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip each parameter's gradient by its own norm; hold the prototypes at first (iBOT)."""
        if self.current_epoch < self.freeze_prototypes:
            for head in {self.student.token_head, self.student.patch_head}:
                head.prototypes.weight.grad = None
        grads = [p.grad for p in self.parameters() if p.grad is not None]
        norms = torch._foreach_norm(grads)
        factors = [(self.clip / (norm + 1e-6)).clamp(max=1.0) for norm in norms]
        torch._foreach_mul_(grads, factors)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Set rate and decay, step, and let teacher and centres follow: once per optimizer step."""
        step, steps = self.global_step, int(self.trainer.estimated_stepping_batches)
        optimizer = args[2] if len(args) > 2 else kwargs["optimizer"]
        warmup = round(self.warmup * steps)
        rate = cosine(step, steps, self.lr, 1e-6, warmup)
        decay = cosine(step, steps, *self.weight_decay)
        for group in optimizer.param_groups:
            group["lr"] = rate
            group["weight_decay"] = decay * group["decays"]
        super().optimizer_step(*args, **kwargs)
        self.follow(cosine(step, steps, self.recipe.momentum, 1.0))
        self.token_centre.step()
        self.patch_centre.step()

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """Move the teacher's weights towards the student's: ``t <- m t + (1 - m) s``."""
        teacher, student = tuple(self.teacher.parameters()), tuple(self.student.parameters())
        torch._foreach_lerp_(teacher, student, 1 - momentum)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW; biases and vectors are not decayed."""
        learned = [p for p in self.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in learned if p.ndim > 1], "decays": 1.0},
            {"params": [p for p in learned if p.ndim <= 1], "decays": 0.0},
        ]
        return fused(AdamW, groups, self.lr)

    def validation_step(self, batch: HandBatch, batch_idx: int) -> None:
        """Collect features of the teacher, and once those of an untrained network."""
        self.probe.update("probe", self.features(self.teacher.backbone, batch), batch)
        for backbone in self._untrained:
            backbone.to(batch.image.device)
            self.probe.update("probe_untrained", self.features(backbone, batch), batch)

    def test_step(self, batch: HandBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Collect features of the teacher for each test split."""
        name = f"probe_{dataloader_idx}"
        self.probe.update(name, self.features(self.teacher.backbone, batch), batch)

    def on_test_epoch_end(self) -> None:
        """Log the error of the probe on each test split, in their order."""
        errors = {f"test/{name}": error for name, error in self.probe.compute().items()}
        self.log_dict(errors, sync_dist=True)
        self.probe.reset()

    def predict_step(self, batch: HandBatch, batch_idx: int) -> None:
        """Refuse: there are no hands."""
        raise UserError(
            "a pre-training reconstructs no hands: `handrec export-backbone` writes its backbone,"
            " EXP=handmim_finetune trains a head on it"
        )

    @staticmethod
    def features(backbone: Backbone, batch: HandBatch) -> Float[Tensor, "b c"]:
        """Return the frozen features that the probe sees: every token."""
        features = backbone.encode(batch.image)
        return torch.cat([features.pooled, features.grid.flatten(1)], dim=1).float()

    def on_validation_epoch_end(self) -> None:
        """Log the errors of the probe: per cent of the crop's side, and mm of the bent fingers."""
        for name, error in self.probe.compute().items():
            self.log(f"val/{name}", error, prog_bar=name == "probe", sync_dist=True)
        self.probe.reset()
        if not self.trainer.sanity_checking:  # whose figures are not logged
            self._untrained.clear()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember whether the untrained network has been probed."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["probed_untrained"] = not self._untrained

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Probe it once in a training, however often that is gone on with."""
        if checkpoint.get("probed_untrained"):
            self._untrained.clear()


def _untrained(backbone: Backbone) -> Backbone:
    """Return a copy that stays as it is and normalises by the statistics of what it is shown.

    The running ones of an untrained network are of no pictures at all.
    """
    copy = deepcopy(backbone).eval()
    for layer in copy.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.running_mean = layer.running_var = None
    return copy


def _tokens(features: Features) -> Float[Tensor, "n c"]:
    """Return the patch tokens of all views one after another."""
    return features.grid.flatten(2).transpose(1, 2).flatten(0, 1)
