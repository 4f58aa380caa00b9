"""S2HAND's 3D branch: five small heads on pooled features that say pose, shape and place."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from handrec.errors import UserError, not_negative, one_of, positive
from handrec.geometry.camera import project, weak_to_translation
from handrec.geometry.rotations import (
    axis_angle_to_matrix,
    interleaved_6d_to_matrix,
    matrix_to_interleaved_6d,
)
from handrec.hand.base import HandModel
from handrec.hand.mano import Mano
from handrec.hand.openhand import OpenHand
from handrec.models.base import Backbone, Features
from handrec.types import Camera, HandPrediction

#: Where the regressors start: 0.65 m before the camera, or a hand that fills most of the crop.
_START = {"perspective": (0.0, 0.0, 0.65), "weak": (0.8, 0.0, 0.0)}

#: Units of the raw weak camera, as in ``models.state``: 1/m and metres.
_WEAK_UNITS = (10.0, 0.1, 0.1)


#: What the regressors say, see :class:`S2HandRegressor`.
PoseForm = Literal["components", "sixd"]
RotationForm = Literal["axis_angle", "sixd"]
CameraForm = Literal["perspective", "weak"]


class S2HandRegressor(nn.Module):
    """A trunk of two layers, then a head each for pose, shape, translation, rotation and scale.

    Args:
        backbone: whose pooled features it reads.
        hand: the hand model.
        pose: ``components`` (the first so many principal components of the hand model, as
            published) or ``sixd`` (6D rotations about the mean pose, ours).
        components: of the pose.
        rotation: of the whole hand: ``axis_angle`` as published or ``sixd``.
        camera: ``perspective``: the translation in metres, as published; ``weak``: a scale and a
            place in the crop, which the known ``K`` turns into a translation.
        base_rotation: axis-angle, radians, that the rotation is relative to; (pi, 0, 0) as
            published turns a hand from MANO's rest frame towards an OpenCV camera.
        mean_shape: keep the shape at zero, as the published configurations do.
        widths: of the trunk.
        cells: read the grid too, averaged down to so many cells along each side; 0, as published,
            reads the pooled features only. Ours: what is where is known without learning it.
        lift: read the 2D branch's keypoints too (no gradient goes back to them). Ours: small
            networks learn a lifting in minutes.
    """

    def __init__(
        self,
        backbone: Backbone,
        hand: HandModel,
        pose: PoseForm = "components",
        components: int = 30,
        rotation: RotationForm = "axis_angle",
        camera: CameraForm = "perspective",
        base_rotation: tuple[float, float, float] = (math.pi, 0.0, 0.0),
        mean_shape: bool = False,
        widths: tuple[int, int] = (1024, 512),
        cells: int = 0,
        lift: bool = False,
    ) -> None:
        super().__init__()
        one_of(self, PoseForm, pose=pose)
        one_of(self, RotationForm, rotation=rotation)
        one_of(self, CameraForm, camera=camera)
        positive(self, components=components, widths=min(widths))
        not_negative(self, cells=cells)
        if pose == "components" and not isinstance(hand, OpenHand | Mano):
            raise UserError(f"{type(hand).__name__} has no pose components: take pose: sixd")
        if components > 45:
            raise UserError(f"a pose has 45 components, not {components}")
        self.hand, self.camera, self.mean_shape = hand, camera, mean_shape
        self.sixd_pose, self.sixd_rotation = pose == "sixd", rotation == "sixd"
        self.cells, self.lift = cells, lift
        inputs = backbone.channels * (1 + cells**2) + (2 * 42 if lift else 0)
        layers: list[nn.Module] = []
        for before, after in pairwise((inputs, *widths)):
            layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU()]
        self.trunk = nn.Sequential(*layers)
        self.pose = _head(widths[1], 15 * 6 if self.sixd_pose else components)
        self.shape = _head(widths[1], 10)
        self.rotation = _head(widths[1], 6 if self.sixd_rotation else 3, 32)
        self.translation = _small(_head(widths[1], 3, 32), _START[camera])
        self.scale = _small(_head(widths[1], 1, 32), (0.95,))
        base = axis_angle_to_matrix(torch.tensor(base_rotation))
        self.register_buffer("base_rotation", base, persistent=False)
        self.base_rotation: Tensor

    def regress(
        self,
        features: Features,
        camera: Camera,
        found: Float[Tensor, "b 21 2"] | None = None,
    ) -> HandPrediction:
        """Return the hands that the features show, in float32.

        Args:
            features: of the crops.
            camera: of the crops.
            found: the 2D branch's keypoints, crop pixels; not read unless ``lift`` is set.
        """
        known = [features.pooled]
        if self.cells:
            known.append(nn.functional.adaptive_avg_pool2d(features.grid, self.cells).flatten(1))
        if self.lift:
            if found is None:
                raise UserError("lift: the regressor reads keypoints, and there is no 2D branch")
            known.append(_describe(found.detach(), camera.image_size))
        seen = self.trunk(torch.cat(known, dim=1))
        pose = self._pose(self.pose(seen).float(), self.rotation(seen).float())
        betas = self.shape(seen).float() * (0.0 if self.mean_shape else 1.0)
        translation = self.translation(seen).float()
        if self.camera == "weak":
            weak = translation * translation.new_tensor(_WEAK_UNITS)
            translation = weak_to_translation(weak, camera.intrinsics, camera.image_size)
        scale = self.scale(seen).float().abs()
        hand = self.hand.decode(pose, betas, torch.zeros_like(translation))
        vertices, joints = (scale[:, :, None] * points + translation[:, None] for points in hand)
        keypoints = project(joints, camera.intrinsics)
        return HandPrediction(vertices, joints, keypoints, pose, betas, translation, scale[:, 0])

    def _pose(self, fingers: Tensor, rotation: Tensor) -> Float[Tensor, "b 16 3 3"]:
        if self.sixd_pose:
            mean = matrix_to_interleaved_6d(self.hand.mean_pose[1:])
            pose = interleaved_6d_to_matrix(mean + fingers.view(-1, 15, 6))
        else:
            pose = pose_from_components(self.hand, fingers)[:, 1:]
        if self.sixd_rotation:
            identity = matrix_to_interleaved_6d(torch.eye(3).to(rotation))
            turn = interleaved_6d_to_matrix(identity + rotation)
        else:
            turn = axis_angle_to_matrix(rotation)
        with torch.autocast(rotation.device.type, enabled=False):
            return torch.cat([(turn @ self.base_rotation)[:, None], pose], dim=1)


#: Builds the 3D branch for a backbone and a hand model.
RegressorFactory = Callable[[Backbone, HandModel], S2HandRegressor]


def pose_from_components(
    hand: HandModel, coefficients: Float[Tensor, "b n"]
) -> Float[Tensor, "b 16 3 3"]:
    """Return poses from their first principal components, the wrist at identity."""
    if isinstance(hand, OpenHand):
        return hand.pose_from_components(coefficients)
    assert isinstance(hand, Mano)
    with torch.autocast(coefficients.device.type, enabled=False):
        offsets = coefficients @ hand.pose_components[: coefficients.shape[1]]
    return hand.absolute_pose(nn.functional.pad(offsets, (3, 0)))


def _describe(found: Float[Tensor, "b 21 2"], size: tuple[int, int]) -> Float[Tensor, "b 84"]:
    """Return keypoints in the crop, and relative to the wrist in lengths of the hand."""
    placed = 2 * found / max(size) - 1
    shape = placed - placed[:, :1]
    spread = shape.square().sum(-1).mean(1).clamp(min=1e-6).sqrt()
    return torch.cat([placed, shape / spread[:, None, None]], dim=1).flatten(1)


def _head(inputs: int, outputs: int, *middle: int) -> nn.Sequential:
    """Return layers of 128 with a ReLU, those of ``middle`` without, and the output's."""
    layers: list[nn.Module] = [nn.Linear(inputs, 128), nn.ReLU()]
    sizes = (128, *middle, outputs)
    layers += [nn.Linear(a, b) for a, b in pairwise(sizes)]
    return nn.Sequential(*layers)


def _small(head: nn.Sequential, start: tuple[float, ...]) -> nn.Sequential:
    """Make a head start at a value: weights N(0, 1e-3), biases 0, the last one's the value."""
    linear = [layer for layer in head if isinstance(layer, nn.Linear)]
    for layer in linear:
        nn.init.normal_(layer.weight, std=1e-3)
        nn.init.zeros_(layer.bias)
    with torch.no_grad():
        linear[-1].bias.copy_(torch.tensor(start))
    return head
