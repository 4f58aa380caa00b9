import cv2
import numpy as np
import pytest

from handrec.data.crops import (
    crop_affine,
    crop_intrinsics,
    default_intrinsics,
    read_image,
    square_box,
    warp,
)
from handrec.errors import UserError


def centroid(image):
    """Brightness-weighted centre in pixels, centres at integer + 0.5."""
    weight = image.astype(float).sum(-1)
    rows, columns = np.indices(weight.shape) + 0.5
    return np.array([(columns * weight).sum(), (rows * weight).sum()]) / weight.sum()


def dot_image(x, y, sigma=3.0, height=240, width=320):
    rows, columns = np.indices((height, width)) + 0.5
    dot = 255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2))
    return np.repeat(dot.round().astype(np.uint8)[..., None], 3, axis=2)


def apply(affine, points):
    return points @ affine[:2, :2].T + affine[:2, 2]


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("size", [32, 64, 111, 400])
def test_dot_lands_where_the_affine_says(size, mirror):
    dot = np.array([143.3, 96.8])
    affine = crop_affine(square_box((100.0, 60.0, 190.0, 150.0), 1.2), size, mirror)
    crop = warp(dot_image(*dot), affine, size)
    expected = apply(np.linalg.inv(affine), dot)
    assert np.abs(centroid(crop) - expected).max() < 0.1


def test_identity_crop_is_the_image():
    image = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    np.testing.assert_array_equal(
        warp(image, crop_affine((0.0, 0.0, 48.0, 48.0), 48, False), 48), image
    )


def test_mirrored_crop_is_the_flipped_image_and_twice_is_the_identity():
    image = np.random.default_rng(1).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    affine = crop_affine((0.0, 0.0, 48.0, 48.0), 48, True)
    once = warp(image, affine, 48)
    np.testing.assert_array_equal(once, image[:, ::-1])
    np.testing.assert_array_equal(warp(once, affine, 48), image)
    np.testing.assert_allclose(affine @ affine, np.eye(3))


@pytest.mark.parametrize("factor", [2, 5, 7.3])
def test_shrinking_does_not_alias(factor):
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[:, ::2] = 255
    size = int(512 / factor)
    crop = warp(stripes, crop_affine((0.0, 0.0, 512.0, 512.0), size, False), size).astype(float)
    assert np.abs(crop - 127.5).max() < 45  # a plain bilinear warp gives the full 0 to 255
    assert np.abs(crop.mean() - 127.5) < 2


def test_shrinking_by_an_integer_is_the_block_mean():
    image = np.random.default_rng(2).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    crop = warp(image, crop_affine((0.0, 0.0, 60.0, 60.0), 20, False), 20)
    means = image.reshape(20, 3, 20, 3, 3).astype(float).mean((1, 3))
    assert np.abs(crop - means).max() <= 0.51


@pytest.mark.parametrize(("mirrored", "mode"), [(False, "edge"), (True, "symmetric")])
def test_outside_the_image_its_edge_goes_on_or_the_image_mirrored(mirrored, mode):
    image = np.random.default_rng(3).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    crop = warp(image, crop_affine((-8.0, -10.0, 32.0, 30.0), 40, False), 40, mirrored)
    padded = np.pad(image, ((10, 10), (8, 8), (0, 0)), mode=mode)
    np.testing.assert_array_equal(crop, padded)


@pytest.mark.parametrize("mirror", [False, True])
def test_projection_into_crop_and_image_agree(mirror):
    rng = np.random.default_rng(3)
    intrinsics = np.array([[900.0, 3.0, 310.0], [0.0, 870.0, 250.0], [0.0, 0.0, 1.0]])
    hand = rng.uniform([-0.1, -0.1, 0.4], [0.1, 0.1, 0.7], (50, 3))
    affine = crop_affine(square_box((37.5, 80.0, 222.0, 199.0), 1.3), 224, mirror)
    in_image = hand @ intrinsics.T
    seen = hand * [-1, 1, 1] if mirror else hand
    crop_camera = crop_intrinsics(intrinsics, affine, mirror)
    in_crop = seen @ crop_camera.T
    expected = in_image[:, :2] / in_image[:, 2:]
    np.testing.assert_allclose(apply(affine, in_crop[:, :2] / in_crop[:, 2:]), expected, atol=1e-9)
    assert crop_camera[0, 0] > 0
    assert crop_camera[1, 1] > 0


def test_square_box_keeps_centre_and_takes_the_longer_side():
    assert square_box((10.0, 20.0, 30.0, 80.0), 1.5) == (-25.0, 5.0, 65.0, 95.0)


def test_default_intrinsics_see_53_degrees_across_the_diagonal():
    intrinsics = default_intrinsics(480, 640)
    corners = np.array([[0, 0, 1.0], [640, 480, 1.0]]) @ np.linalg.inv(intrinsics).T
    cosine = corners[0] @ corners[1] / np.linalg.norm(corners[0]) / np.linalg.norm(corners[1])
    assert np.degrees(np.arccos(cosine)) == pytest.approx(53.13, abs=0.01)


def with_orientation(jpeg, orientation):
    """Insert an EXIF segment that holds nothing but the orientation tag."""
    entry = b"\x01\x12\x00\x03\x00\x00\x00\x01" + bytes([0, orientation]) + b"\x00\x00"
    tiff = b"MM\x00\x2a\x00\x00\x00\x08\x00\x01" + entry + b"\x00\x00\x00\x00"
    body = b"Exif\x00\x00" + tiff
    return jpeg[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + jpeg[2:]


def test_read_image_is_rgb_and_respects_exif_orientation(tmp_path):
    image = np.zeros((16, 32, 3), np.uint8)
    image[:, :16, 0] = 255  # red on the left
    jpeg = cv2.imencode(".jpg", image[..., ::-1])[1].tobytes()
    (tmp_path / "plain.jpg").write_bytes(jpeg)
    (tmp_path / "turned.jpg").write_bytes(with_orientation(jpeg, 6))  # to be turned clockwise
    plain, turned = read_image(tmp_path / "plain.jpg"), read_image(tmp_path / "turned.jpg")
    assert plain.shape == (16, 32, 3)
    assert plain[8, 4, 0] > 240
    assert plain[8, 4, 2] < 15
    assert turned.shape == (32, 16, 3)
    assert turned[4, 8, 0] > 240  # what was left is on top
    assert turned[28, 8, 0] < 15


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (np.full((9, 7), 80, np.uint8), (80, 80, 80)),
        (np.full((9, 7), 80 * 257, np.uint16), (80, 80, 80)),
        (np.full((9, 7, 4), (10.0, 20.0, 30.0, 255.0), np.uint8), (30, 20, 10)),
        (np.full((9, 7, 3), np.array([10, 20, 30]) * 257, np.uint16), (30, 20, 10)),
    ],
)
def test_read_image_makes_8_bit_rgb_of_other_formats(tmp_path, pixels, expected):
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    image = read_image(tmp_path / "a.png")
    assert image.dtype == np.uint8
    assert image.shape == (9, 7, 3)
    assert image.flags.c_contiguous
    np.testing.assert_array_equal(image[4, 3], expected)


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_unreadable_images_are_named(tmp_path, content):
    path = tmp_path / "broken.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.jpg: "):
        read_image(path)
