"""The contract of a rasterizer, and the steps that every backend shares."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from handrec.geometry.camera import project
from handrec.types import Camera, Rendering


class Attribute(NamedTuple):
    """A quantity that varies over a surface.

    Attributes:
        values: ``(B or 1, N, C)``.
        corners: ``(F, 3)`` rows of ``values`` at the corners of each face; None takes the faces
            of the vertices (a per-vertex attribute). UV coordinates bring ``uv_faces``, per-face
            colours ``arange(F)[:, None].expand(-1, 3)``.
    """

    values: Float[Tensor, "b n c"]
    corners: Int[Tensor, "f 3"] | None = None


class Surface(dict[str, Tensor]):
    """What a shader gets: interpolated attributes by name, each ``(..., C)``.

    The leading axes are a batch of pixels. Whether they are ``(B, H, W)`` with zeros off the mesh,
    or a list of only those pixels that see a face, is the rasterizer's business: write shaders
    that work on the last axis, and let :meth:`of_image` bring in what is given per image.

    Args:
        attributes: by name.
        image_index: the image of each pixel of a list; None for whole images.
    """

    def __init__(
        self, attributes: Mapping[str, Tensor], image_index: Int[Tensor, " p"] | None = None
    ) -> None:
        super().__init__(attributes)
        self.image_index = image_index

    def of_image(self, values: Float[Tensor, "b ..."]) -> Float[Tensor, "..."]:
        """Return what is given per image in a shape that broadcasts against the attributes."""
        return values[:, None, None] if self.image_index is None else values[self.image_index]


#: From a surface to its colours ``(..., C')``, over the same leading axes. Any differentiable
#: function of the attributes; it may hold lights and textures.
Shader = Callable[[Surface], Tensor]


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

    A backend implements three steps: :meth:`cover`, :meth:`interpolate`, :meth:`visibility`.

    Args:
        near: metres.
    """

    def __init__(self, near: float = 0.01) -> None:
        super().__init__()
        self.near = near

    def render(
        self,
        vertices: Float[Tensor, "b v 3"],
        faces: Int[Tensor, "f 3"],
        attributes: Mapping[str, Attribute],
        camera: Camera,
        shader: Shader,
        *,
        background: Float[Tensor, "b c h w"] | None = None,
    ) -> Rendering:
        """Return the shaded image, mask, depth and face index of each mesh.

        Args:
            vertices: metres, camera frame.
            faces: shared by the batch.
            attributes: by name; ``shader`` gets them interpolated under the same names.
            camera: one intrinsics per mesh.
            shader: see :data:`Shader`.
            background: drawn where no face is seen; zeros if None.
        """
        with torch.autocast(vertices.device.type, enabled=False):
            vertices, intrinsics = vertices.float(), camera.intrinsics.float()
            screen = torch.cat([project(vertices, intrinsics), vertices[..., 2:]], dim=-1)
            face_index = self.cover(screen.detach(), faces, camera.image_size)
            surface = [*attributes.values(), Attribute(screen[..., 2:])]
            *values, depth = self.interpolate(screen, faces, face_index, surface)
            shaded = shader(Surface(dict(zip(attributes, values, strict=True))))
            seen = face_index[..., None] >= 0
            behind = 0.0 if background is None else background.float().permute(0, 2, 3, 1)
            layers = torch.cat([torch.where(seen, shaded, behind), seen.to(shaded)], dim=-1)
            if torch.is_grad_enabled() and screen.requires_grad:
                layers = self.visibility(layers, screen, faces, face_index)
        layers, depth = layers.permute(0, 3, 1, 2), depth.permute(0, 3, 1, 2)
        image, mask = layers[:, :-1].contiguous(), layers[:, -1:].contiguous()
        return Rendering(image, mask, depth, face_index)

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
        image: Float[Tensor, "b h w c"],
        screen: Float[Tensor, "b v 3"],
        faces: Int[Tensor, "f 3"],
        face_index: Int[Tensor, "b h w"],
    ) -> Float[Tensor, "b h w c"]:
        """Return ``image`` unchanged, but passing its gradient on to ``screen`` by visibility."""


__all__ = ["Attribute", "Rasterizer", "Shader", "Surface"]
