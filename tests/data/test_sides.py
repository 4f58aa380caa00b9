"""DexYCB, InterHand2.6M and RHD: what is written in their layouts is read back."""

import json
import pickle
import shutil

import cv2
import numpy as np
import pytest
import torch
import yaml
from tests.sets import SIZE, compare, drawn, everything, hand_model, prepared, rows

from handrec.data.dexycb import SPLITS, DexYCB, Place
from handrec.data.interhand26m import InterHand26M
from handrec.data.layouts_sides import write_dexycb, write_interhand26m, write_rhd
from handrec.data.rhd import RHD
from handrec.errors import UserError

CLASSES = {"dexycb": DexYCB, "interhand26m": InterHand26M, "rhd": RHD}
WRITERS = {"dexycb": write_dexycb, "interhand26m": write_interhand26m, "rhd": write_rhd}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sides")
    for hand in ("Mano", "OpenHand"):
        batch = drawn(hand)
        for name, write in WRITERS.items():
            root = folder / f"{name}-{hand}"
            write(root, [rows(batch, 0, 6)], [rows(batch, 6, 8)], hand_model(hand))
    return folder


@pytest.fixture
def root(written, tmp_path, request):
    """A copy to break; its name is the test's first parameter."""
    name = request.node.callspec.params["name"]
    shutil.copytree(written / f"{name}-OpenHand", tmp_path / name)
    return tmp_path / name


def reader(name, root, hand="OpenHand", **options):
    common = {"image_size": SIZE, "batch_size": 2, "num_workers": 0, "hand": hand_model(hand)}
    return CLASSES[name](str(root), cache_dir=str(root.parent / "cache"), **common | options)


def complaint(name, root, **options):
    with pytest.raises(UserError) as caught:
        reader(name, root, **options).setup("")
    return str(caught.value)


@pytest.mark.parametrize("hand", ["Mano", "OpenHand"])
@pytest.mark.parametrize("name", CLASSES)
def test_labels_survive(written, name, hand):
    data = prepared(reader(name, written / f"{name}-{hand}", hand))
    batch, found = drawn(hand), {}
    for part in set(data.parts.values()):
        read = everything(data, part)
        for i in range(len(read.image)):
            distances = (batch.joints_3d - read.joints_3d[i]).flatten(1).norm(dim=1)
            found[int(distances.argmin())] = rows(read, i, i + 1)
    assert sorted(found) == list(range(8))  # every hand once, left ones mirrored back
    for number, read in found.items():
        expected = rows(batch, number, number + 1)
        compare(read, expected, ["joints_3d"])
        assert float(read.is_left) == number % 2 if number < 6 else True
        posed = {"rhd": False, "interhand26m": True, "dexycb": not read.is_left.any()}[name]
        assert bool(read.has_pose) == posed
        assert bool(read.has_vertices) == posed
        if posed:
            compare(read, expected, ["pose", "betas", "translation", "vertices"], tolerance=2e-5)
        assert bool(read.has_visibility) == (name == "rhd")


@pytest.mark.parametrize("name", CLASSES)
def test_pictures_and_masks_show_the_hand(written, name):
    """The crop of the whole image's square at its own resolution is the picture written."""
    data = prepared(reader(name, written / f"{name}-Mano", "Mano", box_scale=1.6))
    batch = drawn("Mano")
    read = everything(data, data.parts["train"])
    for i in range(len(read.image)):
        number = int((batch.joints_3d - read.joints_3d[i]).flatten(1).norm(dim=1).argmin())
        seen = read.image[i].permute(1, 2, 0).numpy()
        # Warp the picture that was written by the cameras alone: both see the same hand.
        camera = batch.intrinsics[number] @ read.intrinsics[i].inverse()
        shift = torch.tensor([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1]])
        map_ = (shift @ camera @ shift.inverse())[:2].numpy()
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        for picture, other, least in (
            (batch.image[number], seen, 0.05),
            (batch.mask[number], read.mask[i].permute(1, 2, 0).numpy(), 0.06),
        ):
            source = np.ascontiguousarray(picture.permute(1, 2, 0).numpy())
            expected = cv2.warpAffine(
                source, map_, (SIZE, SIZE), flags=flags, borderMode=cv2.BORDER_REPLICATE
            )
            if picture.shape[0] == 1 and not read.has_mask[i]:
                continue
            difference = np.abs(expected.reshape(other.shape) - other).mean()
            assert difference < least
            assert np.abs(expected.reshape(other.shape)[:, ::-1] - other).mean() > 2 * difference
    assert read.has_mask.all() == (name != "interhand26m")


def test_official_splits_of_dexycb_by_loops():
    """Counts of sequences x cameras that the paper's setups imply."""
    sizes = {"s0": (6400, 320, 1280), "s1": (5600, 800, 1600), "s2": (6000, 1000, 1000),
             "s3": (6000, 800, 1200)}  # fmt: skip
    places = [Place(s, c, q) for s in range(10) for c in range(8) for q in range(100)]
    for setup, expected in sizes.items():
        split = SPLITS[setup]
        assert tuple(sum(map(split[part], places)) for part in ("train", "val", "test")) == expected
        assert all(sum(split[part](place) for part in split) <= 1 for place in places)


def test_dexycb_wants_all_of_the_official_set(written, tmp_path):
    shutil.copytree(written / "dexycb-OpenHand", tmp_path / "set")
    (tmp_path / "set/handrec.json").unlink()
    assert "3 folders of subjects (YYYYMMDD-NAME), expected 10" in complaint(
        "dexycb", tmp_path / "set"
    )


def test_dexycb_leaves_frames_without_a_hand_out(written, tmp_path):
    root = tmp_path / "set"
    shutil.copytree(written / "dexycb-OpenHand", root)
    path = sorted(root.glob("20200700*/00[0-3]/*/labels_000000.npz"))[0]
    content = dict(np.load(path))
    content |= {"pose_m": content["pose_m"] * 0, "joint_3d": content["joint_3d"] * 0 - 1}
    np.savez(path, **content)
    data = prepared(reader("dexycb", root))
    assert len(data.crops("train")) == 4  # of five


def change_npz(root, name, value):
    path = sorted(root.glob("*/*/*/labels_000000.npz"))[0]
    content = dict(np.load(path))
    content[name] = value(content[name])
    np.savez(path, **content)
    return path


def nan_first(array):
    array = array.copy()
    array.reshape(-1)[0] = np.nan
    return array


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("dexycb", lambda r: change_npz(r, "joint_3d", lambda a: a[:, :20]),
         "labels_000000.npz: expected an array joint_3d of shape (1, 21, 3)"),
        ("dexycb", lambda r: change_npz(r, "joint_3d", nan_first),
         "color_000000.jpg (sample 0): box holds a number that is not finite"),
        ("dexycb", lambda r: sorted(r.glob("*/*/*/labels*"))[0].write_bytes(b"PK\x03\x04"),
         "labels_000000.npz: damaged"),
        ("dexycb", lambda r: sorted(r.glob("*/*/*/labels*"))[0].unlink(), "No such file"),
        ("dexycb", lambda r: sorted(r.glob("*/*/meta.yml"))[0].write_text("{]"), "not valid YAML"),
        ("dexycb", lambda r: sorted(r.glob("*/*/meta.yml"))[0].write_text("a: 1"),
         "meta.yml: no num_frames, serials, mano_sides, mano_calib in it"),
        ("dexycb", lambda r: sorted(r.glob("calibration/intrinsics/*"))[0].write_text("color: {}"),
         "color wants numbers fx, fy, ppx, ppy"),
        ("dexycb", lambda r: sorted(r.glob("*/*/*/color*"))[0].unlink(),
         "color_000000.jpg: No such"),
    ],
)  # fmt: skip
def test_dexycb_that_no_training_should_see(root, name, change, said):
    change(root)
    assert said in complaint(name, root)


def edit_json(root, kind, change, split="train"):
    path = root / f"annotations/{split}/InterHand2.6M_{split}_{kind}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("name", "kind", "change", "said"),
    [
        ("interhand26m", "data", lambda c: c.pop("images"), "it has no list of images"),
        ("interhand26m", "data", lambda c: c["annotations"][1].update(hand_type="foot"),
         "annotation 1: hand_type is 'foot'"),
        ("interhand26m", "data", lambda c: c["annotations"][1].update(image_id=99),
         "annotation 1: there is no image 99"),
        ("interhand26m", "data", lambda c: c["images"][0].update(file_name="gone.jpg"),
         "gone.jpg: No such file"),
        ("interhand26m", "camera", lambda c: c["0"]["focal"].pop("400000"),
         "annotation 0: '400000' is missing in a file beside it"),
        ("interhand26m", "joint_3d", lambda c: c["0"]["0"].update(world_coord=[[1, 2]]),
         "annotation 0: not the numbers that were expected"),
        ("interhand26m", "joint_3d", lambda c: c["0"]["0"]["world_coord"].__setitem__(
            20, [float("nan")] * 3), "box holds a number that is not finite"),
        ("interhand26m", "data", lambda c: c["annotations"].clear(), "no hand with joints"),
    ],
)  # fmt: skip
def test_interhand_that_no_training_should_see(root, name, kind, change, said):
    edit_json(root, kind, change)
    assert said in complaint(name, root)


@pytest.mark.parametrize("name", ["interhand26m"])
def test_joints_that_were_not_annotated(root, name):
    def lose(content):
        content["annotations"][0]["joint_valid"][3] = 0  # base of the thumb: joint 1 of the suite

    edit_json(root, "data", lose)
    read = everything(prepared(reader(name, root)), "train")
    assert read.confidence[0].tolist() == [1.0, 0.0] + [1.0] * 19
    assert not read.keypoints_2d[0, 1].any()
    assert read.has_joints_3d.tolist()[:2] == [0.0, 1.0]
    assert not read.joints_3d[0].any()
    assert not read.has_pose[0]


@pytest.mark.parametrize("name", ["interhand26m"])
def test_interacting_hands_are_asked_for(root, name):
    def pair(content):
        entry = content["annotations"][0]
        entry.update(hand_type="interacting", joint_valid=[1] * 42)

    def other(content):  # the left hand a little aside
        points = np.array(content["0"]["0"]["world_coord"])
        points[21:] = points[:21] + 20
        content["0"]["0"]["world_coord"] = points.tolist()

    edit_json(root, "data", pair)
    edit_json(root, "joint_3d", other)
    alone = prepared(reader(name, root))
    both = prepared(reader(name, root, interacting=True))
    counts = [len(data.tables["train"]) for data in (alone, both)]
    assert counts[1] == counts[0] + 2
    assert both.tables["train"].labels.is_left.tolist()[:2] == [0.0, 1.0]


def edit_pickle(root, change):
    path = root / "training/anno_training.pickle"
    content = pickle.loads(path.read_bytes())
    change(content)
    path.write_bytes(pickle.dumps(content, protocol=2))


class Runs:
    def __reduce__(self):
        return (print, ("it ran",))


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("rhd", lambda c: c[1].pop("xyz"), "entry 1: no xyz, expected 42 x 3 numbers"),
        ("rhd", lambda c: c[1].update(K=np.eye(2)), "entry 1: K is 2 x 2, expected 3 x 3"),
        ("rhd", lambda c: c[2].update(xyz=nan_first(c[2]["xyz"])), "entry 2: xyz holds a number"),
        ("rhd", lambda c: c.update({0: Runs()}), "asks for 'builtins.print'"),
        ("rhd", lambda c: c.update({7: c[0]}), "00007.png: No such file"),
        ("rhd", lambda c: c[1].update(xyz=-c[1]["xyz"]), "joints behind the camera"),
    ],
)
def test_rhd_that_no_training_should_see(root, capsys, name, change, said):
    edit_pickle(root, change)
    found = complaint(name, root)
    assert said in found.replace("__builtin__", "builtins")
    assert "it ran" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["rhd"])
def test_rhd_takes_the_hand_of_which_more_is_seen(root, name, monkeypatch):
    monkeypatch.setattr("handrec.data.checks.OUTSIDE_SHARE", 1.0)  # where the other one would be
    path = root / "training/mask/00001.png"
    mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    data = prepared(reader(name, root))
    assert data.tables["training"].labels.is_left[:2].tolist() == [0.0, 1.0]
    mask[:] = 1
    mask[:40] = 20  # now a right hand's
    cv2.imwrite(str(path), mask)
    (root / "training/mask").touch()
    data = prepared(reader(name, root))
    assert data.tables["training"].labels.is_left[1] == 0


def test_yaml_of_calibrations_is_only_data(written, tmp_path):
    shutil.copytree(written / "dexycb-OpenHand", tmp_path / "set")
    path = sorted((tmp_path / "set").glob("*/*/meta.yml"))[0]
    path.write_text("!!python/object/apply:os.system ['echo it ran']")
    assert "not valid YAML" in complaint("dexycb", tmp_path / "set")
    assert yaml.safe_load("a: 1") == {"a": 1}
