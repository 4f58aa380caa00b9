"""Turning a reconstructed hand as a whole, and the camera that sees it then."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from handrec.errors import UserError, fraction, not_negative, one_of
from handrec.geometry.camera import project
from handrec.geometry.rotations import axis_angle_to_matrix, random_rotations
from handrec.types import Camera, HandPrediction

#: How rotations are drawn, see :class:`Turns`.
Sampling = Literal["so3_uniform", "euler_box", "curriculum"]


@dataclass(frozen=True)
class Turns:
    """Which rotations hands are turned by, in the camera's frame.

    Attributes:
        sampling: ``so3_uniform``: uniform over all rotations. ``euler_box``: ``Rz(roll) Ry(yaw)
            Rx(pitch)``, each angle uniform. ``curriculum``: axes uniform on the sphere, angles
            uniform up to a bound that rises in the course of the training.
        euler: greatest pitch, yaw and roll, degrees.
        bounds: of the curriculum, at the start and at the end, degrees.
        rise: share of the training in which the bound rises.
        near: share of the curriculum's turns that stay within the first bound.
    """

    sampling: Sampling = "curriculum"
    euler: tuple[float, float, float] = (90.0, 90.0, 180.0)
    bounds: tuple[float, float] = (30.0, 180.0)
    rise: float = 0.5
    near: float = 0.2

    def __post_init__(self) -> None:
        one_of(self, Sampling, sampling=self.sampling)
        if not 0 <= self.bounds[0] <= self.bounds[1] <= 180:
            raise UserError("turns: bounds rise within 0 to 180 degrees")
        pitch, yaw, roll = self.euler
        not_negative(self, pitch=pitch, yaw=yaw, roll=roll)
        fraction(self, near=self.near)
        if not 0 < self.rise <= 1:
            raise UserError(f"turns: rise {self.rise} is no share in (0, 1]")


def sample_turns(
    count: int, turns: Turns, progress: float, generator: torch.Generator
) -> Float[Tensor, "count 3 3"]:
    """Return independent rotations, on the CPU.

    Args:
        count: how many.
        turns: of which kind.
        progress: of the training, 0 to 1.
        generator: source of all randomness.
    """
    if turns.sampling == "so3_uniform":
        return random_rotations(count, generator)
    if turns.sampling == "euler_box":
        reach = torch.tensor(turns.euler) * (math.pi / 180)
        angles = (2 * torch.rand(count, 3, generator=generator) - 1) * reach
        with torch.autocast("cpu", enabled=False):  # rounded to 8 bits it would be no rotation
            pitch, yaw, roll = axis_angle_to_matrix(torch.diag_embed(angles)).unbind(1)
            return roll @ yaw @ pitch
    first, last = turns.bounds
    bound = math.radians(first + (last - first) * min(1.0, progress / turns.rise))
    axis = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1)
    stay = torch.rand(count, 1, generator=generator) < turns.near
    bounds = torch.where(stay, math.radians(first), bound)
    return axis_angle_to_matrix(axis * bounds * torch.rand(count, 1, generator=generator))


def turn_hand(
    hand: HandPrediction,
    rotation: Float[Tensor, "b 3 3"],
    centre: Float[Tensor, "b 3"],
    place: Float[Tensor, "b 3"],
    camera: Camera,
) -> HandPrediction:
    """Return the hand turned as a whole: ``X -> R (X - c) + p``, ``g -> R g``; differentiable.

    Args:
        hand: any.
        rotation: ``R``, in the camera's frame.
        centre: ``c``, metres.
        place: ``p``, where that point goes; the same, or somewhere else.
        camera: that sees the turned hand.
    """

    def turned(points: Tensor) -> Tensor:  # written out: autocast would round a matrix product
        offset = points - centre[:, None]
        return (rotation[:, None] * offset[..., None, :]).sum(-1) + place[:, None]

    root = (rotation[..., None] * hand.pose[:, 0, None]).sum(-2)
    joints = turned(hand.joints)
    return hand._replace(
        vertices=turned(hand.vertices),
        joints=joints,
        keypoints_2d=project(joints, camera.intrinsics),
        pose=torch.cat([root[:, None], hand.pose[:, 1:]], dim=1),
        # A rotation of the pose leaves the wrist where it is: the translation moves it.
        translation=hand.translation + joints[:, 0] - hand.joints[:, 0],
    )


def crop_to_box(
    vertices: Float[Tensor, "b v 3"],
    camera: Camera,
    margin: Float[Tensor, " b"],
    shift: Float[Tensor, "b 2"],
) -> Camera:
    """Return the camera of a square crop around the projected vertices, of the same size in pixels.

    Args:
        vertices: metres, camera frame.
        camera: of another crop of the same picture.
        margin: side of the crop, in longer sides of the box.
        shift: of the crop's centre, in sides of the crop.
    """
    height, width = camera.image_size
    pixels = project(vertices, camera.intrinsics)
    low, high = pixels.amin(1), pixels.amax(1)
    side = ((high - low).amax(1) * margin).clamp(min=1e-3)
    corner = (low + high) / 2 + (shift - 0.5) * side[:, None]
    zoom = torch.stack([width / side, height / side], dim=1)
    # x -> zoom (x - corner), applied to the first two rows of K
    moved = camera.intrinsics[:, :2] - corner[..., None] * camera.intrinsics[:, 2:]
    rows = [zoom[..., None] * moved, camera.intrinsics[:, 2:]]
    return Camera(torch.cat(rows, dim=1), camera.image_size)
