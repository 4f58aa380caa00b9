"""What is optimised, and what is known of it before looking: parameters and prior of a hand."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from handrec.geometry.rotations import interleaved_6d_to_matrix
from handrec.hand.anatomy import SphereProxies, joint_angles, limit_excess, pose_from_angles
from handrec.hand.base import HandModel
from handrec.hand.sampler import PoseSampler
from handrec.types import Camera, Hand

#: One standard deviation of an angle outside its limits (radians) and of a penetration (metres).
LIMIT_SIGMA, PENETRATION_SIGMA = 0.03, 0.002

#: Added to the spread of sampled angles, radians: real hands are not samples of ours.
ANGLE_SIGMA = 0.05

#: Poses that the prior is estimated from.
SAMPLES = 2000


class HandParameters(NamedTuple):
    """Hands in coordinates in which steps of one size suit all of them.

    Attributes:
        rotation: of the whole hand to the camera frame, interleaved 6D.
        angles: (twist, spread, bend) of kinematic joints 1 to 15, radians.
        betas: shape coefficients, standard deviations.
        place: where the translation is seen, ``(x, y)`` in units of the crop's width, and the
            logarithm of its depth in metres.
    """

    rotation: Float[Tensor, "b 6"]
    angles: Float[Tensor, "b 15 3"]
    betas: Float[Tensor, "b 10"]
    place: Float[Tensor, "b 3"]

    def free(self) -> "HandParameters":
        """Return a copy that gradients are taken of."""
        return HandParameters(*(field.detach().clone().requires_grad_() for field in self))

    def take(self, rows: Int[Tensor, " n"]) -> "HandParameters":
        """Return some of the hands, without gradients."""
        return HandParameters(*(field.detach()[rows] for field in self))

    def pose(self, hand: HandModel) -> Float[Tensor, "b 16 3 3"]:
        """Return the rotations of the 16 kinematic joints."""
        fingers = pose_from_angles(self.angles, hand.joint_axes)[:, 1:]
        return torch.cat([interleaved_6d_to_matrix(self.rotation)[:, None], fingers], dim=1)

    def translation(self, camera: Camera) -> Float[Tensor, "b 3"]:
        """Return the translation, metres, in the frame of the camera."""
        k, depth = camera.intrinsics, self.place[:, 2:].exp()
        pixels = self.place[:, :2] * camera.image_size[1]
        y = (pixels[:, 1:] - k[:, 1, 2:]) / k[:, 1, 1:2]
        x = (pixels[:, :1] - k[:, 0, 2:] - k[:, 0, 1:2] * y) / k[:, 0, :1]
        return torch.cat([x, y, torch.ones_like(x)], dim=1) * depth

    def decode(self, hand: HandModel, camera: Camera) -> Hand:
        """Return the hands in the frame of the camera, which may be one for all."""
        return hand.decode(self.pose(hand), self.betas, self.translation(camera))


def place_of(translation: Float[Tensor, "b 3"], camera: Camera) -> Float[Tensor, "b 3"]:
    """Return ``HandParameters.place`` of translations: the inverse of its ``translation``."""
    depth = translation[:, 2:]
    rays = (camera.intrinsics @ (translation / depth)[..., None])[..., 0]
    return torch.cat([rays[:, :2] / camera.image_size[1], depth.log()], dim=1)


class HandPrior(nn.Module):
    """The negative logarithm, up to a constant, of how probable hands are.

    A Gaussian of the joint angles of poses that hands take (those of the suite's sampler), hinges
    at the joint limits, a Gaussian of the shape, and spheres that must not run into each other.

    Args:
        hand: any hand model.
        seed: of the poses.
    """

    mean: Float[Tensor, "45"]
    whitening: Float[Tensor, "45 45"]
    limits: Float[Tensor, "15 3 2"]

    def __init__(self, hand: HandModel, seed: int = 0) -> None:
        super().__init__()
        self.spheres = SphereProxies(hand)
        poses = PoseSampler(hand).sample(SAMPLES, torch.Generator().manual_seed(seed))
        angles = joint_angles(poses, hand.joint_axes).flatten(1)
        covariance = angles.T.cov() + ANGLE_SIGMA**2 * torch.eye(45).to(angles)
        precision = torch.linalg.inv(covariance.double())
        self.register_buffer("mean", angles.mean(0), persistent=False)
        whitening = torch.linalg.cholesky(precision).float()
        self.register_buffer("whitening", whitening, persistent=False)
        self.register_buffer("limits", hand.joint_limits.clone(), persistent=False)

    def energy(
        self, parameters: HandParameters, joints: Float[Tensor, "b 21 3"]
    ) -> Float[Tensor, " b"]:
        """Return the energy of each hand.

        Args:
            parameters: of the hands.
            joints: of the same hands, metres, in any frame.
        """
        typical = ((parameters.angles.flatten(1) - self.mean) @ self.whitening).square().sum(1)
        excess = limit_excess(parameters.angles, self.limits).square().sum((1, 2))
        depth = self.spheres.penetration(joints).square().sum(1)
        shape = parameters.betas.square().sum(1)
        hinges = excess / LIMIT_SIGMA**2 + depth / PENETRATION_SIGMA**2
        return (typical + shape + hinges) / 2
