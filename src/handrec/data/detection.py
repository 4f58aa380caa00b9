"""Finds hands in pictures with MediaPipe, an optional extra, and a model file of the user's."""

from abc import ABC, abstractmethod
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from packaging.version import Version

from handrec.data.boxes import MIN_BOX, HandBox, Side
from handrec.errors import UserError

INSTALL = "pip install -e '.[detect]' in handrec's folder"

OLDEST = Version("1.2")

#: Landmarks lie inside the hand: their box is widened by so much of its longer side, on each side.
MARGIN = 0.1


class Landmarks(NamedTuple):
    """A hand's keypoints.

    Attributes:
        points: pixels, in the suite's order of joints, which is MediaPipe's.
        side: of the body.
        score: of the hand, in [0, 1].
    """

    points: Float[np.ndarray, "21 2"]
    side: Side
    score: float


class HandDetector(ABC):
    """Anything that finds hands."""

    @abstractmethod
    def detect(self, picture: UInt8[np.ndarray, "h w 3"]) -> list[HandBox]:
        """Return the hands in an RGB picture, boxes in its pixels."""


class MediaPipeHands(HandDetector):
    """MediaPipe's hand landmarker, of which the boxes and sides are taken.

    Since 1.2 MediaPipe names the subject's own hand where the picture is not mirrored; before, it
    took pictures for mirrored ones, so that older versions are not accepted.

    Args:
        model: the file ``hand_landmarker.task``.
        most: hands in a picture.
    """

    def __init__(self, model: str, most: int = 4) -> None:
        if not Path(model).is_file():
            raise UserError(
                f"no detector file {model}: get hand_landmarker.task from MediaPipe's page on"
                " hand landmarks, or give boxes"
            )
        try:
            self._package = import_module("mediapipe")
            vision = import_module("mediapipe.tasks.python.vision")
            options = import_module("mediapipe.tasks.python").BaseOptions
        except ImportError as error:
            raise UserError(f"finding hands needs MediaPipe 1.2 or newer: {INSTALL}") from error
        found = str(getattr(self._package, "__version__", "0"))
        if Version(found) < OLDEST:
            raise UserError(
                f"MediaPipe {found} is older than {OLDEST} and may take right hands for left ones:"
                f" {INSTALL}"
            )
        try:
            self._landmarker: Any = vision.HandLandmarker.create_from_options(
                vision.HandLandmarkerOptions(
                    base_options=options(model_asset_path=model), num_hands=most
                )
            )
        except (RuntimeError, ValueError, OSError) as error:
            reason = str(error).strip().split("\n")[0]
            raise UserError(f"{model}: not a hand_landmarker.task ({reason})") from error

    def landmarks(self, picture: UInt8[np.ndarray, "h w 3"]) -> list[Landmarks]:
        """Return the keypoints of the hands in an RGB picture."""
        height, width = picture.shape[:2]
        package = self._package
        image = package.Image(
            image_format=package.ImageFormat.SRGB, data=np.ascontiguousarray(picture)
        )
        found = self._landmarker.detect(image)
        hands = []
        for landmarks, sides in zip(found.hand_landmarks, found.handedness, strict=True):
            points = np.array([(point.x * width, point.y * height) for point in landmarks])
            side: Side = "left" if sides[0].category_name == "Left" else "right"
            hands.append(Landmarks(points, side, float(sides[0].score)))
        return hands

    def detect(self, picture: UInt8[np.ndarray, "h w 3"]) -> list[HandBox]:
        """Return the hands in an RGB picture, boxes in its pixels."""
        hands = []
        for hand in self.landmarks(picture):
            (left, top), (right, bottom) = hand.points.min(0), hand.points.max(0)
            margin = MARGIN * max(right - left, bottom - top)
            if min(right - left, bottom - top) + 2 * margin >= MIN_BOX:
                box = (left - margin, top - margin, right + margin, bottom + margin)
                hands.append(HandBox(tuple(map(float, box)), hand.side))  # type: ignore[arg-type]
        return hands
