"""Draws a stage with its ingredients: everything but what a camera does to a picture."""

from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

from handrec.data.appearance import shadow
from handrec.data.appearance.base import Stage, stage_rows
from handrec.data.appearance.meshes import SKIN, Meshes, Part, build
from handrec.data.appearance.props import Props
from handrec.data.appearance.shadow import ShadowMap
from handrec.data.appearance.visibility import visible_joints
from handrec.geometry.camera import project, resize_camera
from handrec.render.base import Surface
from handrec.render.lights import Harmonics
from handrec.render.warp_launch import launch, shares

#: Images drawn at a time on a CPU: what they need stays in its caches.
_AT_ONCE = 8

_KERNELS = ("handrec.data.appearance.drawing_kernels",)

#: Metres off the surface at which shadows are looked up.
_LIFT = 0.0015

#: By how much light creeps round the edge of skin into its shade: red light goes farthest.
_WRAP = (0.35, 0.15, 0.1)


class Ingredients(NamedTuple):
    """What a stage is drawn with, on its device. Colours of light are linear, all others sRGB.

    Attributes:
        texture: skin of both hands and their forearms, RGB of 8 bits in the hand model's atlas.
        tone: gain on its red, green and blue.
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

    texture: UInt8[Tensor, "b 3 t t"]
    tone: Float[Tensor, "b 3"]
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

    Drawn at twice the size, for at 64 px a finger is five pixels wide, but lit once per pixel where
    nothing changes within it: see ``drawing_kernels``. Depth and uv are those of the middle of such
    a pixel, and elsewhere of one of its four samples: of the one that shows the hand nearest to the
    camera. Nothing is averaged across edges.

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
    fine = resize_camera(stage.camera, (2 * height, 2 * width))
    shadows = shadow.cast(
        stage.rasterizer,
        meshes.vertices,
        meshes.faces,
        stage.posed.vertices,
        given.key_direction,
        max(3 * height // 4, 96),
    )
    screen = torch.cat(
        [project(meshes.vertices, fine.intrinsics), meshes.vertices[..., 2:]], dim=-1
    )
    face_index = stage.rasterizer.cover(screen, meshes.faces, fine.image_size)
    picture, labels = _light_up(stage, meshes, given, shadows, screen, face_index)
    mask, depth, uv, foreground = labels.split([1, 1, 2, 1], dim=1)
    visibility = visible_joints(stage, meshes, face_index, fine)
    return Composition(picture, mask, depth, uv, visibility, foreground)


def _light_up(
    stage: Stage,
    meshes: Meshes,
    given: Ingredients,
    shadows: ShadowMap,
    screen: Float[Tensor, "b v 3"],
    face_index: Int[Tensor, "b h2 w2"],
) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b 5 h w"]]:
    """Return the pictures; and mask, depth, uv and foreground."""
    size = stage.camera.image_size
    picture = torch.empty_like(given.background)
    lights = picture.new_empty(len(picture), *size, 3)
    labels = picture.new_empty(len(picture), 5, *size)
    wall, taken = _wall(stage, given, shadows)
    looks = torch.cat([given.tone, taken], dim=1)
    surface = _surface(stage, meshes, given, shadows)
    run = partial(
        launch, bounds=shares(len(picture), picture.device), elements=size, modules=_KERNELS
    )
    meshed = [screen, meshes.faces.int(), meshes.part.int(), surface]
    painted = [meshes.uv, meshes.uv_faces.int(), torch.cat([*_paints(given)], dim=-1)]
    faces = len(stage.hand.faces)
    seen: list[Tensor | int] = [given.texture, looks, shadows.depth, face_index.int(), faces]
    run("light_up", inputs=[*meshed, *painted, *seen], outputs=[lights, labels])
    behind = [looks, shadows.depth, wall, given.background]
    run("join", inputs=[lights, labels, *behind], outputs=[picture])
    return picture, labels


def to_linear(colour: Tensor) -> Tensor:
    """Return linear light of sRGB in [0, 1], within 0.003, by a polynomial: powers are slow."""
    return colour * (colour * (colour * 0.305306011 + 0.682171111) + 0.012522878)


def _surface(
    stage: Stage, meshes: Meshes, given: Ingredients, shadows: ShadowMap
) -> Float[Tensor, "b v 12"]:
    """Return what the kernel wants to know of each vertex: see ``drawing_kernels.Vertex``."""
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
    return torch.cat([meshes.normals, cosines, fill * meshes.shade, places, meshes.shade], dim=-1)


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


def _wall(
    stage: Stage, given: Ingredients, shadows: ShadowMap
) -> tuple[Float[Tensor, "b 3 3"], Float[Tensor, "b 1"]]:
    """Return the way from pixels to a plane behind the hand, and what its shadows take.

    The plane faces the camera.

    Returns:
        a matrix from ``(x, y, 1)``, pixels, to the place in the shadow map; and the share of all
        light that a full shadow takes.
    """
    depth = stage.posed.vertices[..., 2].amax(1)[:, None, None] + given.wall[..., None]
    wall = shadows.to_map[..., :3] @ torch.linalg.inv(stage.camera.intrinsics) * depth
    wall[..., 2] += shadows.to_map[..., 3]
    key, rest = given.key_colour.mean(1), (given.ambient + given.sky / 2).mean(1)
    key = key * F.normalize(given.key_direction, dim=-1)[:, 2].neg().relu()
    return wall, given.shadow * (key / (key + rest).clamp(min=1e-3))[:, None]


__all__ = ["Composition", "Ingredients", "compose", "to_linear"]
