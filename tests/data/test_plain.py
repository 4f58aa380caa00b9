import numpy as np
import pytest
import torch

from handrec.data.appearance.base import Stage
from handrec.data.appearance.plain import Plain, skin_colours
from handrec.data.drawing import joint_thickness, nearest_of_block, visible_joints
from handrec.data.scenes import sample_scenes, scene_camera
from handrec.geometry.camera import project
from handrec.hand.openhand import OpenHand
from handrec.render.torch_reference import TorchRasterizer
from handrec.render.warp_backend import WarpRasterizer
from handrec.types import Camera

COUNT = 12


@pytest.fixture(scope="module")
def hand():
    return OpenHand()


@pytest.fixture(scope="module")
def look():
    return Plain().sample(COUNT, torch.Generator().manual_seed(0))


def stage(hand, rasterizer, size):
    scenes = sample_scenes(hand, COUNT, seed=3)
    posed = hand.decode(scenes.pose, scenes.betas, scenes.translation)
    camera = scene_camera(scenes, size)
    return Stage(hand, posed, scenes.pose, camera, scenes.noise_seed, rasterizer)


@pytest.fixture(scope="module")
def drawn(hand, look):
    return Plain().draw(stage(hand, WarpRasterizer(), 96), look)


def test_same_generator_same_looks(look):
    again = Plain().sample(COUNT, torch.Generator().manual_seed(0))
    assert all(torch.equal(again[name], column) for name, column in look.items())
    assert all(len(column) == COUNT for column in look.values())


def test_backends_draw_the_same_picture(hand, look):
    one, other = (
        Plain().draw(stage(hand, rasterizer, 32), look)
        for rasterizer in (WarpRasterizer(), TorchRasterizer())
    )
    assert ((one.image - other.image).abs() > 1 / 255).float().mean() < 1e-3
    torch.testing.assert_close(one.mask.mean(), other.mask.mean(), atol=1e-4, rtol=0)
    assert ((one.uv - other.uv).abs() > 1e-3).float().mean() < 2e-3
    assert (one.visibility != other.visibility).float().mean() < 0.01


def test_palm_is_lighter_than_the_back(hand, look):
    colours = skin_colours(look | {"waves": 0 * look["waves"]}, hand).mean(-1)
    lowest, highest = hand.template[:, 1].argmin(), hand.template[:, 1].argmax()
    assert (colours[:, lowest] >= colours[:, highest]).all()
    assert (colours[:, lowest] > 1.05 * colours[:, highest]).float().mean() > 0.5


def test_depth_and_uv_lead_back_to_the_surface(hand, drawn):
    """A pixel's depth and atlas place name the same surface point: compare at the vertices."""
    posed = stage(hand, WarpRasterizer(), 96).posed
    camera = stage(hand, WarpRasterizer(), 96).camera
    assert torch.equal(drawn.depth > 0, drawn.mask > 0)
    atlas = torch.zeros(len(hand.template), 2)
    atlas[hand.faces.flatten()] = hand.uv[hand.uv_faces.flatten()]
    errors = []
    for row in range(COUNT):
        y, x = (drawn.mask[row, 0] == 1).nonzero()[::20].T
        depth, uv = drawn.depth[row, 0, y, x], drawn.uv[row, :, y, x].T
        nearest = torch.cdist(uv, atlas).argmin(1)  # the vertex whose place in the atlas it is
        pixel = torch.stack([x + 0.5, y + 0.5, torch.ones(len(x))])
        point = (torch.linalg.inv(camera.intrinsics[row]) @ pixel * depth).T
        errors.append((point - posed.vertices[row, nearest]).norm(dim=1))
    assert torch.cat(errors).median() < 0.003
    assert torch.cat(errors).quantile(0.95) < 0.012  # seams have two places in the atlas


def first_hit(vertices, faces, target):
    """Distance along the ray to a point at which it first meets a mesh (Moeller and Trumbore)."""
    direction = target / np.linalg.norm(target)
    corner, first, second = vertices[faces[:, 0]], vertices[faces[:, 1]], vertices[faces[:, 2]]
    edge1, edge2 = first - corner, second - corner
    p = np.cross(direction, edge2)
    determinant = (edge1 * p).sum(1)
    safe = np.where(np.abs(determinant) < 1e-15, np.inf, determinant)
    u = (-corner * p).sum(1) / safe
    q = np.cross(-corner, edge1)
    v = (q @ direction) / safe
    distance = (edge2 * q).sum(1) / safe
    hits = distance[(u >= 0) & (v >= 0) & (u + v <= 1) & (distance > 0)]
    return hits.min() * direction[2] if len(hits) else np.inf


def test_visibility_is_that_of_rays(hand, drawn):
    scene = stage(hand, WarpRasterizer(), 96)
    thickness = joint_thickness(hand).numpy()
    pixels = project(scene.posed.joints, scene.camera.intrinsics) / 96
    expected = np.zeros((COUNT, 21))
    for row in range(COUNT):
        for joint in range(21):
            target = scene.posed.joints[row, joint].double().numpy()
            depth = first_hit(
                scene.posed.vertices[row].double().numpy(), hand.faces.numpy(), target
            )
            expected[row, joint] = depth >= target[2] - thickness[joint]
    inside = ((pixels > 0) & (pixels < 1)).all(-1).float().numpy()
    agree = (expected * inside == drawn.visibility.numpy()).mean()
    assert agree > 0.96  # a pixel beside an edge sees another surface
    assert 0.2 < drawn.visibility.mean() < 0.9


def test_skin_is_as_thick_as_hands_are(hand):
    thickness = joint_thickness(hand)
    assert thickness.min() > 0.008
    assert thickness.max() < 0.04
    assert thickness[0] > thickness[8]  # the wrist is thicker than a finger


def test_things_before_and_behind_a_joint(hand):
    joints = torch.tensor([0.0, 0, 0.5]).expand(1, 21, 3)
    camera = Camera(torch.tensor([[[100.0, 0, 8], [0, 100, 8], [0, 0, 1]]]), (16, 16))
    thickness = torch.full((21,), 0.02)
    for depth, seen in ((0.0, 1), (0.4, 0), (0.485, 1), (0.6, 1)):
        surface = torch.full((1, 1, 32, 32), depth)
        found = visible_joints(joints, camera, surface, thickness)
        assert (found == seen).all(), depth
    outside = joints + torch.tensor([0.1, 0, 0])
    assert (visible_joints(outside, camera, torch.zeros(1, 1, 32, 32), thickness) == 0).all()


def test_blocks_show_their_nearest_pixel():
    depth = torch.tensor([[0.0, 0.5, 0.3, 0.0], [0.9, 0.7, 0.4, 0.2]])[None, None]
    values = torch.arange(8.0).view(1, 1, 2, 4)
    near, value = nearest_of_block(depth, values, 2)
    torch.testing.assert_close(near, torch.tensor([[[[0.5, 0.2]]]]))
    torch.testing.assert_close(value, torch.tensor([[[[1.0, 7.0]]]]))
