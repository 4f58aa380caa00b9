"""Rotations: conversions whose values and gradients are finite everywhere.

Convention:
    Matrices act on column vectors (``x' = R x``) and are right-handed. Axis-angle vectors have the
    angle (radians) as their length, quaternions are ``(w, x, y, z)``. Everything takes any number
    of leading dimensions and keeps the dtype it is given, under autocast too; callers make it
    float32.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def skew(vector: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 3 3"]:
    """Return the matrix ``K`` with ``K x = vector x x`` (cross product)."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    rows = [[zero, -z, y], [z, zero, -x], [-y, x, zero]]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def axis_angle_to_matrix(axis_angle: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 3 3"]:
    """Return rotation matrices by Rodrigues' formula.

    Convention:
        Below 1e-3 rad the two coefficients come from their Taylor series, so that value and
        gradient are exact to float precision at zero.
    """
    squared = axis_angle.square().sum(-1, keepdim=True)[..., None]
    small = squared < 1e-6
    # The untaken branch of a where still sends a gradient: give it a harmless argument.
    angle = torch.where(small, torch.ones_like(squared), squared).sqrt()
    sine = torch.where(small, 1 - squared / 6, angle.sin() / angle)
    # (1 - cos) / angle^2, as 2 sin^2(angle / 2) / angle^2: no cancellation at small angles.
    cosine = torch.where(small, 0.5 - squared / 24, 2 * (angle / 2).sin().square() / angle**2)
    return _from_axis(axis_angle, squared, sine, cosine)


def _from_axis(axis: Tensor, squared: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return ``I + first K + second K^2`` with ``K = skew(axis)``, ``squared = |axis|^2``.

    ``K^2 = a a^T - |a|^2 I``: no matrix product, which autocast would do in half precision.
    """
    eye = torch.eye(3, dtype=axis.dtype, device=axis.device)
    outer = axis[..., :, None] * axis[..., None, :]
    return eye + first * skew(axis) + second * (outer - squared * eye)


def matrix_to_quaternion(matrix: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b 4"]:
    """Return unit quaternions (w, x, y, z) with w >= 0.

    Convention:
        Of the four textbook formulas the one with the largest pivot is used, so none divides by
        less than 1.
    """
    m00, m11, m22 = matrix[..., 0, 0], matrix[..., 1, 1], matrix[..., 2, 2]
    yz = matrix[..., 2, 1] - matrix[..., 1, 2], matrix[..., 2, 1] + matrix[..., 1, 2]
    xz = matrix[..., 0, 2] - matrix[..., 2, 0], matrix[..., 0, 2] + matrix[..., 2, 0]
    xy = matrix[..., 1, 0] - matrix[..., 0, 1], matrix[..., 1, 0] + matrix[..., 0, 1]
    # Row i is 4 q_i q: the outer product of the quaternion with itself.
    rows = [
        torch.stack([1 + m00 + m11 + m22, yz[0], xz[0], xy[0]], dim=-1),
        torch.stack([yz[0], 1 + m00 - m11 - m22, xy[1], xz[1]], dim=-1),
        torch.stack([xz[0], xy[1], 1 - m00 + m11 - m22, yz[1]], dim=-1),
        torch.stack([xy[0], xz[1], yz[1], 1 - m00 - m11 + m22], dim=-1),
    ]
    outer = torch.stack(rows, dim=-2)
    pivot = outer.diagonal(dim1=-2, dim2=-1).argmax(-1)
    best = outer.gather(-2, pivot[..., None, None].expand(*pivot.shape, 1, 4)).squeeze(-2)
    quaternion = F.normalize(best, dim=-1)
    return quaternion * torch.where(quaternion[..., :1] < 0, -1.0, 1.0).to(quaternion)


def quaternion_to_matrix(quaternion: Float[Tensor, "*b 4"]) -> Float[Tensor, "*b 3 3"]:
    """Return the rotation of quaternions (w, x, y, z), normalised first; they must not be 0."""
    unit = F.normalize(quaternion, dim=-1)
    axis = unit[..., 1:]
    squared = axis.square().sum(-1, keepdim=True)[..., None]
    return _from_axis(axis, squared, 2 * unit[..., :1, None], 2 * torch.ones_like(squared))


def matrix_to_axis_angle(matrix: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b 3"]:
    """Return axis-angle vectors no longer than pi.

    Convention:
        Goes through the quaternion. At pi the sign of the axis is arbitrary (the rotation is the
        same). Where the half angle's sine is below 1e-4 a series replaces ``angle / sin``.
    """
    quaternion = matrix_to_quaternion(matrix)
    w, vector = quaternion[..., :1], quaternion[..., 1:]
    squared = vector.square().sum(-1, keepdim=True)
    small = squared < 1e-8
    sine = torch.where(small, torch.ones_like(squared), squared).sqrt()
    ratio = torch.where(small, 2 + squared / 3, 2 * torch.atan2(sine, w) / sine)
    return ratio * vector


def interleaved_6d_to_matrix(sixd: Float[Tensor, "*b 6"]) -> Float[Tensor, "*b 3 3"]:
    """Return rotations from PyMAF's 6D layout, by Gram and Schmidt.

    Convention:
        The six numbers are the rows of a 3 x 2 matrix (entries 0, 2, 4 are its first column, 1,
        3, 5 its second), whose orthonormalised columns are the first two of the rotation (Zhou et
        al., CVPR 2019). The other common layout puts two rows after each other; nothing but the
        values tells them apart.
    """
    first, second = sixd[..., 0::2], sixd[..., 1::2]
    x = F.normalize(first, dim=-1)
    y = F.normalize(second - (x * second).sum(-1, keepdim=True) * x, dim=-1)
    return torch.stack([x, y, torch.linalg.cross(x, y, dim=-1)], dim=-1)


def matrix_to_interleaved_6d(matrix: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b 6"]:
    """Return PyMAF's 6D layout of rotations; see :func:`interleaved_6d_to_matrix`."""
    return matrix[..., :2].flatten(-2)


def geodesic_distance(
    first: Float[Tensor, "*b 3 3"], second: Float[Tensor, "*b 3 3"]
) -> Float[Tensor, "*b"]:
    """Return the angle between rotations, radians in [0, pi].

    Convention:
        ``2 atan2(|R1 - R2| / sqrt(8), sqrt(1 - |R1 - R2|^2 / 8))`` with the Frobenius norm: exact
        at small angles, where arccos of the trace loses half the digits. The gradient at equal
        rotations is 0.
    """
    chord = (first - second).square().sum((-1, -2)) / 8  # sin^2(angle / 2)
    equal, opposite = chord <= 0, chord >= 1
    sine = torch.where(equal, torch.ones_like(chord), chord).sqrt()
    cosine = torch.where(opposite, torch.ones_like(chord), 1 - chord).sqrt()
    sine = torch.where(equal, torch.zeros_like(sine), sine)
    cosine = torch.where(opposite, torch.zeros_like(cosine), cosine)
    return 2 * torch.atan2(sine, cosine)


def random_rotations(
    count: int,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Float[Tensor, "count 3 3"]:
    """Return rotations distributed uniformly over all rotations, float32."""
    return quaternion_to_matrix(torch.randn(count, 4, generator=generator, device=device))


def chordal_mean(rotations: Float[Tensor, "n *b 3 3"]) -> Float[Tensor, "*b 3 3"]:
    """Return the rotation nearest to the arithmetic mean over the first dimension."""
    u, _, vh = torch.linalg.svd(rotations.mean(0))
    sign = torch.ones_like(u[..., 0])
    sign[..., 2] = (torch.linalg.det(u) * torch.linalg.det(vh)).sign()
    with torch.autocast(u.device.type, enabled=False):
        mean: Tensor = (u * sign[..., None, :]) @ vh
    return mean
