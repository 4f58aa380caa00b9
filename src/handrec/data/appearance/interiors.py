"""Rooms and desks, traced: where most hands are photographed."""

import torch
from jaxtyping import Float
from torch import Tensor

from handrec.data.appearance import tracing
from handrec.data.appearance.painting import bricks, colours, column, fractal_noise, lit
from handrec.data.scenes import Uniform


def room(draw: Uniform, count: int, side: int) -> Float[Tensor, "b 3 s s"]:
    """Return rooms with furniture along their walls."""
    corners = _room(draw, count)
    low, high = corners.unbind(1)
    width = draw(0.2, 0.7, count, 8, 3)
    middle = low[:, None] + (high - low)[:, None] * draw(0.0, 1.0, count, 8, 3)
    wall = (draw(0.0, 1.0, count, 8) * 4).long()  # each piece stands against one of four walls
    for axis, number, edge in ((0, 0, low), (0, 1, high), (2, 2, low), (2, 3, high)):
        middle[..., axis] = torch.where(wall == number, edge[:, axis, None], middle[..., axis])
    boxes = torch.stack([middle - width, middle + width], dim=2)
    boxes[..., 0, 1], boxes[..., 1, 1] = 0, 3 * width[..., 1]
    origin = (low + high) / 2 + draw(-0.3, 0.3, count, 3)
    origin[:, 1] = draw(1.1, 1.7, count)
    aside = ((origin[:, None] - middle).abs() > width + 0.1)[..., ::2].any(2)
    boxes[..., 1, 1] *= aside  # nothing stands where the camera is
    return _indoors(draw, tracing.look(draw, origin, side, (-40.0, 10.0)), corners, boxes)


def desk(draw: Uniform, count: int, side: int) -> Float[Tensor, "b 3 s s"]:
    """Return desks with books, boxes and screens, seen from a chair."""
    corners = _room(draw, count)
    centre, top = corners.mean(1) * torch.tensor([1.0, 0.0, 1.0]), 0.75
    half = torch.cat([draw(0.7, 1.2, count, 1), draw(0.45, 0.7, count, 1)], dim=1)
    table = torch.zeros(count, 1, 2, 3)
    table[:, 0, 0], table[:, 0, 1] = centre, centre
    table[:, 0, 0, ::2] -= half
    table[:, 0, 1, ::2] += half
    table[:, 0, :, 1] = torch.tensor([top - 0.04, top])
    number = 9
    flat = draw(0.0, 1.0, count, number) < 0.4  # sheets, magazines, mats
    high = torch.where(flat, 0.003, draw(0.01, 0.12, count, number))
    size = draw(0.02, 0.15, count, number, 3) * (1 + flat)[..., None]
    size[..., 1] = high
    screen = torch.tensor([0.28, 0.18, 0.012])
    size[:, 0] = torch.where(draw(0.0, 1.0, count, 1) < 0.6, screen, size[:, 0])
    place = 0.35 * draw.normal(count, number, 2) + centre[:, None, ::2]
    edge = half[:, None] - size[..., ::2]  # nothing sticks out
    place = torch.minimum(
        torch.maximum(place, centre[:, None, ::2] - edge), centre[:, None, ::2] + edge
    )
    low = torch.stack([place[..., 0] - size[..., 0], torch.full_like(place[..., 0], top),
                       place[..., 1] - size[..., 2]], dim=2)  # fmt: skip
    things = torch.stack([low, low + 2 * size], dim=2)
    origin = centre + torch.cat(
        [draw(-0.3, 0.3, count, 1), draw(1.05, 1.45, count, 1), draw(-0.3, 0.3, count, 1)], dim=1
    )
    rays = tracing.look(draw, origin, side, (-80.0, -15.0))
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
    wall = colours(draw, count, 2, vivid=0.25, dark=0.45)
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
    light = column(draw(0.3, 0.6, count)) + column(draw(0.9, 2.0, count)) * light * tracing.shade(
        place, boxes, lamp
    )
    gap = torch.minimum(y, (place - corners[:, 0, :, None, None]).amin(1, keepdim=True)).abs()
    gap = torch.minimum(gap, (corners[:, 1, :, None, None] - place).amin(1, keepdim=True))
    occlusion = 1 - 0.5 * torch.exp(-gap.clamp(min=0) / 0.12) * inside
    return lit(draw, surface, light * occlusion)


def _on_walls(draw: Uniform, wall: Tensor, along: Tensor, y: Tensor, side_wall: Tensor) -> Tensor:
    """Return walls with a window on two of them and pictures on all."""
    count = len(wall)
    for number in range(3):
        centre, low = draw(-1.5, 1.5, count), draw(0.8, 1.4, count)
        half, height = draw(0.15, 0.7, count), draw(0.3, 1.1, count)
        rectangle = torch.stack([centre - half, low, centre + half, low + height], dim=1)
        frame = rectangle + torch.tensor([-0.05, -0.05, 0.05, 0.05])
        here = side_wall if number == 0 else torch.ones_like(side_wall)
        pane = colours(draw, count) if number else draw(0.75, 1.0, count, 3).sort(1).values
        edge = colours(draw, count, vivid=0.3)[..., None, None]
        shown = fractal_noise(draw, count, 1, wall.shape[-1], 1.6) * (0.06 if number == 0 else 0.3)
        wall = torch.where(here & tracing.within(along, y, frame), edge, wall)
        wall = torch.where(
            here & tracing.within(along, y, rectangle), pane[..., None, None] * (1 + shown), wall
        )
    return wall


def _boards(draw: Uniform, x: Tensor, z: Tensor) -> Float[Tensor, "b 1 s s"]:
    """Return the tone of boards, tiles or carpet on floors."""
    count = len(x)
    width, ratio = (
        draw(0.08, 0.4, count),
        1 + 9 * (draw(0.0, 1.0, count) < 0.6) * draw(0.3, 1.0, count),
    )
    tone, edge = bricks(
        x / column(width), z / column(width), column(ratio), column(draw(0.0, 2.0, count))
    )
    contrast = column(draw(0.0, 0.35, count))
    gap = column(draw(0.4, 1.0, count))
    joint = torch.where(edge * column(width) < 0.004, gap, torch.ones_like(edge))
    return (1 + contrast * (tone - 0.5)) * joint * _grain(draw, x, z)


def _grain(draw: Uniform, x: Tensor, z: Tensor) -> Float[Tensor, "b 1 s s"]:
    """Return the tone of wood: warped lines along x."""
    count = len(x)
    warp = 0.03 * torch.sin(3 * x + column(draw(0.0, 6.0, count))) + 0.02 * torch.sin(9 * x + 5 * z)
    pitch = column(draw(30.0, 90.0, count))
    lines = torch.sin((z + warp) * pitch + 2 * torch.sin((z + warp) * 0.37 * pitch))
    lines = lines + 0.7 * torch.sin((z + 1.5 * warp) * 3.7 * pitch + 2 * x)
    return 1 + column(draw(0.0, 0.06, count)) * lines
