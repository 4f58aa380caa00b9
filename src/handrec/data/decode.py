"""Crops straight from encoded images: whole files only, decoded no larger than needed."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from handrec.data.crops import step_of, warp
from handrec.errors import UserError

_JPEG, _PNG = b"\xff\xd8", b"\x89PNG"
#: How libjpeg begins what it says of lost pixels; its other remarks are of odd headers.
_LOST = ("Corrupt JPEG data", "Premature end")

#: libjpeg decodes at a half, a quarter or an eighth for a fraction of the time. RGB as it comes
#: saves turning it round; reduced pictures only come as BGR.
_REDUCED = {
    1: (cv2.IMREAD_COLOR_RGB, cv2.IMREAD_GRAYSCALE),
    2: (cv2.IMREAD_REDUCED_COLOR_2, cv2.IMREAD_REDUCED_GRAYSCALE_2),
    4: (cv2.IMREAD_REDUCED_COLOR_4, cv2.IMREAD_REDUCED_GRAYSCALE_4),
    8: (cv2.IMREAD_REDUCED_COLOR_8, cv2.IMREAD_REDUCED_GRAYSCALE_8),
}


def is_truncated(encoded: bytes) -> bool:
    """Return whether a JPEG or PNG ends before its end marker.

    Decoders disagree about such files: some versions of OpenCV return the part there is.
    """
    if encoded.startswith(_JPEG):
        if encoded.endswith(b"\xff\xd9"):  # as nearly all do; the search below takes longer
            return False
        # An embedded preview has both markers, before the picture's.
        return encoded.rfind(b"\xff\xd9") < encoded.rfind(b"\xff\xda")
    return encoded.startswith(_PNG) and b"IEND" not in encoded[-64:]


def read_encoded(path: Path) -> bytes:
    """Return a file's bytes.

    Raises:
        UserError: it cannot be read, is empty, or is a truncated image.
    """
    try:
        encoded = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    if not encoded:
        raise UserError(f"{path}: the file is empty")
    if is_truncated(encoded):
        raise UserError(f"{path}: truncated image ({len(encoded):,} bytes, no end marker)")
    return encoded


def complaint(encoded: bytes) -> str:
    """Return what libjpeg says of a damaged JPEG that is decoded all the same; empty if nothing.

    Pillow, OpenCV and torchvision all fill in what they cannot decode; libjpeg's remark about it
    goes to the error output of the process, where it is caught here: for one thread alone, so that
    this is no part of reading for a training. Damage that decodes to other pixels has no remark.
    """
    if not encoded.startswith(_JPEG):
        return ""
    with tempfile.TemporaryFile() as caught:
        with _error_output(caught.fileno()):
            # All of the file has to be read for the smallest picture, too.
            flag = cv2.IMREAD_REDUCED_GRAYSCALE_8
            image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flag)
        caught.seek(0)
        said = caught.read().decode(errors="replace")
    lines = [line for line in said.splitlines() if line.startswith(_LOST)]
    return lines[0] if lines and image is not None else ""


@contextmanager
def _error_output(file: int) -> Iterator[None]:
    """Send what libraries write to the error output to another open file."""
    kept = os.dup(2)
    os.dup2(file, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def decode(encoded: bytes, where: object, reduce: int = 1, grey: bool = False) -> np.ndarray:
    """Return an image, ``(H, W, 3)`` RGB or ``(H, W)``, 8 bits, upright by its EXIF orientation.

    Args:
        encoded: of any format that OpenCV reads.
        where: it comes from, for the message.
        reduce: 1, 2, 4 or 8: the image is this many times smaller, its sides rounded up.
        grey: one channel.

    Raises:
        UserError: it is no image.
    """
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), _REDUCED[reduce][grey])
    except cv2.error:  # e.g. more pixels than OpenCV accepts
        image = None
    if image is None:
        raise UserError(f"{where}: not an image, or a damaged one")
    if reduce > 1 and not grey:
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    return np.asarray(image, dtype=np.uint8)


def decode_for(
    path: Path,
    affine: Float[np.ndarray, "3 3"],
    image_size: tuple[int, int] | None = None,
    grey: bool = False,
) -> tuple[np.ndarray, Float[np.ndarray, "3 3"]]:
    """Return an image file decoded as large as a crop of it needs, and the affine for that size.

    A JPEG of which the crop shows less than a quarter of the resolution is decoded at half of it
    (an eighth: at a quarter), so that there are still two pixels for one of the crop: on photos
    that changes it by 0.9 of 255 levels on average, a shift by a quarter of a pixel by 3.9.

    Args:
        path: of the image.
        affine: crop pixels to image pixels.
        image_size: ``(height, width)`` that the labels are for; None takes any.
        grey: one channel.

    Raises:
        UserError: the image cannot be read or has another size.
    """
    encoded = read_encoded(path)
    reduce = 1
    if encoded.startswith(_JPEG):
        step = step_of(affine)
        reduce = max(factor for factor in _REDUCED if factor <= max(1.0, step / 2))
    image = decode(encoded, path, reduce, grey)
    if image_size is not None:
        expected = tuple(-(-side // reduce) for side in image_size)
        if image.shape[:2] != expected:
            height, width = decode(encoded, path).shape[:2]
            raise UserError(
                f"{path}: {width} x {height} pixels, its labels are for"
                f" {image_size[1]} x {image_size[0]}"
            )
    return image, affine / np.array([[reduce], [reduce], [1]])


def decode_crop(
    path: Path,
    affine: Float[np.ndarray, "3 3"],
    size: int,
    image_size: tuple[int, int] | None = None,
    grey: bool = False,
) -> UInt8[np.ndarray, "s s *c"]:
    """Return the square crop of an image file that an affine describes: see :func:`decode_for`.

    Args:
        path: of the image.
        affine: crop pixels to image pixels.
        size: width and height of the crop.
        image_size: ``(height, width)`` that the labels are for; None takes any.
        grey: one channel.
    """
    return warp(*decode_for(path, affine, image_size, grey), size)
