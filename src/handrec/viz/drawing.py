"""Hands drawn onto pictures: lit meshes and skeletons.

Convention:
    A *picture* is a numpy array ``(H, W, 3)``, uint8, RGB. Pixel centres lie at integer + 0.5, so
    half a pixel is taken off before cv2, whose centres are integers, draws anything. Functions
    that draw return a new picture.
"""

from collections.abc import Mapping

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from handrec.geometry.mesh import vertex_normals
from handrec.hand.joints import PARENTS
from handrec.render.base import Attribute, Rasterizer
from handrec.types import Camera

Picture = UInt8[np.ndarray, "_ _ 3"]
Colour = tuple[int, int, int]

#: RGB, thumb to little finger, distinguishable without colour vision (after Okabe and Ito).
FINGER_COLOURS: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
)
WHITE: Colour = (255, 255, 255)
OUTLINE: Colour = (25, 25, 25)
MESH_COLOUR: Colour = (150, 195, 255)

#: Towards the light, camera frame: from above the camera's left shoulder.
LIGHT = (-0.48, -0.6, -0.64)

#: Brightness of what the light does not reach.
AMBIENT = 0.25

#: Meshes up to this many pixels high or wide are drawn at twice the resolution and averaged.
SMOOTH_UP_TO = 1024

#: Joints farther than this from the picture's origin are not drawn: cv2's coordinates are finite.
FARTHEST = 1e5

_SHIFT = 4  # cv2 draws at fractions of 2**-4 pixels


def to_picture(image: Float[Tensor, "3 h w"]) -> Picture:
    """Return an RGB image in [0, 1] as a picture."""
    levels = (image.detach().float().clamp(0, 1) * 255).round().byte()
    return np.ascontiguousarray(levels.permute(1, 2, 0).cpu().numpy())


def draw_mesh(
    picture: Picture,
    vertices: Float[Tensor, "v 3"],
    faces: Int[Tensor, "f 3"],
    intrinsics: Float[Tensor, "3 3"],
    *,
    colour: Colour = MESH_COLOUR,
    alpha: float = 0.75,
    rasterizer: Rasterizer | None = None,
) -> Picture:
    """Return the picture with a lit, semi-transparent mesh drawn over it.

    Only the part of the picture that the mesh covers is rendered, on the device of the vertices. A
    mesh that is not finite is left out.

    Args:
        picture: what to draw on.
        vertices: metres, OpenCV camera frame of the picture.
        faces: counter-clockwise seen from outside.
        intrinsics: ``K`` of the picture, pixels.
        colour: RGB of the mesh in full light.
        alpha: opacity of the mesh.
        rasterizer: any backend; None takes ``warp``.
    """
    rasterizer = rasterizer or _default_rasterizer()
    vertices = vertices.detach().float()
    faces, intrinsics = faces.to(vertices.device), intrinsics.to(vertices.device).double()
    region = region_of(vertices, intrinsics, (picture.shape[0], picture.shape[1]), rasterizer.near)
    if region is None:
        return picture.copy()
    left, top, right, bottom = region
    width, height = right - left, bottom - top
    zoom = 2 if max(width, height) <= SMOOTH_UP_TO else 1
    to_region = intrinsics.new_tensor([[zoom, 0, -zoom * left], [0, zoom, -zoom * top], [0, 0, 1]])
    camera = Camera((to_region @ intrinsics)[None].float(), (height * zoom, width * zoom))
    shade, mask = _shade(vertices, faces, camera, rasterizer)
    layers = np.dstack([shade, mask])  # shade is 0 off the mesh: averages of both stay consistent
    if zoom > 1:
        layers = cv2.resize(layers, (width, height), interpolation=cv2.INTER_AREA)
    drawn = picture.copy()
    patch = drawn[top:bottom, left:right]
    blended = patch * (1 - alpha * layers[..., 1:]) + alpha * layers[..., :1] * np.array(colour)
    patch[:] = blended.round().clip(0, 255).astype(np.uint8)
    return drawn


def draw_skeleton(
    picture: Picture,
    keypoints: Float[Tensor, "21 2"],
    *,
    colours: tuple[Colour, ...] = FINGER_COLOURS,
    confidence: Float[Tensor, " 21"] | None = None,
) -> Picture:
    """Return the picture with the 21 joints and 20 bones of a hand, each finger in its colour.

    Lines are as thick as suits the hand's size, and have a dark outline, so that they show on any
    skin and mesh.

    Args:
        picture: what to draw on.
        keypoints: joints in pixels of the picture; those that are not finite, or farther than
            :data:`FARTHEST`, are left out with their bones.
        colours: RGB of thumb to little finger; the wrist is white.
        confidence: joints with confidence 0 are left out, with their bones.
    """
    drawn = picture.copy()
    points = keypoints.detach().double().cpu()
    seen = (points.abs() < FARTHEST).all(1)  # false where not finite
    if confidence is not None:
        seen &= confidence.detach().cpu() > 0
    joints = seen.nonzero().flatten().tolist()
    if not joints:
        return drawn
    extent = min(float(np.ptp(points[seen].numpy(), axis=0).max()), max(picture.shape))
    thickness = max(1, round(extent / 100))
    fixed = torch.where(seen[:, None], (points - 0.5) * 2**_SHIFT, 0).round().long().tolist()
    tints = [WHITE] + [colour for colour in colours for _ in range(4)]
    for border, palette in ((2, [OUTLINE] * 21), (0, tints)):
        for joint in joints:
            parent = PARENTS[joint]
            if parent >= 0 and seen[parent]:
                ends, width = (fixed[parent], fixed[joint]), thickness + border
                cv2.line(drawn, *ends, palette[joint], width, cv2.LINE_AA, _SHIFT)
        for joint in joints:
            radius = 24 * thickness + 8 * border
            cv2.circle(drawn, fixed[joint], radius, palette[joint], -1, cv2.LINE_AA, _SHIFT)
    return drawn


def _default_rasterizer() -> Rasterizer:
    from handrec.render.warp_backend import WarpRasterizer

    return WarpRasterizer()


def region_of(
    vertices: Float[Tensor, "v 3"],
    intrinsics: Float[Tensor, "3 3"],
    image_size: tuple[int, int],
    near: float,
) -> tuple[int, int, int, int] | None:
    """Return ``(left, top, right, bottom)`` of the pixels that a mesh may cover, None if none."""
    height, width = image_size
    points = vertices[vertices[:, 2] > near].double()
    if not len(points) or not vertices.isfinite().all():
        return None
    pixels = (points / points[:, 2:]) @ intrinsics[:2].T
    low, high = pixels.amin(0).floor(), pixels.amax(0).ceil()
    left, top = (int(x.clamp(0, 1e6)) for x in low)
    right, bottom = (int(x.clamp(-1, n)) for x, n in zip(high, (width, height), strict=True))
    return (left, top, right, bottom) if left < right and top < bottom else None


def _shade(
    vertices: Float[Tensor, "v 3"],
    faces: Int[Tensor, "f 3"],
    camera: Camera,
    rasterizer: Rasterizer,
) -> tuple[np.ndarray, np.ndarray]:
    """Return brightness and mask of a mesh under :data:`LIGHT`, each ``(H, W)`` in [0, 1]."""

    def shader(surface: Mapping[str, Tensor]) -> Tensor:
        normal = torch.nn.functional.normalize(surface["normal"], dim=-1)
        light = normal @ normal.new_tensor(LIGHT)
        return (AMBIENT + (1 - AMBIENT) * light.clamp(min=0))[..., None]

    normals = Attribute(vertex_normals(vertices, faces)[None])
    with torch.no_grad():
        drawn = rasterizer.render(vertices[None], faces, {"normal": normals}, camera, shader)
    return drawn.image[0, 0].cpu().numpy(), drawn.mask[0, 0].cpu().numpy()
