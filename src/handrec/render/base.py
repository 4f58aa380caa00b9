"""The contract of a rasterizer, and the steps that every backend shares."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from handrec.errors import positive
from handrec.geometry.camera import project, resize_camera
from handrec.render.layers import Seen, find_seen, lay
from handrec.render.lights import AnyLight, reflect
from handrec.render.normals import smooth_normals
from handrec.render.surface import Shader, Surface
from handrec.render.textures import Pyramid, look_up
from handrec.types import Camera, Rendering

#: Samples drawn at a time unless ``chunk`` says otherwise: 41 images of 224 x 224 pixels.
SAMPLES_AT_ONCE = 1 << 21


class Attribute(NamedTuple):
    """A quantity that varies over a surface.

    Attributes:
        values: ``(B or 1, N, C)``.
        corners: ``(F, 3)`` rows of ``values`` at the corners of each face; None takes the faces
            of the vertices (a per-vertex attribute). UV coordinates bring ``uv_faces``, per-face
            colours :func:`each_face`.
        slopes: whether the shader also gets ``<name>_dx`` and ``<name>_dy``, the change of the
            attribute along its face from one sample to the next to the right, and below. They have
            no gradient.
    """

    values: Float[Tensor, "b n c"]
    corners: Int[Tensor, "f 3"] | None = None
    slopes: bool = False


@cache
def each_face(count: int, device: torch.device) -> Int[Tensor, "f 3"]:
    """Return the ``corners`` of an attribute with one row for each face.

    Always the same tensor: attributes that share their corners are interpolated as one.
    """
    return torch.arange(count, device=device)[:, None].expand(-1, 3).contiguous()


class Rasterizer(nn.Module, ABC):
    """Draws meshes of one topology through pinhole cameras, differentiably.

    Convention:
        Camera frame: OpenCV (x right, y down, z forward), metres. Row 0 is the top of the image
        and pixel centres lie at integer + 0.5. A pixel shows the nearest face that covers its
        centre; at equal depth, rounding apart, the lower face index wins. Both sides of a face are
        seen. A face with a vertex nearer than ``near`` is not drawn, nor is a degenerate one;
        neither gives a NaN. Everything is float32 inside, whatever autocast does. The forward is
        deterministic.

    Gradients:
        To vertices through perspective-correct barycentrics (shading, texture, depth) and through
        visibility (silhouettes and occlusion edges, on the shaded image and on the mask); to
        attributes, and through the shader to lights and textures. ``face_index`` has none.

    A backend implements three steps: :meth:`cover`, :meth:`interpolate`, :meth:`visibility`. The
    other steps have defaults, which it may override with faster ones.

    Args:
        near: metres.
        chunk: images to draw at a time, which bounds the memory; None for as many as make
            :data:`SAMPLES_AT_ONCE`.
    """

    def __init__(self, near: float = 0.01, chunk: int | None = None) -> None:
        super().__init__()
        self.near = near
        positive(self, near=near, chunk=1 if chunk is None else chunk)
        self.chunk = chunk

    def render(
        self,
        vertices: Float[Tensor, "b v 3"],
        faces: Int[Tensor, "f 3"],
        attributes: Mapping[str, Attribute],
        camera: Camera,
        shader: Shader,
        *,
        background: Float[Tensor, "rows c height width"] | None = None,
        samples: int = 1,
    ) -> Rendering:
        """Return the shaded image, mask, depth and face index of each mesh.

        Args:
            vertices: metres, camera frame.
            faces: shared by the batch.
            attributes: by name; ``shader`` gets them interpolated under the same names.
            camera: one intrinsics per mesh.
            shader: see :data:`Shader`.
            background: drawn where no face is seen, one for each image or for all; zeros if None.
            samples: along each side of a pixel. Image and mask are means over them, taken after
                shading and visibility; depth and face index are those of the nearest sample.
        """
        _check(len(vertices), camera, attributes, background)
        if background is not None:
            background = background.expand(len(vertices), -1, -1, -1)
        height, width = (samples * side for side in camera.image_size)
        chunk = self.chunk or max(1, SAMPLES_AT_ONCE // (height * width))
        with torch.autocast(vertices.device.type, enabled=False):
            vertices = vertices.float()
            intrinsics = resize_camera(camera, (height, width)).intrinsics.float()
            screen = torch.cat([project(vertices, intrinsics), vertices[..., 2:]], dim=-1)
            parts = []
            for first in range(0, len(screen), chunk):
                images = slice(first, first + chunk)
                mine = {name: _part(item, images) for name, item in attributes.items()}
                behind = None if background is None else background[images].float()
                if behind is not None and samples > 1:
                    behind = F.interpolate(behind, scale_factor=samples)
                drawn = self._draw(
                    screen[images], faces, mine, (height, width), shader, behind, first
                )
                parts.append(drawn if samples == 1 else _reduce(drawn, samples))
        return parts[0] if len(parts) == 1 else Rendering(*map(torch.cat, zip(*parts, strict=True)))

    def _draw(
        self,
        screen: Tensor,
        faces: Tensor,
        attributes: Mapping[str, Attribute],
        size: tuple[int, int],
        shader: Shader,
        background: Tensor | None,
        first: int,
    ) -> Rendering:
        """Return some images of the batch, from image ``first`` on, one sample per pixel."""
        face_index = self.cover(screen.detach(), faces, size)
        seen = find_seen(face_index) if self.packs(screen.device) else None
        maps = self._interpolate_all(screen, faces, face_index, attributes, seen)
        depth = maps.pop(_DEPTH)
        if seen is None:
            image_index = torch.arange(len(screen), device=screen.device)[:, None, None]
        else:
            image_index = seen.image
        shaded = shader(Surface(maps, image_index + first if first else image_index))
        image = lay(shaded, face_index, seen, background)
        mask = (face_index >= 0)[:, None].float()
        if torch.is_grad_enabled() and screen.requires_grad:
            image, mask = self.visibility(image, mask, screen, faces, face_index)
        return Rendering(image, mask, lay(depth, face_index, seen), face_index)

    def _interpolate_all(
        self,
        screen: Tensor,
        faces: Tensor,
        face_index: Tensor,
        attributes: Mapping[str, Attribute],
        seen: Seen | None,
    ) -> dict[str, Tensor]:
        """Return the attributes at the pixels with their slopes, and the depth."""
        wanted = {**attributes, _DEPTH: Attribute(screen[..., 2:])}
        found = self._interpolate(screen, faces, face_index, list(wanted.values()), seen)
        maps = dict(zip(wanted, found, strict=True))
        for name, item in attributes.items():
            if item.slopes:
                slopes = self.slopes(screen.detach(), faces, face_index, item, seen)
                maps[f"{name}_dx"], maps[f"{name}_dy"] = slopes
        return maps

    def _interpolate(
        self,
        screen: Tensor,
        faces: Tensor,
        face_index: Tensor,
        attributes: list[Attribute],
        seen: Seen | None,
    ) -> list[Tensor]:
        if seen is None:
            return self.interpolate(screen, faces, face_index, attributes)
        return self.interpolate_at(screen, faces, face_index, attributes, seen)

    @abstractmethod
    def cover(
        self,
        screen: Float[Tensor, "b v 3"],
        faces: Int[Tensor, "f 3"],
        size: tuple[int, int],
    ) -> Int[Tensor, "b h w"]:
        """Return the face seen at each pixel centre, -1 for none.

        Args:
            screen: ``(x px, y px, z m)`` of each vertex; vertices at or behind ``near`` included.
            faces: shared by the batch.
            size: ``(height, width)``.
        """

    @abstractmethod
    def interpolate(
        self,
        screen: Float[Tensor, "b v 3"],
        faces: Int[Tensor, "f 3"],
        face_index: Int[Tensor, "b h w"],
        attributes: list[Attribute],
    ) -> list[Tensor]:
        """Return each attribute at each pixel, ``(B, H, W, C)``, zero off the mesh.

        Perspective-correct and differentiable in ``screen`` and the values.
        """

    @abstractmethod
    def visibility(
        self,
        image: Float[Tensor, "b c h w"],
        mask: Float[Tensor, "b 1 h w"],
        screen: Float[Tensor, "b v 3"],
        faces: Int[Tensor, "f 3"],
        face_index: Int[Tensor, "b h w"],
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b 1 h w"]]:
        """Return image and mask unchanged, but passing their gradients on to ``screen``."""

    def packs(self, device: torch.device) -> bool:
        """Return whether shaders get a list of the pixels that see a face, or whole images.

        Most of a picture of a hand shows none, so a list saves most of the work; but to know how
        long it is, a GPU would have to be waited for.
        """
        return device.type == "cpu"

    def interpolate_at(
        self,
        screen: Float[Tensor, "b v 3"],
        faces: Int[Tensor, "f 3"],
        face_index: Int[Tensor, "b h w"],
        attributes: list[Attribute],
        seen: Seen,
    ) -> list[Tensor]:
        """Return each attribute at the pixels that see a face, ``(P, C)``.

        Args:
            screen: see :meth:`cover`.
            faces: shared by the batch.
            face_index: from :meth:`cover`.
            attributes: see :meth:`interpolate`.
            seen: the pixels.
        """
        maps = self.interpolate(screen, faces, face_index, attributes)
        return [values.flatten(0, 2).index_select(0, seen.pixel) for values in maps]

    @torch.no_grad()
    def slopes(
        self,
        screen: Float[Tensor, "b v 3"],
        faces: Int[Tensor, "f 3"],
        face_index: Int[Tensor, "b h w"],
        attribute: Attribute,
        seen: Seen | None,
    ) -> tuple[Float[Tensor, "... c"], Float[Tensor, "... c"]]:
        """Return how an attribute changes from each pixel to the next to the right, and below.

        Args:
            screen: see :meth:`cover`.
            faces: shared by the batch.
            face_index: from :meth:`cover`.
            attribute: whose slopes along the face of the pixel are wanted.
            seen: the pixels; None for all of them.
        """
        planes = _planes(screen, faces, attribute)
        wanted = [attribute, Attribute(screen[..., 2:]), *planes]
        value, depth, *ratios = self._interpolate(screen, faces, face_index, wanted, seen)
        # f = (f / z) / (1 / z), a quotient of functions that are affine on the screen
        right, down = ((x[..., :-1] - value * x[..., -1:]) * depth for x in ratios)
        return right, down

    def look_up(
        self,
        pyramid: Pyramid,
        uv: Float[Tensor, "p 2"],
        level: Float[Tensor, " p"],
        image_index: Int[Tensor, " p"] | None,
    ) -> Float[Tensor, "p c"]:
        """Return a texture's colours: see :func:`handrec.render.textures.look_up`."""
        return look_up(pyramid, uv, level, image_index)

    def reflect(
        self, surface: Surface, albedo: Float[Tensor, "... 3"], light: AnyLight
    ) -> Float[Tensor, "... 3"]:
        """Return the colours of a matt surface: see :func:`handrec.render.lights.reflect`."""
        return reflect(surface, albedo, light)

    def normals(
        self, vertices: Float[Tensor, "b v 3"], faces: Int[Tensor, "f 3"]
    ) -> tuple[Float[Tensor, "b v 3"], Float[Tensor, "b f 1"]]:
        """Return the vertices' normals: see :func:`handrec.render.normals.smooth_normals`."""
        return smooth_normals(vertices, faces)


#: Key of the depth among the interpolated attributes.
_DEPTH = " depth"


def _check(
    batch: int, camera: Camera, attributes: Mapping[str, Attribute], background: Tensor | None
) -> None:
    """Raise a ValueError where kernels would read what is not there."""
    if not batch:
        raise ValueError("no meshes to draw: vertices have a batch of 0")
    for name, item in attributes.items():
        check_batch(name, item.values, batch)
    if background is not None:
        check_batch("background", background, batch)
        height, width = camera.image_size
        if background.shape[2:] != (height, width):
            raise ValueError(
                f"a background of shape {tuple(background.shape)} does not fit "
                f"images of {height} x {width} pixels"
            )


def check_batch(name: str, values: Tensor, batch: int) -> None:
    """Raise a ValueError unless there is one row for all images, or one for each."""
    if len(values) not in (1, batch):
        raise ValueError(f"{name}: {len(values)} rows for {batch} images; give 1 or {batch}")


def _part(attribute: Attribute, images: slice) -> Attribute:
    """Return some images' values in float32; values of a batch of one serve every image."""
    values = attribute.values.float()
    return attribute._replace(values=values if len(values) == 1 else values[images])


def _planes(
    screen: Float[Tensor, "b v 3"], faces: Int[Tensor, "f 3"], attribute: Attribute
) -> tuple[Attribute, Attribute]:
    """Return the slopes of value / depth and 1 / depth over the screen, to the right and down."""
    rows = faces if attribute.corners is None else attribute.corners
    x, y, depth = screen[:, faces].unbind(-1)  # (B, F, 3)
    values = attribute.values[:, rows].expand(len(screen), -1, -1, -1)
    ratio = F.pad(values, (0, 1), value=1.0) / depth[..., None]
    (a, b, c), (ax, bx, cx), (ay, by, cy) = ratio.unbind(2), x.unbind(2), y.unbind(2)
    to_b, to_c, bx, cx, by, cy = b - a, c - a, bx - ax, cx - ax, by - ay, cy - ay
    area = (bx * cy - cx * by)[..., None]
    dx = (to_b * cy[..., None] - to_c * by[..., None]) / area
    dy = (to_c * bx[..., None] - to_b * cx[..., None]) / area
    rows = each_face(len(faces), faces.device)
    return Attribute(dx, rows), Attribute(dy, rows)


def _reduce(drawn: Rendering, samples: int) -> Rendering:
    """Return pixels made of ``samples ** 2`` samples each; see :meth:`Rasterizer.render`."""
    image, mask = (F.avg_pool2d(x, samples) for x in (drawn.image, drawn.mask))

    batch, _, height, width = image.shape

    def blocks(x: Tensor) -> Tensor:
        parts = x.view(batch, height, samples, width, samples)
        return parts.transpose(2, 3).flatten(3)

    depth, face_index = blocks(drawn.depth[:, 0]), blocks(drawn.face_index)
    nearest = depth.detach().where(face_index >= 0, torch.inf).argmin(-1, keepdim=True)
    depth, face_index = (x.gather(-1, nearest).squeeze(-1) for x in (depth, face_index))
    return Rendering(image, mask, depth[:, None], face_index)


__all__ = ["Attribute", "Rasterizer", "Shader", "Surface", "check_batch", "each_face"]
