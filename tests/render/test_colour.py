"""Colour conversion against kornia's."""

import kornia
import torch

from handrec.render.colour import lab_to_srgb, srgb_to_lab


def colours():
    grid = torch.linspace(0, 1, 18)
    return torch.stack(torch.meshgrid(grid, grid, grid, indexing="ij")).reshape(1, 3, 18, -1)


def test_lab_is_that_of_kornia():
    expected = kornia.color.rgb_to_lab(colours())  # with fewer digits of the matrix
    torch.testing.assert_close(srgb_to_lab(colours()), expected, atol=0.01, rtol=0)


def test_known_colours():
    rgb = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])[..., None]
    lab = torch.tensor([[100.0, 0.0, 0.0], [0.0, 0.0, 0.0], [53.24, 80.09, 67.20]])[..., None]
    torch.testing.assert_close(srgb_to_lab(rgb), lab, atol=0.02, rtol=0)


def test_there_and_back():
    torch.testing.assert_close(lab_to_srgb(srgb_to_lab(colours())), colours(), atol=2e-5, rtol=0)


def test_out_of_gamut_colours_are_clipped():
    lab = torch.tensor([[150.0, 0.0, 0.0], [-10.0, 0.0, 0.0], [50.0, 120.0, -120.0]])[..., None]
    rgb = lab_to_srgb(lab)
    torch.testing.assert_close(rgb[0], torch.ones(3, 1))
    assert torch.equal(rgb[1], torch.zeros(3, 1))
    assert 0 <= rgb.min() <= rgb.max() <= 1


def test_arguments_are_left_alone():
    lab = torch.tensor([[40.0, 10.0, 20.0]])[..., None]
    before = lab.clone()
    srgb_to_lab(lab_to_srgb(lab))
    assert torch.equal(lab, before)
