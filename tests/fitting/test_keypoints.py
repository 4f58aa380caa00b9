"""Hands from 2D joints."""

import math

import torch

from handrec.fitting.keypoints import (
    fit_keypoints,
    hand_box,
    keypoint_energy,
    reprojection_error,
    starts,
    views,
)
from handrec.fitting.parameters import HandPrior
from handrec.fitting.photo import crop_hand
from handrec.geometry.camera import project
from handrec.geometry.rotations import axis_angle_to_matrix, matrix_to_interleaved_6d
from handrec.hand.anatomy import rest_hand
from handrec.hand.openhand import OpenHand
from handrec.hand.sampler import PoseSampler
from handrec.hand.skinning import posed_joints
from handrec.types import HandBatch
from tests.fitting.scenes import Scene, aligned_error, scene, with_confidence

HAND = OpenHand()


def target(photo: Scene, missing: tuple[int, ...] = ()) -> HandBatch:
    keypoints = with_confidence(photo.keypoints)
    keypoints[list(missing), 2] = 0
    keypoints[list(missing), :2] = 0
    return crop_hand(photo.photo, keypoints, photo.intrinsics, "right")


def test_box_and_errors_leave_absent_joints_out() -> None:
    batch = target(scene("flat", (0, 0, 0)), missing=(0, 8))
    box = hand_box(batch.keypoints_2d, batch.confidence)[0]
    seen = [i for i in range(21) if i not in (0, 8)]
    points = batch.keypoints_2d[0, seen]
    assert box.tolist() == [*points.amin(0).tolist(), *points.amax(0).tolist()]
    projected = batch.keypoints_2d + torch.tensor([3.0, 4.0])
    projected[:, [0, 8]] = 1e4
    torch.testing.assert_close(reprojection_error(projected, batch), torch.tensor([5.0]))


def test_energy_is_hubers_weighted_with_confidence() -> None:
    """Against a loop."""
    batch = target(scene("peace", (0.2, 0.1, 0)))
    confidence = torch.linspace(0, 1, 21)[None]
    batch = batch._replace(confidence=confidence)
    joints = torch.rand(2, 21, 3, generator=torch.Generator().manual_seed(0)) * 0.1
    joints[..., 2] += 0.5
    box = hand_box(batch.keypoints_2d, confidence)[0]
    side = max(box[2] - box[0], box[3] - box[1])
    pixels = project(joints, batch.intrinsics.expand(2, 3, 3))
    expected = []
    for hand in pixels:
        total = 0.0
        for point, given, weight in zip(hand, batch.keypoints_2d[0], confidence[0], strict=True):
            far = math.dist(point.tolist(), given.tolist()) / (0.02 * float(side))
            total += float(weight) * (far**2 / 2 if far < 3 else 3 * (far - 1.5))
        expected.append(total)
    torch.testing.assert_close(
        keypoint_energy(joints, batch, 0.02), torch.tensor(expected), rtol=1e-4, atol=1e-3
    )


def test_views_are_rotations_that_cover_the_sphere() -> None:
    rotations = views(96)
    eye = torch.eye(3).expand(96, 3, 3)
    torch.testing.assert_close(rotations @ rotations.mT, eye, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotations), torch.ones(96))
    anywhere = torch.nn.functional.normalize(
        torch.randn(500, 3, generator=torch.Generator().manual_seed(0)), dim=1
    )
    nearest = (anywhere @ rotations[:, 2].T).amax(1).arccos()
    assert nearest.max() < math.radians(15)


def test_a_gesture_seen_from_one_of_the_views_is_found_in_closed_form() -> None:
    """From far away, where weak perspective is exact."""
    sampler = PoseSampler(HAND)
    pose = sampler.gesture("gun")[None]
    pose[:, 0] = axis_angle_to_matrix(torch.tensor([[0.0, 0, 0.8]])) @ views(96)[17]
    joints = posed_joints(pose, rest_hand(HAND).joints[0]) + torch.tensor([0.2, -0.3, 400.0])
    batch = target(scene("flat", (0, 0, 0)))
    matrix = torch.tensor([[[3e5, 0, 112], [0, 3e5, 112], [0, 0, 1]]])
    batch = batch._replace(intrinsics=matrix, keypoints_2d=project(joints, matrix))
    best = starts(HAND, batch, 1)
    torch.testing.assert_close(
        best.rotation, matrix_to_interleaved_6d(pose[:, 0]), atol=2e-3, rtol=0
    )
    torch.testing.assert_close(best.pose(HAND)[:, 1:], pose[:, 1:], atol=1e-4, rtol=0)
    found = project(best.decode(HAND, batch.camera).joints, matrix)
    assert (found - batch.keypoints_2d).norm(dim=-1).mean() < 2  # of 150 pixels: tips on the skin


def test_exact_keypoints_give_the_hand_back_even_if_some_are_absent() -> None:
    """Palm and back are told apart, and depth is right but for what one view cannot tell."""
    photo = scene("peace", (0.3, 2.6, 0.4))
    batch = target(photo, missing=(0, 14, 20))
    found = fit_keypoints(HAND, HandPrior(HAND), batch).decode(HAND, batch.camera)
    assert reprojection_error(project(found.joints, batch.intrinsics), batch) < 1.5
    assert aligned_error(found.vertices[0], photo.hand.vertices[0]) < 8
