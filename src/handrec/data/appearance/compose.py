"""Draws a stage with its ingredients: everything but what a camera does to a picture."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from handrec.data.appearance import shadow
from handrec.data.appearance.base import Stage, stage_rows
from handrec.data.appearance.meshes import SKIN, Meshes, Part, build
from handrec.data.appearance.props import Props
from handrec.data.appearance.shadow import ShadowMap
from handrec.data.appearance.visibility import visible_joints
from handrec.geometry.camera import resize_camera
from handrec.render.base import Attribute, Surface
from handrec.render.lights import Harmonics
from handrec.render.textures import LookUp, build_pyramid, sample_texture
from handrec.types import Camera, Rendering

#: Rendered at twice the size and averaged: at 64 px a finger is five pixels wide.
_SUPERSAMPLING = 2

#: Images drawn at a time on a CPU: what they need stays in its caches.
_AT_ONCE = 8

#: Metres off the surface at which shadows are looked up.
_LIFT = 0.0015

#: By how much light creeps round the edge of skin into its shade: red light goes farthest.
_WRAP = (0.35, 0.15, 0.1)


class Ingredients(NamedTuple):
    """What a stage is drawn with, on its device. Colours of light are linear, all others sRGB.

    Attributes:
        texture: skin of both hands and their forearms, RGB in [0, 1] in the hand model's atlas.
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


class Composition(NamedTuple):
    """What was drawn: the fields of a :class:`Picture`, and one more.

    Attributes:
        image: RGB in [0, 1], before a camera does anything to it.
        mask: see :class:`Picture`, as all others.
        depth: metres.
        uv: v up.
        visibility: of the joints.
        foreground: share of each pixel that shows any part before the background.
    """

    image: Float[Tensor, "b 3 h w"]
    mask: Float[Tensor, "b 1 h w"]
    depth: Float[Tensor, "b 1 h w"]
    uv: Float[Tensor, "b 2 h w"]
    visibility: Float[Tensor, "b 21"]
    foreground: Float[Tensor, "b 1 h w"]


@torch.no_grad()
def compose(stage: Stage, ingredients: Ingredients) -> Composition:
    """Return the pictures of a stage, in float32.

    Depth and uv are those of one sample per pixel: of its four, the one that shows the hand
    nearest to the camera. Nothing is averaged across edges.

    Args:
        stage: posed hands and their camera.
        ingredients: a row per hand.
    """
    # Those with another hand together: the others' meshes are smaller.
    order = ingredients.props.other[:, 0].argsort(stable=True)
    chunks = order.split(_AT_ONCE if stage.pose.device.type == "cpu" else len(order))
    with torch.autocast(stage.pose.device.type, enabled=False):
        pictures = [
            _compose(stage_rows(stage, rows), _ingredient_rows(ingredients, rows))
            for rows in chunks
        ]
    back = order.argsort()
    return Composition(*(torch.cat(column)[back] for column in zip(*pictures, strict=True)))


def _ingredient_rows(given: Ingredients, rows: Int[Tensor, " n"]) -> Ingredients:
    props = Props(*(column[rows] for column in given.props))
    columns = {key: value[rows] for key, value in given._asdict().items() if key != "props"}
    return Ingredients(props=props, **columns)


def _compose(stage: Stage, given: Ingredients) -> Composition:
    meshes = build(stage, given.props)
    height, width = stage.camera.image_size
    fine = resize_camera(stage.camera, (height * _SUPERSAMPLING, width * _SUPERSAMPLING))
    shadows = shadow.cast(
        stage.rasterizer,
        meshes.vertices,
        meshes.faces,
        stage.posed.vertices,
        given.key_direction,
        max(3 * height // 4, 96),
    )
    drawn = _render(stage, meshes, given, shadows, fine)
    light = _mean_of_samples(drawn.image[:, :3])
    foreground = _mean_of_samples(drawn.mask)
    behind = _exactly_linear(given.background) * _on_wall(stage, given, shadows)
    image = to_srgb((light + (1 - foreground) * behind).clamp(0, 1))
    mask, depth, uv = _labels(drawn, len(stage.hand.faces))
    visibility = visible_joints(stage, meshes, drawn, fine)
    return Composition(image, mask, depth, uv, visibility, foreground)


def _mean_of_samples(fine: Float[Tensor, "b c h2 w2"]) -> Float[Tensor, "b c h w"]:
    """Return the mean of each pixel's four samples, several times as fast as ``avg_pool2d``."""
    rows = fine[..., ::2, :] + fine[..., 1::2, :]
    return (rows[..., ::2] + rows[..., 1::2]) / 4


def to_linear(colour: Tensor) -> Tensor:
    """Return linear light of sRGB in [0, 1], within 0.003, by a polynomial: powers are slow."""
    return colour * (colour * (colour * 0.305306011 + 0.682171111) + 0.012522878)


def _exactly_linear(colour: Tensor) -> Tensor:
    """Return linear light of sRGB in [0, 1] by the standard's formula: black stays black."""
    return torch.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055).pow(2.4))


def to_srgb(light: Tensor) -> Tensor:
    """Return sRGB in [0, 1] of linear light (IEC 61966-2-1)."""
    curve = 1.055 * light.clamp(min=0.0031308).pow(1 / 2.4) - 0.055
    return torch.where(light <= 0.0031308, 12.92 * light, curve)


def _render(
    stage: Stage, meshes: Meshes, given: Ingredients, shadows: ShadowMap, camera: Camera
) -> Rendering:
    """Return linear RGB and the atlas coordinates of every sample."""
    each_face = torch.arange(len(meshes.faces), device=meshes.faces.device)[:, None].expand(-1, 3)
    to_light = F.normalize(given.key_direction, dim=-1)
    to_camera = -F.normalize(stage.posed.vertices.mean(1), dim=-1)
    halfway = F.normalize(to_light + to_camera, dim=-1)
    cosines = meshes.normals @ torch.stack([to_light, halfway], dim=-1)
    above = 0.5 - 0.5 * meshes.normals[..., 1:2]
    normal = meshes.normals[:, None]
    around = Harmonics(given.harmonics).gain(Surface({"normal": normal}), normal)[:, 0]
    fill = given.ambient[:, None] + above * given.sky[:, None] + around.relu()
    # Off the skin a little: what turns away from the light is dark already.
    places = shadow.place(shadows, meshes.vertices + _LIFT * meshes.normals)
    attributes = {
        "normal": Attribute(torch.cat([meshes.normals, cosines], dim=-1)),
        "fill": Attribute(fill * meshes.shade),
        "place": Attribute(places),
        "shade": Attribute(meshes.shade),
        "uv": Attribute(meshes.uv, meshes.uv_faces),
        "part": Attribute(meshes.part[None, :, None].to(fill), each_face),
    }
    shader = _Shader(given, shadows, stage.rasterizer.look_up)
    return stage.rasterizer.render(meshes.vertices, meshes.faces, attributes, camera, shader)


class _Shader:
    """Linear RGB and uv: wrapped diffuse and Blinn's specular reflection in one cast light.

    It reads ``normal`` (the normal, and its products with the directions to the light and halfway
    to the camera), ``fill`` (light from all around), ``place`` in the shadow map, ``shade`` (gain
    on the albedo), ``uv`` and ``part``.
    """

    def __init__(self, given: Ingredients, shadows: ShadowMap, sampler: LookUp) -> None:
        self.skin = build_pyramid(given.texture, mipmaps=False)
        self.sampler = sampler
        self.shadows = shadows
        self.paints = torch.cat([*_paints(given)], dim=-1).flatten(0, 1)
        self.images = torch.arange(len(given.texture)).to(given.shadow)  # exact as floats

    def __call__(self, surface: Surface) -> Float[Tensor, "... 5"]:
        """Return linear light reflected to the camera, and uv."""
        image = surface.of_image(self.images).long()
        part = surface["part"][..., 0].round().long()
        row = image * len(Part) + part
        columns = self.paints.index_select(0, row.flatten()).view(*row.shape, -1)
        paint = _Paints(*columns.split(_WIDTHS, dim=-1))
        normal = surface["normal"]
        length = normal[..., :3].norm(dim=-1, keepdim=True).clamp(min=1e-6)
        facing, shine = (normal[..., 3:] / length).split(1, dim=-1)
        taken, shininess = paint.gloss.split(1, dim=-1)
        reaches = shadow.lit(self.shadows, surface["place"], image)[..., None]
        reaches = (1 - taken * (1 - reaches)) * surface["shade"]
        key = (paint.facing * facing + paint.wrap).relu()
        light = self._albedo(surface, part, paint) * (surface["fill"] + key * reaches)
        shine = shine.clamp(min=1e-3) ** shininess * (reaches * (facing > 0))
        return torch.cat([light + paint.specular * shine, surface["uv"]], dim=-1)

    def _albedo(self, surface: Surface, part: Tensor, paint: "_Paints") -> Float[Tensor, "... 3"]:
        uv, painted = surface["uv"], (part == Part.SLEEVE) | (part == Part.THING)
        skin = sample_texture(self.skin, uv, surface.image_index, sampler=self.sampler)
        first, second = torch.sin(uv * (2 * torch.pi)).split(1, dim=-1)
        contrast, checks = paint.pattern.split(1, dim=-1)
        pattern = torch.tanh(contrast * first * (1 + checks * (second - 1)))
        colour = paint.colour + pattern * paint.swing
        return torch.where(painted[..., None], colour, to_linear(skin))


class _Paints(NamedTuple):
    """What the parts of each image look like, or what pixels do; linear colours.

    Attributes:
        colour: middle of the two colours of a pattern; of skin it is unused.
        swing: half of their difference.
        pattern: contrast, share of checks.
        facing: key light reflected per cosine.
        wrap: and at a cosine of 0.
        specular: colour of reflections.
        gloss: share of the key light that a shadow takes; shininess.
    """

    colour: Float[Tensor, "... 3"]
    swing: Float[Tensor, "... 3"]
    pattern: Float[Tensor, "... 2"]
    facing: Float[Tensor, "... 3"]
    wrap: Float[Tensor, "... 3"]
    specular: Float[Tensor, "... 3"]
    gloss: Float[Tensor, "... 2"]


#: Columns of each.
_WIDTHS = [3, 3, 2, 3, 3, 3, 2]


def _paints(given: Ingredients) -> _Paints:
    props, rows = given.props, []
    for part in Part:
        row = props.cloth if part == Part.SLEEVE else props.thing_paint
        skin = part in SKIN
        first, second = to_linear(row[:, :6]).split(3, dim=1)
        wrap = row.new_tensor(_WRAP) * float(skin)
        specular = given.key_colour * given.specular * (1.0 if skin else row[:, 10:])
        gloss = torch.cat([given.shadow, given.shininess], dim=1)
        facing = given.key_colour / (1 + wrap)
        colours = (first + second) / 2, (second - first) / 2
        rows.append(_Paints(*colours, row[:, 8:10], facing, facing * wrap, specular, gloss))
    return _Paints(*(torch.stack(column, dim=1) for column in zip(*rows, strict=True)))


def _on_wall(stage: Stage, given: Ingredients, shadows: ShadowMap) -> Float[Tensor, "b 1 h w"]:
    """Return what is left of the light on a plane behind the hand, facing the camera."""
    height, width = stage.camera.image_size
    coarse = resize_camera(stage.camera, (-(-height // 2), -(-width // 2)))
    depth = stage.posed.vertices[..., 2].amax(1)[:, None, None] + given.wall[..., None]
    down, right = torch.meshgrid(
        *(torch.arange(side).to(depth) + 0.5 for side in coarse.image_size), indexing="ij"
    )
    pixels = torch.stack([right, down, torch.ones_like(right)], dim=-1).view(-1, 3)
    points = pixels @ torch.linalg.inv(coarse.intrinsics).mT * depth
    images = torch.arange(len(points), device=points.device)[:, None]
    places = shadow.place(shadows, points)
    # Fading out towards the map's border, where shadows would be cut off.
    border = (0.5 - (places[..., :2] / shadows.size - 0.5).abs()).amin(-1)
    dark = (1 - shadow.lit(shadows, places, images)) * (6 * border).clamp(0, 1)
    dark = F.interpolate(dark.view(-1, 1, *coarse.image_size), (height, width), mode="bilinear")
    key, rest = given.key_colour.mean(1), (given.ambient + given.sky / 2).mean(1)
    key = key * F.normalize(given.key_direction, dim=-1)[:, 2].neg().relu()
    share = given.shadow[:, 0] * key / (key + rest).clamp(min=1e-3)
    return 1 - share[:, None, None, None] * dark


def _labels(
    drawn: Rendering, faces: int
) -> tuple[Float[Tensor, "b 1 h w"], Float[Tensor, "b 1 h w"], Float[Tensor, "b 2 h w"]]:
    """Return mask, depth and uv of the hand, whose faces come first; see :func:`compose`."""
    face = drawn.face_index[:, None]
    is_hand = (face >= 0) & (face < faces)
    mask = _mean_of_samples(is_hand.float())
    depths = torch.where(is_hand, drawn.depth, torch.inf)
    depth, uv = torch.full_like(mask, torch.inf), torch.zeros_like(mask).repeat(1, 2, 1, 1)
    for row in range(_SUPERSAMPLING):
        for column in range(_SUPERSAMPLING):
            sample = (..., slice(row, None, _SUPERSAMPLING), slice(column, None, _SUPERSAMPLING))
            nearer = depths[sample] < depth
            depth = torch.where(nearer, depths[sample], depth)
            uv = torch.where(nearer, drawn.image[:, 3:][sample], uv)
    return mask, torch.where(mask > 0, depth, 0.0), uv


__all__ = ["Composition", "Ingredients", "compose", "to_linear", "to_srgb"]
