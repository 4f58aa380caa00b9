"""Cameras against OpenCV, golden values and their own definitions."""

import cv2
import numpy as np
import pytest
import torch

from handrec.geometry.camera import project, resize_camera, weak_to_translation
from handrec.types import Camera


@pytest.fixture
def intrinsics():
    return torch.tensor(
        [[[500.0, 0, 120], [0, 480, 100], [0, 0, 1]], [[800.0, 3, 50], [0, 810, 60], [0, 0, 1]]]
    )


@pytest.fixture
def points():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 7, 3, generator=generator) - 0.5 + torch.tensor([0, 0, 1.2])


def test_project_is_opencvs(points, intrinsics):
    expected, _ = cv2.projectPoints(
        points[0].double().numpy(), np.zeros(3), np.zeros(3), intrinsics[0].double().numpy(), None
    )
    np.testing.assert_allclose(project(points, intrinsics)[0], expected[:, 0], rtol=1e-5)


def test_project_honours_skew(points, intrinsics):
    homogeneous = points @ intrinsics.mT
    torch.testing.assert_close(
        project(points, intrinsics), homogeneous[..., :2] / homogeneous[..., 2:]
    )


def test_project_stays_finite_behind_the_camera(intrinsics):
    points = torch.tensor([[[0.1, 0.1, -0.5], [0.1, 0.1, 0.0]]]).expand(2, -1, -1).requires_grad_()
    pixels = project(points, intrinsics)
    (gradient,) = torch.autograd.grad(pixels.sum(), points)
    assert pixels.isfinite().all()
    assert gradient.isfinite().all()


def test_gradcheck(points, intrinsics):
    inputs = points.double().requires_grad_(), intrinsics.double().requires_grad_()
    assert torch.autograd.gradcheck(project, inputs)


def test_resize_scales_pixels(points, intrinsics):
    camera = resize_camera(Camera(intrinsics, (200, 240)), (100, 60))
    expected = project(points, intrinsics) * torch.tensor([60 / 240, 100 / 200])
    torch.testing.assert_close(project(points, camera.intrinsics), expected)
    assert camera.image_size == (100, 60)


def to_crop(points, intrinsics, size):
    return project(points, intrinsics) * 2 / size - 1


def test_weak_camera_golden():
    weak = torch.tensor([[8.0, 0.005, -0.01]])
    intrinsics = torch.tensor([[[5000.0, 0, 112], [0, 5000, 112], [0, 0, 1]]])
    translation = weak_to_translation(weak, intrinsics, (224, 224))
    torch.testing.assert_close(translation, torch.tensor([[0.005, -0.01, 5.580357]]))
    points = torch.tensor([[[0.02, -0.03, 0.01], [0.09, 0.05, -0.04]]]) + translation[:, None]
    expected = torch.tensor([[[0.199642, -0.319428], [0.765487, 0.322310]]])
    torch.testing.assert_close(to_crop(points, intrinsics, 224), expected, rtol=0, atol=2e-6)


def test_weak_camera_ignores_where_the_principal_point_is():
    weak = torch.tensor([[7.0, 0.02, -0.01]])
    small = torch.tensor([[[1e-4, 2e-4, 0], [-2e-4, 1e-4, 0]]])
    for centre in ((112.0, 112.0), (300.0, -40.0)):
        intrinsics = torch.tensor([[[900.0, 0, centre[0]], [0, 900, centre[1]], [0, 0, 1]]])
        translation = weak_to_translation(weak, intrinsics, (224, 224))
        expected = 7 * (small[..., :2] + weak[:, None, 1:])
        actual = to_crop(small + translation[:, None], intrinsics, 224)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def test_weak_camera_keeps_the_hand_before_the_camera():
    intrinsics = torch.tensor([[[900.0, 0, 112], [0, 900, 112], [0, 0, 1]]]).expand(3, -1, -1)
    weak = torch.tensor([[-3.0, 0, 0], [0, 0, 0], [0.05, 0, 0]])
    depth = weak_to_translation(weak, intrinsics, (224, 224))[:, 2]
    torch.testing.assert_close(depth, torch.full((3,), 2 * 900 / (224 * 0.05)))


def test_projection_keeps_its_precision_under_autocast():
    points = torch.randn(2, 30, 3) * 0.1 + torch.tensor([0.0, 0.0, 0.6])
    intrinsics = torch.tensor([[500.0, 0, 112], [0, 500, 100], [0, 0, 1]]).expand(2, 3, 3)
    expected = project(points.double(), intrinsics.double())
    with torch.autocast("cpu", torch.bfloat16):
        pixels = project(points, intrinsics)
    torch.testing.assert_close(pixels.double(), expected, atol=1e-3, rtol=0)
