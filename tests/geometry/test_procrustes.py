"""Procrustes alignment against scipy, Kabsch by hand, and its invariances."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from handrec.geometry.procrustes import align
from tests.metrics.naive import official_alignment, proper_alignment


@pytest.fixture
def points():
    rng = np.random.default_rng(0)
    target = rng.normal(size=(16, 21, 3)) * [0.05, 0.03, 0.02] + [0.1, 0, 0.6]
    source = np.stack(
        [
            1.3 * Rotation.random(rng=rng).apply(t) + rng.normal(size=3) + noise
            for t, noise in zip(target, rng.normal(size=(16, 21, 3)) * 0.02, strict=True)
        ]
    )
    source[8:] *= [1, 1, -1]  # half of them mirrored
    return torch.from_numpy(source), torch.from_numpy(target)


def test_matches_the_official_formula(points):
    source, target = points
    expected = [
        official_alignment(s, t) for s, t in zip(source.numpy(), target.numpy(), strict=True)
    ]
    torch.testing.assert_close(
        align(source, target, reflection=True),
        torch.from_numpy(np.stack(expected)),
        atol=1e-12,
        rtol=0,
    )


def test_matches_proper_rotations(points):
    source, target = points
    expected = [proper_alignment(s, t) for s, t in zip(source.numpy(), target.numpy(), strict=True)]
    torch.testing.assert_close(
        align(source, target, reflection=False),
        torch.from_numpy(np.stack(expected)),
        atol=1e-7,
        rtol=0,
    )


def test_the_two_alignments_differ_only_where_a_reflection_helps(points):
    source, target = points
    errors = {
        reflection: (align(source, target, reflection) - target).norm(dim=-1).mean(1)
        for reflection in (True, False)
    }
    torch.testing.assert_close(errors[True][:8], errors[False][:8])
    assert (errors[False][8:] > errors[True][8:] + 1e-3).all()


@pytest.mark.parametrize("reflection", [True, False])
def test_recovers_a_similarity(points, reflection):
    _, target = points
    turn = torch.from_numpy(Rotation.random(16, rng=np.random.default_rng(1)).as_matrix())
    source = 0.3 * target @ turn + torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(align(source, target, reflection), target, atol=1e-7, rtol=0)


@pytest.mark.parametrize("reflection", [True, False])
def test_a_single_point_lands_on_the_mean(points, reflection):
    _, target = points
    aligned = align(torch.zeros_like(target), target, reflection)
    torch.testing.assert_close(aligned, target.mean(1, keepdim=True).expand_as(target))
    assert align(target, torch.zeros_like(target), reflection).abs().max() < 1e-7


@pytest.mark.parametrize("reflection", [True, False])
@pytest.mark.parametrize("rank", [1, 2])
def test_flat_and_straight_sets_stay_finite(points, reflection, rank):
    source, target = (p.clone() for p in points)
    source[..., rank:], target[..., rank:] = 0, 0
    aligned = align(source, target, reflection)
    assert torch.isfinite(aligned).all()
    # Out of its plane a flat set can be turned over, so reflections gain nothing.
    torch.testing.assert_close(
        (aligned - target).norm(dim=(1, 2)),
        (align(source, target, not reflection) - target).norm(dim=(1, 2)),
    )


def test_keeps_the_type_of_its_source(points):
    source, target = (p.float() for p in points)
    assert align(source, target, reflection=True).dtype == torch.float32
