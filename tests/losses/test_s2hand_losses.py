"""S2HAND's keypoint and pose losses against loops, and their gradients in float64."""

import itertools
import math

import pytest
import torch
from scipy.spatial.transform import Rotation

from handrec.geometry.rotations import axis_angle_to_matrix
from handrec.hand.joints import KINEMATIC_JOINTS, PARENTS
from handrec.hand.openhand import OpenHand
from handrec.losses import s2hand as loss

W = [2.0] + [1.5 if j % 4 == 0 else 1.0 for j in range(1, 21)]


@pytest.fixture
def points():
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    return {
        "p": 224 * draw(3, 21, 2), "u": 224 * draw(3, 21, 2), "c": draw(3, 21),
        "h": 224 * draw(2, 3, 21, 2), "weight": draw(3), "joints": 0.2 * draw(3, 21, 3),
        "vectors": draw(3, 16, 3) - 0.5, "betas": draw(3, 10) - 0.5,
    }  # fmt: skip


def knee(d):
    return d * d / 10 if d < 5 else d - 2.5


def test_knee_is_smooth():
    d = torch.tensor([0.0, 4.999999, 5.0, 5.000001, 100.0], dtype=torch.float64).requires_grad_()
    value = loss.piecewise_norm(d)
    assert value.tolist() == pytest.approx([0, 2.5, 2.5, 2.5, 97.5], abs=1e-5)
    (slope,) = torch.autograd.grad(value.sum(), d)
    assert slope.tolist() == pytest.approx([0, 1, 1, 1, 1], abs=1e-5)


def test_keypoint_loss_is_the_loop(points):
    p, u, c = points["p"], points["u"], points["c"]
    p[0] = u[0] + 1  # some below the knee
    top = bottom = 0.0
    for b in range(3):
        for j in range(21):
            k = (W[j] * float(c[b, j])) ** 2
            top += k * knee(math.dist(u[b, j].tolist(), p[b, j].tolist()))
            bottom += k
    assert loss.keypoint_loss(p, u, c).item() == pytest.approx(top / bottom)


def test_bone_direction_loss_is_the_loop(points):
    p, u, c = points["p"], points["u"], points["c"]
    total = 0.0
    for b in range(3):
        for j in range(1, 21):
            i = PARENTS[j]
            bones = []
            for x in (p, u):
                bone = (x[b, j] - x[b, i]).numpy()
                bones.append(bone / ((bone**2).sum() ** 0.5 + 1e-4))
            total += float(c[b, i] * c[b, j]) * ((bones[0] - bones[1]) ** 2).sum()
    assert loss.bone_direction_loss(p, u, c).item() == pytest.approx(total / 60)


def test_bone_direction_does_not_see_place_and_size(points):
    p, u, c = points["p"], points["u"], points["c"]
    moved = loss.bone_direction_loss(3 * p + 70, u, c)
    assert moved.item() == pytest.approx(loss.bone_direction_loss(p, u, c).item(), rel=1e-4)


def test_heatmap_and_consistency_losses_are_the_loops(points):
    p, u, c, h = (points[k] for k in "puch")
    total = 0.0
    for s in range(2):
        top = sum(
            float(c[b, j]) ** 2 * math.dist(u[b, j].tolist(), h[s, b, j].tolist())
            for b in range(3) for j in range(21)
        )  # fmt: skip
        total += top / float((c**2).sum())
    assert loss.heatmap_loss(h, u, c).item() == pytest.approx(total)
    mean = sum(
        knee(math.dist(p[b, j].tolist(), h[1, b, j].tolist())) for b in range(3) for j in range(21)
    )
    ones = torch.ones(3, dtype=torch.float64)
    assert loss.consistency_loss(p, h[1], ones).item() == pytest.approx(mean / 63)


def test_likelihood_is_the_loop(points):
    c, stride = points["c"], 4
    generator = torch.Generator().manual_seed(1)
    maps = torch.randn(2, 3, 21, 5, 7, dtype=torch.float64, generator=generator)
    u = 28 * torch.rand(3, 21, 2, dtype=torch.float64, generator=generator)
    u[..., 1] *= 20 / 28
    u[0, 0] = torch.tensor([60.0, 4.0])  # outside
    top = bottom = 0.0
    for b, j in itertools.product(range(3), range(21)):
        if (b, j) == (0, 0):
            continue
        blob = torch.zeros(5, 7, dtype=torch.float64)
        for y, x in itertools.product(range(5), range(7)):
            centre = stride * (x + 0.5), stride * (y + 0.5)
            blob[y, x] = math.exp(-0.5 * (math.dist(centre, u[b, j].tolist()) / stride) ** 2)
        blob /= blob.sum()
        for s in range(2):
            logs = maps[s, b, j].flatten().log_softmax(0).view(5, 7)
            top -= float(c[b, j]) ** 2 * float((blob * logs).sum())
        bottom += float(c[b, j]) ** 2
    assert loss.likelihood_loss(maps, u / stride - 0.5, c).item() == pytest.approx(top / bottom)


def test_axis_angle_limits_are_the_loop(points):
    vectors = points["vectors"]
    limits = loss.axis_angle_limits().double()
    total = 0.0
    for b in range(3):
        for j in range(1, 16):
            vector = Rotation.from_rotvec(vectors[b, j].numpy()).as_rotvec()
            for a in range(3):
                low, high = limits[j - 1, a].tolist()
                excess = max(0, low - vector[a]) + max(0, vector[a] - high)
                total += excess * (2 if a == 2 else 1)
    pose = axis_angle_to_matrix(vectors)
    found = loss.axis_angle_limit_loss(pose, limits, torch.ones(3, dtype=torch.float64))
    assert found.item() == pytest.approx(total / (3 * 48))


def test_the_published_table():
    limits = dict(zip(KINEMATIC_JOINTS[1:], loss.axis_angle_limits().rad2deg(), strict=True))
    expected = {
        "little_mcp": [[-20, 5], [-10, 20], [-10, 100]],
        "ring_mcp": [[-5, 5], [-10, 10], [-10, 100]],
        "little_dip": [[-5, 5], [-5, 5], [-10, 100]],
        "thumb_cmc": [[0, 90], [-22.5, 33.75], [-22.5, 22.5]],
    }
    for name, rows in expected.items():
        assert torch.allclose(limits[name], torch.tensor(rows).float(), atol=1e-4), name


def test_limits_cost_nothing_inside():
    hand, one = OpenHand(), torch.ones(1)
    rest = torch.eye(3).expand(1, 16, 3, 3)
    arguments = hand.joint_axes, hand.joint_limits, one
    assert loss.axis_angle_limit_loss(rest, loss.axis_angle_limits(), one) == 0
    assert loss.anatomical_limit_loss(rest, *arguments) < 1e-6
    bent = axis_angle_to_matrix(torch.tensor([0.0, 0.0, -1.0])).expand(1, 16, 3, 3)
    assert loss.anatomical_limit_loss(bent, *arguments) > 0.3


def test_bone_length_and_shape(points):
    joints, weight = points["joints"], points["weight"]
    norm = (joints[:, 9] - joints[:, 10]).norm(dim=1)
    expected = ((norm - 0.0282).abs() * weight).sum() / weight.sum()
    assert torch.allclose(loss.bone_length_loss(joints, 0.0282, weight), expected)
    expected = ((points["betas"] ** 2).mean(1) * weight).sum() / weight.sum()
    assert torch.allclose(loss.shape_prior(points["betas"], weight), expected)


def calls(points, hand):
    """Every loss as a function of what it pulls on."""
    u, c, weight = points["u"], points["c"], points["weight"]
    limits, axes = loss.axis_angle_limits().double(), hand.joint_axes.double()
    generator = torch.Generator().manual_seed(1)
    maps = torch.randn(2, 3, 21, 4, 4, dtype=torch.float64, generator=generator)
    return {
        "keypoints": (lambda p: loss.keypoint_loss(p, u, c), points["p"]),
        "bones": (lambda p: loss.bone_direction_loss(p, u, c), points["p"]),
        "heatmaps": (lambda h: loss.heatmap_loss(h, u, c), points["h"]),
        "likelihood": (lambda m: loss.likelihood_loss(m, u % 4, c), maps),
        "consistency": (lambda p: loss.consistency_loss(p, points["h"][1], weight), points["p"]),
        "axis_angle": (
            lambda v: loss.axis_angle_limit_loss(axis_angle_to_matrix(v), limits, weight),
            points["vectors"],
        ),
        "anatomical": (
            lambda v: loss.anatomical_limit_loss(
                axis_angle_to_matrix(v), axes, hand.joint_limits.double(), weight
            ),
            points["vectors"],
        ),
        "length": (lambda j: loss.bone_length_loss(j, 0.0282, weight), points["joints"]),
        "shape": (lambda b: loss.shape_prior(b, weight), points["betas"]),
    }


NAMES = (
    "keypoints", "bones", "heatmaps", "likelihood", "consistency", "axis_angle", "anatomical",
    "length", "shape",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_gradients(points, name):
    function, at = calls(points, OpenHand())[name]
    assert torch.autograd.gradcheck(function, at.requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_without_weight_contributes_nothing(points, name):
    points["c"][1] = 0
    points["weight"][1] = 0
    function, at = calls(points, OpenHand())[name]
    at.requires_grad_()
    value = function(at)
    (gradient,) = torch.autograd.grad(value, at)
    axis = 1 if name in {"heatmaps", "likelihood"} else 0
    assert not gradient.select(axis, 1).any()
    assert gradient.isfinite().all()
    points["c"][:], points["weight"][:] = 0, 0
    none = function(at)
    assert none == 0
    assert not torch.autograd.grad(none, at)[0].any()


def test_gradients_are_finite_where_points_meet(points):
    p = points["u"].clone().requires_grad_()
    value = loss.keypoint_loss(p, points["u"], points["c"])
    value = value + loss.consistency_loss(p, points["u"], points["weight"])
    value = value + loss.bone_direction_loss(p * 0, points["u"], points["c"])
    assert torch.autograd.grad(value, p)[0].isfinite().all()


def test_full_precision_under_autocast(points):
    with torch.autocast("cpu", torch.bfloat16):
        value = loss.keypoint_loss(points["p"].bfloat16(), points["u"].float(), points["c"].float())
        angles = loss.anatomical_limit_loss(
            axis_angle_to_matrix(points["vectors"].float()), OpenHand().joint_axes,
            OpenHand().joint_limits, torch.ones(3),
        )  # fmt: skip
    assert value.dtype == angles.dtype == torch.float32


def test_pixels_of_the_published_crop(points):
    found = loss.to_published_pixels(points["p"], (64, 64))
    assert torch.allclose(found, points["p"] * 3.5)
