import importlib.util
from pathlib import Path

import numpy as np
import pytest
import smplx.lbs
import torch
import trimesh

from handrec.geometry.mesh import edges, face_normals
from handrec.geometry.rotations import geodesic_distance, random_rotations
from handrec.hand.joints import JOINTS, KINEMATIC_JOINTS, KINEMATIC_PARENTS, PARENTS, TIPS, order
from handrec.hand.openhand import OpenHand
from handrec.hand.sampler import PoseSampler
from handrec.hand.skinning import posed_joints

ROOT = Path(__file__).parents[2]
IDENTITY = torch.eye(3).expand(1, 16, 3, 3)
ZERO = torch.zeros(1, 10)
ORIGIN = torch.zeros(1, 3)


@pytest.fixture(scope="module")
def hand():
    return OpenHand()


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("build", ROOT / "scripts" / "build_openhand.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def poses(hand):
    return PoseSampler(hand).sample(32, torch.Generator().manual_seed(0))


def random_inputs(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pose = random_rotations(16 * count, generator).reshape(count, 16, 3, 3)
    return pose, torch.randn(count, 10, generator=generator)


def test_skinning_is_smplxs(hand):
    pose, betas = random_inputs(8)
    vertices, joints = smplx.lbs.lbs(
        betas,
        pose,
        hand.template[None],
        hand.shape_directions,
        torch.zeros(135, 3 * len(hand.template)),
        hand.regressor[order(JOINTS, KINEMATIC_JOINTS)],
        torch.tensor(KINEMATIC_PARENTS),
        hand.weights,
        pose2rot=False,
    )
    posed = hand.decode(pose, betas, torch.zeros(8, 3))
    torch.testing.assert_close(posed.vertices, vertices, atol=1e-6, rtol=0)
    kinematic = posed.joints[:, order(JOINTS, KINEMATIC_JOINTS)]
    torch.testing.assert_close(kinematic, joints, atol=1e-6, rtol=0)


def test_file_is_what_the_script_builds(hand, script):
    built = script.build(script.ASSETS / "right.glb")
    for name in set(built) - {"mean_pose", "pose_components"}:
        stored = getattr(hand, name).numpy()
        np.testing.assert_allclose(stored, built[name], atol=1e-7, err_msg=name)


def test_pose_statistics_are_what_the_sampler_gives(hand, script):
    # Another sample, so only statistically equal: it holds whatever the random generator's version.
    built = script.pose_statistics(hand, count=4000)
    error = geodesic_distance(torch.tensor(built["mean_pose"]), hand.mean_pose)
    assert error.max() < np.radians(2.5)
    overlap = torch.tensor(built["pose_components"])[:4] @ hand.pose_components[:4].T
    assert torch.linalg.svdvals(overlap).min() > 0.98  # the same leading subspace


def test_rest_joints_are_the_files(hand, script):
    rig = script.read_glb(script.ASSETS / "right.glb")
    joints = hand.decode(IDENTITY, ZERO, ORIGIN).joints[0]
    for joint, position in zip(JOINTS, joints, strict=True):
        if joint not in TIPS:
            expected = rig.joints[script.webxr_name(joint)]
            np.testing.assert_allclose(position, expected, atol=1e-6, err_msg=joint)


def test_tips_lie_on_the_skin_beyond_the_files_inner_tips(hand, script, poses):
    rig = script.read_glb(script.ASSETS / "right.glb")
    rest = hand.decode(IDENTITY, ZERO, ORIGIN)
    for tip in TIPS:
        position = rest.joints[0, JOINTS.index(tip)]
        inner = torch.tensor(rig.joints[script.webxr_name(tip)]).float()
        assert 0.005 < (position - inner).norm() < 0.012  # a pulp's thickness
    posed = hand.decode(poses, torch.zeros(32, 10), torch.zeros(32, 3))
    for vertices, joints in zip(posed.vertices[:6], posed.joints[:6], strict=True):
        mesh = trimesh.Trimesh(vertices.numpy(), hand.faces.numpy(), process=False)
        points = joints[order(JOINTS, TIPS)].numpy()
        distance = trimesh.proximity.closest_point_naive(mesh, points)[1]
        assert distance.max() < 1e-5


def test_mesh_is_closed_manifold_and_of_a_hands_size(hand):
    mesh = trimesh.Trimesh(hand.template.numpy(), hand.faces.numpy(), process=False)
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert mesh.euler_number == 2
    assert len(mesh.vertices) == 1159
    # A hand displaces about 300 to 500 ml.
    assert 0.3e-3 < mesh.volume < 0.5e-3


def test_uv_islands_do_not_overlap(hand):
    corners = hand.uv[hand.uv_faces].double()
    centres = corners.mean(1)
    covered = torch.ones(len(centres), len(corners), dtype=torch.bool)
    areas = []
    for i in range(3):
        start, end = corners[:, i], corners[:, (i + 1) % 3]
        edge, offset = end - start, centres[:, None] - start
        areas.append(edge[:, 0] * offset[..., 1] - edge[:, 1] * offset[..., 0])
    orientation = sum(areas)[0].sign()  # twice the area of each UV triangle, signed
    for area in areas:
        covered &= area * orientation > 0
    assert (covered.sum(1) == 1).all()


def test_palm_faces_minus_y(hand):
    # Not from the joints: bent fingertips come near the palm's skin, never near the back's.
    pose = IDENTITY.clone()
    bend = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])  # +90 degrees about +z
    pose[:, 1:13:3] = bend
    pose[:, 2:13:3] = bend
    tips = hand.decode(pose, ZERO, ORIGIN).joints[0, 8::4]
    normals = torch.nn.functional.normalize(face_normals(hand.template, hand.faces), dim=-1)
    centres = hand.template[hand.faces].mean(1)
    nearest = torch.cdist(tips, centres).argmin(1)
    assert (normals[nearest, 1] < -0.5).all()
    knuckles = hand.regressor[[5, 9, 13, 17]] @ hand.template
    # Knuckles lie under the back of the hand.
    assert ((knuckles - tips)[:, 1] > 0.02).all()


@pytest.mark.parametrize("dimension", range(10))
@pytest.mark.parametrize("beta", [-2.5, 2.5])
def test_shapes_neither_fold_nor_tear(hand, dimension, beta):
    betas = ZERO.clone()
    betas[0, dimension] = beta
    vertices = hand.decode(IDENTITY, betas, ORIGIN).vertices[0]
    before, after = (face_normals(v, hand.faces).double() for v in (hand.template, vertices))
    assert torch.cosine_similarity(before, after, dim=-1, eps=1e-20).min() > 0.8
    edge = edges(hand.faces)
    length = [(v[edge[:, 0]] - v[edge[:, 1]]).norm(dim=-1) for v in (hand.template, vertices)]
    ratio = length[1] / length[0]
    assert ratio.min() > 0.4
    assert ratio.max() < 1.7
    volume = volumes(torch.stack([hand.template, vertices]), hand.faces)
    assert volume[1] > 0.5 * volume[0]


def volumes(vertices, faces):
    return np.array([trimesh.Trimesh(mesh, faces, process=False).volume for mesh in vertices])


def bone_lengths(joints):
    return (joints - joints[[max(parent, 0) for parent in PARENTS]]).norm(dim=-1)[1:]


def test_shape_directions_do_what_they_are_called(hand):
    def at(dimension):
        betas = ZERO.clone()
        betas[0, dimension] = 1.0
        return hand.decode(IDENTITY, betas, ORIGIN)

    rest = hand.decode(IDENTITY, ZERO, ORIGIN).joints[0]
    base = bone_lengths(rest)
    index, ring = slice(5, 8), slice(13, 16)  # finger bones among the 20
    torch.testing.assert_close(at(0).vertices[0], 1.06 * hand.template)
    torch.testing.assert_close(bone_lengths(at(0).joints[0]), 1.06 * base, atol=1e-6, rtol=0)
    breadth = (at(1).joints[0, 5] - at(1).joints[0, 17])[2] / (rest[5] - rest[17])[2]
    assert breadth.item() == pytest.approx(1.035, abs=0.006)
    finger = bone_lengths(at(3).joints[0])[index].sum() / base[index].sum()
    assert finger.item() == pytest.approx(1.035, abs=0.004)
    thumb = bone_lengths(at(4).joints[0])[1:4].sum() / base[1:4].sum()
    assert thumb.item() == pytest.approx(1.06, abs=0.006)
    ratio = bone_lengths(at(7).joints[0]) / base
    assert (ratio[index].mean() / ratio[ring].mean()).item() == pytest.approx(1.033, abs=0.004)


def test_joints_follow_the_shape_locally(hand):
    assert (hand.regressor.sum(1) - 1).abs().max() < 1e-5
    assert hand.regressor.min() > -1e-6
    rest = hand.regressor @ hand.template
    reach = torch.cdist(rest, hand.template)
    # The hand is 19 cm long; every joint is found from skin around it.
    assert ((hand.regressor > 1e-6) * reach).max() < 0.06


def test_volume_survives_the_pose(hand, poses):
    vertices = hand.decode(poses, torch.zeros(32, 10), torch.zeros(32, 3)).vertices
    ratio = volumes(vertices, hand.faces) / volumes(hand.template[None], hand.faces)
    assert ratio.min() > 0.88
    assert ratio.max() < 1.1


def test_components_round_trip(hand, poses):
    mean = hand.pose_from_components(torch.zeros(2, 10))
    torch.testing.assert_close(mean, hand.mean_pose.expand(2, 16, 3, 3))
    coefficients = hand.components_from_pose(poses)
    torch.testing.assert_close(hand.pose_from_components(coefficients), poses, atol=2e-6, rtol=0)
    few = hand.components_from_pose(poses, count=15)
    torch.testing.assert_close(few, coefficients[:, :15])
    error = geodesic_distance(hand.pose_from_components(few), poses)
    assert error.mean() < np.radians(4)
    gram = hand.pose_components @ hand.pose_components.T
    torch.testing.assert_close(gram, torch.eye(45), atol=1e-5, rtol=0)


def test_posed_joints_is_decodes(hand, poses):
    rest = hand.regressor @ hand.template
    with torch.autocast("cpu", dtype=torch.bfloat16):  # as exact as outside
        fast = posed_joints(poses, rest)
    full = hand.decode(poses, torch.zeros(32, 10), torch.zeros(32, 3)).joints
    torch.testing.assert_close(fast, full, atol=1e-4, rtol=0)


def test_nothing_goes_into_checkpoints(hand):
    assert not hand.state_dict()
    assert not list(hand.parameters())


def test_gradients_match_finite_differences(hand):
    # In float32 only: decode is float32 by contract. A directional derivative of one coordinate.
    pose, betas = (x.requires_grad_() for x in random_inputs(1, seed=1))

    def value(pose, betas):
        posed = hand.decode(pose, betas, ORIGIN)
        return posed.joints[0, 8].sum() + posed.vertices[0, 100].sum()

    gradients = torch.autograd.grad(value(pose, betas), (pose, betas))
    generator = torch.Generator().manual_seed(2)
    for i, gradient in enumerate(gradients):
        direction = torch.randn(gradient.shape, generator=generator)
        step = [torch.zeros_like(pose), torch.zeros_like(betas)]
        step[i] = 1e-2 * direction
        ahead = value(pose + step[0], betas + step[1])
        behind = value(pose - step[0], betas - step[1])
        expected = ((ahead - behind) / 2e-2).item()
        assert (gradient * direction).sum().item() == pytest.approx(expected, rel=0.02, abs=2e-4)
