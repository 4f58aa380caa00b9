"""Warp kernels of smooth normals, see :func:`handrec.render.normals.smooth_normals`.

They run over images, from number ``first`` on, and over faces. Shapes: ``vertices (B, V)`` of
``(x, y, z)`` in the camera's frame, ``faces (F, 3)``.
"""

from typing import no_type_check

import warp as wp

wp.set_module_options({"enable_backward": False, "fuse_fp": False})


@wp.kernel
@no_type_check
def sum_normals(
    vertices: wp.array2d[wp.vec3],
    faces: wp.array2d[wp.int32],
    first: int,
    summed: wp.array2d[wp.vec3],
    side: wp.array3d[wp.float32],
) -> None:
    """Add each face's normal to its corners, and write which side of it is seen."""
    image, face = wp.tid()
    image += first
    a = vertices[image, faces[face, 0]]
    b = vertices[image, faces[face, 1]]
    c = vertices[image, faces[face, 2]]
    normal = wp.cross(b - a, c - a)
    for k in range(3):
        wp.atomic_add(summed, image, faces[face, k], normal)
    side[image, face, 0] = wp.where(wp.dot(normal, a) > 0.0, -1.0, 1.0)


@wp.kernel
@no_type_check
def sum_normals_backward(
    vertices: wp.array2d[wp.vec3],
    faces: wp.array2d[wp.int32],
    summed_grad: wp.array2d[wp.vec3],
    first: int,
    vertices_grad: wp.array2d[wp.vec3],
) -> None:
    """Add the gradient of each face's normal to that of its corners."""
    image, face = wp.tid()
    image += first
    a = vertices[image, faces[face, 0]]
    b = vertices[image, faces[face, 1]]
    c = vertices[image, faces[face, 2]]
    grad = summed_grad[image, faces[face, 0]]
    grad += summed_grad[image, faces[face, 1]] + summed_grad[image, faces[face, 2]]
    b_grad, c_grad = wp.cross(c - a, grad), wp.cross(grad, b - a)
    wp.atomic_add(vertices_grad, image, faces[face, 0], -b_grad - c_grad)
    wp.atomic_add(vertices_grad, image, faces[face, 1], b_grad)
    wp.atomic_add(vertices_grad, image, faces[face, 2], c_grad)
