import math

import numpy as np
import torch
from scipy.ndimage import map_coordinates
from torchvision.transforms import functional as reference

from handrec.data.colours import colour_map
from handrec.data.views import (
    Colours,
    Geometry,
    TwoViews,
    recolour,
    sample_colours,
    sample_matrices,
    similarity,
    warp,
)

PLAIN = Colours(jitter_share=0.0, grey=0.0, blur=(0.0, 0.0), solarize=(0.0, 0.0))


def dots(places, size=64):
    """Return images with a soft dot at each place, in coordinates from -1 to 1."""
    line = (2 * torch.arange(size) + 1) / size - 1
    squared = (line[None, None, :] - places[:, 0, None, None]) ** 2
    squared = squared + (line[None, :, None] - places[:, 1, None, None]) ** 2
    return (-squared / 0.01).exp()[:, None].expand(-1, 3, -1, -1)


def centroid(images):
    size = images.shape[-1]
    line = (2 * torch.arange(size) + 1) / size - 1
    weight = images[:, 0] / images[:, 0].sum((1, 2), keepdim=True)
    return torch.stack([(weight.sum(1) * line).sum(1), (weight.sum(2) * line).sum(1)], dim=1)


def test_a_dot_moves_where_the_matrix_says():
    torch.manual_seed(0)
    places = torch.rand(16, 2) * 0.4 - 0.2
    matrix = sample_matrices(16, Geometry(shift=0.1), torch.device("cpu"))
    expected = (matrix[:, :2, :2] @ places[..., None])[..., 0] + matrix[:, :2, 2]
    moved = centroid(warp(dots(places), matrix, 64))
    assert (moved - expected).abs().max() * 32 < 0.5  # pixels


def test_views_of_another_size_keep_their_coordinates():
    places = torch.tensor([[0.25, -0.5]])
    moved = centroid(warp(dots(places), torch.eye(3)[None], 48))
    torch.testing.assert_close(moved, places, atol=0.01, rtol=0)


def test_identity_is_the_image():
    image = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(warp(image, torch.eye(3).expand(2, 3, 3), 32), image)


def test_views_are_those_of_scipy_with_the_image_mirrored_beyond_its_border():
    image = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    matrix = similarity(torch.tensor([0.7]), torch.tensor([0.6]), torch.tensor([[0.2, 0.1]]))
    line = (2 * np.arange(24) + 1) / 24 - 1
    x, y = np.meshgrid(line, line)
    back = np.linalg.inv(matrix[0].double().numpy())
    places = np.tensordot(back, np.stack([x, y, np.ones_like(x)]), 1)
    assert np.abs(places[:2]).max() > 1.5  # far beyond the border
    rows, columns = ((1 + places[i]) * 12 - 0.5 for i in (1, 0))
    expected = [
        map_coordinates(channel.numpy(), [rows, columns], order=1, mode="reflect")
        for channel in image[0]
    ]
    torch.testing.assert_close(
        warp(image, matrix, 24)[0], torch.from_numpy(np.stack(expected)), atol=1e-4, rtol=0
    )


def test_matrices_are_similarities_within_bounds_and_never_mirror():
    geometry = Geometry(rotation=30.0, scale=(0.7, 1.4), shift=0.1)
    generator = torch.Generator().manual_seed(0)
    matrix = sample_matrices(2000, geometry, torch.device("cpu"), generator)
    linear = matrix[:, :2, :2]
    scale = torch.linalg.det(linear).sqrt()
    identity = torch.eye(2).expand(2000, 2, 2) * scale[:, None, None] ** 2
    torch.testing.assert_close(linear @ linear.mT, identity)
    angle = torch.atan2(linear[:, 1, 0], linear[:, 0, 0])
    assert 0.69 < scale.min() < 0.72
    assert 1.37 < scale.max() < 1.41
    assert 0.95 < angle.abs().max() / math.radians(30) <= 1.0001
    assert 0.19 < matrix[:, :2, 2].abs().max() <= 0.2


def test_two_views_carry_their_matrices():
    torch.manual_seed(0)
    places = torch.rand(4, 2) * 0.4 - 0.2
    views, local = TwoViews(colours=PLAIN, local_views=1, local_size=32).take(dots(places))
    assert [view.image.shape for view in views + local] == [(4, 3, 64, 64)] * 2 + [(4, 3, 32, 32)]
    for view in views:
        expected = (view.matrix[:, :2, :2] @ places[..., None])[..., 0] + view.matrix[:, :2, 2]
        assert (centroid(view.image) - expected).abs().max() * 32 < 0.6
    assert not torch.equal(views[0].matrix, views[1].matrix)


def test_colours_change_and_stay_in_range():
    torch.manual_seed(0)
    image = torch.rand(8, 3, 32, 32)
    views, _ = TwoViews(geometry=Geometry(0.0, (1.0, 1.0), 0.0)).take(image)
    for view in views:
        assert view.image.min() >= 0
        assert view.image.max() <= 1
        assert not torch.allclose(view.image, image)


def changed(image, brightness=1.0, contrast=1.0, saturation=1.0, turns=0.0):
    one = torch.ones(len(image))
    change = (brightness * one, contrast * one, saturation * one, turns * one)
    return recolour(image, *colour_map(*change))


def test_changes_of_colour_are_torchvisions():
    torch.manual_seed(0)
    image = 0.3 + 0.3 * torch.rand(4, 3, 16, 16)  # nothing is clipped there
    for name, adjust in (
        ("brightness", reference.adjust_brightness),
        ("contrast", reference.adjust_contrast),
        ("saturation", reference.adjust_saturation),
    ):
        expected = adjust(image, 1.4)
        torch.testing.assert_close(changed(image, **{name: 1.4}), expected, atol=1e-3, rtol=0)
    both = reference.adjust_contrast(reference.adjust_brightness(image, 0.7), 1.3)
    torch.testing.assert_close(changed(image, 0.7, 1.3), both, atol=1e-3, rtol=0)


def test_hue_leaves_grey():
    grey = torch.rand(2, 1, 4, 4).expand(-1, 3, -1, -1)
    torch.testing.assert_close(changed(grey, turns=0.2), grey)


def test_shares_of_jittered_and_grey_pictures():
    generator = torch.Generator().manual_seed(0)
    colours = Colours(jitter_share=0.6, grey=0.25)
    matrix, lift = sample_colours(4000, colours, torch.device("cpu"), generator)
    grey = torch.linalg.matrix_rank(matrix, atol=1e-4) == 1
    same = (lift == 0) & ~grey
    assert abs(grey.float().mean() - 0.25) < 0.03
    assert abs(same.float().mean() - 0.4 * 0.75) < 0.03
