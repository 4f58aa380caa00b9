import copy
import math

import pytest
import torch
import torch.nn.functional as F

from handrec.data.views import similarity
from handrec.models.prototypes import INITIAL_SPREAD, REACH, PrototypeHead, align


@pytest.fixture(scope="module")
def head():
    torch.manual_seed(0)
    return PrototypeHead(16, prototypes=32, hidden=24, bottleneck=8)


def test_logits_are_cosines(head):
    embedded = head.embed(torch.randn(5, 16))
    naive = torch.stack(
        [
            torch.stack([F.cosine_similarity(row, w, dim=0) for w in head.prototypes.weight])
            for row in embedded
        ]
    )
    torch.testing.assert_close(head.score(embedded), naive)


@pytest.mark.parametrize("standardise", [False, True])
def test_many_tokens_go_through_a_head_in_parts(standardise, monkeypatch):
    monkeypatch.setattr("handrec.models.prototypes._ROWS", 7)
    head = PrototypeHead(16, prototypes=32, hidden=24, bottleneck=8, standardise=standardise)
    tokens = torch.randn(50, 16)
    torch.testing.assert_close(head.embed(tokens), head.mlp(tokens))


def test_mean_of_all_logits_costs_one(head):
    embedded = head.embed(torch.randn(50, 16))
    torch.testing.assert_close(head.mean_score(embedded), head.score(embedded).mean(0))


def test_scores_are_float32_under_autocast(head):
    tokens = torch.randn(5, 16)
    with torch.autocast("cpu", torch.bfloat16):
        embedded = head.embed(tokens)
        scores = head.score(embedded)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, head.score(embedded))


def test_points_start_apart_and_stay_within_reach():
    torch.manual_seed(0)
    head = PrototypeHead(384, prototypes=8, hidden=256, bottleneck=256)
    points = head.points(head.embed(torch.randn(512, 384)))
    assert points.std().item() == pytest.approx(INITIAL_SPREAD, rel=0.1)
    far = head.points(1e6 * torch.ones(2, 256))
    assert far.abs().max() <= REACH


def test_a_copied_head_scores_alike(head):
    tokens = torch.randn(3, 16)
    torch.testing.assert_close(copy.deepcopy(head).embed(tokens), head.embed(tokens))


def matrices():
    radians = torch.tensor([30.0, -15.0]).deg2rad()
    shift = torch.tensor([[0.1, -0.05], [-0.08, 0.12]])
    return similarity(radians, torch.tensor([1.2, 0.9]), shift)


def test_alignment_matrices_golden_values():
    u, v = matrices()
    q = torch.tensor([0.25, -0.4, 1.0])
    assert (u @ q)[:2].tolist() == pytest.approx([0.599808, -0.315692], abs=1e-6)
    assert (v @ q)[:2].tolist() == pytest.approx([0.044158, -0.285968], abs=1e-6)
    between = (v @ torch.linalg.inv(u))[:2].flatten().tolist()
    golden = [0.530330, 0.530330, -0.106517, -0.530330, 0.530330, 0.199550]
    assert between == pytest.approx(golden, abs=1e-6)


def test_points_of_both_views_meet_once_aligned():
    canonical = torch.rand(1, 9, 2) * 2 - 1
    homogeneous = F.pad(canonical, (0, 1), value=1.0).expand(2, 9, 3)
    seen = torch.einsum("bij,bpj->bpi", matrices(), homogeneous)[..., :2]
    torch.testing.assert_close(align(seen, matrices()), canonical.expand(2, 9, 2))


def test_no_movement_no_change():
    points = torch.randn(2, 5, 2)
    torch.testing.assert_close(align(points, torch.eye(3).expand(2, 3, 3)), points)


def test_shift_in_units_of_the_points_extent():
    matrix = similarity(torch.zeros(1), torch.ones(1), torch.tensor([[0.4, -0.2]]))
    points = torch.tensor([[[0.0, 0.0], [0.5, 1.0]]])
    moved = align(points, matrix, scale_shift=True)
    torch.testing.assert_close(points - moved, torch.tensor([[[0.1, -0.1], [0.1, -0.1]]]))


def test_the_extent_is_that_of_the_view_however_it_is_turned():
    """PeCLR's order: shifted back in the view, then turned back."""
    matrix = similarity(torch.tensor([math.pi / 2]), torch.ones(1), torch.tensor([[0.4, 0.0]]))
    points = torch.tensor([[[1.0, 0.1], [-1.0, -0.1]]])  # 2 wide, 0.2 high
    moved = align(points, matrix, scale_shift=True)
    # Less 0.4 of half of 2 along x; a quarter turn back takes (x, y) to (y, -x).
    torch.testing.assert_close(moved, torch.tensor([[[0.1, -0.6], [-0.1, 1.4]]]))
