"""A blurred silhouette that pulls from afar, for starting values that miss their target.

The gradient of a hard silhouette knows only the pixels along it: a hand beside its target mask is
not told where to go. Here every face covers the pixels around it by a share that falls off with the
distance (S. Liu et al., "Soft Rasterizer", ICCV 2019, eq. 1 and 3).
"""

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from handrec.geometry.camera import project
from handrec.render.torch_reference import bounding_boxes, edge_functions, fragments
from handrec.types import Camera

#: A face's share at the distance beyond which it counts as 0.
FAINTEST = 1e-4


def soft_silhouette(
    vertices: Float[Tensor, "b v 3"],
    faces: Int[Tensor, "f 3"],
    camera: Camera,
    *,
    sigma: float = 1e-3,
    near: float = 0.01,
) -> Float[Tensor, "b 1 h w"]:
    """Return ``1 - prod_k(1 - sigmoid(-d_k / sigma))`` at each pixel, over the faces k around it.

    ``d_k`` is the squared distance to the face, negative inside of it, in units of half the image's
    shorter side. A face reaches ``sqrt(9.2 sigma)`` far, 0.1 of those units at the default, and the
    time goes with the square of that in pixels: draw small, 64 px or so
    (:func:`~handrec.geometry.camera.resize_camera`). Differentiable in the vertices, on any device.
    The memory does not grow with the number of faces or their reach.

    Args:
        vertices: metres, camera frame.
        faces: shared by the batch.
        camera: per image.
        sigma: squared width of the blur.
        near: metres; a face with a vertex nearer than that is left out.
    """
    with torch.autocast(vertices.device.type, enabled=False):
        vertices = vertices.float()
        pixels = project(vertices, camera.intrinsics.float())
        corners = torch.cat([pixels, vertices[..., 2:]], dim=-1)[:, faces].flatten(0, 1)
        exponent = _SoftExponent.apply(corners, len(vertices), camera.image_size, sigma, near)
        return -torch.expm1(-exponent)[:, None]


class _SoftExponent(torch.autograd.Function):
    """``sum_k softplus(-d_k / sigma)``, ``(B, H, W)``: the silhouette is 1 - exp(-this).

    Fragments are made a chunk at a time, and made again for the gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, corners: Tensor, images: int, size: tuple[int, int], sigma: float, near: float
    ) -> Tensor:
        scale = (2 / min(size)) ** 2 / sigma
        margin = math.sqrt(math.log(1 / FAINTEST - 1) / scale)
        boxes = bounding_boxes(corners, size, near, margin)
        ctx.save_for_backward(corners, *boxes)
        ctx.size, ctx.scale = size, scale
        exponent = corners.new_zeros(images * size[0] * size[1])
        for face, x, y in fragments(*boxes):
            pixel = _pixel(face, x, y, len(corners) // images, size)
            exponent.index_add_(0, pixel, _share(corners[face], x, y, scale))
        return exponent.view(images, *size)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        corners, *boxes = ctx.saved_tensors
        total = torch.zeros_like(corners)
        for face, x, y in fragments(*boxes):
            pixel = _pixel(face, x, y, len(corners) // len(grad), ctx.size)
            with torch.enable_grad():
                mine = corners[face].requires_grad_()
                share = _share(mine, x, y, ctx.scale)
            (part,) = torch.autograd.grad(share, mine, grad.flatten()[pixel])
            total.index_add_(0, face, part)
        return total, None, None, None, None


def _pixel(face: Tensor, x: Tensor, y: Tensor, faces: int, size: tuple[int, int]) -> Tensor:
    """Return indices into the flattened images."""
    height, width = size
    return (torch.div(face, faces, rounding_mode="floor") * height + y) * width + x


def _share(corners: Tensor, x: Tensor, y: Tensor, scale: float) -> Tensor:
    """Return ``softplus(-d * scale)`` of faces at pixels; ``d`` in px²."""
    centre = torch.stack([x, y], dim=-1) + 0.5
    start = corners[..., :2] - centre[:, None]  # relative to the pixel
    edge = start.roll(-1, dims=1) - start
    along = -(start * edge).sum(-1) / edge.square().sum(-1).clamp(min=1e-12)
    nearest = start + along.clamp(0, 1)[..., None] * edge
    distance = nearest.square().sum(-1).amin(-1)
    with torch.no_grad():
        edges = edge_functions(corners[..., :2], centre)
        inside = (edges * edges.sum(-1, keepdim=True)).amin(-1) > 0
    return F.softplus(torch.where(inside, distance, -distance) * scale)


__all__ = ["soft_silhouette"]
