"""The one-euro filter: smooth at rest, prompt in motion.

G. Casiez, N. Roussel, D. Vogel, "1 EUR Filter", CHI 2012. A first-order low-pass whose cutoff
grows with the filtered speed: ``cutoff = min_cutoff + beta |speed|``.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from handrec.errors import UserError
from handrec.geometry.rotations import axis_angle_to_matrix, matrix_to_axis_angle


@dataclass(frozen=True)
class OneEuro:
    """The filter's parameters.

    Attributes:
        min_cutoff: hertz, at rest: lower is smoother.
        beta: hertz per unit of speed (units of the signal per second): higher lags less.
        speed_cutoff: hertz, of the speed's own low-pass.
    """

    min_cutoff: float = 1.0
    beta: float = 0.0
    speed_cutoff: float = 1.0

    def __post_init__(self) -> None:
        if not (self.min_cutoff > 0 and self.beta >= 0 and self.speed_cutoff > 0):
            raise UserError("a one-euro filter needs min_cutoff > 0, beta >= 0, speed_cutoff > 0")


class VectorFilter:
    """Filters vectors over time; every vector (last axis) has one speed, its length's.

    Args:
        parameters: of the filter.
    """

    def __init__(self, parameters: OneEuro) -> None:
        self.parameters = parameters
        self._value: Tensor | None = None
        self._raw: Tensor | None = None
        self._speed: Tensor | None = None

    def __call__(self, value: Float[Tensor, "*b d"], seconds: float) -> Float[Tensor, "*b d"]:
        """Return the filtered vectors; the first ones pass as they are.

        Args:
            value: the next sample.
            seconds: since the last one; not read at the first.
        """
        if self._value is None or self._raw is None or self._speed is None:
            self._value, self._speed = value, torch.zeros_like(value)
        else:
            step = (value - self._raw) / seconds
            self._speed = _low_pass(
                self._speed, step, smoothing(self.parameters.speed_cutoff, seconds)
            )
            weight = _weight(self.parameters, self._speed, seconds)
            self._value = _low_pass(self._value, value, weight)
        self._raw = value
        return self._value


class RotationFilter:
    """Filters rotations over time along geodesics, so that no sign and no branch can flip.

    About a fixed axis it is the vector filter of the angle. Speeds are angular, radians per second,
    in the rotating frame.

    Args:
        parameters: of the filter.
    """

    def __init__(self, parameters: OneEuro) -> None:
        self.parameters = parameters
        self._value: Tensor | None = None
        self._raw: Tensor | None = None
        self._speed: Tensor | None = None

    def __call__(self, value: Float[Tensor, "*b 3 3"], seconds: float) -> Float[Tensor, "*b 3 3"]:
        """Return the filtered rotations; the first ones pass as they are.

        Args:
            value: the next sample.
            seconds: since the last one; not read at the first.
        """
        if self._value is None or self._raw is None or self._speed is None:
            self._value, self._speed = value, torch.zeros_like(value[..., 0])
        else:
            step = matrix_to_axis_angle(self._raw.mT @ value) / seconds
            self._speed = _low_pass(
                self._speed, step, smoothing(self.parameters.speed_cutoff, seconds)
            )
            weight = _weight(self.parameters, self._speed, seconds)
            way = matrix_to_axis_angle(self._value.mT @ value)
            self._value = _orthonormal(self._value @ axis_angle_to_matrix(weight * way))
        self._raw = value
        return self._value


def smoothing(cutoff: Tensor | float, seconds: float) -> Tensor | float:
    """Return the share of the new sample in a low-pass: ``1 / (1 + tau / T)``, tau = 1/(2 pi f).

    Args:
        cutoff: f, hertz.
        seconds: T, since the last sample.
    """
    return 1 / (1 + 1 / (2 * math.pi * cutoff * seconds))


def _weight(parameters: OneEuro, speed: Tensor, seconds: float) -> Tensor:
    """Return the share of the new sample for each vector, ``(..., 1)``."""
    length = torch.linalg.vector_norm(speed, dim=-1, keepdim=True)
    cutoff = parameters.min_cutoff + parameters.beta * length
    return torch.as_tensor(smoothing(cutoff, seconds))


def _low_pass(before: Tensor, now: Tensor, weight: Tensor | float) -> Tensor:
    return before + weight * (now - before)


def _orthonormal(rotation: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b 3 3"]:
    """Return rotations with the rounding of many products taken off (one Newton step)."""
    return 1.5 * rotation - 0.5 * rotation @ (rotation.mT @ rotation)
