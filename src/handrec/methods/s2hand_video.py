"""S2HAND(V): S2HAND that also learns from how hands move, look and stay the same in videos.

Z. Tu et al., "Consistent 3D Hand Reconstruction in Video via Self-Supervised Learning", TPAMI 2023.
The network is S2HAND's, frame by frame; only the training differs. The formulas of the added losses
are ours (docs/methods/s2hand.md).
"""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from handrec.data.augment import Augmentation
from handrec.data.clips import Clip
from handrec.errors import UserError, positive
from handrec.geometry.camera import move_pixels
from handrec.hand.joints import PALM
from handrec.losses import photometric, s2hand, temporal
from handrec.methods.base import Method
from handrec.methods.loading import load_method
from handrec.methods.s2hand import S2HAND, S2HANDWeights, Seen
from handrec.types import HandBatch

logger = logging.getLogger(__name__)

#: A difference in the hand's scale that counts as much as a standard deviation of a coefficient.
_SCALE_UNIT = 0.05


@dataclass(frozen=True)
class S2HANDVideoWeights(S2HANDWeights):
    """Weights of S2HAND's losses and of those on clips; the latter's defaults are our choice.

    Attributes:
        motion: squared sine of half the angle between a joint's rotation and the expected one.
        smooth: metres that the palm's joints, relative to the wrist, are off the line between their
            places before and after. Not the fingers': from those it takes their bending, too. Does
            not pull on the palm's size.
        same_shape: spread of shape coefficients and scale over a clip.
        same_texture: share of the variance of the colours without light that lies within clips.
        steady: distance of rotations from those that the network at its start gives, straightened
            along each clip: most of what shakes is not of the hand. Wants a ``checkpoint``.
        steady_keypoints: the same of the 2D branch's keypoints, pixels of a crop of 224. Where the
            3D branch lifts them, what shakes is they, and no gradient of other terms reaches them.
    """

    motion: float = 0.1
    smooth: float = 0.0
    same_shape: float = 0.01
    same_texture: float = 0.01
    steady: float = 0.0
    steady_keypoints: float = 0.0


class S2HANDVideo(S2HAND):
    """S2HAND with losses on clips beside those on each frame.

    Rows of a batch that follow each other with one ``sequence`` and rising ``frame`` are a clip.
    Single pictures in the same batch have the single-frame losses only.

    Args:
        weights: of the losses.
        include_global: whether the motion loss holds for the whole hand's rotation too, not only
            for the fingers'.
        max_gap: frames of a video that lie farther apart are of two clips.
        checkpoint: of a run of ``s2hand``: all branches start from it.
        frozen_norm: frames of a clip look alike: by the statistics of a batch with few scenes the
            network would learn what it cannot see in evaluation.
        disturb: how what the 2D branch is shown differs from picture to picture in training, beside
            the augmentation of the data, which is one for a clip: it is to say the same. None for
            nothing.
        options: see :class:`~handrec.methods.s2hand.S2HAND`.
    """

    weights: S2HANDVideoWeights

    def __init__(
        self,
        *,
        weights: S2HANDVideoWeights = S2HANDVideoWeights(),
        include_global: bool = False,
        max_gap: int = 4,
        checkpoint: str | None = None,
        frozen_norm: bool = True,
        disturb: Augmentation | None = None,
        **options: Any,
    ) -> None:
        super().__init__(weights=weights, frozen_norm=frozen_norm, **options)
        positive(self, max_gap=max_gap)
        self.disturb = disturb
        self.include_global, self.max_gap = include_global, max_gap
        branches = ("backbone.", "regressor.", "appearance.", "keypoints.")
        own = [name for name in branches if getattr(self, name[:-1]) is not None]
        self.starts.insert(0, (checkpoint, tuple(own)))
        self.checkpoint, self.steady = checkpoint, weights.steady or weights.steady_keypoints
        self.start: tuple[Method, ...] = ()  # in a tuple: no part of this network's state

    def setup(self, stage: str) -> None:
        """Load the network at its start."""
        super().setup(stage)
        if stage == "fit" and self.steady:
            if self.checkpoint is None:
                raise UserError(
                    "weights.steady, steady_keypoints: they follow the start, so want a checkpoint"
                )
            start = load_method(self.checkpoint)
            self.start = (start.eval().requires_grad_(False),)

    def check_data(self, data: Any) -> None:
        """Refuse data without clips, too."""
        super().check_data(data)
        if data is not None:
            self.check_clips(data)

    def check_clips(self, data: Any) -> None:
        """Refuse data without clips, and clips whose frames are too far apart."""
        parts = getattr(data, "sets", {data.name: data}).values()  # of a mixture
        clips: list[tuple[Clip, int]] = [
            (part.clip, part.clip.per_batch(part.batch_size))
            for part in parts
            if getattr(part, "clip", None) is not None
        ]
        if not clips:
            remedy = "--data.init_args.clip.length=5 takes some from its videos"
            if not getattr(data, "has_videos", False):
                remedy = "docs/datasets.md says which data sets have some"
            raise UserError(f"S2HANDVideo learns from clips, and {data.name} gives none: {remedy}")
        stride = max(clip.stride for clip, _ in clips)
        if stride > self.max_gap:
            raise UserError(
                f"clips with stride {stride}, and frames farther than max_gap {self.max_gap}"
                " apart are of two clips: nothing would be learnt from them,"
                f" max_gap={stride} joins them"
            )
        if self.weights.same_texture and sum(count for _, count in clips) == 1:
            rank_zero_only(logger.warning)(
                "same_texture compares clips, and a batch has one: nothing is learnt from it;"
                " a greater data.batch_size or clip.share gives more"
            )

    def see(self, batch: HandBatch) -> Seen:
        """Return what every branch says of the images; in training the 2D one of disturbed ones.

        Not so the keypoints that the 3D branch lifts: it would learn to trust them less than it
        may where nothing disturbs.
        """
        seen = super().see(batch)
        if self.keypoints is None or self.disturb is None or not self.training:
            return seen
        image, warp = self.disturb.disturb(batch.image)
        found = self.keypoints.find(image)
        keypoints = move_pixels(found.keypoints, torch.linalg.inv(warp))
        return seen._replace(found=found._replace(keypoints=keypoints, warp=warp))

    def terms(self, seen: Seen, batch: HandBatch) -> dict[str, Tensor]:
        """Return the losses that have a weight, by name."""
        clips = {
            name: term
            for name, term in self.clip_terms(seen, batch).items()
            if getattr(self.weights, name) != 0
        }
        return super().terms(seen, batch) | clips

    def clip_terms(self, seen: Seen, batch: HandBatch) -> dict[str, Tensor]:
        """Return the losses on clips."""
        clips = temporal.find_clips(batch.sequence, batch.frame, self.max_gap)
        hand = seen.hand
        confident = s2hand.confident(batch.confidence)
        rotations = hand.pose if self.include_global else hand.pose[:, 1:]
        palm = hand.joints[:, PALM] - hand.joints[:, :1]
        size = palm.norm(dim=2).mean(1)[:, None, None]
        palm = palm * (size.detach() / size)  # a smaller hand would be a smoother one
        shape = torch.cat([hand.betas, hand.size[:, None] / _SCALE_UNIT], dim=1)
        terms = {
            "motion": temporal.motion_loss(rotations, clips, confident),
            "smooth": temporal.smooth_loss(palm, clips, confident),
            "same_shape": temporal.spread_loss(shape, clips, confident),
        }
        if self.start:
            terms |= self.steady_terms(seen, batch, clips)
        if seen.appearance is not None:
            k = photometric.texture_confidence(batch.confidence, self.texture_gate)
            terms["same_texture"] = temporal.within_share_loss(seen.appearance.texture, clips, k)
        return terms

    def steady_terms(
        self, seen: Seen, batch: HandBatch, clips: temporal.Clips
    ) -> dict[str, Tensor]:
        """Return how far both branches are from their start's answers, straightened in time."""
        confident, before = s2hand.confident(batch.confidence), self.before(batch)
        answers = {"steady": (seen.hand.pose, before.hand.pose)}
        if seen.found is not None and before.found is not None:
            now, then = (
                s2hand.to_published_pixels(found.keypoints[-1], batch.camera.image_size)
                for found in (seen.found, before.found)
            )
            answers["steady_keypoints"] = now, then
        terms = {}
        for name, (now, then) in answers.items():
            target = temporal.straightened(then, clips, confident)
            terms[name] = temporal.follow_loss(now, target, clips, confident)
        return terms

    @torch.no_grad()
    def before(self, batch: HandBatch) -> Seen:
        """Return what the network at its start says."""
        (start,) = self.start
        assert isinstance(start, S2HAND)
        return start.to(batch.image.device).see(batch)
