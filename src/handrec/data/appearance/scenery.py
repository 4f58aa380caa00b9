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
from handrec.data.appearance.painting import (
    blob,
    bricks,
    colours,
    column,
    fractal_noise,
    hashed,
    leaves,
    pixels,
)
from handrec.data.scenes import Uniform

Kind = Callable[[Uniform, int, int], Float[Tensor, "b 3 s s"]]


def room(draw: Uniform, count: int, side: int) -> Float[Tensor, "b 3 s s"]:
    """Return rooms with furniture along their walls."""
    corners = _room(draw, count)
    low, high = corners.unbind(1)
    width = draw(0.15, 0.6, count, 6, 1) * torch.tensor([1.6, 2.0, 1.6])
    middle = low[:, None] + (high - low)[:, None] * draw(0.0, 1.0, count, 6, 3)
    wall = (draw(0, 1, count, 6) * 4).long()  # each piece stands against one of four walls
    for axis, number, edge in ((0, 0, low), (0, 1, high), (2, 2, low), (2, 3, high)):
        middle[..., axis] = torch.where(wall == number, edge[:, axis, None], middle[..., axis])
    boxes = torch.stack([middle - width, middle + width], dim=2)
    boxes[..., 0, 1], boxes[..., 1, 1] = 0, width[..., 1] * 1.5
    origin = (low + high) / 2 + draw(-0.3, 0.3, count, 3)
    origin[:, 1] = draw(1.1, 1.7, count)
    aside = ((origin[:, None] - middle).abs() > width + 0.1)[..., ::2].any(2)
    boxes[..., 1, 1] *= aside  # nothing stands where the camera is
    return _indoors(draw, tracing.look(draw, origin, side, (-40, 10)), corners, boxes)


def desk(draw: Uniform, count: int, side: int) -> Float[Tensor, "b 3 s s"]:
    """Return desks with books, boxes and screens, seen from a chair."""
    corners = _room(draw, count)
    centre, top = corners.mean(1) * torch.tensor([1.0, 0.0, 1.0]), 0.75
    half = torch.cat([draw(0.7, 1.2, count, 1), draw(0.4, 0.6, count, 1)], dim=1)
    table = torch.zeros(count, 1, 2, 3)
    table[:, 0, 0], table[:, 0, 1] = centre, centre
    table[:, 0, 0, ::2] -= half
    table[:, 0, 1, ::2] += half
    table[:, 0, :, 1] = torch.tensor([top - 0.04, top])
    size = torch.cat(
        [
            draw(0.02, 0.2, count, 7, 1),
            draw(0.005, 0.08, count, 7, 1),
            draw(0.02, 0.15, count, 7, 1),
        ],
        dim=2,
    )
    screen = torch.tensor([0.28, 0.18, 0.012])
    size[:, 0] = torch.where(draw(0, 1, count, 1) < 0.6, screen, size[:, 0])
    place = draw(-1, 1, count, 7, 2) * half[:, None] * 0.9 + centre[:, None, ::2]
    low = torch.stack([place[..., 0] - size[..., 0], torch.full_like(place[..., 0], top),
                       place[..., 1] - size[..., 2]], dim=2)  # fmt: skip
    things = torch.stack([low, low + 2 * size], dim=2)
    origin = centre + torch.cat(
        [draw(-0.3, 0.3, count, 1), draw(1.05, 1.45, count, 1), draw(-0.3, 0.3, count, 1)], dim=1
    )
    rays = tracing.look(draw, origin, side, (-85, -20))
    return _indoors(draw, rays, corners, torch.cat([table, things], dim=1))


def _room(draw: Uniform, count: int) -> Float[Tensor, "b 2 3"]:
    """Return the corners of rooms, floors at height 0."""
    half = draw(1.4, 3.2, count, 3)
    low, high = -half, half.clone()
    low[:, 1], high[:, 1] = 0, draw(2.3, 3.0, count)
    return torch.stack([low, high], dim=1)


def _indoors(
    draw: Uniform, rays: tracing.Rays, corners: Tensor, boxes: Tensor
) -> Float[Tensor, "b 3 s s"]:
    """Return lit rooms with boxes in them."""
    count, number = boxes.shape[:2]
    hits = tracing.trace(rays, corners, boxes)
    place = rays.origin + hits.distance * rays.direction
    x, y, z = place.split(1, dim=1)
    inside = hits.box < 0
    is_floor, is_side = inside & (hits.axis == 1), inside & (hits.axis != 1)
    ceiling = is_floor & (y > 1)
    along = torch.where(hits.axis == 0, z, x)
    surface = tracing.pick(colours(draw, count, number + 1), hits.box)
    wall = colours(draw, count, 3, vivid=0.25, dark=0.35)
    skirting = is_side & (y < column(draw(0.0, 0.14, count)))
    painted = torch.where(skirting, wall[:, 1, :, None, None], wall[:, 0, :, None, None])
    painted = _on_walls(draw, painted, along, y, hits.axis == 0)
    surface = torch.where(is_side, painted, surface)
    floor = colours(draw, count)[..., None, None] * _boards(draw, x, z)
    surface = torch.where(is_floor, torch.where(ceiling, torch.tensor(0.85), floor), surface)
    drawers = ((y / column(draw(0.15, 0.5, count))).remainder(1) < 0.04) & (hits.axis != 1)
    surface = torch.where(drawers & ~inside & (y > 0), surface * 0.6, surface)
    surface = torch.where((hits.axis == 1) & ~inside, surface * _grain(draw, x, z), surface)
    lamp = corners.mean(1) + draw(-0.8, 0.8, count, 3)
    lamp[:, 1] = corners[:, 1, 1] - 0.2
    light = tracing.illuminate(place, hits.axis, lamp, draw(1.0, 4.0, count))
    light = 0.25 + column(draw(0.7, 1.5, count)) * light
    gap = torch.minimum(y, (place - corners[:, 0, :, None, None]).amin(1, keepdim=True)).abs()
    gap = torch.minimum(gap, (corners[:, 1, :, None, None] - place).amin(1, keepdim=True))
    occlusion = 1 - 0.5 * torch.exp(-gap.clamp(min=0) / 0.12) * inside
    return _finish(draw, surface, light * occlusion)


def _on_walls(draw: Uniform, wall: Tensor, along: Tensor, y: Tensor, side_wall: Tensor) -> Tensor:
    """Return walls with a window on two of them and pictures on all."""
    count = len(wall)
    for number in range(3):
        centre, low = draw(-1.5, 1.5, count), draw(0.8, 1.4, count)
        half, height = draw(0.15, 0.7, count), draw(0.3, 1.1, count)
        rectangle = torch.stack([centre - half, low, centre + half, low + height], dim=1)
        frame = rectangle + torch.tensor([-0.05, -0.05, 0.05, 0.05])
        here = side_wall if number == 0 else torch.ones_like(side_wall)
        pane = colours(draw, count) if number else draw(0.75, 1, count, 3).sort(1).values
        edge = colours(draw, count, vivid=0.3)[..., None, None]
        wall = torch.where(here & tracing.within(along, y, frame), edge, wall)
        wall = torch.where(here & tracing.within(along, y, rectangle), pane[..., None, None], wall)
    return wall


def _boards(draw: Uniform, x: Tensor, z: Tensor) -> Float[Tensor, "b 1 s s"]:
    """Return the tone of boards, tiles or carpet on floors."""
    count = len(x)
    width, ratio = draw(0.08, 0.4, count), 1 + 9 * (draw(0, 1, count) < 0.6) * draw(0.3, 1, count)
    tone, edge = bricks(
        x / column(width), z / column(width), column(ratio), column(draw(0, 2, count))
    )
    contrast = column(draw(0, 0.35, count))
    gap = column(draw(0.4, 1, count))
    joint = torch.where(edge * column(width) < 0.004, gap, torch.ones_like(edge))
    return (1 + contrast * (tone - 0.5)) * joint * _grain(draw, x, z)


def _grain(draw: Uniform, x: Tensor, z: Tensor) -> Float[Tensor, "b 1 s s"]:
    """Return the tone of wood: warped lines along x."""
    count = len(x)
    warp = 0.03 * torch.sin(3 * x + column(draw(0, 6, count))) + 0.02 * torch.sin(9 * x + 5 * z)
    lines = torch.sin((z + warp) * column(draw(60, 160, count)))
    lines = lines + 0.6 * torch.sin((z + 1.5 * warp) * column(draw(200, 400, count)) + 2 * x)
    return 1 + column(draw(0, 0.08, count)) * lines


def street(draw: Uniform, count: int, side: int) -> Float[Tensor, "b 3 s s"]:
    """Return streets: houses with windows along a road under a sky."""
    number = 7
    corners = torch.tensor([[-300.0, 0, -300], [300, 300, 300]]).expand(count, 2, 3)
    turn = draw(0, 2 * math.pi, count, number)
    away = draw(8, 40, count, number)
    centre = torch.stack([away * turn.cos(), torch.zeros_like(away), away * turn.sin()], dim=2)
    half = draw(2.0, 7.0, count, number, 3)
    half = torch.minimum(half, (away * 0.6)[..., None])
    boxes = torch.stack([centre - half, centre + half], dim=2)
    boxes[..., 0, 1], boxes[..., 1, 1] = 0, draw(2.5, 18, count, number)
    origin = torch.tensor([0.0, 1.5, 0]).expand(count, 3)
    boxes[..., 1, 1] *= ((centre.abs() - half)[..., ::2] > 1).any(2)
    rays = tracing.look(draw, origin, side, (-25, 20))
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
    kerb = torch.where((x.abs() - column(draw(2, 5, count))).abs() < 0.15, 1.4, 1.0)
    picture = torch.where(hits.box < 0, ground * kerb, facade) * shade
    sky = (hits.box < 0) & ((hits.axis != 1) | (y > 1))
    picture = torch.where(sky, _sky(draw, count, side), picture)
    trees = fractal_noise(draw, count, 1, side, 1.3) - column(draw(0.2, 2.0, count))
    green = colours(draw, count, vivid=0.3, dark=0.15, light=0.45) * torch.tensor([0.85, 1.1, 0.7])
    near_horizon = rays.direction[:, 1:2].abs() < 0.35
    crown = (trees * 6).clamp(0, 1) * (sky & near_horizon)
    leafy = green[..., None, None] * (1 + 0.35 * fractal_noise(draw, count, 1, side, 0.7))
    return _finish(draw, torch.lerp(picture, leafy, crown))


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
        tint = torch.tensor([0.75, 1.0, 0.6]) ** draw(0, 1, count, 1)
        colour = colours(draw, count, vivid=0.4, dark=0.15, light=0.6) * tint
        texture = 1 + column(draw(0.05, 0.35, count)) * detail[:, layer : layer + 1]
        cover = ((y - line) * side / 3 + 0.5 + 0.8 * detail[:, layer : layer + 1]).clamp(0, 1)
        picture = torch.lerp(picture, colour[..., None, None] * texture, cover)
    return _finish(draw, picture)


def _sky(draw: Uniform, count: int, side: int) -> Float[Tensor, "b 3 s s"]:
    """Return skies: blue, grey or evening, with clouds."""
    _, y = pixels(side)
    tops = torch.tensor(
        [[0.35, 0.55, 0.85], [0.7, 0.74, 0.8], [0.85, 0.88, 0.92], [0.45, 0.5, 0.7]]
    )
    lows = torch.tensor(
        [[0.75, 0.85, 0.95], [0.85, 0.86, 0.88], [0.95, 0.95, 0.95], [0.95, 0.75, 0.6]]
    )
    which = (draw(0, 1, count) * len(tops)).long()
    sky = torch.lerp(
        tops[which][..., None, None], lows[which][..., None, None], y.expand(side, side)
    )
    clouds = fractal_noise(draw, count, 1, side, 1.5, stretch=0.6) - column(draw(-0.5, 2, count))
    return torch.lerp(sky, torch.tensor(0.95), 0.8 * clouds.clamp(0, 1))


def tiles(draw: Uniform, count: int, side: int) -> Float[Tensor, "b 3 s s"]:
    """Return tiled, bricked or panelled walls, seen at an angle."""
    origin = torch.stack([torch.zeros(count), torch.ones(count), draw(-1.2, -0.3, count)], dim=1)
    rays = tracing.look(draw, origin, side, (-10, 10))
    turned = rays.direction.clone()
    turned[:, 2] = turned[:, ::2].norm(dim=1).clamp(min=0.3)  # never away from the wall
    distance = -rays.origin[:, 2:] / turned[:, 2:]
    u = distance * (turned[:, :1].clamp(-1.5, 1.5) + column(draw(-0.5, 0.5, count)))
    v = distance * turned[:, 1:2]
    size = column(draw(0.03, 0.2, count))
    ratio = column(torch.where(draw(0, 1, count) < 0.5, torch.ones(count), draw(1.5, 6, count)))
    offset = column((draw(0, 1, count) < 0.6) * 0.5)
    tone, edge = bricks(u / size, v / size, ratio, offset)
    contrast = column(draw(0, 0.5, count) ** 1.5)
    rough = 1 + column(draw(0, 0.12, count)) * fractal_noise(draw, count, 1, side, 0.6)
    face = colours(draw, count, dark=0.2)[..., None, None] * (1 + contrast * (tone - 0.5)) * rough
    grout = colours(draw, count, vivid=0.15, dark=0.3)[..., None, None]
    width = column(draw(0.02, 0.06, count))
    sharp = (size * side / 2).clamp(min=1)
    cover = ((edge - width) * sharp + 0.5).clamp(0, 1)
    bevel = 1 + 0.15 * torch.exp(-edge * 12)
    return _finish(draw, torch.lerp(grout, face * bevel, cover))


def fabric(draw: Uniform, count: int, side: int) -> Float[Tensor, "b 3 s s"]:
    """Return cloth in folds: plain, striped or checked."""
    x, y = pixels(side)
    warp = fractal_noise(draw, count, 2, side, 2.2)
    turn = column(draw(0, 2 * math.pi, count))
    u = x * turn.cos() + y * turn.sin() + 0.06 * warp[:, :1]
    v = y * turn.cos() - x * turn.sin() + 0.06 * warp[:, 1:]
    folds = torch.sin(u * column(draw(4, 25, count)) + 2 * v)
    folds = folds.abs() ** column(draw(0.4, 1, count)) + 0.3 * fractal_noise(
        draw, count, 1, side, 1.8
    )
    slope = torch.gradient(folds, dim=(2, 3))
    lit = (slope[0] * turn.cos() + slope[1] * turn.sin()) * side / 20
    pair = colours(draw, count, 2)
    pair[:, 1] = torch.where(draw(0, 1, count, 1) < 0.5, pair[:, 0], pair[:, 1])
    frequency = column(draw(6, 40, count))
    checked = column((draw(0, 1, count) < 0.4).float())
    stripe = (torch.sin(u * frequency) * 4).clamp(-1, 1)
    cross = (torch.sin(v * frequency) * 4).clamp(-1, 1)
    weight = 0.5 + 0.25 * stripe + 0.25 * torch.lerp(stripe, cross, checked)
    cloth = torch.lerp(pair[:, 0, :, None, None], pair[:, 1, :, None, None], weight)
    light = 1 + column(draw(0.1, 0.45, count)) * lit.clamp(-1.5, 1.5)
    return _finish(draw, cloth, light.clamp(min=0.15))


def lights(draw: Uniform, count: int, side: int) -> Float[Tensor, "b 3 s s"]:
    """Return lights out of focus at night or indoors: discs before the dark."""
    base = colours(draw, count, vivid=0.6, dark=0.02, light=0.3)[..., None, None]
    picture = base * (1 + 0.4 * fractal_noise(draw, count, 3, side, 2.0))
    radius = draw(0.015, 0.07, count)
    for _ in range(24):
        centre, size = draw(0, 1, count, 2), radius * draw(0.6, 1.2, count)
        glow = colours(draw, count, vivid=0.8, dark=0.5) * draw(0.3, 1, count, 1)
        disc = torch.zeros(count, 1, side, side)
        one = torch.ones(count, 1)
        blob(disc, centre, size[:, None].expand(-1, 2), torch.zeros(count), one, soft=0.004)
        picture.addcmul_(disc, glow[..., None, None])  # light adds up
    return _finish(draw, picture.clamp(0, 1))


def wall(draw: Uniform, count: int, side: int) -> Float[Tensor, "b 3 s s"]:
    """Return plain walls with falling light, a shadow's edge and, on some, a line of furniture."""
    picture = colours(draw, count, vivid=0.3, dark=0.2)[..., None, None].repeat(1, 1, side, side)
    picture *= 1 + column(draw(0, 0.04, count)) * fractal_noise(draw, count, 1, side, 0.5)
    for _ in range(2):
        there = (draw(0, 1, count, 1) < 0.5) * 1.0
        half = torch.stack([draw(0.2, 1, count), draw(0.05, 0.4, count)], dim=1) * there + 1e-4
        turn = 0.06 * draw.normal(count) + (draw(0, 1, count) < 0.5) * math.pi / 2
        blob(picture, draw(0, 1, count, 2), half, turn, colours(draw, count), roundness=0.0)
    shadow = torch.ones(count, 1, side, side)
    depth, turn = draw(0.4, 1, count, 1), draw(0, math.pi, count)
    half = draw(0.2, 0.8, count, 2)
    blob(
        shadow, draw(0, 1, count, 2), half, turn, depth, roundness=0.3, soft=draw(0.02, 0.3, count)
    )
    return _finish(draw, picture, shadow)


def clutter(draw: Uniform, count: int, side: int) -> Float[Tensor, "b 3 s s"]:
    """Return dead leaves: shapes of all sizes before each other, with the spectrum of photographs.

    The number of shapes of a size falls with its cube, which makes the picture look alike at every
    scale (Lee, Mumford and Huang, Occlusion models for natural images, 2001).
    """
    palette = colours(draw, count, 8)
    picture = palette[:, 0, :, None, None].repeat(1, 1, side, side)
    scales = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48)
    for _ in range(6):
        for step in torch.randperm(len(scales), generator=draw.generator).tolist():
            leaves(draw, picture, palette, scales[step])
    return _finish(draw, picture)


def foliage(draw: Uniform, count: int, side: int) -> Float[Tensor, "b 3 s s"]:
    """Return leaves and grass close by, in broken light."""
    tint = torch.tensor([0.8, 1.05, 0.55]) * draw(0.85, 1.1, count, 1, 3)
    palette = colours(draw, count, 8, vivid=0.2, dark=0.08, light=0.75) * tint
    picture = palette[:, 0, :, None, None] * torch.ones(side, side)
    for cells in (4, 6, 9, 12, 16, 9, 6, 12, 7, 20):
        leaves(draw, picture, palette, cells, slim=(0.15, 0.5), roundness=(0.9, 1.0))
    dapple = 1 + 0.4 * fractal_noise(draw, count, 1, side, 1.2)
    return _finish(draw, picture, dapple.clamp(min=0.15))


def shelves(draw: Uniform, count: int, side: int) -> Float[Tensor, "b 3 s s"]:
    """Return shelves of books, boxes or goods."""
    x, y = pixels(side)
    tilt = column(0.08 * draw.normal(count))
    rows, seed = column(draw(2.2, 5, count)), column(draw(0, 50, count))
    u, v = x + tilt * y + 2, (y - tilt * x) * rows + 2
    row = v.floor()
    step = u * column(draw(10, 40, count))
    step = step + 0.35 * torch.sin(2.4 * step + row)  # not all are equally wide
    book = step.floor()
    table = torch.tensor([0.0, 1, 2])
    random = [hashed(book, row, seed + shift) for shift in (*table.tolist(), 3.0, 4.0)]
    palette = colours(draw, count, 24, vivid=0.8)
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
    return _finish(draw, picture, depth)


def haze(draw: Uniform, count: int, side: int) -> Float[Tensor, "b 3 s s"]:
    """Return smooth colours without anything to recognise: scenes far out of focus."""
    noise = fractal_noise(draw, count, 1, side, 1.5) + 0.4 * fractal_noise(
        draw, count, 3, side, 1.7
    )
    base = colours(draw, count)[..., None, None]
    return _finish(draw, (base * (1 + column(draw(0.1, 0.5, count)) * noise)).clamp(0, 1))


def person(draw: Uniform, count: int, side: int) -> Float[Tensor, "b 3 s s"]:
    """Return a person behind the hand: clothes, a head, an arm, the colour of skin."""
    picture = haze(draw, count, side)
    skin, hair = _skin(draw, count), colours(draw, count, vivid=0.5, dark=0.03, light=0.35)
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
        blob(picture, head + offset, half, lean, skin * torch.tensor([0.55, 0.4, 0.4]), soft=paint)
    arm, thick = draw(0, 1, count, 2), draw(0.03, 0.09, count)
    half = torch.stack([draw(0.2, 0.5, count), thick], dim=1) * (draw(0, 1, count, 1) < 0.6) + 1e-4
    blob(picture, arm, half, draw(0, math.pi, count), 0.9 * skin, roundness=0.5, soft=paint)
    return _finish(draw, picture)


def _skin(draw: Uniform, count: int) -> Float[Tensor, "b 3"]:
    """Return colours of skin, from light to dark."""
    light, dark = torch.tensor([0.93, 0.80, 0.71]), torch.tensor([0.25, 0.16, 0.12])
    return torch.lerp(light, dark, draw(0, 1, count, 1)) * draw(0.95, 1.05, count, 3)


def _finish(
    draw: Uniform, picture: Float[Tensor, "b 3 s s"], light: Tensor | None = None
) -> Float[Tensor, "b 3 s s"]:
    """Return a picture under a light that falls off across it, its surfaces not quite clean."""
    count, _, side, _ = picture.shape
    x, y = pixels(side)
    slope = draw(-0.5, 0.5, count, 2)
    falloff = 1 + column(slope[:, 0]) * (x - 0.5) + column(slope[:, 1]) * (y - 0.5)
    dirt = 1 + column(draw(0, 0.08, count)) * fractal_noise(draw, count, 1, side, 1.0)
    warmth = 1 + 0.08 * draw.normal(count, 1) * torch.tensor([1.0, 0.0, -1.0])
    total = (falloff * dirt).clamp(min=0.1)[:, :1] * warmth[..., None, None]
    total = total if light is None else total * light
    return (picture.clamp(0, 1) * total.clamp(min=0).sqrt()).clamp(0, 1)


#: What ``ProceduralScenes`` draws, each as often as it is named.
SNAPSHOTS: tuple[Kind, ...] = (
    room, desk, room, desk, street, landscape, tiles, fabric,
    lights, wall, clutter, foliage, shelves, haze, person, wall,
)  # fmt: skip
