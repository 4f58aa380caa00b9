"""Hands drawn onto the photo they were found in: lit meshes and skeletons."""

from collections.abc import Mapping

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from handrec.hand.joints import FINGERS, PARENTS
from handrec.render.base import Attribute, Rasterizer
from handrec.types import Camera

Colour = tuple[int, int, int]

#: RGB of each finger's bones; the wrist is white.
FINGER_COLOURS: dict[str, Colour] = dict(
    zip(
        FINGERS,
        [(230, 60, 60), (240, 160, 30), (80, 200, 80), (60, 150, 240), (190, 90, 220)],
        strict=True,
    )
)

#: Towards the light, camera frame: from above the camera's left shoulder.
LIGHT = (-0.35, -0.55, -0.76)

#: Meshes up to this many pixels high or wide are drawn at twice the resolution and averaged.
SMOOTH_UP_TO = 1024


def draw_mesh(
    image: UInt8[np.ndarray, "h w 3"],
    vertices: Float[Tensor, "v 3"],
    faces: Int[Tensor, "f 3"],
    intrinsics: Float[Tensor, "3 3"],
    *,
    colour: Colour = (120, 170, 235),
    alpha: float = 0.75,
    rasterizer: Rasterizer | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """Return the image with a lit, semi-transparent mesh drawn over it.

    Only the part of the image that the mesh covers is rendered.

    Args:
        image: the whole photo, RGB.
        vertices: metres, OpenCV camera frame of the photo.
        faces: counter-clockwise seen from outside.
        intrinsics: ``K`` of the photo, pixels.
        colour: RGB of the mesh in full light.
        alpha: opacity of the mesh.
        rasterizer: any backend; None takes ``warp``.
    """
    rasterizer = rasterizer or _default_rasterizer()
    region = _region(vertices, intrinsics, (image.shape[0], image.shape[1]), rasterizer.near)
    if region is None:
        return image.copy()
    left, top, right, bottom = region
    width, height = right - left, bottom - top
    zoom = 2 if max(width, height) <= SMOOTH_UP_TO else 1
    to_region = torch.tensor([[zoom, 0, -zoom * left], [0, zoom, -zoom * top], [0, 0, 1]])
    camera = Camera(
        (to_region.double() @ intrinsics.double())[None].float(), (height * zoom, width * zoom)
    )
    shade, mask = _shade(vertices.float(), faces, camera, rasterizer)
    # Averaged after multiplying by the mask, so that the background does not bleed in.
    layers = np.dstack([shade * mask, mask])
    if zoom > 1:
        layers = cv2.resize(layers, (width, height), interpolation=cv2.INTER_AREA)
    drawn = image.copy()
    patch = drawn[top:bottom, left:right]
    blended = patch * (1 - alpha * layers[..., 1:]) + alpha * layers[..., :1] * np.array(colour)
    patch[:] = blended.round().clip(0, 255).astype(np.uint8)
    return drawn


def draw_skeleton(
    image: UInt8[np.ndarray, "h w 3"], keypoints_2d: Float[np.ndarray, "21 2"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Return the image with the 21 joints and 20 bones of a hand, each finger in its colour.

    Args:
        image: RGB.
        keypoints_2d: pixels, centres at integer + 0.5.
    """
    drawn = image.copy()
    extent = min(float(np.ptp(keypoints_2d, axis=0).max()), max(image.shape))
    thickness = max(1, round(extent / 80))
    # OpenCV wants fixed-point positions with pixel centres at integers.
    points = ((keypoints_2d.clip(-1e5, 1e5) - 0.5) * 16).round().astype(int).tolist()
    colours = [(255, 255, 255)] + [FINGER_COLOURS[name] for name in FINGERS for _ in range(4)]
    # A dark outline first, so that the skeleton shows on any skin and mesh.
    for outline, tints in ((2, [(25, 25, 25)] * 21), (0, colours)):
        for joint, parent in list(enumerate(PARENTS))[1:]:
            start, end, width = points[parent], points[joint], thickness + outline
            cv2.line(drawn, start, end, tints[joint], width, cv2.LINE_AA, shift=4)
        for point, tint in zip(points, tints, strict=True):
            radius = 24 * thickness + 8 * outline
            cv2.circle(drawn, point, radius, tint, cv2.FILLED, cv2.LINE_AA, shift=4)
    return drawn


def _default_rasterizer() -> Rasterizer:
    from handrec.render.warp_backend import WarpRasterizer

    return WarpRasterizer()


def _region(
    vertices: Float[Tensor, "v 3"],
    intrinsics: Float[Tensor, "3 3"],
    image_size: tuple[int, int],
    near: float,
) -> tuple[int, int, int, int] | None:
    """Return ``(left, top, right, bottom)`` of the pixels that a mesh may cover, None if none."""
    height, width = image_size
    points = vertices[vertices[:, 2] > near].double()
    if not len(points):
        return None
    pixels = (points / points[:, 2:]) @ intrinsics.double()[:2].T
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
    from handrec.geometry.mesh import vertex_normals

    def shader(surface: Mapping[str, Tensor]) -> Tensor:
        normal = torch.nn.functional.normalize(surface["normal"], dim=-1)
        light = normal @ normal.new_tensor(LIGHT)
        return (0.35 + 0.65 * light.clamp(min=0))[..., None]

    normals = Attribute(vertex_normals(vertices, faces)[None])
    with torch.no_grad():
        drawn = rasterizer.render(vertices[None], faces, {"normal": normals}, camera, shader)
    return drawn.image[0, 0].cpu().numpy(), drawn.mask[0, 0].cpu().numpy()
