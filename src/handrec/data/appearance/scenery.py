"""Drawn scenes that look like what is behind a hand in snapshots, out of focus and at a glance.

Each kind is a function of random numbers, a count and a side that returns sRGB pictures
``(B, 3, S, S)``. All ranges are our choice.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from handrec.data.appearance import tracing
from handrec.data.appearance.interiors import desk, room
from handrec.data.appearance.painting import (
    blob,
    bricks,
    colours,
    column,
    fractal_noise,
    hashed,
    leaves,
    lit,
    pixels,
)
from handrec.data.scenes import Uniform

Kind = Callable[[Uniform, int, int], Float[Tensor, "b 3 s s"]]


def street(draw: Uniform, count: int, side: int) -> Float[Tensor, "b 3 s s"]:
    """Return streets: houses with windows along a road under a sky."""
    number = 7
    corners = torch.tensor([[-300.0, 0, -300], [300, 300, 300]]).expand(count, 2, 3)
    turn = draw(0.0, 2 * math.pi, count, number)
    away = draw(8.0, 40.0, count, number)
    centre = torch.stack([away * turn.cos(), torch.zeros_like(away), away * turn.sin()], dim=2)
    half = draw(2.0, 7.0, count, number, 3)
    half = torch.minimum(half, (away * 0.6)[..., None])
    boxes = torch.stack([centre - half, centre + half], dim=2)
    boxes[..., 0, 1], boxes[..., 1, 1] = 0, draw(2.5, 18.0, count, number)
    origin = torch.tensor([0.0, 1.5, 0]).expand(count, 3)
    boxes[..., 1, 1] *= ((centre.abs() - half)[..., ::2] > 1).any(2)
    rays = tracing.look(draw, origin, side, (-25.0, 20.0))
    hits = tracing.trace(rays, corners, boxes)
    x, y, z = (rays.origin + hits.distance * rays.direction).split(1, dim=1)
    facade = tracing.pick(colours(draw, count, number + 1, dark=0.2), hits.box)
    along = torch.where(hits.axis == 0, z, x)
    floor_height, pitch = column(draw(2.6, 3.4, count)), column(draw(1.5, 3.5, count))
    inner_u, inner_v = (along / pitch).remainder(1), (y / floor_height).remainder(1)
    window = tracing.within(inner_u, inner_v, torch.tensor([0.25, 0.3, 0.75, 0.8]).expand(count, 4))
    glass = 0.15 + 0.6 * hashed((along / pitch).floor(), (y / floor_height).floor())
    facade = torch.where(window & (hits.axis != 1), glass, facade)
    shade = torch.tensor([0.75, 1.0, 1.05])[hits.axis]
    ground = colours(draw, count, vivid=0.35, dark=0.2, light=0.6)[..., None, None]
    kerb = torch.where((x.abs() - column(draw(2.0, 5.0, count))).abs() < 0.15, 1.4, 1.0)
    picture = torch.where(hits.box < 0, ground * kerb, facade) * shade
    sky = (hits.box < 0) & ((hits.axis != 1) | (y > 1))
    picture = torch.where(sky, _sky(draw, count, side), picture)
    trees = fractal_noise(draw, count, 1, side, 1.3) - column(draw(0.2, 2.0, count))
    green = colours(draw, count, vivid=0.3, dark=0.15, light=0.45) * torch.tensor([0.85, 1.1, 0.7])
    near_horizon = rays.direction[:, 1:2].abs() < 0.35
    crown = (trees * 6).clamp(0, 1) * (sky & near_horizon)
    leafy = green[..., None, None] * (1 + 0.35 * fractal_noise(draw, count, 1, side, 0.7))
    return lit(draw, torch.lerp(picture, leafy, crown))


def landscape(draw: Uniform, count: int, side: int) -> Float[Tensor, "b 3 s s"]:
    """Return grass, hedges or hills under a sky."""
    _, y = pixels(side)
    picture = _sky(draw, count, side)
    horizon = draw(0.1, 0.6, count)
    rough = fractal_noise(draw, count, 3, side, 1.6)[..., :1, :]  # a skyline: one line of noise
    detail = fractal_noise(draw, count, 4, side, 0.8)
    for layer in range(3):
        lean = 0.06 * (2 - layer) * rough[:, layer : layer + 1]
        line = column(horizon + 0.12 * layer) + lean
        tint = torch.tensor([0.75, 1.0, 0.6]) ** draw(0.0, 1.0, count, 1)
        colour = colours(draw, count, vivid=0.2, dark=0.15, light=0.6) * tint
        texture = 1 + column(draw(0.05, 0.35, count)) * detail[:, layer : layer + 1]
        cover = ((y - line) * side / 3 + 0.5 + 0.8 * detail[:, layer : layer + 1]).clamp(0, 1)
        picture = torch.lerp(picture, colour[..., None, None] * texture, cover)
    return lit(draw, picture)


def _sky(draw: Uniform, count: int, side: int) -> Float[Tensor, "b 3 s s"]:
    """Return skies: blue, grey or evening, with clouds."""
    _, y = pixels(side)
    tops = torch.tensor(
        [[0.35, 0.55, 0.85], [0.7, 0.74, 0.8], [0.85, 0.88, 0.92], [0.45, 0.5, 0.7]]
    )
    lows = torch.tensor(
        [[0.75, 0.85, 0.95], [0.85, 0.86, 0.88], [0.95, 0.95, 0.95], [0.95, 0.75, 0.6]]
    )
    which = (draw(0.0, 1.0, count) * len(tops)).long()
    sky = torch.lerp(
        tops[which][..., None, None], lows[which][..., None, None], y.expand(side, side)
    )
    clouds = fractal_noise(draw, count, 1, side, 1.5, stretch=0.6) - column(draw(-0.5, 2.0, count))
    return torch.lerp(sky, torch.tensor(0.95), 0.8 * clouds.clamp(0, 1))


def tiles(draw: Uniform, count: int, side: int) -> Float[Tensor, "b 3 s s"]:
    """Return tiled, bricked or panelled walls, seen at an angle."""
    origin = torch.stack([torch.zeros(count), torch.ones(count), draw(-1.2, -0.3, count)], dim=1)
    rays = tracing.look(
        draw, origin, side, (-25.0, 25.0), heading=25.0
    )  # all of them meet the wall
    distance = -rays.origin[:, 2:] / rays.direction[:, 2:].clamp(min=0.05)
    u, v = distance * rays.direction[:, :1], distance * rays.direction[:, 1:2]
    size = column(draw(0.03, 0.2, count))
    ratio = column(
        torch.where(draw(0.0, 1.0, count) < 0.5, torch.ones(count), draw(1.5, 6.0, count))
    )
    offset = column((draw(0.0, 1.0, count) < 0.6) * 0.5)
    tone, edge = bricks(u / size, v / size, ratio, offset)
    contrast = column(draw(0.0, 0.5, count) ** 1.5)
    rough = 1 + column(draw(0.0, 0.12, count)) * fractal_noise(draw, count, 1, side, 0.6)
    face = colours(draw, count, dark=0.2)[..., None, None] * (1 + contrast * (tone - 0.5)) * rough
    grout = colours(draw, count, vivid=0.15, dark=0.3)[..., None, None]
    width = column(draw(0.02, 0.06, count))
    sharp = (size * side / 2).clamp(min=1)
    cover = ((edge - width) * sharp + 0.5).clamp(0, 1)
    bevel = 1 + 0.15 * torch.exp(-edge * 12)
    return lit(draw, torch.lerp(grout, face * bevel, cover))


def fabric(draw: Uniform, count: int, side: int) -> Float[Tensor, "b 3 s s"]:
    """Return cloth in folds: plain, striped or checked."""
    x, y = pixels(side)
    warp = fractal_noise(draw, count, 2, side, 2.2)
    turn = column(draw(0.0, 2 * math.pi, count))
    u = x * turn.cos() + y * turn.sin() + 0.025 * warp[:, :1]
    v = y * turn.cos() - x * turn.sin() + 0.025 * warp[:, 1:]
    folds = torch.sin((u + 0.04 * warp[:, :1]) * column(draw(4.0, 25.0, count)) + 2 * v)
    folds = folds.abs() ** column(draw(0.4, 1.0, count)) + 0.3 * fractal_noise(
        draw, count, 1, side, 1.8
    )
    slope = torch.gradient(folds, dim=(2, 3))
    relief = (slope[0] * turn.cos() + slope[1] * turn.sin()) * side / 20
    pair = colours(draw, count, 2)
    pair[:, 1] = torch.where(draw(0.0, 1.0, count, 1) < 0.5, pair[:, 0], pair[:, 1])
    frequency = column(draw(6.0, 40.0, count))
    checked = column((draw(0.0, 1.0, count) < 0.4).float())
    stripe = (torch.sin(u * frequency) * 4).clamp(-1, 1)
    cross = (torch.sin(v * frequency) * 4).clamp(-1, 1)
    weight = 0.5 + 0.25 * stripe + 0.25 * torch.lerp(stripe, cross, checked)
    cloth = torch.lerp(pair[:, 0, :, None, None], pair[:, 1, :, None, None], weight)
    light = 1 + column(draw(0.1, 0.45, count)) * relief.clamp(-1.5, 1.5)
    return lit(draw, cloth, light.clamp(min=0.15))


def lights(draw: Uniform, count: int, side: int) -> Float[Tensor, "b 3 s s"]:
    """Return lights out of focus at night or indoors: discs before the dark."""
    base = colours(draw, count, vivid=0.6, dark=0.02, light=0.3)[..., None, None]
    picture = base * (1 + 0.4 * fractal_noise(draw, count, 1, side, 2.0)).repeat(1, 3, 1, 1)
    radius = draw(0.015, 0.07, count)
    for _ in range(24):
        centre, size = draw(0.0, 1.0, count, 2), radius * draw(0.6, 1.2, count)
        glow = colours(draw, count, vivid=0.8, dark=0.5) * draw(0.3, 1.0, count, 1)
        disc = torch.zeros(count, 1, side, side)
        one = torch.ones(count, 1)
        blob(disc, centre, size[:, None].expand(-1, 2), torch.zeros(count), one, soft=0.004)
        picture.addcmul_(disc, glow[..., None, None])  # light adds up
    return lit(draw, picture.clamp(0, 1))


def wall(draw: Uniform, count: int, side: int) -> Float[Tensor, "b 3 s s"]:
    """Return plain walls with falling light, a shadow's edge and, on some, a line of furniture."""
    picture = colours(draw, count, vivid=0.3, dark=0.2)[..., None, None].repeat(1, 1, side, side)
    picture *= 1 + column(draw(0.0, 0.04, count)) * fractal_noise(draw, count, 1, side, 0.5)
    for _ in range(2):
        there = (draw(0.0, 1.0, count, 1) < 0.5) * 1.0
        half = torch.stack([draw(0.2, 1.0, count), draw(0.05, 0.4, count)], dim=1) * there + 1e-4
        turn = 0.06 * draw.normal(count) + (draw(0.0, 1.0, count) < 0.5) * math.pi / 2
        blob(picture, draw(0.0, 1.0, count, 2), half, turn, colours(draw, count), roundness=0.0)
    shadow = torch.ones(count, 1, side, side)
    depth, turn = draw(0.4, 1.0, count, 1), draw(0.0, math.pi, count)
    half = draw(0.2, 0.8, count, 2)
    blob(
        shadow,
        draw(0.0, 1.0, count, 2),
        half,
        turn,
        depth,
        roundness=0.3,
        soft=draw(0.02, 0.3, count),
    )
    return lit(draw, picture, shadow)


def clutter(draw: Uniform, count: int, side: int) -> Float[Tensor, "b 3 s s"]:
    """Return dead leaves: shapes of all sizes before each other, with the spectrum of photographs.

    The number of shapes of a size falls with its cube, which makes the picture look alike at every
    scale (Lee, Mumford and Huang, Occlusion models for natural images, 2001).
    """
    palette = colours(draw, count, 8)
    picture = palette[:, 0, :, None, None].repeat(1, 1, side, side)
    scales = (2, 3, 4, 6, 9, 14, 21)
    for _ in range(3):
        for step in torch.randperm(len(scales), generator=draw.generator).tolist():
            leaves(draw, picture, palette, scales[step])
    return lit(draw, picture)


def foliage(draw: Uniform, count: int, side: int) -> Float[Tensor, "b 3 s s"]:
    """Return leaves and grass close by, in broken light."""
    tint = torch.tensor([0.8, 1.05, 0.55]) * draw(0.85, 1.1, count, 1, 3)
    palette = colours(draw, count, 8, vivid=0.2, dark=0.08, light=0.75) * tint
    picture = palette[:, 0, :, None, None] * torch.ones(side, side)
    for cells in (4, 6, 9, 12, 16, 9, 6, 12, 7, 20):
        leaves(draw, picture, palette, cells, slim=(0.15, 0.5), roundness=(0.9, 1.0))
    dapple = 1 + 0.4 * fractal_noise(draw, count, 1, side, 1.2)
    return lit(draw, picture, dapple.clamp(min=0.15))


def shelves(draw: Uniform, count: int, side: int) -> Float[Tensor, "b 3 s s"]:
    """Return shelves of books, boxes or goods."""
    x, y = pixels(side)
    tilt = column(0.08 * draw.normal(count))
    rows, seed = column(draw(2.2, 5.0, count)), column(draw(0.0, 50.0, count))
    u, v = x + tilt * y + 2, (y - tilt * x) * rows + 2
    row = v.floor()
    step = u * column(draw(10.0, 40.0, count))
    step = step + 0.35 * torch.sin(2.4 * step + row)  # not all are equally wide
    book = step.floor()
    table = torch.tensor([0.0, 1, 2])
    random = [hashed(book, row, seed + shift) for shift in (*table.tolist(), 3.0, 4.0)]
    palette = colours(draw, count, 24, vivid=0.7)
    cover = tracing.pick(palette, (random[0] * 24).long())
    height, inside = 0.55 + 0.35 * random[1], v.remainder(1)
    edge = 0.75 + 0.25 * ((0.5 - (step.remainder(1) - 0.5).abs()) * 8).clamp(0, 1)
    band = (inside - 0.3 - 0.3 * random[2]).abs() < 0.05
    cover = torch.where(band, tracing.pick(palette, (random[3] * 24).long()), cover * edge)
    back = colours(draw, count, dark=0.05, light=0.3)[..., None, None]
    board = colours(draw, count, dark=0.2)[..., None, None]
    standing = (1 - inside) < height
    picture = torch.where(standing & (random[4] > 0.1), cover, back)
    picture = torch.where(inside > 0.94, board, picture)
    depth = 0.55 + 0.45 * inside.clamp(max=0.9)
    return lit(draw, picture, depth)


def haze(draw: Uniform, count: int, side: int) -> Float[Tensor, "b 3 s s"]:
    """Return smooth colours without anything to recognise: scenes far out of focus."""
    noise = fractal_noise(draw, count, 1, side, 1.5) + 0.2 * fractal_noise(
        draw, count, 3, side, 1.7
    )
    base = colours(draw, count, light=0.7)[..., None, None]
    return lit(draw, (base * (1 + column(draw(0.1, 0.4, count)) * noise)).clamp(0, 1))


def person(draw: Uniform, count: int, side: int) -> Float[Tensor, "b 3 s s"]:
    """Return a person behind the hand: clothes, a head, an arm, the colour of skin."""
    inside = column(draw(0.0, 1.0, count)) < 0.5
    picture = torch.where(inside, room(draw, count, side), wall(draw, count, side))
    skin, hair = _skin(draw, count), colours(draw, count, vivid=0.15, dark=0.03, light=0.4)
    head, size = draw(0.2, 0.8, count, 2), draw(0.1, 0.25, count)
    shape = torch.stack([0.75 * size, size], dim=1)
    below = torch.stack([torch.zeros(count), size], dim=1)
    lean = 0.15 * draw.normal(count)
    zero = torch.zeros(count)
    paint = draw(0.004, 0.02, count)
    clothes = colours(draw, count, 2, vivid=0.7)
    blob(picture, head + 2.9 * below, shape * torch.tensor([2.6, 2.0]), lean, clothes[:, 0],
         roundness=0.6, soft=paint)  # fmt: skip
    blob(picture, head - 0.15 * below, shape * 1.12, lean, hair, soft=paint)
    blob(picture, head + 0.9 * below, shape * torch.tensor([0.5, 0.6]), zero, 0.8 * skin,
         roundness=0.5, soft=paint)  # fmt: skip
    blob(picture, head + 0.1 * below, shape * torch.tensor([0.9, 0.95]), lean, skin, soft=paint)
    for across, down, wide, tall in ((-0.35, 0.0, 0.14, 0.05), (0.35, 0.0, 0.14, 0.05),
                                     (0.0, 0.55, 0.3, 0.06)):  # fmt: skip
        offset = torch.stack([across * size, down * size], dim=1)
        half = torch.stack([wide * size, tall * size], dim=1)
        blob(picture, head + offset, half, lean, skin * torch.tensor([0.7, 0.55, 0.55]), soft=0.02)
    arm, thick = draw(0.0, 1.0, count, 2), draw(0.03, 0.09, count)
    half = (
        torch.stack([draw(0.2, 0.5, count), thick], dim=1) * (draw(0.0, 1.0, count, 1) < 0.6) + 1e-4
    )
    blob(picture, arm, half, draw(0.0, math.pi, count), 0.9 * skin, roundness=0.5, soft=paint)
    return lit(draw, picture)


def _skin(draw: Uniform, count: int) -> Float[Tensor, "b 3"]:
    """Return colours of skin, from light to dark."""
    light, dark = torch.tensor([0.93, 0.80, 0.71]), torch.tensor([0.25, 0.16, 0.12])
    return torch.lerp(light, dark, draw(0.0, 1.0, count, 1)) * draw(0.95, 1.05, count, 3)


#: What ``ProceduralScenes`` draws, each as often as it is named.
SNAPSHOTS: tuple[Kind, ...] = (
    room, desk, room, desk, street, landscape, tiles, fabric,
    lights, wall, clutter, foliage, shelves, haze, person, wall,
)  # fmt: skip
