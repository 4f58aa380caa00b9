"""Pictures of reconstructed hands: their own texture and background, or others, in any light."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from handrec.data.appearance.base import Look, Picture, Stage
from handrec.data.appearance.compose import Ingredients
from handrec.data.appearance.everyday import Everyday, Lights, exposure
from handrec.data.appearance.lens import normal_noise
from handrec.data.appearance.skin_bank import shift_tone, toned
from handrec.data.scenes import Uniform
from handrec.errors import fraction
from handrec.render.atlas import bake_atlas
from handrec.render.colour import srgb_to_lab

#: Prefix of the columns of a look that come from a reconstruction.
_OWN = "own."

#: The median size of a standard normal number.
_MEDIAN_OF_NORMAL = 0.6745

#: Added to colours' variances: a level of 255, squared.
_LEAST_VARIANCE = 1.5e-5


class Own(NamedTuple):
    """What is known of a hand and its picture.

    Attributes:
        texture: of the hand, RGB in [0, 1] in its model's atlas.
        background: the picture without the hand.
        lends: 1 where other hands of the batch may be drawn in these; if nowhere, all lend.
    """

    texture: Float[Tensor, "b 3 t t"]
    background: Float[Tensor, "b 3 h w"]
    lends: Float[Tensor, " b"]


@dataclass(frozen=True)
class Shares:
    """What of a hand is kept when it is drawn anew.

    Attributes:
        texture: share of the hands drawn in their own texture; others get a skin of the appearance.
        tone: share of those whose texture keeps its tone, too: a glove's, or what coloured light
            made of skin; others are shifted to the tone of a skin of the appearance.
        swap: share of all hands that take texture and picture from another of the batch that
            lends: labelled hands from unlabelled pictures, so that they are seen in their looks.
        background: share drawn before their picture, without the hand that was in it; others get a
            background of the appearance.
    """

    texture: float = 0.5
    tone: float = 0.5
    swap: float = 0.5
    background: float = 0.5

    def __post_init__(self) -> None:
        fraction(self, texture=self.texture, tone=self.tone, swap=self.swap)
        fraction(self, background=self.background)


class Redrawn(Everyday):
    """Everyday pictures of given hands, some in their own textures and before their own pictures.

    Skin tones, things, sleeves, cameras and, unless relit, lights are those of ``Everyday``: what
    is drawn looks like the labelled pictures. A texture keeps its tone or gets that of the skin it
    stands for.

    Args:
        relit: share of the drawings in coloured light from any side.
        options: of :class:`~handrec.data.appearance.everyday.Everyday`.
    """

    def __init__(self, relit: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        fraction(self, relit=relit)
        self.relit = relit

    def sample_lights(self, count: int, draw: Uniform) -> Lights:
        """Return everyday lights, some of them relit.

        Of these the key light is 0.3 to 6 times the rest, comes from anywhere, and both have
        colours of their own. The ranges are our choice, wider than everyday ones.
        """
        given = super().sample_lights(count, draw)
        if not self.relit:
            return given
        contrast = 0.3 * (6.0 / 0.3) ** draw(0.0, 1.0, count, 1)
        level = 1.25 / (1 + contrast) * torch.exp(0.3 * draw.normal(count, 1).clamp(-2, 2))
        key, rest = (_hues(draw, count, spread) for spread in (0.5, 0.25))
        from_above = given.sky / (given.ambient + given.sky)
        relit = given._replace(
            ambient=level * rest * (1 - from_above),
            sky=level * rest * from_above,
            key_colour=level * contrast * key,
            key_direction=F.normalize(draw.normal(count, 3), dim=1),
        )
        chosen = draw(0.0, 1.0, count) < self.relit
        return Lights(
            *(
                torch.where(chosen.view(-1, *[1] * (new.ndim - 1)), new, old)
                for new, old in zip(relit, given, strict=True)
            )
        )

    def dress(self, own: Own, shares: Shares, generator: torch.Generator) -> Look:
        """Return looks of given hands, on their device.

        Args:
            own: of each hand.
            shares: what of it is kept.
            generator: source of all randomness, on the CPU.
        """
        count, device = len(own.texture), own.texture.device
        draw = Uniform(generator)
        swapped = (draw(0.0, 1.0, count) < shares.swap).to(device)
        lots = draw(0.0, 1.0, count, count).to(device)
        lender = (lots + own.lends).argmax(1)  # a lot is below 1: of those that lend, if any
        whose = torch.where(swapped, lender, torch.arange(count, device=device))
        kept = torch.tensor([[shares.texture], [shares.background], [shares.tone]])
        keeps = draw(0.0, 1.0, 3, count) < kept
        look = {name: column.to(device) for name, column in self.sample(count, generator).items()}
        kept_texture, kept_background, kept_tone = keeps.float().to(device)
        return look | {
            f"{_OWN}texture": own.texture.detach()[whose],
            f"{_OWN}background": own.background.detach()[whose],
            f"{_OWN}keeps_texture": kept_texture,
            f"{_OWN}keeps_background": kept_background,
            f"{_OWN}keeps_tone": kept_tone,
        }

    def gather(self, stage: Stage, look: Look, size: int) -> Ingredients:
        """Return what the stage is drawn with; cameras expose for the hand that is seen."""
        given = super().gather(stage, look, size)
        painted = toned(given.texture, given.tone)
        texels = painted.shape[-1]
        inside = bake_atlas(stage.hand, texels).inside
        mean = (painted * inside).sum((2, 3)) / inside.sum()
        texture = F.interpolate(look[f"{_OWN}texture"], (texels, texels), mode="bilinear")
        shifted = shift_tone(texture, inside, _lab(mean))
        texture = _choose(look[f"{_OWN}keeps_tone"], texture, shifted)
        texture = _choose(look[f"{_OWN}keeps_texture"], texture, painted)
        shown = (texture * inside).sum((2, 3)) / inside.sum()
        gain = exposure(_lightness(shown)) / exposure(_lightness(mean))
        lights = Lights(**{name: getattr(given, name) for name in Lights._fields}).scaled(gain)
        return given._replace(
            **lights._asdict(),
            texture=(255 * texture).round().byte(),
            tone=torch.ones_like(given.tone),
            background=_choose(
                look[f"{_OWN}keeps_background"], look[f"{_OWN}background"], given.background
            ),
        )


def _hues(draw: Uniform, count: int, spread: float) -> Float[Tensor, "n 3"]:
    """Return colours whose logarithms vary by so much about grey, without making light brighter."""
    varied = spread * draw.normal(count, 3).clamp(-2, 2)
    return torch.exp(varied - varied.mean(1, keepdim=True))


def _lab(colour: Float[Tensor, "b 3"]) -> Float[Tensor, "b 3"]:
    return srgb_to_lab(colour[..., None])[..., 0]


def _lightness(colour: Float[Tensor, "b 3"]) -> Float[Tensor, " b"]:
    return _lab(colour)[:, 0]


def _choose(share: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return torch.where(share[:, None, None, None] > 0, first, second)


def redraw(
    appearance: Redrawn, stage: Stage, own: Own, shares: Shares, generator: torch.Generator
) -> Picture:
    """Return pictures of posed hands as a camera takes them, without gradient."""
    return appearance.draw(stage, appearance.dress(own, shares, generator))


@torch.no_grad()
def recolour(
    images: Float[Tensor, "b 3 h w"],
    others: Float[Tensor, "n 3 h w"],
    share: float,
    generator: torch.Generator,
) -> Float[Tensor, "b 3 h w"]:
    """Return pictures of which some have the colours of random others, to a random degree.

    Args:
        images: RGB in [0, 1].
        others: of the domain to look like; without any nothing changes.
        share: of the pictures that change.
        generator: source of all randomness, on the CPU.
    """
    if not (share and len(others)):
        return images
    draw, count = Uniform(generator), len(images)
    degree = draw(0.0, 1.0, count) * (draw(0.0, 1.0, count) < share)
    like = others[torch.randint(len(others), (count,), generator=generator).to(others.device)]
    changed = transfer_colours(images, like).clamp(0, 1)
    return torch.lerp(images, changed, degree.to(images)[:, None, None, None])


def transfer_colours(
    image: Float[Tensor, "b 3 h w"], like: Float[Tensor, "b 3 h w"]
) -> Float[Tensor, "b 3 h w"]:
    """Return images with the mean and the covariance of other images' colours.

    The linear map that moves colours least (Monge-Kantorovich; F. Pitie and A. Kokaram, CVMP 2007):
    ``T = L^-T (L^T B L)^1/2 L^-1`` for covariances ``A = L L^T`` and ``B``.

    Args:
        image: RGB.
        like: RGB; the result may leave [0, 1].
    """
    with torch.autocast(image.device.type, enabled=False):
        pixels = image.float().flatten(2)
        mean, covariance = _colour_statistics(pixels)
        wanted_mean, wanted = _colour_statistics(like.float().flatten(2))
        root = torch.linalg.cholesky_ex(covariance).L
        inverse = torch.linalg.inv_ex(root).inverse
        change = inverse.mT @ _square_root(root.mT @ wanted @ root) @ inverse
        changed: Tensor = change @ (pixels - mean) + wanted_mean
    return changed.view_as(image)


@torch.no_grad()
def add_grain(
    images: Float[Tensor, "b 3 h w"],
    others: Float[Tensor, "n 3 h w"],
    share: float,
    generator: torch.Generator,
) -> Float[Tensor, "b 3 h w"]:
    """Return pictures of which some are as noisy as random others, where these are noisier.

    Args: as of :func:`recolour`.
    """
    if not (share and len(others)):
        return images
    draw, count = Uniform(generator), len(images)
    chosen = (draw(0.0, 1.0, count) < share).to(images)[:, None, None, None]
    like = others[torch.randint(len(others), (count,), generator=generator).to(others.device)]
    missing = noise_level(like).square() - noise_level(images).square()
    deviation = chosen * missing.clamp(min=0).sqrt()[..., None, None]
    channels, height, width = images.shape[1:]
    noise = normal_noise(draw.seeds(count).to(images.device), (channels, height, width))
    return (images + deviation * noise).clamp(0, 1)


def noise_level(image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c"]:
    """Return the standard deviation of each channel's noise.

    The median size of the finest diagonal Haar coefficients, where pictures themselves show little
    (D. Donoho and I. Johnstone, Biometrika 1994).

    Args:
        image: any values; a last odd row or column is left out.
    """
    height, width = (side - side % 2 for side in image.shape[-2:])
    difference = image.float()[..., :height, :width].unflatten(-2, (-1, 2)).diff(dim=-2)
    diagonal = difference.unflatten(-1, (-1, 2)).diff(dim=-1) / 2
    level: Tensor = diagonal.flatten(2).abs().median(dim=2).values / _MEDIAN_OF_NORMAL
    return level


def _colour_statistics(pixels: Float[Tensor, "b 3 n"]) -> tuple[Tensor, Tensor]:
    """Return mean and covariance; of a grey picture, too, the latter can be inverted."""
    mean = pixels.mean(2, keepdim=True)
    apart = pixels - mean
    least = _LEAST_VARIANCE * torch.eye(3, device=pixels.device)
    return mean, apart @ apart.mT / pixels.shape[2] + least


def _square_root(matrix: Float[Tensor, "b 3 3"]) -> Float[Tensor, "b 3 3"]:
    """Return the root of symmetric, positive definite matrices."""
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = (vectors * values.clamp(min=0)[:, None].sqrt()) @ vectors.mT
    return root


@torch.no_grad()
def without_hand(
    image: Float[Tensor, "b 3 h w"], mask: Float[Tensor, "b 1 h w"], reach: float = 0.04
) -> Float[Tensor, "b 3 h w"]:
    """Return pictures whose hands are painted over with what surrounds them.

    Args:
        image: RGB in [0, 1].
        mask: 1 on the hand.
        reach: how far the mask is grown, share of the picture's side.
    """
    grow = max(1, round(reach * image.shape[-1]))
    grown = F.max_pool2d(mask, 2 * grow + 1, stride=1, padding=grow)
    return push_pull(image, 1 - grown)


def push_pull(
    image: Float[Tensor, "b c h w"], known: Float[Tensor, "b 1 h w"]
) -> Float[Tensor, "b c h w"]:
    """Return the image where it is known, and smoothly filled where it is not.

    Weighted means of 2 x 2 pixels on ever coarser levels, then filled in from coarse to fine
    (S. Gortler et al., "The Lumigraph", SIGGRAPH 1996, §3.4.2).

    Args:
        image: any values where nothing is known.
        known: weight in [0, 1] of each pixel; without any, the result is 0.
    """
    return _push_pull(torch.cat([image * known, known], dim=1))[:, :-1]


def _push_pull(weighted: Tensor) -> Tensor:
    """Return filled values from premultiplied ones, whose last channel is their weight."""
    weight = weighted[:, -1:]
    if max(weighted.shape[-2:]) == 1:
        return weighted / weight.clamp(min=1e-6)
    coarse = F.avg_pool2d(weighted, 2, ceil_mode=True)
    # A coarse pixel knows all once one of its four does.
    coarse = coarse * (4 * coarse[:, -1:]).clamp(max=1) / coarse[:, -1:].clamp(min=1e-6)
    filled = F.interpolate(
        _push_pull(coarse), weighted.shape[-2:], mode="bilinear", align_corners=False
    )
    return weighted + (1 - weight) * filled
