import math

import pytest
import torch

from handrec.hand.anatomy import joint_angles, limit_excess
from handrec.hand.joints import FINGERS, JOINTS, KINEMATIC_JOINTS
from handrec.hand.openhand import OpenHand
from handrec.hand.sampler import GESTURES, PoseSampler

DEGREE = math.pi / 180


@pytest.fixture(scope="module")
def hand():
    return OpenHand()


@pytest.fixture(scope="module")
def sampler(hand):
    return PoseSampler(hand)


@pytest.fixture(scope="module")
def poses(sampler):
    return sampler.sample(2000, torch.Generator().manual_seed(0))


def decode(hand, poses):
    return hand.decode(poses, torch.zeros(len(poses), 10), torch.zeros(len(poses), 3))


def test_poses_are_rotations_with_the_wrist_at_identity(poses):
    assert poses.shape == (2000, 16, 3, 3)
    torch.testing.assert_close(poses @ poses.mT, torch.eye(3).expand_as(poses), atol=1e-5, rtol=0)
    assert torch.linalg.det(poses).min() > 0.999
    assert torch.equal(poses[:, 0], torch.eye(3).expand(2000, 3, 3))


def test_the_same_seed_gives_the_same_poses_and_another_others(sampler, poses):
    again = sampler.sample(2000, torch.Generator().manual_seed(0))
    assert torch.equal(again, poses)
    other = sampler.sample(2000, torch.Generator().manual_seed(1))
    assert (other - poses).abs().amax((1, 2, 3)).min() > 1e-3


@pytest.mark.parametrize("count", [0, 1, 7])
def test_any_count(sampler, count):
    assert sampler.sample(count, torch.Generator().manual_seed(0)).shape == (count, 16, 3, 3)


def test_limits_are_respected(hand, poses):
    excess = limit_excess(joint_angles(poses, hand.joint_axes), hand.joint_limits)
    assert excess.max() < 1e-5


def test_skin_parts_do_not_run_into_each_other(hand, sampler, poses):
    # On the skinned joints, not the fast ones the sampler rejects with.
    depth = sampler.spheres.penetration(decode(hand, poses).joints).amax(1)
    assert depth.max() < 0.0035
    raw = sampler.propose(2000, torch.Generator().manual_seed(0))
    free = sampler.is_free(raw).float().mean()
    assert 0.6 < free < 0.95  # some are rejected, most are not


def test_poses_cover_open_and_closed_hands(hand, poses):
    joints = decode(hand, poses).joints
    for finger in FINGERS[1:]:
        base, tip = JOINTS.index(f"{finger}_mcp"), JOINTS.index(f"{finger}_tip")
        reach = (joints[:, tip] - joints[:, base]).norm(dim=-1)
        assert reach.quantile(0.05) < 0.55 * reach.quantile(0.95)
    bends = joint_angles(poses, hand.joint_axes)[..., 2]
    assert bends.std(0).min() > 10 * DEGREE


def test_dip_joints_follow_pip_joints(hand, poses):
    bends = joint_angles(poses, hand.joint_axes)[..., 2]
    for finger in FINGERS[1:]:
        pip, dip = (bends[:, KINEMATIC_JOINTS.index(f"{finger}_{p}") - 1] for p in ("pip", "dip"))
        assert torch.corrcoef(torch.stack([pip, dip]))[0, 1] > 0.98
        assert (dip - 2 / 3 * pip).abs().mean() < 3 * DEGREE


@pytest.mark.parametrize("name", GESTURES)
def test_gestures_are_possible(hand, sampler, name):
    pose = sampler.gesture(name)[None]
    assert limit_excess(joint_angles(pose, hand.joint_axes), hand.joint_limits).max() < 1e-5
    assert sampler.is_free(pose).all()


def tip_gap(hand, sampler, name, first, second):
    joints = decode(hand, sampler.gesture(name)[None]).joints[0]
    return (joints[JOINTS.index(first)] - joints[JOINTS.index(second)]).norm().item()


def test_gestures_mean_what_they_say(hand, sampler):
    for name in ("pinch", "ok", "tripod"):
        assert tip_gap(hand, sampler, name, "thumb_tip", "index_tip") < 0.02
    assert tip_gap(hand, sampler, "little touch", "thumb_tip", "little_tip") < 0.02
    assert tip_gap(hand, sampler, "flat", "thumb_tip", "index_tip") > 0.06
    joints = decode(hand, sampler.gesture("peace")[None]).joints[0]
    from_wrist = joints.norm(dim=-1)
    tips = {finger: from_wrist[JOINTS.index(f"{finger}_tip")] for finger in FINGERS}
    assert min(tips["index"], tips["middle"]) > 0.17
    assert max(tips["ring"], tips["little"]) < 0.1
    # A fist closes on the palm's side.
    fist = decode(hand, sampler.gesture("fist")[None]).joints[0]
    assert fist[8::4, 1].max() < -0.02


def test_mean_pose_is_relaxed(hand):
    bends = joint_angles(hand.mean_pose[None], hand.joint_axes)[0, :12, 2] / DEGREE
    assert bends.min() > 10
    assert bends.max() < 65
