"""Plain pictures: smooth skin in Lambert shading before blurry colours and a few shapes.

Quick to draw and easy to learn from. Skin tones are the ten orbs of the Monk Skin Tone scale (E.
Monk, 2019, published as sRGB values); every other range is our choice and is stated where it is
drawn. This file is also the example of an appearance domain in one file.
"""

import math

import torch
import torch.nn.functional as F
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from handrec.data.appearance.base import Appearance, Look, Picture, Stage
from handrec.data.appearance.monk import MONK_TONES
from handrec.data.drawing import joint_thickness, nearest_of_block, visible_joints
from handrec.data.scenes import Uniform
from handrec.geometry.camera import resize_camera
from handrec.geometry.mesh import face_normals, vertex_normals
from handrec.hand.base import HandModel
from handrec.render.base import Attribute, Surface
from handrec.render.shading import Light, Shading
from handrec.types import Rendering

#: Rendered at twice the size and averaged: at 64 px a finger is five pixels wide.
_SUPERSAMPLING = 2

_SHAPES = 6
_WAVES = 8


class Plain(Appearance):
    """Vertex colours, an ambient and a directional light, ellipses and rectangles behind.

    Columns of a look: ``skin`` (RGB of the back of the hand), ``palm`` (gain of the palm's colour
    over the back's), ``waves`` (amplitude and phase of smooth colour variation over the surface),
    ``ambient``, ``directional``, ``light_direction`` (unit, towards the light, camera frame),
    ``backdrop`` and ``texture`` (a coarse and a fine grid of background colours), ``shapes``
    (``x, y, half width, half height, roundness, r, g, b`` of shapes in the background).
    """

    name = "plain"
    version = 1

    def sample(self, count: int, generator: torch.Generator) -> Look:
        """Return ``count`` independent looks."""
        draw = Uniform(generator)
        skin = _paint(count, draw)
        tone = skin["skin"]
        return {**skin, **_light(count, draw, tone), **_background(count, draw, tone)}

    @torch.no_grad()
    def draw(self, stage: Stage, look: Look) -> Picture:
        """Return the pictures of a stage; ``noise_seed`` is not used: frames have no noise."""
        fine = _render(stage, look)
        mask = F.avg_pool2d(fine.mask, _SUPERSAMPLING)
        image = F.avg_pool2d(fine.image[:, :3].clamp(0, 1), _SUPERSAMPLING)
        depth, uv = nearest_of_block(fine.depth, fine.image[:, 3:], _SUPERSAMPLING)
        visibility = visible_joints(
            stage.posed.joints, stage.camera, fine.depth, joint_thickness(stage.hand)
        )
        return Picture(image, mask, depth, uv, visibility)


def _render(stage: Stage, look: Look) -> Rendering:
    """Return the hands in fine pixels: RGB and atlas coordinates."""
    hand, vertices = stage.hand, stage.posed.vertices
    size = stage.camera.image_size[0]
    outward = (face_normals(vertices, hand.faces) * vertices[:, hand.faces[:, 0]]).sum(-1)
    each_face = torch.arange(len(hand.faces), device=vertices.device)[:, None].expand(-1, 3)
    attributes = {
        "normal": Attribute(vertex_normals(vertices, hand.faces)),
        "side": Attribute(torch.where(outward > 0, -1.0, 1.0)[..., None], each_face),
        "colour": Attribute(skin_colours(look, hand)),
        "uv": Attribute(hand.uv[None], hand.uv_faces),
    }
    lit = Shading(Light(look["ambient"], look["directional"], look["light_direction"]))

    def shader(surface: Surface) -> Tensor:
        return torch.cat([lit(surface), surface["uv"]], dim=-1)

    backdrop = F.interpolate(draw_background(look, size), scale_factor=_SUPERSAMPLING)
    fine = (size * _SUPERSAMPLING, size * _SUPERSAMPLING)
    return stage.rasterizer.render(
        vertices,
        hand.faces,
        attributes,
        resize_camera(stage.camera, fine),
        shader,
        background=F.pad(backdrop, (0, 0, 0, 0, 0, 2)),
    )


def skin_colours(look: Look, hand: HandModel) -> Float[Tensor, "b v 3"]:
    """Return the colour of each vertex: a tone, another on the palm, smooth variation."""
    directions = _wave_vectors().to(hand.template)
    phase = einsum(hand.template, directions, "v c, k c -> v k") + look["waves"][:, None, :, 3]
    variation = einsum(phase.sin(), look["waves"][..., :3], "b v k, b k c -> b v c")
    normal_y = vertex_normals(hand.template[None], hand.faces)[..., 1:2]
    palm = torch.sigmoid(-6 * normal_y)  # the palm faces -y at rest
    colour = look["skin"][:, None] * torch.lerp(torch.ones_like(palm), look["palm"][:, None], palm)
    return (colour * (1 + variation)).clamp(0, 1)


def _wave_vectors() -> Float[Tensor, "k 3"]:
    """Return fixed wave vectors, radians per metre: wavelengths from 16 cm down to 1 cm."""
    steps = torch.arange(_WAVES) / (_WAVES - 1)
    length = 2 * math.pi / (0.16 * (0.01 / 0.16) ** steps)
    height = 1 - 2 * (torch.arange(_WAVES) + 0.5) / _WAVES  # a Fibonacci lattice on the sphere
    turn = torch.arange(_WAVES) * math.pi * (3 - math.sqrt(5))
    ring = (1 - height**2).sqrt()
    return torch.stack([ring * turn.cos(), ring * turn.sin(), height], dim=1) * length[:, None]


def draw_background(look: Look, size: int) -> Float[Tensor, "b 3 h w"]:
    """Return blurry colours with ellipses and rectangles before them."""
    backdrop = F.interpolate(look["backdrop"], (size, size), mode="bicubic", align_corners=True)
    texture = F.interpolate(look["texture"], (size, size), mode="bilinear", align_corners=True)
    image = backdrop + texture
    line = (torch.arange(size, device=image.device) + 0.5) / size
    for shape in look["shapes"].unbind(1):
        x, y, half_x, half_y, roundness = shape[:, :5, None].unbind(1)
        u, v = (line - x) / half_x.clamp(min=1e-3), (line - y) / half_y.clamp(min=1e-3)
        u, v = u.abs()[:, None, :], v.abs()[:, :, None]
        box = torch.maximum(u, v)
        inside = torch.where(roundness[:, None] < 0.5, box, (u * u + v * v).sqrt()) < 1
        drawn = (inside & (half_x[..., None] > 0))[:, None]
        image = torch.where(drawn, shape[:, 5:, None, None], image)
    return image.clamp(0, 1)


def _paint(count: int, draw: Uniform) -> Look:
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
        [draw(-0.04, 0.04, count, _WAVES, 3), draw(0.0, 2 * math.pi, count, _WAVES, 1)], dim=2
    )
    return {"skin": skin, "palm": palm, "waves": waves}


def _light(count: int, draw: Uniform, skin: Float[Tensor, "b 3"]) -> Look:
    """Return ambient and directional light, from anywhere but far behind the hand."""
    tint = 1 + draw(-0.06, 0.06, count, 3)
    # A camera exposes for what it looks at, in part: dark skin is not drawn black.
    tint = tint * (0.45 / skin.mean(1, keepdim=True)) ** 0.35
    ambient = draw(0.4, 0.9, count, 1)
    directional = (1.1 - ambient) * draw(0.7, 1.2, count, 1) * tint
    direction = draw.normal(count, 3)
    direction[:, 2] = -direction[:, 2].abs() + 0.3
    return {
        "ambient": ambient * tint,
        "directional": directional,
        "light_direction": F.normalize(direction, dim=1),
    }


def _background(count: int, draw: Uniform, skin: Float[Tensor, "b 3"]) -> Look:
    """Return the colours of a blurry backdrop with shapes before it, a third of them skin-like."""
    backdrop = draw(0.15, 0.85, count, 1, 1, 1) + draw(-0.12, 0.12, count, 3, 1, 1)
    contrast = draw(0.02, 0.25, count, 1, 1, 1)
    backdrop = backdrop + contrast * _greyish(draw, count, 4)
    texture = draw(0.0, 0.1, count, 1, 1, 1) * _greyish(draw, count, 24)
    colour = draw(0.0, 1.0, count, _SHAPES, 1) + draw(-0.2, 0.2, count, _SHAPES, 3)
    like_skin = draw(0.0, 1.0, count, _SHAPES, 1) < 1 / 3
    colour = torch.where(like_skin, skin[:, None] * draw(0.7, 1.2, count, _SHAPES, 1), colour)
    half = draw(0.03, 0.3, count, _SHAPES, 2)
    half *= (draw(0.0, 1.0, count, _SHAPES, 1) < 0.5).float()  # a shape of no size is not drawn
    place = draw(0.0, 1.0, count, _SHAPES, 2)
    shapes = torch.cat([place, half, draw(0.0, 1.0, count, _SHAPES, 1), colour], dim=2)
    return {"backdrop": backdrop, "texture": texture, "shapes": shapes}


def _greyish(draw: Uniform, count: int, side: int) -> Float[Tensor, "b 3 s s"]:
    """Return normal noise that differs little between colours, as in pictures of real things."""
    return draw.normal(count, 1, side, side) + 0.3 * draw.normal(count, 3, side, side)
