"""The answer that every method must beat."""

import torch
from jaxtyping import Float
from torch import Tensor

from handrec.hand.base import HandModel
from handrec.types import HandBatch, HandPrediction


class MeanHand:
    """Answers every image with the same hand: mean pose, mean shape, not turned.

    Args:
        hand: its mean pose and topology; the labels' topology if mesh errors are wanted.
        distance: from the camera in metres. Only figures in camera space see it.
    """

    def __init__(self, hand: HandModel, distance: float = 0.7) -> None:
        self.hand = hand
        self.distance = distance

    @torch.no_grad()
    def predict(self, batch: HandBatch) -> HandPrediction:
        """Return the mean hand once for each sample of the batch."""
        count = len(batch.sample_id)
        pose = self.hand.mean_pose[None]
        betas, translation = pose.new_zeros(1, 10), pose.new_tensor([[0.0, 0.0, self.distance]])
        hand = self.hand.decode(pose, betas, translation)
        joints = hand.joints.expand(count, -1, -1)
        return HandPrediction(
            vertices=hand.vertices.expand(count, -1, -1),
            joints=joints,
            keypoints_2d=_project(joints, batch.intrinsics),
            pose=pose.expand(count, -1, -1, -1),
            betas=betas.expand(count, -1),
            translation=translation.expand(count, -1),
        )


def _project(
    points: Float[Tensor, "b n 3"], intrinsics: Float[Tensor, "b 3 3"]
) -> Float[Tensor, "b n 2"]:
    """Return points of the camera frame in pixels."""
    pixels = points @ intrinsics.to(points).mT
    return pixels[..., :2] / pixels[..., 2:]
