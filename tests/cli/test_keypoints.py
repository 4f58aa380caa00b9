"""Keypoints of networks as labels: agreement of looks, COCO's format, a stand-in of MediaPipe."""

import json
import sys
import types

import cv2
import numpy as np
import pytest
import torch
import yaml

from handrec.cli import keypoints
from handrec.cli.keypoints import DOUBT, Found, as_coco, look
from handrec.cli.main import main
from handrec.data.coco_hands import CocoHands
from handrec.hand.openhand import OpenHand
from handrec.methods import loading
from tests.data.test_augment import labelled_batch
from tests.videos import write_discs


def test_a_network_that_follows_the_picture_is_sure():
    batch = labelled_batch(OpenHand())
    keypoints, confidence = look(lambda turned: turned.keypoints_2d, batch)
    torch.testing.assert_close(keypoints, batch.keypoints_2d, atol=1e-3, rtol=0)
    assert confidence.min() > 0.999


def test_confidence_falls_with_disagreement():
    batch = labelled_batch(OpenHand())
    extent = (batch.keypoints_2d.amax(1) - batch.keypoints_2d.amin(1)).amax(1)
    calls = []

    def shaky(turned):
        calls.append(len(calls))
        off = torch.zeros(21, 2)
        if len(calls) == 2:  # one look of three is off at one joint, by a tenth of the hand
            off[3, 0] = 1.0
        return turned.keypoints_2d + 0.1 * extent[:, None, None] * off

    keypoints, confidence = look(shaky, batch)
    torch.testing.assert_close(keypoints, batch.keypoints_2d, atol=2e-3, rtol=0)  # the median
    expected = np.exp(-DOUBT * 0.1 / 3)
    torch.testing.assert_close(
        confidence[:, 3], torch.full((4,), float(expected)), atol=0.02, rtol=0
    )
    assert np.delete(confidence.numpy(), 3, axis=1).min() > 0.999


def test_what_is_written_is_what_is_read(tmp_path):
    points, scores = 40 * torch.rand(21, 2), torch.rand(21)
    scores[4] = 0
    scores[5] = 1
    hand = Found("a.jpg", (48, 64), points, scores, (3.0, 4.0, 43.0, 44.0), "left")
    content = as_coco([hand, hand])
    content["annotations"][0]["keypoint_scores"][5] = 1.02  # of some detectors
    (tmp_path / "keypoints.json").write_text(json.dumps(content))
    cv2.imwrite(str(tmp_path / "a.jpg"), np.zeros((48, 64, 3), np.uint8))
    data = CocoHands(str(tmp_path), num_workers=0, cache_dir=str(tmp_path / "cache"))
    data.setup("check")
    labels = data.tables["annotations"].labels
    known = scores > 0
    torch.testing.assert_close(labels.keypoints_2d[0][known], points[known], atol=1e-3, rtol=0)
    torch.testing.assert_close(labels.confidence[0], scores, atol=1e-4, rtol=0)
    assert not labels.keypoints_2d[0, 4].any()
    assert labels.box[0].tolist() == [2.5, 3.5, 42.5, 43.5]  # COCO's, in centres at integers
    assert labels.is_left.tolist() == [1.0, 1.0]
    assert not labels.has_visibility.any()


@pytest.mark.parametrize("scores", [[1.0] * 20, ["a"] * 21, [float("nan")] * 21])
def test_scores_that_are_none(tmp_path, capsys, scores):
    content = as_coco(
        [Found("a.jpg", (48, 64), torch.rand(21, 2), torch.ones(21), (0, 0, 9, 9), "left")]
    )
    content["annotations"][0]["keypoint_scores"] = scores
    (tmp_path / "keypoints.json").write_text(json.dumps(content))
    cv2.imwrite(str(tmp_path / "a.jpg"), np.zeros((48, 64, 3), np.uint8))
    assert main(["data", "check", "coco_hands", str(tmp_path)]) == 2
    assert "keypoint_scores are not 21 numbers" in capsys.readouterr().err


def test_mediapipes_landmarks_are_keypoints(tmp_path, monkeypatch):
    """A stand-in for the package: one left hand in every picture that is not black."""

    class Landmarker:
        @staticmethod
        def create_from_options(options):
            return Landmarker()

        def detect(self, image):
            if not image.data.any():
                return types.SimpleNamespace(hand_landmarks=[], handedness=[])
            points = [types.SimpleNamespace(x=i / 42, y=i / 84) for i in range(21)]
            side = types.SimpleNamespace(category_name="Left", score=0.75)
            return types.SimpleNamespace(hand_landmarks=[points], handedness=[[side]])

    package = types.ModuleType("mediapipe")
    package.__version__ = "1.2.0"
    package.Image = lambda image_format, data: types.SimpleNamespace(data=data)
    package.ImageFormat = types.SimpleNamespace(SRGB=1)
    vision = types.ModuleType("mediapipe.tasks.python.vision")
    vision.HandLandmarker, vision.HandLandmarkerOptions = Landmarker, lambda **options: options
    python = types.ModuleType("mediapipe.tasks.python")
    python.BaseOptions = lambda **options: options
    for name, module in (
        ("mediapipe", package), ("mediapipe.tasks", types.ModuleType("mediapipe.tasks")),
        ("mediapipe.tasks.python", python), ("mediapipe.tasks.python.vision", vision),
    ):  # fmt: skip
        monkeypatch.setitem(sys.modules, name, module)
    (tmp_path / "hand.task").touch()
    cv2.imwrite(str(tmp_path / "a.png"), np.full((84, 42, 3), 90, np.uint8))
    cv2.imwrite(str(tmp_path / "b.png"), np.zeros((84, 42, 3), np.uint8))
    assert main(["data", "keypoints", str(tmp_path), f"--detector={tmp_path / 'hand.task'}"]) == 0
    (entry,) = json.loads((tmp_path / "keypoints.json").read_text())["annotations"]
    points = np.array(entry["keypoints"]).reshape(21, 3)
    np.testing.assert_allclose(points[:, 0], np.arange(21) - 0.5)
    np.testing.assert_allclose(points[:, 1], np.arange(21) - 0.5)
    assert entry["side"] == "left"
    assert entry["keypoint_scores"] == [0.75] * 21


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["clip.mp4", "--run=r"], "clip.mp4 is a video: --frames=FOLDER says where its frames go"),
        (["clip.mp4", "--run=r", "--frames=f", "--stride=0"], "--stride must be at least 1"),
        (["photos", "--run=r", "--stride=5"], "--stride is for the frames of videos: say --frames"),
        (["videos", "--frames=f"], "who finds the keypoints?"),
    ],
)
def test_videos_that_cannot_be_labelled(tmp_path, monkeypatch, capsys, options, said):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "keypoints", *options]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--run=nothing"], "nothing"),
        (["--ckpt=none.ckpt"], "none.ckpt"),
        (["--detector=none.task"], "no detector file none.task"),
        (["--run=r", "--boxes=none.json"], "none.json"),
        (["--run=r", "--boxes=late.json"], "a.mp4, frame 9: the video has 3 frames"),
        (["--run=r", "--boxes=late.json", "--detector=d"], "give one of them"),
        (["--run=r", "--out=a.mp4/keypoints.json"], "a.mp4: a file is where this folder"),
    ],
)
def test_whatever_is_wrong_is_said_before_a_frame_is_written(
    tmp_path, monkeypatch, capsys, options, said
):
    monkeypatch.chdir(tmp_path)
    write_discs(tmp_path / "a.mp4", [[(40, 40)]] * 3)
    (tmp_path / "late.json").write_text(json.dumps({"a.mp4": {"9": [{"box": [0, 0, 40, 40]}]}}))
    if "--run=r" in options:
        monkeypatch.setattr(keypoints, "_network", lambda args: None)
    assert main(["data", "keypoints", "a.mp4", "--frames=frames", *options]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "frames").exists()


@pytest.mark.parametrize(("given", "size"), [([], 64), (["--size=96"], 96)])
def test_crops_are_of_the_size_that_the_run_was_trained_at(tmp_path, monkeypatch, given, size):
    config = {"data": {"class_path": "x", "init_args": {"image_size": 64}}}
    content = {"state_dict": {}, "handrec_config": yaml.safe_dump(config)}
    torch.save(content, tmp_path / "a.ckpt")
    cv2.imwrite(str(tmp_path / "a.png"), np.full((84, 42, 3), 90, np.uint8))
    seen = []

    class Sees(torch.nn.Module):
        def reconstruct(self, batch):
            seen.append(tuple(batch.image.shape[-2:]))
            return types.SimpleNamespace(keypoints_2d=torch.rand(len(batch.image), 21, 2))

    monkeypatch.setattr(loading, "load_method", lambda path: Sees())
    assert main(["data", "keypoints", str(tmp_path), f"--ckpt={tmp_path / 'a.ckpt'}", *given]) == 0
    assert set(seen) == {(size, size)}
