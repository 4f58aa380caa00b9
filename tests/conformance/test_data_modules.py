"""What every data module promises, over every data set."""

import json
import shutil
from functools import partial

import pytest
import torch
from pytorch_lightning.utilities import CombinedLoader

from handrec.data.augment import Augmentation
from handrec.data.coco_hands import CocoHands
from handrec.data.detected import DetectedHands
from handrec.data.dexycb import DexYCB
from handrec.data.folder import Folder
from handrec.data.freihand import FreiHand
from handrec.data.ho3d import HO3D
from handrec.data.interhand26m import InterHand26M
from handrec.data.layouts import write_coco, write_freihand, write_ho3d
from handrec.data.layouts_sides import write_dexycb, write_interhand26m, write_rhd
from handrec.data.mixed import MixedSets
from handrec.data.packing import write_drawn
from handrec.data.rhd import RHD
from handrec.data.shards import Shards
from handrec.data.synthetic import SyntheticHands
from handrec.data.video_frames import VideoFrames
from handrec.errors import UserError
from handrec.geometry.camera import project
from handrec.hand.openhand import OpenHand
from handrec.render.warp_backend import WarpRasterizer
from handrec.types import HandBatch
from tests.sets import drawn, hand_model, rows

ON_DISK = (
    "freihand", "ho3d_v2", "ho3d_v3", "coco_hands", "detected", "folder", "dexycb", "interhand26m",
    "rhd",
)  # fmt: skip
STREAMS = ("shards", "video")
SETS = ("synthetic", *ON_DISK, *STREAMS, "mixture")
SIZE = 48


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, hand = tmp_path_factory.mktemp("sets"), OpenHand()
    batch, video = drawn("OpenHand"), drawn("OpenHand", 4)
    write_freihand(folder / "freihand", [rows(batch, 0, 6)], [rows(batch, 6, 8)], hand)
    for version in ("v2", "v3"):
        name = f"ho3d_{version}"
        write_ho3d(folder / name, [rows(video, 0, 12)], [rows(video, 12, 16)], hand, version)
    write_coco(folder / "coco_hands", [batch], hand)
    (folder / "folder").symlink_to(folder / "coco_hands/images")
    shutil.copytree(folder / "coco_hands/images", folder / "detected")
    names = sorted(path.name for path in (folder / "detected").iterdir())
    parts = batch.keypoints_2d[: len(names)].tolist(), batch.confidence[: len(names)].tolist()
    (folder / "detected/detect_all.json").write_text(json.dumps([*parts, names]))
    for write in (write_dexycb, write_interhand26m, write_rhd):
        root = folder / write.__name__.removeprefix("write_")
        write(root, [rows(batch, 0, 6)], [rows(batch, 6, 8)], hand)
    write_drawn(folder / "shards", [batch], hand, per_shard=4)
    (folder / "video").symlink_to(folder / "coco_hands/images")
    return folder


def build(name, folder, **options):
    common = {"hand": hand_model("OpenHand"), "image_size": SIZE, "batch_size": 2} | options
    if name == "synthetic":
        sizes = {"train_size": 4, "val_size": 3, "test_size": 3}
        options = {"cache_dir": str(folder / "scenes"), **sizes, **common}
        return SyntheticHands(rasterizer=WarpRasterizer(), **options)
    if name == "mixture":
        sets = {part: build(part, folder, num_workers=0) for part in ("freihand", "folder")}
        return MixedSets(sets, **common)
    common = {"num_workers": 0, **common}
    if name in STREAMS:
        classes = {"shards": Shards, "video": partial(VideoFrames, stride=1)}
        return classes[name](str(folder / name), val_share=0.4, **common)
    common["cache_dir"] = str(folder / "labels")
    classes = {
        "freihand": FreiHand, "coco_hands": CocoHands, "detected": DetectedHands, "folder": Folder,
        "dexycb": DexYCB, "interhand26m": InterHand26M, "rhd": RHD,
    }  # fmt: skip
    if name in classes:
        return classes[name](str(folder / name), **common)
    return HO3D(str(folder / name), version=name[-2:], val_share=0.3, **common)


def batches(data, loader):
    for loaded in loader:
        batch = loaded[0] if isinstance(loader, CombinedLoader) else loaded
        yield data.on_after_batch_transfer(batch, 0)


@pytest.fixture(params=SETS)
def data(request, folder):
    data = build(request.param, folder)
    data.prepare_data()
    data.setup("")
    assert data.name == request.param
    return data


def loaders_of_tests(data):
    loaders = data.test_dataloader()
    return loaders if isinstance(loaders, list) else [loaders]


def test_every_split_serves_hand_batches(data):
    loaders = [data.train_dataloader(), data.val_dataloader(), *loaders_of_tests(data)]
    assert len(loaders) == 2 + len(data.test_splits)
    vertices = len(OpenHand().template)
    for loader in loaders:
        for batch in batches(data, loader):
            assert isinstance(batch, HandBatch)
            count = len(batch.image)
            assert batch.image.shape == (count, 3, SIZE, SIZE)
            assert batch.mask.shape == (count, 1, SIZE, SIZE)
            assert batch.vertices.shape == (count, vertices, 3)
            assert all(len(field) == count for field in batch)
            for name, field in batch._asdict().items():
                whole = name in ("sample_id", "sequence", "frame")
                assert field.dtype == (torch.long if whole else torch.float32), name
                assert field.isfinite().all(), name
            assert 0 <= batch.image.min() <= batch.image.max() <= 1
            assert batch.image.std() > 0.02


def test_whether_there_are_keypoints_is_said(data):
    found = any(batch.confidence.any() for batch in batches(data, data.train_dataloader()))
    assert data.has_keypoints == found == (data.name not in ("folder", "video"))


def test_absent_labels_are_zeros(data):
    for batch in batches(data, data.val_dataloader()):
        pairs = {"joints_3d": "joints_3d", "vertices": "vertices", "mask": "mask",
                 "pose": "pose", "betas": "pose", "translation": "pose",
                 "visibility": "visibility"}  # fmt: skip
        for name, has in pairs.items():
            absent = getattr(batch, f"has_{has}") == 0
            assert not getattr(batch, name)[absent].any(), name
        assert not batch.keypoints_2d[batch.confidence == 0].any()


def test_labels_agree_with_each_other(data):
    hand = hand_model("OpenHand")
    for batch in batches(data, data.val_dataloader()):
        assert (batch.intrinsics[:, [0, 1], [0, 1]] > 0).all()
        flat = batch.intrinsics[:, 2]
        assert torch.equal(flat, torch.tensor([0.0, 0, 1]).expand_as(flat))
        labelled = batch.has_joints_3d > 0
        seen = project(batch.joints_3d, batch.intrinsics)
        torch.testing.assert_close(
            seen[labelled], batch.keypoints_2d[labelled], atol=1e-3, rtol=1e-5
        )
        posed = hand.decode(batch.pose, batch.betas, batch.translation)
        has_pose = batch.has_pose > 0
        torch.testing.assert_close(
            posed.joints[has_pose], batch.joints_3d[has_pose], atol=1e-5, rtol=0
        )
        meshes = has_pose & (batch.has_vertices > 0)
        torch.testing.assert_close(
            posed.vertices[meshes], batch.vertices[meshes], atol=1e-5, rtol=0
        )


def test_splits_are_disjoint_and_in_order(data):
    train = {i for b in batches(data, data.train_dataloader()) for i in b.sample_id.tolist()}
    order = [i for b in batches(data, data.val_dataloader()) for i in b.sample_id.tolist()]
    assert order == sorted(order)
    assert order == [i for b in batches(data, data.val_dataloader()) for i in b.sample_id.tolist()]
    numbered_by_split = ("synthetic", "mixture", "dexycb", "interhand26m")
    if data.name not in numbered_by_split:
        assert train.isdisjoint(order)


def test_fingerprints_tell_splits(data):
    assert len(data.fingerprint("train")) == 64
    assert data.fingerprint("nonsense") == ""


@pytest.mark.parametrize("name", SETS)
def test_augmentation_keeps_labels_exact(name, folder):
    augmentation = Augmentation(rotation=90.0)
    data = build(name, folder, augmentation=augmentation)
    data.prepare_data()
    data.setup("")
    for batch in batches(data, data.train_dataloader()):
        turned = augmentation.augment(batch)
        labelled = turned.has_joints_3d > 0
        seen = project(turned.joints_3d, turned.intrinsics)[labelled]
        torch.testing.assert_close(seen, turned.keypoints_2d[labelled], atol=1e-2, rtol=0)


@pytest.mark.parametrize("name", ["freihand", "folder"])
def test_workers_read_what_the_main_process_reads(name, folder):
    alone, helped = build(name, folder), build(name, folder, num_workers=1)
    for data in (alone, helped):
        data.setup("validate")
    loaders = (data.val_dataloader() for data in (alone, helped))
    for one, other in zip(*loaders, strict=True):
        assert torch.equal(one.picture, other.picture)
        assert torch.equal(one.affine, other.affine)


@pytest.mark.parametrize("name", SETS[1:])
def test_nothing_runs_on_a_wrong_root(name, folder, tmp_path):
    data = build(name, tmp_path)
    with pytest.raises(UserError, match=r"no folder|no such (archive|video or folder)"):
        data.setup("fit")


def test_batches_larger_than_the_set_are_refused(folder):
    data = build("freihand", folder, batch_size=99)
    data.setup("fit")
    with pytest.raises(UserError, match="batch_size 99 is more than the 20 samples"):
        data.train_dataloader()
