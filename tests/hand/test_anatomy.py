import math

import numpy as np
import pytest
import torch
import trimesh
from scipy.spatial.transform import Rotation

from handrec.geometry.rotations import axis_angle_to_matrix, random_rotations
from handrec.hand.anatomy import (
    Parts,
    SphereProxies,
    hand_parts,
    joint_angles,
    joint_limits,
    limit_excess,
    pose_from_angles,
    vertex_penetration,
)
from handrec.hand.joints import FINGERS, JOINTS, KINEMATIC_JOINTS
from handrec.hand.openhand import OpenHand

DEGREE = math.pi / 180


@pytest.fixture(scope="module")
def hand():
    return OpenHand()


def angles_with(**degrees):
    angles = torch.zeros(1, 15, 3)
    for name, (axis, value) in degrees.items():
        column = ("twist", "spread", "bend").index(axis)
        angles[0, KINEMATIC_JOINTS.index(name) - 1, column] = value * DEGREE
    return angles


def joints_at(hand, angles):
    pose = pose_from_angles(angles, hand.joint_axes)
    return hand.decode(pose, torch.zeros(len(pose), 10), torch.zeros(len(pose), 3)).joints


def test_angles_round_trip(hand):
    generator = torch.Generator().manual_seed(0)
    angles = (2 * torch.rand(200, 15, 3, generator=generator) - 1) * torch.tensor([3.1, 1.5, 3.1])
    pose = pose_from_angles(angles, hand.joint_axes)
    torch.testing.assert_close(pose[:, 0], torch.eye(3).expand(200, 3, 3))
    torch.testing.assert_close(joint_angles(pose, hand.joint_axes), angles, atol=2e-5, rtol=0)
    torch.testing.assert_close(
        joint_angles(pose[:, 1:], hand.joint_axes), angles, atol=2e-5, rtol=0
    )
    random = random_rotations(16 * 50, generator).reshape(50, 16, 3, 3)
    back = pose_from_angles(joint_angles(random, hand.joint_axes), hand.joint_axes)
    torch.testing.assert_close(back[:, 1:], random[:, 1:], atol=1e-5, rtol=0)


def test_angles_are_scipys_euler_angles_in_the_joints_frame(hand):
    rotations = random_rotations(15, torch.Generator().manual_seed(0))
    axes = hand.joint_axes
    local = (axes @ rotations @ axes.mT).numpy()
    bend, spread, twist = Rotation.from_matrix(local).as_euler("ZYX").T
    expected = np.stack([twist, spread, bend], axis=-1)
    np.testing.assert_allclose(joint_angles(rotations[None], axes)[0], expected, atol=2e-6)


def test_axes_are_orthonormal_and_right_handed(hand):
    axes = hand.joint_axes
    torch.testing.assert_close(axes @ axes.mT, torch.eye(3).expand(15, 3, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.linalg.det(axes), torch.ones(15))


@pytest.mark.parametrize("finger", ["index", "middle", "ring", "little"])
def test_bend_closes_and_spread_goes_to_the_little_finger(hand, finger):
    tip = JOINTS.index(f"{finger}_tip")
    rest = joints_at(hand, torch.zeros(1, 15, 3))[0, tip]
    bent = joints_at(hand, angles_with(**{f"{finger}_mcp": ("bend", 40)}))[0, tip]
    spread = joints_at(hand, angles_with(**{f"{finger}_mcp": ("spread", 15)}))[0, tip]
    twisted = joints_at(hand, angles_with(**{f"{finger}_dip": ("twist", 30)}))[0, tip]
    assert (bent - rest)[1] < -0.04  # to the palm, -y
    assert (spread - rest)[2] < -0.01  # away from the thumb, -z
    assert (twisted - rest).norm() < 1e-3  # about the bone itself


def test_thumb_bends_across_the_palm_and_spreads_away_from_it(hand):
    tip, little = JOINTS.index("thumb_tip"), JOINTS.index("little_mcp")
    rest = joints_at(hand, torch.zeros(1, 15, 3))[0]
    bent = joints_at(hand, angles_with(thumb_cmc=("bend", 30)))[0]
    out = joints_at(hand, angles_with(thumb_cmc=("spread", -30)))[0]
    assert (bent[tip] - bent[little]).norm() < (rest[tip] - rest[little]).norm() - 0.015
    assert (out[tip] - rest[tip])[1] < -0.01


def test_a_flat_hand_is_within_the_limits_and_a_broken_one_is_not(hand):
    limits = hand.joint_limits
    torch.testing.assert_close(limits, joint_limits())
    flat = torch.zeros(1, 15, 3)
    assert limit_excess(flat, limits).max() == 0
    backwards = limit_excess(angles_with(index_pip=("bend", -30)), limits)
    assert backwards[0, 1, 2].item() == pytest.approx(22 * DEGREE, abs=1e-6)
    assert backwards.count_nonzero() == 1
    assert limit_excess(angles_with(ring_dip=("spread", 20)), limits).max() > 0.2


def test_excess_counts_rotations_the_right_way_round(hand):
    # From matrices: a +60 degree turn about +z bends an index PIP, -60 degrees breaks it.
    pose = torch.eye(3).repeat(2, 16, 1, 1)
    turn = torch.tensor([[0.0, 0, 60 * DEGREE], [0, 0, -60 * DEGREE]])
    pose[:, KINEMATIC_JOINTS.index("index_pip")] = axis_angle_to_matrix(turn)
    excess = limit_excess(joint_angles(pose, hand.joint_axes), hand.joint_limits)
    assert excess[0].max() < 1 * DEGREE
    assert excess[1].max() > 50 * DEGREE


def test_spheres_lie_inside_the_skin(hand):
    spheres = SphereProxies(hand)
    centres = spheres.mixture @ (hand.regressor @ hand.template)
    distance = torch.cdist(centres, hand.template).amin(1)
    torch.testing.assert_close(distance, spheres.radii)
    assert spheres.radii.min() > 0.004
    assert spheres.radii.max() < 0.02


def test_penetration_is_zero_at_rest_and_matches_a_loop(hand):
    spheres = SphereProxies(hand)
    rest = joints_at(hand, torch.zeros(1, 15, 3))
    assert spheres.penetration(rest).max() == 0
    # The middle finger pushed through the index finger.
    crossed = joints_at(hand, angles_with(middle_mcp=("spread", -14)))
    depth = spheres.penetration(crossed)[0]
    assert depth.max() > 0.003
    centres = spheres.mixture @ crossed[0]
    for pair in (0, int(depth.argmax()), len(depth) - 1):
        i, j = spheres.pairs[:, pair]
        gap = spheres.radii[i] + spheres.radii[j] - (centres[i] - centres[j]).norm()
        assert depth[pair].item() == pytest.approx(max(gap.item(), 0), abs=1e-5)


def test_penetration_has_a_finite_gradient_that_separates(hand):
    spheres = SphereProxies(hand)
    angles = angles_with(middle_mcp=("spread", -14)).requires_grad_()
    loss = spheres.penetration(joints_at(hand, angles)).square().sum()
    (gradient,) = torch.autograd.grad(loss, angles)
    assert gradient.isfinite().all()
    assert gradient[0, KINEMATIC_JOINTS.index("middle_mcp") - 1, 1] < 0  # spread it back
    same_place = torch.zeros(1, 21, 3, requires_grad=True)
    spheres.penetration(same_place).sum().backward()
    assert same_place.grad.isfinite().all()


def test_autocast_does_not_lower_the_precision(hand):
    pose = random_rotations(16, torch.Generator().manual_seed(0))[None]
    spheres = SphereProxies(hand)
    joints = joints_at(hand, angles_with(middle_mcp=("spread", -14)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        angles = joint_angles(pose, hand.joint_axes)
        back = pose_from_angles(angles, hand.joint_axes)
        depth = spheres.penetration(joints)
    assert {angles.dtype, back.dtype, depth.dtype} == {torch.float32}
    torch.testing.assert_close(back[:, 1:], pose[:, 1:], atol=1e-5, rtol=0)
    torch.testing.assert_close(depth, spheres.penetration(joints))


def spheres_apart(distance):
    sphere = trimesh.creation.icosphere(3, 0.03)
    vertices, faces = torch.tensor(sphere.vertices).float(), torch.tensor(sphere.faces).long()
    count = len(vertices)
    both = torch.cat([vertices, vertices + torch.tensor([distance, 0, 0])])[None]
    parts = Parts(torch.arange(2).repeat_interleave(count), ~torch.eye(2, dtype=torch.bool))
    depth = vertex_penetration(both, torch.cat([faces, faces + count]), parts)[0, :count]
    exact = 0.03 - (both[0, :count] - torch.tensor([distance, 0, 0])).norm(dim=1)
    return depth, exact


def test_vertices_of_a_sphere_in_another_are_as_deep_as_they_are():
    depth, exact = spheres_apart(0.05)
    torch.testing.assert_close(depth, exact.clamp(min=0), atol=2e-4, rtol=0)
    assert depth.max().item() == pytest.approx(0.01, abs=2e-4)
    assert spheres_apart(0.0601)[0].max() == 0


def test_vertex_penetration_of_hands(hand):
    parts = hand_parts(hand)
    assert torch.bincount(parts.part).min() > 20
    assert (parts.apart == parts.apart.T).all()
    fist = {f"{f}_{j}": ("bend", b) for f in FINGERS[1:] for j, b in zip(
        ("mcp", "pip", "dip"), (110, 100, 60), strict=True)}  # fmt: skip
    angles = [angles_with(), angles_with(middle_mcp=("spread", -14)), angles_with(**fist)]
    pose = pose_from_angles(torch.cat(angles), hand.joint_axes)
    pose[:, 0] = random_rotations(3, torch.Generator().manual_seed(0))
    vertices = hand.decode(pose, torch.zeros(3, 10), torch.zeros(3, 3)).vertices
    depth = vertex_penetration(vertices, hand.faces, parts).amax(1)
    assert depth[0] == 0
    assert 0.004 < depth[1] < 0.009  # at most half a finger
    assert depth[2] > 0.01  # finger tips in the palm


def agrees(found, inside):
    """Vertices that seem clearly outside are not looked at: a few may be missed, none made up."""
    assert not found[~inside].any()
    assert found[inside].float().mean() > 0.95


def test_what_is_inside_is_what_a_naive_winding_number_says(hand):
    parts = hand_parts(hand)
    fist = {f"{f}_{j}": ("bend", b) for f in FINGERS[1:] for j, b in zip(
        ("mcp", "pip", "dip"), (95, 100, 60), strict=True)}  # fmt: skip
    pose = pose_from_angles(angles_with(**fist), hand.joint_axes)
    vertices = hand.decode(pose, torch.zeros(1, 10), torch.zeros(1, 3)).vertices
    found = vertex_penetration(vertices, hand.faces, parts)[0] > 0
    tip = KINEMATIC_JOINTS.index("middle_dip")
    mine = torch.nonzero(parts.part == tip)[:, 0]
    triangles = vertices[0, hand.faces[parts.apart[tip][parts.part[hand.faces[:, 0]]]]].numpy()
    inside = []
    for point in vertices[0, mine].numpy():
        turns = 0.0
        for a, b, c in triangles.astype(float) - point:
            la, lb, lc = (np.linalg.norm(x) for x in (a, b, c))
            around = la * lb * lc + (a @ b) * lc + (b @ c) * la + (c @ a) * lb
            turns += 2 * math.atan2(np.linalg.det([a, b, c]), around)
        inside.append(turns / (4 * math.pi) > 0.5)
    inside = torch.tensor(inside)
    assert 10 < inside.sum() < len(mine)
    agrees(found[mine], inside)


def crossings(points, triangles, direction):
    """Return how often a ray from each point meets triangles (Moeller and Trumbore)."""
    a, b, c = triangles.transpose(1, 0, 2)
    across = np.cross(direction, c - a)
    scale = (across * (b - a)).sum(1)
    offset = points[:, None] - a
    u = (offset * across).sum(2) / scale
    other = np.cross(offset, b - a)
    v, t = (other @ direction) / scale, (other * (c - a)).sum(2) / scale
    return ((u > 0) & (v > 0) & (u + v < 1) & (t > 0)).sum(1)


def test_a_hand_in_another_is_found_as_rays_find_it(hand):
    """Two whole hands, closed surfaces: one pushed through the other."""
    turn = axis_angle_to_matrix(torch.tensor([[1.2, 0.3, 0.1]]))[0]
    hands = [hand.template, hand.template @ turn.T + 0.002]
    count = len(hand.template)
    parts = Parts(torch.arange(2).repeat_interleave(count), ~torch.eye(2, dtype=torch.bool))
    faces = torch.cat([hand.faces, hand.faces + count])
    depth = vertex_penetration(torch.cat(hands)[None], faces, parts)[0].split(count)
    for index, found in enumerate(depth):
        points, triangles = (
            x.double().numpy() for x in (hands[index], hands[1 - index][hand.faces])
        )
        met = crossings(points, triangles, np.array([0.31, 0.87, -0.37]))
        inside = torch.from_numpy(met % 2 == 1)
        assert inside.sum() > 50
        near = (
            torch.cdist(hands[index], hands[1 - index]).amin(1) < 0.015
        )  # deeper is not looked for
        agrees((found > 0)[near], inside[near])
