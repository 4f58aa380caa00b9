"""One HTML page that shows predicted hands in 3D beside their pictures, with nothing to load."""

import base64
import json
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from types import TracebackType
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from handrec.viz.drawing import Picture

#: Longer side of the pictures in a page, pixels.
PICTURE_SIDE = {"photos": 960, "video": 640}

_JPEG_QUALITY = 82


class ShownHand(NamedTuple):
    """A hand as the page shows it.

    Attributes:
        side: of the body; it chooses faces and colour.
        number: of the hand in its photo, or of its track in the video.
        vertices: metres, camera frame of the picture.
        joints: metres, same frame.
    """

    side: Literal["right", "left"]
    number: int
    vertices: Float[Tensor, "v 3"]
    joints: Float[Tensor, "21 3"]


class ViewerPage:
    """A page that is being written: pictures with their hands are appended, none is kept.

    Use as a context manager; the page is whole when it is closed.

    Args:
        path: of the HTML file.
        title: heading.
        faces: of the right hand, counter-clockwise seen from outside; left ones turn round.
        kind: ``photos`` with thumbnails, or the frames of a ``video`` with a slider.
        period: seconds from one frame to the next when the video is played.
        note: shown below the title.
    """

    def __init__(
        self,
        path: Path,
        title: str,
        faces: Int[Tensor, "f 3"],
        kind: Literal["photos", "video"] = "photos",
        period: float = 1 / 30,
        note: str = "",
    ) -> None:
        self.path, self.kind = path, kind
        self._file = path.open("w", encoding="utf-8")
        right = faces.cpu().numpy().astype("<u4")
        page = {
            "kind": kind,
            "period": period,
            "faces": {"right": _base64(right), "left": _base64(right[:, ::-1])},
        }
        self._file.write(_head(title, note, kind) + _script(page, 'id="page"'))

    def __enter__(self) -> "ViewerPage":
        """Return the page."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Finish the page, whatever happened: what it holds can be looked at."""
        self.close()

    def add(
        self,
        name: str,
        picture: Picture,
        intrinsics: Float[np.ndarray, "3 3"],
        hands: Sequence[ShownHand],
        seconds: float | None = None,
    ) -> None:
        """Append a picture and its hands.

        Args:
            name: of the picture.
            picture: as the network saw it, without any drawing.
            intrinsics: ``K`` of the picture, pixels.
            hands: in it.
            seconds: since the start of the video, if it is of one.
        """
        height, width = picture.shape[:2]
        matrix = np.asarray(intrinsics, dtype=float)
        item = {
            "name": name,
            "seconds": seconds,
            "size": [height, width],
            "k": [matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]],
            "image": _jpeg(picture, PICTURE_SIDE[self.kind]),
            "hands": [_describe(hand) for hand in hands],
        }
        self._file.write(_script(item, 'class="item"'))

    def close(self) -> None:
        """Finish the page."""
        if not self._file.closed:
            self._file.write(f"<script>\n{_asset('viewer.js')}</script>\n</body></html>\n")
            self._file.close()


def _describe(hand: ShownHand) -> dict[str, Any]:
    """Return a hand for JSON; its vertices are rounded to 1 / 65535 of the hand's extent."""
    points = hand.vertices.detach().cpu().double().numpy()
    low = points.min(0)
    step = max(float((points - low).max()), 1e-9) / 65535
    levels = np.round((points - low) / step).astype("<u2")
    return {
        "side": hand.side,
        "track": hand.number,
        "low": low.tolist(),
        "step": step,
        "vertices": _base64(levels),
        "joints": hand.joints.detach().cpu().double().numpy().round(5).tolist(),
    }


def _jpeg(picture: Picture, longest: int) -> str:
    """Return a picture as the address of an embedded JPEG."""
    height, width = picture.shape[:2]
    scale = min(1.0, longest / max(height, width))
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    data = cv2.imencode(".jpg", np.ascontiguousarray(picture[..., ::-1]), options)[1]
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def _script(content: dict[str, Any], attribute: str) -> str:
    """Return JSON in a script element; no text in it can end the element."""
    text = json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" {attribute}>{text}</script>\n'


def _asset(name: str) -> str:
    return (resources.files("handrec") / "assets" / "viewer" / name).read_text(encoding="utf-8")


def _head(title: str, note: str, kind: str) -> str:
    """Return the page up to its data."""
    return Template(_asset("viewer.html")).substitute(
        title=escape(title), note=escape(note), style=_asset("viewer.css"), kind=kind
    )
