"""Procedural skin: a table of identities, and the textures painted from it.

Colours are mixed in CIELAB. Tones follow the ten orbs of the Monk Skin Tone scale (E. Monk, 2019),
pulled towards the middle of what spectrophotometers find on hands, which are redder and never as
white or black as the outer orbs. Every other number is our choice, made by looking.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from handrec.data.appearance.monk import MONK_TONES
from handrec.data.appearance.noise import noise
from handrec.data.appearance.skin_map import SkinMap, map_skin, step
from handrec.data.scenes import Uniform
from handrec.hand.base import HandModel
from handrec.render.atlas import bake_atlas
from handrec.render.colour import lab_to_srgb, srgb_to_lab

#: About the mean L*, a*, b* of the back of human hands, and the share that is left of a Monk orb's
#: difference from it.
_HUMAN, _SPREAD = (50.0, 12.0, 18.0), (0.78, 0.45, 0.50)
_MOLES = 5
_OCTAVES = 5
#: Metres: turns the width of texels into that of a soft edge in nail coordinates.
_HALF_NAIL = 0.006


class Skin(NamedTuple):
    """A table of identities; row i is identity i.

    Attributes:
        tone: place on the Monk scale, 0 (lightest) to 9.
        undertone: shift of a* and b*.
        palm: how far the palm goes from the back's colour to that of bare flesh.
        flush: redness of knuckles, fingertips and pads.
        mottle: strength of blotches of blood and of pigment.
        pores: strength of the fine grain.
        veins: how much veins show.
        creases: depth of flexion creases and palm lines.
        shifts: of each palm line across itself, metres.
        wrinkles: depth of the folds over knuckles.
        freckles: density of freckles, 0 for none.
        spots: density of age spots, 0 for none.
        moles: share of the hand's vertices before the one each mole lies at, and radius in metres,
            0 for none.
        nails: length over the usual, width over the usual, and length of the free edge in half
            nail lengths.
        polish: RGB of nail polish and how opaque it is.
        offsets: which part of each octave of noise is seen.
    """

    tone: Float[Tensor, " b"]
    undertone: Float[Tensor, "b 2"]
    palm: Float[Tensor, " b"]
    flush: Float[Tensor, "b 3"]
    mottle: Float[Tensor, "b 2"]
    pores: Float[Tensor, " b"]
    veins: Float[Tensor, " b"]
    creases: Float[Tensor, " b"]
    shifts: Float[Tensor, "b 4"]
    wrinkles: Float[Tensor, " b"]
    freckles: Float[Tensor, " b"]
    spots: Float[Tensor, " b"]
    moles: Float[Tensor, "b m 2"]
    nails: Float[Tensor, "b 3"]
    polish: Float[Tensor, "b 4"]
    offsets: Float[Tensor, "b o 3"]

    def rows(self, index: Int[Tensor, " n"]) -> "Skin":
        """Return the table of the given identities."""
        return Skin(*(column[index] for column in self))

    def to(self, device: torch.device) -> "Skin":
        """Return the table on a device."""
        return Skin(*(column.to(device) for column in self))


def sample_skin(count: int, generator: torch.Generator) -> Skin:
    """Return random identities, tones uniform on the Monk scale."""
    draw = Uniform(generator)
    tone = draw(0.0, 9.0, count)
    age = draw(0.0, 1.0, count)
    light = (1 - tone / 5).clamp(0, 1)
    radius = draw(0.0005, 0.0014, count, _MOLES) * (draw(0.0, 1.0, count, _MOLES) < 0.3)
    painted = (draw(0.0, 1.0, count, 1) < 0.12).float() * draw(0.8, 1.0, count, 1)
    return Skin(
        tone=tone,
        undertone=draw.normal(count, 2).clamp(-2, 2) * torch.tensor([1.2, 1.8]),
        palm=draw(0.5, 0.75, count),
        flush=draw(0.3, 1.0, count, 3),
        mottle=draw(0.4, 1.3, count, 2),
        pores=draw(0.5, 1.4, count),
        veins=draw(0.0, 1.0, count) * (0.5 + 0.5 * age),
        creases=draw(0.5, 1.1, count),
        shifts=draw.normal(count, 4).clamp(-2, 2) * 0.0018,
        wrinkles=(0.4 + 0.8 * age) * draw(0.7, 1.2, count),
        freckles=draw(0.0, 1.0, count) * light * (draw(0.0, 1.0, count) < 0.4),
        spots=((age - 0.6) * 2.5).clamp(0, 1) * draw(0.2, 1.0, count),
        moles=torch.stack([draw(0.0, 1.0, count, _MOLES), radius], dim=-1),
        nails=draw(-1.0, 1.0, count, 3) * torch.tensor([0.12, 0.07, 0.1])
        + torch.tensor([1.0, 1.0, 0.2]),
        polish=torch.cat([draw(0.05, 0.95, count, 3), painted], dim=1),
        offsets=draw(0.0, 1.0, count, _OCTAVES, 3),
    )


def back_tone(tone: Float[Tensor, " b"]) -> Float[Tensor, "b 3"]:
    """Return L*, a*, b* of the back of the hand at a place on the Monk scale, 0 to 9."""
    hexes = [[int(orb[i : i + 2], 16) / 255 for i in (0, 2, 4)] for orb in MONK_TONES]
    monk = srgb_to_lab(tone.new_tensor(hexes)[..., None])[..., 0]
    lower = tone.long().clamp(0, len(monk) - 2)
    mixed = torch.lerp(monk[lower], monk[lower + 1], (tone - lower)[:, None])
    human = tone.new_tensor(_HUMAN)
    return human + tone.new_tensor(_SPREAD) * (mixed - human)


def palm_tone(back: Float[Tensor, "b 3"], amount: Float[Tensor, " b"]) -> Float[Tensor, "b 3"]:
    """Return L*, a*, b* of the palm: little pigment, so much the same for every tone."""
    lightness = (back[:, 0] - 3).clamp(min=66)
    flesh = torch.stack([lightness, back.new_full(back.shape[:1], 17), 0 * lightness + 18], dim=1)
    return torch.lerp(back, flesh, amount[:, None])


@torch.no_grad()
def paint_skin(hand: HandModel, skin: Skin, size: int) -> Float[Tensor, "b 3 t t"]:
    """Return the textures of identities, sRGB in [0, 1], on the device of the table.

    Args:
        hand: whose atlas is painted; on the device of the table.
        skin: identities.
        size: texels along each side.
    """
    return bake_atlas(hand, size).spread(lab_to_srgb(paint_lab(hand, skin, size)))


@torch.no_grad()
def paint_lab(hand: HandModel, skin: Skin, size: int) -> Float[Tensor, "b 3 n"]:
    """Return L*, a*, b* of the atlas's ``texels``."""
    with torch.autocast(skin.tone.device.type, enabled=False):
        return _Painter(map_skin(hand, size), skin).paint()


@torch.no_grad()
def nail_mask(hand: HandModel, size: int) -> Float[Tensor, "1 t t"]:
    """Return 1 on nails of the usual shape, which shine more than skin."""
    where = map_skin(hand, size)
    along, across = where.nail
    _, plate = _plate(along, across, 7 * where.pitch / _HALF_NAIL)
    return bake_atlas(hand, size).spread(plate[None, None])[0]


class _Painter:
    """Paints identities onto a map: base colours, then pigments in layers, then nails."""

    def __init__(self, where: SkinMap, skin: Skin) -> None:
        self.where = where
        self.skin = skin
        back = back_tone(skin.tone)
        # Dark colours have less room for hue.
        self.back = back + F.pad(skin.undertone * (0.3 + back[:, :1] / 120), (1, 0))
        self.palm = palm_tone(self.back, skin.palm)
        waves = (0.028, 0.009, max(0.0028, 2.2 * where.pitch))
        self.coarse, self.medium, self.fine = (
            noise(where.points, skin.offsets[:, i], wave, octave=i) for i, wave in enumerate(waves)
        )
        folds = where.grain * where.grain.new_tensor([1.0, 0.22, 0.22])
        thin = max(0.0016, 2.2 * where.pitch)
        self.folds = noise(folds, skin.offsets[:, 3], thin, channels=2, octave=-1)
        grain = max(0.0011, 2.0 * where.pitch)
        self.grain = noise(where.points, skin.offsets[:, 4], grain, channels=1, octave=4)[:, 0]

    def paint(self) -> Float[Tensor, "b 3 n"]:
        edge = self.where.dorsal + 0.05 * self.medium[:, 2] + 0.07 * self.coarse[:, 2]
        backness = step(edge, -0.55, 0.3)
        lab = self.palm[..., None] + (self.back - self.palm)[..., None] * backness[:, None]
        amounts = torch.stack(
            [self._melanin(backness), self._blood(backness), self._shade(backness), self._vein()],
            dim=1,
        )
        lab = torch.baddbmm(lab, self._pigments(), amounts)
        return self._nails(lab)

    def _pigments(self) -> Float[Tensor, "b 3 4"]:
        """Return what one unit of melanin, blood, shade and vein does to L*, a*, b*."""
        light = ((self.back[:, 0] - 20) / 65).clamp(0, 1)[:, None]
        pairs = [
            ((-4.0, 0.5, -1.0), (-7.0, 3.0, 4.0)),
            ((-1.2, 1.4, 0.3), (-3.0, 5.0, 1.5)),
            ((-9.0, 0.5, -1.5), (-11.0, 3.0, 2.0)),
            ((-1.5, -0.7, -1.5), (-4.5, -4.0, -5.5)),
        ]
        dark, bright = (light.new_tensor([pair[i] for pair in pairs]) for i in (0, 1))
        return torch.lerp(dark, bright, light[..., None]).mT

    def _melanin(self, backness: Tensor) -> Float[Tensor, "b n"]:
        skin = self.skin
        amount = skin.mottle[:, :1] * (0.2 * self.coarse[:, 0] + 0.15 * self.medium[:, 0])
        freckled = self.fine[:, 0] + 0.6 * self.coarse[:, 3] - 2.6 + 1.4 * skin.freckles[:, None]
        amount += 0.9 * step(freckled, 0.0, 0.9) * (skin.freckles > 0)[:, None]
        spotted = self.medium[:, 3] - 2.6 + 0.8 * skin.spots[:, None]
        amount += 1.1 * step(spotted, 0.0, 0.35) * (skin.spots > 0)[:, None]
        # Dark knuckles are darker than the rest, light ones only redder.
        dark = (skin.tone[:, None] / 9 - 0.5).clamp(min=0)
        return amount * backness + 2.5 * dark * self.where.flush[0] + self._moles()

    def _moles(self) -> Float[Tensor, "b n"]:
        points, anchors = self.where.points, self.where.anchors
        amount = torch.zeros_like(self.grain)
        for mole in self.skin.moles.unbind(1):
            centre = anchors[(mole[:, 0] * len(anchors)).long()]
            square = (points - centre[:, None]).square().sum(-1)
            radius = mole[:, 1:].clamp(min=1e-6)
            amount += 3.0 * _bump((square / radius**2) ** 2) * (mole[:, 1:] > 0)
        return amount

    def _blood(self, backness: Tensor) -> Float[Tensor, "b n"]:
        skin = self.skin
        amount = skin.mottle[:, 1:] * (0.3 * self.coarse[:, 1] + 0.25 * self.medium[:, 1])
        amount = amount * (1.2 - 0.5 * backness)
        amount += 0.15 * self.fine[:, 1]
        return amount + torch.einsum("bk,kn->bn", skin.flush, self.where.flush) * 1.1

    def _shade(self, backness: Tensor) -> Float[Tensor, "b n"]:
        where, skin = self.where, self.skin
        wobble = 0.0003 * self.medium[:, 2] + 0.00012 * self.fine[:, 2]
        broken = (1 + 0.3 * self.medium[:, 3] + 0.15 * self.fine[:, 3]).clamp(0.2, 1.6)
        amount = self._line(where.crease[0] + wobble, where.crease[1], 0.00055) * broken
        for i, (distance, depth) in enumerate(where.lines):
            bent = distance + skin.shifts[:, i, None] + wobble + 0.0014 * self.coarse[:, 2]
            amount += self._line(bent, depth, 0.0007) * broken
        amount *= skin.creases[:, None]
        along, across, depth = where.knuckle
        phase = (along + 25 * along.sign() * across.square() + wobble) * (2 * math.pi / 0.0021)
        ripple = (phase + 1.2 * self.medium[:, 1]).sin().clamp(min=-0.3)
        amount += 0.55 * skin.wrinkles[:, None] * depth * (ripple + 0.5 * self.folds[:, 0])
        amount += 0.06 * (0.3 + skin.wrinkles[:, None]) * self.folds[:, 0] * backness
        amount += 0.11 * self.folds[:, 1].abs() * (1 - backness)
        return amount + 0.1 * skin.pores[:, None] * self.grain

    def _line(self, distance: Tensor, depth: Tensor, width: float) -> Float[Tensor, "b n"]:
        """Return a dark line with soft flanks; too thin for the texels, it is wider and fainter."""
        drawn = max(width, 0.75 * self.where.pitch)
        square = (distance / drawn).square()
        return depth * (width / drawn) * (_bump(square) + 0.25 * _bump(square / 12))

    def _vein(self) -> Float[Tensor, "b n"]:
        distance, depth = self.where.vein
        bent = distance + 0.0024 * self.coarse[:, 3] + 0.0005 * self.medium[:, 0]
        shown = _bump((bent / 0.0024) ** 2) * (0.7 + 0.25 * self.coarse[:, 0])
        amount: Tensor = self.skin.veins[:, None] * depth * shown
        return amount

    def _nails(self, lab: Tensor) -> Float[Tensor, "b 3 n"]:
        """Lay nails over the skin: plate, lunula, free edge, the fold around them, polish."""
        length, width, free = self.skin.nails.T[..., None]
        along, across = self.where.nail
        along = 1 - (1 - along) / length
        across = across / width
        soft = 7 * self.where.pitch / _HALF_NAIL
        reach, plate = _plate(along, across, soft)
        rim = _bump(((reach - 1.05) / 0.5) ** 2) * step(along, 1.1, 0.5)
        lunula = step(along + 0.35 * across.square(), -0.5, -0.68) * 0.5
        edge = step(along + 0.12 * across.square() + free - 1, -soft / 4, soft / 4)
        gloss = _bump(((across + 0.25) / 0.22) ** 2) * step(along, -0.9, -0.2)
        bed = self.palm + self.palm.new_tensor([4.0, 3.0, -3.0])
        white = 0.35 * bed + 0.65 * bed.new_tensor([86.0, 2.0, 9.0])
        polish, opaque = srgb_to_lab(self.skin.polish[:, :3, None]), self.skin.polish[:, 3:, None]
        colour = bed[..., None] + (white - bed)[..., None] * torch.maximum(lunula, edge)[:, None]
        colour = torch.lerp(colour, polish, opaque)
        colour[:, 0] += 3.5 * gloss + 1.2 * self.folds[:, 0]
        lab = lab + self._pigments()[..., 2:3] * (0.7 * rim * (1 - plate))[:, None]
        return torch.lerp(lab, colour, plate[:, None])


def _plate(along: Tensor, across: Tensor, soft: float) -> tuple[Tensor, Tensor]:
    """Return how far out a point is (1: on the edge of a nail), and 1 on the nail."""
    reach = across.square().square() + along.square().square()
    return reach, step(reach, 1 + soft / 2, 1 - soft / 2)


def _bump(square: Tensor) -> Tensor:
    """Return nearly ``exp(-square)``, but 0 from 4 on: no slow denormal numbers."""
    base: Tensor = (1 - square / 4).clamp(min=0)
    return base.square().square()
