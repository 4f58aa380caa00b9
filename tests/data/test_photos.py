import json
import logging

import cv2
import numpy as np
import pytest
import torch

from handrec.data.crops import default_intrinsics
from handrec.data.photos import Photos
from handrec.errors import UserError


def write_image(path, height=120, width=160, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    cv2.imwrite(str(path), cv2.resize(coarse, (width, height)))


@pytest.fixture
def folder(tmp_path):
    write_image(tmp_path / "photos/a.png", seed=1)
    write_image(tmp_path / "photos/b.png", 90, 200, seed=2)
    return tmp_path / "photos"


def write_json(folder, content):
    path = folder.parent / "given.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def ready(*args, **options):
    photos = Photos(*args, **{"image_size": 32, **options})
    photos.setup("predict")
    return photos


def test_without_boxes_each_photo_is_one_crop_of_everything(folder):
    photos = ready(str(folder), side="left")
    (batch,) = photos.predict_dataloader()
    assert [item.name for item in photos.items] == ["a.png", "b.png"]
    assert photos.items[1].square == (0, -55, 200, 145)
    assert batch.image.shape == (2, 3, 32, 32)
    assert batch.is_left.tolist() == [1, 1]
    assert batch.sample_id.tolist() == [0, 1]
    corners = torch.tensor([[0.0, 0, 1], [32, 32, 1]])
    image_corners = corners @ batch.crop_to_image[1].T
    torch.testing.assert_close(image_corners[:, :2], torch.tensor([[200.0, -55], [0, 145]]))


def test_several_hands_of_one_photo_left_ones_mirrored(folder):
    box = [30.0, 20.0, 110.0, 90.0]
    boxes = {"a.png": [{"box": box, "side": "right"}, {"box": box, "side": "left"}], "b.png": []}
    photos = ready(str(folder), boxes=write_json(folder, boxes))
    (batch,) = photos.predict_dataloader()
    assert [item.side for item in photos.items] == ["right", "left"]
    assert [item.box for item in photos.items] == [tuple(box)] * 2
    torch.testing.assert_close(batch.image[1], batch.image[0].flip(-1), atol=1.01 / 255, rtol=0)
    assert batch.is_left.tolist() == [0, 1]
    assert photos.unboxed == []


def test_every_label_is_absent(folder):
    (batch,) = ready(str(folder)).predict_dataloader()
    labels = batch._asdict()
    for name in ("image", "intrinsics", "crop_to_image", "sample_id", "sequence"):
        labels.pop(name)
    assert all(not value.any() for value in labels.values())
    assert batch.vertices.shape == (2, 1, 3)
    assert batch.mask.shape == (2, 1, 32, 32)


@pytest.mark.parametrize("side", ["right", "left"])
def test_point_projects_alike_into_photo_and_crop(folder, side):
    camera = [[150.0, 0, 75], [0, 140, 66], [0, 0, 1]]
    boxes = folder.parent / "boxes.json"
    boxes.write_text(json.dumps({"a.png": [{"box": [20, 10, 90, 100], "side": side}]}))
    photos = ready(str(folder), boxes=str(boxes), intrinsics=write_json(folder, {"a.png": camera}))
    (batch,) = photos.predict_dataloader()
    point = torch.tensor([0.02, -0.03, 0.5])
    seen = point * torch.tensor([-1.0 if side == "left" else 1.0, 1, 1])
    in_crop = batch.intrinsics[0] @ seen
    in_photo = batch.crop_to_image[0] @ (in_crop / in_crop[2])
    expected = torch.tensor(camera) @ point
    torch.testing.assert_close(in_photo, expected / expected[2], rtol=0, atol=1e-3)


def test_intrinsics_given_for_some_for_all_or_not_at_all(folder):
    camera = [[150.0, 0, 75], [0, 140, 66], [0, 0, 1]]
    some = ready(str(folder), intrinsics=write_json(folder, {"b.png": camera})).items
    assert [item.intrinsics_given for item in some] == [False, True]
    np.testing.assert_array_equal(some[0].intrinsics, default_intrinsics(120, 160))
    np.testing.assert_array_equal(some[1].intrinsics, camera)
    for item in ready(str(folder), intrinsics=write_json(folder, camera)).items:
        np.testing.assert_array_equal(item.intrinsics, camera)


def test_unreadable_photos_are_skipped_and_named(folder):
    (folder / "broken.jpg").write_bytes(b"not an image")
    (folder / "empty.jpg").touch()
    (folder / "notes.txt").write_text("not looked at")
    (folder / "._a.png").write_bytes(b"hidden")
    photos = ready(str(folder))
    assert [item.name for item in photos.items] == ["a.png", "b.png"]
    assert len(photos.skipped) == 2
    assert "broken.jpg" in photos.skipped[0]
    assert "empty.jpg" in photos.skipped[1]


def test_a_single_photo_may_come_with_the_boxes_of_its_folder(folder):
    boxes = {"a.png": [{"box": [0, 0, 100, 100]}], "b.png": [{"box": [0, 0, 70, 70]}]}
    photos = ready(str(folder / "b.png"), boxes=write_json(folder, boxes))
    assert [item.name for item in photos.items] == ["b.png"]


def test_folders_are_looked_into_when_asked(folder):
    write_image(folder / "trip/a.PNG")
    assert [item.name for item in ready(str(folder)).items] == ["a.png", "b.png"]
    deep = ready(str(folder), recursive=True)
    assert [item.name for item in deep.items] == ["a.png", "b.png", "trip/a.PNG"]


def test_photos_without_an_entry_are_left_out_and_listed(folder):
    boxes = write_json(folder, {"b.png": [{"box": [0, 0, 80, 80]}]})
    photos = ready(str(folder), boxes=boxes)
    assert [item.name for item in photos.items] == ["b.png"]
    assert photos.unboxed == ["a.png"]


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([200, 0, 300, 90], r"a\.png: box \[200.*outside the image \(160 x 120"),
        ([0, -90, 90, 0], "outside the image"),
        ([-1e5, -1e5, 1e5, 1e5], "far larger than the image"),
        ([90, 0, 20, 90], r"a\.png: box \[90.* is inverted"),
        ([0, 90, 90, 20], "is inverted"),
        ([50, 50, 57.9, 90], r"a\.png: box .* is smaller than 8 pixels"),
        ([0, 0, 90], r"a\.png, hand 0: box is not \[x1, y1, x2, y2\]"),
        ([0, 0, float("nan"), 90], "box is not"),
        ("all", "box is not"),
    ],
)
def test_boxes_that_can_hold_no_hand_are_refused(folder, box, message):
    with pytest.raises(UserError, match=message) as error:
        ready(str(folder), boxes=write_json(folder, {"a.png": [{"box": box}]}))
    assert "\n" not in str(error.value)


def test_a_box_that_can_hold_no_hand_does_not_stop_the_others(folder):
    good, flat = {"box": [0, 0, 90, 90]}, {"box": [5, 40, 60, 40]}
    boxes = {"a.png": [flat, good], "b.png": [flat]}
    photos = ready(str(folder), boxes=write_json(folder, boxes))
    assert [(item.name, item.box) for item in photos.items] == [("a.png", (0, 0, 90, 90))]
    assert [line.split(" is ")[0] for line in photos.unusable] == [
        f"{name}: box [5.0, 40.0, 60.0, 40.0]" for name in ("a.png", "b.png")
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a.png": [\n{"box": [0, 0, 9 9]}]}', r"given\.json: line 2, column 18"),
        ('{"a.png": [], "a.png": []}', r"'a\.png' comes twice"),
        ({"c.png": [], "d.png": []}, r"not in .*photos .*: c\.png, d\.png"),
        ({"a.png": [{"box": [0, 0, 90, 90], "side": "links"}]}, 'side is neither .* "links"'),
        ({"a.png": [{"box": [0, 0, 90, 90], "Side": "left"}]}, 'wants the keys "box" and "side"'),
        ({"a.png": [[0, 0, 90, 90]]}, "wants the keys"),
        ({"a.png": {"box": [0, 0, 90, 90]}}, r"a\.png: not a list of hands"),
        ([], "not of the form"),
        ({"a.png": []}, "nothing to predict"),
    ],
)
def test_malformed_boxes_are_refused(folder, content, message):
    with pytest.raises(UserError, match=message):
        ready(str(folder), boxes=write_json(folder, content))


@pytest.mark.parametrize(
    "content",
    [
        [[1, 0, 0], [0, 1, 0]],
        {"a.png": [[0, 0, 5], [0, 9, 5], [0, 0, 1]]},
        [[9, 0, 5], [0, 9, 5], [0, 0, 2]],
        "7",
    ],
)
def test_malformed_intrinsics_are_refused(folder, content):
    with pytest.raises(UserError, match="not a camera matrix"):
        ready(str(folder), intrinsics=write_json(folder, content))


def test_partly_outside_is_allowed_and_small_is_warned_about(folder, caplog):
    boxes = {"a.png": [{"box": [-40, -20, 60, 60]}, {"box": [10, 10, 60, 70]}]}
    with caplog.at_level(logging.WARNING):
        photos = ready(str(folder), boxes=write_json(folder, boxes))
    assert len(photos.items) == 2
    (record,) = caplog.records
    assert "a.png: box [10.0, 10.0, 60.0, 70.0] is smaller than 64 pixels" in record.message


def test_missing_inputs_are_named(folder, tmp_path):
    with pytest.raises(UserError, match="nowhere: no such image or folder"):
        ready(str(tmp_path / "nowhere"))
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match="bare: no images"):
        ready(str(tmp_path / "bare"))
    with pytest.raises(UserError, match=r"no\.json: No such file"):
        ready(str(folder), boxes=str(tmp_path / "no.json"))
    (tmp_path / "bare/broken.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"nothing to predict .*broken\.png"):
        ready(str(tmp_path / "bare"))


def test_photos_serve_predict_only(folder):
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        with pytest.raises(UserError, match="predict only"):
            getattr(ready(str(folder)), loader)()
