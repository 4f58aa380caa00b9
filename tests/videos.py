"""Videos for tests: bright discs that move over a dark ground."""

from fractions import Fraction

import cv2
import numpy as np

from handrec.viz.video import VideoFile


def disc_frame(size, centres, radius):
    """Return a frame with discs at ``(x, y)``, pixel centres at integer + 0.5."""
    frame = np.full((*size, 3), 20, np.uint8)
    for x, y in centres:
        at = round((x - 0.5) * 16), round((y - 0.5) * 16)
        cv2.circle(frame, at, round(radius * 16), (230, 230, 230), -1, cv2.LINE_AA, 4)
    return frame


def write_discs(path, paths, size=(91, 121), radius=9.0, rate=25):
    """Write a video; ``paths`` holds the ``(x, y)`` of each disc in each frame."""
    file = VideoFile(path, size, Fraction(rate), quality=10)
    for number, centres in enumerate(paths):
        file.write(disc_frame(size, centres, radius), number / rate)
    file.close()


def damage(path, start, length):
    """Overwrite bytes of a file, from a share of it on."""
    data = bytearray(path.read_bytes())
    first = int(start * len(data))
    data[first : first + length] = b"\xff" * length
    path.write_bytes(data)
