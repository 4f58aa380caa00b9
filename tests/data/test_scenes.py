import math

import pytest
import torch
from scipy.stats import kstest

from handrec.data.scenes import (
    Views,
    full_intrinsics,
    lean_and_turn,
    rotation_of,
    sample_scenes,
    scene_camera,
)
from handrec.geometry.camera import project
from handrec.geometry.rotations import random_rotations
from handrec.hand.openhand import OpenHand


@pytest.fixture(scope="module")
def hand():
    return OpenHand()


@pytest.fixture(scope="module")
def scenes(hand):
    return sample_scenes(hand, 24, seed=3)


def test_same_seed_same_scenes(hand, scenes):
    again, other = sample_scenes(hand, 24, seed=3), sample_scenes(hand, 24, seed=4)
    for before, after in zip(scenes, again, strict=True):
        torch.testing.assert_close(after, before, atol=0, rtol=0)
    assert not torch.equal(scenes.pose, other.pose)
    assert len(scenes.noise_seed.unique()) == 24


def test_views_stay_within_their_cone(hand):
    """Fingers (-x at rest) near up (-y); the palm (-y at rest) towards or away from the camera."""
    views = Views(cone=40.0, spin=30.0)
    pose = sample_scenes(hand, 400, seed=0, views=views).pose[:, 0]
    fingers, palm = -pose[:, :, 0], -pose[:, :, 1]
    assert -fingers[:, 1].min() >= -math.cos(math.radians(40)) - 1e-5
    assert (-fingers[:, 1]).min() < 0.8
    # turned by up to 30 degrees, then leaning by up to 40
    assert palm[:, 2].abs().min() > math.cos(math.radians(70))
    assert 0.4 < (palm[:, 2] < 0).float().mean() < 0.6
    assert views.include(pose).all()


def test_every_view_is_as_likely_as_any_other(hand):
    pose = sample_scenes(hand, 2000, seed=0).pose[:, 0]
    # uniform rotations: every column is uniform on the sphere, so each entry on [-1, 1]
    ranks = pose.flatten(1).sort(0).values
    uniform = torch.linspace(-1, 1, 2000)[:, None]
    assert (ranks - uniform).abs().max() < 0.1


def test_hard_views_are_all_the_others_uniformly(hand):
    views = Views(cone=60.0, spin=45.0)
    pose = sample_scenes(hand, 1000, seed=0, views=views, outside=True).pose[:, 0]
    assert not views.include(pose).any()
    everywhere = random_rotations(20_000, torch.Generator().manual_seed(1))
    inside = views.include(everywhere)
    assert inside.float().mean().item() == pytest.approx(views.share, abs=0.01)
    rest = everywhere[~inside]
    for row in range(3):
        for column in range(3):
            test = kstest(pose[:, row, column].numpy(), rest[:, row, column].numpy())
            assert test.pvalue > 1e-3


def test_leans_and_turns_are_found_again():
    generator = torch.Generator().manual_seed(0)
    rotation = random_rotations(200, generator)
    torch.testing.assert_close(rotation_of(*lean_and_turn(rotation)), rotation, atol=1e-4, rtol=0)
    upright = rotation_of(torch.zeros(2, 2), torch.tensor([0.0, math.pi]))
    torch.testing.assert_close(-upright[:, :, 0], torch.tensor([[0.0, -1, 0]]).expand(2, 3))
    # the palm (-y at rest) looks to the camera, then away from it
    torch.testing.assert_close(-upright[:, :, 1], torch.tensor([[0.0, 0, -1], [0, 0, 1]]))


def test_hands_lie_before_the_camera_and_nearly_inside_their_crops(hand, scenes):
    posed = hand.decode(scenes.pose, scenes.betas, scenes.translation)
    assert posed.vertices[..., 2].min() > 0.1
    inside = project(posed.vertices, scenes.intrinsics)
    assert inside.min() > -0.15
    assert inside.max() < 1.15
    extent = (inside.amax(1) - inside.amin(1)).amax(1)
    assert extent.min() > 1 / 1.5 - 1e-4
    assert extent.max() < 1 / 1.15 + 1e-4


def test_crops_lead_back_to_the_full_picture(scenes):
    """The full picture's camera has its principal point in the middle of 640 x 480."""
    full = scenes.crop_to_image @ scenes.intrinsics
    expected = torch.tensor([[600.0, 0, 320], [0, 600, 240], [0, 0, 1]])
    torch.testing.assert_close(full, expected.expand(24, 3, 3), atol=0.02, rtol=0)
    torch.testing.assert_close(full_intrinsics(), expected)


def test_cameras_of_any_size_see_the_same(hand, scenes):
    joints = hand.decode(scenes.pose, scenes.betas, scenes.translation).joints
    small, large = (project(joints, scene_camera(scenes, n).intrinsics) / n for n in (50, 200))
    torch.testing.assert_close(small, large)
