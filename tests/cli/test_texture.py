"""``handrec data texture``: what it writes and refuses."""

import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from handrec.cli.main import main
from handrec.errors import UserError
from handrec.fitting.photographed import PhotographedHand, read_fit, view_of
from handrec.fitting.unproject import unproject
from handrec.hand.openhand import OpenHand
from handrec.render.warp_backend import WarpRasterizer
from tests.fitting.scenes import LIGHT, Scene, scene


@pytest.fixture(scope="module")
def photo() -> Scene:
    return scene("relaxed", (0.2, 0.3, 0))


@pytest.fixture
def folder(tmp_path: Path, photo: Scene) -> Path:
    """A photo and its mirror image: the same hand, once a right one and once a left one."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "joints").mkdir()
    (tmp_path / "K.json").write_text(json.dumps(photo.intrinsics.tolist()))
    mirrored = photo.keypoints.clone()
    mirrored[:, 0] = photo.photo.shape[1] - mirrored[:, 0]
    for name, image, joints in (
        ("right", photo.photo, photo.keypoints),
        ("left", photo.photo[:, ::-1], mirrored),
    ):
        cv2.imwrite(str(tmp_path / "photos" / f"{name}.png"), image[..., ::-1])
        (tmp_path / "joints" / f"{name}.json").write_text(json.dumps(joints.tolist()))
    return tmp_path


def texture(folder: Path, *words: str) -> int:
    return main(["data", "texture", *(word.format(folder) for word in words)])


def test_it_reads_what_fit_image_wrote_and_fits_alike(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for side in ("right", "left"):
        joints, image = folder / f"joints/{side}.json", folder / f"photos/{side}.png"
        out, camera = str(folder / "fits"), str(folder / "K.json")
        words = ["--keypoints", str(joints), "--out", out, "--camera", camera, "--side", side]
        assert main(["fit-image", str(image), *words, "--steps", "10"]) == 0
    common = ("--size", "64")
    photos = ("--images", "{}/photos", "--fits", "{}/fits", "--out", "{}/skins/mine.png")
    assert texture(folder, *photos, *common) == 0
    said = capsys.readouterr().out
    assert "copied by symmetry" in said
    written = cv2.imread(str(folder / "skins/mine.png"))
    assert written.shape == (64, 64, 3)
    assert cv2.imread(str(folder / "skins/mine_views.png")).shape[1] > 4 * 300
    report = json.loads((folder / "skins/mine.json").read_text())
    assert report["hand_model"] == "OpenHand"
    assert report["coverage"]["seen"] > 0.15
    assert sum(report["coverage"].values()) == pytest.approx(1, abs=1e-3)
    shares = {source["photo"]: source["share"] for source in report["sources"]}
    # They show the same, but for rounding, so each has half a share.
    assert shares == {
        "left.png": pytest.approx(0.5, abs=0.1),
        "right.png": pytest.approx(0.5, abs=0.1),
    }
    words = ("--images", "{}/photos/right.png", "--keypoints", "{}/joints", "--out", "{}/one.png")
    fitted = ("--steps", "10", "--camera", "{}/K.json")
    assert texture(folder, *words, *common, *fitted) == 0
    one = cv2.imread(str(folder / "one.png")).astype(float)
    assert np.abs(one - written).mean() < 6  # levels of 255


def test_mistakes_are_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "photos/notes.png").write_text("no image")
    (folder / "fits").mkdir()
    (folder / "fits/right.json").write_text("{}")
    (folder / "photos/copy.png").write_bytes((folder / "photos/right.png").read_bytes())
    two = ("--images", "{}/photos/right.png", "{}/photos/copy.png")
    one = ("--keypoints", "{}/joints/right.json")
    images, out = ("--images", "{}/photos/right.png"), ("--out", "{}/a.png")
    fits, joints = ("--fits", "{}/fits"), ("--keypoints", "{}/joints")
    for words, message in (
        ((*images, *fits, "--out", "{}/a.jpg"), "ends in .png"),
        ((*images, *fits, *out, "--size", "8"), "between 32 and 4096"),
        ((*images, *joints, *out, "--steps", "-1"), "must not be negative"),
        ((*images, "--fits", "{}/none", *out), "none: there is no such file or folder"),
        ((*images, *fits, *out), "right.json: not what handrec fit-image writes"),
        (("--images", "{}/photos/left.png", *fits, *out), "left.png: there is no"),
        (("--images", "{}/none", *fits, *out), "none: no such image or folder"),
        (("--images", "{}/photos/notes.png", *joints, *out), "notes.png: there is no"),
        ((*images, *fits, "--out", "{}/K.json/a.png"), "cannot write here"),
        ((*images, *fits, *out, "--device", "toaster"), "--device toaster: not here"),
        ((*images, *fits, *out, "--side", "left"), "leave out --camera and --side"),
        ((*two, *one, *out), "right.json: one list of joints for 2 photos"),
        ((*images, *fits, "--out", "{}/photos/right.png"), "over .*photos/right.png, which is re"),
        ((*images, *fits, "--out", "{}/fits/right.png"), "over .*fits/right.json, which is read"),
        ((*images, *joints, "--out", "{}/joints/right.png"), "over .*joints/right.json, which"),
    ):
        assert texture(folder, *words) == 2
        error = capsys.readouterr().err.strip()
        assert re.search(message, error), error
        assert error.startswith("handrec: error: ")
        assert "\n" not in error
    assert not (folder / "a.png").exists()


def test_photos_of_one_name_and_videos_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rest = ("--keypoints", "{}/joints", "--out", "{}/mine.png")
    assert texture(folder, "--images", "{}/photos", "{}/photos/left.png", *rest) == 2
    assert "2 photos are called left: what is known of one" in capsys.readouterr().err
    assert texture(folder, "--images", "{}/clip.mp4", *rest) == 2
    assert "is a video: `handrec data keypoints" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"side": "Left"}, "side 'Left'"),
        ({"betas": [0.0] * 9}, r"\(1, 9\) numbers where \(1, 10\) finite"),
        ({"pose_matrix": [[[1.0, 0.0]] * 3] * 16}, "not what handrec fit-image writes"),
        ({"translation": [0.0, 0.0, float("nan")]}, "finite ones are wanted"),
    ],
)
def test_fits_of_another_form_are_refused(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    hand = {
        "side": "right", "pose_matrix": torch.eye(3).expand(16, 3, 3).tolist(),
        "betas": [0.0] * 10, "translation": [0.0, 0.0, 0.5], "joints_2d": [[0.0, 0.0]] * 21,
    }  # fmt: skip
    light = {name: [1.0, 1.0, 1.0] for name in ("ambient", "directional", "direction")}
    whole = {"hand_model": "OpenHand", "light": light, "intrinsics": np.eye(3).tolist()}
    path = tmp_path / "hand.json"
    path.write_text(json.dumps({**whole, "hands": [hand]}))
    assert read_fit(path, tmp_path / "hand.jpg").side == "right"
    path.write_text(json.dumps({**whole, "hands": [hand | change]}))
    with pytest.raises(UserError, match=said):
        read_fit(path, tmp_path / "hand.jpg")


def test_distant_hands_weigh_as_little_as_they_show(photo: Scene, tmp_path: Path) -> None:
    """The same photo at a third of its size: a ninth of the pixels."""
    hand, weights = OpenHand(), []
    for share in (1.0, 1 / 3):
        size = tuple(round(share * side) for side in photo.photo.shape[1::-1])
        path = tmp_path / f"{size[0]}.png"
        small = cv2.resize(photo.photo, size, interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(path), small[..., ::-1])
        matrix = np.diag([share, share, 1.0]) @ photo.intrinsics
        joints = np.column_stack([share * photo.keypoints.numpy(), np.ones(21)])
        found = PhotographedHand(path, "right", matrix, joints, *photo.parameters, LIGHT)
        view, _ = view_of(hand, found, WarpRasterizer(), 192)
        weights.append(unproject(hand, view, WarpRasterizer(), 64).weight.sum())
    assert weights[0] / weights[1] == pytest.approx(9, rel=0.3)
