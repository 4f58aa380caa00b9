"""Lights, and what a matt or a glossy surface makes of them.

A light is a named tuple of RGB gains, one row per image, on the colours of the surface. It answers
``gain(surface, normal)``: on the albedo of a matt surface; one that shines from somewhere also
answers ``highlight(surface, normal, specular)``. Directions and positions are in the camera's frame
(OpenCV: x right, y down, z forward, metres).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from handrec.render.surface import Surface


class Specular(NamedTuple):
    """Phong's highlight (B. T. Phong, CACM 18(6), 1975).

    ``light * strength * max(0, mirrored . view) ** shininess`` is added to the colour where the
    light comes from the outside; ``mirrored`` is the light's direction reflected by the surface.

    Attributes:
        strength: share of the light that is mirrored where the highlight is brightest.
        shininess: above 0; the higher, the smaller the highlight.
    """

    strength: Float[Tensor, "b 1"]
    shininess: Float[Tensor, "b 1"]


class Light(NamedTuple):
    """An ambient and a directional light.

    Attributes:
        ambient: light from everywhere.
        directional: light on a surface that faces it.
        direction: towards the light, any length: (0, 0, -1) shines from the camera, (0, -1, 0)
            from above.
    """

    ambient: Float[Tensor, "b 3"]
    directional: Float[Tensor, "b 3"]
    direction: Float[Tensor, "b 3"]

    def gain(self, surface: Surface, normal: Float[Tensor, "... 3"]) -> Float[Tensor, "... 3"]:
        """Return ``ambient + directional * max(0, normal . direction)``."""
        cosine = _dot(normal, self._towards(surface)).relu()
        return _per_image(surface, self.ambient) + _per_image(surface, self.directional) * cosine

    def highlight(
        self, surface: Surface, normal: Float[Tensor, "... 3"], specular: Specular
    ) -> Float[Tensor, "... 3"]:
        """Return the light that is mirrored, see :class:`Specular`."""
        shine = _phong(specular, surface, normal, self._towards(surface))
        return _per_image(surface, self.directional) * shine

    def _towards(self, surface: Surface) -> Tensor:
        return _per_image(surface, F.normalize(self.direction, dim=-1))


class PointLight(NamedTuple):
    """An ambient light, and one that shines from a point, equally bright near and far.

    Attributes:
        ambient: light from everywhere.
        diffuse: light on a surface that faces the point.
        position: of the point, metres.
    """

    ambient: Float[Tensor, "b 3"]
    diffuse: Float[Tensor, "b 3"]
    position: Float[Tensor, "b 3"]

    def gain(self, surface: Surface, normal: Float[Tensor, "... 3"]) -> Float[Tensor, "... 3"]:
        """Return ``ambient + diffuse * max(0, normal . direction to the point)``."""
        cosine = _dot(normal, self._towards(surface)).relu()
        return _per_image(surface, self.ambient) + _per_image(surface, self.diffuse) * cosine

    def highlight(
        self, surface: Surface, normal: Float[Tensor, "... 3"], specular: Specular
    ) -> Float[Tensor, "... 3"]:
        """Return the light that is mirrored, see :class:`Specular`."""
        shine = _phong(specular, surface, normal, self._towards(surface))
        return _per_image(surface, self.diffuse) * shine

    def _towards(self, surface: Surface) -> Tensor:
        return F.normalize(_per_image(surface, self.position) - surface["position"], dim=-1)


class Harmonics(NamedTuple):
    """Distant light from all around, as nine real spherical harmonics of its radiance.

    The gain is the irradiance over pi, ``sum_lm A_l / pi * L_lm * Y_lm(normal)`` with A / pi = 1,
    2/3, 1/4 (R. Ramamoorthi and P. Hanrahan, "An efficient representation for irradiance
    environment maps", SIGGRAPH 2001, eq. 3, 7 and 8): a surface under light of 1 from everywhere,
    ``L_00 = sqrt(4 pi)``, shows its albedo. Order and signs are theirs, along the camera's axes:
    see :func:`spherical_harmonics`. It has no one direction, hence no highlight.

    Attributes:
        coefficients: ``L_lm``.
    """

    coefficients: Float[Tensor, "b 9 3"]

    def gain(self, surface: Surface, normal: Float[Tensor, "... 3"]) -> Float[Tensor, "... 3"]:
        """Return the irradiance over pi; it may be below 0 where the light has sharp contrasts."""
        share = normal.new_tensor([1.0] + [2 / 3] * 3 + [1 / 4] * 5)
        weights = _per_image(surface, self.coefficients) * share[:, None]
        basis = spherical_harmonics(normal)
        # One term at a time: nothing of nine times the pixels' size is made.
        terms = (basis[..., i, None] * weights[..., i, :] for i in range(1, 9))
        return sum(terms, start=basis[..., :1] * weights[..., 0, :])


#: Anything that gives a matt surface its gain.
AnyLight = Light | PointLight | Harmonics


def surface_normal(surface: Surface) -> Float[Tensor, "... 3"]:
    """Return the unit normal on the side that is seen, from ``normal`` and ``side``."""
    return F.normalize(surface["normal"], dim=-1, eps=1e-6) * surface["side"].detach()


def reflect(
    surface: Surface, albedo: Float[Tensor, "... 3"], light: AnyLight
) -> Float[Tensor, "... 3"]:
    """Return ``albedo * light.gain(normal)``, clipped to [0, 1]: the colours of a matt surface.

    Args:
        surface: its ``normal`` and ``side``; ``position`` if the light is a point.
        albedo: the colours in plain white light.
        light: per image.
    """
    return (albedo * light.gain(surface, surface_normal(surface))).clamp(0, 1)


#: Lights ``(surface, albedo, light)``: see :func:`reflect`.
Reflect = Callable[[Surface, Tensor, AnyLight], Tensor]


def spherical_harmonics(direction: Float[Tensor, "... 3"]) -> Float[Tensor, "... 9"]:
    """Return the real spherical harmonics up to degree 2, orthonormal on the sphere.

    Convention:
        Y_00, Y_1-1, Y_10, Y_11, Y_2-2, Y_2-1, Y_20, Y_21, Y_22, without the Condon-Shortley sign:
        1, y, z, x, xy, yz, 3zz - 1, xz, xx - yy times their constants.

    Args:
        direction: unit vectors.
    """
    x, y, z = direction.unbind(-1)
    one, two, three = (math.sqrt(k / math.pi) / 2 for k in (1, 3, 15))
    terms = [
        torch.full_like(x, one),
        two * y,
        two * z,
        two * x,
        three * x * y,
        three * y * z,
        math.sqrt(5 / math.pi) / 4 * (3 * z * z - 1),
        three * x * z,
        three / 2 * (x * x - y * y),
    ]
    return torch.stack(terms, dim=-1)


def srgb_to_linear(colour: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return linear light of sRGB values in [0, 1] (IEC 61966-2-1); differentiable everywhere."""
    curved = ((colour.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4
    return torch.where(colour <= 0.04045, colour / 12.92, curved)


def linear_to_srgb(light: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return sRGB values of linear light in [0, 1] (IEC 61966-2-1); differentiable everywhere."""
    # The clamp keeps the root's infinite slope at 0 out of the gradient.
    curved = 1.055 * light.clamp(min=0.0031308) ** (1 / 2.4) - 0.055
    return torch.where(light <= 0.0031308, light * 12.92, curved)


def _phong(specular: Specular, surface: Surface, normal: Tensor, towards: Tensor) -> Tensor:
    """Return the share of the light that is mirrored into the camera, ``(..., 1)``."""
    cosine = _dot(normal, towards)
    mirrored = 2 * cosine * normal - towards
    shine = _dot(mirrored, F.normalize(-surface["position"], dim=-1))
    lit = (cosine > 0) & (shine > 0)
    # A power of 0 has no finite gradient: it is kept out, not only masked.
    power = torch.where(lit, shine, 1.0) ** _per_image(surface, specular.shininess)
    return torch.where(lit, power, 0.0) * _per_image(surface, specular.strength)


def _per_image(surface: Surface, values: Tensor) -> Tensor:
    """Return what is given per image, as precise as the surface is."""
    return surface.of_image(values.to(surface["normal"].dtype))


def _dot(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).sum(-1, keepdim=True)


__all__ = [
    "AnyLight",
    "Harmonics",
    "Light",
    "PointLight",
    "Reflect",
    "Specular",
    "linear_to_srgb",
    "reflect",
    "spherical_harmonics",
    "srgb_to_linear",
    "surface_normal",
]
