"""The default rasterizer: Warp kernels, on CPU and CUDA."""

from itertools import accumulate
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from handrec.render.base import Attribute, Rasterizer
from handrec.render.layers import Seen
from handrec.render.lights import AnyLight, Light
from handrec.render.neighbours import find_neighbours
from handrec.render.surface import Surface
from handrec.render.textures import Pyramid
from handrec.render.torch_reference import EMPTY
from handrec.render.warp_launch import launch, shares, shares_at


class WarpRasterizer(Rasterizer):
    """The reference's algorithm as kernels; compiled on first use, then cached on disk.

    On a CPU, where a Warp kernel runs on one core, the batch is spread over torch's threads.
    """

    def cover(
        self,
        screen: Float[Tensor, "b v 3"],
        faces: Int[Tensor, "f 3"],
        size: tuple[int, int],
    ) -> Int[Tensor, "b h w"]:
        """Return the face seen at each pixel centre, -1 for none."""
        keys = torch.full((len(screen), *size), EMPTY, device=screen.device)
        inputs: list[Tensor | float] = [screen, faces.int(), self.near]
        launch("cover", shares(len(screen), screen.device), inputs, [keys], [len(faces)])
        return keys.int()

    def interpolate(
        self,
        screen: Float[Tensor, "b v 3"],
        faces: Int[Tensor, "f 3"],
        face_index: Int[Tensor, "b h w"],
        attributes: list[Attribute],
    ) -> list[Tensor]:
        """Return each attribute at each pixel, ``(B, H, W, C)``, zero off the mesh."""
        found = self._blend(screen, faces, face_index, attributes, None)
        return [values.view(*face_index.shape, -1) for values in found]

    def interpolate_at(
        self,
        screen: Float[Tensor, "b v 3"],
        faces: Int[Tensor, "f 3"],
        face_index: Int[Tensor, "b h w"],
        attributes: list[Attribute],
        seen: Seen,
    ) -> list[Tensor]:
        """Return each attribute at the pixels that see a face, ``(P, C)``."""
        return self._blend(screen, faces, face_index, attributes, seen)

    def _blend(
        self,
        screen: Tensor,
        faces: Tensor,
        face_index: Tensor,
        attributes: list[Attribute],
        seen: Seen | None,
    ) -> list[Tensor]:
        faces = faces.int()
        rows = [faces if item.corners is None else item.corners.int() for item in attributes]
        values = (item.values.float() for item in attributes)
        return list(_Blend.apply(screen, faces, _where(face_index, seen), rows, *values))

    @torch.no_grad()
    def slopes(
        self,
        screen: Float[Tensor, "b v 3"],
        faces: Int[Tensor, "f 3"],
        face_index: Int[Tensor, "b h w"],
        attribute: Attribute,
        seen: Seen | None,
    ) -> tuple[Float[Tensor, "... c"], Float[Tensor, "... c"]]:
        """Return how an attribute changes from each pixel to the next to the right, and below."""
        values, faces, where = attribute.values.float(), faces.int(), _where(face_index, seen)
        rows = faces if attribute.corners is None else attribute.corners.int()
        slopes = [where.blank(values.shape[-1]) for _ in range(2)]
        launch("slope", where.shares, [screen, faces, *where.pixels, values, rows], slopes)
        right, down = (x if seen else x.view(*face_index.shape, -1) for x in slopes)
        return right, down

    def visibility(
        self,
        image: Float[Tensor, "b c h w"],
        mask: Float[Tensor, "b 1 h w"],
        screen: Float[Tensor, "b v 3"],
        faces: Int[Tensor, "f 3"],
        face_index: Int[Tensor, "b h w"],
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b 1 h w"]]:
        """Return image and mask unchanged, but passing their gradients on to ``screen``."""
        faces, neighbours = faces.int(), find_neighbours(faces)
        image, mask = _EdgeFlux.apply(image, mask, screen, faces, neighbours, face_index.int())
        return image, mask

    def look_up(
        self,
        pyramid: Pyramid,
        uv: Float[Tensor, "p 2"],
        level: Float[Tensor, " p"],
        image_index: Int[Tensor, " p"] | None,
    ) -> Float[Tensor, "p c"]:
        """Return a texture's colours: see :func:`handrec.render.textures.look_up`."""
        if pyramid.texels.shape[-1] != 3:  # the kernels read RGB
            return super().look_up(pyramid, uv, level, image_index)
        colours: Tensor = _LookUp.apply(
            pyramid.texels, uv.contiguous(), level.detach(), image_index, pyramid.sizes
        )
        return colours

    def reflect(
        self, surface: Surface, albedo: Float[Tensor, "... 3"], light: AnyLight
    ) -> Float[Tensor, "... 3"]:
        """Return the colours of a matt surface: see :func:`handrec.render.lights.reflect`."""
        index = surface.image_index
        packed = None if index is None or index.dim() != 1 or len(index) == 0 else index
        if packed is None or type(light) is not Light or albedo.device.type != "cpu":
            return super().reflect(surface, albedo, light)
        first, last = int(packed[0]), int(packed[-1]) + 1  # of the images that are drawn together
        lights = (light.ambient, light.directional, F.normalize(light.direction, dim=-1))
        rows = (x.float().expand(last if len(x) == 1 else -1, -1)[first:last] for x in lights)
        images = torch.arange(first, last + 1, dtype=packed.dtype)
        starts = torch.searchsorted(packed, images, out_int32=True)
        normal = surface["normal"].float().contiguous()
        albedo = albedo.float().expand_as(normal).contiguous()
        lamp = torch.cat(list(rows), dim=-1)
        colours: Tensor = _Reflect.apply(starts, normal, surface["side"].detach(), albedo, lamp)
        return colours

    def normals(
        self, vertices: Float[Tensor, "b v 3"], faces: Int[Tensor, "f 3"]
    ) -> tuple[Float[Tensor, "b v 3"], Float[Tensor, "b f 1"]]:
        """Return the vertices' normals: see :func:`handrec.render.normals.smooth_normals`."""
        summed, side = _SumNormals.apply(vertices.contiguous(), faces.int())
        return F.normalize(summed, dim=-1, eps=1e-20), side


class _Where(NamedTuple):
    """The pixels that a kernel runs over, and how its threads share them: whole images each.

    ``pixels`` are the image, the face and the place of each, and the width and height.
    """

    pixels: tuple[Tensor, Tensor, Tensor, int, int]
    shares: list[int]
    all_seen: bool

    def blank(self, channels: int) -> Tensor:
        """Return what to write a result to: zeros where a kernel writes none."""
        like = self.pixels[0]
        make = torch.empty if self.all_seen else torch.zeros
        return make(len(like), channels, device=like.device)


def _where(face_index: Tensor, seen: Seen | None) -> _Where:
    images, height, width = face_index.shape
    bounds = [image * height * width for image in shares(images, face_index.device)]
    if seen is not None:
        image, face, pixel = seen
        shared = shares_at(pixel, bounds)
        return _Where((image.int(), face.int(), pixel.int(), width, height), shared, True)
    face = face_index.int().flatten()
    pixel = torch.arange(len(face), dtype=torch.int32, device=face.device)
    return _Where((pixel // (height * width), face, pixel, width, height), bounds, False)


class _Blend(torch.autograd.Function):
    """The means of each attribute's values at the corners of each pixel's face, ``(P, C)``.

    Weighted by the perspective-correct barycentrics.
    """

    @staticmethod
    def forward(
        ctx: Any, screen: Tensor, faces: Tensor, where: _Where, rows: list[Tensor], *values: Tensor
    ) -> tuple[Tensor, ...]:
        weights = where.blank(3)
        launch("weigh", where.shares, [screen, faces, *where.pixels], [weights])
        blended = []
        for each, corners in zip(values, rows, strict=True):
            blended.append(where.blank(each.shape[-1]))
            inputs = [each, corners, *where.pixels[:2], weights]
            launch("blend", where.shares, inputs, [blended[-1]])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(screen, faces, weights, *rows, *values)
        ctx.where = where
        return tuple(blended)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        saved: tuple[Tensor, ...] = ctx.saved_tensors
        (screen, faces, weights, *rest), where = saved, ctx.where
        rows, values = rest[: len(grads)], rest[len(grads) :]
        weights_grad, needed = torch.zeros_like(weights), ctx.needs_input_grad[4:]
        totals: list[Tensor | None] = []
        for each, corners, grad, wanted in zip(values, rows, grads, needed, strict=True):
            if grad is None:
                totals.append(None)
                continue
            values_grad = _ValuesGrad(each, wanted, len(where.shares) - 1)
            inputs = [each, corners, *where.pixels[:2], weights, grad]
            launch("blend_backward", where.shares, inputs, [values_grad.parts, weights_grad])
            totals.append(values_grad.total())
        screen_grad = torch.zeros_like(screen)
        inputs = [screen, faces, *where.pixels, weights_grad]
        launch("weigh_backward", where.shares, inputs, [screen_grad])
        return screen_grad, None, None, None, *totals


class _LookUp(torch.autograd.Function):
    """See :func:`handrec.render.textures.look_up`."""

    @staticmethod
    def forward(
        ctx: Any,
        texels: Tensor,
        uv: Tensor,
        level: Tensor,
        image_index: Tensor | None,
        sizes: tuple[tuple[int, int], ...],
    ) -> Tensor:
        starts = accumulate((height * width for height, width in sizes), initial=0)
        table = [(start, *size) for start, size in zip(starts, sizes, strict=False)]
        levels = torch.tensor(table, dtype=torch.int32, device=uv.device)
        if image_index is None or len(texels) == 1:
            index, ctx.shares = levels.new_empty(0), shares(len(uv), uv.device)
        else:
            images = shares(len(texels), uv.device)
            index = image_index.int().contiguous()
            ctx.shares = shares_at(index, images)
        colours = texels.new_empty(len(uv), 3)
        inputs = [texels, levels, uv, level, index]
        launch("look_up", ctx.shares, inputs, [colours])
        ctx.save_for_backward(*inputs)
        return colours

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None, None, None]:
        texels, _, uv, *_ = saved = ctx.saved_tensors
        texels_grad = _ValuesGrad(texels, ctx.needs_input_grad[0], len(ctx.shares) - 1)
        uv_grad = torch.empty_like(uv)
        launch("look_up_backward", ctx.shares, [*saved, grad], [texels_grad.parts, uv_grad])
        return texels_grad.total(), uv_grad, None, None, None


class _Reflect(torch.autograd.Function):
    """See :func:`handrec.render.lights.reflect`."""

    @staticmethod
    def forward(
        ctx: Any, starts: Tensor, normal: Tensor, side: Tensor, albedo: Tensor, lamp: Tensor
    ) -> Tensor:
        inputs = [starts, normal, side, albedo, lamp]
        colours = torch.empty_like(normal)
        launch("reflect", shares(len(lamp), lamp.device), inputs, [colours])
        ctx.save_for_backward(*inputs)
        return colours

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None, Tensor, Tensor]:
        _, normal, _, albedo, lamp = saved = ctx.saved_tensors
        normal_grad, albedo_grad, lamp_grad = (torch.empty_like(x) for x in (normal, albedo, lamp))
        images = shares(len(lamp), lamp.device)
        outputs = [normal_grad, albedo_grad, lamp_grad.view(-1, 3, 3)]
        launch("reflect_backward", images, [*saved, grad], outputs)
        return None, normal_grad, None, albedo_grad, lamp_grad


class _SumNormals(torch.autograd.Function):
    """The sums of the normals of the faces around each vertex, and the sides that are seen."""

    @staticmethod
    def forward(ctx: Any, vertices: Tensor, faces: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(vertices, faces)
        summed = torch.zeros_like(vertices)
        side = vertices.new_empty(len(vertices), len(faces), 1)
        images = shares(len(vertices), vertices.device)
        launch("sum_normals", images, [vertices, faces], [summed, side], [len(faces)])
        ctx.mark_non_differentiable(side)
        return summed, side

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None]:
        vertices, faces = ctx.saved_tensors
        total, images = torch.zeros_like(vertices), shares(len(vertices), vertices.device)
        inputs = [vertices, faces, grad]
        launch("sum_normals_backward", images, inputs, [total], [len(faces)])
        return total, None


class _ValuesGrad:
    """The gradient of values that threads add to: each to its own images, or to its own copy."""

    def __init__(self, values: Tensor, needed: bool, threads: int) -> None:
        self.needed = needed
        copies = threads if len(values) == 1 else 1
        sums = [values.new_zeros(len(values) * needed, *values.shape[1:]) for _ in range(copies)]
        self.parts = sums if len(values) == 1 else sums * threads
        self.sums = sums

    def total(self) -> Tensor | None:
        """Return the sum over the threads, None if nobody wants it."""
        return torch.stack(self.sums).sum(0) if self.needed else None


class _EdgeFlux(torch.autograd.Function):
    """See the reference's."""

    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        mask: Tensor,
        screen: Tensor,
        faces: Tensor,
        neighbours: Tensor,
        face_index: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(screen, faces, neighbours, face_index, image, mask)
        return image.view_as(image), mask.view_as(mask)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        saved: tuple[Tensor, ...] = ctx.saved_tensors
        (screen, *mesh, face_index, image, mask), (image_grad, mask_grad) = saved, grads
        screen_grad = torch.zeros_like(screen)
        images = shares(len(screen), screen.device)
        _, height, width = face_index.shape
        span = width if screen.device.type == "cpu" else 1  # a CPU is faster without so many starts
        inputs = [screen, *mesh, face_index]
        for shown, grad in ((image, image_grad), (mask, mask_grad)):
            inputs += [shown, grad] if grad is not None else [shown[:0], shown[:0]]
        launch("edge_flux", images, [*inputs, span], [screen_grad], [height, width // span])
        return image_grad, None, screen_grad, None, None, None


__all__ = ["WarpRasterizer"]
