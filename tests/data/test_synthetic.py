from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning.trainer.states import TrainerFn

from handrec.data.drawing import draw_scenes, skin_colours
from handrec.data.scenes import Views, sample_scenes
from handrec.data.synthetic import SyntheticHands
from handrec.errors import UserError
from handrec.geometry.camera import project
from handrec.hand.openhand import OpenHand
from handrec.render.torch_reference import TorchRasterizer
from handrec.render.warp_backend import WarpRasterizer


@pytest.fixture(scope="module")
def hand():
    return OpenHand()


@pytest.fixture(scope="module")
def scenes(hand):
    return sample_scenes(hand, 24, seed=3)


def module(hand, cache, **arguments):
    sizes = {"image_size": 48, "batch_size": 8, "train_size": 16, "val_size": 8, "test_size": 8}
    data = SyntheticHands(hand, WarpRasterizer(), cache_dir=str(cache), **(sizes | arguments))
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    return data


def first_batch(data, split="train"):
    return data.label(next(iter(getattr(data, f"{split}_dataloader")())))


def test_same_seed_same_scenes(hand, scenes):
    again, other = sample_scenes(hand, 24, seed=3), sample_scenes(hand, 24, seed=4)
    for before, after in zip(scenes, again, strict=True):
        torch.testing.assert_close(after, before, atol=0, rtol=0)
    assert not torch.equal(scenes.pose, other.pose)


def test_views_stay_within_their_cone(hand):
    """Fingers (-x at rest) near up (-y); the palm (-y at rest) towards or away from the camera."""
    pose = sample_scenes(hand, 400, seed=0, views=Views(cone=40.0, spin=30.0)).pose[:, 0]
    fingers, palm = -pose[:, :, 0], -pose[:, :, 1]
    assert -fingers[:, 1].min() >= -torch.cos(torch.tensor(40.0).deg2rad()) - 1e-5
    assert (-fingers[:, 1]).min() < 0.8
    # turned by up to 30 degrees, then leaning by up to 40
    assert palm[:, 2].abs().min() > torch.cos(torch.tensor(70.0).deg2rad())
    assert 0.4 < (palm[:, 2] < 0).float().mean() < 0.6


def test_every_view_is_as_likely_as_any_other(hand):
    pose = sample_scenes(hand, 2000, seed=0).pose[:, 0]
    # uniform rotations: every column is uniform on the sphere, so each entry on [-1, 1]
    ranks = pose.flatten(1).sort(0).values
    uniform = torch.linspace(-1, 1, 2000)[:, None]
    assert (ranks - uniform).abs().max() < 0.1


def test_hands_lie_before_the_camera_and_nearly_inside_their_crops(hand, scenes):
    posed = hand.decode(scenes.pose, scenes.betas, scenes.translation)
    assert posed.vertices[..., 2].min() > 0.1
    inside = project(posed.vertices, scenes.intrinsics)
    assert inside.min() > -0.15
    assert inside.max() < 1.15
    extent = (inside.amax(1) - inside.amin(1)).amax(1)
    assert extent.min() > 1 / 1.5 - 1e-4
    assert extent.max() < 1 / 1.15 + 1e-4


def test_crops_lead_back_to_the_full_picture(hand, scenes):
    """The full picture's camera has its principal point in the middle of 640 x 480."""
    full = scenes.crop_to_image @ scenes.intrinsics
    expected = torch.tensor([[600.0, 0, 320], [0, 600, 240], [0, 0, 1]])
    torch.testing.assert_close(full, expected.expand(24, 3, 3), atol=0.02, rtol=0)


def test_backends_draw_the_same_picture(hand, scenes):
    posed = hand.decode(scenes.pose, scenes.betas, scenes.translation)
    drawn = [
        draw_scenes(scenes, posed, hand, rasterizer, 32)
        for rasterizer in (WarpRasterizer(), TorchRasterizer())
    ]
    difference = (drawn[0][0] - drawn[1][0]).abs()
    assert (difference > 1 / 255).float().mean() < 1e-3
    torch.testing.assert_close(drawn[0][1].mean(), drawn[1][1].mean(), atol=1e-4, rtol=0)


def test_palm_is_lighter_than_the_back(hand, scenes):
    colours = skin_colours(scenes._replace(waves=0 * scenes.waves), hand).mean(-1)
    lowest, highest = hand.template[:, 1].argmin(), hand.template[:, 1].argmax()
    assert (colours[:, lowest] >= colours[:, highest]).all()
    assert (colours[:, lowest] > 1.05 * colours[:, highest]).float().mean() > 0.5


def test_cached_pictures_are_the_drawn_ones(hand, tmp_path):
    cached = module(hand, tmp_path, cached=True)
    fresh = module(hand, tmp_path, cached=False)
    kept, drawn = first_batch(cached, "test"), first_batch(fresh, "test")
    torch.testing.assert_close(kept.image, drawn.image, atol=0.51 / 255, rtol=0)
    torch.testing.assert_close(kept.mask, drawn.mask, atol=0.51 / 255, rtol=0)
    torch.testing.assert_close(kept.joints_3d, drawn.joints_3d)


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


def test_splits_share_no_scene(hand, tmp_path):
    data = module(hand, tmp_path)
    poses = [data.tables[split].scenes.pose for split in ("train", "val", "test")]
    for i, one in enumerate(poses):
        for other in poses[i + 1 :]:
            assert (one[:, None] - other[None]).abs().amax((2, 3, 4)).min() > 1e-3


def test_a_split_does_not_depend_on_the_size_of_batches_or_other_splits(hand, tmp_path):
    one = module(hand, tmp_path / "a", batch_size=4).tables["test"].scenes
    other = module(hand, tmp_path / "b", batch_size=8, train_size=24).tables["test"].scenes
    torch.testing.assert_close(one.pose, other.pose, atol=0, rtol=0)


def test_detected_keypoints_are_off_and_say_so(hand, tmp_path):
    sizes = {"train_size": 256, "test_size": 256, "batch_size": 256}
    exact = first_batch(module(hand, tmp_path, **sizes), "test")
    data = module(hand, tmp_path, keypoints="detected", **sizes)
    detected = first_batch(data, "test")
    error = (detected.keypoints_2d - exact.keypoints_2d).norm(dim=-1).flatten() / 48
    assert 0.01 < error.median() < 0.04
    assert 0.02 < (error > 0.1).float().mean() < 0.08
    correlation = torch.corrcoef(torch.stack([error, detected.confidence.flatten()]))[0, 1]
    assert -0.95 < correlation < -0.3
    assert (exact.confidence == 1).all()


def test_an_evaluation_draws_its_own_split_only(hand, tmp_path):
    data = SyntheticHands(hand, WarpRasterizer(), 48, 8, 16, 8, 8, cache_dir=str(tmp_path))
    data.trainer = SimpleNamespace(state=SimpleNamespace(fn=TrainerFn.TESTING))
    data.prepare_data()
    assert [path.name.split("-")[1] for path in tmp_path.iterdir()] == ["test"]


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
    file = next(tmp_path.glob("*-test-*"))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="is damaged"):
        module(hand, tmp_path)


def test_interrupted_drawing_leaves_no_half_file(hand, tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("handrec.data.synthetic.save_file", fail)
    with pytest.raises(KeyboardInterrupt):
        module(hand, tmp_path)
    assert list(tmp_path.iterdir()) == []
