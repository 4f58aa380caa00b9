"""Drawn backgrounds unlike snapshots: the other side of a shift of domain, never trained on.

Each kind is a function of random numbers, a count and a side that returns sRGB pictures
``(B, 3, S, S)``: flat, loud, regular.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from handrec.data.appearance.painting import blob, column, fractal_noise, hashed, leaves, pixels
from handrec.data.scenes import Uniform


def loud(draw: Uniform, *shape: int) -> Float[Tensor, "*shape 3"]:
    """Return saturated colours of any hue."""
    turns = torch.tensor([0.0, 2 * math.pi / 3, 4 * math.pi / 3])
    hue = draw(0.0, 2 * math.pi, *shape)[..., None]
    value = draw(0.3, 0.65, *shape)[..., None]
    return (value * (1 + draw(0.8, 1.6, *shape)[..., None] * torch.cos(hue - turns))).clamp(0, 1)


def stripes(draw: Uniform, count: int, side: int) -> Float[Tensor, "b 3 s s"]:
    """Return stripes, straight or waved."""
    u, v = _turned(draw, count, side)
    wave = column(draw(0.0, 0.05, count)) * torch.sin(v * column(draw(5.0, 40.0, count)))
    phase = (u + wave) * column(draw(3.0, 20.0, count))
    return _three_colours(draw, phase, column(draw(0.2, 0.8, count)))


def checks(draw: Uniform, count: int, side: int) -> Float[Tensor, "b 3 s s"]:
    """Return chequered planes."""
    u, v = _turned(draw, count, side)
    pitch = column(draw(3.0, 16.0, count))
    parity = ((u * pitch).floor() + (v * pitch).floor()).remainder(2)
    pair = loud(draw, count, 2)[..., None, None]
    return torch.lerp(pair[:, 0], pair[:, 1], parity)


def gradients(draw: Uniform, count: int, side: int) -> Float[Tensor, "b 3 s s"]:
    """Return smooth blends of loud colours."""
    u, v = _turned(draw, count, side)
    corner = loud(draw, count, 4)[..., None, None]
    u, v = (u + 0.5).clamp(0, 1), (v + 0.5).clamp(0, 1)
    upper = torch.lerp(corner[:, 0], corner[:, 1], u)
    return torch.lerp(upper, torch.lerp(corner[:, 2], corner[:, 3], u), v)


def rings(draw: Uniform, count: int, side: int) -> Float[Tensor, "b 3 s s"]:
    """Return rings or rays about a point."""
    x, y = pixels(side)
    centre = draw(0.1, 0.9, count, 2)
    dx, dy = x - column(centre[:, 0]), y - column(centre[:, 1])
    circles = torch.hypot(dx, dy) * column(draw(4.0, 20.0, count))
    beams = torch.atan2(dy, dx) * column(draw(2.0, 12.0, count).round()) / (2 * math.pi)
    phase = torch.where(column(draw(0.0, 1.0, count)) < 0.5, circles, beams)
    return _three_colours(draw, phase, column(draw(0.3, 0.7, count)))


def poster(draw: Uniform, count: int, side: int) -> Float[Tensor, "b 3 s s"]:
    """Return hills and a sun in flat colours."""
    x, y = pixels(side)
    colours = loud(draw, count, 6)
    sky = torch.lerp(colours[:, 0, :, None, None], torch.ones(3, 1, 1), 0.6 * y)
    picture = sky.repeat(1, 1, 1, side)
    size = draw(0.06, 0.2, count)[:, None].expand(-1, 2)
    blob(picture, draw(0.1, 0.7, count, 2), size, torch.zeros(count), colours[:, 1])
    for layer in range(4):
        line = column(draw(0.3, 0.5, count)) + 0.15 * layer
        for wave in (3, 7, 17):
            line = line + column(draw(0.0, 0.25, count)) / wave * torch.sin(
                wave * x + column(draw(0.0, 6.0, count))
            )
        cover = ((y - line) * side + 0.5).clamp(0, 1)
        picture = torch.lerp(picture, colours[:, 2 + layer, :, None, None], cover)
    return picture


def writing(draw: Uniform, count: int, side: int) -> Float[Tensor, "b 3 s s"]:
    """Return pages of strokes in lines, like print or hand-writing from afar."""
    u, v = _turned(draw, count, side)
    rows = column(draw(8.0, 24.0, count))
    row = (v * rows).floor()
    letter_u = u * rows * column(draw(1.2, 2.0, count))
    letter = letter_u.floor()
    inner_u, inner_v = letter_u.remainder(1) - 0.5, (v * rows).remainder(1) - 0.5
    bend = 6 * (hashed(letter, row) - 0.5)
    stroke = (inner_u - 0.3 * torch.sin(bend * inner_v * 3 + 6 * hashed(row, letter))).abs() < 0.12
    bar = (inner_v - 0.5 * (hashed(letter, row, 2.0) - 0.5)).abs() < 0.07
    ink = (stroke | bar) & (inner_v.abs() < 0.3) & (hashed(letter, row, 1.0) > 0.2)
    pair = loud(draw, count, 2)[..., None, None]
    paper = torch.where(column(draw(0.0, 1.0, count)) < 0.5, pair[:, 0], 0.9 + 0.1 * pair[:, 0])
    return torch.where(ink, 0.5 * pair[:, 1], paper)


def confetti(draw: Uniform, count: int, side: int) -> Float[Tensor, "b 3 s s"]:
    """Return shapes of one size strewn over one colour."""
    palette = loud(draw, count, 6)
    picture = palette[:, 0, :, None, None].repeat(1, 1, side, side)
    for cells in (7, 10, 7):
        leaves(draw, picture, palette, cells, roundness=(0.0, 1.0), share=0.8)
    return picture


def plasma(draw: Uniform, count: int, side: int) -> Float[Tensor, "b 3 s s"]:
    """Return contour maps of noise in bands of loud colours."""
    level = fractal_noise(draw, count, 1, side, 2.0)
    return _three_colours(
        draw, level * column(draw(0.7, 2.5, count)), column(draw(0.3, 0.7, count))
    )


def _turned(draw: Uniform, count: int, side: int) -> tuple[Tensor, Tensor]:
    """Return coordinates about the centre, turned anyhow."""
    x, y = pixels(side)
    turn = column(draw(0.0, 2 * math.pi, count))
    x, y = x - 0.5, y - 0.5
    return x * turn.cos() + y * turn.sin(), y * turn.cos() - x * turn.sin()


def _three_colours(draw: Uniform, phase: Tensor, duty: Tensor) -> Float[Tensor, "b 3 s s"]:
    """Return two colours by the fraction of a phase, a third in every other period."""
    colour = loud(draw, len(phase), 3)[..., None, None]
    second = torch.where(phase.remainder(2) < 1, colour[:, 1], colour[:, 2])
    return torch.where(phase.remainder(1) < duty, colour[:, 0], second)


#: What ``OtherScenes`` draws.
OTHERWORLD: tuple[Callable[[Uniform, int, int], Float[Tensor, "b 3 s s"]], ...] = (
    stripes, checks, gradients, rings, poster, writing, confetti, plasma,
)  # fmt: skip
