"""Warp kernels that light what a rasterizer found, and join it with the background.

A pixel has four samples, two by two. Where they show one stretch of skin it is lit once, in its
middle; at outlines, folds and patterns each sample is lit by itself, and their light is averaged.

Shapes: ``screen (B, V)`` of ``(x, y, z m)``, x and y in samples; ``faces, uv_faces (F, 3)``;
``part (F,)``; ``surface (B, V)``, ``paints (B, parts)``, ``looks (B,)``: see :data:`Vertex`,
:data:`Paint`, :data:`Look`; ``uv (B, U)``; ``texture (B, 3, T, T)`` of bytes; ``shadows (B, M, M)``
of depths; ``wall (B,)`` from pixels to places in them; ``face_index (B, 2 H, 2 W)``; ``lights
(B, H, W)``; ``background, picture (B, 3, H, W)``; ``labels (B, 5, H, W)``.
"""

from typing import no_type_check

import warp as wp

from handrec.data.appearance.meshes import Part
from handrec.render.warp_kernels import edge_functions

wp.set_module_options({"enable_backward": False, "fuse_fp": False})

#: Of a vertex: normal; its products with the directions to the light and halfway to the camera;
#: light from all around; place in the shadow map; gain on the albedo.
Vertex = wp.types.vector(length=12, dtype=wp.float32)

#: Of a part: the columns of ``compose._Paints``.
Paint = wp.types.vector(length=19, dtype=wp.float32)

#: Of an image: gain on the texture; share of the light that the wall's shadow takes.
Look = wp.types.vector(length=4, dtype=wp.float32)

SLEEVE, THING = int(Part.SLEEVE), int(Part.THING)


@wp.func
@no_type_check
def weights_at(a: wp.vec3, b: wp.vec3, c: wp.vec3, p: wp.vec2) -> wp.vec3:
    """Return the perspective-correct barycentric weights of a point, kept within the face."""
    e = edge_functions(a, b, c, p[0], p[1])
    e = wp.max(e / (e[0] + e[1] + e[2]), wp.vec3())
    by_depth = wp.vec3(e[0] / a[2], e[1] / b[2], e[2] / c[2])
    return by_depth / (by_depth[0] + by_depth[1] + by_depth[2])


@wp.func
@no_type_check
def lit(shadows: wp.array3d[wp.float32], image: int, place: wp.vec3) -> float:
    """Return the share of the light that reaches a place, softened over 3 x 3 texels."""
    # Two texels of nothing are all around: nothing casts a shadow there.
    last = float(shadows.shape[1]) - 2.001
    x, y = wp.clamp(place[0], 0.0, last), wp.clamp(place[1], 0.0, last)
    column, row = int(x), int(y)
    right, below = x - float(column), y - float(row)
    share = float(0.0)  # noqa: UP018 (a variable, not a constant)
    # A box of two texels, slid to the point: the outer taps share what is off the middle.
    for i in range(3):
        down = wp.where(i == 0, 1.0 - below, wp.where(i == 2, below, 1.0))
        for j in range(3):
            across = wp.where(j == 0, 1.0 - right, wp.where(j == 2, right, 1.0))
            clear = shadows[image, row + i, column + j] > place[2]
            share += wp.where(clear, down * across, 0.0)
    return 0.25 * share


@wp.func
@no_type_check
def skin_at(texture: wp.array4d[wp.uint8], image: int, uv: wp.vec2, look: Look) -> wp.vec3:
    """Return the linear colour of the skin's texture, bilinear between texels."""
    side = texture.shape[2]
    right, bottom = float(texture.shape[3] - 1), float(side - 1)
    x = wp.clamp(uv[0] * (right + 1.0) - 0.5, 0.0, right)
    y = wp.clamp((1.0 - uv[1]) * (bottom + 1.0) - 0.5, 0.0, bottom)
    x0, y0 = int(x), int(y)
    x1, y1 = wp.min(x0 + 1, int(right)), wp.min(y0 + 1, int(bottom))
    across, down = x - float(x0), y - float(y0)
    colour = wp.vec3()
    for k in range(3):
        above = wp.lerp(float(texture[image, k, y0, x0]), float(texture[image, k, y0, x1]), across)
        under = wp.lerp(float(texture[image, k, y1, x0]), float(texture[image, k, y1, x1]), across)
        stored = wp.min(wp.lerp(above, under, down) / 255.0 * look[k], 1.0)
        # sRGB's curve within 0.003: powers are slow.
        colour[k] = stored * (stored * (stored * 0.305306011 + 0.682171111) + 0.012522878)
    return colour


@wp.func
@no_type_check
def cloth_at(uv: wp.vec2, paint: Paint) -> wp.vec3:
    """Return the linear colour of a pattern of stripes or checks."""
    first, second = wp.sin(6.2831855 * uv[0]), wp.sin(6.2831855 * uv[1])
    swing = wp.tanh(paint[6] * first * (1.0 + paint[7] * (second - 1.0)))
    return wp.vec3(
        paint[0] + swing * paint[3], paint[1] + swing * paint[4], paint[2] + swing * paint[5]
    )


@wp.func
@no_type_check
def reflected(
    albedo: wp.vec3, at: Vertex, paint: Paint, shadows: wp.array3d[wp.float32], image: int
) -> wp.vec3:
    """Return the light that a point sends to the camera: wrapped diffuse and Blinn's specular."""
    length = wp.max(wp.sqrt(at[0] * at[0] + at[1] * at[1] + at[2] * at[2]), 1.0e-6)
    facing, shine = at[3] / length, at[4] / length
    key = wp.vec3()
    for k in range(3):
        key[k] = wp.max(paint[8 + k] * facing + paint[11 + k], 0.0)
    light = wp.vec3(at[5], at[6], at[7])
    gloss = float(0.0)  # noqa: UP018 (a variable, not a constant)
    if wp.max(wp.max(key[0], key[1]), key[2]) > 0.0:
        taken = paint[17] * (1.0 - lit(shadows, image, wp.vec3(at[8], at[9], at[10])))
        reaches = (1.0 - taken) * at[11]
        light += reaches * key
        if facing > 0.0:
            gloss = reaches * wp.pow(wp.max(shine, 1.0e-3), paint[18])
    return wp.cw_mul(albedo, light) + gloss * wp.vec3(paint[14], paint[15], paint[16])


@wp.func
@no_type_check
def painted(part: int) -> bool:
    """Return whether a part shows a pattern, not skin."""
    return part == SLEEVE or part == THING  # noqa: PLR1714 (Warp knows no sets)


@wp.func
@no_type_check
def touch(faces: wp.array2d[wp.int32], face: int, other: int) -> bool:
    """Return whether two faces share a vertex."""
    found = face == other
    if not found:
        for i in range(3):
            for j in range(3):
                found = found or faces[face, i] == faces[other, j]
    return found


@wp.func
@no_type_check
def best_at(
    screen: wp.array2d[wp.vec3], faces: wp.array2d[wp.int32], image: int, seen: wp.vec4i, p: wp.vec2
) -> int:
    """Return which of four faces covers a point, or comes nearest to it."""
    best, face = float(-wp.inf), seen[0]
    if seen[1] == seen[0] and seen[2] == seen[0] and seen[3] == seen[0]:
        return face
    for i in range(4):
        a = screen[image, faces[seen[i], 0]]
        b = screen[image, faces[seen[i], 1]]
        c = screen[image, faces[seen[i], 2]]
        e = edge_functions(a, b, c, p[0], p[1])
        e = e / (e[0] + e[1] + e[2])
        inside = wp.min(wp.min(e[0], e[1]), e[2])
        if inside > best:
            best, face = inside, seen[i]
    return face


@wp.func
@no_type_check
def sample_at(
    screen: wp.array2d[wp.vec3],
    faces: wp.array2d[wp.int32],
    part: wp.array[wp.int32],
    surface: wp.array2d[Vertex],
    uv: wp.array2d[wp.vec2],
    uv_faces: wp.array2d[wp.int32],
    paints: wp.array2d[Paint],
    texture: wp.array4d[wp.uint8],
    look: Look,
    shadows: wp.array3d[wp.float32],
    image: int,
    face: int,
    p: wp.vec2,
) -> tuple[wp.vec3, float, wp.vec2]:
    """Return what a face shows at a point: light to the camera, depth, atlas coordinates."""
    i, j, k = faces[face, 0], faces[face, 1], faces[face, 2]
    a, b, c = screen[image, i], screen[image, j], screen[image, k]
    w = weights_at(a, b, c, p)
    at = w[0] * surface[image, i] + w[1] * surface[image, j] + w[2] * surface[image, k]
    depth = w[0] * a[2] + w[1] * b[2] + w[2] * c[2]
    u0, u1, u2 = uv_faces[face, 0], uv_faces[face, 1], uv_faces[face, 2]
    uv_here = w[0] * uv[image, u0] + w[1] * uv[image, u1] + w[2] * uv[image, u2]
    paint = paints[image, part[face]]
    if painted(part[face]):
        albedo = cloth_at(uv_here, paint)
    else:
        albedo = skin_at(texture, image, uv_here, look)
    return reflected(albedo, at, paint, shadows, image), depth, uv_here


@wp.func
@no_type_check
def on_wall(
    shadows: wp.array3d[wp.float32], wall: wp.array[wp.mat33], image: int, p: wp.vec2
) -> float:
    """Return how dark the shadow on the wall is behind a point."""
    place = wall[image] * wp.vec3(p[0], p[1], 1.0)
    size = float(shadows.shape[1]) - 2.0
    off = wp.max(wp.abs(place[0] / size - 0.5), wp.abs(place[1] / size - 0.5))
    # Fading out towards the map's border, where shadows would be cut off.
    fade = wp.clamp(6.0 * (0.5 - off), 0.0, 1.0)
    if fade == 0.0:
        return 0.0
    return fade * (1.0 - lit(shadows, image, place))


@wp.func
@no_type_check
def linear(x: float) -> float:
    """Return linear light of sRGB, by the standard's formula."""
    if x <= 0.04045:
        return x / 12.92
    return wp.pow((x + 0.055) / 1.055, 2.4)


@wp.func
@no_type_check
def srgb(x: float) -> float:
    """Return sRGB of linear light, clipped to [0, 1] (IEC 61966-2-1)."""
    if x <= 0.0031308:
        return 12.92 * wp.max(x, 0.0)
    return 1.055 * wp.pow(wp.min(x, 1.0), 1.0 / 2.4) - 0.055


@wp.func
@no_type_check
def unbroken(faces: wp.array2d[wp.int32], part: wp.array[wp.int32], seen: wp.vec4i) -> bool:
    """Return whether four faces are one stretch of skin."""
    if wp.min(wp.min(seen[0], seen[1]), wp.min(seen[2], seen[3])) < 0:
        return False
    kind = part[seen[0]]
    found = not painted(kind)
    for i in range(1, 4):
        found = found and part[seen[i]] == kind and touch(faces, seen[0], seen[i])
    return found


@wp.kernel
@no_type_check
def light_up(
    screen: wp.array2d[wp.vec3],
    faces: wp.array2d[wp.int32],
    part: wp.array[wp.int32],
    surface: wp.array2d[Vertex],
    uv: wp.array2d[wp.vec2],
    uv_faces: wp.array2d[wp.int32],
    paints: wp.array2d[Paint],
    texture: wp.array4d[wp.uint8],
    looks: wp.array[Look],
    shadows: wp.array3d[wp.float32],
    face_index: wp.array3d[wp.int32],
    own_faces: int,
    first: int,
    lights: wp.array3d[wp.vec3],
    labels: wp.array4d[wp.float32],
) -> None:
    """Write the light from what is before the background; mask, depth, uv and foreground."""
    image, y, x = wp.tid()
    image += first
    top, below = 2 * y, 2 * y + 1
    seen = wp.vec4i(
        face_index[image, top, 2 * x],
        face_index[image, top, 2 * x + 1],
        face_index[image, below, 2 * x],
        face_index[image, below, 2 * x + 1],
    )
    middle = wp.vec2(float(2 * x + 1), float(2 * y + 1))
    once = unbroken(faces, part, seen)
    count = wp.where(once, 1, 4)
    share = 1.0 / float(count)
    light, uv_here = wp.vec3(), wp.vec2()
    shown, own, depth = float(0.0), float(0.0), float(wp.inf)  # noqa: UP018 (variables)
    for i in range(count):
        face, p = seen[i], middle + wp.vec2(float(i % 2) - 0.5, float(i // 2) - 0.5)
        if once:
            face, p = best_at(screen, faces, image, seen, middle), middle
        if face >= 0:
            sent, z, at = sample_at(
                screen, faces, part, surface, uv, uv_faces, paints, texture, looks[image], shadows,
                image, face, p,
            )  # fmt: skip
            light += share * sent
            shown += share
            if face < own_faces:
                own += share
                uv_here = wp.where(z < depth, at, uv_here)
                depth = wp.min(z, depth)
    lights[image, y, x] = light
    labels[image, 0, y, x] = own
    labels[image, 1, y, x] = wp.where(own > 0.0, depth, 0.0)
    labels[image, 2, y, x] = uv_here[0]
    labels[image, 3, y, x] = uv_here[1]
    labels[image, 4, y, x] = shown


@wp.kernel
@no_type_check
def join(
    lights: wp.array3d[wp.vec3],
    labels: wp.array4d[wp.float32],
    looks: wp.array[Look],
    shadows: wp.array3d[wp.float32],
    wall: wp.array[wp.mat33],
    background: wp.array4d[wp.float32],
    first: int,
    picture: wp.array4d[wp.float32],
) -> None:
    """Write sRGB of the light before the background, which shadows darken."""
    image, y, x = wp.tid()
    image += first
    shown, left = labels[image, 4, y, x], float(1.0)  # noqa: UP018 (a variable)
    if shown < 1.0:
        p = wp.vec2(float(x) + 0.5, float(y) + 0.5)
        left -= looks[image][3] * on_wall(shadows, wall, image, p)
    for k in range(3):
        colour = background[image, k, y, x]
        if shown > 0.0 or left < 1.0:
            light = lights[image, y, x][k]
            if shown < 1.0:
                light += (1.0 - shown) * left * linear(colour)
            colour = srgb(light)
        picture[image, k, y, x] = colour
