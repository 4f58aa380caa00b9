import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from handrec.geometry.rotations import (
    axis_angle_to_matrix,
    chordal_mean,
    geodesic_distance,
    interleaved_6d_to_matrix,
    matrix_to_axis_angle,
    matrix_to_interleaved_6d,
    matrix_to_quaternion,
    quaternion_to_matrix,
    random_rotations,
    skew,
)

ANGLES = [0.0, 1e-12, 1e-7, 1e-4, 1e-3, 0.0011, 0.1, 1.0, 3.0, math.pi - 1e-6, math.pi]


def axis_angles(angle):
    axes = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return angle * torch.nn.functional.normalize(axes, dim=-1)


@pytest.mark.parametrize("angle", ANGLES)
def test_axis_angle_to_matrix_is_scipys(angle):
    vectors = axis_angles(angle)
    expected = Rotation.from_rotvec(vectors.numpy()).as_matrix()
    np.testing.assert_allclose(axis_angle_to_matrix(vectors), expected, atol=1e-14)
    single = axis_angle_to_matrix(vectors.float())
    np.testing.assert_allclose(single, expected, atol=5e-7)


@pytest.mark.parametrize("angle", ANGLES)
def test_matrix_to_axis_angle_is_scipys(angle):
    vectors = axis_angles(angle)
    matrices = Rotation.from_rotvec(vectors.numpy()).as_matrix()
    result = matrix_to_axis_angle(torch.tensor(matrices))
    assert result.norm(dim=-1).max() <= math.pi + 1e-12
    np.testing.assert_allclose(
        Rotation.from_rotvec(result.numpy()).as_matrix(), matrices, atol=1e-13
    )
    if angle < 3.1:  # beyond, the sign of the axis is free
        np.testing.assert_allclose(result, vectors, atol=1e-12)


def test_quaternion_is_scipys_with_the_scalar_first():
    matrices = random_rotations(500, torch.Generator().manual_seed(0)).double()
    expected = Rotation.from_matrix(matrices.numpy()).as_quat(canonical=True)[:, [3, 0, 1, 2]]
    quaternions = matrix_to_quaternion(matrices)
    np.testing.assert_allclose(quaternions, expected, atol=1e-6)
    torch.testing.assert_close(quaternion_to_matrix(3 * quaternions), matrices, atol=1e-6, rtol=0)


@pytest.mark.parametrize("axis", [[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]])
def test_half_turns_survive_the_quaternion(axis):
    half_turn = 2 * torch.tensor(axis).outer(torch.tensor(axis)) - torch.eye(3)
    torch.testing.assert_close(quaternion_to_matrix(matrix_to_quaternion(half_turn)), half_turn)


def test_interleaved_6d_matches_pymafs_numbers():
    matrix = interleaved_6d_to_matrix(torch.tensor([1, 0.1, 0.2, 0.9, -0.3, 0.4]))
    torch.testing.assert_close(
        matrix[:, 0], torch.tensor([0.940721, 0.188144, -0.282216]), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(matrix.T @ matrix, torch.eye(3))
    torch.testing.assert_close(torch.linalg.det(matrix), torch.tensor(1.0))


def test_interleaved_6d_round_trip():
    matrices = random_rotations(100, torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        interleaved_6d_to_matrix(matrix_to_interleaved_6d(matrices)), matrices
    )
    rows = matrix_to_interleaved_6d(matrices).reshape(-1, 3, 2)
    torch.testing.assert_close(rows, matrices[:, :, :2])


@pytest.mark.parametrize("angle", [0.0, 1e-7, 1e-3, 1.0, 3.0, math.pi])
def test_geodesic_distance_is_the_angle(angle):
    base = random_rotations(50, torch.Generator().manual_seed(2)).double()
    base = quaternion_to_matrix(matrix_to_quaternion(base))  # orthonormal in double
    turned = base @ axis_angle_to_matrix(axis_angles(angle))
    distance = geodesic_distance(base, turned)
    # Close to pi the chord is flat: half the digits are all there are.
    torch.testing.assert_close(
        distance, torch.full_like(distance, angle), atol=1e-7 if angle > 3.1 else 1e-12, rtol=1e-8
    )


@pytest.mark.parametrize("angle", [0.0, 1e-5, 0.5, 3.0])
def test_gradients_match_finite_differences(angle):
    vectors = axis_angles(angle)[:3].requires_grad_()
    assert torch.autograd.gradcheck(axis_angle_to_matrix, vectors)
    assert torch.autograd.gradcheck(
        lambda v: matrix_to_axis_angle(axis_angle_to_matrix(v)), vectors, atol=1e-4
    )


@pytest.mark.parametrize("angle", [0.0, math.pi])
def test_gradients_are_finite_at_the_singular_points(angle):
    vectors = axis_angles(angle).float().requires_grad_()
    matrices = axis_angle_to_matrix(vectors)
    loss = geodesic_distance(matrices, torch.eye(3).expand_as(matrices)).sum()
    loss = loss + matrix_to_axis_angle(matrices).sum() + matrix_to_quaternion(matrices).sum()
    loss.backward()
    assert vectors.grad.isfinite().all()


def test_random_rotations_are_uniform():
    matrices = random_rotations(20_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch.linalg.det(matrices), torch.ones(20_000))
    # Moments of the Haar measure: E[R] = 0, E[R_ij^2] = 1/3; the angle's density is 1 - cos.
    assert matrices.mean(0).abs().max() < 0.02
    assert (matrices.square().mean(0) - 1 / 3).abs().max() < 0.01
    angle = geodesic_distance(matrices, torch.eye(3).expand_as(matrices))
    assert abs(angle.mean() - (math.pi / 2 + 2 / math.pi)) < 0.02
    assert torch.equal(matrices[:5], random_rotations(20_000, torch.Generator().manual_seed(0))[:5])


def test_chordal_mean_is_scipys():
    noise = 0.5 * torch.randn(200, 4, 3, generator=torch.Generator().manual_seed(0)).double()
    base = axis_angle_to_matrix(axis_angles(2.0)[:4])
    samples = base @ axis_angle_to_matrix(noise)
    for joint, mean in enumerate(chordal_mean(samples)):
        expected = Rotation.from_matrix(samples[:, joint].numpy()).mean().as_matrix()
        np.testing.assert_allclose(mean, expected, atol=1e-9)


def test_skew_is_the_cross_product():
    first, second = torch.randn(2, 10, 3, generator=torch.Generator().manual_seed(0))
    product = (skew(first) @ second[..., None]).squeeze(-1)
    torch.testing.assert_close(product, torch.linalg.cross(first, second))


def test_autocast_does_not_lower_the_precision():
    vectors = axis_angles(1.3).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = matrix_to_axis_angle(axis_angle_to_matrix(vectors))
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, vectors, atol=1e-6, rtol=0)
