"""COCO-style keypoints: orders by name, sides, flags, boxes; and every way of being wrong."""

import json

import cv2
import numpy as np
import pytest
import torch
from tests.sets import SIZE, drawn, everything, hand_model, prepared, rows

from handrec.data.coco_hands import CocoHands
from handrec.data.keypoint_orders import PRESETS, canonical_name, to_canonical
from handrec.data.layouts import COCO_NAMES, write_coco
from handrec.errors import UserError
from handrec.hand.joints import JOINTS


@pytest.fixture
def root(tmp_path):
    write_coco(tmp_path / "set", [rows(drawn("OpenHand"), 0, 6)], hand_model("OpenHand"))
    return tmp_path / "set"


def reader(root, **options):
    options = {"image_size": SIZE, "batch_size": 2, "num_workers": 0} | options
    return CocoHands(str(root), cache_dir=str(root.parent / "cache"), **options)


def edit(root, change):
    path = root / "annotations.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def complaint(root, change, **options):
    edit(root, change)
    with pytest.raises(UserError) as caught:
        reader(root, **options).setup("fit")
    return str(caught.value)


def test_keypoints_survive_and_left_hands_become_right_ones(root):
    batch = rows(drawn("OpenHand"), 0, 6)
    read = everything(prepared(reader(root, crop="image")), "annotations")
    assert read.is_left.tolist() == [0, 1, 0, 1, 0, 1]
    torch.testing.assert_close(read.keypoints_2d, batch.keypoints_2d, atol=1e-4, rtol=0)
    assert (read.image - batch.image).abs().mean() < 0.01  # mirrored back
    assert read.confidence.all()
    torch.testing.assert_close(read.visibility, batch.visibility)
    assert read.has_visibility.all()
    for name in ("joints_3d", "vertices", "pose", "mask"):
        assert not getattr(read, f"has_{name}").any()
        assert not getattr(read, name).any()


def test_crops_are_around_the_box(root):
    read = everything(prepared(reader(root, box_scale=1.25)), "annotations")
    extent = (read.keypoints_2d.amax(1) - read.keypoints_2d.amin(1)).amax(1)
    torch.testing.assert_close(extent * 1.25, torch.full((6,), float(SIZE)))
    back = torch.einsum("bij,bnj->bni", read.crop_to_image[:, :2, :2], read.keypoints_2d)
    back += read.crop_to_image[:, None, :2, 2]
    points = json.loads((root / "annotations.json").read_text())["annotations"][1]["keypoints"]
    expected = torch.tensor(points).view(21, 3)[:, :2] + 0.5
    torch.testing.assert_close(back[1], expected, atol=1e-3, rtol=0)  # in the unmirrored image


def test_flags(root):
    def hide(content):
        first, second = content["annotations"][:2]
        first["keypoints"][3 * 4 : 3 * 5] = [0, 0, 0]
        second["keypoints"][2::3] = [1] * 21

    edit(root, hide)
    read = everything(prepared(reader(root)), "annotations")
    assert read.confidence[0].tolist() == [1] * 4 + [0] + [1] * 16
    assert not read.keypoints_2d[0, 4].any()
    assert not read.visibility[1].any()
    assert read.has_visibility.all()
    edit(
        root,
        lambda content: [
            a["keypoints"].__setitem__(slice(2, None, 3), [1] * 21) for a in content["annotations"]
        ],
    )
    assert not everything(prepared(reader(root)), "annotations").has_visibility.any()


@pytest.mark.parametrize("named", [True, False])
def test_other_orders(root, named):
    """Tip to base, as RHD has it, by the names in the file or by the name of the order."""
    names = [COCO_NAMES[JOINTS.index(canonical_name(name))] for name in PRESETS["rhd"]]
    expected = everything(prepared(reader(root)), "annotations").keypoints_2d

    def shuffle(content):
        place = [COCO_NAMES.index(name) for name in names]
        for entry in content["annotations"]:
            points = np.array(entry["keypoints"]).reshape(21, 3)[place]
            entry["keypoints"] = points.flatten().tolist()
        content["categories"] = [{"keypoints": names}] if named else []

    edit(root, shuffle)
    read = everything(prepared(reader(root, keypoints=None if named else "rhd")), "annotations")
    torch.testing.assert_close(read.keypoints_2d, expected)


def test_an_order_that_contradicts_the_files_names_is_refused(root):
    said = complaint(root, lambda content: None, keypoints="rhd")
    assert "annotations.json names its keypoints (wrist, thumb1, ...), in another order" in said
    reader(root, keypoints="freihand").setup("fit")  # the same order
    edit(root, lambda c: c["categories"][0]["keypoints"].__setitem__(3, "nose"))
    reader(root, keypoints="rhd").setup("fit")  # names that say nothing


def test_presets_are_the_published_orders():
    # Indices into the set's order, as other projects have them written down.
    rhd = [0, 4, 3, 2, 1, 8, 7, 6, 5, 12, 11, 10, 9, 16, 15, 14, 13, 20, 19, 18, 17]
    interhand = [20, 3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8, 15, 14, 13, 12, 19, 18, 17, 16]
    ho3d = [0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20]
    for name, expected in {"rhd": rhd, "interhand26m": interhand, "ho3d": ho3d}.items():
        assert to_canonical(PRESETS[name], name) == expected
    assert to_canonical(COCO_NAMES, "mmpose") == list(range(21))


def test_whole_body_annotations_have_two_hands(root):
    def whole_body(content):
        hands = zip(("left", "right"), content["annotations"][:2], strict=True)
        person = {"image_id": 0, "iscrowd": 0}
        for side, hand in hands:
            person[f"{side}hand_box"] = hand["bbox"]
            person[f"{side}hand_kpts"] = hand["keypoints"]
        content["annotations"] = [
            {**person, "id": 7, "lefthand_valid": True, "righthand_valid": True},
            {**person, "id": 8, "lefthand_valid": False, "righthand_valid": True},
            {"image_id": 0, "id": 9, "righthand_valid": True,
             "righthand_kpts": person["righthand_kpts"], "righthand_box": person["righthand_box"]},
            {"image_id": 0, "id": 10, "lefthand_valid": True, "lefthand_kpts": [0.0] * 63},
        ]  # fmt: skip
        content["categories"] = [{"name": "person", "keypoints": ["nose"] * 17}]

    edit(root, whole_body)
    data = prepared(reader(root))
    assert data.tables["annotations"].labels.is_left.tolist() == [1, 0, 0, 0]


def test_copies_of_a_picture_are_on_one_side_of_the_split(root):
    def copy(content):
        for version in (1, 2):
            for entry in content["annotations"][:6]:
                number = entry["id"] + 100 * version
                content["annotations"].append({**entry, "id": number, "image_id": number})
                image = {**content["images"][entry["id"]], "id": number}
                image["file_name"] = f"copy{version}/{image['file_name']}"
                content["images"].append(image)

    edit(root, copy)
    for version in (1, 2):
        (root / f"images/copy{version}").mkdir()
        for path in sorted(root.glob("images/*.jpg")):
            (root / f"images/copy{version}" / path.name).write_bytes(path.read_bytes())
    data = prepared(reader(root, val_share=0.4))
    sides = [set((data.crops(split).samples % 6).tolist()) for split in ("train", "val")]
    assert sides[0].isdisjoint(sides[1])
    assert [len(data.crops(split)) for split in ("train", "val")] == [3 * len(s) for s in sides]


def test_a_handful_of_pictures_may_serve_twice(root):
    data = prepared(reader(root, val_share=0.0))
    assert [len(data.crops(split)) for split in ("train", "val")] == [6, 6]


def test_a_file_of_its_own_to_evaluate_on(root):
    (root / "test.json").write_text((root / "annotations.json").read_text())
    data = prepared(reader(root, annotations="annotations.json", test_annotations="test.json"))
    assert len(data.crops("test")) == 6
    with pytest.raises(UserError, match="expected one JSON file of annotations, there is annotat"):
        reader(root).setup("fit")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.pop("images"), "not in COCO's format: it has no list of images"),
        (
            lambda c: c["annotations"][2].update(bbox=[1, 2, 0, 5]),
            "annotation 2 (id 2): box of zero",
        ),
        (lambda c: c["annotations"][2].update(bbox=[1, 2]), "bbox [1, 2] is not [x, y, width, hei"),
        (lambda c: c["annotations"][1]["keypoints"].pop(), "annotation 1 (id 1): 62 keypoint num"),
        (lambda c: c["annotations"][1]["keypoints"].__setitem__(0, float("nan")), "is not finite"),
        (lambda c: c["annotations"][3].update(image_id=99), "there is no image 99"),
        (lambda c: c["annotations"][3].update(image_id=[1]), "there is no image [1]"),
        (lambda c: c["annotations"].append("x"), "not in COCO's format: it has no list of annot"),
        (lambda c: c["images"][0].update(file_name="gone.jpg"), "gone.jpg"),
        (lambda c: c["images"][3].update(file_name="gone.jpg"), "gone.jpg: No such file"),
        (
            lambda c: c["categories"][0]["keypoints"].__setitem__(3, "nose"),
            "no joint is called nose",
        ),
        (lambda c: c["categories"][0]["keypoints"].__setitem__(3, "wrist"), "missing: thumb_ip"),
        (lambda c: c.update(categories=[]), "its categories name no 21 keypoints"),
        (lambda c: c.update(annotations=[]), "no hand with a keypoint"),
        (lambda c: c.update(categories=["hand"]), "its categories are no list of objects"),
        (
            lambda c: c["images"][2].update(height="tall"),
            "annotation 2 (id 2): height of 00000002.jpg is 'tall', expected a positive number",
        ),
        (lambda c: c["images"][2].update(width=-3), "width of 00000002.jpg is -3, expected"),
        (
            lambda c: c["annotations"][2].update(side="lft"),
            'annotation 2 (id 2): side is \'lft\', expected "left" or "right"',
        ),
        (
            lambda c: c["annotations"][2].update(side=None, hand_type=[1]),
            "annotation 2 (id 2): hand_type is [1], expected",
        ),
        (
            lambda c: c["annotations"][2].update(bbox=[SIZE, 2, 30, 30]),
            "(sample 2): box outside its picture of 96 x 96 pixels: [96.0, 2.0, 126.0, 32.0]",
        ),
    ],
)
def test_files_that_no_training_should_see(root, change, said):
    assert said in complaint(root, change)


def test_unknown_order_is_refused_at_once():
    with pytest.raises(UserError, match="keypoints=mpii: unknown order"):
        CocoHands("anywhere", keypoints="mpii")


def test_images_of_another_size_than_annotated(root):
    path = root / "images/00000002.jpg"
    cv2.imwrite(str(path), cv2.resize(cv2.imread(str(path)), (SIZE * 2, SIZE)))
    data = prepared(reader(root))
    crops = data.crops("train")
    crops.samples = torch.arange(6)
    assert f"{2 * SIZE} x {SIZE} pixels, its labels are for {SIZE} x {SIZE} (sample 2)" in str(
        crops.__getitems__([2])
    )


def test_scores_of_a_detector_are_confidences(root):
    scores = np.linspace(-0.2, 1.3, 21).tolist()

    def give(content):
        for entry in content["annotations"]:
            entry["keypoints"][2::3] = scores

    edit(root, give)
    data = prepared(reader(root, crop="image", keypoints="freihand"))
    read = everything(data, "annotations")
    expected = torch.tensor(scores).clamp(0, 1).expand(6, 21)
    torch.testing.assert_close(read.confidence, expected)
    assert not read.keypoints_2d[read.confidence == 0].any()
    assert not read.has_visibility.any()
    assert not data.intrinsics_known


def test_hands_without_a_confident_joint_are_kept_and_counted(root, caplog):
    prepared(reader(root), "fit")
    assert "teach nothing" not in caplog.text  # annotated ones have no scores

    def give(content):
        for number, entry in enumerate(content["annotations"]):
            entry["keypoint_scores"] = [0.0 if number in (1, 4) else 0.5] * 21

    edit(root, give)
    data = prepared(reader(root), "fit")
    said = f"{root}: 2 of 6 hands have no joint with a confidence above 0: they teach nothing"
    assert caplog.text.count(said) == 1
    assert len(data.tables["annotations"]) == 6


def test_a_single_hand_leaves_none_to_train_on(root):
    edit(root, lambda content: content.update(annotations=content["annotations"][:1]))
    data = prepared(reader(root), "fit")
    with pytest.raises(UserError, match=r"train is empty, of 1 samples: --data\.val_share"):
        data.crops("train")
    assert len(prepared(reader(root, val_share=0.0), "fit").crops("train")) == 1


def test_sides_are_read_in_any_case(root):
    def say(content):
        said = ({"side": "Left"}, {"side": "RIGHT"}, {"side": None}, {}, {"hand_type": "RIGHT"})
        for entry, names in zip(content["annotations"], said, strict=False):
            entry.pop("side", None)
            entry.pop("hand_type", None)
            entry.update(names)

    edit(root, say)
    labels = prepared(reader(root, side="left")).tables["annotations"].labels
    assert labels.is_left[:5].tolist() == [1, 0, 1, 1, 0]


def test_a_few_boxes_may_lie_outside_their_pictures(root, caplog):
    def repeat(content):
        content["annotations"] = 20 * content["annotations"]
        content["annotations"][7] = content["annotations"][7] | {"bbox": [-40, 2, 30, 30]}

    edit(root, repeat)
    reader(root).setup("fit")
    said = "(sample 7): box outside its picture of 96 x 96 pixels: [-40.0, 2.0, -10.0, 32.0]"
    assert said in caplog.text


def test_hands_without_a_keypoint_are_left_out_and_listed(root):
    def hide(content):
        content["annotations"][1]["keypoints"][2::3] = [0] * 21

    edit(root, hide)
    data = prepared(reader(root))
    table = data.tables["annotations"]
    assert len(table) == 5
    (line,) = table.skipped
    assert "annotation 1 (id " in line
    assert line.endswith("no keypoint")
