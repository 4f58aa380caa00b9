"""Lights against formulas written out, numerical integration, and scipy's spherical harmonics."""

import math

import numpy as np
import pytest
import torch
from scipy.special import sph_harm_y
from torch.nn.functional import normalize

from handrec.render.base import Surface
from handrec.render.lights import (
    Harmonics,
    Light,
    PointLight,
    Specular,
    linear_to_srgb,
    spherical_harmonics,
    srgb_to_linear,
)
from handrec.render.shading import Shading


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def points(seed=0):
    """A list of pixels of three images, as a shader gets it."""
    normal = rand(20, 3, seed=seed) - 0.5
    normal[:, 2] -= 0.7
    position = rand(20, 3, seed=seed + 1) * 0.1 + torch.tensor([0.0, 0.0, 0.5])
    side = torch.where(rand(20, 1, seed=seed + 2) < 0.2, -1.0, 1.0).double()
    colour = rand(20, 3, seed=seed + 3) / 2
    maps = {"normal": normal, "position": position, "side": side, "colour": colour}
    return Surface(maps, torch.arange(20) * 3 // 20)


def lights(seed=4):
    ambient, direct, place = (rand(3, 3, seed=seed + i) for i in range(3))
    place = place - torch.tensor([0.5, 0.5, 1.5])
    return {
        "directional": Light(ambient / 4, direct / 2, place),
        "point": PointLight(ambient / 4, direct / 2, place),
        "harmonics": Harmonics(rand(3, 9, 3, seed=seed + 3) / 4),
    }


def lambert(surface, light):
    """Shade each pixel by scalar arithmetic."""
    shaded = []
    for i, image in enumerate(surface.image_index.tolist()):
        normal = surface["normal"][i] / surface["normal"][i].norm() * surface["side"][i]
        towards = light[2][image]
        if isinstance(light, PointLight):
            towards = towards - surface["position"][i]
        cosine = float(normal @ towards / towards.norm())
        gain = light[0][image] + light[1][image] * max(0.0, cosine)
        shaded.append((surface["colour"][i] * gain).clamp(0, 1))
    return torch.stack(shaded)


@pytest.mark.parametrize("kind", ["directional", "point"])
def test_matt_surfaces_reflect_by_lamberts_law(kind):
    surface, light = points(), lights()[kind]
    torch.testing.assert_close(Shading(light)(surface), lambert(surface, light))


@pytest.mark.parametrize("kind", ["directional", "point"])
def test_glossy_surfaces_mirror_by_phongs_formula(kind):
    surface, light = points(), lights()[kind]
    specular = Specular(torch.full((3, 1), 0.5).double(), torch.tensor([[0.5], [4.0], [30.0]]))
    gloss = Shading(light, specular)(surface) - Shading(light)(surface)
    seen = 0
    for i, image in enumerate(surface.image_index.tolist()):
        normal = normalize(surface["normal"][i], dim=0) * surface["side"][i]
        towards = light[2][image] - (surface["position"][i] if kind == "point" else 0)
        towards = towards / towards.norm()
        mirrored = 2 * (normal @ towards) * normal - towards
        view = -surface["position"][i] / surface["position"][i].norm()
        if normal @ towards <= 0 or mirrored @ view <= 0:
            expected = torch.zeros(3).double()
        else:
            shine = 0.5 * (mirrored @ view) ** float(specular.shininess[image])
            expected = light[1][image] * shine
            seen += 1
        if (Shading(light, specular)(surface)[i] < 1).all():
            torch.testing.assert_close(gloss[i], expected)
    assert 5 < seen < 20


def test_the_highlight_is_where_a_mirror_would_show_the_light():
    # The camera looks along z at a plane, the light is behind the camera: brightest in the middle.
    x = torch.linspace(-0.2, 0.2, 41)
    position = torch.stack([x, torch.zeros(41), torch.full((41,), 0.5)], dim=-1)
    maps = {
        "normal": torch.tensor([0.0, 0.0, -1.0]).expand(41, 3),
        "side": torch.ones(41, 1),
        "position": position,
        "colour": torch.zeros(41, 3),
    }
    light = PointLight(torch.zeros(1, 3), torch.ones(1, 3), torch.tensor([[0.2, 0.0, 0.0]]))
    shader = Shading(light, Specular(torch.ones(1, 1), torch.full((1, 1), 200.0)))
    image = shader(Surface(maps, torch.zeros(41, dtype=torch.long)))
    # Equal angles: half way between the camera's foot (0) and the light's (0.2).
    assert x[image[:, 0].argmax()] == pytest.approx(0.1, abs=0.011)
    assert image.max() > 0.99


def test_light_from_all_around_has_no_highlight():
    specular = Specular(torch.ones(3, 1), torch.ones(3, 1))
    with pytest.raises(ValueError, match="no highlight"):
        Shading(lights()["harmonics"], specular)


@pytest.mark.parametrize("kind", lights())
@pytest.mark.parametrize("glossy", [False, True])
def test_shading_has_the_gradient_of_finite_differences(kind, glossy):
    if glossy and kind == "harmonics":
        return
    surface, light = points(), lights()[kind]
    specular = (torch.full((3, 1), 0.3).double(), torch.full((3, 1), 3.0).double())
    names = ("normal", "position", "colour")
    inputs = [surface[name] for name in names] + list(light) + list(specular)
    inputs = [x.clone().requires_grad_() for x in inputs]

    def shade(*values):
        maps = dict(zip(names, values, strict=False)) | {"side": surface["side"]}
        bulb = type(light)(*values[3 : 3 + len(light)])
        shader = Shading(bulb, Specular(*values[-2:]) if glossy else None)
        return shader(Surface(maps, surface.image_index))

    assert torch.autograd.gradcheck(shade, inputs)


def test_a_highlight_has_finite_gradients_where_there_is_none():
    maps = {
        "normal": torch.tensor([[0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]),
        "side": torch.ones(3, 1),
        "position": torch.tensor([[0.0, 0.0, 1.0]]).repeat(3, 1),
        "colour": torch.zeros(3, 3),
    }
    maps = {name: values.requires_grad_() for name, values in maps.items()}
    light = Light(torch.zeros(1, 3), torch.ones(1, 3), torch.tensor([[1.0, 0.0, 0.0]]))
    specular = Specular(torch.ones(1, 1), torch.full((1, 1), 0.5).requires_grad_())
    Shading(light, specular)(Surface(maps, torch.zeros(3, dtype=torch.long))).sum().backward()
    assert maps["normal"].grad.isfinite().all()
    assert specular.shininess.grad.isfinite().all()


def test_harmonics_are_scipys():
    direction = normalize(rand(50, 3) - 0.5, dim=-1)
    x, y, z = direction.T.numpy()
    polar, azimuth = np.arccos(z), np.arctan2(y, x)
    expected = []
    for degree in range(3):
        for order in range(-degree, degree + 1):
            value = sph_harm_y(degree, abs(order), polar, azimuth) * (-1) ** order
            part = {-1: value.imag * math.sqrt(2), 0: value.real, 1: value.real * math.sqrt(2)}
            expected.append(part[int(np.sign(order))])
    np.testing.assert_allclose(spherical_harmonics(direction), np.stack(expected, -1), atol=1e-12)


def test_harmonics_light_like_the_sky_that_they_describe():
    """Integrate radiance times cosine over the hemisphere of a normal."""
    z, turn = torch.meshgrid(
        (torch.arange(400).double() + 0.5) / 200 - 1,
        (torch.arange(400).double() + 0.5) / 200 * math.pi,
        indexing="ij",
    )
    ring = (1 - z * z).sqrt()
    sky = torch.stack([ring * turn.cos(), ring * turn.sin(), z], dim=-1).view(-1, 3)
    coefficients = rand(1, 9, 3) - 0.2
    radiance = spherical_harmonics(sky) @ coefficients[0]
    normal = normalize(rand(6, 3, seed=1) - 0.5, dim=-1)
    cosine = (normal @ sky.T).relu()
    expected = cosine @ radiance * (4 * math.pi / len(sky)) / math.pi
    actual = Harmonics(coefficients).gain(
        Surface({"normal": normal}, torch.zeros(6).long()), normal
    )
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


def test_even_light_shows_the_albedo():
    coefficients = torch.zeros(3, 9, 3)
    coefficients[:, 0] = math.sqrt(4 * math.pi)
    surface = points()
    torch.testing.assert_close(Shading(Harmonics(coefficients))(surface), surface["colour"])


def test_srgb_is_the_standards_curve():
    assert srgb_to_linear(torch.tensor(0.5)).item() == pytest.approx(0.2140411, abs=1e-6)
    assert linear_to_srgb(torch.tensor(0.18)).item() == pytest.approx(0.4613561, abs=1e-6)
    assert srgb_to_linear(torch.tensor(0.02)).item() == pytest.approx(0.02 / 12.92)
    values = torch.linspace(0, 1, 1001).double()
    torch.testing.assert_close(linear_to_srgb(srgb_to_linear(values)), values, rtol=0, atol=1e-7)


@pytest.mark.parametrize("curve", [srgb_to_linear, linear_to_srgb])
def test_srgb_has_a_gradient_at_black(curve):
    values = torch.tensor([0.0, 1e-4, 0.3, 1.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(curve, values)
    (gradient,) = torch.autograd.grad(curve(values).sum(), values)
    assert gradient.isfinite().all()
    assert gradient.min() > 0
