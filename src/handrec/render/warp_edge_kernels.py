"""Warp kernels of the gradient of visibility: see :mod:`handrec.render.warp_kernels`.

``neighbours (F, 3)`` is the face across the edge that faces each corner, -1 for none.
"""

from typing import no_type_check

import warp as wp

from handrec.render import torch_reference
from handrec.render.warp_kernels import edge_functions

wp.set_module_options({"enable_backward": False, "fuse_fp": False})

STEPS = torch_reference.STEPS


@wp.func
@no_type_check
def push_corners(
    screen: wp.array2d[wp.vec3],
    faces: wp.array2d[wp.int32],
    image: int,
    face: int,
    centre: wp.vec2,
    push: wp.vec3,
    screen_grad: wp.array2d[wp.vec3],
) -> None:
    """Spread a pixel's push over the corners of the face it shows."""
    a = screen[image, faces[face, 0]]
    b = screen[image, faces[face, 1]]
    c = screen[image, faces[face, 2]]
    e = edge_functions(a, b, c, centre[0], centre[1])
    share = e / (e[0] + e[1] + e[2])
    wp.atomic_add(screen_grad, image, faces[face, 0], share[0] * push)
    wp.atomic_add(screen_grad, image, faces[face, 1], share[1] * push)
    wp.atomic_add(screen_grad, image, faces[face, 2], share[2] * push)


@wp.func
@no_type_check
def depth_at(
    screen: wp.array2d[wp.vec3], faces: wp.array2d[wp.int32], image: int, face: int, p: wp.vec2
) -> float:
    """Return the depth of a face at a point."""
    a = screen[image, faces[face, 0]]
    b = screen[image, faces[face, 1]]
    c = screen[image, faces[face, 2]]
    e = edge_functions(a, b, c, p[0], p[1])
    return (e[0] + e[1] + e[2]) / (e[0] / a[2] + e[1] / b[2] + e[2] / c[2])


@wp.func
@no_type_check
def way_out(start: float, end: float) -> float:
    """Return at which share of a line its edge function turns negative, infinity if nowhere."""
    return wp.where(end < 0.0, start / (start - end), wp.inf)


@wp.func
@no_type_check
def follow(
    screen: wp.array2d[wp.vec3],
    faces: wp.array2d[wp.int32],
    neighbours: wp.array2d[wp.int32],
    image: int,
    first_face: int,
    start: wp.vec2,
    target: wp.vec2,
) -> int:
    """Return the face at which a surface reaches a target, -1 if it ends: see the reference."""
    face, facing = int(first_face), float(0.0)  # noqa: UP018 (variables, not constants)
    step = int(0)  # noqa: RUF046, UP018
    while step < STEPS:
        a = screen[image, faces[face, 0]]
        b = screen[image, faces[face, 1]]
        c = screen[image, faces[face, 2]]
        behind = edge_functions(a, b, c, start[0], start[1])
        if step == 0:
            facing = wp.sign(behind[0] + behind[1] + behind[2])
        behind, ahead = facing * behind, facing * edge_functions(a, b, c, target[0], target[1])
        if not ahead[0] + ahead[1] + ahead[2] > 0.0:
            return -1
        if wp.min(wp.min(ahead[0], ahead[1]), ahead[2]) >= 0.0:
            return face
        way = wp.vec3(
            way_out(behind[0], ahead[0]), way_out(behind[1], ahead[1]), way_out(behind[2], ahead[2])
        )
        face = neighbours[face, int(wp.argmin(way))]
        if face < 0:
            return -1
        step += 1
    return -1


@wp.func
@no_type_check
def owner(
    screen: wp.array2d[wp.vec3],
    faces: wp.array2d[wp.int32],
    neighbours: wp.array2d[wp.int32],
    image: int,
    face: int,
    other: int,
    here: wp.vec2,
    there: wp.vec2,
) -> int:
    """Return which of two neighbouring pixels' faces has the edge between them, -1 for neither."""
    if other < 0:
        return face
    if face < 0:
        return other
    reached = follow(screen, faces, neighbours, image, face, here, there)
    if reached == other:  # most often so: the second walk is spared
        return -1
    other_reached = follow(screen, faces, neighbours, image, other, there, here)
    if other_reached == face:
        return -1
    owns, owned = reached < 0, other_reached < 0
    if owns and owned:
        depth = depth_at(screen, faces, image, face, here)
        other_depth = depth_at(screen, faces, image, other, there)
        owns, owned = depth < other_depth, other_depth < depth
    if owns == owned:
        return -1
    return wp.where(owns, face, other)


@wp.func
@no_type_check
def contrast(
    shown: wp.array4d[wp.float32],
    shown_grad: wp.array4d[wp.float32],
    image: int,
    y: int,
    x: int,
    below: int,
    right: int,
) -> float:
    """Return by how much the loss changes as one pixel turns into another; 0 without gradient."""
    change = float(0.0)  # noqa: UP018 (a variable, not a constant)
    if shown_grad.shape[0] > 0:
        for i in range(shown.shape[1]):
            step = shown[image, i, y, x] - shown[image, i, below, right]
            change += 0.5 * step * (shown_grad[image, i, y, x] + shown_grad[image, i, below, right])
    return change


@wp.func
@no_type_check
def push_edge(
    screen: wp.array2d[wp.vec3],
    faces: wp.array2d[wp.int32],
    neighbours: wp.array2d[wp.int32],
    face_index: wp.array3d[wp.int32],
    shown: wp.array4d[wp.float32],
    shown_grad: wp.array4d[wp.float32],
    mask: wp.array4d[wp.float32],
    mask_grad: wp.array4d[wp.float32],
    pixel: wp.vec3i,
    axis: int,
    screen_grad: wp.array2d[wp.vec3],
) -> None:
    """Add what the edge between a pixel and the next one along an axis gives to its owner."""
    image, y, x = pixel[0], pixel[1], pixel[2]
    below, right = y + axis, x + 1 - axis
    face, other = face_index[image, y, x], face_index[image, below, right]
    here = wp.vec2(float(x) + 0.5, float(y) + 0.5)
    there = wp.vec2(float(right) + 0.5, float(below) + 0.5)
    owned_by = owner(screen, faces, neighbours, image, face, other, here, there)
    if owned_by >= 0:
        change = contrast(shown, shown_grad, image, y, x, below, right)
        change += contrast(mask, mask_grad, image, y, x, below, right)
        push = wp.vec3(change * float(1 - axis), change * float(axis), 0.0)
        centre = wp.where(owned_by == face, here, there)
        push_corners(screen, faces, image, owned_by, centre, push, screen_grad)


@wp.kernel
@no_type_check
def edge_flux(
    screen: wp.array2d[wp.vec3],
    faces: wp.array2d[wp.int32],
    neighbours: wp.array2d[wp.int32],
    face_index: wp.array3d[wp.int32],
    shown: wp.array4d[wp.float32],
    shown_grad: wp.array4d[wp.float32],
    mask: wp.array4d[wp.float32],
    mask_grad: wp.array4d[wp.float32],
    span: int,
    first: int,
    screen_grad: wp.array2d[wp.vec3],
) -> None:
    """Add what the edges of ``span`` pixels to their right and lower neighbours give."""
    image, y, part = wp.tid()
    image += first
    for x in range(part * span, part * span + span):
        for axis in range(2):
            below, right = y + axis, x + 1 - axis
            # Not one condition: Warp would read beyond the end to evaluate its second part.
            if below < face_index.shape[1] and right < face_index.shape[2]:  # noqa: SIM102
                if face_index[image, y, x] != face_index[image, below, right]:
                    p = wp.vec3i(image, y, x)
                    push_edge(
                        screen,
                        faces,
                        neighbours,
                        face_index,
                        shown,
                        shown_grad,
                        mask,
                        mask_grad,
                        p,
                        axis,
                        screen_grad,
                    )
