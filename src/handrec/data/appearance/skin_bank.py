"""Painted skins kept in memory, so that drawing a picture costs a look-up and a shift of tone."""

from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from handrec.data.appearance.recovered import RecoveredSkins
from handrec.data.appearance.skin import Skin, paint_lab, sample_skin
from handrec.hand.base import HandModel
from handrec.render.atlas import bake_atlas
from handrec.render.colour import lab_to_srgb, srgb_to_lab


class SkinBank:
    """Skins of one hand model, painted once, on the hand's device.

    Args:
        hand: whose atlas is painted.
        size: texels along each side.
        count: of identities.
        seed: of the identities.
        recovered: further ones, sRGB in [0, 1] at that size; they follow the painted ones.

    Attributes:
        skin: the table of painted identities.
        tone: mean L*, a*, b* over the atlas of each identity, palm and back together.
        colour: the same mean of its sRGB, in [0, 1].
    """

    skin: Skin
    tone: Float[Tensor, "n 3"]
    colour: Float[Tensor, "n 3"]

    @torch.no_grad()
    def __init__(
        self,
        hand: HandModel,
        size: int,
        count: int,
        seed: int,
        chunk: int = 4,
        recovered: Float[Tensor, "m 3 t t"] | None = None,
    ) -> None:
        device = hand.template.device
        self.skin = sample_skin(count, torch.Generator().manual_seed(seed)).to(device)
        atlas = bake_atlas(hand, size)
        inside = atlas.inside.flatten()[atlas.texels]
        painted, tones, colours = [], [], []
        for rows in torch.arange(count, device=device).split(chunk):
            lab = paint_lab(hand, self.skin.rows(rows), size)
            tones.append(lab[..., inside].mean(-1))
            skin = lab_to_srgb(lab)
            colours.append(skin[..., inside].mean(-1))
            painted.append((atlas.spread(skin) * 255).round().byte())
        if recovered is not None:
            painted.append((recovered * 255).round().byte())
            seen = recovered[..., atlas.inside[0]]
            colours.append(seen.mean(-1))
            tones.append(srgb_to_lab(recovered)[..., atlas.inside[0]].mean(-1))
        self._painted, self.tone, self.colour = map(torch.cat, (painted, tones, colours))

    @torch.no_grad()
    def pick(
        self, index: Int[Tensor, " b"], shift: Float[Tensor, "b 3"]
    ) -> tuple[UInt8[Tensor, "b 3 t t"], Float[Tensor, "b 3"]]:
        """Return the textures of identities, sRGB of 8 bits, and gains that shift their tone.

        Args:
            index: of identities.
            shift: of the mean tone, in L*, a*, b*; ``target - bank.tone[index]`` meets a target.
                The gain is what the mean colour changes by, which is far cheaper than shifting
                every texel. Keep it small: a shift of 10 in L* looks like another skin, one of 30
                like paint.
        """
        tone = self.tone[index]
        before, after = (lab_to_srgb(x[..., None])[..., 0] for x in (tone, tone + shift))
        return self._painted[index], after / before.clamp(min=0.02)

    @torch.no_grad()
    def textures(
        self, index: Int[Tensor, " b"], shift: Float[Tensor, "b 3"] | None = None
    ) -> Float[Tensor, "b 3 t t"]:
        """Return the textures of identities, sRGB in [0, 1]; see :meth:`pick`."""
        if shift is None:
            return self._painted[index].float().mul_(1 / 255)
        stored, gain = self.pick(index, shift)
        return toned(stored, gain)


def toned(
    texture: UInt8[Tensor, "b 3 t t"], gain: Float[Tensor, "b 3"]
) -> Float[Tensor, "b 3 t t"]:
    """Return textures, sRGB in [0, 1], so many times as bright in red, green and blue."""
    return texture.float().mul_(gain[..., None, None] / 255).clamp_(0, 1)


_BANKS: WeakKeyDictionary[HandModel, dict[tuple[object, ...], SkinBank]] = WeakKeyDictionary()


def skin_bank(hand: HandModel, size: int, skins: int | RecoveredSkins, seed: int) -> SkinBank:
    """Return the bank of a hand model, painted on the first call for its device."""
    banks = _BANKS.setdefault(hand, {})
    key = (size, skins, seed, hand.template.device)
    if key not in banks:
        with torch.inference_mode(mode=False):
            if isinstance(skins, int):
                banks[key] = SkinBank(hand, size, skins, seed)
            else:
                recovered = skins.read(hand, size)
                banks[key] = SkinBank(hand, size, skins.painted, seed, recovered=recovered)
    return banks[key]


#: Identities whose mean is the base of textures that are estimated.
_IN_MEAN = 8


def mean_skin(hand: HandModel, size: int) -> Float[Tensor, "1 3 t t"]:
    """Return the mean of some painted skins: nails, creases and palm lie where they belong."""
    bank = skin_bank(hand, size, _IN_MEAN, seed=0)
    index = torch.arange(_IN_MEAN, device=hand.template.device)
    return bank.textures(index).mean(0, keepdim=True)


@torch.no_grad()
def shift_tone(
    texture: Float[Tensor, "b 3 t t"],
    inside: Bool[Tensor, "1 t t"],
    target: Float[Tensor, "b 3"],
) -> Float[Tensor, "b 3 t t"]:
    """Return textures whose mean in L*, a*, b* is ``target``, clipping apart; all else stays.

    Args:
        texture: sRGB in [0, 1].
        inside: the texels of the mean, such as ``Atlas.inside``.
        target: L*, a*, b*.
    """
    lab = srgb_to_lab(texture)
    mean = (lab * inside).sum((2, 3)) / inside.sum()
    return lab_to_srgb(lab + (target - mean)[..., None, None])
