"""HO-3D: frames of OpenGL and MANO's joint order in, the suite's conventions out."""

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from tests.sets import SIZE, compare, drawn, everything, hand_model, prepared, rows

from handrec.data.ho3d import HO3D, TO_CANONICAL
from handrec.data.layouts import write_ho3d
from handrec.errors import UserError
from handrec.geometry.camera import project
from handrec.metrics.temporal import TEMPORAL, TemporalMetrics
from handrec.types import HandPrediction

VIDEOS, FRAMES = 4, 4
TRAIN = 3 * FRAMES
LABELS = ("joints_3d", "vertices", "has_joints_3d", "has_vertices", "confidence")
PARAMETERS = ("pose", "betas", "translation", "has_pose")


@pytest.fixture(scope="module", params=[("Mano", "v2"), ("OpenHand", "v3")], ids=str)
def written(request, tmp_path_factory):
    name, version = request.param
    root, batch = tmp_path_factory.mktemp("ho3d") / "set", drawn(name, VIDEOS)
    write_ho3d(root, [rows(batch, 0, TRAIN)], [rows(batch, TRAIN, 16)], hand_model(name), version)
    return root, batch, name, version


@pytest.fixture
def broken(tmp_path):
    batch = drawn("Mano", VIDEOS)
    root = tmp_path / "set"
    write_ho3d(root, [rows(batch, 0, TRAIN)], [rows(batch, TRAIN, 16)], hand_model("Mano"), "v2")
    return root


def reader(root, version="v2", **options):
    options = {"image_size": SIZE, "batch_size": 2, "num_workers": 0} | options
    return HO3D(str(root), version, cache_dir=str(root.parent / "cache"), **options)


def complaint(root, **options):
    with pytest.raises(UserError) as caught:
        reader(root, **options).setup("")
    return str(caught.value)


def test_labels_survive_being_written_and_read(written):
    root, batch, name, version = written
    data = prepared(reader(root, version, hand=hand_model(name)))
    train, test = everything(data, "training"), everything(data, "evaluation")
    compare(train, rows(batch, 0, TRAIN), LABELS + PARAMETERS)
    compare(test, rows(batch, TRAIN, 16), LABELS)
    assert not test.has_pose.any()
    for read in (train, test):  # through the crop's camera, joints are where the keypoints are
        seen = project(read.joints_3d, read.intrinsics)
        torch.testing.assert_close(seen, read.keypoints_2d, atol=1e-3, rtol=0)
    assert train.frame.tolist() == 3 * [0, 1, 2, 3]
    assert train.sequence.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_pictures_are_where_the_labels_are(written):
    root, batch, name, version = written
    data = prepared(reader(root, version, hand=hand_model(name), crop="image"))
    read = everything(data, "training")
    widened = read.crop_to_image[:, 0, 0]  # crop pixels of the whole 4:3 picture
    assert torch.allclose(widened, torch.full_like(widened, 4 / 3), atol=0.01)
    pad = SIZE // 6
    original = read.crop_to_image[:, :2, 2]
    points = read.keypoints_2d * widened[:, None, None] + original[:, None]
    points[..., 0] -= pad
    torch.testing.assert_close(points, batch.keypoints_2d[:TRAIN], atol=1e-3, rtol=0)
    for i in (0, 5):  # the colour at the wrist, of the picture written and of the one read
        x, y = (read.keypoints_2d[i, 0] - 0.5).round().long().tolist()
        u, v = (batch.keypoints_2d[i, 0] - 0.5).round().long().tolist()
        assert (read.image[i, :, y, x] - batch.image[i, :, v, u]).abs().max() < 0.15


def test_the_joint_order_is_the_published_one():
    # As its toolkit's pictures and other projects have it.
    assert TO_CANONICAL == [
        0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20,
    ]  # fmt: skip


def test_annotations_are_ho3ds(written):
    """J(pose, betas) + t, computed by the hand model in OpenGL's frame, is handJoints3D."""
    from handrec.geometry.rotations import axis_angle_to_matrix

    root, _, name, _ = written
    line = (root / "train.txt").read_text().split()[5]
    sequence, frame = line.split("/")
    meta = pickle.loads((root / "train" / sequence / "meta" / f"{frame}.pkl").read_bytes())
    pose = axis_angle_to_matrix(torch.tensor(meta["handPose"]).float().view(1, 16, 3))
    betas, moved = (torch.tensor(meta[key]).float()[None] for key in ("handBeta", "handTrans"))
    joints = hand_model(name).decode(pose, betas, moved).joints[0].numpy()
    np.testing.assert_allclose(meta["handJoints3D"][TO_CANONICAL], joints, atol=1e-5)
    assert (meta["handJoints3D"][:, 2] < 0).all()


def test_recordings_are_held_out_whole(written):
    root, _, _, version = written
    data = prepared(reader(root, version, val_share=0.3))
    train, val = data.crops("train").samples // FRAMES, data.crops("val").samples // FRAMES
    assert len(val.unique()) == 1
    assert not set(train.tolist()) & set(val.tolist())
    assert len(train) + len(val) == TRAIN


def test_other_version_is_named(written):
    root, _, _, version = written
    other = {"v2": "v3", "v3": "v2"}[version]
    assert f"holds HO-3D {version}" in complaint(root, version=other)
    assert f"use DATA=ho3d_{version}" in complaint(root, version=other)


def test_evaluation_without_published_labels(broken):
    for kind in ("xyz", "verts"):
        (broken / f"evaluation_{kind}.json").unlink()
    test = everything(prepared(reader(broken, hand=hand_model("Mano"))), "evaluation")
    assert not test.has_joints_3d.any()
    assert not test.has_vertices.any()


def test_the_evaluation_alone_can_be_evaluated_on(broken):
    shutil.rmtree(broken / "train")
    (broken / "train.txt").unlink()
    assert len(prepared(reader(broken), "test").crops("test")) == FRAMES
    with pytest.raises(UserError, match=r"train\.txt: No such file.*wholly unpacked"):
        reader(broken).setup("fit")
    (broken / "evaluation.txt").unlink()
    with pytest.raises(UserError, match=r"is not the root of ho3d_v2: it has no train\.txt"):
        reader(broken).setup("test")


def first_meta(root):
    return sorted(root.glob("train/*/meta/*.pkl"))[0]


def change(path, **values):
    meta = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps(meta | values, protocol=2))


class Nasty:
    def __reduce__(self):
        return (print, ("run!",))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"handPose": None}, "no handPose, though train.txt lists"),
        ({"handJoints3D": np.zeros(3)}, "handJoints3D is 3, expected 21 x 3"),
        ({"handBeta": np.full(10, np.nan)}, "handBeta holds a number that is not finite"),
        ({"camMat": "nothing"}, "camMat is not 3 x 3 numbers"),
        ({"handJoints3D": np.ones((21, 3))}, "(sample 0): joints behind the camera"),
        ({"objName": Nasty()}, "print': refused"),
    ],
)
def test_annotations_that_no_training_should_see(broken, capsys, values, said):
    path = first_meta(broken)
    change(path, **values)
    message = complaint(broken)
    assert said in message
    assert path.stem in message
    assert capsys.readouterr().out.strip() == ""  # nothing in the pickle ran


def test_what_numpy_pickles_by_itself_is_read(broken):
    change(first_meta(broken), objLabel=np.int64(3), objCorners3D=np.zeros((8, 3), np.float32))
    prepared(reader(broken))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda root: first_meta(root).unlink(), "0000.pkl: No such file"),
        (lambda root: first_meta(root).write_bytes(b"\x80\x02}q"), "damaged, or no pickle"),
        (
            lambda root: next(root.glob("train/*/rgb/0001.png")).unlink(),
            "1 of 12 images are missing",
        ),
        (lambda root: (root / "evaluation.txt").unlink(), "evaluation.txt: No such file"),
        (lambda root: (root / "train.txt").write_text("SA10/x\n"), "line 1 is 'SA10/x', expected"),
        (lambda root: (root / "train.txt").write_text("\n"), "train.txt is empty"),
    ],
)
def test_half_unpacked(broken, spoil, said):
    spoil(broken)
    assert said in complaint(broken)


def test_list_lengths_that_disagree(broken):
    lines = (broken / "evaluation.txt").read_text().split()
    (broken / "evaluation.txt").write_text("\n".join(lines[:-1]))
    assert "evaluation_xyz.json has 4 entries, evaluation.txt has 3 frames" in complaint(broken)


def test_truncated_png(broken):
    path = next(broken.glob("evaluation/*/rgb/0002.png"))
    path.write_bytes(path.read_bytes()[:-100])
    assert "0002.png: truncated image" in complaint(broken)


def test_box_of_zero_area(broken):
    path = sorted(broken.glob("evaluation/*/meta/*.pkl"))[1]
    change(path, handBoundingBox=np.array([10, 20, 10, 40]))
    assert "(sample 1): box of zero area, expected x1 < x2 and y1 < y2: [10.0" in complaint(broken)


def test_videos_of_the_evaluation_have_temporal_figures(written):
    """Predictions that shake by a known amount, frame by frame of each video."""
    root, _, name, version = written
    data = prepared(reader(root, version, hand=hand_model(name)))
    batch = everything(data, "evaluation")
    assert batch.has_joints_3d.all()
    shake = 0.002 * (-1.0) ** batch.frame[:, None, None] * torch.ones(1, 21, 3)
    shake[:, 0] = 0  # relative to the wrist
    found = HandPrediction(
        batch.vertices, batch.joints_3d + shake, batch.keypoints_2d, batch.pose,
        batch.betas, batch.translation, texture=0.5 + shake * 100,
    )  # fmt: skip
    metrics = TemporalMetrics()
    metrics.update(found, batch)
    figures = metrics.compute()
    assert figures.keys() == {*TEMPORAL, "shape_between", "texture_between"}
    # Second differences of -1, 1, -1 are 4; times 30 frames a second squared, mm.
    expected = 4 * 2 * 3**0.5 * 20 / 21 * 900
    assert figures["accel_error"].item() == pytest.approx(expected, rel=1e-3)
    assert figures["texture_sd"].item() == pytest.approx(255 * 0.2 * 20 / 21, rel=1e-4)
    assert all(value.isfinite() for value in figures.values())


@pytest.mark.parametrize("form", ["{}", "train/{}.png"])
def test_detections_take_the_place_of_projected_labels(broken, form):
    """In any order, by either name; joints stay where they are, boxes follow the detector."""
    plain = everything(prepared(reader(broken, hand=hand_model("Mano"))), "training")
    names = (broken / "train.txt").read_text().split()
    random = np.random.default_rng(0)
    points, sure = random.uniform(20, 60, (TRAIN, 21, 2)), random.uniform(0.2, 0.9, (TRAIN, 21))
    order = random.permutation(TRAIN)
    said = [
        form.format(names[i] if form == "{}" else names[i].replace("/", "/rgb/")) for i in order
    ]
    content = [points[order].tolist(), sure[order].tolist(), said]
    (broken / "found.json").write_text(json.dumps(content))
    data = prepared(reader(broken, hand=hand_model("Mano"), detections="found.json"))
    assert not data.projected_keypoints
    assert reader(broken).projected_keypoints
    labels = data.tables["training"].labels
    np.testing.assert_allclose(labels.keypoints_2d, points + 0.5, atol=1e-4)
    np.testing.assert_allclose(labels.confidence, sure, atol=1e-6)
    np.testing.assert_allclose(labels.box[:, :2], points.min(1) + 0.5, atol=1e-4)
    read = everything(data, "training")
    torch.testing.assert_close(read.joints_3d, plain.joints_3d)
    test = everything(data, "evaluation")
    assert (test.confidence == 1).all()


def test_hands_without_a_confident_joint_are_kept_and_counted(broken, caplog):
    names = (broken / "train.txt").read_text().split()
    sure = np.full((TRAIN, 21), 0.5)
    sure[[2, 3, 7]] = 0.0
    content = [np.full((TRAIN, 21, 2), 9.0).tolist(), sure.tolist(), names]
    (broken / "found.json").write_text(json.dumps(content))
    data = prepared(reader(broken, detections="found.json"))
    said = "3 of 12 hands have no joint with a confidence above 0: they teach nothing"
    assert caplog.text.count("teach nothing") == caplog.text.count(said) == 1
    assert len(data.tables["training"]) == TRAIN


def test_detections_of_other_frames_are_refused(broken):
    names = (broken / "train.txt").read_text().split()[:-1]
    parts = [np.zeros((11, 21, 2)).tolist(), np.zeros((11, 21)).tolist(), names]
    (broken / "found.json").write_text(json.dumps(parts))
    said = complaint(broken, detections="found.json")
    assert "found.json has 11 entries for 12 images: 1 have none, the first is SAC10/0003" in said
