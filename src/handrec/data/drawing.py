"""Draws scenes: the hand in its light before its background, on the device of the scenes."""

import math

import torch
import torch.nn.functional as F
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from handrec.data.scenes import WAVES, Scenes
from handrec.geometry.mesh import vertex_normals
from handrec.hand.base import HandModel
from handrec.render.base import Rasterizer
from handrec.render.shading import Light, render_lit
from handrec.types import Camera, Hand

#: Rendered at twice the size and averaged: at 64 px a finger is five pixels wide.
_SUPERSAMPLING = 2


def scene_camera(scenes: Scenes, size: int) -> Camera:
    """Return the camera of crops of ``size`` pixels."""
    scale = scenes.intrinsics.new_tensor([size, size, 1.0])
    return Camera(scenes.intrinsics * scale[:, None], (size, size))


@torch.no_grad()
def draw_scenes(
    scenes: Scenes, posed: Hand, hand: HandModel, rasterizer: Rasterizer, size: int
) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b 1 h w"]]:
    """Return images in [0, 1] and masks.

    Args:
        scenes: what to draw.
        posed: the hands of the scenes, camera frame.
        hand: their model.
        rasterizer: any backend; the pictures agree to rounding.
        size: side of the images, pixels.
    """
    fine = size * _SUPERSAMPLING
    rendering = render_lit(
        rasterizer,
        posed.vertices,
        hand.faces,
        Light(scenes.ambient, scenes.directional, scenes.light_direction),
        scene_camera(scenes, fine),
        colours=skin_colours(scenes, hand),
        background=draw_background(scenes, fine),
    )
    image = F.avg_pool2d(rendering.image.clamp(0, 1), _SUPERSAMPLING)
    return image, F.avg_pool2d(rendering.mask, _SUPERSAMPLING)


def skin_colours(scenes: Scenes, hand: HandModel) -> Float[Tensor, "b v 3"]:
    """Return the colour of each vertex: a tone, another on the palm, smooth variation."""
    directions = _wave_vectors().to(hand.template)
    phase = einsum(hand.template, directions, "v c, k c -> v k") + scenes.waves[:, None, :, 3]
    variation = einsum(phase.sin(), scenes.waves[..., :3], "b v k, b k c -> b v c")
    normal_y = vertex_normals(hand.template[None], hand.faces)[..., 1:2]
    palm = torch.sigmoid(-6 * normal_y)  # the palm faces -y at rest
    colour = scenes.skin[:, None] * torch.lerp(torch.ones_like(palm), scenes.palm[:, None], palm)
    return (colour * (1 + variation)).clamp(0, 1)


def _wave_vectors() -> Float[Tensor, "k 3"]:
    """Return fixed wave vectors, radians per metre: wavelengths from 16 cm down to 1 cm."""
    steps = torch.arange(WAVES) / (WAVES - 1)
    length = 2 * math.pi / (0.16 * (0.01 / 0.16) ** steps)
    height = 1 - 2 * (torch.arange(WAVES) + 0.5) / WAVES  # a Fibonacci lattice on the sphere
    turn = torch.arange(WAVES) * math.pi * (3 - math.sqrt(5))
    ring = (1 - height**2).sqrt()
    return torch.stack([ring * turn.cos(), ring * turn.sin(), height], dim=1) * length[:, None]


def draw_background(scenes: Scenes, size: int) -> Float[Tensor, "b 3 h w"]:
    """Return blurry colours with ellipses and rectangles before them."""
    backdrop = F.interpolate(scenes.backdrop, (size, size), mode="bicubic", align_corners=True)
    texture = F.interpolate(scenes.texture, (size, size), mode="bilinear", align_corners=True)
    image = backdrop + texture
    line = (torch.arange(size, device=image.device) + 0.5) / size
    for shape in scenes.shapes.unbind(1):
        x, y, half_x, half_y, roundness = shape[:, :5, None].unbind(1)
        u, v = (line - x) / half_x.clamp(min=1e-3), (line - y) / half_y.clamp(min=1e-3)
        u, v = u.abs()[:, None, :], v.abs()[:, :, None]
        box = torch.maximum(u, v)
        inside = torch.where(roundness[:, None] < 0.5, box, (u * u + v * v).sqrt()) < 1
        drawn = (inside & (half_x[..., None] > 0))[:, None]
        image = torch.where(drawn, shape[:, 5:, None, None], image)
    return image.clamp(0, 1)
