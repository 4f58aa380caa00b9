import pytest
import torch

from handrec.callbacks.smoothing import HandSmoother
from handrec.geometry.camera import project
from handrec.geometry.rotations import axis_angle_to_matrix
from handrec.hand.openhand import OpenHand
from handrec.types import HandPrediction

FRAMES, RATE = 60, 30.0


@pytest.fixture(scope="module")
def hand():
    return OpenHand()


def cameras(count):
    matrix = torch.tensor([[400.0, 0, 100], [0, 400, 100], [0, 0, 1]])
    return matrix.expand(count, 3, 3)


def predictions(hand, noise, scale=1.0, seed=0):
    """A hand that turns and comes nearer, and noise on all that is predicted of it."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *size: noise * torch.randn(*size, generator=generator)  # noqa: E731
    time = torch.arange(FRAMES) / RATE
    turn = torch.zeros(FRAMES, 16, 3)
    turn[:, 0, 1] = 0.8 * torch.sin(2 * time)
    turn[:, 1:, 2] = 0.3 + 0.3 * torch.sin(3 * time)[:, None]
    pose = axis_angle_to_matrix(turn + draw(FRAMES, 16, 3)) @ hand.mean_pose
    betas = 0.5 + 5 * draw(FRAMES, 10)
    translation = torch.stack([0.05 * time, 0 * time, 0.6 - 0.05 * time], 1)
    translation = translation + 0.1 * draw(FRAMES, 3) * torch.tensor([0.2, 0.2, 1.0])
    posed = hand.decode(pose, betas, torch.zeros(FRAMES, 3))
    vertices, joints = (scale * points + translation[:, None] for points in posed)
    keypoints = project(joints, cameras(FRAMES))
    scales = torch.full((FRAMES,), scale)
    return HandPrediction(vertices, joints, keypoints, pose, betas, translation, scales)


def jitter(points):
    return (points[2:] - 2 * points[1:-1] + points[:-2]).norm(dim=-1).mean()


def smooth(hand, prediction, tracks=None, seconds=None):
    count = len(prediction.pose)
    times = seconds or [i / RATE for i in range(count)]
    return HandSmoother(hand).smooth(prediction, cameras(count), tracks or [0] * count, times)


def test_noise_goes_and_the_hand_is_not_left_behind(hand):
    truth, noisy = predictions(hand, 0.0), predictions(hand, 0.1)
    found = smooth(hand, noisy)
    assert jitter(found.joints) < 0.5 * jitter(noisy.joints)
    error = [(x.joints - truth.joints).norm(dim=-1).mean() for x in (noisy, found)]
    assert error[1] < 0.75 * error[0]
    clean = smooth(hand, truth)
    assert (clean.joints - truth.joints).norm(dim=-1).mean() < 0.006


@pytest.mark.parametrize("scale", [1.0, 1.2])
def test_mesh_joints_and_keypoints_belong_together(hand, scale):
    """Scaled hands too, as S2HAND predicts: ``scale * decode(pose, betas, 0) + translation``."""
    found = smooth(hand, predictions(hand, 0.05, scale))
    posed = hand.decode(found.pose, found.betas, torch.zeros(FRAMES, 3))
    torch.testing.assert_close(found.keypoints_2d, project(found.joints, cameras(FRAMES)))
    for points, expected in zip(found[:2], posed, strict=True):
        placed = scale * expected + found.translation[:, None]
        torch.testing.assert_close(points, placed, atol=2e-4, rtol=0)


def test_the_first_frame_and_a_hand_that_was_away_start_anew(hand):
    noisy = predictions(hand, 0.1)
    times = [i / RATE + (2.0 if i >= 30 else 0.0) for i in range(FRAMES)]
    found = smooth(hand, noisy, seconds=times)
    for row in (0, 30):
        torch.testing.assert_close(found.joints[row], noisy.joints[row], atol=1e-5, rtol=0)
    assert (found.joints[31] - noisy.joints[31]).norm(dim=-1).mean() > 1e-4


def test_tracks_do_not_touch_each_other(hand):
    first, second = predictions(hand, 0.1, seed=1), predictions(hand, 0.1, seed=2)
    parts = (torch.stack(pair, 1).flatten(0, 1)
             for pair in zip(first[:7], second[:7], strict=True))  # fmt: skip
    times = [i // 2 / RATE for i in range(2 * FRAMES)]
    found = smooth(hand, HandPrediction(*parts), [4, 9] * FRAMES, times)
    for start, alone in ((0, first), (1, second)):
        torch.testing.assert_close(found.joints[start::2], smooth(hand, alone).joints)


def test_batches_do_not_matter(hand):
    noisy = predictions(hand, 0.1)
    smoother, parts = HandSmoother(hand), []
    for rows in torch.arange(FRAMES).split(7):
        part = HandPrediction(*(field[rows] for field in noisy[:7]))
        times = [i / RATE for i in rows.tolist()]
        parts.append(smoother.smooth(part, cameras(len(rows)), [0] * len(rows), times).joints)
    torch.testing.assert_close(torch.cat(parts), smooth(hand, noisy).joints)


def test_what_is_not_finite_stays_so_and_spoils_nothing_after_it(hand):
    noisy = predictions(hand, 0.1)
    translation = noisy.translation.clone()
    translation[20] = torch.nan
    vertices, joints = noisy.vertices.clone(), noisy.joints.clone()
    vertices[20] = joints[20] = torch.nan
    broken = noisy._replace(translation=translation, vertices=vertices, joints=joints)
    finite = smooth(hand, broken).joints.isfinite().all(-1).all(-1)
    assert finite.nonzero().flatten().tolist() == [i for i in range(FRAMES) if i != 20]
