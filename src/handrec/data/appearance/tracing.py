"""Axis-aligned boxes seen by a pinhole camera: rooms, desks and streets to stand behind a hand.

World frame: metres, y up. All tensors are batched; a value per pixel is ``(B, C, S, S)``.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from handrec.data.scenes import Uniform


class Rays(NamedTuple):
    """The pixels of pictures.

    Attributes:
        origin: metres.
        direction: any length, no component 0.
    """

    origin: Float[Tensor, "b 3 1 1"]
    direction: Float[Tensor, "b 3 s s"]


class Hits(NamedTuple):
    """What rays meet first.

    Attributes:
        distance: along the rays, in lengths of their directions.
        axis: of the normal there, 0 to 2.
        box: its number; -1 for the room itself.
    """

    distance: Float[Tensor, "b 1 s s"]
    axis: Int[Tensor, "b 1 s s"]
    box: Int[Tensor, "b 1 s s"]


def look(
    draw: Uniform,
    origin: Float[Tensor, "b 3"],
    side: int,
    pitch: tuple[float, float],
    heading: float = 180.0,
) -> Rays:
    """Return the rays of cameras that look around, with fields of view of 35 to 70 degrees.

    Args:
        draw: random numbers.
        origin: of the cameras, metres.
        side: of the pictures, pixels.
        pitch: range of it, degrees, positive looks up.
        heading: greatest turn away from z, degrees.
    """
    count = len(origin)
    yaw, roll = math.radians(heading) * draw(-1.0, 1.0, count), 0.1 * draw.normal(count)
    tilt = draw(math.radians(pitch[0]), math.radians(pitch[1]), count)
    reach = torch.tan(draw(math.radians(35), math.radians(70), count) / 2)
    line = (torch.arange(side) + 0.5) / side * 2 - 1
    yaw, roll, tilt, reach = (x.view(-1, 1, 1) for x in (yaw, roll, tilt, reach))
    across, up = line * reach, -line[:, None] * reach
    x, y = roll.cos() * across - roll.sin() * up, roll.sin() * across + roll.cos() * up
    y, z = tilt.cos() * y + tilt.sin(), tilt.cos() - tilt.sin() * y
    x, z = yaw.cos() * x + yaw.sin() * z, yaw.cos() * z - yaw.sin() * x
    direction = torch.stack([x, y, z], dim=1)
    tiny = torch.where(direction < 0, -1e-4, 1e-4)
    return Rays(origin[..., None, None], torch.where(direction.abs() < 1e-4, tiny, direction))


def trace(rays: Rays, room: Float[Tensor, "b 2 3"], boxes: Float[Tensor, "b k 2 3"]) -> Hits:
    """Return what the rays meet: the inside of a room or the outside of boxes in it.

    Args:
        rays: from inside of the room and outside of the boxes.
        room: its lower and upper corner.
        boxes: theirs; a box whose corners are in the wrong order is not there.
    """
    inverse = 1 / rays.direction
    walls = torch.maximum(*_crossings(rays, inverse, room))
    distance, axis = walls.min(1, keepdim=True)
    box = torch.full_like(axis, -1)
    for number, corners in enumerate(boxes.unbind(1)):
        first, second = _crossings(rays, inverse, corners)
        entry, entry_axis = torch.minimum(first, second).max(1, keepdim=True)
        leave = torch.maximum(first, second).amin(1, keepdim=True)
        there = (corners[:, 0] < corners[:, 1]).all(1).view(-1, 1, 1, 1)
        nearer = there & (entry < leave) & (entry > 0) & (entry < distance)
        distance = torch.where(nearer, entry, distance)
        axis = torch.where(nearer, entry_axis, axis)
        box = box.masked_fill_(nearer, number)
    return Hits(distance, axis, box)


def _crossings(rays: Rays, inverse: Tensor, corners: Tensor) -> tuple[Tensor, Tensor]:
    """Return where rays cross the planes through two corners."""
    low, high = corners[..., None, None].unbind(1)
    return (low - rays.origin) * inverse, (high - rays.origin) * inverse


def illuminate(
    place: Float[Tensor, "b 3 s s"],
    axis: Int[Tensor, "b 1 s s"],
    lamp: Float[Tensor, "b 3"],
    reach: Float[Tensor, " b"],
) -> Float[Tensor, "b 1 s s"]:
    """Return the light of a lamp on surfaces square to the axes, 1 right below it.

    Args:
        place: on the surfaces, metres.
        axis: of their normals.
        lamp: where it is, metres.
        reach: distance at which its light has fallen to a half, metres.
    """
    towards = lamp[..., None, None] - place
    squared = towards.square().sum(1, keepdim=True)
    cosine = towards.gather(1, axis).abs() / squared.sqrt().clamp(min=1e-3)
    return cosine / (1 + squared / reach.view(-1, 1, 1, 1) ** 2)


def shade(
    place: Float[Tensor, "b 3 s s"], boxes: Float[Tensor, "b k 2 3"], lamp: Float[Tensor, "b 3"]
) -> Float[Tensor, "b 1 s s"]:
    """Return the light that soft shadows leave where boxes stand, 1 where there is none.

    Each shadow is the box's footprint, drawn out away from the lamp by half of its height.
    """
    x, y, z = place.split(1, dim=1)
    light = torch.ones_like(y)
    for low, high in (box.unbind(1) for box in boxes.unbind(1)):
        half, height = (high - low) / 2, high[:, 1] - low[:, 1]
        centre = low + half
        shift = (centre - lamp) / (lamp[:, 1:2] - low[:, 1:2]) * height[:, None] / 2
        far_x = ((x - _pixel(centre + shift, 0)).abs() - _pixel(half, 0)).clamp_(min=0)
        far_z = ((z - _pixel(centre + shift, 2)).abs() - _pixel(half, 2)).clamp_(min=0)
        soft = 0.01 + 0.3 * height.clamp(min=0).view(-1, 1, 1, 1)
        dark = 0.6 * torch.exp(-torch.hypot(far_x, far_z) / soft)
        light *= 1 - dark * ((y - _pixel(low, 1)).abs() < 0.005)
    return light


def _pixel(points: Tensor, axis: int) -> Tensor:
    return points[:, axis].view(-1, 1, 1, 1)


def pick(
    values: Float[Tensor, "b k c"], number: Int[Tensor, "b 1 s s"]
) -> Float[Tensor, "b c s s"]:
    """Return row ``number`` of each image's table at each pixel; -1 is the last row."""
    index = (number % values.shape[1])[:, 0]
    rows = torch.arange(len(values), device=values.device).view(-1, 1, 1)
    return values[rows, index].movedim(-1, 1)


def within(
    u: Float[Tensor, "b 1 s s"], v: Float[Tensor, "b 1 s s"], box: Float[Tensor, "b 4"]
) -> Bool[Tensor, "b 1 s s"]:
    """Return whether points lie in a rectangle ``(u1, v1, u2, v2)``."""
    left, low, right, high = box.view(-1, 4, 1, 1, 1).unbind(1)
    return (u > left) & (u < right) & (v > low) & (v < high)
