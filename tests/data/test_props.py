import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation, binary_fill_holes, label
from tests.standins import standin_mano
from torch.nn import functional as F

from handrec.data.appearance import solids
from handrec.data.appearance.arms import SIDES, find_wrist, grid_faces, grid_normals
from handrec.data.appearance.base import Stage
from handrec.data.appearance.meshes import Part, build
from handrec.data.appearance.props import PropOptions, sample_props
from handrec.geometry.mesh import face_normals
from handrec.geometry.rotations import axis_angle_to_matrix, random_rotations
from handrec.hand.joints import JOINTS
from handrec.hand.openhand import OpenHand
from handrec.hand.sampler import PoseSampler
from handrec.render.base import Attribute
from handrec.render.warp_backend import WarpRasterizer
from handrec.types import Camera

NOTHING = PropOptions(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


@pytest.fixture(scope="module")
def hand():
    return OpenHand()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make_stage(hand, pose, size=96, distance=0.5):
    count = len(pose)
    posed = hand.decode(pose, torch.zeros(count, 10), torch.zeros(count, 3))
    shift = torch.tensor([0.0, 0.0, distance]) - posed.vertices.mean(1)
    posed = hand.decode(pose, torch.zeros(count, 10), shift)
    camera = torch.tensor([[2.2, 0, 0.5], [0, 2.2, 0.5], [0, 0, 1 / size]]) * size
    return Stage(
        hand, posed, pose, Camera(camera.expand(count, 3, 3), (size, size)),
        torch.arange(count), WarpRasterizer(),
    )  # fmt: skip


def random_stage(hand, count, seed=0):
    pose = PoseSampler(hand).sample(count, generator(seed))
    pose[:, 0] = random_rotations(count, generator(seed))
    return make_stage(hand, pose)


def draw(stage, vertices, faces):
    blank = {"blank": Attribute(torch.zeros(1, vertices.shape[1], 1))}
    shader = lambda surface: surface["blank"]  # noqa: E731
    return stage.rasterizer.render(vertices, faces, blank, stage.camera, shader)


def test_same_seed_same_props():
    first, again = sample_props(40, generator(1)), sample_props(40, generator(1))
    for before, after in zip(first, again, strict=True):
        torch.testing.assert_close(after, before, atol=0, rtol=0)
    assert not torch.equal(first.bend, sample_props(40, generator(2)).bend)


def test_shares_are_kept():
    options = PropOptions(0.7, 0.4, held=0.3, before=0.2, behind=0.1, other_hand=0.25)
    props = sample_props(8000, generator(), options)
    shares = [props.arm[:, 0].mean(), props.sleeve[:, 0].mean(), props.other[:, 0].mean()]
    shares += [(props.thing == kind).float().mean() for kind in (1, 2, 3)]
    expected = torch.tensor([0.7, 0.4, 0.25, 0.3, 0.2, 0.1])
    assert (torch.stack(shares) - expected).abs().max() < 0.03  # 5 sigma


def test_what_is_absent_is_not_drawn(hand):
    stage = random_stage(hand, 4)
    meshes = build(stage, sample_props(4, generator(), NOTHING))
    assert not (meshes.part >= Part.OTHER_HAND).any()
    alone = draw(stage, stage.posed.vertices, hand.faces)
    together = draw(stage, meshes.vertices, meshes.faces)
    torch.testing.assert_close(together.face_index, alone.face_index)
    torch.testing.assert_close(together.depth, alone.depth)


@pytest.mark.parametrize("model", ["openhand", "mano"])
def test_forearm_starts_on_the_skin(hand, model):
    model = hand if model == "openhand" else standin_mano()
    stage = random_stage(model, 3)
    meshes = build(stage, sample_props(3, generator(), PropOptions(forearm=1.0, sleeve=0.0)))
    wrist, count = find_wrist(model, torch.device("cpu")), len(model.template)
    ring = meshes.vertices[:, count + SIDES : count + 2 * SIDES]
    corners = stage.posed.vertices[:, model.faces[wrist.face]]
    absent = (ring - ring[:, :1]).norm(dim=-1).amax(1) < 1e-6  # end-on
    first, second = corners[:, :, 1] - corners[:, :, 0], corners[:, :, 2] - corners[:, :, 0]
    normal = F.normalize(torch.linalg.cross(first, second, dim=-1), dim=-1)
    off = ((ring - corners[:, :, 0]) * normal).sum(-1).abs().amax(1)
    assert off[~absent].max() < 1e-5
    assert (~absent).any()
    # around the wrist: every direction once, 15 to 35 mm from the middle
    radius = (ring - ring.mean(1, keepdim=True)).norm(dim=-1)[~absent]
    assert radius.min() > 0.01
    assert radius.max() < 0.045


def test_forearm_leaves_no_gap_at_any_bend(hand):
    """A hand and its forearm are one blob, without a hole near the seam, in every view."""
    pose = PoseSampler(hand).gesture("flat").expand(24, 16, 3, 3).clone()
    pose[:, 0] = random_rotations(24, generator(5))
    stage = make_stage(hand, pose, size=160, distance=0.7)
    props = sample_props(24, generator(3), PropOptions(1.0, 0.0, 0.0, 0.0, 0.0, 0.0))
    meshes = build(stage, props)
    faces = draw(stage, meshes.vertices, meshes.faces).face_index.numpy()
    seams = 0
    for face in faces:
        mask, arm = face >= 0, (face >= 0) & (meshes.part.numpy()[face] == Part.FOREARM)
        seams += arm.any()
        assert label(mask, np.ones((3, 3)))[1] == 1
        rim = binary_dilation(arm, iterations=2) & binary_dilation(mask & ~arm, iterations=2)
        assert not (binary_fill_holes(mask) & ~mask & rim).any()
    assert seams > 15


def test_forearms_texture_carries_on_the_hands(hand):
    """Where a corner's uv lies on the atlas, the hand's point is the one mirrored at the cut."""
    wrist = find_wrist(hand, torch.device("cpu"))
    rest = wrist.rest.view(-1, SIDES, 3)
    cut = rest[1, 0, 0]
    faces = grid_faces(len(rest), SIDES)
    near = ((rest[..., 0] - cut).abs() < 0.02).flatten()[faces].all(1) & (faces >= SIDES).all(1)
    uv = wrist.uv.view(-1, 3, 2)[near].flatten(0, 1)
    corner = wrist.rest[faces[near]].flatten(0, 1)
    a, b, c = hand.uv[hand.uv_faces].unbind(1)
    inverse = torch.linalg.inv(torch.stack([b - a, c - a], dim=-1))
    weights = torch.einsum("fij,pfj->pfi", inverse, uv[:, None] - a)
    weights = torch.cat([1 - weights.sum(-1, keepdim=True), weights], dim=-1)
    depth, face = weights.amin(-1).max(1)
    inside = depth > -0.02
    assert inside.float().mean() > 0.9  # others are carried on past their island's border
    picked = weights[torch.arange(len(uv)), face]
    point = (picked[..., None] * hand.template[hand.faces[face]]).sum(1)[inside]
    mirrored = 2 * cut - corner[inside][:, 0]
    assert (point[:, 0] - mirrored).abs().max() < 0.0015
    angle = [torch.atan2(*(x - rest[1].mean(0))[:, 1:].unbind(-1)) for x in (point, corner[inside])]
    assert (angle[0] - angle[1]).sin().abs().max() < 0.15


def test_grid_faces_look_outwards():
    angle = torch.arange(8) * (2 * torch.pi / 8)
    ring = torch.stack([angle * 0, angle.cos(), angle.sin()], dim=-1)
    tube = torch.stack([ring + torch.tensor([float(x), 0, 0]) for x in range(3)])
    normals = face_normals(tube.view(-1, 3), grid_faces(3, 8))
    middle = tube.view(-1, 3)[grid_faces(3, 8)].mean(1)
    assert ((normals * middle)[:, 1:].sum(-1) > 0).all()
    smooth = grid_normals(tube[None])[0]
    torch.testing.assert_close(smooth, ring.expand(3, 8, 3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("roundness", [(1.0, 1.0), (0.15, 1.0), (0.15, 0.15), (0.5, 0.7)])
def test_superquadrics_solve_their_equation(roundness):
    half, (up, around) = torch.tensor([[0.02, 0.03, 0.05]]), roundness
    vertices, normals = solids.superquadric(half, torch.tensor([roundness]))
    x, y, z = (vertices[0] / half).abs().double().unbind(-1)
    value = (x ** (2 / around) + y ** (2 / around)) ** (around / up) + z ** (2 / up)
    torch.testing.assert_close(value, torch.ones_like(value), atol=1e-4, rtol=0)
    faces = solids.solid_faces()
    flat = face_normals(vertices[0], faces)
    agree = (flat[:, None] * normals[0, faces]).sum(-1)[flat.norm(dim=-1) > 1e-9]
    assert (agree.mean(1) > 0).all()


@pytest.mark.parametrize("gesture", ["cylinder", "sphere", "thick cylinder", "flat"])
def test_a_thing_is_held_between_palm_and_fingers(hand, gesture):
    pose = PoseSampler(hand).gesture(gesture)[None]
    turn = axis_angle_to_matrix(torch.tensor([[0.3, -1.0, 0.5]]))
    pose[:, 0] = turn
    joints = hand.decode(pose, torch.zeros(1, 10), torch.zeros(1, 3)).joints
    at = solids.hold(joints, torch.tensor([[0.04]]), torch.zeros(1, 1))
    radius = float(at.radius)
    assert radius > 0.008
    local = (joints[0] - at.centre) @ at.frame[0]
    beyond = [i for i, name in enumerate(JOINTS) if name.endswith(("pip", "dip", "tip", "_ip"))]
    assert local[beyond, :2].norm(dim=-1).min() > radius + 0.007  # no bone runs through it
    knuckles = [i for i, name in enumerate(JOINTS) if name.endswith("_mcp") and i > 4]
    gap = -local[knuckles, 0].mean() - radius  # along the palm's normal
    torch.testing.assert_close(gap, torch.tensor(0.014), atol=1e-3, rtol=0)
    palmar = at.frame[0, :, 0] @ (turn[0] @ torch.tensor([0.0, -1, 0]))
    assert palmar > 0.8


def test_left_hands_are_mirrored_and_lit_from_outside(hand):
    stage = random_stage(hand, 6)
    props = sample_props(6, generator(), PropOptions(other_hand=1.0))
    props = props._replace(other=torch.tensor([[1.0, 0], [1, 1]] * 3))
    meshes = build(stage, props)
    faces = meshes.faces[meshes.part == Part.OTHER_HAND]
    flat = face_normals(meshes.vertices, faces)
    middle = meshes.vertices[:, faces].mean(2)
    centre = middle.mean(1, keepdim=True)
    volume = ((middle - centre) * flat).sum((1, 2))
    turned = torch.tensor([1.0, -1] * 3)
    assert (volume * turned > 1e-4).all()  # six times its volume, of a turned surface negative
    agree = (meshes.normals[:, faces].mean(2) * flat).sum(-1) * turned[:, None]
    assert (agree.mean(1) > 0).all()
    assert meshes.vertices[..., 2].min() > 0.01
