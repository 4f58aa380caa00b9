"""Colours as they are stored (sRGB) and as they look (CIELAB, D65), both ways."""

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
    green = (lab[:, 0] + 16) / 116
    root = torch.stack([green + lab[:, 1] / 500, green, green - lab[:, 2] / 200], dim=1)
    xyz = torch.where(root > _KNEE, root**3, 3 * _KNEE**2 * (root - 4 / 29))
    linear = _mix(_FROM_XYZ, xyz).clamp(0, 1)
    return torch.where(
        linear <= 0.0031308, linear * 12.92, 1.055 * linear.clamp(min=1e-4) ** (1 / 2.4) - 0.055
    ).clamp(0, 1)


def _mix(rows: tuple[tuple[float, ...], ...] | list[list[float]], x: Tensor) -> Tensor:
    """Return the matrix ``rows`` applied to channels, in full precision on every device."""
    first, second, third = x.unbind(1)
    return torch.stack([a * first + b * second + c * third for a, b, c in rows], dim=1)
