"""Writes videos that browsers play: H.264, yuv420p, mp4."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from jaxtyping import UInt8

from handrec.errors import UserError
from handrec.viz.drawing import Picture

_TICKS = 90_000  # per second, as in mp4 files

#: H.264's number of ITU-R BT.709.
_BT709 = 1


class VideoFile:
    """An mp4 file that is being written; odd sizes grow by a row or column of their edge pixels.

    Args:
        path: of the file, replaced if there.
        image_size: ``(height, width)`` of the frames.
        rate: frames per second, for the encoder; the frames' own times count.
        quality: constant rate factor of x264: 18 is hardly told from the source, 28 is coarse.
    """

    def __init__(
        self, path: Path, image_size: tuple[int, int], rate: Fraction, quality: int = 20
    ) -> None:
        if "libx264" not in av.codec.codecs_available:
            raise UserError("no H.264 encoder in this PyAV: reinstall it with pip install av")
        height, width = image_size
        self._pad = (0, height % 2), (0, width % 2), (0, 0)
        self._container = av.open(path, "w", format="mp4", options={"movflags": "+faststart"})
        options = {"crf": str(quality), "preset": "veryfast"}
        self._stream: Any = self._container.add_stream("libx264", rate=rate, options=options)
        self._stream.width, self._stream.height = width + width % 2, height + height % 2
        self._stream.pix_fmt = "yuv420p"
        context = self._stream.codec_context
        context.time_base = Fraction(1, _TICKS)
        context.color_range = ColorRange.MPEG
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        self._last = -1

    def write(self, picture: Picture, seconds: float) -> None:
        """Append a frame.

        Args:
            picture: of the size given.
            seconds: since the start; moved up where it is not after the last frame's.
        """
        padded: UInt8[np.ndarray, "h w 3"] = np.pad(picture, self._pad, mode="edge")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(padded), format="rgb24")
        frame = frame.reformat(
            format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
        )
        self._last = max(self._last + 1, round(seconds * _TICKS))
        frame.pts, frame.time_base = self._last, Fraction(1, _TICKS)
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Finish the file."""
        if self._last >= 0:
            self._container.mux(self._stream.encode(None))
        self._container.close()
