"""Random numbers that depend on a seed per image alone, not on the batch, the device or the order.

A generator per image would need a loop. Instead number ``i`` of seed ``s`` is a hash of both:
splitmix64 (G. Steele, D. Lea, C. Flood, OOPSLA 2014), whose outputs pass statistical tests.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor


def _signed(value: int) -> int:
    """Return the 64-bit integer whose bits are those of an unsigned one."""
    return value - 2**64 if value >= 2**63 else value


_STEP = _signed(0x9E3779B97F4A7C15)
_FIRST, _SECOND = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


class SeededNoise:
    """Draws numbers for each image; every call gives new ones.

    Args:
        seed: of each image.
    """

    def __init__(self, seed: Int[Tensor, " b"]) -> None:
        self.seed = _mix(seed.long())
        self.drawn = 0

    def uniform(self, *shape: int) -> Float[Tensor, "b ..."]:
        """Return uniform numbers in (0, 1), of the given shape for each image."""
        count = math.prod(shape)
        index = torch.arange(1 + self.drawn, 1 + self.drawn + count, device=self.seed.device)
        self.drawn += count
        bits = _shift(_mix(self.seed[:, None] + index * _STEP), 40)  # 24 bits: exact in float32
        return ((bits.float() + 0.5) / 2**24).view(-1, *shape)

    def normal(self, *shape: int) -> Float[Tensor, "b ..."]:
        """Return standard normal numbers, of the given shape for each image (Box and Muller)."""
        radius, angle = self.uniform(*shape), self.uniform(*shape)
        return (-2 * radius.log()).sqrt() * (2 * math.pi * angle).cos()


def _mix(value: Int[Tensor, "*b"]) -> Int[Tensor, "*b"]:
    """Return the hash of 64-bit integers; products wrap around."""
    value = (value ^ _shift(value, 30)) * _FIRST
    value = (value ^ _shift(value, 27)) * _SECOND
    return value ^ _shift(value, 31)


def _shift(value: Int[Tensor, "*b"], bits: int) -> Int[Tensor, "*b"]:
    """Return ``value >> bits`` with zeros shifted in, as of unsigned integers."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)
