"""What every hand model must do. A new one joins by existing, or by a factory if it needs files."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable

import pytest
import torch

import handrec.hand
from handrec.geometry.rotations import axis_angle_to_matrix, random_rotations
from handrec.hand.anatomy import SphereProxies, joint_angles, limit_excess
from handrec.hand.base import HandModel
from handrec.hand.joints import FINGERS, JOINTS, KINEMATIC_JOINTS
from handrec.hand.openhand import OpenHand
from handrec.hand.sampler import PoseSampler
from tests.standins import standin_mano

#: Hand models by name. One whose constructor needs files joins with a function that makes a
#: stand-in for them.
FACTORIES: dict[str, Callable[[], HandModel]] = {"OpenHand": OpenHand, "Mano": standin_mano}


def concrete_models():
    for module in pkgutil.iter_modules(handrec.hand.__path__):
        importlib.import_module(f"handrec.hand.{module.name}")
    found, queue = [], [HandModel]
    while queue:
        queue.extend(found_classes := queue.pop().__subclasses__())
        found.extend(found_classes)
    own = [c for c in found if c.__module__.startswith("handrec.") and not inspect.isabstract(c)]
    return sorted({c.__name__: c for c in own}.items())


def factory(name, model):
    if name in FACTORIES:
        return FACTORIES[name]
    parameters = inspect.signature(model).parameters.values()
    needs_none = all(p.default is not p.empty or p.kind is p.VAR_KEYWORD for p in parameters)
    return model if needs_none else None


@pytest.fixture(scope="module", params=concrete_models(), ids=lambda item: item[0])
def hand(request):
    build = factory(*request.param)
    if build is None:
        pytest.skip("needs files and has no factory here")
    return build()


def inputs(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    axis_angle = 0.5 * torch.randn(count, 16, 3, generator=generator)
    betas = torch.randn(count, 10, generator=generator)
    return axis_angle_to_matrix(axis_angle), betas, torch.randn(count, 3, generator=generator)


def rest(hand):
    return hand.decode(torch.eye(3).expand(1, 16, 3, 3), torch.zeros(1, 10), torch.zeros(1, 3))


def test_buffers_have_the_contracts_shapes(hand):
    buffers = dict(hand.named_buffers())
    assert set(HandModel.__annotations__) <= set(buffers)
    vertices, faces = len(hand.template), len(hand.faces)
    assert hand.template.shape == (vertices, 3)
    assert hand.faces.shape == hand.uv_faces.shape == (faces, 3)
    assert hand.mean_pose.shape == (16, 3, 3)
    assert hand.joint_limits.shape == (15, 3, 2)
    assert hand.joint_axes.shape == (15, 3, 3)
    assert {hand.faces.dtype, hand.uv_faces.dtype} == {torch.int64}
    assert hand.faces.min() == 0
    assert hand.faces.max() == vertices - 1
    assert hand.uv_faces.min() >= 0
    assert hand.uv_faces.max() < len(hand.uv)
    assert hand.uv.min() >= 0
    assert hand.uv.max() <= 1


def test_rest_is_the_template(hand):
    torch.testing.assert_close(rest(hand).vertices[0], hand.template, atol=1e-6, rtol=0)


def test_rest_frame(hand):
    joints = dict(zip(JOINTS, rest(hand).joints[0], strict=True))
    forward = joints["middle_tip"] - joints["wrist"]
    assert forward[0] < -0.14
    assert forward[1:].norm() < 0.3 * forward.norm()
    thumbwards = joints["index_mcp"] - joints["little_mcp"]
    assert thumbwards[2] > 0.03
    assert joints["thumb_tip"][2] > joints["index_mcp"][2]
    for finger in FINGERS[1:]:
        along = [joints[f"{finger}_{part}"][0] for part in ("mcp", "pip", "dip", "tip")]
        assert along == sorted(along, reverse=True)
    # In metres: an adult hand.
    assert 0.15 < forward.norm() < 0.22


def test_a_turn_about_z_bends_towards_the_palm(hand):
    pose = torch.eye(3).repeat(1, 16, 1, 1)
    turn = axis_angle_to_matrix(torch.tensor([0, 0, 0.9]))
    for finger in FINGERS[1:]:
        pose[0, KINEMATIC_JOINTS.index(f"{finger}_mcp")] = turn
        pose[0, KINEMATIC_JOINTS.index(f"{finger}_pip")] = turn
    joints = hand.decode(pose, torch.zeros(1, 10), torch.zeros(1, 3)).joints[0]
    moved = joints - rest(hand).joints[0]
    assert moved[8::4, 1].max() < -0.03
    assert (joints[8::4] - joints[0]).norm(dim=-1).max() < 0.15


def test_faces_point_outwards(hand):
    corners = (hand.template - hand.template.mean(0))[hand.faces]  # centred: a wrist may be open
    assert torch.linalg.det(corners).sum() / 6 > 1e-4  # a hand's volume, cubic metres


def test_global_rotation_turns_everything_about_the_wrist(hand):
    pose, betas, translation = inputs(4)
    turn = random_rotations(4, torch.Generator().manual_seed(1))
    turned = pose.clone()
    turned[:, 0] = turn @ pose[:, 0]
    before = hand.decode(pose, betas, torch.zeros(4, 3))
    after = hand.decode(turned, betas, translation)
    wrist = before.joints[:, :1]
    for old, new in ((before.vertices, after.vertices), (before.joints, after.joints)):
        expected = (old - wrist) @ turn.mT + wrist + translation[:, None]
        torch.testing.assert_close(new, expected, atol=2e-6, rtol=0)


def test_a_joint_moves_only_what_hangs_on_it(hand):
    pose, betas, _ = inputs(1)
    zero = torch.zeros(1, 3)
    before = hand.decode(pose, betas, zero).joints[0]
    pose[0, KINEMATIC_JOINTS.index("ring_pip")] = torch.eye(3)
    moved = (hand.decode(pose, betas, zero).joints[0] - before).norm(dim=-1) > 1e-4
    assert [name for name, far in zip(JOINTS, moved, strict=True) if far] == [
        "ring_dip",
        "ring_tip",
    ]


def test_tips_are_on_the_skin(hand):
    pose, betas, translation = inputs(4)
    posed = hand.decode(pose, betas, translation)
    distance = torch.cdist(posed.joints[:, 4::4], posed.vertices).amin(-1)
    assert distance.max() < 0.004


def test_a_batch_is_its_members(hand):
    pose, betas, translation = inputs(3)
    together = hand.decode(pose, betas, translation)
    for i in range(3):
        alone = hand.decode(pose[i : i + 1], betas[i : i + 1], translation[i : i + 1])
        torch.testing.assert_close(alone.vertices[0], together.vertices[i], atol=1e-6, rtol=0)
        torch.testing.assert_close(alone.joints[0], together.joints[i], atol=1e-6, rtol=0)


def test_autocast_changes_nothing(hand):
    pose, betas, translation = inputs(2)
    expected = hand.decode(pose, betas, translation)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        posed = hand.decode(pose, betas, translation)
    for got, want in zip(posed, expected, strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, want)


def test_gradients_reach_every_argument_and_are_finite_at_rest(hand):
    arguments = [torch.eye(3).repeat(1, 16, 1, 1), torch.zeros(1, 10), torch.zeros(1, 3)]
    for argument in arguments:
        argument.requires_grad_()
    posed = hand.decode(*arguments)
    (posed.vertices.square().sum() + posed.joints.square().sum()).backward()
    for argument in arguments:
        assert argument.grad.isfinite().all()
        assert argument.grad.abs().max() > 0
    assert (arguments[1].grad != 0).all()  # every shape coefficient does something


def test_mean_pose_is_a_pose_within_the_limits(hand):
    mean = hand.mean_pose
    torch.testing.assert_close(mean @ mean.mT, torch.eye(3).expand(16, 3, 3), atol=1e-5, rtol=0)
    assert torch.linalg.det(mean).min() > 0.99
    torch.testing.assert_close(mean[0], torch.eye(3))
    angles = joint_angles(mean[None], hand.joint_axes)
    assert limit_excess(angles, hand.joint_limits).mean() < 0.02


def test_limits_and_axes(hand):
    low, high = hand.joint_limits.unbind(-1)
    assert (low < 0).all()
    assert (high > 0).all()
    axes = hand.joint_axes
    torch.testing.assert_close(axes @ axes.mT, torch.eye(3).expand(15, 3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(axes), torch.ones(15))


def test_poses_can_be_sampled(hand):
    sampler = PoseSampler(hand)
    poses = sampler.sample(64, torch.Generator().manual_seed(0))
    excess = limit_excess(joint_angles(poses, hand.joint_axes), hand.joint_limits)
    assert excess.max() < 1e-4
    depth = SphereProxies(hand).penetration(rest(hand).joints)
    assert depth.max() == 0
