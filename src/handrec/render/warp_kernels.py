"""Warp kernels of the rasterizer: one source for CPU and CUDA.

A kernel runs over images and their elements, from number ``first`` on, or over a list of pixels,
from ``first`` to before ``end``, so that a launch may take a share of the batch. Shapes: ``screen
(B, V)`` of ``(x px, y px, z m)``, ``faces (F, 3)``, ``face_index (B, H, W)``; for lists of pixels
``pixels (P,)``, indices into the elements of ``face_index``, and ``image_at, face_at (P,)``; what
is found there is ``(P, C)``. Contraction into fused operations is off: rounding has to be the same
on every device, and opposite on the two sides of an edge. Gradients are added to, in whichever
order the threads come.
"""

from typing import no_type_check

import warp as wp

from handrec.render import torch_reference

wp.set_module_options({"enable_backward": False, "fuse_fp": False})

DEGENERATE = torch_reference.DEGENERATE
FACE_ON = torch_reference.FACE_ON
EMPTY = wp.int64(torch_reference.EMPTY)
FACE_BITS = wp.int64(32)


@wp.func
@no_type_check
def covers(e0: float, e1: float, e2: float) -> bool:
    """Return whether a face covers a pixel, from either side, edges included."""
    area = e0 + e1 + e2
    inside = wp.min(wp.min(e0 * area, e1 * area), e2 * area) >= 0.0
    return inside and wp.abs(area) > DEGENERATE


@wp.func
@no_type_check
def edge_functions(a: wp.vec3, b: wp.vec3, c: wp.vec3, x: float, y: float) -> wp.vec3:
    """Return twice the signed areas between a pixel and the edge facing each corner."""
    ax, ay = a[0] - x, a[1] - y
    bx, by = b[0] - x, b[1] - y
    cx, cy = c[0] - x, c[1] - y
    return wp.vec3(bx * cy - by * cx, cx * ay - cy * ax, ax * by - ay * bx)


@wp.kernel
@no_type_check
def cover(
    screen: wp.array2d[wp.vec3],
    faces: wp.array2d[wp.int32],
    near: float,
    first: int,
    keys: wp.array3d[wp.int64],
) -> None:
    """Leave in ``keys`` each pixel's nearest face: depth in the high bits, index in the low."""
    image, face = wp.tid()
    image += first
    a = screen[image, faces[face, 0]]
    b = screen[image, faces[face, 1]]
    c = screen[image, faces[face, 2]]
    low, high = wp.min(wp.min(a, b), c), wp.max(wp.max(a, b), c)
    if not (low[2] >= near and wp.isfinite(a) and wp.isfinite(b) and wp.isfinite(c)):
        return
    width, height = float(keys.shape[2]), float(keys.shape[1])
    x_first = int(wp.clamp(wp.ceil(low[0] - 0.5), 0.0, width))
    y_first = int(wp.clamp(wp.ceil(low[1] - 0.5), 0.0, height))
    x_end = int(wp.clamp(wp.floor(high[0] - 0.5), -1.0, width - 1.0)) + 1
    y_end = int(wp.clamp(wp.floor(high[1] - 0.5), -1.0, height - 1.0)) + 1
    a_inverse, b_inverse, c_inverse = 1.0 / a[2], 1.0 / b[2], 1.0 / c[2]
    # Scalars and no branch: twice as fast on a CPU as ``edge_functions`` and an ``if``.
    for y in range(y_first, y_end):
        pixel_y = float(y) + 0.5
        ay, by, cy = a[1] - pixel_y, b[1] - pixel_y, c[1] - pixel_y
        for x in range(x_first, x_end):
            pixel_x = float(x) + 0.5
            ax, bx, cx = a[0] - pixel_x, b[0] - pixel_x, c[0] - pixel_x
            e0 = bx * cy - by * cx
            e1 = cx * ay - cy * ax
            e2 = ax * by - ay * bx
            depth = (e0 + e1 + e2) / (e0 * a_inverse + e1 * b_inverse + e2 * c_inverse)
            rank = wp.int64(wp.cast(depth, wp.int32))
            key = wp.where(covers(e0, e1, e2), rank << FACE_BITS | wp.int64(face), EMPTY)
            wp.atomic_min(keys, image, y, x, key)


@wp.func
@no_type_check
def centre(pixel: int, width: int, height: int) -> wp.vec2:
    """Return the centre of a pixel in its image."""
    row = pixel // width
    return wp.vec2(float(pixel - row * width) + 0.5, float(row % height) + 0.5)


@wp.kernel
@no_type_check
def weigh(
    screen: wp.array2d[wp.vec3],
    faces: wp.array2d[wp.int32],
    image_at: wp.array[wp.int32],
    face_at: wp.array[wp.int32],
    pixels: wp.array[wp.int32],
    width: int,
    height: int,
    first: int,
    end: int,
    step: int,
    weights: wp.array[wp.vec3],
) -> None:
    """Write the perspective-correct barycentric weights of each pixel."""
    for i in range(wp.tid() + first, end, step):
        image, face = image_at[i], face_at[i]
        if face < 0:
            continue
        a = screen[image, faces[face, 0]]
        b = screen[image, faces[face, 1]]
        c = screen[image, faces[face, 2]]
        p = centre(pixels[i], width, height)
        e = edge_functions(a, b, c, p[0], p[1])
        by_depth = wp.vec3(e[0] / a[2], e[1] / b[2], e[2] / c[2])
        weights[i] = by_depth / (by_depth[0] + by_depth[1] + by_depth[2])


@wp.kernel
@no_type_check
def slope(
    screen: wp.array2d[wp.vec3],
    faces: wp.array2d[wp.int32],
    image_at: wp.array[wp.int32],
    face_at: wp.array[wp.int32],
    pixels: wp.array[wp.int32],
    width: int,
    height: int,
    values: wp.array3d[wp.float32],
    rows: wp.array2d[wp.int32],
    first: int,
    end: int,
    step: int,
    right: wp.array2d[wp.float32],
    down: wp.array2d[wp.float32],
) -> None:
    """Write the change of the blended values from each pixel to the next ones along its face."""
    for i in range(wp.tid() + first, end, step):
        image, face = image_at[i], face_at[i]
        if face < 0:
            continue
        a = screen[image, faces[face, 0]]
        b = screen[image, faces[face, 1]]
        c = screen[image, faces[face, 2]]
        p = centre(pixels[i], width, height)
        inverse = wp.vec3(1.0 / a[2], 1.0 / b[2], 1.0 / c[2])
        by_depth = wp.cw_mul(edge_functions(a, b, c, p[0], p[1]), inverse)
        total = by_depth[0] + by_depth[1] + by_depth[2]
        w = by_depth / total
        # How by_depth changes along x and y; the weights are its shares.
        dx = wp.cw_mul(wp.vec3(b[1] - c[1], c[1] - a[1], a[1] - b[1]), inverse) / total
        dy = wp.cw_mul(wp.vec3(c[0] - b[0], a[0] - c[0], b[0] - a[0]), inverse) / total
        dx -= (dx[0] + dx[1] + dx[2]) * w
        dy -= (dy[0] + dy[1] + dy[2]) * w
        source = wp.min(image, values.shape[0] - 1)
        at_a, at_b, at_c = rows[face, 0], rows[face, 1], rows[face, 2]
        for k in range(values.shape[2]):
            v = wp.vec3(values[source, at_a, k], values[source, at_b, k], values[source, at_c, k])
            right[i, k] = wp.dot(dx, v)
            down[i, k] = wp.dot(dy, v)


@wp.func
@no_type_check
def damping(a: wp.vec3, b: wp.vec3, c: wp.vec3, e: wp.vec3) -> float:
    """Return the share of a face's gradient to keep: see the reference."""
    ab, bc, ca = b - a, c - b, a - c
    longest = wp.sqrt(
        wp.max(
            wp.max(ab[0] * ab[0] + ab[1] * ab[1], bc[0] * bc[0] + bc[1] * bc[1]),
            ca[0] * ca[0] + ca[1] * ca[1],
        )
    )
    height = wp.abs(e[0] + e[1] + e[2]) / longest
    return wp.min(height / wp.min(FACE_ON * longest, 1.0), 1.0)


@wp.kernel
@no_type_check
def weigh_backward(
    screen: wp.array2d[wp.vec3],
    faces: wp.array2d[wp.int32],
    image_at: wp.array[wp.int32],
    face_at: wp.array[wp.int32],
    pixels: wp.array[wp.int32],
    width: int,
    height: int,
    weights_grad: wp.array[wp.vec3],
    first: int,
    end: int,
    step: int,
    screen_grad: wp.array2d[wp.vec3],
) -> None:
    """Add the gradient of the weights to that of the corners on screen."""
    for i in range(wp.tid() + first, end, step):
        image, face = image_at[i], face_at[i]
        if face < 0:
            continue
        a = screen[image, faces[face, 0]]
        b = screen[image, faces[face, 1]]
        c = screen[image, faces[face, 2]]
        p = centre(pixels[i], width, height)
        e = edge_functions(a, b, c, p[0], p[1])
        inverse = wp.vec3(1.0 / a[2], 1.0 / b[2], 1.0 / c[2])
        by_depth = wp.cw_mul(e, inverse)
        total = by_depth[0] + by_depth[1] + by_depth[2]
        grad = damping(a, b, c, e) * weights_grad[i]
        mean = wp.dot(grad, by_depth) / total
        # The weights are by_depth / total; by_depth is e / z; the rest is the derivative of e.
        by_depth_grad = (grad - wp.vec3(mean, mean, mean)) / total
        g = wp.cw_mul(by_depth_grad, inverse)
        z = -wp.cw_mul(g, by_depth)
        ax, ay = a[0] - p[0], a[1] - p[1]
        bx, by = b[0] - p[0], b[1] - p[1]
        cx, cy = c[0] - p[0], c[1] - p[1]
        a_grad = wp.vec3(g[2] * by - g[1] * cy, g[1] * cx - g[2] * bx, z[0])
        b_grad = wp.vec3(g[0] * cy - g[2] * ay, g[2] * ax - g[0] * cx, z[1])
        c_grad = wp.vec3(g[1] * ay - g[0] * by, g[0] * bx - g[1] * ax, z[2])
        wp.atomic_add(screen_grad, image, faces[face, 0], a_grad)
        wp.atomic_add(screen_grad, image, faces[face, 1], b_grad)
        wp.atomic_add(screen_grad, image, faces[face, 2], c_grad)


@wp.kernel
@no_type_check
def blend(
    values: wp.array3d[wp.float32],
    rows: wp.array2d[wp.int32],
    image_at: wp.array[wp.int32],
    face_at: wp.array[wp.int32],
    weights: wp.array[wp.vec3],
    first: int,
    end: int,
    step: int,
    blended: wp.array2d[wp.float32],
) -> None:
    """Write the weighted mean of the corners' values; values of one image serve all."""
    for i in range(wp.tid() + first, end, step):
        face = face_at[i]
        if face < 0:
            continue
        source = wp.min(image_at[i], values.shape[0] - 1)
        w = weights[i]
        a, b, c = rows[face, 0], rows[face, 1], rows[face, 2]
        for k in range(values.shape[2]):
            at_a, at_b, at_c = values[source, a, k], values[source, b, k], values[source, c, k]
            blended[i, k] = w[0] * at_a + w[1] * at_b + w[2] * at_c


@wp.kernel
@no_type_check
def blend_backward(
    values: wp.array3d[wp.float32],
    rows: wp.array2d[wp.int32],
    image_at: wp.array[wp.int32],
    face_at: wp.array[wp.int32],
    weights: wp.array[wp.vec3],
    blended_grad: wp.array2d[wp.float32],
    first: int,
    end: int,
    step: int,
    values_grad: wp.array3d[wp.float32],
    weights_grad: wp.array[wp.vec3],
) -> None:
    """Add to the gradient of the weights, and to that of the values unless it is empty."""
    for i in range(wp.tid() + first, end, step):
        face = face_at[i]
        if face < 0:
            continue
        source = wp.min(image_at[i], values.shape[0] - 1)
        w = weights[i]
        a, b, c = rows[face, 0], rows[face, 1], rows[face, 2]
        w_grad = wp.vec3()
        for k in range(values.shape[2]):
            grad = blended_grad[i, k]
            w_grad += grad * wp.vec3(
                values[source, a, k], values[source, b, k], values[source, c, k]
            )
            if values_grad.shape[0] > 0:
                wp.atomic_add(values_grad, source, a, k, w[0] * grad)
                wp.atomic_add(values_grad, source, b, k, w[1] * grad)
                wp.atomic_add(values_grad, source, c, k, w[2] * grad)
        weights_grad[i] = weights_grad[i] + w_grad
