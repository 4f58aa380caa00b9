"""Images and square crops of them: pixels, affines and cameras that agree.

Convention:
    Pixel centres lie at integer + 0.5, so a box ``(x1, y1, x2, y2)`` spans exactly those pixels
    and the affine of a crop needs no half-pixel terms; only :func:`warp` converts, for OpenCV.
    A left hand is mirrored when it is read: its affine has a negative determinant, and the camera
    of its crop sees the hand mirrored, ``x -> -x`` in the camera frame.
"""

import math
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from handrec.errors import UserError

Box = tuple[float, float, float, float]

#: Greatest distance of bilinear samples, image pixels.
_SPACING = 1.2


def read_image(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """Return an image as 8-bit RGB, turned upright by its EXIF orientation.

    Grey images are repeated over the channels, 16 bits reduced to 8, an alpha channel dropped.

    Raises:
        UserError: the file cannot be read or is no image.
    """
    try:
        encoded = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    if not len(encoded):
        raise UserError(f"{path}: the file is empty")
    try:
        image = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    except cv2.error:  # e.g. more pixels than OpenCV accepts
        image = None
    if image is None:
        raise UserError(f"{path}: not an image, or a damaged one")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def square_box(box_xyxy: Box, scale: float) -> Box:
    """Return the square around a box's centre, ``scale`` times its longer side wide, pixels."""
    left, top, right, bottom = box_xyxy
    half = max(right - left, bottom - top) * scale / 2
    x, y = (left + right) / 2, (top + bottom) / 2
    return x - half, y - half, x + half, y + half


def crop_affine(box_xyxy: Box, size: int, mirror: bool) -> Float[np.ndarray, "3 3"]:
    """Return the homogeneous affine from the pixels of a square crop to those of the image.

    Args:
        box_xyxy: the square in the image that the crop shows, pixels.
        size: width and height of the crop.
        mirror: the crop's left edge shows the box's right one.
    """
    left, top, right, _ = box_xyxy
    step = (right - left) / size
    x_step, x_start = (-step, right) if mirror else (step, left)
    return np.array([[x_step, 0.0, x_start], [0.0, step, top], [0.0, 0.0, 1.0]])


def step_of(affine: Float[np.ndarray, "3 3"]) -> float:
    """Return how many image pixels one pixel of a crop is wide."""
    (a, b), (c, d) = affine[:2, :2].tolist()
    return math.sqrt(abs(a * d - b * c))


def warp(
    image: UInt8[np.ndarray, "h w *c"],
    affine: Float[np.ndarray, "3 3"],
    size: int,
    mirrored: bool = False,
) -> UInt8[np.ndarray, "s s *c"]:
    """Return the square crop of an image that an affine describes, antialiased.

    Where the image shrinks, every pixel is the mean of a grid of bilinear samples no more than 1.2
    image pixels apart. Outside the image its edge pixels go on (replication): black borders would
    be an edge that no hand has, reflection would show a second hand. But parallel streaks tell how
    a picture was turned: what learns from turning whole images wants them mirrored.

    Args:
        image: 8 bits, RGB, RGBA or a single channel without an axis of its own.
        affine: crop pixels to image pixels, as :func:`crop_affine` gives it.
        size: width and height of the crop.
        mirrored: whether the image goes on mirrored, not with its edge pixels.
    """
    if image.shape[:2] == (size, size) and np.abs(affine - np.eye(3)).max() < 1e-9:
        return image
    if image.ndim == 3 and image.shape[2] == 3:  # OpenCV warps four channels faster than three
        four = warp(cv2.cvtColor(image, cv2.COLOR_RGB2RGBA), affine, size, mirrored)
        return np.asarray(cv2.cvtColor(four, cv2.COLOR_RGBA2RGB), dtype=np.uint8)
    samples = max(1, math.ceil(step_of(affine) / _SPACING - 1e-6))
    fine = affine @ np.diag([1 / samples, 1 / samples, 1.0])
    # OpenCV puts pixel centres at integers: x_ours = x_cv + 0.5 on both sides.
    fine[:2, 2] += fine[:2, :2].sum(1) / 2 - 0.5
    crop = cv2.warpAffine(
        image,
        fine[:2],
        (size * samples, size * samples),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT if mirrored else cv2.BORDER_REPLICATE,
    )
    if samples > 1:
        crop = cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA)
    return np.asarray(crop, dtype=np.uint8)


def crop_intrinsics(
    intrinsics: Float[np.ndarray, "3 3"], affine: Float[np.ndarray, "3 3"], mirror: bool
) -> Float[np.ndarray, "3 3"]:
    """Return the intrinsics of a crop, ``K_crop = A^-1 K diag(-1 if mirrored, 1, 1)``.

    A hand ``X`` (mirrored: ``diag(-1, 1, 1) X``) projected by it lands in the crop where the
    affine expects the projection of ``X`` by ``K`` to come from. The focal lengths stay positive.

    Args:
        intrinsics: ``K`` of the whole image, pixels.
        affine: crop pixels to image pixels.
        mirror: as in ``affine``.
    """
    flip = np.diag([-1.0 if mirror else 1.0, 1.0, 1.0])
    return np.linalg.solve(affine, intrinsics) @ flip


def default_intrinsics(height: int, width: int) -> Float[np.ndarray, "3 3"]:
    """Return the intrinsics assumed of an unknown camera.

    The focal length is the image's diagonal (a field of view of 53 degrees across it, a usual
    phone or a 43 mm lens on full frame), the principal point the image's centre.
    """
    focal = math.hypot(height, width)
    return np.array([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]])
