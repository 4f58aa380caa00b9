"""Motion and consistency of clips: against scipy's slerp, and on clips made to cost nothing."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation, Slerp

from handrec.geometry.rotations import axis_angle_to_matrix
from handrec.losses import temporal as loss
from handrec.losses.temporal import find_clips


def test_clips_are_found():
    sequence = torch.tensor([7, 3, 3, 3, 3, 3, 5, 5, 9, 9])
    frame = torch.tensor([0, 4, 6, 8, 2, 3, 0, 9, 4, 4])
    clips = find_clips(sequence, frame)
    #    single, a clip of three, another of two of the same video, too far apart, not rising
    assert clips.first.tolist() == [0, 1, 1, 1, 4, 4, 6, 7, 8, 9]
    assert clips.last.tolist() == [0, 3, 3, 3, 5, 5, 6, 7, 8, 9]
    assert clips.time.tolist() == [0, 0, 0.5, 1, 0, 1, 0, 0, 0, 0]
    assert clips.in_clip.tolist() == [False, *[True] * 5, *[False] * 4]
    assert clips.between.nonzero().flatten().tolist() == [2]


def test_slerp_is_scipys():
    random = np.random.default_rng(0)
    ends = Rotation.random(2 * 20, rng=random)
    start, end = (torch.tensor(ends.as_quat(scalar_first=True)[i::2]) for i in (0, 1))
    time = torch.rand(20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = loss.slerp(start, end, time)
    for i in range(20):
        expected = Slerp([0, 1], ends[2 * i : 2 * i + 2])(time[i].item())
        between = expected.as_quat(scalar_first=True) @ found[i].numpy()
        assert abs(between) == pytest.approx(1, abs=1e-9)
    assert torch.allclose(loss.slerp(start, -end, time).abs(), found.abs())


@pytest.mark.parametrize("angle", [0.0, 1e-8, 1e-3, 0.03, 3.14159265])
def test_slerp_is_finite_everywhere(angle):
    start = torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64).requires_grad_()
    half = torch.tensor(angle / 2, dtype=torch.float64)
    end = torch.stack([half.cos(), half.sin(), 0 * half, 0 * half])[None].requires_grad_()
    value = loss.slerp(start, end, torch.tensor([0.3], dtype=torch.float64))
    expected = torch.stack([(0.3 * half).cos(), (0.3 * half).sin()])
    assert torch.allclose(value[0, :2], expected, atol=1e-7)
    assert all(g.isfinite().all() for g in torch.autograd.grad(value.sum(), (start, end)))


def clip(frames, speeds):
    """Rotations of 15 joints about fixed axes: angle = speed * frame."""
    axes = torch.randn(15, 3, generator=torch.Generator().manual_seed(2)).double()
    axes = axes / axes.norm(dim=1, keepdim=True)
    start = axis_angle_to_matrix(axes.flip(0))
    steps = torch.as_tensor(speeds, dtype=torch.float64)[:, None, None]
    return axis_angle_to_matrix(steps * axes) @ start, find_clips(
        torch.zeros(len(frames), dtype=torch.long), torch.tensor(frames)
    )


def test_constant_speed_costs_nothing_and_anything_else_does():
    frames = [3, 4, 6, 7, 9]
    weight = torch.ones(5, dtype=torch.float64)
    rotations, clips = clip(frames, [0.1 * f for f in frames])
    assert loss.motion_loss(rotations, clips, weight) < 1e-12
    rotations, clips = clip(frames, [0.1 * f for f in (3, 4, 6.5, 7, 9)])
    expected = np.sin(0.05 / 2) ** 2 / 3  # one of three frames is off by half a frame's turn
    assert loss.motion_loss(rotations, clips, weight).item() == pytest.approx(expected, rel=1e-6)
    weight[0] = 0  # nothing is expected of a clip without a confident end
    assert loss.motion_loss(rotations, clips, weight) == 0


def test_joints_on_a_line_cost_nothing_and_others_their_way_off_it():
    frames = torch.tensor([3, 4, 6, 7, 9])
    weight = torch.ones(5, dtype=torch.float64)
    clips = find_clips(torch.zeros(5, dtype=torch.long), frames)
    generator = torch.Generator().manual_seed(0)
    start, speed = torch.randn(2, 21, 3, generator=generator, dtype=torch.float64)
    wander = torch.randn(5, 1, 3, generator=generator, dtype=torch.float64)
    joints = start + speed * frames[:, None, None] + wander  # the whole hand may go anywhere
    assert loss.smooth_loss(joints, clips, weight) < 2e-6
    joints[2, 8] += torch.tensor([0.0, 0.03, 0.04])
    expected = 0.05 / 21 / 3  # one of 21 joints, one of three frames
    assert loss.smooth_loss(joints, clips, weight).item() == pytest.approx(expected, abs=2e-6)
    weight[0] = 0  # nothing is expected of a clip without a confident end
    assert loss.smooth_loss(joints, clips, weight) == 0


def test_still_hands_have_finite_gradients():
    clips = find_clips(torch.zeros(3, dtype=torch.long), torch.arange(3))
    joints = torch.zeros(3, 21, 3).requires_grad_()
    value = loss.smooth_loss(joints, clips, torch.ones(3))
    assert torch.autograd.grad(value, joints)[0].isfinite().all()
    vectors = torch.zeros(3, 15, 3).requires_grad_()
    value = loss.motion_loss(axis_angle_to_matrix(vectors), clips, torch.ones(3))
    assert value == 0
    assert torch.autograd.grad(value, vectors)[0].isfinite().all()


def test_clips_are_straightened_as_numpy_does():
    sequence = torch.tensor([1, 2, 2, 2, 4, 4, 4, 4])
    frame = torch.tensor([0, 0, 1, 3, 5, 6, 7, 8])
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(8, 2, 3, 3, generator=generator, dtype=torch.float64)
    weight = torch.tensor([1.0, 0.5, 0.7, 1.0, 0.3, 0.4, 1.0, 0.2], dtype=torch.float64)
    found = loss.straightened(values, find_clips(sequence, frame), weight)
    torch.testing.assert_close(found[0], values[0])  # a single picture
    for rows in ([1, 2, 3], [4, 5, 6, 7]):
        time = frame[rows].double().numpy()
        line = np.polyfit(time, values[rows].flatten(1).numpy(), 1, w=weight[rows].numpy() ** 0.5)
        expected = np.stack([np.polyval(line, t) for t in time]).reshape(-1, 2, 3, 3)
        np.testing.assert_allclose(found[rows], expected, atol=1e-5)


def test_following_is_the_loop():
    sequence = torch.tensor([1, 2, 2, 4, 4])
    clips = find_clips(sequence, torch.arange(5))
    generator = torch.Generator().manual_seed(0)
    rotations, target = torch.randn(2, 5, 7, 3, 3, generator=generator, dtype=torch.float64)
    weight = torch.tensor([1.0, 0.5, 0.0, 0.3, 0.4], dtype=torch.float64)
    error = np.linalg.norm((rotations - target).numpy(), axis=(2, 3)).mean(1)[1:]
    expected = np.average(error, weights=weight[1:])
    found = loss.follow_loss(rotations, target, clips, weight)
    assert found.item() == pytest.approx(expected, rel=1e-9)


def test_spread_is_the_loop():
    sequence = torch.tensor([1, 2, 2, 2, 4, 4])
    frame = torch.tensor([0, 0, 1, 2, 5, 6])
    values = torch.randn(6, 7, 3, generator=torch.Generator().manual_seed(0))
    weight = torch.tensor([1.0, 0.5, 0.0, 1.0, 0.3, 0.4])
    top = bottom = 0.0
    for rows in ([1, 2, 3], [4, 5]):
        mean = sum(weight[r] * values[r] for r in rows) / sum(weight[r] for r in rows)
        for r in rows:
            top += float(weight[r] * (values[r] - mean).abs().mean())
            bottom += float(weight[r])
    found = loss.spread_loss(values, find_clips(sequence, frame), weight)
    assert found.item() == pytest.approx(top / bottom, rel=1e-5)


def test_share_within_clips_is_that_of_the_sums_of_squares():
    sequence = torch.tensor([1, 2, 2, 2, 4, 4])
    frame = torch.tensor([0, 0, 1, 2, 5, 6])
    values = torch.randn(6, 7, 3, generator=torch.Generator().manual_seed(0))
    weight = np.array([1.0, 0.5, 0.0, 1.0, 0.3, 0.4])
    rows = [[1, 2, 3], [4, 5]]
    x, k = values.flatten(1).double().numpy(), weight[1:, None]
    mean = np.average(x[1:], axis=0, weights=weight[1:])
    total = (k * (x[1:] - mean) ** 2).sum()
    between = sum(
        weight[r].sum() * ((np.average(x[r], axis=0, weights=weight[r]) - mean) ** 2).sum()
        for r in rows
    )
    found = loss.within_share_loss(
        values, find_clips(sequence, frame), torch.tensor(weight).float()
    )
    assert found.item() == pytest.approx(1 - between / total, rel=1e-5)


def test_share_within_clips_does_not_fall_where_all_are_given_the_same():
    clips = find_clips(torch.arange(4).repeat_interleave(3), torch.arange(12))
    values = torch.randn(12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight = torch.ones(12, dtype=torch.float64)
    alike = 0.3 + 0.1 * values
    share, shrunk = (loss.within_share_loss(x, clips, weight) for x in (values, alike))
    assert shrunk >= share * 0.99
    assert loss.spread_loss(alike, clips, weight) < 0.11 * loss.spread_loss(values, clips, weight)


def test_single_pictures_cost_nothing():
    clips = find_clips(torch.arange(4), torch.zeros(4, dtype=torch.long))
    torch.manual_seed(0)
    values = torch.randn(4, 10).requires_grad_()
    rotations = axis_angle_to_matrix(torch.randn(4, 15, 3))
    assert loss.motion_loss(rotations, clips, torch.ones(4)) == 0
    assert loss.smooth_loss(torch.randn(4, 21, 3), clips, torch.ones(4)) == 0
    for measure in (loss.spread_loss, loss.within_share_loss):
        value = measure(values, clips, torch.ones(4))
        assert value == 0
        assert not torch.autograd.grad(value, values)[0].any()
