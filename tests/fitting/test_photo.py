"""Keypoint files, and crops around them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from handrec.errors import UserError
from handrec.fitting.photo import crop_hand, read_keypoints
from handrec.geometry.camera import project

POINTS = [[10.0 + 4 * i, 20.0 + 3 * i] for i in range(21)]
SIZE = (100, 120)


def flat(rows: list[list[float]], visibility: float = 1) -> list[float]:
    return [x for row in rows for x in (*row, visibility)]


def coco(*annotations: tuple[str, Any]) -> dict[str, Any]:
    return {
        "images": [{"id": i, "file_name": f"a/{n}"} for i, (n, _) in enumerate(annotations)],
        "annotations": [{"image_id": i, "keypoints": k} for i, (_, k) in enumerate(annotations)],
    }


def read(tmp_path: Path, content: Any) -> np.ndarray:
    file = tmp_path / "joints.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_keypoints(file, "b.jpg", SIZE)


@pytest.mark.parametrize(
    "content",
    [
        POINTS,
        [[*row, 1] for row in POINTS],
        coco(("c.jpg", flat([[0, 0]] * 21)), ("b.jpg", flat(POINTS))),
        coco(("b.jpg", flat(POINTS, visibility=2))),
    ],
)
def test_lists_and_coco_files_say_the_same(tmp_path: Path, content: Any) -> None:
    expected = np.column_stack([POINTS, np.ones(21)])
    np.testing.assert_array_equal(read(tmp_path, content), expected)


def test_confidence_is_kept_and_absent_joints_have_none(tmp_path: Path) -> None:
    rows = [[*row, 0.5] for row in POINTS]
    rows[3] = [0, 0, 0]
    found = read(tmp_path, rows)
    assert found[3, 2] == 0
    assert (np.delete(found[:, 2], 3) == 0.5).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (POINTS[:20], "20 joints; 21 are wanted"),
        (coco(("b.jpg", flat(POINTS)[:-3])), "20 joints; 21 are wanted"),
        (coco(("b.jpg", flat(POINTS)[:-1])), "62 numbers for b.jpg: 63 are wanted"),
        (coco(("c.jpg", flat(POINTS))), "no annotation for b.jpg"),
        (coco(("b.jpg", flat(POINTS)), ("b.jpg", flat(POINTS))), "2 annotations for b.jpg"),
        (coco(("b.jpg", None)), "not a list"),
        ({"images": 3}, "neither a list of 21"),
        ("7", "neither a list of 21"),
        (coco(("b.jpg", flat(POINTS, visibility=0))), "0 of 21 joints of b.jpg are visible"),
        ([[*row, float(i < 3)] for i, row in enumerate(POINTS)], "3 of 21 joints"),
        (json.dumps(POINTS).replace("10.0", "NaN"), "joint 0 is not finite"),
        ([[x + 900, y] for x, y in POINTS], "far outside the image"),
        ([[50.0, 50.0]] * 21, "too small a hand"),
        ([["a", 1]] * 21, r"not all \[x, y\]"),
        ([[1.0]] * 21, r"not all \[x, y\]"),
        ([*POINTS[:20], [1.0]], r"not all \[x, y\]"),
        ("[[1, 2", "line 1"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, content)
    assert "\n" not in str(caught.value)
    assert "joints.json" in str(caught.value)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no\.json"):
        read_keypoints(tmp_path / "no.json", "b.jpg", SIZE)


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_crop_shows_what_its_camera_and_keypoints_say(side: Any) -> None:
    """White squares around the joints are found in the crop where its keypoints are."""
    matrix = np.array([[200.0, 0, 70], [0, 200, 40], [0, 0, 1]])
    points = np.array([[10.5 + 4 * i, 20.5 + 3 * (i % 7)] for i in range(21)])
    image = np.zeros((*SIZE, 3), np.uint8)
    for x, y in points.astype(int):
        image[y - 1 : y + 2, x - 1 : x + 2] = 255
    batch = crop_hand(image, np.column_stack([points, np.ones(21)]), matrix, side, 240)
    assert float(batch.is_left) == (side == "left")
    for x, y in batch.keypoints_2d[0].int().tolist():
        assert batch.image[0, 0, y, x] > 0.8
    depth = np.linspace(0.4, 0.6, 21)[:, None]
    rays = np.column_stack([points, np.ones(21)]) @ np.linalg.inv(matrix).T * depth
    rays[:, 0] *= -1 if side == "left" else 1  # as the crop sees a left hand
    seen = project(torch.from_numpy(rays).float()[None], batch.intrinsics)
    torch.testing.assert_close(seen, batch.keypoints_2d, atol=1e-3, rtol=0)
