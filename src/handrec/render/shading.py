"""Lit meshes from any rasterizer, and maps of their normals and rest positions."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from handrec.geometry.camera import resize_camera
from handrec.hand.base import HandModel
from handrec.render.base import Attribute, Rasterizer, check_batch, each_face
from handrec.render.lights import (
    AnyLight,
    Harmonics,
    Light,
    PointLight,
    Reflect,
    Specular,
    linear_to_srgb,
    reflect,
    srgb_to_linear,
    surface_normal,
)
from handrec.render.normals import flat_normals
from handrec.render.surface import Surface
from handrec.render.textures import (
    LookUp,
    Pyramid,
    Texture,
    build_pyramid,
    look_up,
    sample_texture,
)
from handrec.types import Camera, Rendering


class Shading:
    """A shader: ``albedo * light.gain(normal) + highlight``, clipped to [0, 1].

    It reads the attributes ``normal``, ``side`` (-1 where the inside of a face is seen: the normal
    is turned round), for the albedo ``colour`` or ``uv`` with its slopes, and ``position``
    (camera frame) if the light is a point or the surface glossy. Values above 1 are clipped: they
    pass no gradient to light and colour, though the pixel still passes that of visibility.

    Args:
        light: per image.
        specular: the gloss of the surface, per image; None for a matt one.
        texture: where ``uv`` points to; None takes ``colour``.
        linear: whether the albedo is linear light, to be shown as sRGB.
        sampler: looks the texture up, as :meth:`Rasterizer.look_up` does.
        reflector: lights a matt surface, as :meth:`Rasterizer.reflect` does.
    """

    def __init__(
        self,
        light: AnyLight,
        specular: Specular | None = None,
        texture: Pyramid | None = None,
        *,
        linear: bool = False,
        sampler: LookUp = look_up,
        reflector: Reflect = reflect,
    ) -> None:
        if specular is not None and isinstance(light, Harmonics):
            raise ValueError("light from all around (Harmonics) has no highlight: no specular")
        self.light = light
        self.specular = specular
        self.texture = texture
        self.linear = linear
        self.sampler = sampler
        self.reflector = reflector

    def __call__(self, surface: Surface) -> Float[Tensor, "... 3"]:
        """Return the shaded image."""
        albedo = self.albedo(surface)
        if self.specular is None or isinstance(self.light, Harmonics):
            shade = self.reflector(surface, albedo, self.light)
        else:
            normal = surface_normal(surface)
            highlight = self.light.highlight(surface, normal, self.specular)
            shade = (albedo * self.light.gain(surface, normal) + highlight).clamp(0, 1)
        return linear_to_srgb(shade) if self.linear else shade

    def albedo(self, surface: Surface) -> Float[Tensor, "... 3"]:
        """Return the colour in plain white light."""
        if self.texture is None:
            return surface["colour"]
        slopes = surface.get("uv_dx"), surface.get("uv_dy")
        return sample_texture(
            self.texture, surface["uv"], surface.image_index, *slopes, sampler=self.sampler
        )


def render_lit(
    rasterizer: Rasterizer,
    vertices: Float[Tensor, "b v 3"],
    faces: Int[Tensor, "f 3"],
    light: AnyLight,
    camera: Camera,
    *,
    colours: Float[Tensor, "rows v channels"] | None = None,
    texture: Texture | None = None,
    specular: Specular | None = None,
    smooth: bool = True,
    linear: bool = False,
    samples: int = 1,
    background: Float[Tensor, "images 3 h w"] | None = None,
) -> Rendering:
    """Return lit meshes, differentiable in every float.

    Args:
        rasterizer: any backend.
        vertices: metres, camera frame.
        faces: counter-clockwise seen from outside.
        light: per image.
        camera: per image.
        colours: RGB albedo of the vertices in [0, 1], or grey; per image, or one for all.
        texture: the albedo instead of ``colours``. White if there is neither.
        specular: the gloss of the surface, per image; None for a matt one.
        smooth: whether normals are interpolated between the vertices, or one per face.
        linear: whether to decode the albedo from sRGB, light it, and encode the result: as light
            does. Else colours are multiplied as they are stored.
        samples: along each side of a pixel, see :meth:`Rasterizer.render`.
        background: per image, or one for all; black if None.
    """
    vertices = vertices.float()
    for given in (x for x in (light, specular) if isinstance(x, tuple)):
        for name, values in given._asdict().items():
            check_batch(f"{type(given).__name__}.{name}", values, len(vertices))
    if texture is not None:
        check_batch("Texture.image", texture.image, len(vertices))
    decode = srgb_to_linear if linear else torch.nn.Identity()
    attributes, pyramid = _normals(rasterizer, vertices, faces, smooth), None
    if texture is None:
        colours = torch.ones_like(vertices[:1]) if colours is None else colours.float()
        attributes["colour"] = Attribute(decode(colours).expand(-1, -1, 3))
    else:
        pyramid = build_pyramid(decode(texture.image.float()), texture.mipmaps)
        slopes = len(pyramid.sizes) > 1
        attributes["uv"] = Attribute(texture.uv[None], texture.uv_faces, slopes)
    if specular is not None or isinstance(light, PointLight):
        attributes["position"] = Attribute(vertices)
    shader = Shading(
        light,
        specular,
        pyramid,
        linear=linear,
        sampler=rasterizer.look_up,
        reflector=rasterizer.reflect,
    )
    return rasterizer.render(
        vertices, faces, attributes, camera, shader, background=background, samples=samples
    )


def render_normals(
    rasterizer: Rasterizer,
    vertices: Float[Tensor, "b v 3"],
    faces: Int[Tensor, "f 3"],
    camera: Camera,
    *,
    smooth: bool = True,
    samples: int = 1,
) -> Rendering:
    """Return unit normals in the camera frame as an image, zeros off the mesh; differentiable.

    Where the inside of a face is seen, the normal is that of the inside.

    Args:
        rasterizer: any backend.
        vertices: metres, camera frame.
        faces: counter-clockwise seen from outside.
        camera: per image.
        smooth: whether normals are interpolated between the vertices, or one per face.
        samples: along each side of a pixel; means over them are shorter than 1 where they differ.
    """
    attributes = _normals(rasterizer, vertices.float(), faces, smooth)
    return rasterizer.render(vertices, faces, attributes, camera, surface_normal, samples=samples)


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


def _normals(
    rasterizer: Rasterizer,
    vertices: Float[Tensor, "b v 3"],
    faces: Int[Tensor, "f 3"],
    smooth: bool,
) -> dict[str, Attribute]:
    """Return the normals, and which side of each face is seen: 1 outside, -1 inside."""
    rows = each_face(len(faces), faces.device)
    normal, side = (rasterizer.normals if smooth else flat_normals)(vertices, faces)
    return {"normal": Attribute(normal, None if smooth else rows), "side": Attribute(side, rows)}


__all__ = [
    "AnyLight",
    "Harmonics",
    "Light",
    "PointLight",
    "Shading",
    "Specular",
    "Texture",
    "render_lit",
    "render_normals",
    "render_positions",
    "sample_texture",
    "surface_normal",
]
