from dataclasses import dataclass

import pytest
import torch

from handrec.geometry.rotations import random_rotations
from handrec.losses.hand import (
    dense_loss,
    keypoints_2d_loss,
    local_points_loss,
    relative_points_loss,
    rotation_loss,
    total,
)


def test_keypoints_are_measured_in_half_crops_by_confidence():
    target = torch.zeros(1, 21, 2)
    predicted = target.clone()
    predicted[0, 0] = torch.tensor([16.0, 0.0])  # half of half a crop, in x only: mean 0.25
    predicted[0, 1] = 1e6
    confidence = torch.zeros(1, 21)
    confidence[0, 0], confidence[0, 2] = 1.0, 0.5
    loss = keypoints_2d_loss(predicted, target, confidence, (64, 64))
    torch.testing.assert_close(loss, torch.tensor(0.25 / 1.5))


def test_relative_points_ignore_where_the_hand_is():
    torch.manual_seed(0)
    points, shift = torch.randn(2, 5, 3), torch.randn(2, 1, 3)
    root = points[:, 0]
    loss = relative_points_loss(points + shift, points, root + shift[:, 0], root, torch.ones(2))
    torch.testing.assert_close(loss, torch.tensor(0.0), atol=1e-6, rtol=0)


def test_local_points_ignore_how_the_hand_is_turned_even_under_autocast():
    torch.manual_seed(0)
    points, root = 0.1 * torch.randn(2, 50, 3), torch.zeros(2, 3)
    turn = random_rotations(2)
    far = torch.tensor([[0.3, -0.2, 9.0]]).expand(2, 3)
    turned = points @ turn.mT + far[:, None]
    with torch.autocast("cpu", torch.bfloat16):
        loss = local_points_loss(
            turned, points, (far, turn), (root, torch.eye(3).expand(2, 3, 3)), torch.ones(2)
        )
    assert loss < 1e-6


def test_absent_labels_neither_count_nor_dilute():
    predicted, target = torch.ones(2, 16, 3, 3), torch.zeros(2, 16, 3, 3)
    predicted[1] = 100
    torch.testing.assert_close(
        rotation_loss(predicted, target, torch.tensor([1.0, 0.0])), torch.tensor(1.0)
    )


def test_no_label_at_all_gives_zero_loss_and_zero_gradient():
    predicted = torch.randn(2, 16, 3, 3, requires_grad=True)
    loss = rotation_loss(predicted, torch.zeros(2, 16, 3, 3), torch.zeros(2))
    loss.backward()
    assert loss == 0
    assert (predicted.grad == 0).all()


def test_dense_map_counts_position_only_on_the_hand():
    position, mask = torch.rand(1, 3, 4, 4), torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 1
    perfect = torch.cat([torch.where(mask > 0, position, 7.0), 40 * mask - 20], dim=1)
    weight = torch.ones(1)
    assert dense_loss(perfect, position, mask, weight) < 1e-6
    wrong = perfect.clone()
    wrong[:, :3] += 1 * mask
    # smooth L1 with beta 0.1 of an error of 1 in each of three channels
    torch.testing.assert_close(dense_loss(wrong, position, mask, weight), torch.tensor(3 * 0.95))


@dataclass(frozen=True)
class Weights:
    a: float = 2.0
    b: float = 0.5


def test_total_weighs_each_term():
    terms = {"a": torch.tensor(1.0), "b": torch.tensor(4.0, dtype=torch.bfloat16)}
    assert total(terms, Weights()) == 4.0


def test_total_names_the_term_that_is_not_finite():
    with pytest.raises(FloatingPointError, match="loss term b is not finite"):
        total({"a": torch.tensor(1.0), "b": torch.tensor(torch.nan)}, Weights())


def test_total_refuses_a_term_without_weight():
    with pytest.raises(AttributeError):
        total({"c": torch.tensor(1.0)}, Weights())
