"""Texture look-ups against grid_sample, singular values, and densely supersampled pictures."""

import pytest
import torch
from torch.nn import functional as F

from handrec.render.base import Attribute
from handrec.render.shading import Light, render_lit
from handrec.render.textures import (
    Pyramid,
    Texture,
    build_pyramid,
    level_of_detail,
    look_up,
    sample_texture,
)
from handrec.render.torch_reference import TorchRasterizer
from handrec.types import Camera
from tests.conformance.test_rasterizers import look, quad


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_one_level_is_grid_sample_at_the_border_too():
    image, uv = rand(2, 3, 5, 7), rand(60, 2, seed=1) * 1.6 - 0.3
    index = torch.arange(60) // 30
    grid = torch.stack([2 * uv[:, 0] - 1, 1 - 2 * uv[:, 1]], dim=-1).view(2, 30, 1, 2)
    expected = F.grid_sample(image, grid, padding_mode="border", align_corners=False)
    actual = look_up(build_pyramid(image, False), uv, torch.zeros(60), index)
    torch.testing.assert_close(actual.view(2, 30, 3).mT, expected[..., 0])


@pytest.mark.parametrize("size", [(8, 8), (4, 16), (7, 10), (1, 5)])
def test_levels_halve_down_to_one_texel(size):
    image = rand(1, 3, *size)
    pyramid = build_pyramid(image)
    assert pyramid.sizes[0] == size
    assert pyramid.sizes[-1] == (1, 1)
    for (h, w), (h_next, w_next) in zip(pyramid.sizes, pyramid.sizes[1:], strict=False):
        assert (h_next, w_next) == (max(1, h // 2), max(1, w // 2))
    assert pyramid.texels.shape == (1, sum(h * w for h, w in pyramid.sizes), 3)
    if all(side & (side - 1) == 0 for side in size):
        torch.testing.assert_close(pyramid.texels[0, -1], image.mean((0, 2, 3)))
    constant = build_pyramid(torch.full_like(image, 0.3))
    torch.testing.assert_close(constant.texels, torch.full_like(constant.texels, 0.3))


def test_the_second_level_is_means_of_two_by_two():
    image = rand(1, 3, 4, 6)
    pyramid = build_pyramid(image)
    expected = F.avg_pool2d(image, 2).permute(0, 2, 3, 1).reshape(1, 6, 3)
    torch.testing.assert_close(pyramid.texels[:, 24:30], expected)


def test_between_levels_is_linear():
    pyramid, uv = build_pyramid(rand(1, 3, 8, 8)), rand(30, 2, seed=1)
    lower, upper, between, last = (
        look_up(pyramid, uv, torch.full((30,), level)) for level in (1.0, 2.0, 1.25, 3.0)
    )
    torch.testing.assert_close(between, 0.75 * lower + 0.25 * upper)
    torch.testing.assert_close(last, pyramid.texels[0, -1:].expand(30, 3))


def test_the_level_is_that_of_the_longer_axis():
    dx, dy = (rand(50, 2, seed=i) * 0.3 - 0.1 for i in (1, 2))
    pyramid = Pyramid(torch.zeros(1, 1, 3), ((64, 128), *[(1, 1)] * 7))
    jacobian = torch.stack([dx, dy], dim=-1) * torch.tensor([128.0, 64.0])[:, None]
    longer = torch.linalg.svdvals(jacobian)[:, 0]
    actual = level_of_detail(dx, dy, pyramid)
    torch.testing.assert_close(actual, longer.log2().clamp(0, 7), rtol=1e-4, atol=1e-4)
    assert level_of_detail(dx * 0, dy * 0, pyramid).max() == 0


def test_gradients_are_those_of_finite_differences():
    image = rand(2, 3, 6, 5).double().requires_grad_()
    uv = (rand(24, 2, seed=1) * 1.2 - 0.1).double().requires_grad_()
    level, index = rand(24, seed=2).double() * 2, torch.arange(24) // 12
    assert torch.autograd.gradcheck(
        lambda image, uv: look_up(build_pyramid(image), uv, level, index), (image, uv)
    )


def test_shaders_may_sample_whole_images_and_lists():
    image, uv = rand(2, 3, 5, 7), rand(2, 4, 6, 2, seed=1)
    whole = sample_texture(image, uv)
    listed = sample_texture(image, uv.view(-1, 2), torch.arange(2).repeat_interleave(24))
    torch.testing.assert_close(whole.view(-1, 3), listed)


def floor(size=(60, 80)):
    """A floor that runs away from the camera, under a picture of noise with smooth parts."""
    vertices = torch.tensor(
        [[[-2.0, 0.5, 1.0], [2.0, 0.5, 1.0], [2.0, 0.5, 6.0], [-2.0, 0.5, 6.0]]]
    )
    faces = quad(-1.0, -1.0, 1.0, 1.0, 2.0)[1]
    uv = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    image = rand(1, 3, 256, 256)
    image[:, :, :, 100:180] = 0.2
    return vertices, faces, Texture(image, uv, faces), look(1, 60.0, size)


def test_slopes_are_differences_between_pixels():
    vertices, faces, texture, camera = floor()
    keep = {}
    attributes = {"uv": Attribute(texture.uv[None], faces, slopes=True)}

    def shader(surface):
        keep.update(surface)
        return surface["uv"]

    drawn = TorchRasterizer().render(vertices, faces, attributes, camera, shader)
    seen = drawn.face_index[0] >= 0
    maps = [torch.zeros(60, 80, 2) for _ in range(3)]
    for picture, name in zip(maps, ("uv", "uv_dx", "uv_dy"), strict=True):
        picture[seen] = keep[name]
    uv, dx, dy = maps
    # Central differences, where all four neighbours lie on the floor.
    inner = seen[:-2, 1:-1] & seen[2:, 1:-1] & seen[1:-1, :-2] & seen[1:-1, 2:] & seen[1:-1, 1:-1]
    inner[:12] = False  # towards the horizon differences are no slopes
    across, down = (uv[1:-1, 2:] - uv[1:-1, :-2]) / 2, (uv[2:, 1:-1] - uv[:-2, 1:-1]) / 2
    assert inner.sum() > 300
    torch.testing.assert_close(dx[1:-1, 1:-1][inner], across[inner], rtol=1e-3, atol=1e-5)
    away = slice(30, None)
    torch.testing.assert_close(
        dy[1:-1, 1:-1][away][inner[away]], down[away][inner[away]], rtol=0.05, atol=1e-4
    )


@pytest.mark.parametrize("odd", [False, True])
def test_mipmaps_show_what_many_samples_average_to(odd):
    vertices, faces, texture, camera = floor()
    if odd:
        texture = texture._replace(image=texture.image[:, :, :201, :255])
    light = Light(torch.ones(1, 3), torch.zeros(1, 3), torch.tensor([[0.0, -1.0, 0.0]]))
    pictures = []
    for mipmaps in (True, False):
        chosen = texture._replace(mipmaps=mipmaps)
        drawn = render_lit(TorchRasterizer(), vertices, faces, light, camera, texture=chosen)
        pictures.append(drawn.image)
    dense = Camera(camera.intrinsics * torch.tensor([12.0, 12.0, 1.0])[:, None], (720, 960))
    chosen = texture._replace(mipmaps=False)
    truth = render_lit(TorchRasterizer(), vertices, faces, light, dense, texture=chosen)
    truth, share = F.avg_pool2d(truth.image, 12), F.avg_pool2d(truth.mask, 12)
    whole = ((share == 1) & (drawn.mask == 1)).expand_as(truth)
    assert whole.sum() > 3000
    with_mips, without = ((picture - truth)[whole].square().mean().sqrt() for picture in pictures)
    assert with_mips < 0.06
    assert without > 2 * with_mips


def test_a_texture_seen_from_afar_gets_its_gradient_everywhere():
    vertices, faces = quad(-1.0, -1.0, 1.0, 1.0, 2.0)
    image = rand(1, 3, 64, 64).requires_grad_()
    uv = torch.tensor([[0.0, 1.0], [1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    light = Light(torch.ones(1, 3), torch.zeros(1, 3), torch.tensor([[0.0, 0.0, -1.0]]))
    camera = Camera(torch.tensor([[[8.0, 0, 4], [0, 8, 4], [0, 0, 1]]]), (8, 8))
    drawn = render_lit(
        TorchRasterizer(), vertices, faces, light, camera, texture=Texture(image, uv, faces)
    )
    drawn.image.sum().backward()
    torch.testing.assert_close(image.grad, torch.full_like(image, 1 / 64), rtol=1e-3, atol=0)
