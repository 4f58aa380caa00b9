"""Mano against skinning written naively, against smplx itself, and against its own reflection."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from handrec.errors import UserError
from handrec.hand.joints import FINGERS, JOINTS, KINEMATIC_JOINTS
from handrec.hand.mano import TIP_VERTICES, Mano
from handrec.hand.mano_files import ManoNotFoundError, read_mano, save_mano
from handrec.types import Hand
from tests.standins import mano_content, mirror, write_mano_pickle


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mano")
    for side in ("right", "left"):
        write_mano_pickle(folder / f"MANO_{side.upper()}.pkl", side)
    return folder


@pytest.fixture(scope="module")
def mano(folder: Path) -> Mano:
    return Mano(str(folder))


@pytest.fixture(autouse=True)
def seed() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def random_axis_angle(count: int = 3) -> Tensor:
    return torch.randn(count, 48) * 0.4


def random_parameters(count: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    vectors = random_axis_angle(count).reshape(-1, 3).numpy()
    pose = Rotation.from_rotvec(vectors).as_matrix().reshape(count, 16, 3, 3)
    return torch.tensor(pose).float(), torch.randn(count, 10), torch.randn(count, 3)


def naive_hand(
    content: dict[str, np.ndarray], pose: np.ndarray, betas: np.ndarray, translation: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Linear blend skinning of one hand as MANO's paper writes it, one vertex at a time."""
    shaped = content["v_template"] + content["shapedirs"] @ betas
    rest = content["J_regressor"] @ shaped
    feature = (pose[1:] - np.eye(3)).reshape(135)
    world: list[np.ndarray] = []
    for joint in range(16):
        parent = int(content["kintree_table"][0, joint])
        local = np.eye(4)
        local[:3, :3] = pose[joint]
        local[:3, 3] = rest[joint] - (rest[parent] if joint else 0)
        world.append(world[parent] @ local if joint else local)
    vertices = np.zeros((778, 3))
    for i in range(778):
        offset = shaped[i] + content["posedirs"][i] @ feature
        for joint in range(16):
            point = world[joint][:3, :3] @ (offset - rest[joint]) + world[joint][:3, 3]
            vertices[i] += content["weights"][i, joint] * point
    return vertices + translation, np.array([w[:3, 3] for w in world]) + translation


def test_decode_is_linear_blend_skinning(mano: Mano) -> None:
    pose, betas, translation = random_parameters(2)
    hand = mano.decode(pose, betas, translation)
    for k in range(2):
        arguments = (x[k].double().numpy() for x in (pose, betas, translation))
        vertices, joints = naive_hand(mano_content(), *arguments)
        np.testing.assert_allclose(hand.vertices[k], vertices, atol=2e-6)
        for row, name in enumerate(KINEMATIC_JOINTS):
            np.testing.assert_allclose(hand.joints[k, JOINTS.index(name)], joints[row], atol=2e-6)


@pytest.mark.parametrize("flat_hand_mean", [False, True])
def test_published_poses_equal_smplx(mano: Mano, folder: Path, flat_hand_mean: bool) -> None:
    """smplx.MANO adds the mean to its axis-angle pose unless it is flat: so must we, once."""
    smplx = pytest.importorskip("smplx")
    arrays = read_mano(folder / "MANO_RIGHT.pkl")
    content = mano_content() | {"kintree_table": np.stack([arrays.parents, np.arange(16)])}
    layer = smplx.MANO(
        model_path="",
        data_struct=smplx.utils.Struct(**content),
        use_pca=False,
        flat_hand_mean=flat_hand_mean,
    )
    axis_angle, betas, translation = random_axis_angle(), torch.randn(3, 10), torch.randn(3, 3)
    expected = layer(
        betas=betas,
        global_orient=axis_angle[:, :3],
        hand_pose=axis_angle[:, 3:],
        transl=translation,
    )
    hand = mano.decode(mano.absolute_pose(axis_angle, flat_hand_mean), betas, translation)
    torch.testing.assert_close(hand.vertices, expected.vertices, atol=2e-6, rtol=0)
    torch.testing.assert_close(hand.joints[:, 0], expected.joints[:, 0], atol=2e-6, rtol=0)


def test_mean_pose_is_in_the_pose_and_nowhere_else(mano: Mano) -> None:
    mean = np.concatenate([np.zeros(3), mano_content()["hands_mean"]]).reshape(16, 3)
    expected = torch.tensor(Rotation.from_rotvec(mean).as_matrix()).float()
    torch.testing.assert_close(mano.mean_pose, expected)
    torch.testing.assert_close(mano.absolute_pose(torch.zeros(1, 48))[0], expected)
    flat = mano.decode(torch.eye(3).expand(1, 16, 3, 3), torch.zeros(1, 10), torch.zeros(1, 3))
    torch.testing.assert_close(flat.vertices[0], mano.template, atol=1e-6, rtol=0)


def test_absolute_pose_adds_the_mean_to_vectors(mano: Mano) -> None:
    axis_angle = random_axis_angle()
    mean = np.concatenate([np.zeros(3), mano_content()["hands_mean"]])
    for vectors, flat in ((axis_angle + torch.tensor(mean), False), (axis_angle, True)):
        expected = Rotation.from_rotvec(vectors.reshape(-1, 3).numpy()).as_matrix()
        absolute = mano.absolute_pose(axis_angle, flat_hand_mean=flat)
        np.testing.assert_allclose(absolute.reshape(-1, 3, 3), expected, atol=1e-6)


def test_pose_components_span_the_pose(mano: Mano) -> None:
    coefficients = torch.randn(2, 6)
    expected = coefficients.double().numpy() @ mano_content()["hands_components"][:6]
    np.testing.assert_allclose(coefficients @ mano.pose_components[:6], expected, atol=1e-6)


@pytest.mark.parametrize("convention", TIP_VERTICES)
def test_tips_are_the_conventions_vertices(folder: Path, convention: str) -> None:
    hand = Mano(str(folder), tips=convention).decode(*random_parameters())
    for finger, vertex in zip(FINGERS, TIP_VERTICES[convention], strict=True):
        tip = hand.joints[:, JOINTS.index(f"{finger}_tip")]
        assert torch.equal(tip, hand.vertices[:, vertex])


def test_tip_conventions_are_as_published() -> None:
    assert TIP_VERTICES == {
        "freihand": (744, 320, 443, 555, 672),
        "ho3d": (744, 333, 444, 555, 672),
        "smplx": (744, 320, 443, 554, 671),
        "manopth": (745, 317, 444, 556, 673),
        "manopth_left": (745, 317, 445, 556, 673),
        "handoccnet": (728, 353, 442, 576, 694),
    }


def test_converted_file_gives_the_same_hand(mano: Mano, folder: Path, tmp_path: Path) -> None:
    save_mano(read_mano(folder / "MANO_RIGHT.pkl"), tmp_path / "MANO_RIGHT.npz")
    parameters = random_parameters()
    assert_same(Mano(str(tmp_path)).decode(*parameters), mano.decode(*parameters), exactly=True)


# --- Left hands -------------------------------------------------------------------------------


def test_left_file_makes_the_same_right_hand(mano: Mano, folder: Path) -> None:
    left = Mano(str(folder), side="left")
    parameters = random_parameters()
    assert_same(left.decode(*parameters), mano.decode(*parameters))
    for name in ("faces", "template", "mean_pose", "pose_components", "joint_axes", "uv"):
        torch.testing.assert_close(getattr(left, name), getattr(mano, name))


def test_left_hand_is_the_mirrored_left_file(folder: Path) -> None:
    """A left hand's own parameters, skinned naively and then mirrored, without the shape's fix."""
    left = Mano(str(folder), side="left", fix_left_shape=False)
    pose, betas, translation = (x[0].double().numpy() for x in random_parameters(1))
    vertices, _ = naive_hand(mano_content("left"), pose, betas, translation)
    reflect = np.diag([-1.0, 1.0, 1.0])
    hand = left.decode(
        torch.tensor(reflect @ pose @ reflect).float()[None],
        torch.tensor(betas).float()[None],
        torch.tensor(reflect @ translation).float()[None],
    )
    np.testing.assert_allclose(hand.vertices[0], vertices @ reflect, atol=2e-6)


def test_left_shape_fix_matters_and_only_in_x(folder: Path) -> None:
    pose, betas, translation = random_parameters()
    hands = [
        Mano(str(folder), "left", fix_left_shape=fix).decode(
            torch.eye(3).expand_as(pose), betas, translation
        )
        for fix in (True, False)
    ]
    difference = (hands[0].vertices - hands[1].vertices).abs().amax((0, 1))
    assert difference[0] > 1e-3
    assert difference[1:].max() < 1e-6


def test_standin_reflection_is_an_involution() -> None:
    content = mano_content()
    for name, array in mirror(mirror(content)).items():
        np.testing.assert_array_equal(array, content[name])


def test_wrong_side_is_one_clear_line(folder: Path) -> None:
    with pytest.raises(UserError, match=r"MANO_LEFT\.pkl holds a left hand, and side='right'"):
        Mano(str(folder / "MANO_LEFT.pkl"))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ManoNotFoundError, match=r"mano\.is\.tue\.mpg\.de"):
        Mano(str(tmp_path))


# --- The contract of a hand model ---------------------------------------------------------------


def test_nothing_of_mano_enters_a_checkpoint(mano: Mano) -> None:
    assert not mano.state_dict()
    assert not list(mano.parameters())  # nor does DDP meet an unused parameter
    assert sum(buffer.numel() for buffer in mano.buffers()) > 300_000


def test_quiet(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Mano(str(folder))
    assert capsys.readouterr() == ("", "")


def test_float32_under_autocast(mano: Mano) -> None:
    pose, betas, translation = random_parameters()
    expected = mano.decode(pose, betas, translation)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hand = mano.decode(pose, betas, translation)
        absolute = mano.absolute_pose(torch.ones(1, 48))
        half = mano.decode(pose.bfloat16(), betas.bfloat16(), translation.bfloat16())
    assert_same(hand, expected, exactly=True)
    assert torch.equal(absolute, mano.absolute_pose(torch.ones(1, 48)))
    assert half.vertices.dtype == half.joints.dtype == torch.float32


def test_gradients_are_those_of_finite_differences(mano: Mano) -> None:
    direction = torch.randn(1, 778, 3)
    for index in range(3):
        arguments = [x.requires_grad_(k == index) for k, x in enumerate(random_parameters(1))]
        loss = (mano.decode(*arguments).vertices * direction).sum()
        (gradient,) = torch.autograd.grad(loss, arguments[index])
        step = torch.randn_like(gradient) * 0.01
        ends = [list(arguments), list(arguments)]
        for end, sign in zip(ends, (1, -1), strict=True):
            end[index] = arguments[index].detach() + sign * step
        up, down = ((mano.decode(*end).vertices * direction).sum() for end in ends)
        torch.testing.assert_close((up - down) / 2, (gradient * step).sum(), rtol=1e-2, atol=1e-3)


def test_uv_islands_hold_palm_and_back(mano: Mano) -> None:
    corners = mano.uv[mano.uv_faces]
    assert mano.uv.min() >= 0
    assert mano.uv.max() <= 1
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]
    assert (area >= -1e-8).all()  # neither island is a mirror image
    triangles = mano.template[mano.faces].double()
    sides = triangles[:, 1:] - triangles[:, :1]
    up = torch.linalg.cross(sides[:, 0], sides[:, 1])[:, 1]
    palm, back = up < -1e-9, up > 1e-9
    assert palm.sum() > 400
    assert back.sum() > 400
    assert (corners[palm, :, 0] < 0.5).all()
    assert (corners[back, :, 0] > 0.5).all()
    # One scale: the area in the texture is the area seen along y.
    seen = (up.abs() / up.abs().sum()).float()
    torch.testing.assert_close(area / area.sum(), seen, atol=1e-6, rtol=0)


def test_axes_are_frames_and_bend_closes_the_hand(mano: Mano) -> None:
    axes = mano.joint_axes
    torch.testing.assert_close(axes @ axes.mT, torch.eye(3).expand(15, 3, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.linalg.det(axes), torch.ones(15))
    flat = mano.decode(torch.eye(3).expand(1, 16, 3, 3), torch.zeros(1, 10), torch.zeros(1, 3))
    for k, name in enumerate(KINEMATIC_JOINTS[1:]):
        pose = torch.eye(3).repeat(1, 16, 1, 1)
        pose[0, k + 1] = torch.tensor(Rotation.from_rotvec(0.5 * axes[k, 2].numpy()).as_matrix())
        hand = mano.decode(pose, torch.zeros(1, 10), torch.zeros(1, 3))
        following = JOINTS.index(name) + 1
        bone = flat.joints[0, following] - flat.joints[0, following - 1]
        torch.testing.assert_close(axes[k, 0], bone / bone.norm(), atol=1e-5, rtol=0)
        moved = hand.joints[0, following] - flat.joints[0, following]
        if name.startswith("thumb"):
            assert moved[1] + moved[2] < -0.003  # towards the palm and the other fingers
        else:
            assert moved[1] < -0.003  # towards the palm
            assert axes[k, 2, 2] > 0.85  # about +z, as the contract says


def test_limits_hold_the_rest_pose(mano: Mano) -> None:
    low, high = mano.joint_limits.unbind(-1)
    assert mano.joint_limits.shape == (15, 3, 2)
    assert (low < 0).all()
    assert (high > 0).all()


def assert_same(first: Hand, second: Hand, exactly: bool = False) -> None:
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, atol=0 if exactly else 1e-6, rtol=0)
