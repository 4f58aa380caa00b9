"""Brushes for drawn backgrounds: natural colours, noise, shapes and patterns.

Coordinates of pictures run from 0 to 1, x right and y down; colours are sRGB in [0, 1].
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from handrec.data.scenes import Uniform


def column(values: Float[Tensor, " b"]) -> Float[Tensor, "b 1 1 1"]:
    """Return one number per image, ready to meet its pixels."""
    return values.view(-1, 1, 1, 1)


def pixels(side: int) -> tuple[Float[Tensor, "1 s"], Float[Tensor, "s 1"]]:
    """Return x and y of pixel centres."""
    line = (torch.arange(side) + 0.5) / side
    return line[None], line[:, None]


def colours(
    draw: Uniform, *shape: int, vivid: float = 0.4, dark: float = 0.08, light: float = 0.95
) -> Float[Tensor, "*shape 3"]:
    """Return colours of things: mostly dull, two in three around orange and brown."""
    value = draw(dark, light, *shape)
    amount = vivid * draw(0.0, 1.0, *shape) ** 2
    warm = 0.55 + 0.3 * draw.normal(*shape)
    hue = torch.where(draw(0.0, 1.0, *shape) < 0.65, warm, draw(0.0, 2 * math.pi, *shape))
    turns = torch.tensor([0.0, 2 * math.pi / 3, 4 * math.pi / 3])
    colour = value[..., None] * (1 + amount[..., None] * torch.cos(hue[..., None] - turns) * 1.3)
    return colour.clamp(0.01, 0.99)


def fractal_noise(
    draw: Uniform, count: int, channels: int, side: int, slope: float = 1.0, stretch: float = 1.0
) -> Float[Tensor, "b c s s"]:
    """Return noise whose amplitude falls as frequency ``** -slope``; mean 0, deviation 1.

    Args:
        draw: random numbers.
        count: of images.
        channels: independent ones.
        side: pixels.
        slope: 1 as in photographs, more for smoother noise.
        stretch: length of its structures across over that down.
    """
    y = torch.fft.fftfreq(side)[:, None] * side
    x = torch.fft.rfftfreq(side)[None] * side * stretch
    amplitude = torch.hypot(x, y).clamp(min=0.5) ** -slope
    amplitude[0, 0] = 0
    noise = torch.fft.rfft2(draw.normal(count, channels, side, side)) * amplitude
    field: Tensor = torch.fft.irfft2(noise, s=(side, side))
    return field / field.std((2, 3), keepdim=True)


def hashed(*numbers: Tensor | float) -> Tensor:
    """Return pseudo-random numbers in [0, 1) that whole numbers stand for."""
    total = sum(number * factor for number, factor in zip(numbers, _FACTORS, strict=False))
    wave = torch.sin(torch.as_tensor(total)) * 4375.85453
    return wave - wave.floor()


_FACTORS = (12.9898, 78.233, 37.719)


def bricks(
    u: Float[Tensor, "b 1 s s"], v: Float[Tensor, "b 1 s s"], ratio: Tensor, offset: Tensor
) -> tuple[Float[Tensor, "b 1 s s"], Float[Tensor, "b 1 s s"]]:
    """Return a tone in [0, 1) for each of a wall's bricks, and the distance to its edge.

    Args:
        u: along the rows, in heights of a brick.
        v: across the rows, likewise.
        ratio: length of a brick over its height.
        offset: shift from row to row, in lengths; a number above 1 shifts rows at random.
    """
    row = v.floor()
    shift = torch.where(offset > 1, hashed(row, 3.0), row * offset)
    along = u / ratio + shift
    tone = hashed(row, along.floor())
    edge_u = (0.5 - (along.remainder(1) - 0.5).abs()) * ratio
    edge_v = 0.5 - (v.remainder(1) - 0.5).abs()
    return tone, torch.minimum(edge_u, edge_v)


def blob(
    canvas: Float[Tensor, "b c s s"],
    place: Float[Tensor, "b 2"],
    half: Float[Tensor, "b 2"],
    turn: Float[Tensor, " b"],
    colour: Float[Tensor, "b c"],
    *,
    roundness: Float[Tensor, " b"] | float = 1.0,
    soft: Float[Tensor, " b"] | float = 0.0,
) -> Float[Tensor, "b c s s"]:
    """Paint a shape on each image, in place: a box at roundness 0, an ellipse at 1.

    Args:
        canvas: the images.
        place: of the centre.
        half: width and height.
        turn: radians.
        colour: of the shape.
        roundness: from box to ellipse.
        soft: width of the edge, beyond a pixel.
    """
    side = canvas.shape[-1]
    x, y = pixels(side)
    x, y = x - column(place[:, 0]), y - column(place[:, 1])
    cos, sin = column(turn.cos()), column(turn.sin())
    u, v = (x * cos + y * sin) / column(half[:, 0]), (y * cos - x * sin) / column(half[:, 1])
    box, ellipse = torch.maximum(u.abs(), v.abs()), torch.hypot(u, v)
    weight = roundness if isinstance(roundness, float) else column(roundness)
    edge = (soft if isinstance(soft, float) else column(soft)) + 1 / side
    distance = (1 - torch.lerp(box, ellipse, weight)) * column(half.amin(1))
    return canvas.lerp_(colour[..., None, None], (distance / edge + 0.5).clamp(0, 1))


def leaves(
    draw: Uniform,
    canvas: Float[Tensor, "b 3 s s"],
    palette: Float[Tensor, "b p 3"],
    cells: int,
    *,
    slim: tuple[float, float] = (0.4, 1.0),
    roundness: tuple[float, float] = (0.0, 1.0),
    share: float = 1.0,
) -> Float[Tensor, "b 3 s s"]:
    """Paint one shape in each cell of a randomly placed lattice, in place: dead leaves in bulk.

    Args:
        draw: random numbers.
        canvas: the images.
        palette: colours the shapes are taken from, varied a little.
        cells: of the lattice along a side.
        slim: range of the shapes' width over length.
        roundness: range, from box to ellipse.
        share: of the cells that hold a shape.
    """
    count, _, _, side = canvas.shape
    many = (count, cells + 2, cells + 2)
    index = (draw(0.0, 1.0, *many) * palette.shape[1]).long()
    rows = torch.arange(count).view(-1, 1, 1)
    colour = palette[rows, index] * (1 + 0.15 * draw.normal(*many)[..., None])
    length = 0.35 * draw(0.4, 1.0, *many) * (draw(0.0, 1.0, *many) < share)
    width, turn = length * draw(*slim, *many), draw(-math.pi, math.pi, *many)
    room = (0.5 - math.sqrt(2) * length)[..., None] * draw(-1.0, 1.0, *many, 2)
    parts = [room, length, width, turn.cos(), turn.sin(), draw(*roundness, *many), colour]
    table = torch.cat([p if p.dim() == 4 else p[..., None] for p in parts], dim=-1).movedim(-1, 1)
    start = draw(0.0, 1.0, 2)
    x = torch.arange(side) / side * cells + start[0]
    y = torch.arange(side) / side * cells + start[1]
    cell = table.contiguous()[:, :, y.long()][..., x.long()]
    dx, dy, length, width, cos, sin, bend = cell[:, :7].split(1, dim=1)
    x, y = x.remainder(1) - 0.5 - dx, y.remainder(1)[:, None] - 0.5 - dy
    u = (x * cos + y * sin).abs() / length.clamp(min=1e-4)
    v = (y * cos - x * sin).abs() / width.clamp(min=1e-4)
    distance = (1 - torch.lerp(torch.maximum(u, v), torch.hypot(u, v), bend)) * width
    shade = 1 - 0.25 * v * v  # rounded rather than flat
    cover = (distance * side / cells + 0.5).clamp(0, 1) * (length > 0)
    return canvas.lerp_((cell[:, 7:] * shade).clamp(0, 1), cover)


def lit(
    draw: Uniform, picture: Float[Tensor, "b 3 s s"], light: Float[Tensor, "b #c s s"] | None = None
) -> Float[Tensor, "b 3 s s"]:
    """Return a picture under a light that falls off across it, its surfaces not quite clean.

    Args:
        draw: random numbers.
        picture: colours of the surfaces.
        light: gain of linear light, power 2 of what is shown.
    """
    count, _, side, _ = picture.shape
    x, y = pixels(side)
    slope = draw(-0.5, 0.5, count, 2)
    falloff = 1 + column(slope[:, 0]) * (x - 0.5) + column(slope[:, 1]) * (y - 0.5)
    dirt = 1 + column(draw(0.0, 0.08, count)) * fractal_noise(draw, count, 1, side, 1.0)
    warmth = 1 + 0.08 * draw.normal(count, 1) * torch.tensor([1.0, 0.0, -1.0])
    total = (falloff * dirt).clamp(min=0.1)[:, :1] * warmth[..., None, None]
    total = total if light is None else total * light
    return (picture.clamp(0, 1) * total.clamp(min=0).sqrt()).clamp(0, 1)
