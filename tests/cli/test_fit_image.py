"""``handrec fit-image``: what it writes and refuses."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from handrec.cli.main import main
from handrec.hand.openhand import OpenHand
from tests.fitting.scenes import Scene, scene


@pytest.fixture(scope="module")
def photo() -> Scene:
    return scene("relaxed", (0.2, 0.3, 0))


@pytest.fixture
def files(tmp_path: Path, photo: Scene) -> tuple[Path, Path]:
    image, joints = tmp_path / "hand.png", tmp_path / "hand_joints.json"
    cv2.imwrite(str(image), photo.photo[..., ::-1])
    joints.write_text(json.dumps(photo.keypoints.tolist()))
    return image, joints


def fit(image: Path, joints: Path, *more: str) -> int:
    return main(["fit-image", str(image), "--keypoints", str(joints), *more])


def test_it_writes_pictures_mesh_and_numbers(
    files: tuple[Path, Path], tmp_path: Path, photo: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    camera = tmp_path / "K.json"
    camera.write_text(json.dumps({"hand.png": photo.intrinsics.tolist()}))
    assert fit(*files, "--out", str(out), "--steps", "10", "--camera", str(camera)) == 0
    assert "no --camera" not in capsys.readouterr().out
    report = json.loads((out / "hand.json").read_text())
    assert report["intrinsics"] == photo.intrinsics.tolist()
    assert report["fit"]["reprojection_error_of_box"] < 0.02
    found = np.array(report["hands"][0]["joints_2d"])
    off = np.linalg.norm(found - photo.keypoints.numpy(), axis=1).mean()
    assert report["fit"]["reprojection_error_px"] == pytest.approx(off, abs=0.01)
    with Image.open(out / "hand_fit.webp") as animation:
        assert animation.n_frames == 3  # the start of each segmentation's five steps, and the end
    assert cv2.imread(str(out / "hand_overlay.png")).shape[1] > 1000
    mesh = trimesh.load(out / "hand.glb", force="mesh")
    assert mesh.visual.material.baseColorTexture.size == (128, 128)
    plain = trimesh.load(out / "hand.obj", process=False)
    upright = np.sort(plain.bounds * (1, -1, -1), axis=0)
    np.testing.assert_allclose(mesh.bounds, upright, atol=1e-5)


def test_a_left_hand_is_the_mirror_image(
    files: tuple[Path, Path], tmp_path: Path, photo: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    image, joints = files
    width = photo.photo.shape[1]
    cv2.imwrite(str(image), photo.photo[:, ::-1, ::-1])
    mirrored = photo.keypoints.clone()
    mirrored[:, 0] = width - mirrored[:, 0]
    joints.write_text(json.dumps(mirrored.tolist()))
    assert fit(image, joints, "--out", str(tmp_path), "--steps", "0", "--side", "left") == 0
    assert "no --camera" in capsys.readouterr().out
    hand = json.loads((tmp_path / "hand.json").read_text())["hands"][0]
    assert hand["side"] == "left"
    off = np.linalg.norm(np.array(hand["joints_2d"]) - mirrored.numpy(), axis=1)
    assert off.mean() < 1
    truth = photo.hand.joints[0].numpy() * (-1, 1, 1)
    found = np.array(hand["joints_3d"])
    apart = (found - found.mean(0)) - (truth - truth.mean(0))
    assert np.linalg.norm(apart, axis=1).mean() < 0.01
    plain = trimesh.load(tmp_path / "hand.obj", process=False)
    textured = trimesh.load(tmp_path / "hand.glb", force="mesh", process=False)
    assert plain.volume > 0  # faces outwards
    assert textured.volume > 0
    hand_model = OpenHand()  # every corner has one of the UVs that the model gives its vertex
    pairs = torch.stack([hand_model.faces, hand_model.uv_faces], -1).flatten(0, 1).unique(dim=0)
    known = torch.cat([torch.tensor(plain.vertices)[pairs[:, 0]], hand_model.uv[pairs[:, 1]]], 1)
    corners = np.column_stack([textured.vertices * (1, -1, -1), textured.visual.uv])
    assert len(corners) == len(known)
    assert torch.cdist(torch.tensor(corners), known).amin(1).max() < 1e-4


def test_mistakes_are_one_line(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, joints = files
    text = tmp_path / "notes.txt"
    text.write_text("no image")
    replaced = tmp_path / "hand.json"
    replaced.write_bytes(joints.read_bytes())
    camera = tmp_path / "K.json"
    camera.write_text('{"other.png": [[1, 0, 0], [0, 1, 0], [0, 0, 1]]}')
    for words, message in (
        ((tmp_path / "absent.png", joints), "absent.png"),
        ((text, joints), "notes.txt: not an image"),
        ((image, text), "notes.txt: line 1"),
        ((image, joints, "--camera", str(camera)), "no camera of hand.png"),
        ((image, joints, "--out", str(text)), "cannot write here"),
        ((image, joints, "--device", "cuda:99"), "--device cuda:99: not here"),
        ((image, joints, "--device", "toaster"), "--device toaster: not here"),
        ((image, joints, "--steps", "-1"), "must not be negative"),
        ((image, replaced, "--out", str(tmp_path)), "hand.json, which is read"),
    ):
        assert fit(*words) == 2
        error = capsys.readouterr().err.strip()
        assert message in error
        assert error.startswith("handrec: error: ")
        assert "\n" not in error
