import numpy as np
import pytest
import torch

from handrec.render.torch_reference import TorchRasterizer
from handrec.viz.drawing import (
    AMBIENT,
    FINGER_COLOURS,
    LIGHT,
    OUTLINE,
    WHITE,
    draw_mesh,
    draw_skeleton,
    to_picture,
)

INTRINSICS = torch.tensor([[400.0, 0, 150], [0, 380, 110], [0, 0, 1]])
FACES = torch.tensor([[0, 1, 2], [2, 1, 3]])


BLACK = np.zeros((100, 120, 3), np.uint8)


@pytest.fixture
def rasterizer():
    return TorchRasterizer()


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
    assert front == pytest.approx(200 * (AMBIENT - (1 - AMBIENT) * LIGHT[2]), abs=2)
    assert back == pytest.approx(200 * AMBIENT, abs=1)


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
        card(60, 30, 90, 80, torch.nan),
    ],
)
def test_mesh_out_of_sight_leaves_the_photo(rasterizer, vertices):
    drawn = draw_mesh(photo(), vertices, FACES, INTRINSICS, rasterizer=rasterizer)
    np.testing.assert_array_equal(drawn, photo())


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_near_hides_far_in_any_order(rasterizer, order):
    lit = card(80, 40, 120, 90, 0.5), FACES
    unlit = card(60, 30, 90, 80, 0.7), FACES.flip(-1)
    options = {"colour": (200, 200, 200), "alpha": 1.0, "rasterizer": rasterizer}
    drawn = [draw_mesh(photo(), *one, INTRINSICS, **options) for one in (lit, unlit)]
    expected = np.where((drawn[0] != photo()).any(-1, keepdims=True), *drawn)
    vertices = torch.cat([(lit, unlit)[i][0] for i in order])
    faces = torch.cat([(lit, unlit)[i][1] + 4 * place for place, i in enumerate(order)])
    both = draw_mesh(photo(), vertices, faces, INTRINSICS, **options)
    np.testing.assert_array_equal(both, expected)


def test_mesh_is_cut_at_the_edges_of_the_photo(rasterizer):
    drawn = draw_mesh(
        photo(), card(-50, -40, 20, 30, 0.7), FACES, INTRINSICS, alpha=1.0, rasterizer=rasterizer
    )
    changed = (drawn != photo()).any(-1)
    assert changed[:30, :20].all()
    assert changed.sum() == 600


def fan():
    """Return keypoints: wrist at the bottom, five straight fingers, all on pixel centres."""
    keypoints = torch.zeros(21, 2)
    keypoints[0] = torch.tensor([60.5, 90.5])
    for joint in range(1, 21):
        finger, bone = divmod(joint - 1, 4)
        keypoints[joint] = torch.tensor([20.5 + 20 * finger, 60.5 - 15 * bone])
    return keypoints


def assert_colour(pixel, colour):
    """Check a colour up to the smoothing of lines."""
    np.testing.assert_allclose(pixel, colour, atol=30)


def test_every_joint_and_bone_is_drawn_where_it_is():
    drawn = draw_skeleton(BLACK, fan())
    assert not BLACK.any()  # drawn on a copy
    np.testing.assert_array_equal(drawn[90, 60], WHITE)
    for finger, colour in enumerate(FINGER_COLOURS):
        for y in (60, 52, 45, 30, 22, 15):  # joints, and bones between them
            assert_colour(drawn[y, 20 + 20 * finger], colour)


def test_skeleton_has_an_outline_that_shows_on_white():
    white = np.full_like(BLACK, 255)
    drawn = draw_skeleton(white, fan(), colours=(WHITE,) * 5)
    for x in (20, 40, 60, 80, 100):
        assert_colour(drawn[52, x], WHITE)
        assert (drawn[52, [x - 1, x + 1]] < 150).all()
    assert drawn.min() == min(OUTLINE)


@pytest.mark.parametrize(("x", "y"), [(50.5, 40.5), (50.25, 40.0)])
def test_joint_is_drawn_at_its_sub_pixel_centre(x, y):
    keypoints = torch.full((21, 2), torch.nan)
    keypoints[0] = torch.tensor([x, y])
    drawn = draw_skeleton(BLACK, keypoints).astype(float).sum(-1)
    rows, columns = np.indices(drawn.shape) + 0.5
    assert (columns * drawn).sum() / drawn.sum() == pytest.approx(x, abs=0.1)
    assert (rows * drawn).sum() / drawn.sum() == pytest.approx(y, abs=0.1)


def test_unseen_joints_are_left_out_with_their_bones():
    confidence = torch.ones(21)
    confidence[1:5] = 0
    keypoints = fan()
    keypoints[8], keypoints[12], keypoints[16] = torch.nan, 1e9, torch.inf
    drawn = draw_skeleton(BLACK, keypoints, confidence=confidence)
    colours = {tuple(pixel) for pixel in drawn.reshape(-1, 3).tolist()}
    assert FINGER_COLOURS[0] not in colours
    assert not drawn[:26, :90].any()  # the last bones of all fingers but the little
    for finger in range(1, 5):
        assert_colour(drawn[38, 20 + 20 * finger], FINGER_COLOURS[finger])


def test_no_joints_leave_the_picture():
    for nowhere in (torch.full((21, 2), torch.nan), torch.full((21, 2), -1e6)):
        np.testing.assert_array_equal(draw_skeleton(photo(), nowhere), photo())


def test_lines_follow_the_size_of_the_hand():
    def coloured(scale):
        large = np.zeros((100 * scale, 120 * scale, 3), np.uint8)
        drawn = draw_skeleton(large, scale * fan(), colours=(WHITE,) * 5)
        return (drawn[52 * scale] > 200).all(-1).sum() / 5

    assert coloured(1) == 1
    assert coloured(8) == pytest.approx(6, abs=1.5)  # the hand is 640 pixels wide


#: What dichromats see of linear RGB (Viénot, Brettel and Mollon 1999).
PROTANOPE = np.array([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]])
DEUTERANOPE = np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]])


@pytest.mark.parametrize("sight", [np.eye(3), PROTANOPE, DEUTERANOPE])
def test_fingers_differ_without_colour_vision(sight):
    seen = ((np.array(FINGER_COLOURS) / 255) ** 2.2 @ sight.T).clip(0) ** (1 / 2.2)
    distances = np.linalg.norm(seen[:, None] - seen, axis=-1)[~np.eye(5, dtype=bool)]
    assert distances.min() > 0.2


def test_images_become_pictures():
    image = torch.zeros(3, 2, 4)
    image[0, 1, 3], image[2, 0, 0] = 1.0, 0.5
    picture = to_picture(image)
    assert picture.shape == (2, 4, 3)
    assert picture[1, 3].tolist() == [255, 0, 0]
    assert picture[0, 0].tolist() == [0, 0, 128]
