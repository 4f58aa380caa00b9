"""Coordinates of hands, and what is known of them beforehand."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from handrec.fitting.parameters import HandParameters, HandPrior, place_of
from handrec.geometry.camera import project
from handrec.geometry.rotations import matrix_to_interleaved_6d, random_rotations
from handrec.hand.anatomy import joint_angles, rest_hand
from handrec.hand.openhand import OpenHand
from handrec.hand.sampler import PoseSampler
from handrec.types import Camera

HAND = OpenHand()
CAMERA = Camera(torch.tensor([[[300.0, 2.0, 60.0], [0, 310, 150], [0, 0, 1]]]), (224, 224))


@pytest.fixture(scope="module")
def prior() -> HandPrior:
    return HandPrior(HAND)


def parameters(count: int) -> HandParameters:
    generator = torch.Generator().manual_seed(0)
    poses = PoseSampler(HAND).sample(count, generator)
    return HandParameters(
        matrix_to_interleaved_6d(random_rotations(count, generator)),
        joint_angles(poses, HAND.joint_axes),
        torch.randn(count, 10, generator=generator),
        torch.tensor([[0.4, 0.6, -0.7]]).expand(count, 3),
    )


def test_place_is_where_the_translation_is_seen_and_how_deep() -> None:
    translation = torch.tensor([[0.03, -0.05, 0.4], [-0.2, 0.1, 0.9]])
    place = place_of(translation, CAMERA)
    seen = project(translation[:, None], CAMERA.intrinsics.expand(2, 3, 3))[:, 0]
    torch.testing.assert_close(place[:, :2] * 224, seen)
    torch.testing.assert_close(place[:, 2].exp(), translation[:, 2])
    back = parameters(2)._replace(place=place).translation(CAMERA)
    torch.testing.assert_close(back, translation)


def test_parameters_decode_to_the_pose_they_were_taken_from() -> None:
    poses = PoseSampler(HAND).sample(3, torch.Generator().manual_seed(0))
    poses[:, 0] = random_rotations(3, torch.Generator().manual_seed(1))
    taken = parameters(3)._replace(
        rotation=matrix_to_interleaved_6d(poses[:, 0]),
        angles=joint_angles(poses, HAND.joint_axes),
    )
    torch.testing.assert_close(taken.pose(HAND), poses, atol=1e-5, rtol=0)


def test_typical_angles_cost_as_a_gaussian_says(prior: HandPrior) -> None:
    """Against scipy's density, for hands inside their limits that do not touch themselves."""
    angles = joint_angles(
        PoseSampler(HAND).sample(2000, torch.Generator().manual_seed(0)), HAND.joint_axes
    ).flatten(1)
    covariance = np.cov(angles.numpy().T) + 0.05**2 * np.eye(45)
    density = multivariate_normal(angles.mean(0).numpy(), covariance)
    hands = parameters(6)._replace(betas=torch.zeros(6, 10))
    # Joints of a giant: its spheres are far apart.
    apart = (rest_hand(HAND).joints * 100).expand(6, 21, 3)
    energy = prior.energy(hands, apart)
    expected = density.logpdf(density.mean) - density.logpdf(hands.angles.flatten(1).numpy())
    np.testing.assert_allclose(energy.numpy(), expected, rtol=2e-3, atol=2e-2)


def test_bent_back_big_and_intersecting_hands_cost_more(prior: HandPrior) -> None:
    usual = parameters(1)._replace(angles=prior.mean.view(1, 15, 3), betas=torch.zeros(1, 10))
    bent = usual.angles.clone()
    bent[:, 1, 2] = -0.6  # a PIP joint 34 degrees backwards
    giant = torch.full((1, 10), 3.0)
    joints = usual.decode(HAND, CAMERA).joints
    least = prior.energy(usual, joints)
    for worse in (usual._replace(angles=bent), usual._replace(betas=giant)):
        assert prior.energy(worse, joints) > least + 10
    folded = joints.clone()
    folded[:, 5:9] = folded[:, 9:13]  # the index finger inside the middle one
    assert prior.energy(usual, folded) > least + 10
