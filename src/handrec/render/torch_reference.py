"""The reference rasterizer: plain PyTorch on any device, written to be read and compared with."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import BackwardCFunction, FunctionCtx, once_differentiable

from handrec.render.base import Attribute, Rasterizer
from handrec.render.layers import Seen, find_seen, lay
from handrec.render.neighbours import find_neighbours

#: Twice the area (px²) up to which a face counts as degenerate.
DEGENERATE = 1e-6

#: Pixels of bounding boxes to test at a time: bounds the memory.
FRAGMENTS_AT_ONCE = 1 << 17

#: Faces that a surface is followed over, from one pixel to the next.
STEPS = 12

#: A face as high as this share of its longest edge is not seen edge-on.
FACE_ON = 0.4

#: Key of a pixel that no face covers; its low 32 bits are -1.
EMPTY = torch.iinfo(torch.int64).max


class TorchRasterizer(Rasterizer):
    """Bounding-box fragments, a packed z-buffer, and automatic differentiation."""

    def cover(
        self,
        screen: Float[Tensor, "b v 3"],
        faces: Int[Tensor, "f 3"],
        size: tuple[int, int],
    ) -> Int[Tensor, "b h w"]:
        """Return the face seen at each pixel centre, -1 for none."""
        (height, width), face_count = size, len(faces)
        corners = screen[:, faces].flatten(0, 1)
        first, extent = bounding_boxes(corners, size, self.near)
        keys = torch.full((len(screen) * height * width,), EMPTY, device=screen.device)
        for meshed, x, y in fragments(first, extent):
            edges = edge_functions(
                corners.index_select(0, meshed)[..., :2], torch.stack([x, y], dim=-1) + 0.5
            )
            inside = covers(edges).nonzero().squeeze(1)
            image, face = meshed[inside] // face_count, meshed[inside] % face_count
            inverse_depth = corners[meshed[inside], :, 2].reciprocal()
            depth = _add(edges[inside]) / _add(edges[inside] * inverse_depth)
            rank = depth.view(torch.int32).long()  # the bits of positive floats sort as they do
            pixel = (image * height + y[inside]) * width + x[inside]
            keys.scatter_reduce_(0, pixel, rank << 32 | face, "amin")
        return keys.int().view(-1, height, width)

    def interpolate(
        self,
        screen: Float[Tensor, "b v 3"],
        faces: Int[Tensor, "f 3"],
        face_index: Int[Tensor, "b h w"],
        attributes: list[Attribute],
    ) -> list[Tensor]:
        """Return each attribute at each pixel, ``(B, H, W, C)``, zero off the mesh."""
        seen = find_seen(face_index)
        found = self.interpolate_at(screen, faces, face_index, attributes, seen)
        return [lay(values, face_index, seen).permute(0, 2, 3, 1) for values in found]

    def interpolate_at(
        self,
        screen: Float[Tensor, "b v 3"],
        faces: Int[Tensor, "f 3"],
        face_index: Int[Tensor, "b h w"],
        attributes: list[Attribute],
        seen: Seen,
    ) -> list[Tensor]:
        """Return each attribute at the pixels that see a face, ``(P, C)``."""
        height, width = face_index.shape[1:]
        image, face, pixel = (index.long() for index in seen)
        x, y = pixel % width, pixel // width % height
        corners = _gather(screen, image, faces[face])
        edges = edge_functions(corners[..., :2], torch.stack([x, y], dim=-1) + 0.5)
        by_depth = edges / corners[..., 2]
        weights = by_depth / by_depth.sum(-1, keepdim=True)
        if weights.requires_grad:
            damping = _damping(corners.detach(), edges.detach())[:, None]
            weights.register_hook(lambda grad: grad * damping)
        found = []
        for values, rows, _ in attributes:
            at_corners = _gather(values.float(), image, (faces if rows is None else rows)[face])
            found.append((weights[..., None] * at_corners).sum(1))
        return found

    def visibility(
        self,
        image: Float[Tensor, "b c h w"],
        mask: Float[Tensor, "b 1 h w"],
        screen: Float[Tensor, "b v 3"],
        faces: Int[Tensor, "f 3"],
        face_index: Int[Tensor, "b h w"],
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b 1 h w"]]:
        """Return image and mask unchanged, but passing their gradients on to ``screen``."""
        layers = torch.cat([image, mask], dim=1).permute(0, 2, 3, 1)
        neighbours = find_neighbours(faces)
        flowing: Tensor = _EdgeFlux.apply(layers, screen, faces, neighbours, face_index)
        upright = flowing.permute(0, 3, 1, 2)
        return upright[:, :-1], upright[:, -1:]


class _EdgeFlux(torch.autograd.Function):
    """The gradient of what is seen with respect to the edges that decide it.

    Where neighbouring pixels show different faces, an edge runs between them. Moving it by d px
    turns a share d of one pixel into the other, so the loss changes by the colour difference times
    the incoming gradient; the surface that owns the edge is pushed by that much. This is the idea
    of Pidhorskyi et al., "Rasterized edge gradients", ECCV 2024.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        image: Tensor,
        screen: Tensor,
        faces: Tensor,
        neighbours: Tensor,
        face_index: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(image, screen, faces, neighbours, face_index)
        return image.view_as(image)

    @staticmethod
    @once_differentiable
    def backward(ctx: BackwardCFunction, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        saved: tuple[Tensor, ...] = ctx.saved_tensors
        image, screen, faces, neighbours, face_index = saved
        mesh = _Mesh(screen, faces, neighbours)
        flux = torch.zeros_like(screen)
        for axis in (0, 1):
            here, there = _edge_pixels(face_index, axis)
            push = ((image[here] - image[there]) * (grad[here] + grad[there])).sum(-1) / 2
            sides = [_fragments_at(pixels, mesh, face_index) for pixels in (here, there)]
            for fragments, owns in zip(sides, _own_edge(sides[0], sides[1], mesh), strict=True):
                edges = edge_functions(fragments.corners[owns, :, :2], fragments.centre[owns])
                shares = push[owns, None] * edges / edges.sum(-1, keepdim=True)
                rows = here[0][owns, None] * screen.shape[1] + faces[fragments.face[owns]]
                flux.view(-1, 3)[:, axis].index_add_(0, rows.flatten(), shares.flatten())
        return grad, flux, None, None, None


class _Mesh(NamedTuple):
    """What the images show: vertices on screen, their faces, which face lies across which edge."""

    screen: Tensor
    faces: Tensor
    neighbours: Tensor


class _Fragments(NamedTuple):
    """What some pixels show: a face (-1: none), its corners on screen, the pixel's centre."""

    image: Tensor
    face: Tensor
    corners: Tensor
    centre: Tensor


def _edge_pixels(
    face_index: Int[Tensor, "b h w"], axis: int
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return ``(image, y, x)`` of neighbours along ``axis`` (0: x) that show different faces."""
    dim = 2 - axis
    count = face_index.shape[dim] - 1
    differs = face_index.narrow(dim, 0, count) != face_index.narrow(dim, 1, count)
    image, y, x = differs.nonzero(as_tuple=True)
    return (image, y, x), (image, y + axis, x + 1 - axis)


def _fragments_at(pixels: tuple[Tensor, ...], mesh: _Mesh, face_index: Tensor) -> _Fragments:
    """Return what the pixels show; the corners are meaningless where they show no face."""
    image, y, x = pixels
    face = face_index[pixels]
    corners = _gather(mesh.screen, image, mesh.faces[face])
    return _Fragments(image, face, corners, torch.stack([x, y], dim=-1) + 0.5)


def _own_edge(one: _Fragments, other: _Fragments, mesh: _Mesh) -> tuple[Tensor, Tensor]:
    """Return whether the edge between neighbouring pixels belongs to the face of either.

    It does if the other pixel shows none, or if the surface of the face ends between them and that
    of the other does not: it goes on below. If both end, the nearer one has it. If neither does,
    or if they meet, they are one surface, or cut through each other.
    """
    one_reaches, other_reaches = (
        _follow(one, other.centre, mesh),
        _follow(other, one.centre, mesh),
    )
    one_shown, other_shown = one.face >= 0, other.face >= 0
    apart = (one_reaches != other.face) & (other_reaches != one.face)
    one_ends, other_ends = one_reaches < 0, other_reaches < 0
    one_depth, other_depth = _depth(one), _depth(other)
    one_owns = apart & one_ends & (~other_ends | (one_depth < other_depth))
    other_owns = apart & other_ends & (~one_ends | (other_depth < one_depth))
    return one_shown & (~other_shown | one_owns), other_shown & (~one_shown | other_owns)


def _follow(fragments: _Fragments, target: Float[Tensor, "n 2"], mesh: _Mesh) -> Int[Tensor, " n"]:
    """Return the face at which the surface that each pixel shows reaches a target, -1 if it ends.

    It is followed in a straight line on the screen, from face to face, and ends at a border, where
    it turns its other side to the camera, or after :data:`STEPS` faces.
    """
    face, reached = fragments.face, torch.full_like(fragments.face, -1)
    facing = _add(edge_functions(fragments.corners[..., :2], fragments.centre)).sign()[:, None]
    walking = (face >= 0).nonzero().squeeze(1)
    face = face[walking]
    for _ in range(STEPS):
        corners = _gather(mesh.screen, fragments.image[walking], mesh.faces[face])[..., :2]
        behind = edge_functions(corners, fragments.centre[walking]) * facing[walking]
        ahead = edge_functions(corners, target[walking]) * facing[walking]
        same_side, there = _add(ahead) > 0, ahead.amin(-1) >= 0
        reached = reached.index_copy(0, walking, torch.where(same_side & there, face, -1))
        # The line leaves the face by the first of the edges that have the target beyond them.
        way = torch.where(ahead < 0, behind / (behind - ahead), torch.inf)
        beyond = mesh.neighbours[face].gather(1, way.argmin(-1, keepdim=True)).squeeze(1)
        goes_on = same_side & ~there & (beyond >= 0)
        walking, face = walking[goes_on], beyond[goes_on].to(face.dtype)
    return reached


def _depth(fragments: _Fragments) -> Float[Tensor, " n"]:
    """Return the depth of the face at the pixel's centre, metres."""
    edges = edge_functions(fragments.corners[..., :2], fragments.centre)
    return _add(edges) / _add(edges / fragments.corners[..., 2])


def _damping(corners: Float[Tensor, "n 3 3"], edges: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
    """Return the share of each face's gradient to keep: less than 1 if it is thin on the screen.

    Thin is less than a pixel high, and than :data:`FACE_ON` of its longest edge. What such a face
    shows changes within its height: its gradient has no bound, and a pixel whose centre happens to
    hit it must not count for more than the face covers. Faces that are small but seen face-on are
    harmless: they share out the gradient of a smooth surface.
    """
    longest = (corners - corners.roll(1, dims=1))[..., :2].norm(dim=-1).amax(-1)
    height = _add(edges).abs() / longest
    share: Tensor = height / (FACE_ON * longest).clamp(max=1)
    return share.clamp(max=1)


def edge_functions(
    corners: Float[Tensor, "n 3 2"], pixels: Float[Tensor, "n 2"]
) -> Float[Tensor, "n 3"]:
    """Return twice the signed area (px²) between the pixel and the edge facing each corner.

    Taken relative to the pixel, an edge shared by two faces gives them exactly opposite values:
    no pixel falls between.

    Args:
        corners: of a face, pixels.
        pixels: a pixel's centre.
    """
    x, y = (corners - pixels[:, None]).unbind(-1)
    (ax, bx, cx), (ay, by, cy) = x.unbind(-1), y.unbind(-1)
    return torch.stack([bx * cy - by * cx, cx * ay - cy * ax, ax * by - ay * bx], dim=-1)


def covers(edges: Float[Tensor, "n 3"]) -> Bool[Tensor, " n"]:
    """Return whether the face covers the pixel, from either side, edges included."""
    area = _add(edges)
    inside = (edges * area[:, None]).amin(-1) >= 0
    return inside & (area.abs() > DEGENERATE)


def _add(terms: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
    """Return the sum in a fixed order, so that every backend and device rounds alike."""
    return terms[:, 0] + terms[:, 1] + terms[:, 2]


def bounding_boxes(
    corners: Float[Tensor, "n 3 3"], size: tuple[int, int], near: float, margin: float = 0.0
) -> tuple[Int[Tensor, "n 2"], Int[Tensor, "n 2"]]:
    """Return the first ``(x, y)`` pixel of each face's box, and how many there are along each axis.

    Args:
        corners: of faces, ``(x px, y px, z m)``. One nearer than ``near`` or not finite empties
            the box.
        size: ``(height, width)``.
        near: metres.
        margin: around the face, pixels.
    """
    limit = corners.new_tensor([size[1], size[0]])
    drawn = (corners[..., 2] >= near).all(1) & corners.isfinite().flatten(1).all(1)
    points = torch.where(drawn[:, None, None], corners[..., :2], -1.0 - margin)
    first = (points.amin(1) - margin - 0.5).ceil().clamp(min=0).minimum(limit).long()
    last = (points.amax(1) + margin - 0.5).floor().clamp(min=-1).minimum(limit - 1).long()
    return first, (last - first + 1).clamp(min=0)


def fragments(
    first: Int[Tensor, "n 2"], extent: Int[Tensor, "n 2"]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield ``(box, x, y)`` of every pixel of every box, in chunks of bounded size."""
    count = extent.prod(-1)
    boxes = count.nonzero().squeeze(1)
    chunk = (count[boxes].cumsum(0) - 1) // FRAGMENTS_AT_ONCE
    for part in torch.split(boxes, chunk.bincount().tolist()):
        box = part.repeat_interleave(count[part])
        start = count[part].cumsum(0) - count[part]
        offset = torch.arange(len(box), device=box.device)
        offset -= start.repeat_interleave(count[part])
        width = extent[box, 0]
        yield box, first[box, 0] + offset % width, first[box, 1] + offset // width


def _gather(
    values: Float[Tensor, "b n c"], image: Int[Tensor, " m"], index: Int[Tensor, "m 3"]
) -> Float[Tensor, "m 3 c"]:
    """Return rows of each image's values; values of a batch of one serve every image."""
    if values.shape[0] > 1:
        index = index + image[:, None] * values.shape[1]
    return (
        values.flatten(0, 1).index_select(0, index.flatten()).view(*index.shape, values.shape[-1])
    )


__all__ = ["TorchRasterizer", "bounding_boxes", "edge_functions", "fragments"]
