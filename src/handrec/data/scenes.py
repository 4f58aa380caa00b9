"""Random scenes of one hand: where it is, how it is posed, which camera sees it; as numbers.

What a scene looks like is not in here but in a ``Look`` (see ``data.appearance.base``): the same
hands can be drawn in any domain. A scene is drawn on the CPU from its seed alone, so every machine
makes the same one. Every range is our choice and is stated where it is drawn.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from handrec.geometry.camera import project
from handrec.geometry.rotations import axis_angle_to_matrix, random_rotations
from handrec.hand.base import HandModel
from handrec.hand.sampler import PoseSampler
from handrec.types import Camera

#: Raise whenever the same seed gives another scene: caches are keyed on it.
SCENES_VERSION = 3

#: The full picture that crops are cut from: pixels, and a horizontal field of view of 56 degrees.
IMAGE_SIZE = (480, 640)
FOCAL = 600.0


class Scenes(NamedTuple):
    """A table of scenes; row i is scene i.

    Attributes:
        pose: absolute rotations; entry 0 turns the hand into the camera frame.
        betas: shape coefficients.
        translation: metres, camera frame.
        intrinsics: of a crop of side 1 (multiply the first two rows by the crop's pixels).
        crop_to_image: from a crop of side 1 to the pixels of the full picture.
        sequence: number of the video that the scene is a frame of; else its own number.
        frame: its number in the video; 0 if there is none.
        noise_seed: of what differs between frames of one look: sensor noise, detected keypoints.
    """

    pose: Float[Tensor, "b 16 3 3"]
    betas: Float[Tensor, "b 10"]
    translation: Float[Tensor, "b 3"]
    intrinsics: Float[Tensor, "b 3 3"]
    crop_to_image: Float[Tensor, "b 3 3"]
    sequence: Int[Tensor, " b"]
    frame: Int[Tensor, " b"]
    noise_seed: Int[Tensor, " b"]


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

    def seeds(self, count: int) -> Int[Tensor, " count"]:
        """Return seeds of further random numbers."""
        return torch.randint(2**62, (count,), generator=self.generator)


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

    @property
    def share(self) -> float:
        """The share of all views that these are, 0 to 1."""
        return (1 - math.cos(math.radians(self.cone))) / 2 * min(self.spin / 90, 1.0)

    def include(self, rotation: Float[Tensor, "b 3 3"]) -> Bool[Tensor, " b"]:
        """Say which global rotations are among these views."""
        lean, turn = lean_and_turn(rotation)
        side = torch.remainder(turn + math.pi / 2, math.pi) - math.pi / 2  # palm or back
        tilt = torch.linalg.vector_norm(lean, dim=1)
        inside: Tensor = (tilt <= math.radians(self.cone)) & (side.abs() <= math.radians(self.spin))
        return inside


EVERY_VIEW = Views()


def sample_scenes(
    hand: HandModel, count: int, seed: int, views: Views = EVERY_VIEW, outside: bool = False
) -> Scenes:
    """Return ``count`` scenes, numbered from 0; the same seed gives the same scenes.

    Args:
        hand: the model whose poses, shapes and surface are used.
        count: rows of the table.
        seed: of all randomness.
        views: from which the hands are seen.
        outside: from which they are not seen: every other view instead, uniformly.
    """
    generator = torch.Generator().manual_seed(seed)
    draw = Uniform(generator)
    pose = PoseSampler(hand).sample(count, generator)
    pose[:, 0] = _views_outside(count, views, generator) if outside else _views(count, views, draw)
    betas = sample_betas(count, draw)
    depth = draw(0.35, 0.9, count, 1)
    centre = torch.cat([draw(-0.25, 0.25, count, 2) * depth, depth], dim=1)
    margin, shift = sample_crops(count, draw)
    translation, boxes = place(hand, pose, betas, centre)
    intrinsics, crop_to_image = cut(boxes, margin, shift)
    number = torch.arange(count)
    return Scenes(
        pose, betas, translation, intrinsics, crop_to_image, number, torch.zeros_like(number),
        draw.seeds(count),
    )  # fmt: skip


def sample_betas(count: int, draw: Uniform) -> Float[Tensor, "b 10"]:
    """Return shapes: normal, cut off at 2.5 standard deviations."""
    return draw.normal(count, 10).clamp(-2.5, 2.5)


def sample_crops(count: int, draw: Uniform) -> tuple[Float[Tensor, "b 1"], Float[Tensor, "b 2"]]:
    """Return how crops miss the hand's box: 1.15 to 1.5 times its longer side, 8 % off centre."""
    return draw(1.15, 1.5, count, 1), draw(-0.08, 0.08, count, 2)


def rotation_of(lean: Float[Tensor, "b 2"], turn: Float[Tensor, " b"]) -> Float[Tensor, "b 3 3"]:
    """Return global rotations: an upright hand, turned about its fingers, then leaning.

    Args:
        lean: ``(x, z)`` of the rotation vector, radians, that takes up to the fingers.
        turn: about the vertical, radians; 0 shows the palm, pi the back.
    """
    zero = torch.zeros_like(turn)
    spin = axis_angle_to_matrix(torch.stack([zero, turn, zero], dim=1))
    tilt = axis_angle_to_matrix(torch.stack([lean[:, 0], zero, lean[:, 1]], dim=1))
    return tilt @ spin @ _facing()


def lean_and_turn(
    rotation: Float[Tensor, "b 3 3"],
) -> tuple[Float[Tensor, "b 2"], Float[Tensor, " b"]]:
    """Return what :func:`rotation_of` makes a rotation of; singular where fingers point down."""
    fingers = -rotation[:, :, 0]
    tilt = torch.acos((-fingers[:, 1]).clamp(-1, 1))
    # up x fingers, with up = (0, -1, 0): the axis that the hand leans about
    axis = torch.stack([-fingers[:, 2], fingers[:, 0]], dim=1)
    lean = torch.nn.functional.normalize(axis, dim=1) * tilt[:, None]
    zero = torch.zeros_like(tilt)
    leaning = axis_angle_to_matrix(torch.stack([lean[:, 0], zero, lean[:, 1]], dim=1))
    spin = leaning.mT @ rotation @ _facing().mT.to(rotation)
    return lean, torch.atan2(spin[:, 0, 2], spin[:, 0, 0])


def _facing() -> Float[Tensor, "3 3"]:
    """Return the rotation of an upright hand that shows its palm."""
    # Fingers from -x to up (-y), then the palm, now at +x, to the camera (-z).
    upright = axis_angle_to_matrix(torch.tensor([0.0, 0.0, math.pi / 2]))
    return axis_angle_to_matrix(torch.tensor([0.0, math.pi / 2, 0.0])) @ upright


def _views(count: int, views: Views, draw: Uniform) -> Float[Tensor, "b 3 3"]:
    """Return global rotations: fingers uniform on a cap about up, palm or back to the camera."""
    reach = math.radians(views.spin)
    turn = draw(-reach, reach, count) + math.pi * (draw(0.0, 1.0, count) < 0.5)
    tilt = torch.acos(draw(math.cos(math.radians(views.cone)), 1.0, count))
    azimuth = draw(-math.pi, math.pi, count)
    lean = torch.stack([azimuth.cos(), azimuth.sin()], dim=1) * tilt[:, None]
    return rotation_of(lean, turn)


def _views_outside(count: int, views: Views, generator: torch.Generator) -> Float[Tensor, "b 3 3"]:
    """Return uniform rotations that are not among the views."""
    kept, missing = [torch.empty(0, 3, 3)], count
    while missing > 0:
        rotations = random_rotations(int(missing / (1 - views.share)) + 16, generator)
        kept.append(rotations[~views.include(rotations)][:missing])
        missing -= len(kept[-1])
    return torch.cat(kept)


def place(
    hand: HandModel, pose: Tensor, betas: Tensor, centre: Float[Tensor, "b 3"], chunk: int = 512
) -> tuple[Float[Tensor, "b 3"], Float[Tensor, "b 2 2"]]:
    """Return translations that put hands at places, and their boxes in the full picture.

    Args:
        hand: the model.
        pose: of the hands.
        betas: of the hands.
        centre: where the mean of the vertices goes, metres, camera frame.
        chunk: hands that are decoded at a time.

    Returns:
        Translations, and the least and greatest pixel of the hands.
    """
    translation, boxes = torch.empty(len(pose), 3), torch.empty(len(pose), 2, 2)
    for rows in torch.arange(len(pose)).split(chunk):
        origin = torch.zeros(len(rows), 3)
        vertices = hand.decode(pose[rows], betas[rows], origin).vertices
        translation[rows] = centre[rows] - vertices.mean(1)
        pixels = project(
            vertices + translation[rows, None], full_intrinsics().expand(len(rows), 3, 3)
        )
        boxes[rows] = torch.stack([pixels.amin(1), pixels.amax(1)], dim=1)
    return translation, boxes


def cut(
    boxes: Float[Tensor, "b 2 2"], margin: Float[Tensor, "b 1"], shift: Float[Tensor, "b 2"]
) -> tuple[Float[Tensor, "b 3 3"], Float[Tensor, "b 3 3"]]:
    """Return the intrinsics and the ``crop_to_image`` of square crops of side 1 around boxes.

    Args:
        boxes: least and greatest pixel of each hand.
        margin: side of the crop, in longer sides of the box.
        shift: of the crop's centre, in sides of the crop.
    """
    side = (boxes[:, 1] - boxes[:, 0]).amax(1, keepdim=True) * margin
    corner = boxes.mean(1) + (shift - 0.5) * side
    crop_to_image = torch.zeros(len(boxes), 3, 3)
    crop_to_image[:, 0, 0] = crop_to_image[:, 1, 1] = side[:, 0]
    crop_to_image[:, :2, 2] = corner
    crop_to_image[:, 2, 2] = 1
    return torch.linalg.inv(crop_to_image) @ full_intrinsics(), crop_to_image


def full_intrinsics() -> Float[Tensor, "3 3"]:
    """Return ``K`` of the full picture, pixels."""
    height, width = IMAGE_SIZE
    return torch.tensor([[FOCAL, 0, width / 2], [0, FOCAL, height / 2], [0, 0, 1.0]])


def scene_camera(scenes: Scenes, size: int) -> Camera:
    """Return the camera of crops of ``size`` pixels."""
    scale = scenes.intrinsics.new_tensor([size, size, 1.0])
    return Camera(scenes.intrinsics * scale[:, None], (size, size))
