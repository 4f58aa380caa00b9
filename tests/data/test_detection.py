"""MediaPipe's part is played by a stand-in with the names and fields of its version 1.2."""

import sys
from types import ModuleType, SimpleNamespace

import cv2
import numpy as np
import pytest

from handrec.data.detection import MARGIN, MediaPipeHands
from handrec.data.photos import Photos
from handrec.errors import UserError


class Landmarker:
    asked = None

    @classmethod
    def create_from_options(cls, options):
        cls.asked = options
        if options.base_options.model_asset_path.endswith("bad.task"):
            raise RuntimeError("Unable to open zip archive.\nand more")
        return cls()

    def detect(self, image, image_processing_options=None):
        assert (image.data.dtype, image.data.ndim, image.image_format) == (np.uint8, 3, "SRGB")
        if not image.data.any():
            return SimpleNamespace(hand_landmarks=[], handedness=[])
        points = [SimpleNamespace(x=x, y=y) for x, y in ((0.25, 0.5), (0.5, 0.75), (0.3, 0.6))]
        sides = [[SimpleNamespace(category_name=side, score=0.9)] for side in ("Left", "Right")]
        return SimpleNamespace(hand_landmarks=[points, points], handedness=sides)


@pytest.fixture
def mediapipe(monkeypatch, tmp_path):
    package = ModuleType("mediapipe")
    package.__version__ = "1.2.0"
    package.Image = lambda image_format, data: SimpleNamespace(image_format=image_format, data=data)
    package.ImageFormat = SimpleNamespace(SRGB="SRGB")
    python, vision = ModuleType("mediapipe.tasks.python"), ModuleType("vision")
    python.BaseOptions = lambda model_asset_path: SimpleNamespace(model_asset_path=model_asset_path)
    vision.HandLandmarkerOptions = SimpleNamespace
    vision.HandLandmarker = Landmarker
    for name, module in (
        ("mediapipe", package), ("mediapipe.tasks", ModuleType("tasks")),
        ("mediapipe.tasks.python", python), ("mediapipe.tasks.python.vision", vision),
    ):  # fmt: skip
        monkeypatch.setitem(sys.modules, name, module)
    model = tmp_path / "hand_landmarker.task"
    model.write_bytes(b"model")
    return str(model)


def test_boxes_hold_the_landmarks_with_a_margin_and_sides_are_the_subjects(mediapipe):
    first, second = MediaPipeHands(mediapipe, most=3).detect(np.full((100, 200, 3), 9, np.uint8))
    assert Landmarker.asked.num_hands == 3
    margin = MARGIN * 50
    assert first.box == pytest.approx((50 - margin, 50 - margin, 100 + margin, 75 + margin))
    assert (first.side, second.side) == ("left", "right")


def test_photos_take_their_boxes_from_the_detector(mediapipe, tmp_path):
    (tmp_path / "photos").mkdir()
    for name, level in (("a.png", 90), ("black.png", 0)):
        cv2.imwrite(str(tmp_path / "photos" / name), np.full((100, 200, 3), level, np.uint8))
    photos = Photos(str(tmp_path / "photos"), detector=mediapipe, image_size=32)
    photos.setup("predict")
    assert [(item.name, item.side) for item in photos.items] == [("a.png", "left"),
                                                                ("a.png", "right")]  # fmt: skip
    assert photos.empty == ["black.png"]


def test_what_is_missing_is_named_with_what_to_do(mediapipe, monkeypatch, tmp_path):
    with pytest.raises(UserError, match=r"no detector file .*no\.task: get hand_landmarker\.task"):
        MediaPipeHands(str(tmp_path / "no.task"))
    (tmp_path / "bad.task").write_bytes(b"")
    with pytest.raises(UserError, match=r"bad\.task: not a hand_landmarker\.task \(Unable to open"):
        MediaPipeHands(str(tmp_path / "bad.task"))
    for version in ("0.10.21", "1.1.1"):
        monkeypatch.setattr(sys.modules["mediapipe"], "__version__", version)
        with pytest.raises(UserError, match=f"MediaPipe {version} is older than 1.2"):
            MediaPipeHands(mediapipe)
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[detect\]' in"):
        MediaPipeHands(mediapipe)
    with pytest.raises(UserError, match="give one of them"):
        Photos(str(tmp_path), detector=mediapipe, boxes="boxes.json")
