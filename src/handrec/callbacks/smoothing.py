"""Smooths the hands of a video over time."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from handrec.geometry.camera import project
from handrec.geometry.one_euro import OneEuro, RotationFilter, VectorFilter
from handrec.hand.base import HandModel
from handrec.types import HandPrediction

#: A hand that was not seen for so long (seconds) starts anew.
MEMORY = 0.25


class Smoothing(NamedTuple):
    """One-euro filters of what a hand is made of; speeds are per second.

    Attributes:
        pose: of rotations, radians.
        place: of the direction to the hand, ``(x / z, y / z)``.
        depth: of the logarithm of its distance.
        shape: of shape coefficients and scale, which do not change in truth.
    """

    pose: OneEuro = OneEuro(4.0, 2.0)
    place: OneEuro = OneEuro(3.0, 12.0)
    depth: OneEuro = OneEuro(2.0, 8.0)
    shape: OneEuro = OneEuro(0.2, 0.0)


@dataclass
class _Track:
    """The filters of one hand."""

    smoothing: Smoothing
    seconds: float = 0.0
    pose: RotationFilter = field(init=False)
    place: VectorFilter = field(init=False)
    depth: VectorFilter = field(init=False)
    shape: VectorFilter = field(init=False)

    def __post_init__(self) -> None:
        self.pose = RotationFilter(self.smoothing.pose)
        self.place = VectorFilter(self.smoothing.place)
        self.depth = VectorFilter(self.smoothing.depth)
        self.shape = VectorFilter(self.smoothing.shape)


class HandSmoother:
    """Filters each hand of a video, and makes joints and mesh anew from what comes out.

    Args:
        hand: model that the hands are of.
        smoothing: how much; None is the default.
    """

    def __init__(self, hand: HandModel, smoothing: Smoothing | None = None) -> None:
        self.hand, self.smoothing = hand, smoothing or Smoothing()
        self._tracks: dict[int, _Track] = {}

    @torch.no_grad()
    def smooth(
        self,
        prediction: HandPrediction,
        intrinsics: Float[Tensor, "b 3 3"],
        tracks: list[int],
        seconds: list[float],
    ) -> HandPrediction:
        """Return the smoothed hands of a batch, whose frames are in order.

        Args:
            prediction: of the batch.
            intrinsics: ``K`` of the crops.
            tracks: number of each row's hand.
            seconds: time of each row's frame.
        """
        rows = [
            self._filter(track, time, *state)
            for track, time, state in zip(tracks, seconds, self._states(prediction), strict=True)
        ]
        pose, shape, translation = (torch.stack(column) for column in zip(*rows, strict=True))
        betas, scale = shape[:, :-1], shape[:, -1:, None]
        posed = self.hand.decode(pose, betas, torch.zeros_like(translation))
        vertices, joints = (scale * points + translation[:, None] for points in posed)
        keypoints = project(joints, intrinsics)
        return HandPrediction(
            vertices, joints, keypoints, pose, betas, translation, scale[:, 0, 0],
            prediction.texture, prediction.light,
        )  # fmt: skip

    def _states(self, prediction: HandPrediction) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return pose, shape and translation of each row; shape ends with the scale."""
        shape = torch.cat([prediction.betas, prediction.size[:, None]], dim=1)
        rows = zip(prediction.pose, shape, prediction.translation, strict=True)
        return [(pose.float(), size.float(), place.float()) for pose, size, place in rows]

    def _filter(
        self, number: int, seconds: float, pose: Tensor, shape: Tensor, translation: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the filtered state of one hand; one without finite numbers stays as it is."""
        track = self._tracks.get(number)
        if not all(bool(part.isfinite().all()) for part in (pose, shape, translation)):
            self._tracks.pop(number, None)
            return pose, shape, translation
        if track is None or not 0 < seconds - track.seconds <= MEMORY:
            track = self._tracks[number] = _Track(self.smoothing)
        step, track.seconds = seconds - track.seconds, seconds
        depth = translation[2:].clamp(min=1e-3)
        place = track.place(translation[:2] / depth, step)
        depth = track.depth(depth.log(), step).exp()
        translation = torch.cat([place * depth, depth])
        return track.pose(pose, step), track.shape(shape, step), translation
