"""Shading against Lambert's law written out, and pictures whose look is known."""

import math

import pytest
import torch

from handrec.hand.openhand import OpenHand
from handrec.render.base import Surface
from handrec.render.shading import (
    Light,
    Shading,
    Texture,
    render_lit,
    render_positions,
    sample_texture,
)
from handrec.render.torch_reference import TorchRasterizer
from handrec.types import Camera
from tests.conformance.test_rasterizers import look, quad, sphere


@pytest.fixture
def rasterizer():
    return TorchRasterizer()


def light(direction, ambient=0.0, directional=1.0):
    return Light(
        torch.full((1, 3), ambient), torch.full((1, 3), directional), torch.tensor([direction])
    )


# Wound so that its normal points at the camera, -z.
WALL = quad(-1.0, -1.0, 1.0, 1.0, 2.0)


@pytest.mark.parametrize("degrees", [0, 30, 60, 89, 120])
def test_a_wall_reflects_the_cosine(rasterizer, degrees):
    vertices, faces = WALL
    angle = math.radians(degrees)
    lit = light((3 * math.sin(angle), 0.0, -3 * math.cos(angle)), 0.1, 0.5)
    colours = torch.tensor([0.8, 0.6, 0.4]).expand(1, 4, 3)
    drawn = render_lit(rasterizer, vertices, faces, lit, look(), colours=colours)
    expected = (0.1 + 0.5 * max(0.0, math.cos(angle))) * torch.tensor([0.8, 0.6, 0.4])
    torch.testing.assert_close(drawn.image[0, :, 24, 32], expected)


def test_the_inside_is_lit_like_the_outside(rasterizer):
    vertices, faces = WALL
    front, back = (
        render_lit(rasterizer, vertices, f, light((0.0, 0.6, -0.8)), look()).image
        for f in (faces, faces.flip(1))
    )
    assert front.max() == pytest.approx(0.8)
    torch.testing.assert_close(front, back)


@pytest.mark.parametrize(
    ("direction", "bright", "dark"),
    [
        ((-1.0, 0.0, -0.2), (24, 16), (24, 48)),  # from the left
        ((0.0, -1.0, -0.2), (8, 32), (40, 32)),  # from above
        ((0.0, 0.0, -1.0), (24, 32), (24, 12)),  # from the camera
    ],
)
def test_a_sphere_is_bright_where_the_light_is(rasterizer, direction, bright, dark):
    image = render_lit(rasterizer, *sphere(3), light(direction), look()).image[0, 0]
    assert image[bright] > image[dark] + 0.3


def test_a_sphere_is_smooth(rasterizer):
    drawn = render_lit(rasterizer, *sphere(3), light((0.3, -0.4, -1.0)), look(1, 240, (192, 256)))
    y, x = (drawn.mask[0, 0] > 0).nonzero(as_tuple=True)
    z = drawn.depth[0, 0, y, x]
    points = torch.stack([(x + 0.5 - 128) / 240 * z, (y + 0.5 - 96) / 240 * z, z - 3], dim=-1)
    normals = torch.nn.functional.normalize(points, dim=-1)
    direction = torch.nn.functional.normalize(torch.tensor([0.3, -0.4, -1.0]), dim=0)
    error = drawn.image[0, 0, y, x] - (normals @ direction).relu()
    assert error.abs().max() < 0.02


def test_bright_light_is_clipped_and_half_precision_raised(rasterizer):
    vertices, faces = WALL
    drawn = render_lit(
        rasterizer, vertices.bfloat16(), faces, light((0.0, 0.0, -1.0), 1.0, 3.0), look()
    )
    assert drawn.image.max() == 1
    assert drawn.image.dtype == torch.float32


def test_a_texture_is_upright():
    image = torch.arange(12.0).view(1, 3, 2, 2)  # rows: top, bottom
    uv = torch.tensor([[0.25, 0.75], [0.75, 0.75], [0.25, 0.25], [0.75, 0.25]]).view(1, 2, 2, 2)
    sampled = sample_texture(image, uv)
    torch.testing.assert_close(sampled.permute(0, 3, 1, 2), image)
    middle = sample_texture(image, torch.full((1, 1, 1, 2), 0.5))
    torch.testing.assert_close(middle[0, 0, 0], image.mean((0, 2, 3)))


def test_a_textured_wall_shows_its_picture(rasterizer):
    vertices, faces = WALL
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    # quad's corners: left top, right top, right bottom, left bottom; v is up
    uv = torch.tensor([[0.0, 1.0], [1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    camera = Camera(torch.tensor([[[8.0, 0, 4], [0, 8, 4], [0, 0, 1]]]), (8, 8))
    texture = Texture(image, uv, faces)
    drawn = render_lit(
        rasterizer, vertices, faces, light((0.0, 0.0, -1.0)), camera, texture=texture
    )
    torch.testing.assert_close(drawn.image, image, rtol=0, atol=1e-5)


def test_everything_gets_a_gradient(rasterizer):
    vertices, faces = sphere()
    light_in = Light(*(torch.rand(1, 3) / 3 - torch.tensor([0, 0, 1]) * (i == 2) for i in range(3)))
    inputs = [x.requires_grad_() for x in (vertices, *light_in)]
    image = torch.rand(1, 3, 4, 4, requires_grad=True)
    colours = torch.rand_like(vertices).requires_grad_()
    texture = Texture(image, vertices[0, :, :2].detach() / 2 + 0.5, faces)
    for albedo in ({"colours": colours}, {"texture": texture}):
        drawn = render_lit(rasterizer, vertices, faces, light_in, look(), **albedo)
        drawn.image.square().sum().backward()
    for tensor in (*inputs, image, colours):
        assert tensor.grad.isfinite().all()
        assert tensor.grad.any()


def test_a_fit_finds_light_and_colour(rasterizer):
    vertices, faces = sphere()
    colour = torch.tensor([0.9, 0.6, 0.3]).expand(1, vertices.shape[1], 3)
    truth = light((-1.0, -1.0, -1.0), 0.2, 0.6)
    target = render_lit(rasterizer, vertices, faces, truth, look(), colours=colour).image
    parameters = [x.clone().requires_grad_() for x in light((0.1, 0.0, -1.0), 0.4, 0.4)]
    optimizer = torch.optim.Adam(parameters, lr=0.05)
    for _ in range(80):
        drawn = render_lit(rasterizer, vertices, faces, Light(*parameters), look(), colours=colour)
        optimizer.zero_grad()
        (drawn.image - target).square().mean().backward()
        optimizer.step()
    found = torch.nn.functional.normalize(parameters[2].detach(), dim=-1)
    torch.testing.assert_close(found, torch.full((1, 3), -(3**-0.5)), rtol=0, atol=0.03)
    torch.testing.assert_close(parameters[0].detach(), truth.ambient, rtol=0, atol=0.03)


def test_positions_are_those_of_the_rest_hand(rasterizer):
    hand = OpenHand()
    vertices = hand.template[None] + torch.tensor([0, 0, 0.5])
    camera = Camera(torch.tensor([[[400.0, 0, 112], [0, 400, 112], [0, 0, 1]]]), (224, 224))
    position, mask = render_positions(rasterizer, hand, vertices.requires_grad_(), camera, (56, 56))
    assert position.shape == (1, 3, 56, 56)
    assert position.grad_fn is None
    low, high = hand.template.amin(0), hand.template.amax(0)
    y, x = mask[0, 0].nonzero(as_tuple=True)
    assert len(y) > 100
    point = position[0, :, y, x].T * (high - low) + low
    pixel = 100 * point[:, :2] / (point[:, 2:] + 0.5) + 28
    torch.testing.assert_close(pixel, torch.stack([x, y], 1) + 0.5, rtol=0, atol=1e-3)
    assert not (position * (1 - mask)).any()


def test_lambert_needs_no_rasterizer():
    maps = {
        "normal": torch.tensor([0.0, 0.0, -2.0]).expand(1, 2, 2, 3),
        "side": torch.ones(1, 2, 2, 1),
        "colour": torch.full((1, 2, 2, 3), 0.5),
    }
    shaded = Shading(light((0.0, 0.0, -1.0), 0.25, 0.5))(Surface(maps))
    torch.testing.assert_close(shaded, torch.full((1, 2, 2, 3), 0.375))
