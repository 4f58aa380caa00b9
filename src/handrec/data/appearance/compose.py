"""Draws a stage with its ingredients: everything but what a camera does to a picture."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from handrec.data.appearance import shadow
from handrec.data.appearance.base import Picture, Stage
from handrec.data.appearance.meshes import SKIN, Meshes, Part, build
from handrec.data.appearance.props import Props
from handrec.data.appearance.shadow import ShadowMap
from handrec.data.appearance.visibility import visible_joints
from handrec.geometry.camera import resize_camera
from handrec.render.base import Attribute, Surface
from handrec.render.lights import Harmonics
from handrec.types import Camera, Rendering

#: Rendered at twice the size and averaged: at 64 px a finger is five pixels wide.
_SUPERSAMPLING = 2

#: By how much light creeps round the edge of skin into its shade: red light goes farthest.
_WRAP = (0.35, 0.15, 0.1)


class Ingredients(NamedTuple):
    """What a stage is drawn with, on its device. Colours of light are linear, all others sRGB.

    Attributes:
        texture: skin of the hand and its forearm, RGB in [0, 1] in the atlas of the hand model.
        other_texture: skin of the other hand.
        props: what else there is.
        ambient: light from everywhere.
        sky: additional light from above (-y).
        harmonics: additional light from all around, see ``render.lights.Harmonics``.
        key_colour: of the light that casts shadows.
        key_direction: towards it, camera frame (OpenCV), any length.
        specular: strength of its reflections on skin.
        shininess: exponent of its reflections.
        shadow: share of the key light that a shadow takes, 0 for none.
        wall: distance of the plane that shadows fall on behind the hand, metres.
        background: RGB in [0, 1], at the size of the picture.
    """

    texture: Float[Tensor, "b 3 t t"]
    other_texture: Float[Tensor, "b 3 t t"]
    props: Props
    ambient: Float[Tensor, "b 3"]
    sky: Float[Tensor, "b 3"]
    harmonics: Float[Tensor, "b 9 3"]
    key_colour: Float[Tensor, "b 3"]
    key_direction: Float[Tensor, "b 3"]
    specular: Float[Tensor, "b 1"]
    shininess: Float[Tensor, "b 1"]
    shadow: Float[Tensor, "b 1"]
    wall: Float[Tensor, "b 1"]
    background: Float[Tensor, "b 3 h w"]


@torch.no_grad()
def compose(stage: Stage, ingredients: Ingredients) -> Picture:
    """Return the picture of a stage, in float32.

    Depth and uv are those of one sample per pixel: of its four, the one that shows the hand
    nearest to the camera. Nothing is averaged across edges.

    Args:
        stage: posed hands and their camera.
        ingredients: a row per hand.
    """
    with torch.autocast(stage.posed.vertices.device.type, enabled=False):
        meshes = build(stage, ingredients.props)
        height, width = stage.camera.image_size
        fine = resize_camera(stage.camera, (height * _SUPERSAMPLING, width * _SUPERSAMPLING))
        shadows = shadow.cast(
            stage.rasterizer,
            meshes.vertices,
            meshes.faces,
            stage.posed.vertices,
            ingredients.key_direction,
            max(height, 96),
        )
        drawn = _render(stage, meshes, ingredients, shadows, fine)
        light = F.avg_pool2d(drawn.image[:, :3], _SUPERSAMPLING)
        clear = 1 - F.avg_pool2d(drawn.mask, _SUPERSAMPLING)
        behind = to_linear(ingredients.background) * _on_wall(stage, ingredients, shadows)
        image = to_srgb((light + clear * behind).clamp(0, 1))
        mask, depth, uv = _labels(drawn, meshes.part)
        seen = visible_joints(stage, meshes, drawn, fine)
    return Picture(image, mask, depth, uv, seen)


def to_linear(colour: Tensor) -> Tensor:
    """Return linear light of sRGB in [0, 1], within 0.003; a polynomial, far cheaper than powers."""
    return colour * (colour * (colour * 0.305306011 + 0.682171111) + 0.012522878)


def to_srgb(light: Tensor) -> Tensor:
    """Return sRGB in [0, 1] of linear light (IEC 61966-2-1)."""
    curve = 1.055 * light.clamp(min=0.0031308).pow(1 / 2.4) - 0.055
    return torch.where(light <= 0.0031308, 12.92 * light, curve)


def _render(
    stage: Stage, meshes: Meshes, ingredients: Ingredients, shadows: ShadowMap, camera: Camera
) -> Rendering:
    """Return linear RGB and the atlas coordinates of every sample."""
    each_face = torch.arange(len(meshes.faces), device=meshes.faces.device)[:, None].expand(-1, 3)
    smooth = torch.cat([meshes.normals, meshes.vertices, meshes.shade], dim=-1)
    attributes = {
        "smooth": Attribute(smooth),
        "uv": Attribute(meshes.uv, meshes.uv_faces),
        "part": Attribute(1.0 + meshes.part[None, :, None], each_face),
    }
    shader = _Shader(ingredients, shadows)
    return stage.rasterizer.render(meshes.vertices, meshes.faces, attributes, camera, shader)


class _Shader:
    """Linear RGB and uv: wrapped diffuse and Blinn's specular reflection in one cast light.

    It reads ``smooth`` (normal, position, gain on the albedo), ``uv`` and ``part`` (1 + its number,
    0 where there is nothing).
    """

    def __init__(self, ingredients: Ingredients, shadows: ShadowMap) -> None:
        self.ingredients = ingredients
        self.shadows = shadows
        self.paint = _paint_table(ingredients)
        self.images = torch.arange(len(self.paint), device=self.paint.device)

    def __call__(self, surface: Surface) -> Float[Tensor, "... 5"]:
        """Return linear light reflected to the camera, and uv."""
        given = self.ingredients
        normal = F.normalize(surface["smooth"][..., :3], dim=-1, eps=1e-6)
        position, shade = surface["smooth"][..., 3:6], surface["smooth"][..., 6:]
        part = (surface["part"][..., 0] - 0.5).long().clamp(max=len(Part) - 1)
        image = surface.of_image(self.images)
        paint = self.paint.flatten(0, 1)[image * len(Part) + part]
        albedo, skin = self._albedo(surface, part, paint)
        to_light = surface.of_image(F.normalize(given.key_direction, dim=-1))
        cosine = (normal * to_light).sum(-1, keepdim=True)
        reaches = shadow.lit(self.shadows, position, image)
        reaches = 1 - surface.of_image(given.shadow) * (1 - reaches)
        wrap = normal.new_tensor(_WRAP) * skin
        key = ((cosine + wrap) / (1 + wrap)).relu() * reaches
        above = 0.5 - 0.5 * normal[..., 1:2]
        ambient = surface.of_image(given.ambient) + above * surface.of_image(given.sky)
        key_colour = surface.of_image(given.key_colour)
        light = albedo * (ambient * shade + key_colour * key)
        halfway = F.normalize(to_light - F.normalize(position, dim=-1), dim=-1)
        shine = (normal * halfway).sum(-1, keepdim=True).clamp(min=1e-4)
        shine = shine ** surface.of_image(given.shininess) * (cosine > 0)
        gloss = surface.of_image(given.specular) * paint[..., 8:9]
        return torch.cat([light + key_colour * (gloss * shine * reaches), surface["uv"]], dim=-1)

    def _albedo(
        self, surface: Surface, part: Tensor, paint: Tensor
    ) -> tuple[Tensor, Float[Tensor, "... 1"]]:
        """Return the linear albedo, and 1 on skin."""
        uv = surface["uv"]
        others = ((part == Part.OTHER_HAND) | (part == Part.OTHER_FOREARM))[..., None]
        painted = (part == Part.SLEEVE) | (part == Part.THING)
        own, other = self.ingredients.texture, self.ingredients.other_texture
        skin = torch.where(others, _look_up(surface, other), _look_up(surface, own))
        first, second = torch.sin(uv * (2 * torch.pi)).split(1, dim=-1)
        contrast, checks = paint[..., 6:7], paint[..., 7:8]
        pattern = torch.tanh(contrast * first * torch.lerp(torch.ones_like(second), second, checks))
        colour = torch.lerp(paint[..., :3], paint[..., 3:6], 0.5 + 0.5 * pattern)
        albedo = torch.where(painted[..., None], colour, to_linear(skin))
        return albedo, 1 - painted[..., None].to(albedo)


def _paint_table(ingredients: Ingredients) -> Float[Tensor, "b parts 9"]:
    """Return linear colours, contrast, share of checks and gloss of each part."""
    props = ingredients.props
    rows = []
    for part in Part:
        row = props.cloth if part == Part.SLEEVE else props.thing_paint
        gloss = torch.ones_like(row[:, :1]) if part in SKIN else row[:, 10:]
        rows.append(torch.cat([to_linear(row[:, :6]), row[:, 8:10], gloss], dim=1))
    return torch.stack(rows, dim=1)


def _look_up(surface: Surface, texture: Float[Tensor, "b 3 t t"]) -> Float[Tensor, "... 3"]:
    """Return a texture's colours at the surface's uv, bilinear; texel (0, 0) is the upper left."""
    size = texture.shape[-1]
    u, v = surface["uv"].unbind(-1)
    x, y = (u * size - 0.5).clamp(0, size - 1), ((1 - v) * size - 0.5).clamp(0, size - 1)
    left, top = x.floor().clamp(max=size - 2), y.floor().clamp(max=size - 2)
    images = torch.arange(len(texture), device=texture.device)
    texel = surface.of_image(images) * (size * size) + top.long() * size + left.long()
    texels = texture.permute(0, 2, 3, 1).flatten(0, 2)
    rows = [
        torch.lerp(texels[texel + step], texels[texel + step + 1], (x - left)[..., None])
        for step in (0, size)
    ]
    return torch.lerp(rows[0], rows[1], (y - top)[..., None])


def _on_wall(
    stage: Stage, ingredients: Ingredients, shadows: ShadowMap
) -> Float[Tensor, "b 1 h w"]:
    """Return what is left of the light on a plane behind the hand, facing the camera."""
    height, width = stage.camera.image_size
    depth = stage.posed.vertices[..., 2].amax(1)[:, None, None] + ingredients.wall[..., None]
    down, right = torch.meshgrid(
        torch.arange(height).to(depth) + 0.5, torch.arange(width).to(depth) + 0.5, indexing="ij"
    )
    pixels = torch.stack([right, down, torch.ones_like(right)], dim=-1).view(-1, 3)
    points = pixels @ torch.linalg.inv(stage.camera.intrinsics).mT * depth
    images = torch.arange(len(points), device=points.device)[:, None]
    reaches = shadow.lit(shadows, points, images).mT.view(-1, 1, height, width)
    key, rest = ingredients.key_colour.mean(1), ingredients.ambient.mean(1)
    facing = F.normalize(ingredients.key_direction, dim=-1)[:, 2].neg().relu()
    share = ingredients.shadow[:, 0] * key * facing / (key * facing + rest).clamp(min=1e-3)
    return 1 - share[:, None, None, None] * (1 - reaches)


def _labels(
    drawn: Rendering, part: Int[Tensor, " f"]
) -> tuple[Float[Tensor, "b 1 h w"], Float[Tensor, "b 1 h w"], Float[Tensor, "b 2 h w"]]:
    """Return mask, depth and uv of the hand; see :func:`compose`."""
    is_hand = _shows(drawn, part, Part.HAND)[:, None]
    mask = F.avg_pool2d(is_hand.float(), _SUPERSAMPLING)
    blocks = torch.cat([torch.where(is_hand, drawn.depth, torch.inf), drawn.image[:, 3:]], dim=1)
    blocks = F.unfold(blocks, _SUPERSAMPLING, stride=_SUPERSAMPLING)
    blocks = blocks.view(len(blocks), 3, _SUPERSAMPLING**2, *mask.shape[-2:])
    nearest = blocks[:, :1].argmin(2, keepdim=True).expand(-1, 3, -1, -1, -1)
    sample = torch.where(mask > 0, blocks.gather(2, nearest)[:, :, 0], 0.0)
    return mask, sample[:, :1], sample[:, 1:]


def _shows(drawn: Rendering, part: Int[Tensor, " f"], which: Part) -> Bool[Tensor, "b h w"]:
    """Say which samples show a part."""
    face = drawn.face_index.long()
    return (face >= 0) & (part == which)[face.clamp(min=0)]


__all__ = ["Ingredients", "compose", "to_linear", "to_srgb"]
