"""What is in the picture besides the hand: forearm, sleeve, a thing, another hand.

A table of numbers, of which ``meshes`` makes geometry. Every range is our choice and is stated
where it is drawn.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from handrec.data.scenes import Uniform
from handrec.geometry.rotations import random_rotations
from handrec.hand.joints import FINGERS, KINEMATIC_JOINTS


@dataclass(frozen=True)
class PropOptions:
    """The shares of the pictures in which something is seen besides the hand.

    Attributes:
        forearm: without one the hand ends at the wrist.
        sleeve: on the forearm, of those that have one.
        held: a thing between palm and fingers.
        before: a thing between camera and hand.
        behind: a thing behind the hand.
        other_hand: a second hand with its forearm, mostly the left one.
    """

    forearm: float = 0.95
    sleeve: float = 0.45
    held: float = 0.25
    before: float = 0.12
    behind: float = 0.1
    other_hand: float = 0.15


DEFAULT_PROPS = PropOptions()


class Props(NamedTuple):
    """A table of props; row i is that of look i. Lengths in metres, angles in radians.

    Attributes:
        arm: 1 if there is a forearm; growth of its radii towards the elbow; how much lighter it is
            than the hand.
        bend: of the wrist and of the other hand's: sideways, and towards the palm.
        sleeve: 1 if there is one; where it starts behind the wrist; its slack; depth of its folds,
            their length, slant and phase.
        cloth: its paint: two colours, cycles per metre along and per turn, contrast of the edges,
            stripes or checks, gloss.
        thing: 1 if it is held, 2 before the hand, 3 behind it, 0 if there is none.
        thing_half: half axes; of a thing that is held the first is the greatest, and the second is
            relative to it.
        thing_roundness: see :func:`~handrec.data.appearance.solids.superquadric`.
        thing_turn: of a thing that is not held; the long axis's tilt in one that is.
        thing_place: where it is seen relative to the hand, and its gap to it.
        thing_paint: as ``cloth``, all cycles per metre.
        other: 1 if there is another hand, and 1 if it is a left one.
        other_angles: twist, spread and bend of its joints.
        other_betas: its shape.
        other_turn: to the camera frame.
        other_place: 0 behind, 1 before, 2 beside; share of the distance at which it is apart; gap;
            how far from its arm's direction it is put.
    """

    arm: Float[Tensor, "b 3"]
    bend: Float[Tensor, "b 2 2"]
    sleeve: Float[Tensor, "b 7"]
    cloth: Float[Tensor, "b 11"]
    thing: Float[Tensor, " b"]
    thing_half: Float[Tensor, "b 3"]
    thing_roundness: Float[Tensor, "b 2"]
    thing_turn: Float[Tensor, "b 3"]
    thing_place: Float[Tensor, "b 3"]
    thing_paint: Float[Tensor, "b 11"]
    other: Float[Tensor, "b 2"]
    other_angles: Float[Tensor, "b 15 3"]
    other_betas: Float[Tensor, "b 10"]
    other_turn: Float[Tensor, "b 3 3"]
    other_place: Float[Tensor, "b 4"]


def sample_props(
    count: int, generator: torch.Generator, options: PropOptions = DEFAULT_PROPS
) -> Props:
    """Return ``count`` rows; the same generator state gives the same rows.

    Args:
        count: of rows.
        generator: source of all randomness.
        options: shares.
    """
    draw = Uniform(generator)
    arm = torch.cat(
        [
            _chance(draw, count, options.forearm),
            draw(0.25, 0.6, count, 1),
            draw(-0.08, 0.12, count, 1),
        ],
        dim=1,
    )
    # Up to 60 degrees up and down, 25 sideways: short of what a wrist can do.
    bend = draw.normal(count, 2, 2) * torch.tensor([0.13, 0.4])
    bend = bend.clamp(-2.6, 2.6).minimum(torch.tensor([0.44, 1.05]))
    bend = bend.maximum(torch.tensor([-0.44, -1.05]))
    kind = draw(0.0, 1.0, count)
    ends = torch.tensor([options.held, options.before, options.behind]).cumsum(0)
    thing = torch.where(kind < ends[2], 1.0 + (kind[:, None] >= ends[:2]).sum(1), 0.0)
    other = torch.cat([_chance(draw, count, options.other_hand), _chance(draw, count, 0.75)], dim=1)
    place = torch.cat(
        [draw(0.0, 3.0, count, 1).floor(), draw(0.0, 1.0, count, 2), draw(-1.0, 1.0, count, 1)], 1
    )
    return Props(
        arm, bend, _sample_sleeve(draw, count, options), _sample_paint(draw, count, gloss=0.1),
        thing, *_sample_thing(draw, count), _sample_paint(draw, count, gloss=1.5),
        other, _sample_angles(draw, count), draw.normal(count, 10).clamp(-2, 2),
        random_rotations(count, generator), place,
    )  # fmt: skip


def _chance(draw: Uniform, count: int, share: float) -> Float[Tensor, "b 1"]:
    return (draw(0.0, 1.0, count, 1) < share).float()


def _sample_sleeve(draw: Uniform, count: int, options: PropOptions) -> Float[Tensor, "b 7"]:
    """Return sleeves: from tight cuffs at the wrist to loose ones at half of the forearm."""
    start = 0.004 + 0.12 * draw(0.0, 1.0, count, 1).square()
    return torch.cat(
        [
            _chance(draw, count, options.sleeve),
            start,
            draw(0.003, 0.012, count, 1) + 0.05 * start,
            draw(0.1, 0.5, count, 1),
            draw(0.035, 0.08, count, 1),
            draw(-2.0, 2.0, count, 1),
            draw(0.0, 2 * math.pi, count, 1),
        ],
        dim=1,
    )


def _sample_paint(draw: Uniform, count: int, gloss: float) -> Float[Tensor, "b 11"]:
    """Return paints: a colour and a second one like it or not; plain, striped or checked."""
    colour = draw(0.03, 0.9, count, 1) + draw(-0.3, 0.3, count, 3) * draw(0.0, 1.0, count, 1)
    second = torch.where(
        draw(0.0, 1.0, count, 1) < 0.6,
        colour * draw(0.75, 1.2, count, 1),
        draw(0.05, 0.95, count, 3),
    )
    cycles = torch.cat([draw(10.0, 80.0, count, 1), draw(0.0, 9.0, count, 1).floor()], dim=1)
    rest = [draw(0.3, 8.0, count, 1), draw(0.0, 1.0, count, 1), draw(0.0, gloss, count, 1)]
    return torch.cat([colour.clamp(0.02, 0.95), second.clamp(0.02, 0.95), cycles, *rest], dim=1)


def _sample_thing(draw: Uniform, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return half axes, roundness, turn and place of things."""
    half = torch.cat([draw(0.008, 0.045, count, 1), draw(0.55, 1.0, count, 1)], dim=1)
    half = torch.cat([half, draw(0.015, 0.09, count, 1)], dim=1)
    round_or_not = torch.tensor([[0.12, 1.0], [0.12, 0.12], [1.0, 1.0], [0.5, 0.5]])
    roundness = round_or_not[(draw(0.0, 4.0, count)).long()]
    turn = draw.normal(count, 3)
    place = torch.cat([draw(-1.1, 1.1, count, 2), draw(0.003, 0.06, count, 1)], dim=1)
    return half, roundness, turn, place


def _sample_angles(draw: Uniform, count: int) -> Float[Tensor, "b 15 3"]:
    """Return joint angles of a hand between open and closed, fingers much alike."""
    curl = (draw(0.0, 1.0, count, 1) + draw(-0.25, 0.25, count, len(FINGERS))).clamp(0, 1)
    angles = torch.zeros(count, 15, 3)
    for finger, name in enumerate(FINGERS):
        first = KINEMATIC_JOINTS.index(f"{name}_{'cmc' if name == 'thumb' else 'mcp'}") - 1
        most = (0.4, 0.7, 0.9) if name == "thumb" else (1.35, 1.6, 1.05)
        angles[:, first : first + 3, 2] = curl[:, finger : finger + 1] * torch.tensor(most)
        angles[:, first, 1] = draw(-0.1, 0.1, count)
    return angles
