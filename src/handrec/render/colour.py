"""Colours as they are stored (sRGB) and as they look (CIELAB, D65), both ways."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

#: Linear sRGB to CIE XYZ, divided by the D65 white (IEC 61966-2-1).
_TO_XYZ = (
    (0.4124564 / 0.95047, 0.3575761 / 0.95047, 0.1804375 / 0.95047),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339 / 1.08883, 0.1191920 / 1.08883, 0.9503041 / 1.08883),
)
#: From the cube roots of XYZ to L*, a*, b* (and L* - 16).
_TO_LAB = ((0.0, 116.0, 0.0), (500.0, -500.0, 0.0), (0.0, 200.0, -200.0))
_FROM_XYZ = torch.tensor(_TO_XYZ, dtype=torch.float64).inverse().tolist()
_KNEE = 6 / 29


def srgb_to_lab(colours: Float[Tensor, "b 3 *n"]) -> Float[Tensor, "b 3 *n"]:
    """Return L* in [0, 100], a* and b* of sRGB colours in [0, 1]."""
    linear = torch.where(
        colours <= 0.04045, colours / 12.92, ((colours.clamp(min=0) + 0.055) / 1.055) ** 2.4
    )
    xyz = _mix(_TO_XYZ, linear)
    root = torch.where(
        xyz > _KNEE**3, xyz.clamp(min=_KNEE**3) ** (1 / 3), xyz / (3 * _KNEE**2) + 4 / 29
    )
    lab = _mix(_TO_LAB, root)
    lab[:, 0] -= 16
    return lab


def lab_to_srgb(lab: Float[Tensor, "b 3 *n"]) -> Float[Tensor, "b 3 *n"]:
    """Return sRGB colours, clipped to [0, 1], of L*, a* and b*."""
    lightness, red, yellow = lab.unbind(1)
    green = lightness.add(16).mul_(1 / 116)
    root = torch.stack(
        [green.add(red, alpha=1 / 500), green, green.sub(yellow, alpha=1 / 200)], dim=1
    )
    curved = root.clamp(min=_KNEE)
    xyz = curved.pow(3).add_(root.sub_(curved), alpha=3 * _KNEE**2)
    linear = _mix(_FROM_XYZ, xyz).clamp_(0, 1)
    # Held where it meets the straight part, which runs below it from there on down.
    curved = linear.clamp(min=0.0031308).pow_(1 / 2.4).mul_(1.055).sub_(0.055)
    return torch.minimum(linear.mul_(12.92), curved)


def _mix(rows: Sequence[Sequence[float]], x: Tensor) -> Tensor:
    """Return the matrix ``rows`` applied to channels, in full precision on every device."""
    first, second, third = x.unbind(1)
    mixed = [(first * a).add_(second, alpha=b).add_(third, alpha=c) for a, b, c in rows]
    return torch.stack(mixed, dim=1)
