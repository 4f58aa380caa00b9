"""A tiny hand, batches of it and predictions of known quality."""

import torch

from handrec.hand.base import HandModel
from handrec.hand.joints import PARENTS
from handrec.types import Hand, HandBatch, HandPrediction

#: Lengths of the bones of a finger, base first, and where the fingers leave the palm (degrees).
_BONES = (0.085, 0.035, 0.025, 0.02)
_SPREAD = (55, 15, 0, -13, -26)


def _rest_joints():
    joints = torch.zeros(21, 3)
    for i in range(1, 21):
        angle = torch.deg2rad(torch.tensor(float(_SPREAD[(i - 1) // 4])))
        along = torch.stack([-angle.cos(), torch.tensor(-0.05 * (i % 4)), angle.sin()])
        joints[i] = joints[PARENTS[i]] + _BONES[(i - 1) % 4] * along
    return joints


class TinyHand(HandModel):
    """Fifty points around the joints of a flat hand; it turns, grows and moves but never bends."""

    def __init__(self, vertices=50):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        rest = _rest_joints()
        points = rest.repeat(vertices // 21 + 1, 1)[:vertices]
        points = points + 0.006 * torch.randn(vertices, 3, generator=generator)
        self.register_buffer("rest_joints", rest)
        self.register_buffer("template", points)
        self.register_buffer("faces", torch.randint(vertices, (80, 3), generator=generator))
        self.register_buffer("mean_pose", torch.eye(3).repeat(16, 1, 1))

    def decode(self, pose, betas, translation):
        turn = pose[:, 0].mT * (1 + 0.1 * betas[:, 0, None, None])
        return Hand(
            self.template @ turn + translation[:, None],
            self.rest_joints @ turn + translation[:, None],
        )


def fake_batch(count=6, seed=0, hand=None, size=64, first_id=0):
    """Return a batch of turned tiny hands in front of smooth pictures, with every label."""
    hand = hand or TinyHand()
    generator = torch.Generator().manual_seed(seed)
    pose = torch.eye(3).repeat(count, 16, 1, 1)
    pose[:, 0] = random_rotations(count, generator)
    betas = torch.randn(count, 10, generator=generator)
    translation = torch.tensor([0.05, 0.0, 0.6]) + 0.03 * torch.randn(count, 3, generator=generator)
    vertices, joints = hand.decode(pose, betas, translation)
    intrinsics = torch.tensor(
        [[1.5 * size, 0, size / 2], [0, 1.5 * size, size / 2], [0, 0, 1]]
    ).repeat(count, 1, 1)
    image = torch.nn.functional.interpolate(
        torch.rand(count, 3, 4, 4, generator=generator), size=(size, size), mode="bicubic"
    ).clamp(0, 1)
    ones = torch.ones(count)
    return HandBatch(
        image=image,
        intrinsics=intrinsics,
        keypoints_2d=project(joints, intrinsics),
        confidence=torch.ones(count, 21),
        joints_3d=joints,
        vertices=vertices,
        pose=pose,
        betas=betas,
        translation=translation,
        mask=torch.zeros(count, 1, size, size),
        has_joints_3d=ones,
        has_vertices=ones,
        has_pose=ones,
        has_mask=0 * ones,
        is_left=0 * ones,
        visibility=torch.zeros(count, 21),
        has_visibility=0 * ones,
        sample_id=torch.arange(first_id, first_id + count),
        sequence=torch.arange(first_id, first_id + count),
        frame=torch.zeros(count, dtype=torch.long),
        crop_to_image=torch.eye(3).repeat(count, 1, 1),
    )


def random_rotations(count, generator):
    """Return rotations, uniform as the orthogonal factors of Gaussian matrices."""
    factors, _ = torch.linalg.qr(torch.randn(count, 3, 3, generator=generator))
    return factors * torch.linalg.det(factors)[:, None, None]


def project(points, intrinsics):
    """Return points in pixels, one at a time."""
    pixels = torch.zeros(*points.shape[:2], 2)
    for b in range(len(points)):
        for n, (x, y, z) in enumerate(points[b]):
            pixels[b, n, 0] = intrinsics[b, 0, 0] * x / z + intrinsics[b, 0, 2]
            pixels[b, n, 1] = intrinsics[b, 1, 1] * y / z + intrinsics[b, 1, 2]
    return pixels


def predict(batch, noise=0.005, seed=1):
    """Return the labels of a batch with Gaussian noise, metres, and a constant offset."""
    generator = torch.Generator().manual_seed(seed)
    joints = batch.joints_3d + noise * torch.randn(batch.joints_3d.shape, generator=generator)
    vertices = batch.vertices + noise * torch.randn(batch.vertices.shape, generator=generator)
    offset = torch.tensor([0.0, 0.01, 0.05])
    return HandPrediction(
        vertices=vertices + offset,
        joints=joints + offset,
        keypoints_2d=project(joints + offset, batch.intrinsics),
        pose=batch.pose,
        betas=batch.betas,
        translation=batch.translation + offset,
    )
