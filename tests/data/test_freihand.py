"""FreiHAND: written by formulas of its toolkit, read back; and every way of being wrong."""

import json
import shutil

import numpy as np
import pytest
import torch
from tests.sets import SIZE, compare, drawn, everything, hand_model, prepared, rows

from handrec.data import json_arrays
from handrec.data.freihand import FreiHand
from handrec.data.json_arrays import read_array
from handrec.data.json_files import read_json
from handrec.data.layouts import write_freihand
from handrec.errors import UserError
from handrec.hand.openhand import OpenHand

COUNT = 5  # training hands
LABELS = (
    "joints_3d", "vertices", "pose", "betas", "translation", "intrinsics", "keypoints_2d",
    "confidence", "has_joints_3d", "has_vertices", "has_pose",
)  # fmt: skip


@pytest.fixture(scope="module", params=["Mano", "OpenHand"])
def written(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param) / "set"
    batch = drawn(request.param)
    write_freihand(
        root, [rows(batch, 0, COUNT)], [rows(batch, COUNT, 8)], hand_model(request.param)
    )
    return root, batch, request.param


@pytest.fixture
def broken(tmp_path):
    """A set to break, and what its reader says of it then."""
    root = tmp_path / "set"
    write_freihand(root, [rows(drawn(), 0, 3)], [rows(drawn(), 3, 4)], hand_model("Mano"))
    return root


def reader(root, **options):
    options = {"image_size": SIZE, "crop": "image", "batch_size": 2, "num_workers": 0} | options
    return FreiHand(str(root), cache_dir=str(root.parent / "cache"), **options)


def complaint(root, **options):
    with pytest.raises(UserError) as caught:
        reader(root, **options).setup("")
    return str(caught.value)


def test_labels_survive_being_written_and_read(written):
    root, batch, name = written
    data = prepared(reader(root, hand=hand_model(name)))
    read = everything(data, "training")
    assert len(read.image) == 4 * COUNT
    for version in range(4):
        part = slice(COUNT * version, COUNT * (version + 1))
        compare(read, rows(batch, 0, COUNT), LABELS, part)
        assert ((read.mask[part] - batch.mask[:COUNT]).abs() <= 0.5).all()  # it was antialiased
        inside = batch.mask[:COUNT] == 1
        error = (read.image[part] - batch.image[:COUNT]).abs() * inside
        assert error.sum() / inside.sum() / 3 < (0.02 if version < 2 else 0.06)
    compare(everything(data, "evaluation"), rows(batch, COUNT, 8), LABELS)


def test_parameters_are_freihands(written):
    root, batch, name = written
    (entry,) = json.loads((root / "training_mano.json").read_text())[0]
    camera = np.array(json.loads((root / "training_K.json").read_text())[0])
    xyz = np.array(json.loads((root / "training_xyz.json").read_text())[0])
    (u, v), scale = entry[58:60], entry[60]
    focal = (camera[0, 0] + camera[1, 1]) / 2
    root_joint = np.array([u - camera[0, 2], v - camera[1, 2], focal]) / scale
    np.testing.assert_allclose(root_joint, xyz[9], atol=1e-6)  # as the toolkit computes it
    seen = camera @ xyz[0]
    half = batch.keypoints_2d[0, 0].numpy() - 0.5  # its pixel centres are integers
    np.testing.assert_allclose(seen[:2] / seen[2], half, atol=1e-3)
    assert name == json.loads((root / "handrec.json").read_text())["hand"]


def test_another_hand_gets_neither_vertices_nor_parameters(written):
    root, batch, name = written
    other = hand_model("OpenHand" if name == "Mano" else "Mano")
    read = everything(prepared(reader(root, hand=other)), "training")
    assert read.vertices.shape[1] == len(other.template)
    assert not read.has_vertices.any()
    assert not read.has_pose.any()
    assert not read.pose.any()
    compare(read, rows(batch, 0, COUNT), ("joints_3d",), slice(0, COUNT))


def test_published_sets_are_manos(broken):
    (broken / "handrec.json").unlink()
    read = everything(prepared(reader(broken, hand=OpenHand())), "training")
    assert not read.has_vertices.any()
    read = everything(prepared(reader(broken, hand=hand_model("Mano"))), "training")
    assert read.has_vertices.all()
    compare(read, rows(drawn(), 0, 3), ("pose",), slice(0, 3))


def test_colour_versions_of_a_hand_stay_together(written):
    root, _, _ = written
    data = prepared(reader(root, val_share=0.4))
    train, val = data.crops("train").samples, data.crops("val").samples
    hands = set((train % COUNT).tolist()), set((val % COUNT).tolist())
    assert hands[0].isdisjoint(hands[1])
    assert hands[0] | hands[1] == set(range(COUNT))
    assert len(train) == 4 * len(hands[0])
    assert len(val) == len(hands[1])  # one version each
    fewer = prepared(reader(root, val_share=0.4, versions=("hom", "auto")))
    names = [
        fewer.tables["training"].files[i].decode()[-12:-4] for i in fewer.crops("train").samples
    ]
    assert {int(name) // COUNT for name in names} == {1, 3}
    assert {int(name) % COUNT for name in names} == hands[0]


def test_the_split_of_the_real_set_never_changes():
    from handrec.data.columns import hashed_share

    share = hashed_share([f"freihand/{k}" for k in range(32560)])
    val = (share < 0.05).nonzero().flatten().tolist()
    assert len(val) == 1656
    assert val[:5] == [11, 21, 25, 58, 62]


@pytest.mark.parametrize("size", [32, 48, 120])
def test_crops_of_the_hand_hold_its_joints(written, size):
    root, _, name = written
    data = prepared(
        reader(root, hand=hand_model(name), crop="hand", box_scale=1.5, image_size=size)
    )
    read = everything(data, "training")
    extent = read.keypoints_2d.amax(1) - read.keypoints_2d.amin(1)
    torch.testing.assert_close(extent.amax(1) * 1.5, torch.full((4 * COUNT,), float(size)))
    from handrec.geometry.camera import project

    torch.testing.assert_close(
        project(read.joints_3d, read.intrinsics), read.keypoints_2d, atol=1e-3, rtol=0
    )


def test_evaluation_without_its_annotations_is_still_seen(broken):
    for kind in ("xyz", "verts", "mano"):
        (broken / f"evaluation_{kind}.json").unlink()
    read = everything(prepared(reader(broken, crop="hand", hand=hand_model("Mano"))), "evaluation")
    assert not read.has_joints_3d.any()
    assert not read.confidence.any()
    assert read.crop_to_image[0, 0, 0] > 1


def test_the_evaluation_alone_can_be_evaluated_on(broken):
    for path in broken.glob("training*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert len(prepared(reader(broken), "test").crops("test")) == 1
    with pytest.raises(UserError, match=r"training_K\.json is missing: the cameras, part of Frei"):
        reader(broken).setup("fit")


def test_wrong_root(tmp_path, monkeypatch):
    monkeypatch.delenv("HANDREC_DATA", raising=False)
    with pytest.raises(UserError, match="no folder"):
        _ = FreiHand(str(tmp_path / "nowhere")).root
    with pytest.raises(UserError, match="is not the root of freihand: it has no training_xyz"):
        _ = FreiHand(str(tmp_path)).root
    with pytest.raises(UserError, match="set HANDREC_DATA"):
        _ = FreiHand().root
    monkeypatch.setenv("HANDREC_DATA", str(tmp_path))
    with pytest.raises(UserError, match="no freihand in HANDREC_DATA"):
        _ = FreiHand().root
    (tmp_path / "FreiHAND_pub_v2").mkdir()
    (tmp_path / "FreiHAND_pub_v2" / "training_xyz.json").touch()
    assert FreiHand().root == tmp_path / "FreiHAND_pub_v2"


def test_without_masks(broken):
    for mask in (broken / "training/mask").iterdir():
        mask.unlink()
    said = complaint(broken)
    assert "3 of 3 masks are missing, the first is training/mask/00000000.jpg" in said
    assert "--data.masks=false" in said
    data = prepared(reader(broken, hand=hand_model("Mano"), masks=False))
    assert not everything(data, "training").has_mask.any()
    assert "masks are missing" in complaint(broken)  # labels read without them are not used


def test_millimetres(broken):
    path = broken / "training_xyz.json"
    joints = 1000 * np.array(json.loads(path.read_text()))
    path.write_text(json.dumps(joints.tolist()))
    assert "the joints do not span a hand's 0.03 to 0.6 metres" in complaint(broken)


def test_half_unpacked(broken):
    (broken / "training/rgb/00000004.jpg").unlink()
    (broken / "training/rgb/00000005.jpg").unlink()
    said = complaint(broken)
    assert "2 of 12 images are missing, the first is training/rgb/00000004.jpg" in said
    assert "training_K.json has 3 entries" in said
    reader(broken, versions=("gs",)).setup("")  # what is there can be used
    (broken / "training_verts.json").unlink()
    said = complaint(broken, versions=("gs",))
    assert "training_verts.json is missing: labels (verts) of the training part" in said


def test_truncated_image(broken):
    path = broken / "training/rgb/00000007.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    assert "00000007.jpg: truncated image" in complaint(broken)


def test_image_that_breaks_later_is_named_with_its_sample(broken):
    data = prepared(reader(broken))
    (broken / "training/rgb/00000002.jpg").write_bytes(b"")
    (broken / "training/rgb/00000003.jpg").write_bytes(b"no image")
    crops = data.crops("train")
    crops.samples = torch.arange(12)
    with pytest.raises(UserError, match=r"00000002.jpg: the file is empty \(sample 2\)"):
        data.on_after_batch_transfer(crops.__getitems__([1, 2]), 0)
    with pytest.raises(UserError, match=r"00000003.jpg: not an image.* \(sample 3\)"):
        data.on_after_batch_transfer(crops.__getitems__([3]), 0)
    shutil.copy(broken / "training/rgb/00000001.jpg", broken / "training/rgb/00000002.jpg")
    data.label(crops.__getitems__([2]))


def edit(path, change):
    content = json.loads(path.read_text())
    changed = change(content)
    path.write_text(json.dumps(content if changed is None else changed))


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("training_xyz.json", lambda x: x[:-1], "has 2 entries, training_K.json has 3"),
        ("training_xyz.json", lambda x: x[1].pop() and None, "entry 1 is 20 x 3, expected 21 x 3"),
        ("training_xyz.json", lambda x: x[2].__setitem__(0, None), "entry 2 is not 21 x 3 numbers"),
        (
            "training_verts.json",
            lambda x: x[1][7].__setitem__(0, float("nan")),
            "entry 1 holds nan",
        ),
        ("training_K.json", lambda x: x[0][0].__setitem__(0, 0.0), "sample 0): a focal length"),
        ("training_xyz.json", lambda x: x[1][4].__setitem__(2, -0.4), "(sample 1): joints behind"),
        ("training_xyz.json", lambda x: [[[0, 0, 1]] * 21] * 3, "(sample 0): box of zero area"),
        ("training_mano.json", lambda x: [y[0] for y in x], "not a list of 2-dimensional"),
        ("training_verts.json", lambda x: [y[:700] for y in x], "labels have 700 vertices, expect"),
    ],
)
def test_labels_that_no_training_should_see(broken, file, change, said):
    edit(broken / file, change)
    assert said in complaint(broken, hand=hand_model("Mano"))


def test_files_cut_off(broken):
    path = broken / "training_verts.json"
    path.write_text(path.read_text()[: -len("]]]") - 40])
    assert "line 1, column" in complaint(broken)


def test_labels_are_read_again_when_files_change(broken):
    first = prepared(reader(broken)).tables["training"]
    assert prepared(reader(broken)).tables["training"].fingerprint == first.fingerprint
    edit(broken / "training_xyz.json", lambda x: x[0][0].__setitem__(0, 0.123))
    second = prepared(reader(broken)).tables["training"]
    assert second.labels.joints_3d[0, 0, 0] == pytest.approx(0.123)
    assert second.fingerprint != first.fingerprint


@pytest.mark.parametrize("chunk", [64, 1 << 20])
def test_numbers_are_parsed_in_pieces_as_json_does(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(json_arrays, "CHUNK", chunk)
    values = np.random.default_rng(0).normal(0, 1e3, (7, 4, 3))
    (tmp_path / "a.json").write_text(json.dumps(values.tolist(), indent=1))
    np.testing.assert_array_equal(read_array(tmp_path / "a.json", (4, 3)), values.astype("f4"))


def moved(entries):
    """Return lists of which one lacks what another has too much, so that the count fits."""
    (first, second, third), rest = entries[:3], entries[3:]
    return [first, second[:-1], [second[-1], *third], *rest]


@pytest.mark.parametrize("chunk", [64, 1 << 20])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (moved, "entry 1 is 3 x 3, expected 4 x 3"),
        (lambda x: [*x[:4], moved(x[4]), *x[5:]], "entry 4 is not 4 x 3 numbers"),
        (lambda x: [*x[:5], x[5] + x[6]], "entry 5 is 8 x 3, expected 4 x 3"),
        (lambda x: [*x[:5], [x[5]], x[6]], "entry 5 is 1 x 4 x 3, expected 4 x 3"),
    ],
)
def test_points_do_not_move_to_other_entries(tmp_path, monkeypatch, chunk, change, said):
    monkeypatch.setattr(json_arrays, "CHUNK", chunk)
    monkeypatch.setattr(json_arrays, "WINDOW", 50)
    values = np.random.default_rng(0).normal(0, 1e3, (7, 4, 3)).tolist()
    (tmp_path / "a.json").write_text(json.dumps(change(values), indent=1))
    with pytest.raises(UserError, match=said):
        read_array(tmp_path / "a.json", (4, 3))


@pytest.mark.parametrize("form", [lambda t: t[:-1], lambda t: t + "]", lambda t: t + t])
def test_lists_that_end_early_or_go_on(tmp_path, form):
    (tmp_path / "a.json").write_text(form(json.dumps(np.ones((3, 4, 3)).tolist())))
    with pytest.raises(UserError, match=r"a\.json: line 1, column"):
        read_array(tmp_path / "a.json", (4, 3))


def test_what_editors_of_windows_and_damage_leave(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(np.ones((3, 4, 3)).tolist()), encoding="utf-8-sig")
    assert read_array(path, (4, 3)).shape == (3, 4, 3)
    assert len(read_json(path)) == 3
    path.write_text("[" * 200_000)
    with pytest.raises(UserError, match=r"a\.json: lists in lists, too deep"):
        read_json(path)


def write_detections(root, names, seed=0):
    random = np.random.default_rng(seed)
    keypoints = random.uniform(5, SIZE - 5, (len(names), 21, 2))
    confidence = random.uniform(-0.2, 1.2, (len(names), 21, 1))
    path = root / "detect_all.json"
    path.write_text(json.dumps([keypoints.tolist(), confidence.tolist(), names]))
    return keypoints, confidence[..., 0].clip(0, 1)


def test_a_detectors_keypoints_instead_of_the_labelled_ones(broken):
    order = [2, 0, 1]
    keypoints, confidence = write_detections(broken, [[f"{k:08d}.jpg"] for k in order])
    data = prepared(reader(broken, detections="detect_all.json"))
    assert reader(broken).projected_keypoints
    assert not data.projected_keypoints
    read = everything(data, "training")
    for sample in range(12):  # four versions of three hands
        row = order.index(sample % 3)
        expected = (keypoints[row] + 0.5) * (confidence[row] > 0)[:, None]
        np.testing.assert_allclose(read.keypoints_2d[sample], expected, atol=1e-4)
        np.testing.assert_allclose(read.confidence[sample], confidence[row], atol=1e-6)
    box = data.tables["training"].labels.box[order[0]]
    sure = confidence[0] >= 0.1
    np.testing.assert_allclose(box[:2], keypoints[0][sure].min(0) + 0.5, atol=1e-4)
    np.testing.assert_allclose(box[2:], keypoints[0][sure].max(0) + 0.5, atol=1e-4)
    exact = everything(data, "evaluation")
    assert exact.confidence.all()  # the evaluation's are the labelled ones


def test_hands_without_a_confident_joint_are_kept_and_counted(broken, caplog):
    """Once, whatever the colour versions; not those of an evaluation that has no labels."""
    found = [np.full((3, 21, 2), 9.0).tolist(), [[0.0] * 21, [0.5] * 21, [0.0] * 21], [0, 1, 2]]
    (broken / "detect_all.json").write_text(json.dumps(found))
    for kind in ("xyz", "verts", "mano"):
        (broken / f"evaluation_{kind}.json").unlink()
    prepared(reader(broken))
    assert "teach nothing" not in caplog.text
    data = prepared(reader(broken, detections="detect_all.json"))
    said = f"{broken}: 2 of 3 hands have no joint with a confidence above 0: they teach nothing"
    assert caplog.text.count("teach nothing") == caplog.text.count(said) == 1
    assert len(data.tables["training"]) == 12


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["0", "1"], "has 2 entries for 3 images: 1 have none, the first is 00000002.jpg"),
        (["0", "1", "2", "3"], "has 4 entries for 3 images: 1 are of none of them, the first is 3"),
        (["0", "1", "1"], "3 entries for 3 images: 1 have none"),
    ],
)
def test_detections_of_other_images_are_refused(broken, names, message):
    write_detections(broken, names)
    assert message in complaint(broken, detections="detect_all.json")
