"""The contracts of backbones and heads."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from handrec.hand.base import HandModel
from handrec.models.compiling import Compilable
from handrec.types import Camera, HandPrediction


class Features(NamedTuple):
    """What a backbone sees in an image.

    Attributes:
        grid: spatial features, row 0 at the top; cells tile the image evenly.
        pooled: the class token where there is one, else the mean of the grid.
        fine: maps of 2, 4, ... times the grid's resolution, if the backbone has any.
    """

    grid: Float[Tensor, "b c h w"]
    pooled: Float[Tensor, "b c"]
    fine: tuple[Tensor, ...] = ()


class Estimates(NamedTuple):
    """What a head says of a batch.

    Attributes:
        iterations: the estimate after every iteration, the final one last.
        dense: a map for dense supervision: three channels of normalised rest position (PNCC) and
            the logit of the mask; None where the head has none.
    """

    iterations: list[HandPrediction]
    dense: Float[Tensor, "b 4 h w"] | None


class Backbone(Compilable, ABC):
    """Turns images in [0, 1] into features; it normalises them as it wants.

    Attributes:
        channels: of both ``grid`` and ``pooled``.
        fine_channels: of the maps in ``fine``.
        model: the network inside, which knows how its layers group (timm's ``group_matcher``).
    """

    channels: int
    fine_channels: tuple[int, ...] = ()
    model: Any

    @abstractmethod
    def encode(self, image: Float[Tensor, "b 3 h w"]) -> Features:
        """Return the features of RGB images in [0, 1]."""


class MeshHead(Compilable, ABC):
    """Turns features into hands, in one or several iterations."""

    @abstractmethod
    def regress(self, features: Features, camera: Camera) -> Estimates:
        """Return the hands that the features show.

        Args:
            features: of the crops.
            camera: of the crops; translations and 2D keypoints are in its frame and pixels.
        """


#: Builds a head for a backbone and a hand model. In YAML: a class path and the other arguments.
HeadFactory = Callable[[Backbone, HandModel], MeshHead]
