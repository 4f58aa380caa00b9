"""What the weights of every method's losses share."""

from dataclasses import dataclass

from handrec.errors import not_negative


@dataclass(frozen=True)
class Weights:
    """Weights of loss terms: none is negative, nor NaN."""

    def __post_init__(self) -> None:
        not_negative(self, **vars(self))
