"""Texture and light of a hand from features: a variational offset to a base texture."""

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from handrec.data.appearance.recovered import read_texture
from handrec.data.appearance.skin_bank import mean_skin
from handrec.errors import UserError, positive
from handrec.hand.base import HandModel
from handrec.models.compiling import Compilable
from handrec.render.lights import PointLight, linear_to_srgb, srgb_to_linear

#: Greatest change of the base texture.
REACH = 0.3

#: Along each side: in fewer texels a painted skin has no nails.
LEAST_TEXELS = 32

#: Texels along each side of what the decoder makes of a latent, at first and at last.
_FIRST, _LAST = 4, 64

#: Metres from the hand to its light, and the brightness of that light and of all around at first.
_LIGHT_DISTANCE = 1.5
_AMBIENT, _DIFFUSE = 0.6, 0.5


class Looks(NamedTuple):
    """What a hand looks like.

    Attributes:
        texture: RGB in [0, 1] in the hand model's atlas.
        offset: of the base texture, -1 to 1.
        mean: of the latent.
        log_variance: of the latent.
        ambient: light from everywhere, gains of linear RGB.
        diffuse: light from one side.
        direction: towards it, camera frame, unit length.
    """

    texture: Float[Tensor, "b 3 t t"]
    offset: Float[Tensor, "b 3 s s"]
    mean: Float[Tensor, "b z"]
    log_variance: Float[Tensor, "b z"]
    ambient: Float[Tensor, "b 3"]
    diffuse: Float[Tensor, "b 3"]
    direction: Float[Tensor, "b 3"]

    def lit(self) -> Float[Tensor, "b 3 t t"]:
        """Return the textures in the colour and brightness that the light gives them.

        What tells hands apart is mostly there: a glove in white light looks like skin in blue
        light, and the light is the simpler way to say so.
        """
        gain = (self.ambient + self.diffuse / 2)[..., None, None]  # of a surface seen at 60 degrees
        return linear_to_srgb((srgb_to_linear(self.texture) * gain).clamp(0, 1))

    def light(self, centre: Float[Tensor, "b 3"]) -> PointLight:
        """Return the light of hands at a place, metres."""
        return PointLight(self.ambient, self.diffuse, centre + _LIGHT_DISTANCE * self.direction)


class TextureVAE(Compilable):
    """``T' = clamp(T + 0.3 tanh(T_off), 0, 1)``, ``T_off`` decoded from ``z ~ N(mu, sigma)``.

    The base T is the mean of some painted skins, so nails, creases and palm lie where they belong,
    or a texture recovered from photos.
    In evaluation ``z = mu``. A small network also says where the light is.

    Args:
        channels: of the features.
        hand: whose atlas is painted.
        size: texels along each side.
        latent: length of z.
        width: of the hidden layers.
        base: PNG file of T, see `handrec data texture`; None for the mean of painted skins. It is
            not in the checkpoint: keep it.
    """

    base: Float[Tensor, "1 3 t t"]

    def __init__(
        self,
        channels: int,
        hand: HandModel,
        size: int = 128,
        latent: int = 64,
        width: int = 256,
        base: str | None = None,
    ) -> None:
        super().__init__()
        positive(self, size=size, latent=latent, width=width)
        if size < LEAST_TEXELS:
            raise UserError(f"TextureVAE: size is at least {LEAST_TEXELS} texels, not {size}")
        start = mean_skin(hand, size) if base is None else read_texture(Path(base), hand, size)
        self.register_buffer("base", start, persistent=False)
        self.encoder = nn.Sequential(nn.Linear(channels, width), nn.GELU())
        self.latent = nn.Linear(width, 2 * latent)
        maps = [64, 48, 32, 24, 16]
        self.first = nn.Linear(latent, maps[0] * _FIRST**2)
        layers: list[nn.Module] = []
        for before, after in pairwise(maps):
            layers += [nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), nn.GELU()]
        last = nn.Conv2d(maps[-1], 3, 3, padding=1)
        self.decoder = nn.Sequential(*layers, last)
        self.light = nn.Linear(width, 9)
        # At first every hand has the base texture in plain light from the camera.
        for layer in (last, self.light, self.latent):
            for parameter in layer.parameters():
                nn.init.normal_(parameter, std=1e-3)

    def networks(self) -> Iterable[nn.Module]:
        """Return the decoder."""
        return (self.decoder,)

    def forward(self, features: Float[Tensor, "b c"]) -> Looks:
        """Return the looks of the hands that the features show."""
        hidden = self.encoder(features)
        mean, log_variance = self.latent(hidden).float().chunk(2, dim=1)
        log_variance = log_variance.clamp(-10, 5)
        latent = mean
        if self.training:
            latent = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        start = self.first(latent).unflatten(1, (-1, _FIRST, _FIRST))
        offset = self.decoder(start).float().tanh()
        fitted = F.interpolate(offset, self.base.shape[-2:], mode="bilinear", align_corners=False)
        gains, direction = self.light(hidden).float().split((6, 3), dim=1)
        ambient, diffuse = gains.clamp(-3, 3).exp().split(3, dim=1)
        towards_camera = direction.new_tensor([0.0, 0.0, -1.0])
        return Looks(
            texture=(self.base + REACH * fitted).clamp(0, 1),
            offset=offset,
            mean=mean,
            log_variance=log_variance,
            ambient=_AMBIENT * ambient,
            diffuse=_DIFFUSE * diffuse,
            direction=F.normalize(direction + towards_camera, dim=1),
        )
