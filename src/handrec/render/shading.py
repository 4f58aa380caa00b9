"""Light and colour for any rasterizer: Lambert shading, textures, maps of rest positions."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from handrec.geometry.camera import resize_camera
from handrec.geometry.mesh import face_normals, vertex_normals
from handrec.hand.base import HandModel
from handrec.render.base import Attribute, Rasterizer, Surface
from handrec.types import Camera, Rendering


class Light(NamedTuple):
    """An ambient and a directional light per image, RGB gains on the colours as they are stored.

    Attributes:
        ambient: light from everywhere.
        directional: light on a surface that faces it.
        direction: towards the light, camera frame (OpenCV), any length: (0, 0, -1) shines from the
            camera, (0, -1, 0) from above.
    """

    ambient: Float[Tensor, "b 3"]
    directional: Float[Tensor, "b 3"]
    direction: Float[Tensor, "b 3"]


class Texture(NamedTuple):
    """An image and how it lies on the faces.

    Attributes:
        image: RGB in [0, 1].
        uv: coordinates in [0, 1], v up: (0, 0) is the image's lower left corner, (1, 1) its upper
            right corner; texel centres lie between.
        uv_faces: rows of ``uv`` at the corners of each face.
    """

    image: Float[Tensor, "#b 3 th tw"]
    uv: Float[Tensor, "u 2"]
    uv_faces: Int[Tensor, "f 3"]


class Lambert:
    """A shader: ``albedo * (ambient + directional * max(0, normal . direction))`` in [0, 1].

    It reads the attributes ``normal``, ``side`` (-1 where the inside of a face is seen: the normal
    is turned round) and, for the albedo, ``colour`` or else ``uv``. Values above 1 are clipped:
    they pass no gradient to light and colour, though the pixel still passes that of visibility.

    Args:
        light: per image.
        texture: RGB image looked up at ``uv``, see :class:`Texture`.
    """

    def __init__(self, light: Light, texture: Float[Tensor, "#b 3 th tw"] | None = None) -> None:
        self.light = light
        self.texture = texture

    def __call__(self, attributes: Surface) -> Float[Tensor, "... 3"]:
        """Return the shaded image."""
        if self.texture is None:
            albedo = attributes["colour"]
        else:
            albedo = sample_texture(self.texture, attributes["uv"])
        normal = F.normalize(attributes["normal"], dim=-1, eps=1e-6) * attributes["side"]
        ambient, directional, direction = (attributes.of_image(x.float()) for x in self.light)
        cosine = (normal * F.normalize(direction, dim=-1)).sum(-1, keepdim=True)
        return (albedo * (ambient + directional * cosine.relu())).clamp(0, 1)


def sample_texture(
    image: Float[Tensor, "#b 3 th tw"], uv: Float[Tensor, "b h w 2"]
) -> Float[Tensor, "b h w 3"]:
    """Return a texture's colours, bilinear, continued beyond its border; see :class:`Texture`."""
    grid = torch.stack([2 * uv[..., 0] - 1, 1 - 2 * uv[..., 1]], dim=-1)
    image = image.float().expand(len(uv), -1, -1, -1)
    sampled = F.grid_sample(image, grid, padding_mode="border", align_corners=False)
    return sampled.permute(0, 2, 3, 1)


def render_lit(
    rasterizer: Rasterizer,
    vertices: Float[Tensor, "b v 3"],
    faces: Int[Tensor, "f 3"],
    light: Light,
    camera: Camera,
    *,
    colours: Float[Tensor, "#b v 3"] | None = None,
    texture: Texture | None = None,
    background: Float[Tensor, "b 3 h w"] | None = None,
) -> Rendering:
    """Return smooth meshes in Lambert shading, differentiable in every float.

    Args:
        rasterizer: any backend.
        vertices: metres, camera frame.
        faces: counter-clockwise seen from outside.
        light: per image.
        camera: per image.
        colours: RGB albedo of the vertices in [0, 1].
        texture: the albedo instead of ``colours``. White if there is neither.
        background: black if None.
    """
    vertices = vertices.float()
    with torch.no_grad():
        outward = (face_normals(vertices, faces) * vertices[:, faces[:, 0]]).sum(-1, keepdim=True)
        side = torch.where(outward > 0, -1.0, 1.0)
    each_face = torch.arange(len(faces), device=faces.device)[:, None].expand(-1, 3)
    attributes = {
        "normal": Attribute(vertex_normals(vertices, faces)),
        "side": Attribute(side, each_face),
    }
    if texture is None:
        white = torch.ones_like(vertices[:1])
        attributes["colour"] = Attribute(white if colours is None else colours)
    else:
        attributes["uv"] = Attribute(texture.uv[None], texture.uv_faces)
    shader = Lambert(light, None if texture is None else texture.image)
    return rasterizer.render(vertices, faces, attributes, camera, shader, background=background)


@torch.no_grad()
def render_positions(
    rasterizer: Rasterizer,
    hand: HandModel,
    vertices: Float[Tensor, "b v 3"],
    camera: Camera,
    size: tuple[int, int] | None = None,
) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b 1 h w"]]:
    """Return which point of the rest hand each pixel shows (a PNCC), and the mask; no gradient.

    Positions run from 0 to 1 along each axis of the template's bounding box, and are 0 off the
    hand.

    Args:
        rasterizer: any backend.
        hand: whose template gives the rest positions.
        vertices: metres, camera frame.
        camera: per image.
        size: ``(height, width)`` to draw at instead of the camera's.
    """
    low, high = hand.template.amin(0), hand.template.amax(0)
    position = Attribute(((hand.template - low) / (high - low))[None])
    view = camera if size is None else resize_camera(camera, size)
    drawn = rasterizer.render(
        vertices, hand.faces, {"position": position}, view, lambda maps: maps["position"]
    )
    return drawn.image, drawn.mask
