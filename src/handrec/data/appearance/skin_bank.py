"""Painted skins kept in memory, so that drawing a picture costs a look-up and a shift of tone."""

from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from handrec.data.appearance.skin import Skin, paint_lab, sample_skin
from handrec.hand.base import HandModel
from handrec.render.atlas import bake_atlas
from handrec.render.colour import lab_to_srgb, srgb_to_lab

#: A byte holds 0 to 102 in L* and -70 to 84 in a* and b*: steps of 0.4 and 0.6.
_STEP, _LOWEST = (0.4, 0.6, 0.6), (0.0, -70.0, -70.0)


class SkinBank:
    """Skins of one hand model, painted once, on the hand's device.

    Args:
        hand: whose atlas is painted.
        size: texels along each side.
        count: of identities.
        seed: of the identities.

    Attributes:
        skin: the table of identities.
        tone: mean L*, a*, b* over the atlas of each identity, palm and back together.
    """

    skin: Skin
    tone: Float[Tensor, "n 3"]

    @torch.no_grad()
    def __init__(self, hand: HandModel, size: int, count: int, seed: int, chunk: int = 4) -> None:
        device = hand.template.device
        self.skin = sample_skin(count, torch.Generator().manual_seed(seed)).to(device)
        self._atlas = bake_atlas(hand, size)
        self._step, self._lowest = (
            torch.tensor(row, device=device)[:, None] for row in (_STEP, _LOWEST)
        )
        inside = self._atlas.inside.flatten()[self._atlas.texels]
        painted, tones = [], []
        for rows in torch.arange(count, device=device).split(chunk):
            lab = paint_lab(hand, self.skin.rows(rows), size)
            tones.append(lab[..., inside].mean(-1))
            painted.append(((lab - self._lowest) / self._step).round().clamp(0, 255).byte())
        self._painted, self.tone = torch.cat(painted), torch.cat(tones)

    @torch.no_grad()
    def textures(
        self, index: Int[Tensor, " b"], shift: Float[Tensor, "b 3"] | None = None
    ) -> Float[Tensor, "b 3 t t"]:
        """Return the textures of identities, sRGB in [0, 1].

        Args:
            index: of identities.
            shift: added to L*, a*, b* all over; ``target - bank.tone[index]`` meets a target. Keep
                it small: a shift of 10 in L* looks like another skin, one of 30 like paint.
        """
        lab = self._painted[index] * self._step + self._lowest
        if shift is not None:
            lab += shift[..., None]
        return self._atlas.spread(lab_to_srgb(lab))


_BANKS: WeakKeyDictionary[HandModel, dict[tuple[object, ...], SkinBank]] = WeakKeyDictionary()


def skin_bank(hand: HandModel, size: int, count: int, seed: int) -> SkinBank:
    """Return the bank of a hand model, painted on the first call for its device."""
    banks = _BANKS.setdefault(hand, {})
    key = (size, count, seed, hand.template.device)
    if key not in banks:
        with torch.inference_mode(mode=False):
            banks[key] = SkinBank(hand, size, count, seed)
    return banks[key]


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
