"""Lights, textures, samples, chunks, layouts: every rasterizer draws the same."""

import pytest
import torch

from handrec.render.base import Rasterizer
from handrec.render.lights import Harmonics, Light, PointLight, Specular
from handrec.render.shading import render_lit, render_normals
from handrec.render.textures import Texture, build_pyramid, look_up
from handrec.render.torch_reference import TorchRasterizer
from handrec.types import Camera
from tests.conformance.test_rasterizers import draw, look, soup, sphere, waves, zoomed


def seeded(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


LIGHTS = {
    "directional": (Light, (3,), (3,), (3,)),
    "point": (PointLight, (3,), (3,), (3,)),
    "harmonics": (Harmonics, (9, 3)),
}


@pytest.mark.parametrize("smooth", [True, False], ids=["smooth", "flat"])
@pytest.mark.parametrize("albedo", ["colours", "texture", "textures"])
@pytest.mark.parametrize("kind", LIGHTS)
def test_every_backend_lights_like_the_reference(rasterizer, device, kind, albedo, smooth):
    vertices, faces = sphere(2)
    vertices = torch.cat([vertices, vertices * torch.tensor([1.2, 0.9, 1.1])]).to(device)
    make, *shapes = LIGHTS[kind]
    light = [(seeded(2, *s, seed=i) - 0.4) / 2 for i, s in enumerate(shapes)]
    uv = vertices[0, :, :2].cpu() * 0.4 + 0.5
    picture = seeded(2 if albedo == "textures" else 1, 3, 40, 33)
    colours = seeded(*vertices.shape, seed=5)
    gloss = [torch.full((2, 1), 0.3), torch.full((2, 1), 5.0)]
    leaves = [x.to(device) for x in (vertices, picture, uv, colours, *light, *gloss)]
    weight = seeded(2, 3, 48, 64, seed=6).to(device)
    pictures, gradients = [], []
    for backend in (rasterizer, TorchRasterizer()):
        inputs = [x.clone().requires_grad_() for x in leaves]
        texture = Texture(inputs[1], inputs[2], faces.to(device))
        given = {"colours": inputs[3]} if albedo == "colours" else {"texture": texture}
        if kind != "harmonics":
            given["specular"] = Specular(*inputs[-2:])
        bulb, camera = make(*inputs[4:-2]), look(2)
        camera = Camera(camera.intrinsics.to(device), camera.image_size)
        drawn = render_lit(
            backend, inputs[0], faces.to(device), bulb, camera, smooth=smooth, linear=True, **given
        )
        pictures.append(drawn.image)
        gradients.append(
            torch.autograd.grad((drawn.image * weight).sum(), inputs, allow_unused=True)
        )
    torch.testing.assert_close(*pictures, rtol=0, atol=1e-4)
    assert pictures[0].amax() > 0.3
    for one, other in zip(*gradients, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert (one - other).norm() <= 1e-4 * other.norm() + 1e-6


@pytest.mark.parametrize("textures", [1, 3])
@pytest.mark.parametrize("channels", [3, 5])
def test_textures_are_looked_up_like_the_reference(rasterizer, device, textures, channels):
    image = seeded(textures, channels, 12, 20).to(device)
    uv = (seeded(300, 2, seed=1) * 1.4 - 0.2).to(device)
    level = (seeded(300, seed=2) * 4).clamp(max=4).to(device)
    level[:3] = torch.tensor([0.0, 1.0, 4.0])
    index = (torch.arange(300) * textures // 300).to(device)
    weight = seeded(300, channels, seed=3).to(device)
    found, gradients = [], []
    for step in (rasterizer.look_up, look_up):
        inputs = [x.clone().requires_grad_() for x in (image, uv)]
        colours = step(build_pyramid(inputs[0]), inputs[1], level, index if textures > 1 else None)
        found.append(colours)
        gradients.append(torch.autograd.grad((colours * weight).sum(), inputs))
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)
    for one, other in zip(*gradients, strict=True):
        assert (one - other).norm() < 1e-4 * other.norm()


def lit_and_gradients(rasterizer, **options):
    """Draw textured spheres before a background; return everything, and all gradients."""
    vertices, faces = sphere(2)
    vertices = torch.cat([vertices, vertices + 0.2, vertices - 0.3])
    light = [seeded(3, 3, seed=i) / 2 for i in range(3)]
    image, background = seeded(3, 3, 16, 16), seeded(3, 3, 48, 64, seed=4)
    leaves = [x.requires_grad_() for x in (vertices, image, background, *light)]
    texture = Texture(image, vertices[0, :, :2].detach() * 0.4 + 0.5, faces)
    drawn = render_lit(
        rasterizer,
        vertices,
        faces,
        Light(*light),
        look(3),
        texture=texture,
        background=background,
        **options,
    )
    loss = (drawn.image * waves((48, 64)) + drawn.mask + drawn.depth).square().sum()
    return [*drawn, *torch.autograd.grad(loss, leaves)]


def assert_same(results, expected):
    for one, other in zip(results, expected, strict=True):
        error = (one.double() - other.double()).norm()
        assert error <= 1e-4 * other.double().norm()


@pytest.mark.parametrize("chunk", [1, 2])
@pytest.mark.parametrize("packs", [True, False], ids=["packed", "whole"])
def test_neither_chunks_nor_layout_change_the_result(rasterizer, monkeypatch, chunk, packs):
    expected = lit_and_gradients(rasterizer)
    monkeypatch.setattr(type(rasterizer), "packs", lambda self, device: packs)
    assert_same(lit_and_gradients(type(rasterizer)(chunk=chunk)), expected)


def test_three_steps_make_a_backend():
    class Minimal(Rasterizer):
        cover = TorchRasterizer.cover
        visibility = TorchRasterizer.visibility

        def interpolate(self, *arguments):
            return TorchRasterizer().interpolate(*arguments)

    assert_same(lit_and_gradients(Minimal()), lit_and_gradients(TorchRasterizer()))


def test_two_samples_are_the_mean_of_a_picture_of_twice_the_size(rasterizer):
    vertices, faces = soup(30)
    values, weight = seeded(1, vertices.shape[1], 3), seeded(2, 4, 48, 64)
    behind = seeded(2, 3, 48, 64, seed=2)
    results = []
    for samples in (2, 1):
        moving = vertices.clone().requires_grad_()
        camera, wall = look(2), behind
        if samples == 1:
            camera, wall = zoomed(camera, 2), behind.repeat_interleave(2, 2).repeat_interleave(2, 3)
        drawn = draw(rasterizer, moving, faces, camera, values, background=wall, samples=samples)
        layers = torch.cat([drawn.image, drawn.mask], dim=1)
        layers = layers if samples == 2 else torch.nn.functional.avg_pool2d(layers, 2)
        results.append((layers, *torch.autograd.grad((layers * weight).sum(), moving), drawn))
    (layers, gradient, drawn), (expected, expected_gradient, fine) = results
    torch.testing.assert_close(layers, expected)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-3)
    assert 0 < ((drawn.mask > 0) & (drawn.mask < 1)).float().mean() < 0.3
    for image in range(2):  # depth and face of the nearest of four samples, by hand
        for y, x in ((i, j) for i in range(48) for j in range(64)):
            block = slice(2 * y, 2 * y + 2), slice(2 * x, 2 * x + 2)
            ids, depth = fine.face_index[image][block], fine.depth[image, 0][block]
            best = depth.where(ids >= 0, torch.inf).argmin()
            assert drawn.face_index[image, y, x] == ids.flatten()[best]
            assert drawn.depth[image, 0, y, x] == depth.flatten()[best]


def test_normals_point_out_of_a_sphere_towards_the_camera(rasterizer):
    vertices, faces = sphere(3)
    drawn = render_normals(rasterizer, vertices, faces, look())
    y, x = (drawn.face_index[0] >= 0).nonzero(as_tuple=True)
    z = drawn.depth[0, 0, y, x]
    points = torch.stack([(x + 0.5 - 32) / 60 * z, (y + 0.5 - 24) / 60 * z, z - 3], dim=-1)
    normal = drawn.image[0, :, y, x].T
    torch.testing.assert_close(normal.norm(dim=-1), torch.ones_like(z))
    assert ((normal - torch.nn.functional.normalize(points, dim=-1)).norm(dim=-1)).max() < 0.05
    assert not (drawn.image * (1 - drawn.mask)).any()
    flat = render_normals(rasterizer, vertices, faces.flip(1), look(), smooth=False)
    corners = vertices[0, faces[drawn.face_index[0, y, x].long()]]
    exact = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    exact = torch.nn.functional.normalize(exact, dim=-1)
    torch.testing.assert_close(flat.image[0, :, y, x].T, exact, rtol=0, atol=1e-4)


def test_the_layout_of_vertices_in_memory_changes_nothing(rasterizer):
    vertices, faces = sphere(2)
    results = []
    for arrange in (torch.Tensor.contiguous, lambda x: x.mT.contiguous().mT):
        mine = arrange(vertices.clone()).requires_grad_()
        drawn = render_lit(rasterizer, mine, faces, LAMP, look())
        drawn.image.square().sum().backward()
        results.append((drawn.image, mine.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_a_colour_for_all_pixels_is_lit_by_every_backend(rasterizer):
    vertices, faces = sphere(2)
    grey = torch.full((1, vertices.shape[1], 1), 0.5)
    one, other = (
        render_lit(rasterizer, vertices, faces, LAMP, look(), colours=colours).image
        for colours in (grey, grey.expand(-1, -1, 3))
    )
    torch.testing.assert_close(one, other)


def test_a_background_for_all_images_lies_behind_each(rasterizer):
    vertices, faces = sphere(1)
    vertices = vertices.repeat(3, 1, 1)
    wall = seeded(1, 3, 48, 64)
    one, other = (
        render_lit(rasterizer, vertices, faces, LAMP, look(3), background=behind).image
        for behind in (wall, wall.repeat(3, 1, 1, 1))
    )
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_second_derivative_is_an_error(rasterizer):
    vertices, faces = sphere(1)
    vertices.requires_grad_()
    image = render_lit(rasterizer, vertices, faces, LAMP, look()).image
    (slope,) = torch.autograd.grad(image.square().sum(), vertices, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


#: From the camera and above.
LAMP = Light(torch.full((1, 3), 0.2), torch.full((1, 3), 0.6), torch.tensor([[0.0, -1.0, -1.0]]))


def test_what_does_not_fit_the_batch_is_refused(rasterizer):
    vertices, faces = sphere(1)
    vertices = vertices.repeat(3, 1, 1)
    two = Light(*(x.repeat(2, 1) for x in LAMP))
    texture = Texture(seeded(2, 3, 4, 4), vertices[0, :, :2], faces)
    refused = [
        ("Light.ambient: 2 rows for 3 images", two, {}),
        ("colour: 2 rows for 3 images", LAMP, {"colours": vertices[:2]}),
        ("Texture.image: 2 rows for 3 images", LAMP, {"texture": texture}),
        ("does not fit images of 48 x 64", LAMP, {"background": seeded(3, 3, 64, 64)}),
        ("background: 2 rows for 3 images", LAMP, {"background": seeded(2, 3, 48, 64)}),
    ]
    for message, light, given in refused:
        with pytest.raises(ValueError, match=message):
            render_lit(rasterizer, vertices, faces, light, look(3), **given)
