"""Warp kernels of the texture look-up, see :func:`handrec.render.textures.look_up`.

They run over pixels, from number ``first`` to before ``end``. Shapes: ``texels (T, N)`` of RGB;
``levels (L, 3)`` of ``(first texel, height, width)``; ``uv (P,)``; ``level (P,)``; ``image_index
(P,)``, or empty where one texture serves all.
"""

from typing import no_type_check

import warp as wp

wp.set_module_options({"enable_backward": False, "fuse_fp": False})


@wp.func
@no_type_check
def texels_at(
    levels: wp.array2d[wp.int32], level: int, uv: wp.vec2
) -> tuple[wp.vec4i, wp.vec2, wp.vec2]:
    """Return the texels around a point, where it lies between them, and the slope of that.

    The texels are left top, right top, left bottom, right bottom. Beyond the border lies the
    border, where the slope is 0.
    """
    first, height, width = levels[level, 0], levels[level, 1], levels[level, 2]
    x, y = uv[0] * float(width) - 0.5, (1.0 - uv[1]) * float(height) - 0.5
    right, bottom = float(width - 1), float(height - 1)
    slope = wp.vec2(
        wp.where(x >= 0.0 and x <= right, float(width), 0.0),
        wp.where(y >= 0.0 and y <= bottom, -float(height), 0.0),
    )
    x, y = wp.clamp(x, 0.0, right), wp.clamp(y, 0.0, bottom)
    x0, y0 = int(x), int(y)
    x1, y1 = wp.min(x0 + 1, width - 1), wp.min(y0 + 1, height - 1)
    top, below = first + y0 * width, first + y1 * width
    corners = wp.vec4i(top + x0, top + x1, below + x0, below + x1)
    return corners, wp.vec2(x - float(x0), y - float(y0)), slope


@wp.func
@no_type_check
def bilinear(at: wp.vec2) -> wp.vec4:
    """Return the weights of the four texels."""
    x, y = at[0], at[1]
    return wp.vec4((1.0 - x) * (1.0 - y), x * (1.0 - y), (1.0 - x) * y, x * y)


@wp.kernel
@no_type_check
def look_up(
    texels: wp.array2d[wp.vec3],
    levels: wp.array2d[wp.int32],
    uv: wp.array[wp.vec2],
    level: wp.array[wp.float32],
    image_index: wp.array[wp.int32],
    first: int,
    end: int,
    step: int,
    colours: wp.array[wp.vec3],
) -> None:
    """Write the colours, bilinear between texels and linear between levels."""
    for i in range(wp.tid() + first, end, step):
        image = 0
        if image_index.shape[0] > 0:
            image = image_index[i]
        lower = wp.min(int(level[i]), wp.max(levels.shape[0] - 2, 0))
        colour = wp.vec3()
        for further in range(wp.min(levels.shape[0], 2)):
            share = wp.abs(float(1 - further) - (level[i] - float(lower)))
            corners, at, _slope = texels_at(levels, lower + further, uv[i])
            weights = share * bilinear(at)
            for j in range(4):
                colour += weights[j] * texels[image, corners[j]]
        colours[i] = colour


@wp.kernel
@no_type_check
def look_up_backward(
    texels: wp.array2d[wp.vec3],
    levels: wp.array2d[wp.int32],
    uv: wp.array[wp.vec2],
    level: wp.array[wp.float32],
    image_index: wp.array[wp.int32],
    colours_grad: wp.array[wp.vec3],
    first: int,
    end: int,
    step: int,
    texels_grad: wp.array2d[wp.vec3],
    uv_grad: wp.array[wp.vec2],
) -> None:
    """Write the gradient of ``uv``, and add to that of the texels unless it is empty."""
    for i in range(wp.tid() + first, end, step):
        image = 0
        if image_index.shape[0] > 0:
            image = image_index[i]
        lower = wp.min(int(level[i]), wp.max(levels.shape[0] - 2, 0))
        grad, total = colours_grad[i], wp.vec2()
        for further in range(wp.min(levels.shape[0], 2)):
            share = wp.abs(float(1 - further) - (level[i] - float(lower)))
            corners, at, slope = texels_at(levels, lower + further, uv[i])
            a, b = wp.dot(grad, texels[image, corners[0]]), wp.dot(grad, texels[image, corners[1]])
            c, d = wp.dot(grad, texels[image, corners[2]]), wp.dot(grad, texels[image, corners[3]])
            across = (b - a) * (1.0 - at[1]) + (d - c) * at[1]
            down = (c - a) * (1.0 - at[0]) + (d - b) * at[0]
            total += share * wp.vec2(across * slope[0], down * slope[1])
            if texels_grad.shape[0] > 0:
                weights = share * bilinear(at)
                for j in range(4):
                    wp.atomic_add(texels_grad, image, corners[j], weights[j] * grad)
        uv_grad[i] = total
