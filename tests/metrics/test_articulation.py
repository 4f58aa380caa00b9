"""Articulation and its correlation against scipy, and what they ignore."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from handrec.geometry.rotations import random_rotations
from handrec.metrics.articulation import ArticulationMetrics, agreement, articulation
from tests.metrics.fakes import fake_batch, predict


def bent(count, seed=0):
    """Return joints ``(count, 21, 3)`` that vary about one hand."""
    generator = torch.Generator().manual_seed(seed)
    hand = 0.05 * torch.randn(1, 21, 3, generator=torch.Generator().manual_seed(9))
    return (hand + 0.01 * torch.randn(count, 21, 3, generator=generator)).double()


def moved(joints, seed=1):
    """Return joints somewhere else, turned and of other sizes."""
    generator = torch.Generator().manual_seed(seed)
    count = len(joints)
    turns = random_rotations(count, generator).double()
    sizes = 0.5 + torch.rand(count, 1, 1, generator=generator).double()
    return sizes * joints @ turns + torch.randn(count, 1, 3, generator=generator).double()


def naive(prediction, target):
    """Return r and the ratio of spreads; turned one by one by scipy."""

    def unit(hand):
        hand = hand - hand.mean(0)
        return hand / np.linalg.norm(hand)

    def onto(hand, mean):
        return Rotation.align_vectors(mean, hand)[0].apply(hand)

    hands, labels = ([unit(x) for x in points.numpy()] for points in (prediction, target))
    mean = np.mean([onto(x, labels[0]) for x in labels], axis=0)
    p, t = (np.stack([onto(x, mean).ravel() for x in xs]) for xs in (hands, labels))
    p, t = p - p.mean(0), t - t.mean(0)
    spread = np.linalg.norm(p) / np.linalg.norm(t)
    return (p * t).sum() / np.linalg.norm(p) / np.linalg.norm(t), spread


def measured(prediction, batch):
    metrics = ArticulationMetrics()
    metrics.update(prediction, batch)
    return {name: float(value) for name, value in metrics.compute().items()}


def test_how_a_hand_lies_is_no_part_of_how_it_is_bent():
    torch.manual_seed(0)
    joints, turns = torch.rand(6, 21, 3), torch.linalg.qr(torch.randn(6, 3, 3))[0]
    turns = turns * torch.linalg.det(turns)[:, None, None]
    sizes = torch.tensor([1, 0.5, 2, 3, 0.7, 1.5])[:, None, None]
    moved = sizes * joints @ turns + torch.randn(6, 1, 3)
    moved[0] = joints[0]  # onto which the others are turned
    one, other = articulation(joints), articulation(moved)
    torch.testing.assert_close(one / one[0].norm(), other / other[0].norm(), atol=1e-4, rtol=0)
    mean = (joints - joints.mean(1, keepdim=True)).norm(dim=(1, 2)).mean()
    torch.testing.assert_close(one.norm(dim=(1, 2)), mean.expand(6))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_agreement_is_that_of_a_plain_loop(share):
    target = moved(bent(40))
    prediction = moved((1 - share) * bent(40) + share * bent(40, seed=5), seed=2)
    assert agreement(prediction, target) == pytest.approx(naive(prediction, target), abs=1e-6)


def test_place_direction_and_size_do_not_matter():
    target = bent(30)
    assert agreement(moved(target), target) == pytest.approx((1, 1), abs=1e-6)


def test_one_hand_for_all_knows_nothing_and_half_the_bend_knows_all():
    target = bent(30)
    mean = target.mean(0)
    assert agreement(moved(mean.expand(30, -1, -1)), target) == (0, 0)
    r, ratio = agreement(mean + (target - mean) / 2, target)
    assert r > 0.999
    assert ratio == pytest.approx(0.5, abs=0.01)
    assert agreement(bent(300), bent(300, seed=7))[0] == pytest.approx(0, abs=0.05)


def test_too_few_or_labels_all_alike_give_nan():
    target = bent(30)
    assert all(map(math.isnan, agreement(target[:1], target[:1])))
    assert all(map(math.isnan, agreement(target, target[:1].expand(30, -1, -1))))


def test_batches_add_up_and_absent_labels_do_not_count():
    target, guess = bent(12).float(), bent(12, seed=4).float()
    expected = agreement(guess[:9].double(), target[:9].double())
    metrics = ArticulationMetrics()
    for rows in (slice(0, 6), slice(6, 12)):
        batch = fake_batch(6, first_id=rows.start)
        known = (torch.arange(12)[rows] < 9).float()
        batch = batch._replace(joints_3d=target[rows], has_joints_3d=known)
        metrics.update(predict(batch)._replace(joints=guess[rows]), batch)
    assert tuple(map(float, metrics.compute().values())) == pytest.approx(expected, abs=1e-5)


def test_without_labels_there_is_no_figure():
    batch = fake_batch()
    batch = batch._replace(has_joints_3d=torch.zeros(6))
    assert all(map(math.isnan, measured(predict(batch), batch).values()))
