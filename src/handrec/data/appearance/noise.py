"""Smooth random functions of space: one table of numbers for every skin, machine and device."""

from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from handrec.geometry.rotations import random_rotations

#: Cells of the table along each axis, and how many of them make one wave.
_CELLS, _WAVE = 40, 4.4
_CHANNELS = 4


@cache
def _table(device: torch.device) -> Float[Tensor, "1 4 41 41 41"]:
    """Return periodic noise of one wavelength, mean 0 and variance 1; its last cells repeat."""
    generator = torch.Generator().manual_seed(20)
    white = torch.randn(_CHANNELS, _CELLS, _CELLS, _CELLS, generator=generator)
    lines = torch.fft.fftfreq(_CELLS)
    frequency = torch.stack(torch.meshgrid(lines, lines, lines, indexing="ij")).norm(dim=0)
    band = torch.exp(-(((frequency * _WAVE - 1) / 0.4) ** 2) / 2)
    waves = torch.fft.ifftn(torch.fft.fftn(white, dim=(1, 2, 3)) * band, dim=(1, 2, 3)).real
    waves = (waves - waves.mean((1, 2, 3), True)) / waves.std((1, 2, 3), keepdim=True)
    return F.pad(waves[None], (0, 1) * 3, mode="circular").to(device)


@cache
def _turn(octave: int) -> Float[Tensor, "3 3"]:
    """Return the rotation of an octave: repetitions of octaves do not line up."""
    return random_rotations(1, generator=torch.Generator().manual_seed(octave))[0]


def noise(
    points: Float[Tensor, "n 3"],
    offset: Float[Tensor, "b 3"],
    wavelength: float,
    *,
    channels: int = _CHANNELS,
    octave: int = 0,
) -> Float[Tensor, "b c n"]:
    """Return independent noise in up to four channels, mean 0 and standard deviation 0.8.

    Args:
        points: metres.
        offset: which part of the table a skin sees, in table lengths.
        wavelength: metres.
        channels: how many.
        octave: fields of other octaves are turned against this one's.
    """
    period = wavelength * _CELLS / _WAVE
    turned = points @ (_turn(octave).to(points) / period)
    grid = (turned + offset[:, None]).frac()
    grid = 2 * torch.where(grid < 0, grid + 1, grid) - 1
    table = _table(points.device)[:, :channels]
    values = F.grid_sample(table, grid[None, None], align_corners=True)
    return values[0, :, 0].transpose(0, 1)
