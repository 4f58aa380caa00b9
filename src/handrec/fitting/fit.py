"""The whole fit of one hand in one photo."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from handrec.fitting.appearance import Appearance
from handrec.fitting.keypoints import box_side, fit_keypoints, reprojection_error
from handrec.fitting.parameters import HandParameters, HandPrior
from handrec.fitting.photometric import PhotometricFit, PhotometricWeights
from handrec.geometry.camera import project
from handrec.hand.base import HandModel
from handrec.render.base import Rasterizer
from handrec.render.shading import Light
from handrec.types import HandBatch, HandPrediction

#: Steps between two pictures of a fit.
SNAPSHOT_EVERY = 5

#: How often the photo is segmented anew, around a hand that fits it better each time.
SEGMENTATIONS = 2


class Snapshot(NamedTuple):
    """A fit on its way.

    Attributes:
        parameters: of the hand.
        texture: RGB in [0, 1].
        light: as the texture is seen under.
    """

    parameters: HandParameters
    texture: Float[Tensor, "1 3 t t"]
    light: Light


class Fit(NamedTuple):
    """A hand fit to a photo.

    Attributes:
        prediction: in the frame and pixels of the crop; texture and light included.
        snapshots: from the fit to the keypoints alone to the last step.
        keypoint_error: mean distance of the projected joints from the keypoints, of the longer
            side of the box around these.
        keypoints_only_error: the same before the photo was looked at.
        overlap: intersection over union of rendered mask and segmented hand, forearm left out.
    """

    prediction: HandPrediction
    snapshots: list[Snapshot]
    keypoint_error: float
    keypoints_only_error: float
    overlap: float


def fit_photo(
    hand: HandModel,
    target: HandBatch,
    rasterizer: Rasterizer,
    steps: int = 120,
    weights: PhotometricWeights = PhotometricWeights(),  # noqa: B008 -- frozen
) -> Fit:
    """Return the hand that explains keypoints and pixels best, found by gradient descent.

    Args:
        hand: any hand model with UV coordinates.
        target: a batch of one, on the device of the hand; image, intrinsics, keypoints and their
            confidence are used.
        rasterizer: any backend.
        steps: of the descent on the pixels; 0 fits the keypoints alone.
        weights: of its energies.
    """
    prior = HandPrior(hand).to(target.image.device)
    photometric = PhotometricFit(hand, prior, rasterizer, weights)
    first = fitted = fit_keypoints(hand, prior, target)
    appearance = photometric.plain_appearance(first, target)
    snapshots: list[Snapshot] = []

    def watch(step: int, parameters: HandParameters) -> None:
        if step % SNAPSHOT_EVERY == 0:
            snapshots.append(_snapshot(parameters, appearance))

    for _ in range(SEGMENTATIONS):
        segments = photometric.segment(fitted, target)
        fitted = photometric.descend(
            fitted, appearance, segments, target, steps // SEGMENTATIONS, watch
        )
    snapshots.append(_snapshot(fitted, appearance))
    return Fit(
        _predict(hand, fitted, appearance, target),
        snapshots,
        _error(hand, fitted, target),
        _error(hand, first, target),
        photometric.segment(fitted, target).overlap,
    )


def _snapshot(parameters: HandParameters, appearance: Appearance) -> Snapshot:
    """Return a copy of what is about to change."""
    with torch.no_grad():
        light = Light(*(field.clone() for field in appearance.light()))
        return Snapshot(parameters.take(torch.arange(1)), appearance.texture(), light)


@torch.no_grad()
def _error(hand: HandModel, parameters: HandParameters, target: HandBatch) -> float:
    """Return the relative reprojection error."""
    joints = parameters.decode(hand, target.camera).joints
    error = reprojection_error(project(joints, target.intrinsics), target)
    return float(error / box_side(target.keypoints_2d, target.confidence))


@torch.no_grad()
def _predict(
    hand: HandModel, parameters: HandParameters, appearance: Appearance, target: HandBatch
) -> HandPrediction:
    """Return the fit as the suite's methods return theirs."""
    posed = parameters.decode(hand, target.camera)
    return HandPrediction(
        vertices=posed.vertices,
        joints=posed.joints,
        keypoints_2d=project(posed.joints, target.intrinsics),
        pose=parameters.pose(hand),
        betas=parameters.betas,
        translation=parameters.translation(target.camera),
        texture=appearance.texture(),
        light=appearance.light(),
    )
