"""Files of a detector: S2HAND's published format, and what is wrong with other files."""

import json
import logging

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from handrec.data.coco_hands import CocoHands
from handrec.data.detected import DetectedHands
from handrec.data.detections import (
    Detections,
    detected_boxes,
    find_images,
    one_for_each,
    read_detections,
)
from handrec.errors import UserError

WIDTH, HEIGHT = 60, 50
NAMES = ["00000002.png", "00000000.png", "00000001.png"]  # as the file has them: in no order


def made(count=3, seed=0):
    """Return keypoints and confidences as a detector says them: one above 1, one below 0."""
    random = np.random.default_rng(seed)
    keypoints = random.uniform(5, 45, (count, 21, 2)).round(2)
    confidence = random.uniform(0.2, 0.9, (count, 21, 1)).round(3)
    confidence[0, 3], confidence[0, 4] = 1.2, -0.1
    return keypoints.tolist(), confidence.tolist()


def write(path, names=NAMES, keypoints=None, confidence=None):
    given = made(len(names))
    parts = [keypoints or given[0], confidence or given[1], names]
    path.write_text(json.dumps(parts))
    return path


@pytest.fixture
def folder(tmp_path):
    for number in range(3):
        picture = np.full((HEIGHT, WIDTH, 3), 40 * (number + 1), np.uint8)
        cv2.imwrite(str(tmp_path / f"{number:08d}.png"), picture)
    write(tmp_path / "detect_all.json")
    return tmp_path


def build(folder, **options):
    cache = str(folder.parent / f"cache_{folder.name}")
    data = DetectedHands(
        str(folder), image_size=32, batch_size=1, num_workers=0, cache_dir=cache, **options
    )
    data.setup("fit")
    return data


def test_the_published_format(folder):
    found = read_detections(folder / "detect_all.json")
    keypoints, confidence = (np.array(x) for x in made())
    assert found.names == NAMES
    # Published pixels have integer centres; what has no confidence is absent.
    expected = keypoints + 0.5
    expected[0, 4] = 0
    np.testing.assert_allclose(found.keypoints, expected, atol=1e-5)
    np.testing.assert_allclose(found.confidence, confidence[..., 0].clip(0, 1), atol=1e-6)
    assert found.confidence[0, 3] == 1
    assert found.confidence[0, 4] == 0


def test_npz_and_json_say_the_same(folder):
    keypoints, confidence = made()
    np.savez(folder / "d.npz", keypoints=keypoints, confidence=confidence, names=np.array(NAMES))
    one, other = read_detections(folder / "detect_all.json"), read_detections(folder / "d.npz")
    assert one.names == other.names
    assert torch.equal(one.keypoints, other.keypoints)
    assert torch.equal(one.confidence, other.confidence)


def test_archives_that_are_none_are_named(folder):
    path = folder / "d.npz"
    np.savez(path, keypoints=np.zeros((1, 21, 2)))
    whole = path.read_bytes()
    np.save(folder / "array.npy", np.zeros(3))
    for content in (b"", whole[: len(whole) // 2], (folder / "array.npy").read_bytes(), whole):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"d\.npz: not a detector's file"):
            read_detections(path)


@pytest.mark.parametrize(
    "names", [NAMES, [2, 0, 1], [["2"], ["0"], ["1"]], ["a/00000002.jpg", "0", "1.png"]]
)
def test_entries_find_their_images_in_any_order(folder, names):
    write(folder / "detect_all.json", names)
    images = [f"{number:08d}.png" for number in range(3)]
    found = read_detections(folder / "detect_all.json")
    assert find_images(found, images, "file") == [2, 0, 1]
    assert one_for_each(found, images, "file").tolist() == [1, 2, 0]


def test_batches_are_of_the_file(folder):
    data = build(folder, crop="image", keypoints="rhd")
    table = data.tables["images"]
    assert [name.decode() for name in table.files] == NAMES
    batch = data.label(data.crops("train").__getitems__([0, 1]))
    keypoints, confidence = (np.array(x) for x in made())
    rows = [NAMES.index(table.files[i].decode()) for i in batch.sample_id.tolist()]
    # RHD has each finger from the tip to the base.
    order = [0, 4, 3, 2, 1, 8, 7, 6, 5, 12, 11, 10, 9, 16, 15, 14, 13, 20, 19, 18, 17]
    scale = 32 / WIDTH  # the square around a wide image
    expected = (keypoints[rows][:, order] + 0.5 + [0, (WIDTH - HEIGHT) / 2]) * scale
    weight = confidence[rows][:, order, 0].clip(0, 1)
    np.testing.assert_allclose(batch.keypoints_2d, expected * (weight > 0)[..., None], atol=1e-4)
    np.testing.assert_allclose(batch.confidence, weight, atol=1e-6)
    assert batch.has_joints_3d.sum() == batch.has_vertices.sum() == batch.has_mask.sum() == 0
    for i, row in enumerate(rows):  # each crop is of the image that its entry names
        level = 40 * (int(NAMES[row][:8]) + 1) / 255
        assert batch.image[i, :, 16, 16].mean().item() == pytest.approx(level, abs=0.01)


def test_boxes_are_around_confident_joints():
    keypoints = torch.rand(3, 21, 2, generator=torch.Generator().manual_seed(0)) * 20 + 10
    confidence = torch.full((3, 21), 0.8)
    keypoints[0, 5], confidence[0, 5] = torch.tensor([300.0, 300.0]), 0.05  # a stray one
    confidence[1] = 0
    confidence[2, 1:] = 0  # one joint is no box
    boxes = detected_boxes(keypoints, confidence, torch.tensor([[50, 60]] * 3))
    others = keypoints[0, [j for j in range(21) if j != 5]]
    assert torch.equal(boxes[0], torch.cat([others.amin(0), others.amax(0)]))
    assert boxes[1:].tolist() == [[0, 0, 60, 50]] * 2


def test_hands_without_a_confident_joint_are_kept_and_counted(folder, caplog):
    confidence = made()[1]
    confidence[1] = [[0.0]] * 21
    write(folder / "detect_all.json", confidence=confidence)
    with caplog.at_level(logging.WARNING):
        data = build(folder)
    assert "1 of 3 hands have no joint with a confidence above 0: they teach nothing" in caplog.text
    assert len(data.tables["images"]) == 3


def test_images_without_an_entry_are_left_out_and_counted(folder, caplog):
    write(folder / "detect_all.json", NAMES[:2])
    with caplog.at_level(logging.WARNING):
        data = build(folder)
    assert data.skipped == ["00000001.png"]
    assert "1 images have no entry and are left out, such as 00000001.png" in caplog.text


def test_cameras_are_known_if_they_are_given(folder):
    assert not build(folder).intrinsics_known
    (folder / "K.json").write_text(json.dumps([[80, 0, 31], [0, 81, 24], [0, 0, 1]]))
    data = build(folder, intrinsics="K.json")
    assert data.intrinsics_known
    assert data.tables["images"].labels.intrinsics[2].tolist() == [[80, 0, 31], [0, 81, 24],
                                                                    [0, 0, 1]]  # fmt: skip


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([*NAMES, "00000007.png"], "has 4 entries for 3 images: 1 are of none of them, the first"),
        (["x.png", "y.png", "z.png"], "3 are of none of them, the first is x.png"),
    ],
)
def test_files_of_other_images_are_refused(folder, names, message):
    write(folder / "detect_all.json", names)
    with pytest.raises(UserError, match=message):
        build(folder)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"images": []}, "not a detector's file: expected"),
        ([[], []], "not a detector's file: expected"),
        ([made(2)[0], made(3)[1], NAMES], "keypoints are 2 x 21 x 2, expected 3 x 21 x 2"),
        ([made(3)[0], made(2)[1], NAMES], "confidences are 2 x 21 x 1, expected 3 x 21"),
        ([[[[1, 2]] * 20] * 3, made(3)[1], NAMES], "keypoints are 3 x 20 x 2, expected"),
        ([made(3)[0], [[None] * 21] * 3, NAMES], "entry 0: confidences are not finite"),
        ([made(3)[0], [["x"] * 21] * 3, NAMES], "confidences are not equal rows of numbers"),
        ([[], [], NAMES], "keypoints are 0, expected 3 x 21 x 2 for 3 names"),
    ],
)
def test_broken_files_are_refused(folder, parts, message):
    (folder / "detect_all.json").write_text(json.dumps(parts))
    with pytest.raises(UserError, match=message):
        build(folder)


def test_several_files_and_none_are_refused(folder):
    write(folder / "other.json")
    with pytest.raises(UserError, match=r"there is detect_all.json, other.json: choose"):
        build(folder)
    for name in ("other.json", "detect_all.json"):
        (folder / name).unlink()
    with pytest.raises(UserError, match="there is none: choose with"):
        build(folder)


def test_images_of_phones_have_the_size_that_they_are_decoded_to(folder):
    path = folder / "00000001.jpg"
    (folder / "00000001.png").unlink()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: rows are stored as columns
    Image.new("RGB", (HEIGHT, WIDTH)).save(path, exif=exif)
    write(folder / "detect_all.json", ["0", "1", "2"])
    data = build(folder)
    assert data.tables["images"].labels.image_size.tolist() == [[HEIGHT, WIDTH]] * 3
    crops = data.crops("train")
    crops.samples = torch.arange(3)
    assert not isinstance(crops.__getitems__([0, 1, 2]), str)


@pytest.mark.parametrize("share", [-0.1, 1.0, 7.0])
def test_a_share_is_below_one(folder, share):
    with pytest.raises(UserError, match=r"val_share must lie in \[0, 1\), not"):
        build(folder, val_share=share)
    with pytest.raises(UserError, match=r"val_share must lie in \[0, 1\), not"):
        CocoHands(str(folder), val_share=share)


def test_names_that_two_images_share_are_refused(folder):
    (folder / "b").mkdir()
    (folder / "00000001.png").rename(folder / "b" / "00000002.png")
    with pytest.raises(UserError, match=r"00000001.png|may be .* name it with its folder"):
        build(folder)
    write(folder / "detect_all.json", ["2", "0"])
    with pytest.raises(UserError, match=r"2 may be 00000002.png or b/00000002.png: name it"):
        build(folder)
    write(folder / "detect_all.json", ["b/00000002.png", "0"])
    assert len(build(folder).tables["images"]) == 2


def test_every_image_wants_one_entry():
    found = read_once(["0", "0", "1"])
    with pytest.raises(UserError, match=r"file: 0.png has several entries, expected one"):
        one_for_each(found, ["0.png", "1.png"], "file")
    with pytest.raises(UserError, match=r"3 entries for 3 images: 1 have none, the first is 7.png"):
        one_for_each(found, ["0.png", "1.png", "7.png"], "file")


def read_once(names):
    return Detections(names, torch.zeros(len(names), 21, 2), torch.zeros(len(names), 21))
