"""Pinhole cameras: projection, and the weak perspective that regressors speak.

Convention:
    Camera frame of OpenCV (x right, y down, z forward), metres. Pixel centres lie at integer + 0.5,
    so an image of width W spans [0, W] and scaling needs no half-pixel terms.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from handrec.types import Camera

#: Depths below this (metres) are divided by as if they were this: points behind the camera land
#: far away but finite.
MIN_DEPTH = 1e-6

#: Smallest weak-perspective scale: the hand is no farther than about 40 focal lengths per crop.
MIN_SCALE = 0.05


def project(
    points: Float[Tensor, "b n 3"], intrinsics: Float[Tensor, "b 3 3"]
) -> Float[Tensor, "b n 2"]:
    """Return the pixels of points in the camera frame.

    Args:
        points: metres; a depth below :data:`MIN_DEPTH` counts as that.
        intrinsics: ``K``, pixels; a skew is honoured.
    """
    x, y, depth = points.unbind(-1)
    depth = depth.clamp(min=MIN_DEPTH)
    # Written out: a matrix product would be taken in bfloat16 under autocast, a pixel off.
    rows = intrinsics[:, :2, :, None].unbind(1)
    pixels = [row[:, 0] * x / depth + row[:, 1] * y / depth + row[:, 2] for row in rows]
    return torch.stack(pixels, dim=-1)


def move_pixels(
    points: Float[Tensor, "*s b n 2"], warp: Float[Tensor, "b 3 3"]
) -> Float[Tensor, "*s b n 2"]:
    """Return where a warp of pictures brings points on them.

    Args:
        points: pixels.
        warp: affine, from the pixels of a picture to those of the warped one.
    """
    x, y = points[..., :1], points[..., 1:]
    # Written out, as in :func:`project`.
    return x * warp[:, None, :2, 0] + y * warp[:, None, :2, 1] + warp[:, None, :2, 2]


def resize_camera(camera: Camera, image_size: tuple[int, int]) -> Camera:
    """Return the camera of the same view at another resolution.

    Args:
        camera: any.
        image_size: the new ``(height, width)``.
    """
    (old_height, old_width), (height, width) = camera.image_size, image_size
    scale = camera.intrinsics.new_tensor([width / old_width, height / old_height, 1.0])
    return Camera(camera.intrinsics * scale[:, None], image_size)


def weak_to_translation(
    weak: Float[Tensor, "b 3"],
    intrinsics: Float[Tensor, "b 3 3"],
    image_size: tuple[int, int],
) -> Float[Tensor, "b 3"]:
    """Return the translation, metres, that a weak-perspective camera stands for in a crop.

    A point ``X`` of a hand near its origin then lands, to first order in ``X / t_z``, at
    ``s (X + t)`` in crop coordinates (-1 to 1 from edge to edge), wherever the principal point is:
    ``t_z = 2 f / (S s)`` as in PyMAF, plus the shift from the principal point to the crop's centre.

    Args:
        weak: ``(s, t_x, t_y)``; ``s`` in crop half-widths per metre, held above
            :data:`MIN_SCALE` (no gradient below it); ``t_x`` and ``t_y`` metres.
        intrinsics: ``K`` of the crop, pixels.
        image_size: ``(height, width)`` of the crop; the scale is relative to its width.
    """
    height, width = image_size
    scale = weak[:, 0].clamp(min=MIN_SCALE)
    focal_x, focal_y = intrinsics[:, 0, 0], intrinsics[:, 1, 1]
    depth = 2 * focal_x / (width * scale + 1e-9)
    shift_x = (width / 2 - intrinsics[:, 0, 2]) * depth / focal_x
    shift_y = (height / 2 - intrinsics[:, 1, 2]) * depth / focal_y
    return torch.stack([weak[:, 1] + shift_x, weak[:, 2] + shift_y, depth], dim=-1)
