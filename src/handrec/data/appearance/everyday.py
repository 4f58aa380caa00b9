"""Everyday pictures: skin, sleeves, things in hand, rooms and streets, taken by a telephone.

The default domain. Ranges are our choice, made by looking, and stated where they are drawn.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from handrec.data.appearance.backgrounds import Backgrounds, ProceduralScenes
from handrec.data.appearance.base import Appearance, Look, Picture, Stage
from handrec.data.appearance.compose import Ingredients, compose
from handrec.data.appearance.lens import DEFAULT_LENS, Lens, LensOptions, expose, sample_lens
from handrec.data.appearance.props import DEFAULT_PROPS, PropOptions, Props, sample_props
from handrec.data.appearance.recovered import RecoveredSkins
from handrec.data.appearance.skin_bank import SkinBank, skin_bank
from handrec.data.appearance.threads import draw_in_threads
from handrec.data.scenes import Uniform

_Table = TypeVar("_Table", bound=tuple[Any, ...])

#: Texels per pixel of the picture's side: a hand fills most of a crop, and its atlas has two sides.
_TEXELS_PER_PIXEL = 2
_LARGEST_TEXTURE = 512


class Lights(NamedTuple):
    """A table of lights, linear RGB; row i is that of look i. See ``compose.Ingredients``.

    Attributes:
        ambient: light from everywhere.
        sky: additional light from above.
        harmonics: further light from all around, see ``render.lights.Harmonics``.
        key_colour: of the light that casts shadows.
        key_direction: towards it, camera frame.
        specular: strength of its reflections on skin.
        shininess: exponent of its reflections.
        shadow: share of the key light that a shadow takes.
        wall: distance of the plane behind the hand, metres.
    """

    ambient: Float[Tensor, "b 3"]
    sky: Float[Tensor, "b 3"]
    harmonics: Float[Tensor, "b 9 3"]
    key_colour: Float[Tensor, "b 3"]
    key_direction: Float[Tensor, "b 3"]
    specular: Float[Tensor, "b 1"]
    shininess: Float[Tensor, "b 1"]
    shadow: Float[Tensor, "b 1"]
    wall: Float[Tensor, "b 1"]

    def scaled(self, gain: Float[Tensor, " b"]) -> "Lights":
        """Return the lights, so many times as bright."""
        gain = gain[:, None]
        return self._replace(
            ambient=self.ambient * gain,
            sky=self.sky * gain,
            harmonics=self.harmonics * gain[..., None],
            key_colour=self.key_colour * gain,
        )


class Everyday(Appearance):
    """People's hands in daily life.

    Columns of a look: ``skin`` (a share of the bank), ``tint`` (shift of L*, a*, b*), and the
    tables of lights, props, backgrounds and cameras, each under its prefix. Another hand in the
    picture is the same person's.

    Args:
        skins: how many identities are painted, or some recovered from photos too; each look shifts
            the tone of one.
        props: shares of forearms, sleeves, things and other hands.
        backgrounds: what is behind the hand; None for drawn scenes.
        lens: strengths of what a camera does.
        seed: of the identities.
    """

    name = "everyday"
    version = 2

    def __init__(
        self,
        skins: int | RecoveredSkins = 96,
        props: PropOptions = DEFAULT_PROPS,
        backgrounds: Backgrounds | None = None,
        lens: LensOptions = DEFAULT_LENS,
        seed: int = 0,
    ) -> None:
        self.skins = skins
        self.props = props
        self.backgrounds = backgrounds or ProceduralScenes()
        self.lens = lens
        self.seed = seed

    def sample(self, count: int, generator: torch.Generator) -> Look:
        """Return ``count`` independent looks."""
        draw = Uniform(generator)
        return {
            "skin": draw(0.0, 1.0, count),
            "tint": draw.normal(count, 3).clamp(-2, 2) * torch.tensor([4.0, 1.2, 1.8]),
            **_prefixed("light", self.sample_lights(count, draw)._asdict()),
            **_prefixed("props", sample_props(count, generator, self.props)._asdict()),
            **_prefixed("back", self.backgrounds.sample(count, generator)),
            **_prefixed("lens", sample_lens(count, generator, self.lens)._asdict()),
        }

    def sample_lights(self, count: int, draw: Uniform) -> Lights:
        """Return lights from a dim room to the sun: a key light of 0.3 to 2.5 times the rest."""
        contrast = 0.3 * (2.5 / 0.3) ** draw(0.0, 1.0, count, 1)
        warmth = 0.22 * draw.normal(count, 1).clamp(-2, 2)
        key = torch.exp(warmth * torch.tensor([1.0, 0.1, -1.0]))
        # The rest is the more of the opposite colour the stronger the key light is.
        fill = torch.exp(-0.4 * warmth * torch.tensor([1.0, 0.0, -1.0]))
        level = 1.25 / (1 + contrast) * torch.exp(0.15 * draw.normal(count, 1))
        from_above = draw(0.0, 0.8, count, 1)
        x, y, z = F.normalize(draw.normal(count, 3), dim=1).unbind(1)
        # From before the hand (-z), and from above (-y) more often than from below.
        y = torch.where(draw(0.0, 1.0, count) < 0.8, -y.abs(), y)
        direction = torch.stack([x, y, -z.abs() - 0.15], dim=1)
        return Lights(
            ambient=level * fill * (1 - 0.5 * from_above),
            sky=level * fill * from_above,
            harmonics=torch.zeros(count, 9, 3),
            key_colour=level * contrast * key,
            key_direction=direction,
            specular=0.25 * draw(0.0, 1.0, count, 1) ** 2,
            shininess=torch.exp(draw(math.log(8), math.log(60), count, 1)),
            shadow=draw(0.3, 1.0, count, 1),
            wall=draw(0.02, 0.6, count, 1),
        )

    def draw(self, stage: Stage, look: Look) -> Picture:
        """Return the pictures of a stage; cameras blur, add noise and compress."""
        size = stage.camera.image_size[0]
        self.backgrounds.bank(size, stage.pose.device)
        self.bank(stage, size)
        return draw_in_threads(self._draw, stage, look)

    def bank(self, stage: Stage, size: int) -> SkinBank:
        """Return the identities painted for pictures of a size, painted on the first call."""
        texels = min(_LARGEST_TEXTURE, max(64, _TEXELS_PER_PIXEL * size))
        return skin_bank(stage.hand, texels, self.skins, self.seed)

    @torch.no_grad()
    def _draw(self, stage: Stage, look: Look) -> Picture:
        size = stage.camera.image_size[0]
        drawn = compose(stage, self.gather(stage, look, size))
        lens = _rows(Lens, look, "lens")
        image = expose(drawn.image, lens, stage.noise_seed, drawn.foreground)
        return Picture(image, drawn.mask, drawn.depth, drawn.uv, drawn.visibility)

    def gather(self, stage: Stage, look: Look, size: int) -> Ingredients:
        """Return what the stage is drawn with."""
        bank = self.bank(stage, size)
        own = self._identities(look["skin"], len(bank.tone))
        gain = exposure(bank.tone[own, 0] + look["tint"][:, 0])
        lights = _rows(Lights, look, "light")
        texture, tone = bank.pick(own, look["tint"])
        return Ingredients(
            texture=texture,
            tone=tone,
            props=_rows(Props, look, "props"),
            background=self.backgrounds.draw(_part(look, "back"), size),
            **lights.scaled(gain)._asdict(),
        )

    def _identities(self, chosen: Float[Tensor, " b"], count: int) -> Int[Tensor, " b"]:
        """Return who is drawn, of so many identities: painted ones, then recovered ones."""
        if isinstance(self.skins, int):
            return (chosen * self.skins).long()
        share, painted = self.skins.share, self.skins.painted
        photos = painted + (chosen / max(share, 1e-6) * (count - painted)).long()
        others = ((chosen - share) / max(1 - share, 1e-6) * painted).long()
        return torch.where(chosen < share, photos, others.clamp(0, painted - 1))


def exposure(lightness: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Return the gain of a camera that exposes for what it looks at, in part.

    Dark skin is not drawn black, nor light skin white.

    Args:
        lightness: L* of the skin.
    """
    luminance = ((lightness.clamp(min=10) + 16) / 116) ** 3
    return (0.22 / luminance) ** 0.45


def _prefixed(prefix: str, columns: Mapping[str, Tensor]) -> Look:
    return {f"{prefix}.{name}": column for name, column in columns.items()}


def _part(look: Look, prefix: str) -> Look:
    start = f"{prefix}."
    return {name.removeprefix(start): x for name, x in look.items() if name.startswith(start)}


def _rows(table: Callable[..., _Table], look: Look, prefix: str) -> _Table:
    return table(**_part(look, prefix))
