import pytest
import torch

from handrec.data.scenes import Views
from handrec.data.videos import FRAME_RATE, minimum_jerk, sample_videos
from handrec.geometry.camera import project
from handrec.geometry.rotations import geodesic_distance
from handrec.hand.anatomy import joint_angles, limit_excess
from handrec.hand.openhand import OpenHand
from handrec.hand.sampler import PoseSampler
from handrec.hand.skinning import posed_joints

COUNT, FRAMES = 6, 50
VIEWS = Views(cone=50.0, spin=40.0)


@pytest.fixture(scope="module")
def hand():
    return OpenHand()


@pytest.fixture(scope="module")
def scenes(hand):
    return sample_videos(hand, COUNT, FRAMES, 5, VIEWS)


def per_video(column):
    return column.unflatten(0, (COUNT, FRAMES))


def test_rows_are_numbered_frames(scenes):
    assert per_video(scenes.frame).tolist() == [list(range(FRAMES))] * COUNT
    assert per_video(scenes.sequence)[:, 0].tolist() == list(range(COUNT))
    assert (per_video(scenes.sequence).diff(dim=1) == 0).all()
    assert len(scenes.noise_seed.unique()) == COUNT * FRAMES


def test_a_seed_gives_the_same_videos(hand, scenes):
    for one, other in zip(scenes, sample_videos(hand, COUNT, FRAMES, 5, VIEWS), strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0)


def test_shape_and_crop_margin_are_constant_but_hands_move(hand, scenes):
    assert (per_video(scenes.betas).diff(dim=1) == 0).all()
    joints = per_video(hand.decode(scenes.pose, scenes.betas, scenes.translation).joints)
    relative = joints - joints[:, :, :1]
    assert (joints[:, :, 0].amax(1) - joints[:, :, 0].amin(1)).norm(dim=1).min() > 0.03
    assert (relative.amax(1) - relative.amin(1)).amax(-1).amax(-1).min() > 0.03


def test_hands_move_at_human_speeds_and_smoothly(hand, scenes):
    joints = per_video(hand.decode(scenes.pose, scenes.betas, scenes.translation).joints)
    speed = joints.diff(dim=1).norm(dim=-1) * FRAME_RATE
    assert 0.05 < speed.mean() < 0.5
    assert speed.max() < 2.0  # metres per second: a fast reach
    rotations = per_video(scenes.pose)
    turning = geodesic_distance(rotations[:, 1:], rotations[:, :-1]) * FRAME_RATE
    assert turning[:, :, 0].max() < 5
    assert turning[:, :, 1:].max() < 12
    acceleration = joints.diff(n=2, dim=1).norm(dim=-1) * FRAME_RATE**2
    # Frames of a jump would be off by half its height: nothing here comes near.
    assert acceleration.max() < 30


def test_no_frame_leaves_the_views_the_limits_or_the_crop(hand, scenes):
    assert VIEWS.include(scenes.pose[:, 0]).all()
    angles = joint_angles(scenes.pose, hand.joint_axes)
    assert limit_excess(angles, hand.joint_limits).max() < 1e-4
    inside = project(
        hand.decode(scenes.pose, scenes.betas, scenes.translation).vertices, scenes.intrinsics
    )
    assert ((inside > 0) & (inside < 1)).all(-1).float().mean() > 0.99


def test_hands_seldom_run_into_themselves(hand, scenes):
    sampler = PoseSampler(hand)
    wrist = torch.eye(3).expand(COUNT * FRAMES, 1, 3, 3)
    poses = torch.cat([wrist, scenes.pose[:, 1:]], dim=1)
    depth = sampler.spheres.penetration(posed_joints(poses, sampler.rest)).amax(1)
    assert (depth < sampler.tolerance).float().mean() > 0.95


def test_curves_pass_their_keys_at_rest():
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(3, 4, 2, generator=generator)
    times = torch.tensor([[0.0, 40, 100, 200]] * 3)
    curve = minimum_jerk(keys, times, 201)
    torch.testing.assert_close(curve[:, [0, 40, 100, 200]], keys)
    speed = curve.diff(dim=1).abs()
    assert speed[:, [0, 39, 40, 99, 100, 199]].max() < 0.01 * speed.max()
    # peak speed is 15/8 of the mean speed
    step = (keys[:, 3] - keys[:, 2]).abs() / 100
    torch.testing.assert_close(speed[:, 100:].amax(1), step * 15 / 8, atol=0, rtol=1e-3)
