"""``handrec data texture``: what it writes and refuses."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from handrec.cli.main import main
from tests.fitting.scenes import Scene, scene


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
    ):
        assert texture(folder, *words) == 2
        error = capsys.readouterr().err.strip()
        assert message in error, error
        assert error.startswith("handrec: error: ")
        assert "\n" not in error
    assert not (folder / "a.png").exists()
