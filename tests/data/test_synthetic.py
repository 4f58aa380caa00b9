from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning.trainer.states import TrainerFn

from handrec.data import splits
from handrec.data.appearance.plain import Plain
from handrec.data.augment import Augmentation
from handrec.data.clips import Clip
from handrec.data.detector import PRESETS
from handrec.data.scenes import Views
from handrec.data.synthetic import SyntheticHands
from handrec.errors import UserError
from handrec.geometry.camera import project
from handrec.hand.openhand import OpenHand
from handrec.render.torch_reference import TorchRasterizer
from handrec.render.warp_backend import WarpRasterizer

EVERYTHING = ("test", "test_hard_views", "test_shift", "video")
NARROW = Views(cone=60.0, spin=60.0)


class Tinted(Plain):
    """Plain pictures through a coloured filter: stands for another domain."""

    name = "tinted"

    def __init__(self, tint: float = 0.5, options: tuple[str, ...] = ()) -> None:
        self.tint, self.options = tint, options

    def draw(self, stage, look):
        drawn = super().draw(stage, look)
        return drawn._replace(image=drawn.image * torch.tensor([self.tint, 1.0, 1.0]).view(3, 1, 1))


@pytest.fixture(scope="module")
def hand():
    return OpenHand()


def module(hand, cache, **arguments):
    sizes = {"image_size": 48, "batch_size": 8, "train_size": 16, "val_size": 8, "test_size": 8}
    data = SyntheticHands(hand, WarpRasterizer(), cache_dir=str(cache), **(sizes | arguments))
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    return data


def every_split(hand, cache, **arguments):
    options = {"views": NARROW, "shifted": Tinted(), "test_splits": EVERYTHING}
    options |= {"video_sequences": 3, "video_frames": 6}
    return module(hand, cache, **(options | arguments))


def first_batch(data, split="train"):
    return data.label(next(iter(getattr(data, f"{split}_dataloader")())))


def test_cached_pictures_are_the_drawn_ones(hand, tmp_path):
    cached = module(hand, tmp_path, cached=True)
    fresh = module(hand, tmp_path, cached=False)
    kept, drawn = first_batch(cached, "test"), first_batch(fresh, "test")
    torch.testing.assert_close(kept.image, drawn.image, atol=0.51 / 255, rtol=0)
    torch.testing.assert_close(kept.mask, drawn.mask, atol=0.51 / 255, rtol=0)
    torch.testing.assert_close(kept.joints_3d, drawn.joints_3d)
    torch.testing.assert_close(kept.visibility, drawn.visibility)
    assert (kept.has_visibility == 1).all()
    assert 0.3 < kept.visibility.mean() < 1


def test_labels_agree_with_the_picture(hand, tmp_path):
    """Vertices project onto the mask, joints onto the keypoints, parameters give the vertices."""
    batch = first_batch(module(hand, tmp_path))
    posed = hand.decode(batch.pose, batch.betas, batch.translation)
    torch.testing.assert_close(posed.vertices, batch.vertices)
    torch.testing.assert_close(project(batch.joints_3d, batch.intrinsics), batch.keypoints_2d)
    pixels = project(batch.vertices, batch.intrinsics)

    def covered(shift):
        """Return how much of the mask lies under the vertices, moved sideways by pixels."""
        moved = pixels + torch.tensor([shift, 0.0])
        grid = (2 * moved / 48 - 1)[:, :, None]
        mask = torch.nn.functional.grid_sample(batch.mask, grid, align_corners=False)
        inside = ((pixels > 4) & (pixels < 44)).all(-1)
        return mask[:, 0, :, 0][inside].mean()

    # vertices on the outline see half a pixel of hand; a pixel to either side is worse
    assert covered(0.0) > 0.85
    assert covered(0.0) > max(covered(-1.0), covered(1.0)) + 0.01


def test_splits_share_no_hand_but_those_that_are_to(hand, tmp_path):
    data = every_split(hand, tmp_path, clip=Clip(2))
    poses = {name: table.scenes.pose for name, table in data.tables.items()}
    assert set(poses) == {"train", "val", "train_video", *EVERYTHING}
    for one, first in poses.items():
        for other, second in poses.items():
            if one < other:
                same = (first[:, None] - second[None]).abs().amax((2, 3, 4)).min() < 1e-3
                assert same == ({one, other} == {"test", "test_shift"}), (one, other)


def test_a_shift_changes_nothing_but_the_picture(hand, tmp_path):
    data = every_split(hand, tmp_path)
    loaders = dict(zip(EVERYTHING, data.test_dataloader(), strict=True))
    plain, tinted = (data.label(next(iter(loaders[name])), name) for name in ("test", "test_shift"))
    assert not torch.equal(plain.image, tinted.image)
    assert tinted.image[:, 0].max() <= 0.5
    for name in ("mask", "joints_3d", "visibility", "intrinsics", "keypoints_2d"):
        torch.testing.assert_close(getattr(plain, name), getattr(tinted, name))


@pytest.mark.parametrize("cached", [False, True])
def test_trainers_get_each_split_in_its_own_domain(hand, tmp_path, cached):
    data = every_split(hand, tmp_path, cached=cached)
    data.trainer = SimpleNamespace(testing=True, training=False, global_rank=0, world_size=1)
    for index, (name, loader) in enumerate(zip(EVERYTHING, data.test_dataloader(), strict=True)):
        batch = data.on_after_batch_transfer(next(iter(loader)), index)
        assert (batch.image[:, 0].max() <= 0.505) == (name == "test_shift")
        assert NARROW.include(batch.pose[:, 0]).all() == (name != "test_hard_views")


def test_videos_are_sequences_of_one_look(hand, tmp_path):
    data = every_split(hand, tmp_path, batch_size=16)
    batch = data.label(next(iter(data.test_dataloader()[3])), "video")
    assert batch.sequence.tolist() == [0] * 6 + [1] * 6 + [2] * 4
    assert batch.frame.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5, 0, 1, 2, 3]
    backgrounds = batch.image[:, :, :3, :3]  # corners, where no hand is
    assert (backgrounds[:6] - backgrounds[0]).abs().max() < 1e-6
    assert (backgrounds[6] - backgrounds[0]).abs().max() > 0.01


def test_a_split_depends_on_nothing_but_itself(hand, tmp_path, monkeypatch):
    one = every_split(hand, tmp_path / "a", batch_size=4, test_size=24)
    other = every_split(
        hand, tmp_path / "b", batch_size=8, train_size=24, test_size=24, cached=True,
        test_splits=("video", "test"), clip=Clip(2), image_size=32,
    )  # fmt: skip
    for split in ("test", "video"):
        scenes = one.tables[split].scenes, other.tables[split].scenes
        for before, after in zip(*scenes, strict=True):
            torch.testing.assert_close(before, after, atol=0, rtol=0)
        assert one.fingerprint(split) == other.fingerprint(split) != ""


def test_blocks_join_seamlessly(hand, tmp_path, monkeypatch):
    monkeypatch.setattr(splits, "BLOCK", 10)
    data = every_split(hand, tmp_path, video_sequences=3, video_frames=4, test_size=24)
    assert data.tables["test"].scenes.sequence.tolist() == list(range(24))
    video = data.tables["video"]
    assert video.scenes.sequence.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    batch = video.rows(torch.tensor([0, 3, 4, 11]))
    torch.testing.assert_close(batch.look["skin"], video.look["skin"][[0, 0, 1, 2]])
    assert len(data.tables["test"].scenes.noise_seed.unique()) == 24


def test_every_change_of_content_names_another_file(hand, tmp_path):
    def maker(image_size=48, cached=True, rasterizer=None, **arguments):
        options = {"views": NARROW, "shifted": Tinted(), "video_frames": 6} | arguments
        return SyntheticHands(
            options.pop("hand", hand), rasterizer or WarpRasterizer(), image_size, 8, 16, 8, 8,
            cached=cached, cache_dir=str(tmp_path), **options,
        ).maker  # fmt: skip

    newer, other_hand = Plain(), OpenHand()
    newer.version = Plain.version + 1
    other_hand.weights = other_hand.weights.flip(0)
    changes = [
        {}, {"cached": False}, {"image_size": 32}, {"seed": 1}, {"views": Views(60.0, 50.0)},
        {"appearance": Tinted()}, {"appearance": Tinted(0.7)}, {"appearance": newer},
        {"appearance": Tinted(options=("a",))}, {"appearance": Tinted(options=("b",))},
        {"hand": other_hand}, {"rasterizer": TorchRasterizer()},
    ]  # fmt: skip
    names = [maker(**change).path("test") for change in changes]
    assert len(set(names)) == len(names)
    assert maker(video_frames=5).path("test") == names[0]  # has no video
    assert maker(video_frames=5).path("video") != maker().path("video")
    assert maker(shifted=Tinted(0.1)).path("test_shift") != maker().path("test_shift")
    assert maker().path("test") == names[0]
    table = replace(maker(), rows=maker().rows | {"test": 9})
    assert table.path("test") != names[0]


def test_an_appearance_must_keep_its_arguments(hand, tmp_path):
    class Forgetful(Plain):
        def __init__(self, strength: float = 1.0) -> None:
            pass

    with pytest.raises(TypeError, match="Forgetful must keep its arguments strength"):
        module(hand, tmp_path, appearance=Forgetful())


def test_training_batches_hold_pictures_and_clips(hand, tmp_path):
    torch.manual_seed(0)
    clip = Clip(length=3, stride=2, share=0.75)
    data = module(hand, tmp_path, clip=clip, train_size=60, video_frames=12, augmentation=None)
    seen = set()
    for raw in data.train_dataloader():
        batch = data.label(raw)
        assert len(batch.image) == 8
        assert batch.sequence[:2].max() < 60  # two pictures, then two clips
        assert batch.sequence[2:].min() >= 60
        for rows in ([2, 3, 4], [5, 6, 7]):
            assert len(batch.sequence[rows].unique()) == 1
            assert batch.frame[rows].diff().tolist() == [2, 2]
            torch.testing.assert_close(batch.betas[rows], batch.betas[rows[:1]].expand(3, 10))
            assert batch.sample_id[rows].diff().tolist() == [2, 2]
        seen |= {(int(s), int(f)) for s, f in zip(batch.sequence[2:], batch.frame[2:], strict=True)}
    assert {sequence for sequence, _ in seen} == set(range(60, 65))
    assert {frame for _, frame in seen} == set(range(12))
    assert len(data.train_dataloader()) == 30


def test_a_clip_is_augmented_as_one(hand, tmp_path):
    torch.manual_seed(0)
    data = module(hand, tmp_path, clip=Clip(3, 1, 0.4), train_size=60, video_frames=12)
    before = data.label(next(iter(data.train_dataloader())))
    after = Augmentation().augment(before)
    turned = after.pose[:, 0] @ before.pose[:, 0].mT
    moved = after.crop_to_image @ torch.linalg.inv(before.crop_to_image)
    size = after.intrinsics[:, 0, 0] / before.intrinsics[:, 0, 0]
    same = [4, 5, 6, 7][-3:]
    torch.testing.assert_close(turned[same], turned[same[:1]].expand(3, 3, 3))
    torch.testing.assert_close(size[same], size[same[:1]].expand(3))
    assert (turned[:5, None] - turned[None, :5]).abs().amax((2, 3)).fill_diagonal_(1).min() > 1e-3
    assert moved.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clip": Clip(4, 4)}, "spans 13 frames, its sequence has 12"),
        ({"clip": Clip(8)}, "no room for a clip of 8 frames"),
        ({"test_splits": ("tset",)}, "no test split tset: there are test"),
        ({"test_splits": ()}, "no test split"),
        ({"test_splits": ("test_hard_views",)}, "test_hard_views is empty"),
        ({"test_splits": ("test_shift",)}, "test_shift needs another appearance"),
    ],
)
def test_what_cannot_be_drawn_is_refused(hand, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        module(hand, tmp_path, video_frames=12, **arguments).train_dataloader()


def test_clips_that_are_none_are_refused():
    for length, stride, share in ((1, 1, 0.5), (3, 0, 0.5), (3, 1, 1.0)):
        with pytest.raises(UserError, match="a clip has at least 2 frames"):
            Clip(length, stride, share)


def test_detected_keypoints_are_off_and_the_same_at_any_resolution(hand, tmp_path):
    exact = first_batch(module(hand, tmp_path, batch_size=16), "test")
    assert (exact.confidence == 1).all()
    for detector in ("noisy", PRESETS["noisy"]):
        small = first_batch(module(hand, tmp_path, detector=detector), "test")
        large = first_batch(module(hand, tmp_path, detector=detector, image_size=96), "test")
        error = (small.keypoints_2d - exact.keypoints_2d).norm(dim=-1) / 48
        assert 0.005 < error.median() < 0.06
        assert small.confidence.std() > 0.1
        close = (small.keypoints_2d / 48 - large.keypoints_2d / 96).norm(dim=-1) < 1e-3
        same = (small.visibility == large.visibility).all(1)  # a pixel beside an edge may differ
        assert close[same].float().mean() > 0.95


def test_an_evaluation_draws_its_own_split_only(hand, tmp_path):
    data = SyntheticHands(hand, WarpRasterizer(), 48, 8, 16, 8, 8, cache_dir=str(tmp_path))
    data.trainer = SimpleNamespace(state=SimpleNamespace(fn=TrainerFn.TESTING))
    data.prepare_data()
    assert [path.name.split("-")[0] for path in tmp_path.iterdir()] == ["test"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 32}, "batch_size 32 must lie between 1 and train_size 16"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"test_size": 0}, "at least 1"),
    ],
)
def test_sizes_that_cannot_be_are_refused(hand, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        module(hand, tmp_path, **arguments)


def test_a_damaged_cache_is_named(hand, tmp_path):
    module(hand, tmp_path)
    file = next(tmp_path.glob("test-*"))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="is damaged"):
        module(hand, tmp_path)


def test_interrupted_drawing_leaves_no_half_file(hand, tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("handrec.data.tables.save_file", fail)
    with pytest.raises(KeyboardInterrupt):
        module(hand, tmp_path)
    assert list(tmp_path.iterdir()) == []
