"""Foreign pictures: a domain to be tested in; trained on without labels at most, of other seeds.

It differs from ``everyday`` in everything but the hands: other identities in stranger colours,
light from all around as spherical harmonics with a hard coloured key light, backgrounds that look
like no snapshot, worse cameras.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from handrec.data.appearance.backgrounds import Backgrounds, OtherScenes
from handrec.data.appearance.base import Look, Stage
from handrec.data.appearance.compose import Ingredients
from handrec.data.appearance.everyday import Everyday, Lights
from handrec.data.appearance.lens import OTHER_LENS, LensOptions
from handrec.data.appearance.props import DEFAULT_PROPS, PropOptions
from handrec.data.scenes import Uniform

#: Share of hands in gloves or in body paint: a colour that no skin has, with the skin's detail.
_PAINTED = 0.25


class Foreign(Everyday):
    """Hands where the training pictures show none.

    Columns of a look: those of ``Everyday``, and ``paint``: RGB of a glove or paint and how much of
    it covers the skin.

    Args:
        skins: how many identities are painted.
        props: shares of forearms, sleeves, things and other hands.
        backgrounds: what is behind the hand; None for drawn scenes of another kind.
        lens: strengths of what a camera does.
        seed: of the identities; another than that of the training pictures.
    """

    name = "foreign"
    version = 2

    def __init__(
        self,
        skins: int = 48,
        props: PropOptions = DEFAULT_PROPS,
        backgrounds: Backgrounds | None = None,
        lens: LensOptions = OTHER_LENS,
        seed: int = 1,
    ) -> None:
        super().__init__(skins, props, backgrounds or OtherScenes(seed=1), lens, seed)

    def sample(self, count: int, generator: torch.Generator) -> Look:
        """Return ``count`` independent looks."""
        look, draw = super().sample(count, generator), Uniform(generator)
        amount = draw(0.5, 0.95, count, 1) * (draw(0.0, 1.0, count, 1) < _PAINTED)
        look["paint"] = torch.cat([draw(0.05, 0.95, count, 3), amount], dim=1)
        look["tint"] = look["tint"] + draw.normal(count, 3) * torch.tensor([0.0, 5.0, 5.0])
        return look

    def sample_lights(self, count: int, draw: Uniform) -> Lights:
        """Return coloured light from all around and a hard key light from any side."""
        key = _colours(draw, count) * draw(0.2, 1.6, count, 1)
        around = draw.normal(count, 9, 3) * 0.25 + draw.normal(count, 9, 1) * 0.35
        around[:, 0] = math.sqrt(4 * math.pi) * draw(0.35, 0.9, count, 1) * _colours(draw, count)
        direction = F.normalize(draw.normal(count, 3), dim=1)
        direction[:, 2] = -direction[:, 2].abs() + 0.3
        nothing = torch.zeros(count, 3)
        return Lights(
            ambient=nothing + 0.05,
            sky=nothing,
            harmonics=around,
            key_colour=key,
            key_direction=direction,
            specular=0.5 * draw(0.0, 1.0, count, 1),
            shininess=torch.exp(draw(math.log(15), math.log(120), count, 1)),
            shadow=torch.ones(count, 1),
            wall=draw(0.01, 0.2, count, 1),
        )

    def gather(self, stage: Stage, look: Look, size: int) -> Ingredients:
        """Return what the stage is drawn with: detail of the skin, in its paint."""
        given = super().gather(stage, look, size)
        colour, amount = look["paint"].split([3, 1], dim=1)
        bank = self.bank(stage, size)
        mean = bank.colour[self._identities(look["skin"], len(bank.tone))]
        return given._replace(tone=torch.lerp(given.tone, colour / mean.clamp(min=0.05), amount))


def _colours(draw: Uniform, count: int) -> Tensor:
    """Return colours of light as stages have it, some as strong as through a filter."""
    strength = 0.35 * draw(0.0, 1.0, count, 1)
    colour = torch.exp(draw.normal(count, 3) * strength)
    return colour / colour.mean(1, keepdim=True)
