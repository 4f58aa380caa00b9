"""The contract of an appearance domain: what synthetic pictures look like."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from handrec.hand.base import HandModel
from handrec.render.base import Rasterizer
from handrec.types import Camera, Hand

#: Columns of a table of looks, by name; row i is look i.
Look = dict[str, Tensor]


class Stage(NamedTuple):
    """Posed hands before they look like anything.

    Attributes:
        hand: their model.
        posed: metres, camera frame.
        pose: absolute rotations; entry 0 turns the hand into the camera frame.
        camera: of the square crops to draw.
        noise_seed: of whatever differs between the frames of one look, such as sensor noise.
        rasterizer: any backend; the pictures agree to rounding.
    """

    hand: HandModel
    posed: Hand
    pose: Float[Tensor, "b 16 3 3"]
    camera: Camera
    noise_seed: Int[Tensor, " b"]
    rasterizer: Rasterizer


def stage_rows(stage: Stage, rows: Int[Tensor, " n"]) -> Stage:
    """Return some hands of a stage."""
    return stage._replace(
        posed=Hand(*(column[rows] for column in stage.posed)),
        pose=stage.pose[rows],
        camera=stage.camera._replace(intrinsics=stage.camera.intrinsics[rows]),
        noise_seed=stage.noise_seed[rows],
    )


class Picture(NamedTuple):
    """A drawn batch with the labels that only drawing can tell.

    Attributes:
        image: RGB in [0, 1].
        mask: share of each pixel that shows the hand: not its forearm, nor what is before it.
        depth: of the hand where it is seen, camera z in metres; 0 elsewhere.
        uv: atlas coordinates of the hand where it is seen, v up; 0 elsewhere.
        visibility: 1 where a joint is hidden neither by the hand itself nor by something else.
    """

    image: Float[Tensor, "b 3 h w"]
    mask: Float[Tensor, "b 1 h w"]
    depth: Float[Tensor, "b 1 h w"]
    uv: Float[Tensor, "b 2 h w"]
    visibility: Float[Tensor, "b 21"]


class Appearance(ABC):
    """A domain of pictures: skins, lights, backgrounds, things in the way, cameras.

    A look is drawn on the CPU from a generator alone, so every backend and machine makes the same
    picture of it; the frames of a video share one. Its columns are numbers of fixed shape, kept in
    a safetensors file. Constructor arguments are the options of the domain: all of them count when
    a cache is looked up, and so does ``version``.

    Attributes:
        name: of the domain, as reports show it.
        version: raise it whenever the same seed or look gives another picture.
    """

    name: str
    version: int

    @abstractmethod
    def sample(self, count: int, generator: torch.Generator) -> Look:
        """Return ``count`` independent looks."""

    @abstractmethod
    def draw(self, stage: Stage, look: Look) -> Picture:
        """Return the pictures of a stage, one look per hand, on the stage's device."""
