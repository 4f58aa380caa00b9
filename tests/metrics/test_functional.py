"""Errors against naive loops, brute force and values worked out by hand."""

import numpy as np
import pytest
import torch

from handrec.metrics import functional
from tests.metrics import naive

GENERATOR = torch.Generator().manual_seed(0)


def cloud(count=5, points=40, spread=0.05):
    return spread * torch.randn(count, points, 3, generator=GENERATOR, dtype=torch.float64)


def loop(function, *arrays):
    return torch.tensor(
        [function(*(a.numpy() for a in sample)) for sample in zip(*arrays, strict=True)]
    )


def test_joint_errors_match_loops():
    target = cloud(points=21)
    prediction = target + cloud(points=21, spread=0.01) + 0.1
    expected = 1e-3 * loop(naive.mean_error, prediction, target)
    torch.testing.assert_close(functional.cs_mpjpe(prediction, target), expected)
    expected = 1e-3 * loop(lambda p, t: naive.mean_error(p - p[9], t - t[9]), prediction, target)
    torch.testing.assert_close(functional.mpjpe(prediction, target, root=9), expected)
    for reflection, alignment in ((True, "official"), (False, "proper")):
        aligned = getattr(naive, f"{alignment}_alignment")
        expected = 1e-3 * loop(lambda p, t: naive.mean_error(aligned(p, t), t), prediction, target)  # noqa: B023
        error = functional.pa_mpjpe(prediction, target, reflection)
        torch.testing.assert_close(error, expected, atol=1e-9, rtol=0)


def test_the_root_does_not_matter_to_root_relative_errors():
    target = cloud()
    prediction = target + cloud(spread=0.01)
    roots = cloud(points=1)[:, 0], cloud(points=1)[:, 0]
    error = functional.mpvpe(prediction, target, *roots)
    shift = torch.tensor([1.0, -2.0, 3.0])
    moved = functional.mpvpe(prediction + shift, target, roots[0] + shift, roots[1])
    torch.testing.assert_close(moved, error)
    assert (functional.cs_mpjpe(prediction + shift, target) > 3).all()


def test_similarities_do_not_matter_to_aligned_errors():
    target = cloud()
    prediction = target + cloud(spread=0.01)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=GENERATOR, dtype=torch.float64))
    moved = 2.5 * prediction @ turn - 0.7
    error = functional.pa_mpvpe(prediction, target)
    torch.testing.assert_close(functional.pa_mpvpe(moved, target), error, atol=1e-8, rtol=0)


def test_a_mirrored_hand_is_perfect_only_to_the_official_alignment():
    target = cloud(points=21)
    mirrored = target * torch.tensor([-1.0, 1.0, 1.0])
    assert functional.pa_mpjpe(mirrored, target).max() < 1e-7
    assert functional.pa_mpjpe(mirrored, target, reflection=False).min() > 0.01


def test_all_zeros_score_the_spread_about_the_mean():
    target = cloud(points=21)
    expected = (target - target.mean(1, keepdim=True)).norm(dim=-1).mean(1)
    for reflection in (True, False):
        error = functional.pa_mpjpe(torch.zeros_like(target), target, reflection)
        torch.testing.assert_close(error, expected)


def test_pck_counts_errors_up_to_and_at_a_threshold():
    thresholds = torch.tensor([0.0, 1.0, 2.0])
    errors = torch.tensor([[0.0, 1.0, 1.5, 9.0], [2.0, 2.0, 2.1, torch.nan]])
    curve = functional.pck_curve(errors, thresholds)
    torch.testing.assert_close(curve, torch.tensor([[0.25, 0.5, 0.75], [0.0, 0.0, 0.5]]))
    # By hand: (0.25 + 0.5) / 2 + (0.5 + 0.75) / 2 = 1 and 0 + 0.25, over a range of 2.
    torch.testing.assert_close(functional.auc(curve, thresholds), torch.tensor([0.5, 0.125]))


def test_the_mean_of_the_samples_areas_is_the_official_area():
    errors = cloud(points=21, spread=0.03).norm(dim=-1)
    thresholds = np.linspace(0, 0.05, 100)
    areas = []
    for joint in range(21):  # official: a curve per joint over all samples, then the mean
        curve = [(errors[:, joint].numpy() <= t).mean() for t in thresholds]
        areas.append(np.trapezoid(curve, thresholds) / 0.05)
    area = functional.auc(functional.pck_curve(errors)).mean()
    torch.testing.assert_close(area, torch.tensor(np.mean(areas)))


def test_f_scores_match_brute_force_on_sets_of_different_size():
    prediction, target = cloud(points=60, spread=0.01), cloud(points=80, spread=0.012)
    scores = functional.f_scores(prediction, target, (0.002, 0.005, 0.015))
    for column, threshold in enumerate((0.002, 0.005, 0.015)):
        expected = loop(lambda p, t: naive.f_score(p, t, threshold), prediction, target)  # noqa: B023
        torch.testing.assert_close(scores[:, column], expected)
    assert 0.1 < scores[:, 1].mean() < 0.9  # the case is neither trivial nor hopeless


def test_f_scores_ignore_the_order_of_points():
    prediction, target = cloud(spread=0.01), cloud(spread=0.01)
    scores = functional.f_scores(prediction, target)
    shuffled = functional.f_scores(
        prediction[:, torch.randperm(40, generator=GENERATOR)],
        target[:, torch.randperm(40, generator=GENERATOR)],
    )
    torch.testing.assert_close(shuffled, scores)


@pytest.mark.parametrize(("distance", "score"), [(0.25, 0.5), (0.2499, 1.0), (9.0, 0.5)])
def test_f_scores_are_strict_both_ways(distance, score):
    target = torch.tensor([[[0.0, 0.0, 0.0], [20.0, 0.0, 0.0]]], dtype=torch.float64)
    prediction = target + torch.tensor([[0.0, 0.0, 0.0], [distance, 0.0, 0.0]])
    # The largest threshold also limits the search, and must be as strict as one below it.
    for thresholds in ((0.25,), (0.25, 1.0)):
        assert functional.f_scores(prediction, target, thresholds)[0, 0].item() == score


def test_f_scores_of_no_samples():
    assert functional.f_scores(torch.zeros(0, 4, 3), torch.zeros(0, 5, 3)).shape == (0, 2)
