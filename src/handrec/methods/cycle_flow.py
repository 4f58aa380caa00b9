"""The cyclic flow: from a reconstruction to a drawing of it from elsewhere, and back."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from handrec.data.appearance.base import Stage
from handrec.data.scenes import Uniform, sample_betas
from handrec.errors import UserError, fraction, one_of, positive, rising
from handrec.geometry.camera import project
from handrec.hand.anatomy import SphereProxies
from handrec.hand.base import HandModel
from handrec.hand.joints import FINGERS
from handrec.hand.sampler import PENETRATION_TOLERANCE, PoseSampler
from handrec.models.base import Estimates
from handrec.models.cycle_rotation import Turns, crop_to_box, sample_turns, turn_hand
from handrec.models.cycle_scene import Own, Redrawn, Shares, redraw
from handrec.render.base import Rasterizer
from handrec.types import Camera, Hand, HandBatch, HandPrediction

#: A drawn hand is at least this far from the camera, metres: nearer ones are moved back.
NEAREST = 0.3

#: What leaves hands as they are.
NO_TURN = Turns(bounds=(0.0, 0.0))

#: How far a crop's centre is off its hand's, shares of the crop: as in ``data.scenes``.
_OFF_CENTRE = 0.08


#: Which hands are drawn, see :class:`Flow`.
Drawn = Literal["known", "reconstructed", "sampled"]


@dataclass(frozen=True)
class Flow:
    """How reconstructions are turned and drawn.

    Attributes:
        share: of a batch that is turned in each step.
        turns: by what.
        kept: what of the pictures remains.
        recolour: share of the labelled pictures and of the drawings that get the colours of
            unlabelled pictures, somewhat, see ``models.cycle_scene.recolour``.
        grain: share of both that get the noise of unlabelled pictures, see
            ``models.cycle_scene.add_grain``.
        hands: which are turned and drawn. ``known``: those of labelled pictures as labelled, those
            of the others as reconstructed. ``reconstructed``: all as reconstructed. ``sampled``:
            random poses and shapes instead, which makes the cycle plain training on further
            drawings (a baseline; no hand is turned back).
        exchange: share of the drawn hands that get fingers of labelled ones; they have nothing to
            return to.
        margin: least and greatest side of a crop, in longer sides of the hand's box; at least 1.
        smallest: share of the crop that a hand must cover to count.
        ramp: share of the training in which ``rendered`` and ``returned`` grow to full weight.
        tolerance: of keypoints, share of the crop, see ``losses.cycle.keypoint_agreement``.
    """

    share: float = 0.5
    turns: Turns = field(default_factory=Turns)
    kept: Shares = field(default_factory=Shares)
    recolour: float = 0.5
    grain: float = 0.5
    hands: Drawn = "known"
    exchange: float = 0.0
    margin: tuple[float, float] = (1.15, 1.5)
    smallest: float = 0.03
    ramp: float = 0.1
    tolerance: float = 0.1

    def __post_init__(self) -> None:
        one_of(self, Drawn, hands=self.hands)
        least, greatest = self.margin
        positive(self, share=self.share, least_margin=least, greatest_margin=greatest)
        positive(self, tolerance=self.tolerance)
        rising(self, margin=self.margin)
        if least < 1:
            raise UserError(f"Flow: margin must be at least 1, not {least}: hands would be cut off")
        fraction(self, share=self.share, recolour=self.recolour, grain=self.grain)
        fraction(self, smallest=self.smallest, ramp=self.ramp, exchange=self.exchange)
        if self.exchange and self.hands != "known":
            raise UserError("Flow: only labelled hands lend fingers: hands=known, or exchange=0")


DEFAULT_FLOW = Flow()


class Turned(NamedTuple):
    """State (b): turned hands, drawn.

    Attributes:
        batch: the drawings; their labels are exact, and 0 in ``has_*`` where a hand does not count.
        rotation: by which they were turned, camera frame.
        centre: about which, metres: where it was.
        place: where that point is in (b).
        weight: 1 where a hand counts.
    """

    batch: HandBatch
    rotation: Float[Tensor, "b 3 3"]
    centre: Float[Tensor, "b 3"]
    place: Float[Tensor, "b 3"]
    weight: Float[Tensor, " b"]

    def with_image(self, image: Float[Tensor, "b 3 h w"]) -> "Turned":
        """Return the same hands in other pictures."""
        return self._replace(batch=self.batch._replace(image=image))


class Cycle(NamedTuple):
    """The four states of some rows of a batch.

    Attributes:
        rows: of the batch.
        first: (a), with gradient.
        turned: (b), without.
        seen: features of (b), and (c) after every iteration.
        returned: (d).
        trust: in (a), 0 to 1.
        known: whether a hand was drawn as labelled, not as reconstructed.
        exchanged: whether it was drawn with fingers of others.
        redrawn: the same hands as they were seen, drawn, or None.
    """

    rows: Int[Tensor, " n"]
    first: HandPrediction
    turned: Turned
    seen: "Sight"
    returned: HandPrediction
    trust: Float[Tensor, " n"]
    known: Bool[Tensor, " n"]
    exchanged: Bool[Tensor, " n"]
    redrawn: Turned | None

    @property
    def belief(self) -> Float[Tensor, " n"]:
        """That what is drawn is the picture's hand: 1 where it was labelled, else the trust."""
        return torch.where(self.exchanged, 0.0, torch.where(self.known, 1.0, self.trust))


class Sight(NamedTuple):
    """What a network makes of pictures.

    Attributes:
        features: one vector each.
        estimates: of their hands.
    """

    features: Float[Tensor, "b c"]
    estimates: Estimates


def pick(hands: HandPrediction, rows: Int[Tensor, " n"]) -> HandPrediction:
    """Return some hands; texture and light are left out."""
    return HandPrediction(*(column[rows] for column in hands[:6]))


def detached(hands: HandPrediction) -> HandPrediction:
    """Return hands without their gradient; texture and light are left out."""
    return HandPrediction(*(column.detach() for column in hands[:6]))


def pick_batch(batch: HandBatch, rows: Int[Tensor, " n"]) -> HandBatch:
    """Return some rows of a batch."""
    return HandBatch(*(column[rows] for column in batch))


@torch.no_grad()
def turn_and_draw(
    hands: HandPrediction,
    source: HandBatch,
    own: Own,
    flow: Flow,
    model: HandModel,
    rasterizer: Rasterizer,
    appearance: Redrawn,
    progress: float,
    generator: torch.Generator,
) -> Turned:
    """Return hands turned about their centroids and drawn in a crop around where they are then.

    Args:
        hands: (a).
        source: the pictures they were reconstructed from.
        own: texture and background of each.
        flow: how.
        model: of the hands.
        rasterizer: draws.
        appearance: of the drawings.
        progress: of the training, 0 to 1.
        generator: source of all randomness, on the CPU.
    """
    count, device = len(hands.pose), hands.pose.device
    rotation = sample_turns(count, flow.turns, progress, generator).to(device)
    draw = Uniform(generator)
    margin = draw(*flow.margin, count).to(device)
    shift = draw(-_OFF_CENTRE, _OFF_CENTRE, count, 2).to(device)
    seeds = draw.seeds(count).to(device)
    centre = hands.vertices.mean(1)
    place = torch.cat([centre[:, :2], centre[:, 2:].clamp(min=NEAREST)], dim=1)
    turned = turn_hand(hands, rotation, centre, place, source.camera)
    camera = crop_to_box(turned.vertices, source.camera, margin, shift)
    posed = Hand(turned.vertices, turned.joints)
    stage = Stage(model, posed, turned.pose, camera, seeds, rasterizer)
    picture = redraw(appearance, stage, own, flow.kept, generator)
    weight = (picture.mask.mean((1, 2, 3)) >= flow.smallest).float()
    batch = _labelled(picture.image, turned, camera, source, weight)
    batch = batch._replace(mask=picture.mask, visibility=picture.visibility)
    return Turned(batch, rotation, centre, place, weight)


def _labelled(
    image: Tensor, hands: HandPrediction, camera: Camera, source: HandBatch, weight: Tensor
) -> HandBatch:
    """Return drawings with what was drawn as labels."""
    with torch.autocast(image.device.type, enabled=False):
        back = source.intrinsics @ torch.linalg.inv_ex(camera.intrinsics).inverse
        crop_to_image = source.crop_to_image @ back
    return source._replace(
        image=image,
        intrinsics=camera.intrinsics,
        keypoints_2d=project(hands.joints, camera.intrinsics),
        confidence=weight[:, None].expand(-1, hands.joints.shape[1]),
        joints_3d=hands.joints,
        vertices=hands.vertices,
        pose=hands.pose,
        betas=hands.betas,
        translation=hands.translation,
        has_joints_3d=weight,
        has_vertices=weight,
        has_pose=weight,
        has_mask=weight,
        has_visibility=weight,
        crop_to_image=crop_to_image,
    )


def turn_back(hands: HandPrediction, turned: Turned, camera: Camera) -> HandPrediction:
    """Return (d): hands (c), turned back to where (a) is seen; with gradient.

    About their own centroid, not about where (b) was: no picture tells how far off a hand is, and
    what (c) is off in depth the turn would make an offset to the side, out of the picture.
    """
    return turn_hand(hands, turned.rotation.mT, hands.vertices.mean(1), turned.centre, camera)


def known_hands(hands: HandPrediction, source: HandBatch) -> HandPrediction:
    """Return the hands of labels where there are any, and the given ones elsewhere.

    Reconstructions are drawn to the mean: drawn alone, they would teach that hands are all alike.

    Args:
        hands: (a), of every picture.
        source: the pictures and their labels.
    """
    given = HandPrediction(
        source.vertices,
        source.joints_3d,
        source.keypoints_2d,
        source.pose,
        source.betas,
        source.translation,
    )
    return _where(is_known(source), given, hands)


def is_known(batch: HandBatch) -> Bool[Tensor, " b"]:
    """Return where labels say all that it takes to draw a hand."""
    return batch.has_pose * batch.has_vertices * batch.has_joints_3d > 0


@torch.no_grad()
def exchange_fingers(
    hands: HandPrediction,
    known: Bool[Tensor, " n"],
    share: float,
    model: HandModel,
    spheres: SphereProxies,
    generator: torch.Generator,
) -> tuple[HandPrediction, Bool[Tensor, " n"]]:
    """Return hands of which some have fingers of known ones, and which these are.

    Labels are few, and their poses are soon known by heart: each finger may follow another hand.
    Reconstructions are drawn to the mean: with fingers of labelled hands their looks are seen in
    all poses. Place, shape and global rotation stay. A hand that would run into itself stays as it
    is.

    Args:
        hands: any.
        known: those that give fingers.
        share: of all hands that take some.
        model: of the hands.
        spheres: of that model.
        generator: source of all randomness, on the CPU.
    """
    count, device = len(hands.pose), hands.pose.device
    if not share:
        return hands, torch.zeros_like(known)
    # The rotations of a finger's three joints follow each other. Whose they are is drawn on the
    # device, among all rows: counting the known ones would make a host wait.
    fingers = len(FINGERS)
    tickets = torch.rand(count, fingers, count, generator=generator).to(device)
    donors = torch.where(known, tickets, -1.0).argmax(-1)
    articulation = hands.pose[:, 1:].unflatten(1, (fingers, -1))
    given = articulation[donors, torch.arange(fingers, device=device)].flatten(1, 2)
    pose = torch.cat([hands.pose[:, :1], given], dim=1)
    other = _posed(model, pose, hands.betas, hands)
    chosen = (Uniform(generator)(0.0, 1.0, count) < share).to(device)
    free = spheres.penetration(other.joints).amax(1) < PENETRATION_TOLERANCE
    takes = chosen & free & known.any()
    return _where(takes, other, hands), takes


def sample_hands(
    sampler: PoseSampler, model: HandModel, like: HandPrediction, generator: torch.Generator
) -> HandPrediction:
    """Return hands in random poses and shapes where others are, turned as they are.

    Args:
        sampler: of poses.
        model: of the hands.
        like: whose places and global rotations are taken.
        generator: source of all randomness, on the CPU.
    """
    count, device = len(like.pose), like.pose.device
    pose = sampler.sample(count, generator).to(device)
    pose = torch.cat([like.pose[:, :1], pose[:, 1:]], dim=1)
    betas = sample_betas(count, Uniform(generator)).to(device)
    return _posed(model, pose, betas, like)


def _posed(model: HandModel, pose: Tensor, betas: Tensor, like: HandPrediction) -> HandPrediction:
    """Return posed hands with their centroids where those of others are."""
    posed = model.decode(pose, betas, torch.zeros_like(like.translation))
    shift = like.vertices.mean(1) - posed.vertices.mean(1)
    vertices, joints = (points + shift[:, None] for points in posed)
    return HandPrediction(vertices, joints, like.keypoints_2d, pose, betas, shift)


def _where(mask: Tensor, new: HandPrediction, old: HandPrediction) -> HandPrediction:
    """Return the new hands where the mask says so; texture and light are left out."""
    return HandPrediction(
        *(
            torch.where(mask.view(-1, *[1] * (b.ndim - 1)), a, b)
            for a, b in zip(new[:6], old[:6], strict=True)
        )
    )


@contextmanager
def frozen_averages(*modules: nn.Module) -> Iterator[None]:
    """Keep running statistics as they are: drawings are normalised by their own.

    What evaluation normalises by stays that of the given pictures alone.
    """
    norms = [m for module in modules for m in module.modules() if isinstance(m, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
