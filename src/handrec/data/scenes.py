"""Random scenes of one hand: everything a synthetic image is made from, as numbers.

A scene is drawn on the CPU from its seed alone, so every backend and machine renders the same
picture from it. Skin tones are the ten orbs of the Monk Skin Tone scale (E. Monk, 2019, published
as sRGB values); every other range is our choice and is stated where it is drawn.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from handrec.geometry.camera import project
from handrec.geometry.rotations import axis_angle_to_matrix
from handrec.hand.base import HandModel
from handrec.hand.sampler import PoseSampler

#: Raise whenever the same seed gives another scene: caches are keyed on it.
SCENES_VERSION = 2

#: The full picture that crops are cut from: pixels, and a horizontal field of view of 56 degrees.
_IMAGE_SIZE = (480, 640)
_FOCAL = 600.0

MONK_TONES = (
    "f6ede4", "f3e7db", "f7ead0", "eadaba", "d7bd96",
    "a07e56", "825c43", "604134", "3a312a", "292420",
)  # fmt: skip

SHAPES = 6
WAVES = 8


class Scenes(NamedTuple):
    """A table of scenes; row i is scene i.

    Attributes:
        pose: absolute rotations; entry 0 turns the hand into the camera frame.
        betas: shape coefficients.
        translation: metres, camera frame.
        intrinsics: of a crop of side 1 (multiply the first two rows by the crop's pixels).
        crop_to_image: from a crop of side 1 to the pixels of the full picture.
        skin: RGB of the back of the hand.
        palm: gain of the palm's colour over the back's.
        waves: amplitude and phase of smooth colour variation over the surface.
        ambient: RGB of the ambient light.
        directional: RGB of the directional light.
        light_direction: unit, towards the light, camera frame.
        backdrop: a coarse and a fine grid of background colours, from which it is interpolated.
        texture: its fine part.
        shapes: ``(x, y, half width, half height, roundness, r, g, b)`` of shapes in the background.
        keypoint_noise: detection noise in crops.
        confidence: a detector would give to the noisy keypoints.
    """

    pose: Float[Tensor, "b 16 3 3"]
    betas: Float[Tensor, "b 10"]
    translation: Float[Tensor, "b 3"]
    intrinsics: Float[Tensor, "b 3 3"]
    crop_to_image: Float[Tensor, "b 3 3"]
    skin: Float[Tensor, "b 3"]
    palm: Float[Tensor, "b 3"]
    waves: Float[Tensor, "b k 4"]
    ambient: Float[Tensor, "b 3"]
    directional: Float[Tensor, "b 3"]
    light_direction: Float[Tensor, "b 3"]
    backdrop: Float[Tensor, "b 3 4 4"]
    texture: Float[Tensor, "b 3 24 24"]
    shapes: Float[Tensor, "b s 8"]
    keypoint_noise: Float[Tensor, "b 21 2"]
    confidence: Float[Tensor, "b 21"]


class Uniform:
    """Draws uniform and normal numbers from one generator."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def __call__(self, low: float, high: float, *shape: int) -> Tensor:
        """Return uniform numbers in [low, high)."""
        return low + (high - low) * torch.rand(*shape, generator=self.generator)

    def normal(self, *shape: int) -> Tensor:
        """Return standard normal numbers."""
        return torch.randn(*shape, generator=self.generator)


@dataclass(frozen=True)
class Views:
    """Which views of a hand are drawn; the default is every view, uniformly.

    Attributes:
        cone: greatest angle between the fingers of a straight hand and the picture's up, degrees.
        spin: greatest turn of the palm or of the back away from the camera about the fingers,
            degrees; 90 shows all sides.
    """

    cone: float = 180.0
    spin: float = 90.0


EVERY_VIEW = Views()


def sample_scenes(hand: HandModel, count: int, seed: int, views: Views = EVERY_VIEW) -> Scenes:
    """Return ``count`` scenes; the same seed gives the same scenes.

    Args:
        hand: the model whose poses, shapes and surface are drawn.
        count: rows of the table.
        seed: of all randomness.
        views: from which the hands are seen.
    """
    generator = torch.Generator().manual_seed(seed)
    draw = Uniform(generator)
    pose = PoseSampler(hand).sample(count, generator)
    pose[:, 0] = _look(count, views, draw)
    betas = draw.normal(count, 10).clamp(-2.5, 2.5)
    translation, intrinsics, crop_to_image = _place(hand, pose, betas, draw)
    noise, confidence = _detect(count, draw)
    skin, palm, waves = _paint(count, draw)
    ambient, directional, direction = _light(count, draw, skin)
    backdrop, texture, shapes = _background(count, draw, skin)
    return Scenes(
        pose, betas, translation, intrinsics, crop_to_image, skin, palm, waves,
        ambient, directional, direction, backdrop, texture, shapes, noise, confidence,
    )  # fmt: skip


def _look(count: int, views: Views, draw: Uniform) -> Float[Tensor, "b 3 3"]:
    """Return global rotations: fingers uniform on a cap about up, palm or back to the camera."""
    zero = torch.zeros(count)
    # Fingers from -x to up (-y), then the palm, now at +x, to the camera (-z).
    upright = axis_angle_to_matrix(torch.tensor([0.0, 0.0, math.pi / 2]))
    facing = axis_angle_to_matrix(torch.tensor([0.0, math.pi / 2, 0.0])) @ upright
    reach = math.radians(views.spin)
    turn = draw(-reach, reach, count) + math.pi * (draw(0.0, 1.0, count) < 0.5)
    spin = torch.stack([zero, turn, zero], dim=1)
    tilt = torch.acos(draw(math.cos(math.radians(views.cone)), 1.0, count))
    azimuth = draw(-math.pi, math.pi, count)
    lean = torch.stack([azimuth.cos(), zero, azimuth.sin()], dim=1) * tilt[:, None]
    return axis_angle_to_matrix(lean) @ axis_angle_to_matrix(spin) @ facing


def _place(
    hand: HandModel, pose: Tensor, betas: Tensor, draw: Uniform, chunk: int = 512
) -> tuple[Tensor, Tensor, Tensor]:
    """Put each hand before the camera and cut a jittered crop around it.

    0.35 to 0.9 m away, up to 14 degrees off the axis each way; the crop is 1.15 to 1.5 times the
    longer side of the hand's box, and its centre is off by up to 8 % of that.
    """
    count = len(pose)
    focal = torch.tensor(
        [[_FOCAL, 0, _IMAGE_SIZE[1] / 2], [0, _FOCAL, _IMAGE_SIZE[0] / 2], [0, 0, 1.0]]
    )
    depth = draw(0.35, 0.9, count, 1)
    centre = torch.cat([draw(-0.25, 0.25, count, 2) * depth, depth], dim=1)
    margin, shift = draw(1.15, 1.5, count, 1), draw(-0.08, 0.08, count, 2)
    translation, boxes = torch.empty(count, 3), torch.empty(count, 2, 2)
    for rows in torch.arange(count).split(chunk):
        origin = torch.zeros(len(rows), 3)
        vertices = hand.decode(pose[rows], betas[rows], origin).vertices
        translation[rows] = centre[rows] - vertices.mean(1)
        pixels = project(vertices + translation[rows, None], focal.expand(len(rows), 3, 3))
        boxes[rows] = torch.stack([pixels.amin(1), pixels.amax(1)], dim=1)
    side = (boxes[:, 1] - boxes[:, 0]).amax(1, keepdim=True) * margin
    corner = boxes.mean(1) + (shift - 0.5) * side
    crop_to_image = torch.zeros(count, 3, 3)
    crop_to_image[:, 0, 0] = crop_to_image[:, 1, 1] = side[:, 0]
    crop_to_image[:, :2, 2] = corner
    crop_to_image[:, 2, 2] = 1
    return translation, torch.linalg.inv(crop_to_image) @ focal, crop_to_image


def _detect(count: int, draw: Uniform) -> tuple[Tensor, Tensor]:
    """Return 2D noise in crops, and confidences that follow it, though not perfectly.

    Most keypoints are 0.5 to 3 % of the crop off; 5 % are outliers of 15 %.
    """
    sigma = draw(0.005, 0.03, count, 1) * draw(0.5, 1.5, count, 21)
    sigma = torch.where(draw(0.0, 1.0, count, 21) < 0.05, 0.15, sigma)
    noise = draw.normal(count, 21, 2) * sigma[..., None]
    confidence = torch.exp(-sigma / 0.04) + 0.1 * draw.normal(count, 21)
    return noise, confidence.clamp(0, 1)


def _paint(count: int, draw: Uniform) -> tuple[Tensor, Tensor, Tensor]:
    """Return skin colours: between two neighbouring Monk tones, the palm lighter and redder."""
    tones = torch.tensor(
        [[int(tone[i : i + 2], 16) / 255 for i in (0, 2, 4)] for tone in MONK_TONES]
    )
    position = draw(0.0, len(tones) - 1.0, count)
    lower = position.long()
    skin = torch.lerp(tones[lower], tones[lower + 1], (position - lower)[:, None])
    skin = (skin * draw(0.95, 1.05, count, 3)).clamp(0.02, 0.98)
    palm = 1 + draw(0.0, 0.35, count, 1) * torch.tensor([1.0, 0.75, 0.7])
    waves = torch.cat(
        [draw(-0.04, 0.04, count, WAVES, 3), draw(0.0, 2 * math.pi, count, WAVES, 1)], dim=2
    )
    return skin, palm, waves


def _light(count: int, draw: Uniform, skin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return ambient and directional light, from anywhere but far behind the hand."""
    tint = 1 + draw(-0.06, 0.06, count, 3)
    # A camera exposes for what it looks at, in part: dark skin is not drawn black.
    tint = tint * (0.45 / skin.mean(1, keepdim=True)) ** 0.35
    ambient = draw(0.4, 0.9, count, 1)
    directional = (1.1 - ambient) * draw(0.7, 1.2, count, 1) * tint
    direction = draw.normal(count, 3)
    direction[:, 2] = -direction[:, 2].abs() + 0.3
    return ambient * tint, directional, torch.nn.functional.normalize(direction, dim=1)


def _background(count: int, draw: Uniform, skin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the colours of a blurry backdrop with shapes before it, a third of them skin-like."""
    backdrop = draw(0.15, 0.85, count, 1, 1, 1) + draw(-0.12, 0.12, count, 3, 1, 1)
    contrast = draw(0.02, 0.25, count, 1, 1, 1)
    backdrop = backdrop + contrast * _greyish(draw, count, 4)
    texture = draw(0.0, 0.1, count, 1, 1, 1) * _greyish(draw, count, 24)
    colour = draw(0.0, 1.0, count, SHAPES, 1) + draw(-0.2, 0.2, count, SHAPES, 3)
    like_skin = draw(0.0, 1.0, count, SHAPES, 1) < 1 / 3
    colour = torch.where(like_skin, skin[:, None] * draw(0.7, 1.2, count, SHAPES, 1), colour)
    half = draw(0.03, 0.3, count, SHAPES, 2)
    half *= (draw(0.0, 1.0, count, SHAPES, 1) < 0.5).float()  # a shape of no size is not drawn
    place = draw(0.0, 1.0, count, SHAPES, 2)
    shapes = torch.cat([place, half, draw(0.0, 1.0, count, SHAPES, 1), colour], dim=2)
    return backdrop, texture, shapes


def _greyish(draw: Uniform, count: int, side: int) -> Float[Tensor, "b 3 s s"]:
    """Return normal noise that differs little between colours, as in pictures of real things."""
    return draw.normal(count, 1, side, side) + 0.3 * draw.normal(count, 3, side, side)
