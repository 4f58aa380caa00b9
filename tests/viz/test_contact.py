"""Pictures: what is drawn must lie where it belongs."""

import numpy as np
import pytest
import torch

from handrec.viz import contact
from handrec.viz.contact import FINGER_COLOURS, WHITE, Example, Gallery

BLACK = np.zeros((100, 120, 3), np.uint8)


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


def test_images_become_pictures():
    image = torch.zeros(3, 2, 4)
    image[0, 1, 3], image[2, 0, 0] = 1.0, 0.5
    picture = contact.to_picture(image)
    assert picture.shape == (2, 4, 3)
    assert picture[1, 3].tolist() == [255, 0, 0]
    assert picture[0, 0].tolist() == [0, 0, 128]


def test_every_joint_and_finger_is_drawn_where_it_is():
    picture = contact.draw_skeleton(BLACK, fan())
    assert not BLACK.any()  # drawn on a copy
    assert picture[90, 60].tolist() == list(WHITE)
    for finger, colour in enumerate(FINGER_COLOURS):
        for y in (60, 52, 45, 30, 22, 15):  # joints, and bones between them
            assert_colour(picture[y, 20 + 20 * finger], colour)


def test_a_joint_at_the_centre_of_a_pixel_is_drawn_around_it():
    keypoints = torch.full((21, 2), torch.nan)
    keypoints[0] = torch.tensor([50.5, 40.5])
    light = contact.draw_skeleton(BLACK, keypoints)[..., 0].astype(float)
    rows, columns = np.indices(light.shape)
    assert (rows * light).sum() / light.sum() == pytest.approx(40, abs=0.1)
    assert (columns * light).sum() / light.sum() == pytest.approx(50, abs=0.1)


def test_unseen_joints_are_left_out():
    confidence = torch.ones(21)
    confidence[1:5] = 0
    keypoints = fan()
    keypoints[8] = torch.nan
    keypoints[12] = 1e9
    picture = contact.draw_skeleton(BLACK, keypoints, confidence=confidence)
    colours = {tuple(pixel) for pixel in picture.reshape(-1, 3).tolist()}
    assert FINGER_COLOURS[0] not in colours
    assert picture[22, 40].tolist() == [0, 0, 0]  # the bone to the index fingertip
    assert_colour(picture[22, 80], FINGER_COLOURS[3])


def triangles():
    """Return a near small triangle in front of a far large one, and a camera."""
    corners = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [0.0, 1.0]])
    near = torch.cat([0.1 * corners, torch.full((3, 1), 0.5)], 1)
    far = torch.cat([0.8 * corners, torch.full((3, 1), 2.0)], 1)
    far[0, 2] = 3.0  # tilted, and so darker
    intrinsics = torch.tensor([[100.0, 0, 60], [0, 100, 50], [0, 0, 1]])
    return torch.cat([near, far]), intrinsics


def covered(vertices, intrinsics, shape):
    """Return which pixel centres lie inside a projected triangle, from the definition."""
    a, b, c = (intrinsics @ v / v[2] for v in vertices)
    inside = np.zeros(shape[:2], bool)
    for y in range(shape[0]):
        for x in range(shape[1]):
            p = torch.tensor([x + 0.5, y + 0.5, 1.0])
            signs = [
                torch.linalg.det(torch.stack(m)) > 0 for m in ([p, b, c], [a, p, c], [a, b, p])
            ]
            inside[y, x] = all(signs) or not any(signs)
    return inside


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [3, 4, 5, 0, 1, 2]])
def test_meshes_cover_their_pixels_and_near_hides_far(order):
    vertices, intrinsics = triangles()
    faces = torch.tensor(order).reshape(2, 3)
    picture = contact.draw_mesh(BLACK, vertices, faces, intrinsics, colour=(200, 200, 200))
    near, far = (covered(v, intrinsics, BLACK.shape) for v in (vertices[:3], vertices[3:]))
    full = picture[..., 0] == 200  # faces the camera
    assert (full & ~near).sum() == 0
    assert full[near].mean() > 0.9  # edges are averaged
    lit = picture.any(-1)
    assert lit[near | far].mean() > 0.99
    assert (lit & ~(near | far)).sum() < 0.15 * (near | far).sum()
    assert 60 < picture[far & ~near].max() < 200


def test_what_is_behind_the_camera_is_not_drawn():
    vertices, intrinsics = triangles()
    behind = vertices * torch.tensor([1.0, 1.0, -1.0])
    picture = contact.draw_mesh(BLACK, behind, torch.arange(6).reshape(2, 3), intrinsics)
    assert not picture.any()


def test_grid_places_pictures_row_by_row():
    pictures = [np.full((20, 30, 3), 40 * (i + 1), np.uint8) for i in range(5)]
    sheet = contact.grid(pictures, columns=3)
    assert sheet.shape == (2 * 26 + 6, 3 * 36 + 6, 3)
    for index in range(5):
        top, left = 6 + index // 3 * 26, 6 + index % 3 * 36
        assert (sheet[top : top + 20, left : left + 30] == 40 * (index + 1)).all()
    assert (sheet[-20:, -30:] == 255).all()
    captioned = contact.grid(pictures, columns=3, captions=list("abcde"))
    assert captioned.shape[0] > sheet.shape[0]
    assert (captioned[26:40, 6:36] < 100).any()  # ink under the first picture


def example(sample_id, error):
    return Example(
        sample_id=sample_id,
        error=error,
        picture=BLACK,
        intrinsics=triangles()[1],
        keypoints=fan(),
        target=fan(),
        confidence=torch.ones(21),
        vertices=triangles()[0],
    )


def test_the_gallery_is_bounded_and_keeps_the_extremes():
    errors = np.random.default_rng(0).gamma(2, 5, size=1000)
    gallery = Gallery(extremes=3, capacity=40)
    for sample_id, error in enumerate(errors):
        gallery.add(example(sample_id, error))
        assert len(gallery.examples) <= 40
    chosen = gallery.select(float(np.median(errors)))
    ranks = np.argsort(errors)
    assert [e.sample_id for e in chosen["best"]] == ranks[:3].tolist()
    assert [e.sample_id for e in chosen["worst"]] == ranks[::-1][:3].tolist()
    places = [int(np.flatnonzero(ranks == e.sample_id)[0]) for e in chosen["median"]]
    assert all(350 < place < 650 for place in places)


def test_a_small_gallery_shows_what_there_is():
    gallery = Gallery(extremes=4)
    gallery.add(example(7, 1.0))
    gallery.add(example(8, 3.0))
    chosen = gallery.select(2.0)
    assert [e.sample_id for e in chosen["worst"]] == [8, 7]
    assert [e.sample_id for e in chosen["best"]] == [7, 8]
    sheet = contact.contact_sheet(chosen, torch.arange(6).reshape(2, 3))
    assert sheet.shape == (3 * (100 + 26) + 6, 2 * (240 + 6) + 6, 3)


def test_the_sheet_shows_prediction_over_label_beside_the_mesh():
    shifted = example(0, 1.0)._replace(target=fan() + 10)
    sheet = contact.contact_sheet({"only": [shifted]}, torch.arange(6).reshape(2, 3))
    left, right = sheet[6:106, 6:126], sheet[6:106, 126:246]
    assert_colour(left[52, 20], FINGER_COLOURS[0])
    assert_colour(left[62, 30], WHITE)
    assert not (left == right).all()
    assert right[50, 60].any()
