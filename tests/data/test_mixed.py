"""Mixtures of sets with different labels."""

import pytest
from tests.sets import SIZE, drawn, hand_model, rows

from handrec.data.augment import Augmentation
from handrec.data.coco_hands import CocoHands
from handrec.data.folder import Folder
from handrec.data.freihand import FreiHand
from handrec.data.layouts import write_coco, write_freihand
from handrec.data.mixed import MixedSets, shares
from handrec.data.packing import write_drawn
from handrec.data.shards import Shards
from handrec.data.synthetic import SyntheticHands
from handrec.errors import UserError
from handrec.render.warp_backend import WarpRasterizer

LABELS = {
    "freihand": {"joints_3d", "vertices", "pose", "mask"}, "coco": {"visibility"}, "folder": set(),
    "shards": set(),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, hand = tmp_path_factory.mktemp("mixed"), hand_model("OpenHand")
    batch = drawn("OpenHand")
    write_freihand(folder / "freihand", [rows(batch, 0, 6)], [rows(batch, 6, 8)], hand)
    write_coco(folder / "coco", [batch], hand)
    write_drawn(folder / "shards", [batch], hand, per_shard=4)
    return folder


def sets(folder, names=("freihand", "coco", "folder", "shards"), **options):
    common = {"num_workers": 0} | options
    cached = common | {"cache_dir": str(folder / "labels")}
    made = {
        "freihand": lambda: FreiHand(str(folder / "freihand"), **cached),
        "coco": lambda: CocoHands(str(folder / "coco"), **cached),
        "folder": lambda: Folder(str(folder / "coco/images"), **cached),
        "shards": lambda: Shards(str(folder / "shards"), val_share=0.4, **common),
    }
    return {name: made[name]() for name in names}


def mixture(chosen, *args, **options):
    common = {"hand": hand_model("OpenHand"), "image_size": SIZE, "augmentation": Augmentation()}
    return MixedSets(chosen, *args, **common | options)


def test_rows_have_the_labels_of_their_sets(folder):
    weights = {"freihand": 2.0, "folder": 0.5}
    data = mixture(sets(folder), weights, batch_size=9)
    assert data.shares == {"freihand": 4, "coco": 2, "folder": 1, "shards": 2}
    assert data.projected_keypoints  # of freihand
    assert not data.intrinsics_known  # not of the others
    for names, known in ((("freihand",), True), (("freihand", "shards"), False)):
        assert mixture(sets(folder, names), batch_size=8).intrinsics_known == known
    data.setup("fit")
    number = 0
    for batch, _, _ in data.train_dataloader():
        read = data.on_after_batch_transfer(batch, 0)
        assert len(read.image) == 9
        assert len(set(read.sequence.tolist())) == len(set(read.sample_id.tolist()))
        start = 0
        for name, count in data.shares.items():
            part = rows(read, start, start + count)
            for label in ("joints_3d", "vertices", "pose", "mask", "visibility"):
                present = getattr(part, f"has_{label}")
                assert present.all() == (label in LABELS[name]), (name, label)
                assert not getattr(part, label)[present == 0].any()
            assert part.confidence.any() == (name != "folder")
            start += count
        number += 1
    assert number == 7  # photos of the folder, one in a batch: the set that lasts longest


def test_one_set_with_keypoints_is_enough(folder):
    for names, known in ((("folder",), False), (("folder", "shards"), True)):
        data = mixture(sets(folder, names), batch_size=4)
        data.setup("fit")
        assert data.has_keypoints == known


def test_evaluation_is_that_of_one_set(folder):
    data = mixture(sets(folder), batch_size=8, validate_on="coco")
    data.setup("fit")
    (batch,) = [data.on_after_batch_transfer(b, 0) for b in data.val_dataloader()]
    assert not batch.has_joints_3d.any()
    assert data.fingerprint("val") == data.sets["coco"].fingerprint("val")
    assert mixture(sets(folder), batch_size=8).submission == "freihand"


def test_shares_are_as_near_the_weights_as_whole_rows_are():
    for batch_size in range(3, 40):
        weights = {"a": 5.0, "b": 1.0, "c": 0.01}
        found = shares(weights, batch_size)
        assert sum(found.values()) == batch_size
        assert min(found.values()) >= 1
        if batch_size > 20:
            assert abs(found["a"] / found["b"] - 5) < 1.5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weights": {"x": 1.0}}, "a mixture of freihand, coco has no set x"),
        ({"validate_on": "x"}, "has no set x"),
        ({"weights": {"coco": 0.0}}, "weights of a mixture are positive"),
        ({"weights": {"coco": float("nan")}}, "weights of a mixture are positive"),
        ({"batch_size": 1}, "batch_size 1 has no room for 2 data sets"),
    ],
)
def test_mixtures_that_cannot_be(folder, options, said):
    with pytest.raises(UserError, match=said):
        mixture(sets(folder, ("freihand", "coco")), **options)


def test_drawn_sets_must_fit(folder, tmp_path):
    drawn_set = {"drawn": SyntheticHands(hand_model("OpenHand"), WarpRasterizer(), image_size=32)}
    with pytest.raises(UserError, match="have its image_size: mixture 96, coco 96, drawn 32"):
        mixture(sets(folder, ("coco",)) | drawn_set)
    with pytest.raises(UserError, match="have its hand: mixture Mano, coco Mano, drawn OpenHand"):
        mixture(sets(folder, ("coco",)) | drawn_set, hand=hand_model("Mano"), image_size=32)
    with pytest.raises(UserError, match="at least one"):
        mixture({})


def test_a_broken_set_stops_the_mixture(folder, tmp_path):
    (tmp_path / "images").mkdir()
    chosen = sets(folder, ("freihand", "folder"))
    chosen["folder"].given_root = str(tmp_path / "images")
    with pytest.raises(UserError, match="no images"):
        mixture(chosen).setup("fit")
