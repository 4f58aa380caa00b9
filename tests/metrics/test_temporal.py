"""Temporal figures against naive loops, curves of known derivatives, and merging."""

import numpy as np
import pytest
import torch

from handrec.metrics.temporal import (
    TemporalMetrics,
    acceleration_error,
    bone_lengths,
    jitter,
    runs,
    spread,
    spread_between,
    usual_step,
)
from tests.metrics.fakes import fake_batch, predict

SEQUENCE = torch.tensor([7, 7, 7, 7, 7, 2, 2, 2, 2, 9])
FRAME = torch.tensor([0, 1, 2, 3, 5, 4, 5, 6, 7, 0])  # 7 skips frame 4


def joints(seed, scale=0.1):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(len(FRAME), 21, 3, generator=generator, dtype=torch.float64)


def naive(values, order, rate):
    """Differences of the given order, frame by frame, of the joints relative to the wrist."""
    table = {(int(s), int(f)): v - v[0] for s, f, v in zip(SEQUENCE, FRAME, values, strict=True)}
    weights = {2: (1, -2, 1), 3: (-1, 3, -3, 1)}[order]
    found = []
    for s, f in sorted(table):
        frames = [table.get((s, f + k)) for k in range(order + 1)]
        if all(x is not None for x in frames):
            found.append(sum(w * x for w, x in zip(weights, frames, strict=True)) * rate**order)
    return np.stack(found)


def test_runs_stay_within_a_video_and_skip_gaps():
    windows = runs(SEQUENCE, FRAME, 3)
    found = {(int(SEQUENCE[w[0]]), tuple(FRAME[w].tolist())) for w in windows}
    assert found == {(7, (0, 1, 2)), (7, (1, 2, 3)), (2, (4, 5, 6)), (2, (5, 6, 7))}
    assert len(windows) == 4


def test_every_third_frame_is_a_video_of_a_third_of_the_rate():
    predicted, target = joints(0), joints(1)
    assert (usual_step(SEQUENCE, FRAME), usual_step(SEQUENCE, 3 * FRAME)) == (1, 3)
    assert usual_step(torch.arange(4), torch.zeros(4, dtype=torch.long)) == 1  # no videos
    slow = acceleration_error(predicted, target, SEQUENCE, FRAME, 10.0)
    third = acceleration_error(predicted, target, SEQUENCE, 3 * FRAME, 30.0, step=3)
    torch.testing.assert_close(third, slow)
    torch.testing.assert_close(
        jitter(predicted, SEQUENCE, 3 * FRAME, 30.0, step=3),
        jitter(predicted, SEQUENCE, FRAME, 10.0),
    )


@pytest.mark.parametrize("rate", [30.0, 25.0])
def test_errors_match_a_loop(rate):
    predicted, target = joints(0).numpy(), joints(1).numpy()
    difference = naive(predicted, 2, rate) - naive(target, 2, rate)
    expected = np.sort(np.linalg.norm(difference, axis=-1).mean(-1))
    found = acceleration_error(
        torch.from_numpy(predicted), torch.from_numpy(target), SEQUENCE, FRAME, rate
    )
    np.testing.assert_allclose(found.sort().values, expected)
    jerk = np.sort(np.linalg.norm(naive(predicted, 3, rate), axis=-1).mean(-1))
    np.testing.assert_allclose(
        jitter(torch.from_numpy(predicted), SEQUENCE, FRAME, rate).sort().values, jerk
    )


def test_the_order_of_rows_does_not_matter():
    shuffle = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    one = acceleration_error(joints(0), joints(1), SEQUENCE, FRAME)
    other = acceleration_error(
        joints(0)[shuffle], joints(1)[shuffle], SEQUENCE[shuffle], FRAME[shuffle]
    )
    torch.testing.assert_close(one.sort().values, other.sort().values)


def test_a_thrown_finger_falls_at_g():
    """A joint that falls has its acceleration, no jerk, and no error against itself."""
    time = torch.arange(6, dtype=torch.float64) / 30
    path = torch.zeros(6, 21, 3, dtype=torch.float64)
    path[:, 1:, 1] = 0.5 * 9.81 * time[:, None] ** 2
    video = torch.zeros(6, dtype=torch.long), torch.arange(6)
    error = acceleration_error(path, torch.zeros_like(path), *video)
    torch.testing.assert_close(error, torch.full_like(error, 9.81 * 20 / 21))
    assert jitter(path, *video).max() < 1e-9
    assert acceleration_error(path, path, *video).max() == 0


def test_spread_is_numpy_s():
    values = joints(2)[:, :4, 0]
    expected = [values[s == SEQUENCE].numpy().std(0).mean() for s in (2, 7)]  # 9 is a picture
    np.testing.assert_allclose(spread(values, SEQUENCE), expected)


def test_bones_are_as_long_as_they_are():
    lengths = bone_lengths(joints(0)[:1])[0]
    points = joints(0)[0]
    assert lengths[0] == (points[1] - points[0]).norm()  # wrist to thumb
    assert lengths[4] == (points[5] - points[0]).norm()  # wrist to index finger
    assert lengths[5] == (points[6] - points[5]).norm()


def video(first_id=0, frames=6, number=0, seed=0):
    return fake_batch(frames, seed, first_id=first_id)._replace(
        sequence=torch.full((frames,), number), frame=torch.arange(frames)
    )


def test_batches_and_repeats_change_nothing():
    one, other = video(), video(6, 6, 1, seed=1)
    metrics = TemporalMetrics()
    for batch in (one, other):
        metrics.update(predict(batch), batch)
    expected = metrics.compute()
    joined = type(one)(*(torch.cat(pair) for pair in zip(one, other, strict=True)))
    predicted = [torch.cat(x) for x in zip(*(predict(b)[:6] for b in (one, other)), strict=True)]
    again = TemporalMetrics()
    for rows in ([0, 1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 0, 1]):  # as distributed samplers deal
        batch = type(one)(*(field[rows] for field in joined))
        prediction = predict(batch)._replace(joints=predicted[1][rows], betas=predicted[4][rows])
        again.update(prediction, batch)
    for name, value in again.compute().items():
        torch.testing.assert_close(value, expected[name], msg=name)


def test_units():
    batch = video(frames=30)
    steady = predict(batch)._replace(
        betas=torch.zeros(30, 10), joints=batch.joints_3d[:1].expand(30, -1, -1)
    )
    metrics = TemporalMetrics()
    metrics.update(steady, batch)
    figures = metrics.compute()
    still = steady.joints.double()
    error = acceleration_error(still, batch.joints_3d.double(), batch.sequence, batch.frame)
    torch.testing.assert_close(figures["accel_error"], 1000 * error.mean().float())
    assert figures["jitter"] == 0
    assert figures["shape_sd"] == 0
    assert figures["bone_sd"] < 1e-4


def test_videos_of_every_sixth_frame_have_figures_in_seconds_too():
    """As sets have them that were thinned out, at the rate that their frame numbers count."""
    batch = video(frames=12)
    prediction = predict(batch)
    metrics = [TemporalMetrics(5.0), TemporalMetrics(30.0)]
    for metric, step in zip(metrics, (1, 6), strict=True):
        metric.update(prediction, batch._replace(frame=step * batch.frame))
    plain, thinned = (metric.compute() for metric in metrics)
    assert plain["accel_error"] > 0
    assert thinned == plain


def test_spread_between_videos_is_numpy_s():
    values = torch.rand(7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sequence = torch.tensor([5, 5, 2, 2, 2, 9, 5])
    means = [values[sequence == video].numpy().mean(0) for video in (2, 5, 9)]
    found = spread_between(values, sequence).item()
    assert found == pytest.approx(np.std(means, axis=0).mean(), rel=1e-12)


@pytest.mark.parametrize("shape", [(40, 3), (3, 5, 8), (600, 3)])
def test_texture_spread_is_numpy_s(shape):
    """Colours of faces, a small atlas, and more faces than are kept."""
    batch = video(frames=12)
    noise = torch.rand(12, *shape, generator=torch.Generator().manual_seed(0))
    flicker = torch.linspace(0, 1, 12).view(-1, *[1] * len(shape))
    metrics = TemporalMetrics()
    metrics.update(predict(batch)._replace(texture=flicker * noise), batch)
    # The mean over places and channels; of 600 faces 512 are taken, so nearly.
    expected = 255 * (flicker * noise).numpy().std(0).mean()
    relative = 0.03 if shape[0] == 600 else 1e-5
    assert metrics.compute()["texture_sd"].item() == pytest.approx(expected, rel=relative)
    metrics.reset()
    metrics.update(predict(batch)._replace(texture=noise[:1].expand(12, *shape)), batch)
    assert metrics.compute()["texture_sd"] < 1e-4
    metrics.reset()
    metrics.update(predict(batch), batch)
    assert "texture_sd" not in metrics.compute()


def test_pictures_that_are_no_videos_have_no_figures():
    metrics = TemporalMetrics()
    metrics.update(predict(fake_batch()), fake_batch())
    assert metrics.compute() == {}
