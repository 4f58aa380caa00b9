"""Warp kernels of a matt surface under a directional light, see :func:`.lights.reflect`.

They run over images, from number ``first`` to before ``end``, and over the pixels of each, so that
what an image gives to its light is added up in order, by one thread. Shapes: ``starts (B + 1,)``,
the first pixel of each image; ``normal, albedo (P, 3)``; ``side (P, 1)``; ``lamp (B, 9)``: the
ambient light, the directional one and the unit vector towards it.
"""

from typing import no_type_check

import warp as wp

wp.set_module_options({"enable_backward": False, "fuse_fp": False})

SHORTEST = wp.constant(1e-6)  # a normal that is not made longer


@wp.func
@no_type_check
def three(values: wp.array2d[wp.float32], row: int, start: int) -> wp.vec3:
    """Return three numbers of a row."""
    return wp.vec3(values[row, start], values[row, start + 1], values[row, start + 2])


@wp.kernel
@no_type_check
def reflect(
    starts: wp.array[wp.int32],
    normal: wp.array2d[wp.float32],
    side: wp.array2d[wp.float32],
    albedo: wp.array2d[wp.float32],
    lamp: wp.array2d[wp.float32],
    first: int,
    end: int,
    step: int,
    colours: wp.array2d[wp.float32],
) -> None:
    """Write the colours, clipped to [0, 1]."""
    for image in range(wp.tid() + first, end, step):
        ambient, directional = three(lamp, image, 0), three(lamp, image, 3)
        towards = three(lamp, image, 6)
        for i in range(starts[image], starts[image + 1]):
            n = three(normal, i, 0)
            cosine = wp.dot(n, towards) * side[i, 0] / wp.max(wp.length(n), SHORTEST)
            gain = ambient + wp.max(cosine, 0.0) * directional
            for k in range(3):
                colours[i, k] = wp.clamp(albedo[i, k] * gain[k], 0.0, 1.0)


@wp.kernel
@no_type_check
def reflect_backward(
    starts: wp.array[wp.int32],
    normal: wp.array2d[wp.float32],
    side: wp.array2d[wp.float32],
    albedo: wp.array2d[wp.float32],
    lamp: wp.array2d[wp.float32],
    colours_grad: wp.array2d[wp.float32],
    first: int,
    end: int,
    step: int,
    normal_grad: wp.array[wp.vec3],
    albedo_grad: wp.array[wp.vec3],
    lamp_grad: wp.array2d[wp.vec3],
) -> None:
    """Write the gradients of normal, albedo and lamp; a clipped colour gives none."""
    for image in range(wp.tid() + first, end, step):
        ambient, directional = three(lamp, image, 0), three(lamp, image, 3)
        towards = three(lamp, image, 6)
        ambient_grad, directional_grad, towards_grad = wp.vec3(), wp.vec3(), wp.vec3()
        for i in range(starts[image], starts[image + 1]):
            n, colour, grad = three(normal, i, 0), three(albedo, i, 0), three(colours_grad, i, 0)
            length = wp.length(n)
            scale = side[i, 0] / wp.max(length, SHORTEST)
            cosine = wp.dot(n, towards) * scale
            gain = ambient + wp.max(cosine, 0.0) * directional
            shade = wp.cw_mul(colour, gain)
            grad = wp.vec3(
                wp.where(shade[0] >= 0.0 and shade[0] <= 1.0, grad[0], 0.0),
                wp.where(shade[1] >= 0.0 and shade[1] <= 1.0, grad[1], 0.0),
                wp.where(shade[2] >= 0.0 and shade[2] <= 1.0, grad[2], 0.0),
            )
            albedo_grad[i] = wp.cw_mul(grad, gain)
            gain_grad = wp.cw_mul(grad, colour)
            ambient_grad += gain_grad
            directional_grad += wp.max(cosine, 0.0) * gain_grad
            cosine_grad = wp.where(cosine > 0.0, wp.dot(gain_grad, directional) * scale, 0.0)
            towards_grad += cosine_grad * n
            along = wp.where(length > SHORTEST, wp.dot(n, towards) / (length * length), 0.0)
            normal_grad[i] = cosine_grad * (towards - along * n)
        lamp_grad[image, 0] = ambient_grad
        lamp_grad[image, 1] = directional_grad
        lamp_grad[image, 2] = towards_grad
