"""Rendered photos of hands that are known exactly."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from handrec.data.crops import default_intrinsics
from handrec.geometry.camera import project
from handrec.geometry.rotations import axis_angle_to_matrix
from handrec.hand.openhand import OpenHand
from handrec.hand.sampler import PoseSampler
from handrec.render.shading import Light, Texture, render_lit
from handrec.render.warp_backend import WarpRasterizer
from handrec.types import Camera, Hand

SIZE = (240, 320)
LIGHT = Light(torch.full((1, 3), 0.5), torch.full((1, 3), 0.6), torch.tensor([[-0.5, -0.6, -0.6]]))


class Scene(NamedTuple):
    """A photo and the truth about it."""

    photo: np.ndarray
    intrinsics: np.ndarray
    keypoints: Tensor  # (21, 2)
    hand: Hand
    parameters: tuple[Tensor, Tensor, Tensor]  # pose, shape and translation


def scene(gesture: str, turn: tuple[float, float, float], seed: int = 0) -> Scene:
    """Render a right hand, skin with blotches, before blurred noise that is more blue than red."""
    generator = torch.Generator().manual_seed(seed)
    hand = OpenHand()
    pose = PoseSampler(hand).gesture(gesture)[None]
    # Rotation 0 points the fingers left: first hold them up, the palm towards the camera.
    upright = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    pose[:, 0] = axis_angle_to_matrix(torch.tensor(turn, dtype=torch.float32)) @ upright
    betas = torch.randn(1, 10, generator=generator) * 0.5
    posed = hand.decode(pose, betas, torch.zeros(1, 3))
    middle = (posed.joints.amax(1, keepdim=True) + posed.joints.amin(1, keepdim=True)) / 2
    shift = torch.tensor([0.02, -0.01, 0.5]) - middle
    posed = Hand(posed.vertices + shift, posed.joints + shift)
    blotches = torch.rand(1, 3, 24, 24, generator=generator) * 0.25 - 0.12
    skin = torch.tensor([0.75, 0.55, 0.45])[:, None, None] + blotches
    low, span = torch.tensor([[0.0, 0.0, 0.25], [0.2, 0.6, 0.4]])[..., None, None]
    noise = low + span * torch.rand(1, 3, 6, 8, generator=generator)
    behind = torch.nn.functional.interpolate(noise, SIZE, mode="bilinear")
    intrinsics = default_intrinsics(*SIZE)
    matrix = torch.from_numpy(intrinsics).float()[None]
    drawn = render_lit(
        WarpRasterizer(), posed.vertices, hand.faces, LIGHT, Camera(matrix, SIZE),
        texture=Texture(skin, hand.uv, hand.uv_faces), background=behind,
    )  # fmt: skip
    photo = (drawn.image[0].permute(1, 2, 0) * 255).round().byte().numpy()
    keypoints = project(posed.joints, matrix)[0]
    return Scene(photo, intrinsics, keypoints, posed, (pose, betas, shift[:, 0]))


def with_confidence(keypoints: Tensor) -> np.ndarray:
    """Return ``(x, y, 1)``."""
    return np.column_stack([keypoints.double().numpy(), np.ones(21)])


def pixel_error(points: Tensor, truth: Tensor, intrinsics: np.ndarray) -> float:
    """Return the mean distance of projected points."""
    matrix = torch.from_numpy(intrinsics).float()[None]
    return float((project(points, matrix) - project(truth, matrix)).norm(dim=-1).mean())


def aligned_error(found: Tensor, truth: Tensor) -> float:
    """Return the mean distance of vertices in millimetres, both at their own mean."""
    centred = (found - found.mean(0)) - (truth - truth.mean(0))
    return float(centred.norm(dim=-1).mean()) * 1000
