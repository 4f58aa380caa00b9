"""The state that regressors refine: pose, shape and camera, and the hand it stands for."""

from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from handrec.geometry.camera import project, weak_to_translation
from handrec.geometry.rotations import interleaved_6d_to_matrix, matrix_to_interleaved_6d
from handrec.hand.base import HandModel
from handrec.types import Camera, HandPrediction

#: pose 16 x 6, shape 10, camera 3
STATE_SIZE = 16 * 6 + 10 + 3

#: Scale of the mean camera, 1/m: a crop of 1.3 times a 19 cm hand.
_MEAN_SCALE = 8.0


class HandState(NamedTuple):
    """theta of PyMAF (Zhang et al., ICCV 2021), for a hand.

    Attributes:
        pose: 6D rotations of the 16 kinematic joints, interleaved columns.
        betas: shape coefficients.
        camera: raw weak-perspective camera; see :func:`decode_state` for its units.
    """

    pose: Float[Tensor, "b 96"]
    betas: Float[Tensor, "b 10"]
    camera: Float[Tensor, "b 3"]

    def detach(self) -> "HandState":
        """Return the state without its gradient."""
        return HandState(*(part.detach() for part in self))

    def flat(self) -> Float[Tensor, "b 109"]:
        """Return the state as one vector."""
        return torch.cat(self, dim=1)

    def plus(self, residual: Float[Tensor, "b 109"]) -> "HandState":
        """Return the state moved by a residual, in float32."""
        return HandState(*(self.flat() + residual.float()).split((96, 10, 3), dim=1))


def mean_state(hand: HandModel, batch_size: int) -> HandState:
    """Return theta_0: the mean pose, zero shape and a hand that fills the crop."""
    pose = rearrange(matrix_to_interleaved_6d(hand.mean_pose), "j c -> (j c)")
    camera = pose.new_tensor([_MEAN_SCALE / 10, 0.0, 0.0])
    return HandState(
        pose.expand(batch_size, -1),
        pose.new_zeros(batch_size, 10),
        camera.expand(batch_size, -1),
    )


def decode_state(state: HandState, hand: HandModel, camera: Camera) -> HandPrediction:
    """Return the hand of a state in the camera's frame.

    The raw camera ``c`` stands for ``(s, tx, ty) = (10 c0, c1 / 10, c2 / 10)``, as a hand is about
    ten times smaller than the body PyMAF was scaled for (PyMAF-X); ``s`` is in 1/m, so that
    ``s (X + tx)`` is a position in [-1, 1] across the crop, and ``tx, ty`` are in metres.
    """
    pose = interleaved_6d_to_matrix(steadied(rearrange(state.pose, "b (j c) -> b j c", c=6)))
    weak = state.camera * state.camera.new_tensor([10.0, 0.1, 0.1])
    translation = weak_to_translation(weak, camera.intrinsics, camera.image_size)
    vertices, joints = hand.decode(pose, state.betas, translation)
    keypoints = project(joints, camera.intrinsics)
    return HandPrediction(vertices, joints, keypoints, pose, state.betas, translation)


def steadied(sixd: Float[Tensor, "*b 6"]) -> Float[Tensor, "*b 6"]:
    """Return 6D rotations whose gradient does not grow where their columns vanish.

    A network that does not know which way a hand is turned gives the mean of what it believes, with
    short columns or nearly parallel ones. Gram and Schmidt then divide the gradient by the heights
    of the parallelogram they span, and one such hand drowns a batch. That gradient is multiplied by
    the lesser height here, if it is below 1: its direction stays, its size becomes usual.

    Args:
        sixd: interleaved columns, see :func:`~handrec.geometry.rotations.interleaved_6d_to_matrix`.
    """
    with torch.no_grad():
        first, second = sixd[..., 0::2], sixd[..., 1::2]
        area = torch.linalg.cross(first, second, dim=-1).norm(dim=-1, keepdim=True)
        longer = torch.stack([first, second]).norm(dim=-1, keepdim=True).amax(0)
        factor = (area / longer.clamp(min=1e-12)).clamp(max=1.0)
    steady: Tensor = factor * sixd + ((1 - factor) * sixd).detach()
    return steady
