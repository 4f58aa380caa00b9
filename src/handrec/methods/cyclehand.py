"""CycleHand: turn the reconstructed hand, draw it, reconstruct the drawing, turn it back.

D. Gao et al., "CycleHand: Increasing 3D Pose Estimation Ability on In-the-wild Monocular Image
through Cyclic Flow", ACM MM 2022. Known from the abstract and the overview figure: the states (a)
to (d), which of them are compared, texture VAE and renderer, a contrastive tie between pictures and
drawings, mechanical constraints. All formulas and numbers are ours (docs/methods/cyclehand.md).
"""

import logging
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor

from handrec.data.augment import Augmentation
from handrec.data.mixture import labelled, without_absent
from handrec.errors import UserError, one_of
from handrec.geometry.camera import resize_camera
from handrec.hand.base import HandModel
from handrec.hand.sampler import PoseSampler
from handrec.losses import cycle as losses
from handrec.losses.hand import masked_mean, total
from handrec.losses.processes import per_process
from handrec.methods.base import HandMethod, want_keypoints, want_meshes
from handrec.methods.cycle_flow import (
    DEFAULT_FLOW,
    NO_TURN,
    Cycle,
    Flow,
    Sight,
    detached,
    exchange_fingers,
    frozen_averages,
    is_known,
    known_hands,
    pick,
    pick_batch,
    sample_hands,
    turn_and_draw,
    turn_back,
)
from handrec.methods.handmim import dense_term, label_terms
from handrec.methods.loading import read_checkpoint
from handrec.methods.optim import adamw_warmup_cosine, optimization
from handrec.methods.weights import Weights
from handrec.models.base import Backbone, HeadFactory
from handrec.models.cycle_scene import Own, Redrawn, add_grain, recolour, without_hand
from handrec.models.domains import DEFAULT_CONTRAST, Contrast, DomainTie, describe
from handrec.models.mechanics import Mechanics
from handrec.models.texture_vae import Looks, TextureVAE
from handrec.render.base import Rasterizer
from handrec.render.shading import Texture, render_lit, render_positions
from handrec.types import HandBatch, HandPrediction, Rendering

logger = logging.getLogger(__name__)

#: Of the training: labels alone, then the cycle.
Phase = Literal["base", "cycle"]

#: Batches within which a label that can be drawn is expected.
LOOKED_AT = 20

#: Modules that phase 1 has not got.
_OF_THE_CYCLE = ("tie.", "sampler.")


@dataclass(frozen=True)
class CycleHandWeights(Weights):
    """Weights of the terms. Labels: see ``HandMIMWeights``.

    What takes a drawing or a network of its own (``photo``, ``photo_returned``, ``image``,
    ``contrast``, ``distill``) is not computed at weight 0.

    Attributes:
        vertices: of labelled pictures, as the next six.
        joints: see ``vertices``.
        local: see ``vertices``.
        keypoints: see ``vertices``.
        rotations: see ``vertices``.
        shape: see ``vertices``.
        dense: also of drawings.
        photo: (a) against the picture.
        latent: divergence of the texture's latent.
        offset: square of the texture's offset.
        variation: of the texture's offset.
        rendered: (c) against (b), summed over iterations: "b<->c".
        returned: (d) against (a): "a<->d".
        photo_returned: (d) against the picture.
        image: (d) against (a), as drawn.
        contrast: InfoNCE of pictures and drawings.
        distill: teacher and student across pictures and drawings.
        limits: of joints.
        penetration: of spheres, beyond what labels have.
    """

    vertices: float = 20.0
    joints: float = 20.0
    local: float = 40.0
    keypoints: float = 2.0
    rotations: float = 20.0
    shape: float = 0.1
    dense: float = 5.0
    photo: float = 1.0
    latent: float = 1e-4
    offset: float = 1e-2
    variation: float = 1e-3
    rendered: float = 1.0
    returned: float = 3.0
    photo_returned: float = 1.0
    image: float = 0.0
    contrast: float = 0.1
    distill: float = 0.0
    limits: float = 0.1
    penetration: float = 0.1


class CycleHand(HandMethod):
    """A reconstructor that also learns from its own reconstructions of unlabelled pictures.

    Args:
        backbone: any.
        head: builds the mesh head for the backbone and the hand.
        hand: the hand model.
        rasterizer: draws.
        phase: ``base`` learns from labels, and texture and light from pictures; ``cycle`` adds the
            cyclic flow.
        checkpoint: of a run in phase ``base`` to start from.
        weights: of the terms.
        flow: how hands are turned and drawn.
        appearance: of the drawings; None for the default.
        contrast: how pictures and drawings are tied.
        texture_size: texels along each side.
        base_texture: PNG file that `handrec data texture` made, which textures are offsets to; None
            for the mean of painted skins.
        photo_size: side of the drawings that are compared with pictures; None for half the crop's.
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
        phase: Phase = "cycle",
        checkpoint: str | None = None,
        weights: CycleHandWeights = CycleHandWeights(),
        flow: Flow = DEFAULT_FLOW,
        appearance: Redrawn | None = None,
        contrast: Contrast = DEFAULT_CONTRAST,
        texture_size: int = 128,
        base_texture: str | None = None,
        photo_size: int | None = None,
        lr: float = 1e-4,
        weight_decay: float = 0.05,
        layer_decay: float = 1.0,
        warmup: float = 0.05,
    ) -> None:
        super().__init__()
        one_of(self, Phase, phase=phase)
        self.save_hyperparameters()
        self.backbone, self.hand, self.rasterizer = backbone, hand, rasterizer
        self.head = head(backbone, hand)
        self.base_texture = base_texture
        self.texture = TextureVAE(2 * backbone.channels, hand, texture_size, base=base_texture)
        self.mechanics = Mechanics(hand)
        self.phase, self.checkpoint = phase, checkpoint
        self.weights, self.flow, self.contrast = weights, flow, contrast
        if photo_size is not None and photo_size < losses.WINDOW:
            raise UserError(f"CycleHand: photo_size is at least {losses.WINDOW}, not {photo_size}")
        self.photo_size = photo_size
        self.optimization = optimization(self, lr, weight_decay, layer_decay, warmup)
        self.warmup = warmup
        self._unseen: int | None = 0  # batches looked at, until it is known whether labels come
        self._seen: Tensor | int = 0
        self.sampler: PoseSampler | None = None
        if phase == "cycle":
            self.appearance = appearance or Redrawn()
            self.tie = DomainTie(backbone, contrast, weights.distill > 0)
            self.sampler = PoseSampler(hand) if flow.hands == "sampled" else None

    def setup(self, stage: str) -> None:
        """Start from phase 1; a training that goes on brings its own weights."""
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        if stage == "fit":
            want_meshes(data, "CycleHand")
        if stage == "fit" and self.phase == "base":
            want_keypoints(data, "CycleHand's first phase")
        if stage == "fit" and self.phase == "cycle" and not hasattr(self.head, "dense"):
            rank_zero_only(logger.warning)(
                "%s guesses no outline: pictures without labels are believed wherever its"
                " iterations agree, right or wrong",
                type(self.head).__name__,
            )
        if stage == "fit" and self.checkpoint is not None and not self.goes_on:
            self.load_base(Path(self.checkpoint))

    def load_base(self, path: Path) -> None:
        """Take over the weights of a run in phase ``base``, learned with the same base texture."""
        content = read_checkpoint(path)
        chosen = content.get("hyper_parameters", {}).get("base_texture")
        if (chosen and Path(chosen).name) != (self.base_texture and Path(self.base_texture).name):
            raise UserError(
                f"{path} learned offsets to the texture {chosen}, and this would add them to"
                f" {self.base_texture}: give the same --model.init_args.base_texture"
            )
        try:
            keys = self.load_state_dict(content["state_dict"], strict=False)
        except (RuntimeError, TypeError) as error:
            *_, reason = str(error).strip().split("\n\t")[:2]
            raise UserError(f"{path} is of another architecture: {reason}") from error
        wrong = [k for k in [*keys[0], *keys[1]] if not k.startswith(_OF_THE_CYCLE)]
        if wrong:
            raise UserError(f"{path} does not fit: {wrong[:3]}")
        if self.phase == "cycle":
            self.tie.follow(self.backbone, momentum=0.0)

    def see(self, batch: HandBatch) -> Sight:
        """Return features and every iteration's hands of a batch's images."""
        features = self.backbone.encode(batch.image)
        return Sight(describe(features), self.head.regress(features, batch.camera))

    def reconstruct(self, batch: HandBatch) -> HandPrediction:
        """Return the last iteration's hands with their textures and lights."""
        sight = self.see(batch)
        looks = self.texture(sight.features)
        hands = sight.estimates.iterations[-1]
        light = torch.cat([looks.ambient, looks.diffuse, looks.direction], dim=1)
        return hands._replace(texture=looks.texture, light=light)

    def iterations(self, batch: HandBatch) -> list[HandPrediction]:
        """Return every iteration's hands; the report shows whether the error falls."""
        return self.see(batch).estimates.iterations

    def training_step(self, batch: HandBatch, batch_idx: int) -> Tensor:
        """Return the loss of a batch of labelled and unlabelled pictures."""
        batch = without_absent(batch)
        if self.phase == "cycle":
            changed = self.recoloured(batch.image, batch)
            known = labelled(batch)[:, None, None, None]
            batch = batch._replace(image=torch.where(known, changed, batch.image))
        sight = self.see(batch)
        rows = self.choose(len(batch.image)).to(batch.image.device)
        looks = self.texture(sight.features[rows])
        hands = sight.estimates.iterations[-1]
        terms = label_terms(sight.estimates, batch, self.hand, self.rasterizer)
        terms |= _texture_terms(looks) | self.mechanics.terms(hands)
        # In phase 1 texture and light learn from where the hand is, not the other way round (but by
        # way of the features, which are of both); in phase 2 both, as far as it is believed.
        # Where nothing says where the hand is, it may be anywhere.
        first, trust = detached(pick(hands, rows)), (batch.confidence[rows].amax(1) > 0).float()
        figures = {}
        if self.phase == "cycle":
            cycle = self.cycle(batch, sight, looks, rows)
            terms |= self._cycle_terms(cycle, batch, sight, looks)
            first, trust = cycle.first, cycle.trust
            figures = {"counted": cycle.turned.weight.mean(), "trust": trust.mean()}
        if self.weights.photo:
            source = pick_batch(batch, rows)
            photo = self._photometric(self.draw(first, looks, source), source, trust)
            terms["photo"] = _share(trust, torch.ones_like(trust)) * photo
        terms = {name: term for name, term in terms.items() if getattr(self.weights, name)}
        loss = total(terms, self.weights)
        self.log_losses(terms | figures, loss)
        return loss

    def choose(self, count: int) -> Int[Tensor, " n"]:
        """Return random rows of a batch: those that are drawn."""
        return torch.randperm(count)[: max(1, round(self.flow.share * count))]

    def cycle(self, batch: HandBatch, sight: Sight, looks: Looks, rows: Int[Tensor, " n"]) -> Cycle:
        """Return the four states of some of a batch's pictures.

        Args:
            batch: pictures.
            sight: of all of them.
            looks: of those that are drawn.
            rows: which these are.
        """
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        source = pick_batch(batch, rows)
        first = pick(sight.estimates.iterations[-1], rows)
        hands = detached(first)
        dense = sight.estimates.dense
        background = self._backgrounds(hands, source, None if dense is None else dense[rows])
        lends = (~labelled(source)).to(background)
        own = Own(looks.lit().detach(), background, lends)
        known = exchanged = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        if self.flow.hands == "known":
            known, hands = is_known(source), known_hands(hands, source)
            self._look_for_labels(known)
            hands, exchanged = exchange_fingers(
                hands, known, self.flow.exchange, self.hand, self.mechanics.spheres, generator
            )
        if self.sampler is not None:
            hands = sample_hands(self.sampler, self.hand, hands, generator)
        draw = partial(
            turn_and_draw, hands, source, own, model=self.hand, rasterizer=self.rasterizer,
            appearance=self.appearance, progress=self.progress(), generator=generator,
        )  # fmt: skip
        turned = draw(flow=self.flow)
        turned = turned.with_image(self.recoloured(self.augmented(turned.batch.image), batch))
        redrawn = None
        if self._redraws:
            redrawn = draw(flow=replace(self.flow, turns=NO_TURN))
            image = self.augmented(redrawn.batch.image)
            redrawn = redrawn.with_image(self.recoloured(image, batch))
        with frozen_averages(self.backbone, self.head):
            seen = self.see(turned.batch)
        returned = turn_back(seen.estimates.iterations[-1], turned, source.camera)
        trust = self._trust(sight, batch)[rows]
        return Cycle(rows, first, turned, seen, returned, trust, known, exchanged, redrawn)

    @torch.no_grad()
    def augmented(self, images: Tensor) -> Tensor:
        """Return drawings in colours as varied as the data's augmentation makes the pictures'."""
        augmentation = getattr(getattr(self._trainer, "datamodule", None), "augmentation", None)
        if not (self.training and isinstance(augmentation, Augmentation)):
            return images
        with torch.autocast(images.device.type, enabled=False):  # as pictures are, before the step
            changes = augmentation.changes(torch.arange(len(images)), images.shape[-1])
            return changes.of_batch(images)

    def recoloured(self, images: Tensor, batch: HandBatch) -> Tensor:
        """Return pictures of which some have colours or noise of a batch's unlabelled ones."""
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        others = batch.image[~labelled(batch)]
        images = recolour(images, others, self.flow.recolour, generator)
        return add_grain(images, others, self.flow.grain, generator)

    def _look_for_labels(self, known: Tensor) -> None:
        """Say so, once, if the first batches show no label that can be drawn."""
        if self._unseen is None:
            return
        self._unseen += 1
        self._seen = known.sum() + self._seen
        if self._unseen == LOOKED_AT:
            self._unseen = None
            if not self._seen:  # the only wait for the device
                rank_zero_only(logger.warning)(
                    "no label in the first %d batches says how this hand model's hand lies: all"
                    " hands are drawn as reconstructed, which draws them to the mean (see"
                    " docs/methods/cyclehand.md; labels of MANO want hand: Mano)",
                    LOOKED_AT,
                )

    @property
    def _redraws(self) -> bool:
        """Whether hands are also drawn as they were seen."""
        pairs = self.weights.contrast > 0 and self.contrast.pairs == "redrawn"
        return self.sampler is None and (pairs or self.weights.distill > 0)

    def progress(self) -> float:
        """Return the share of the training that is over."""
        return self.global_step / max(1, int(self.trainer.estimated_stepping_batches))

    @torch.no_grad()
    def _backgrounds(
        self, hands: HandPrediction, source: HandBatch, dense: Tensor | None
    ) -> Tensor:
        """Return the pictures without the hands: where they are known to be, or believed to be.

        Believed by (a), or by the dense map: (a) may be wrong, and a hand must not stay in sight.
        """
        _, mask = render_positions(self.rasterizer, self.hand, hands.vertices, source.camera)
        if dense is not None:
            outline = F.interpolate((dense[:, 3:] > 0).to(mask), mask.shape[-2:], mode="bilinear")
            mask = torch.maximum(mask, outline)
        known = source.has_mask.view(-1, 1, 1, 1) > 0
        return without_hand(source.image, torch.where(known, source.mask, mask))

    @torch.no_grad()
    def _trust(self, sight: Sight, batch: HandBatch) -> Float[Tensor, " b"]:
        """Return how far (a) agrees with keypoints, or without any with what else is guessed.

        That is the iteration before and, as all iterations may err alike, the dense map's outline.
        """
        *_, before, last = [sight.estimates.iterations[0], *sight.estimates.iterations]
        known = batch.confidence.amax(1, keepdim=True) > 0
        target = torch.where(known[..., None], batch.keypoints_2d, before.keypoints_2d)
        confidence = torch.where(known, batch.confidence, 1.0)
        trust = losses.keypoint_agreement(
            last.keypoints_2d, target, confidence, batch.camera.image_size, self.flow.tolerance
        )
        dense = sight.estimates.dense
        if dense is None:
            return trust
        size = (dense.shape[-2], dense.shape[-1])
        _, mask = render_positions(self.rasterizer, self.hand, last.vertices, batch.camera, size)
        overlap = losses.outline_overlap(dense[:, 3:], mask)
        return torch.where(known[:, 0], trust, trust * overlap)

    def draw(self, hands: HandPrediction, looks: Looks, batch: HandBatch) -> Rendering:
        """Return the hands in their own looks as the batch's cameras see them, differentiably."""
        side = self.photo_size or batch.image.shape[-1] // 2
        # As many texels as pixels can show: fewer to decode, and no need for a pyramid.
        texels = min(2 * side, looks.texture.shape[-1])
        image = F.interpolate(looks.texture, (texels, texels), mode="bilinear", antialias=True)
        texture = Texture(image, self.hand.uv, self.hand.uv_faces, mipmaps=False)
        light = looks.light(hands.vertices.detach().mean(1))
        camera = resize_camera(batch.camera, (side, side))
        return render_lit(
            self.rasterizer, hands.vertices, self.hand.faces, light, camera, texture=texture,
            linear=True,
        )  # fmt: skip

    def _photometric(self, drawn: Rendering, batch: HandBatch, weight: Tensor) -> Tensor:
        """Compare drawings with pictures where both show the hand.

        By the hand's own colour, without its share of a pixel: over any background a hand would
        gain or lose by covering more, whatever the picture shows there.
        """
        size = drawn.image.shape[-2:]
        image, mask = (
            F.interpolate(x, size, mode="bilinear", antialias=True)
            for x in (batch.image.float(), batch.mask)
        )
        known = batch.has_mask.view(-1, 1, 1, 1) > 0
        seen = drawn.mask.detach() * torch.where(known, mask, 1.0)
        colour = drawn.image / drawn.mask.clamp(min=1e-3)
        return losses.photometric_loss(colour, image, seen, weight)

    def _cycle_terms(
        self, cycle: Cycle, batch: HandBatch, sight: Sight, looks: Looks
    ) -> dict[str, Tensor]:
        """Return the terms of the flow: (b) and (c), (a) and (d), pictures and drawings."""
        weights, drawing, weight = self.weights, cycle.turned.batch, cycle.turned.weight
        ramp = min(1.0, self.progress() / self.flow.ramp) if self.flow.ramp else 1.0
        per_iteration = [
            losses.rendered_view_loss(hands, drawing, weight)
            for hands in cycle.seen.estimates.iterations
        ]
        rendered = torch.stack(per_iteration).sum()
        if cycle.seen.estimates.dense is not None:
            dense = dense_term(cycle.seen.estimates.dense, drawing, self.hand, self.rasterizer)
            rendered = rendered + weights.dense * dense
        terms = {"rendered": ramp * rendered}
        if self.sampler is None:
            believed = weight * cycle.trust * ~cycle.exchanged
            returned = losses.round_trip_loss(cycle.first, cycle.returned, believed)
            gated = {"returned": ramp * returned}
            gated |= self._drawn_terms(cycle, batch, looks, believed)
            terms |= {name: _share(believed, weight) * term for name, term in gated.items()}
            terms |= self._domain_terms(cycle, batch, sight)
        return terms

    def _drawn_terms(
        self, cycle: Cycle, batch: HandBatch, looks: Looks, weight: Tensor
    ) -> dict[str, Tensor]:
        """Draw (d) in the looks of (a): it must fit the picture, and the drawing of (a)."""
        if not (self.weights.photo_returned or self.weights.image):
            return {}
        source, own = pick_batch(batch, cycle.rows), looks
        drawn = self.draw(cycle.returned, own, source)
        terms = {"photo_returned": self._photometric(drawn, source, weight)}
        if self.weights.image:
            first = self.draw(cycle.first, own, source)
            terms["image"] = masked_mean((drawn.image - first.image).abs(), weight)
        return terms

    def _domain_terms(self, cycle: Cycle, batch: HandBatch, sight: Sight) -> dict[str, Tensor]:
        """Tie the features of pictures to those of drawings of what are believed their hands."""
        terms, mine = {}, sight.features[cycle.rows]
        if self.weights.contrast and self.contrast.pairs == "turned":
            there, rotation = cycle.turned.weight, cycle.turned.rotation
            weight = cycle.belief * there
            contrast = self.tie.contrast(mine, cycle.seen.features, rotation, weight)
            terms["contrast"] = _share(weight, there) * contrast
        if cycle.redrawn is None:
            return terms
        image, there = cycle.redrawn.batch.image, cycle.redrawn.weight
        weight = cycle.belief * there
        share = _share(weight, there)
        with frozen_averages(self.backbone):
            drawn = describe(self.backbone.encode(image))
        if self.weights.contrast and self.contrast.pairs == "redrawn":
            terms["contrast"] = share * self.tie.contrast(mine, drawn, None, weight)
        if self.weights.distill:
            images = torch.cat([batch.image[cycle.rows], image])
            distill = self.tie.distill(torch.cat([mine, drawn]), images, weight)
            terms["distill"] = share * distill
        return terms

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, and let the teacher follow, if there is one."""
        super().optimizer_step(*args, **kwargs)
        if self.phase == "cycle":
            self.tie.follow(self.backbone)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with layer decay; warm-up and cosine by step."""
        rest = [self.head, self.texture, *([self.tie] if self.phase == "cycle" else [])]
        steps = int(self.trainer.estimated_stepping_batches)
        return adamw_warmup_cosine(self.backbone.model, rest, self.optimization, steps, self.warmup)


def _share(believed: Tensor, all_: Tensor) -> Tensor:
    """Return what is believed of all: losses are means over it, and little is to cost little."""
    return per_process(believed.sum()) / per_process(all_.sum()).clamp(min=1e-6)


def _texture_terms(looks: Looks) -> dict[str, Tensor]:
    return {
        "latent": losses.gaussian_divergence(looks.mean, looks.log_variance),
        "offset": looks.offset.square().mean(),
        "variation": losses.total_variation(looks.offset),
    }
