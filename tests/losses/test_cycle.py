import math

import pytest
import torch

from handrec.geometry.rotations import axis_angle_to_matrix, random_rotations
from handrec.losses import cycle
from handrec.losses.contrastive import domain_consistency, info_nce, turn_features


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def turns(angle, count):
    axis = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator()), dim=1)
    return axis_angle_to_matrix(angle * axis)


@pytest.mark.parametrize("angle", [0.0, 1e-3, 1.0, 3.0])
def test_geodesic_loss_is_the_angle(angle):
    rotations = random_rotations(10, generator())[:, None]
    moved = rotations @ turns(angle, 10)[:, None]
    loss = cycle.geodesic_loss(moved, rotations, torch.ones(10))
    assert loss.item() == pytest.approx(angle, abs=2e-4)


def test_geodesic_gradient_is_right_and_finite_at_its_corners():
    vector = torch.randn(4, 3, generator=generator(), dtype=torch.float64, requires_grad=True)
    target = random_rotations(4, generator(1)).double()[:, None]

    def loss(vector):
        rotations = axis_angle_to_matrix(vector)[:, None]
        return cycle.geodesic_loss(rotations, target, torch.ones(4).double())

    assert torch.autograd.gradcheck(loss, vector)
    for angle in (0.0, math.pi):
        rotations = (target @ turns(angle, 4).double()[:, None]).requires_grad_()
        cycle.geodesic_loss(rotations, target, torch.ones(4).double()).backward()
        assert rotations.grad.isfinite().all()


def test_points_in_the_wrist_frame_do_not_feel_rotations():
    points, shift = torch.randn(2, 5, 21, 3, generator=generator()).split([1, 1])
    points, shift, wrist = points[0], shift[0, :, :1], random_rotations(5, generator(2))
    rotation = random_rotations(5, generator(3))
    moved = points @ rotation.mT + shift
    before = cycle.in_wrist_frame(points, points[:, 0], wrist)
    after = cycle.in_wrist_frame(moved, moved[:, 0], rotation @ wrist)
    torch.testing.assert_close(after, before, atol=1e-5, rtol=0)
    naive = torch.einsum("bji,bnj->bni", wrist, points - points[:, :1])
    torch.testing.assert_close(before, naive, atol=1e-6, rtol=0)


def test_photometric_loss_sees_the_mask_only_and_grows_with_the_difference():
    image = torch.rand(3, 3, 16, 16, generator=generator())
    mask = torch.zeros(3, 1, 16, 16)
    mask[:, :, 4:12, 4:12] = 1
    everyone = torch.ones(3)
    outside = image + (1 - mask) * torch.rand(3, 3, 16, 16, generator=generator(1))
    assert cycle.photometric_loss(outside, image, mask, everyone) < 1e-6
    darker = cycle.photometric_loss(image - 0.1 * mask, image, mask, everyone, structure=0.0)
    assert darker.item() == pytest.approx(0.1, abs=1e-6)
    full = cycle.photometric_loss(image.flip(-1), image, mask, everyone)
    plain = cycle.photometric_loss(image.flip(-1), image, mask, everyone, structure=0.0)
    assert full > plain + 0.05
    mask[1:] = 0  # a hand that is not seen does not count
    assert cycle.photometric_loss(image - 0.1 * mask, image, mask, everyone, 0.0) > 0.099


def test_photometric_gradient():
    image, drawn = torch.rand(2, 1, 3, 8, 8, generator=generator(), dtype=torch.float64)
    mask = torch.ones(1, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    drawn.requires_grad_()
    # in float32 inside: compare with finite differences there
    loss = cycle.photometric_loss(drawn, image, mask, torch.ones(1), 0.0)
    loss.backward()
    assert mask.grad is None
    torch.testing.assert_close(drawn.grad, (drawn - image).sign().detach() / (3 * 64))


def test_terms_of_mechanics_and_texture():
    excess = torch.zeros(2, 15, 3)
    assert cycle.limits_loss(excess) == 0
    excess[0, 3, 2] = 0.3
    assert cycle.limits_loss(excess).item() == pytest.approx(0.09 / 30)
    depth = torch.tensor([[0.0, 0.01], [0.0, 0.0]])
    assert cycle.penetration_loss(depth).item() == pytest.approx(0.5)
    mean, log_variance = torch.randn(2, 4, 6, generator=generator())
    ours = cycle.gaussian_divergence(mean, log_variance)
    normal = torch.distributions.Normal
    theirs = torch.distributions.kl_divergence(
        normal(mean, (log_variance / 2).exp()), normal(torch.zeros(4, 6), torch.ones(4, 6))
    )
    torch.testing.assert_close(ours, theirs.sum(1).mean())
    assert cycle.total_variation(torch.ones(1, 3, 4, 4)) == 0
    assert cycle.total_variation(torch.arange(4.0).expand(1, 1, 4, 4)) == 1


def test_trust_falls_with_the_distance_of_keypoints():
    keypoints = 64 * torch.rand(3, 21, 2, generator=generator())
    target = keypoints.clone()
    target[1] += torch.tensor([6.4, 0.0])
    target[2] = torch.nan_to_num(target[2] * 0)
    confidence = torch.ones(3, 21)
    confidence[2] = 0
    trust = cycle.keypoint_agreement(keypoints, target, confidence, (64, 64), 0.1)
    torch.testing.assert_close(trust, torch.tensor([1.0, math.exp(-1), 1.0]))


def test_outlines_overlap_by_the_share_of_pixels_that_both_have():
    sure = 2 * torch.randint(2, (4, 1, 6, 5), generator=generator()).float() - 1
    mask = torch.randint(2, (4, 1, 6, 5), generator=generator(1)).float()
    mask[3] = 0
    found = cycle.outline_overlap(50 * sure, mask)
    for row in range(3):
        guess, drawn = sure[row].flatten() > 0, mask[row].flatten() > 0
        both = sum(bool(g and d) for g, d in zip(guess, drawn, strict=True))
        either = sum(bool(g or d) for g, d in zip(guess, drawn, strict=True))
        assert found[row].item() == pytest.approx(both / either)
    assert found[3] == 0


def test_info_nce_of_equal_features_is_the_logarithm_of_the_others():
    features = torch.ones(6, 5)
    assert info_nce(features, features).item() == pytest.approx(math.log(11), abs=1e-6)


def test_info_nce_equals_a_loop_and_its_gradient_is_right():
    first, second = torch.randn(2, 4, 6, generator=generator(), dtype=torch.float64)
    unit = torch.nn.functional.normalize(torch.cat([first, second]), dim=1)
    losses = []
    for i in range(8):
        scores = [float(unit[i] @ unit[k]) / 0.3 for k in range(8)]
        others = sum(math.exp(s) for k, s in enumerate(scores) if k != i)
        losses.append(math.log(others) - scores[(i + 4) % 8])
    assert info_nce(first, second, 0.3).item() == pytest.approx(sum(losses) / 8, abs=1e-5)
    weight = torch.tensor([0.0, 2.0, 0.5, 0.0], dtype=torch.float64)
    counted = sum(float(w) * (losses[i] + losses[i + 4]) for i, w in enumerate(weight)) / 5
    assert info_nce(first, second, 0.3, weight).item() == pytest.approx(counted, abs=1e-5)
    assert info_nce(first, second, 0.3, 0 * weight) == 0
    first = first.float().requires_grad_()
    info_nce(first, second.float(), 0.3).backward()
    step = torch.randn(4, 6, generator=generator(1))
    ends = [info_nce(first.detach() + s * 1e-2 * step, second.float(), 0.3) for s in (1, -1)]
    difference = (ends[0] - ends[1]).item() / 2e-2
    assert (first.grad * step).sum().item() == pytest.approx(difference, abs=2e-3)


def test_a_turned_pair_is_a_positive_only_once_turned_back():
    features = torch.randn(16, 30, generator=generator())
    rotation = random_rotations(16, generator(1))
    turned = turn_features(features, rotation)
    torch.testing.assert_close(turn_features(turned, rotation.mT), features, atol=1e-5, rtol=0)
    back = info_nce(features, turn_features(turned, rotation.mT), 0.1)
    assert back < info_nce(features, turned, 0.1) - 1


def test_domain_consistency_crosses_the_domains():
    logits = torch.randn(2, 8, 16, generator=generator())
    centre = torch.zeros(16)
    same = domain_consistency(logits[:1].expand(2, -1, -1), logits[:1].expand(2, -1, -1), centre)
    crossed = domain_consistency(logits, logits.flip(0), centre)
    apart = domain_consistency(logits, logits, centre)
    assert crossed < apart - 1
    assert same < apart - 1
    alone = [domain_consistency(logits[:, i : i + 1], logits[:, i : i + 1], centre) for i in (2, 5)]
    weight = torch.zeros(8).index_fill(0, torch.tensor([2, 5]), 0.3)
    found = domain_consistency(logits, logits, centre, weight)
    torch.testing.assert_close(found, sum(alone) / 2)
