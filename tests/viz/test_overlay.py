import numpy as np
import pytest
import torch

from handrec.hand.joints import FINGERS
from handrec.viz.overlay import FINGER_COLOURS, draw_mesh, draw_skeleton

torch_reference = pytest.importorskip("handrec.render.torch_reference")

INTRINSICS = torch.tensor([[400.0, 0, 150], [0, 380, 110], [0, 0, 1]])
FACES = torch.tensor([[0, 1, 2], [2, 1, 3]])


@pytest.fixture
def rasterizer():
    return torch_reference.TorchRasterizer()


def card(left, top, right, bottom, depth):
    """Return a rectangle that faces the camera, given by its pixels."""
    pixels = torch.tensor([[left, top], [left, bottom], [right, top], [right, bottom]])
    rays = torch.cat([pixels, torch.ones(4, 1)], 1).float() @ torch.linalg.inv(INTRINSICS).T
    return rays * depth


def photo():
    return np.full((220, 300, 3), 40, np.uint8)


def test_mesh_lies_on_the_pixels_it_projects_to(rasterizer):
    image = photo()
    drawn = draw_mesh(
        image, card(60, 30, 90, 80, 0.7), FACES, INTRINSICS, alpha=1.0, rasterizer=rasterizer
    )
    changed = (drawn != image).any(-1)
    expected = np.zeros_like(changed)
    expected[30:80, 60:90] = True
    np.testing.assert_array_equal(changed, expected)
    assert (image == 40).all()  # the caller's image is left alone


def test_normals_towards_the_camera_are_lit_and_others_are_not(rasterizer):
    options = {"colour": (200, 200, 200), "alpha": 1.0, "rasterizer": rasterizer}
    square = card(60, 30, 90, 80, 0.7)
    a, b, c = square[FACES[0]]
    assert torch.linalg.cross(b - a, c - a)[2] < 0  # counter-clockwise: towards the camera
    front = draw_mesh(photo(), square, FACES, INTRINSICS, **options)[50, 70, 0]
    back = draw_mesh(photo(), square, FACES.flip(-1), INTRINSICS, **options)[50, 70, 0]
    assert front == pytest.approx(200 * (0.35 + 0.65 * 0.76), abs=3)
    assert back == pytest.approx(200 * 0.35, abs=2)


def test_alpha_lets_the_photo_through(rasterizer):
    square = card(60, 30, 90, 80, 0.7)
    options = {"colour": (200, 100, 0), "rasterizer": rasterizer}
    opaque = draw_mesh(photo(), square, FACES, INTRINSICS, alpha=1.0, **options)
    half = draw_mesh(photo(), square, FACES, INTRINSICS, alpha=0.5, **options)
    np.testing.assert_allclose(half, opaque / 2 + photo() / 2, atol=1)


def test_edges_are_smooth(rasterizer):
    drawn = draw_mesh(
        photo(), card(60.5, 30, 90, 80, 0.7), FACES, INTRINSICS, alpha=1.0, rasterizer=rasterizer
    )
    inside, edge, outside = (float(drawn[50, x, 2]) for x in (61, 60, 59))
    assert outside == 40
    assert edge == pytest.approx((inside + outside) / 2, abs=1.5)


@pytest.mark.parametrize(
    "vertices",
    [
        card(-200, 30, -20, 80, 0.7),
        card(60, 400, 90, 500, 0.7),
        -card(60, 30, 90, 80, 0.7),  # behind the camera
    ],
)
def test_mesh_out_of_sight_leaves_the_photo(rasterizer, vertices):
    drawn = draw_mesh(photo(), vertices, FACES, INTRINSICS, rasterizer=rasterizer)
    np.testing.assert_array_equal(drawn, photo())


def test_mesh_is_cut_at_the_edges_of_the_photo(rasterizer):
    drawn = draw_mesh(
        photo(), card(-50, -40, 20, 30, 0.7), FACES, INTRINSICS, alpha=1.0, rasterizer=rasterizer
    )
    changed = (drawn != photo()).any(-1)
    assert changed[:30, :20].all()
    assert changed.sum() == 600


def test_skeleton_shows_each_finger_in_its_colour():
    joints = np.full((21, 2), 150.5)
    for finger in range(5):
        joints[1 + 4 * finger : 5 + 4 * finger, 0] = 50 + 40.0 * finger
        joints[1 + 4 * finger : 5 + 4 * finger, 1] = np.linspace(110, 20, 4)
    drawn = draw_skeleton(photo(), joints)
    for finger, name in enumerate(FINGERS):
        bone = (joints[3 + 4 * finger] + joints[4 + 4 * finger]) / 2
        x, y = np.floor(bone).astype(int)
        np.testing.assert_array_equal(drawn[y, x], FINGER_COLOURS[name])
        tip_x, tip_y = np.floor(joints[4 + 4 * finger]).astype(int)
        np.testing.assert_array_equal(drawn[tip_y, tip_x], FINGER_COLOURS[name])
    np.testing.assert_array_equal(drawn[150, 150], (255, 255, 255))


def test_joint_is_drawn_at_its_sub_pixel_centre():
    joints = np.full((21, 2), 40.0) + 0.5
    drawn = draw_skeleton(np.zeros((80, 80, 3), np.uint8), joints).astype(float).sum(-1)
    rows, columns = np.indices(drawn.shape) + 0.5
    assert (columns * drawn).sum() / drawn.sum() == pytest.approx(40.5, abs=0.1)
    assert (rows * drawn).sum() / drawn.sum() == pytest.approx(40.5, abs=0.1)


def test_skeleton_far_outside_the_photo_is_harmless():
    joints = np.random.default_rng(0).normal(0, 1e9, (21, 2))
    assert draw_skeleton(photo(), joints).shape == photo().shape
