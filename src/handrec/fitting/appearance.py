"""Texture and light of one hand as parameters."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from handrec.render.shading import Light

#: Widths of the images that add up to a texture: the coarse ones carry colour to texels that the
#: photo does not show, the fine ones only what it does.
LEVELS = (1, 4, 16, 64, 128)

#: Standard deviation of a texel of each level.
LEVEL_SIGMA = (0.3, 0.1, 0.1, 0.1, 0.1)

#: Brightness at the start: of the ambient and of the directional light, and where that is.
AMBIENT, DIRECTIONAL, DIRECTION = 0.6, 0.5, (-0.3, -0.5, -0.8)

#: Largest channel of the texture's colour at the start.
BRIGHTEST = 0.75

#: Standard deviation of the logarithm of a light's brightness.
LIGHT_SIGMA = 0.3


class Appearance(nn.Module):
    """A texture as a sum of images of growing resolution, under white Lambert light.

    The light is white because its colour and the skin's cannot be told apart in one photo.

    Args:
        colour: RGB in [0, 1] of the hand as the photo shows it, the texture's start.
    """

    base: Float[Tensor, "1 3 1 1"]
    start: Float[Tensor, " 2"]

    def __init__(self, colour: Float[Tensor, " 3"]) -> None:
        super().__init__()
        lit = AMBIENT + DIRECTIONAL / 2
        # An overexposed photo gets a brighter light: no skin is white.
        exposure = (colour.max() / (BRIGHTEST * lit)).clamp(min=1)
        base = colour / (exposure * lit)
        self.register_buffer("base", base[None, :, None, None])
        self.levels = nn.ParameterList(base.new_zeros(1, 3, width, width) for width in LEVELS)
        start = torch.tensor([AMBIENT, DIRECTIONAL]).to(base) * exposure
        self.register_buffer("start", start)
        self.brightness = nn.Parameter(base.new_zeros(2))
        self.direction = nn.Parameter(base.new_tensor([DIRECTION]))

    def texture(self) -> Float[Tensor, "1 3 t t"]:
        """Return the texture, in [0, 1]."""
        size = self.levels[-1].shape[-2:]
        fine = [
            F.interpolate(level, size, mode="bilinear", align_corners=False)
            for level in self.levels
        ]
        return (self.base + torch.stack(fine).sum(0)).clamp(0, 1)

    def light(self) -> Light:
        """Return the light."""
        ambient, directional = (self.start * self.brightness.exp())[:, None, None].expand(2, 1, 3)
        return Light(ambient, directional, F.normalize(self.direction, dim=-1))

    def energy(self) -> Float[Tensor, ""]:
        """Return the negative logarithm, up to a constant, of how probable this is beforehand.

        A texel of a coarse level stands for many pixels, so that a mean over texels is taken.
        """
        texels = [
            (level / sigma).square().mean()
            for level, sigma in zip(self.levels, LEVEL_SIGMA, strict=True)
        ]
        return torch.stack(texels).sum() + (self.brightness / LIGHT_SIGMA).square().sum() / 2
