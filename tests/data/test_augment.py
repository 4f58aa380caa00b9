import pytest
import torch

from handrec.data.augment import Augmentation, Moves, no_moves, turn
from handrec.geometry.camera import project
from handrec.geometry.rotations import random_rotations
from handrec.hand.openhand import OpenHand
from handrec.types import HandBatch

SIZE = 64


@pytest.fixture(scope="module")
def hand():
    return OpenHand()


def labelled_batch(hand, count=4):
    """Hands before an off-centre camera; the image is smooth, with a bright dot at each wrist."""
    generator = torch.Generator().manual_seed(0)
    pose = hand.mean_pose.repeat(count, 1, 1, 1)
    pose[:, 0] = random_rotations(count, generator)
    betas = torch.randn(count, 10, generator=generator)
    translation = torch.tensor([[0.05, -0.03, 0.6]]).repeat(count, 1)
    posed = hand.decode(pose, betas, translation)
    intrinsics = torch.tensor([[120.0, 0, 20], [0, 120, 40], [0, 0, 1]]).repeat(count, 1, 1)
    keypoints = project(posed.joints, intrinsics)
    centres = torch.arange(SIZE) + 0.5
    squared = (centres[None, None, :] - keypoints[:, :1, None, 0]) ** 2
    squared = squared + (centres[None, :, None] - keypoints[:, :1, None, 1].mT) ** 2
    dot = torch.exp(-squared / 8)[:, None]
    ones = torch.ones(count)
    inside = ((keypoints >= 0) & (keypoints < SIZE)).all(-1).float()
    return HandBatch(
        image=dot.expand(-1, 3, -1, -1), intrinsics=intrinsics, keypoints_2d=keypoints,
        confidence=torch.ones(count, 21), joints_3d=posed.joints, vertices=posed.vertices,
        pose=pose, betas=betas, translation=translation, mask=dot, has_joints_3d=ones,
        has_vertices=ones, has_pose=ones, has_mask=ones, is_left=0 * ones,
        visibility=inside, has_visibility=ones, sample_id=torch.arange(count),
        sequence=torch.arange(count), frame=torch.zeros(count, dtype=torch.long),
        crop_to_image=2 * torch.eye(3).expand(count, 3, 3),
    )  # fmt: skip


def turned(batch):
    count = len(batch.image)
    angle = torch.tensor([0.5, -2.0, 3.0, 0.1])[:count]
    scale = torch.tensor([1.2, 0.9, 1.0, 0.8])[:count]
    shift = torch.tensor([[0.05, 0], [0, -0.1], [0.1, 0.1], [0, 0]])[:count]
    return turn(batch, Moves(angle, scale, shift))


def test_all_labels_of_a_turned_batch_agree(hand):
    after = turned(labelled_batch(hand))
    posed = hand.decode(after.pose, after.betas, after.translation)
    torch.testing.assert_close(posed.vertices, after.vertices, atol=1e-5, rtol=0)
    torch.testing.assert_close(posed.joints, after.joints_3d, atol=1e-5, rtol=0)
    projected = project(after.joints_3d, after.intrinsics)
    torch.testing.assert_close(projected, after.keypoints_2d, atol=1e-3, rtol=0)


def test_camera_stays_a_pinhole_with_square_pixels(hand):
    intrinsics = turned(labelled_batch(hand)).intrinsics
    torch.testing.assert_close(intrinsics[:, 0, 0], intrinsics[:, 1, 1])
    below = intrinsics[:, [0, 1, 2, 2], [1, 0, 0, 1]]
    torch.testing.assert_close(below, torch.zeros(4, 4), atol=1e-4, rtol=0)


def test_picture_moves_with_the_labels(hand):
    after = turned(labelled_batch(hand))
    centres = torch.arange(SIZE) + 0.5
    for image, keypoint in zip(after.image[:, 0], after.keypoints_2d[:, 0], strict=True):
        if ((keypoint > 6) & (keypoint < SIZE - 6)).all():
            x = (image * centres).sum() / image.sum()
            y = (image * centres[:, None]).sum() / image.sum()
            torch.testing.assert_close(torch.stack([x, y]), keypoint, atol=0.3, rtol=0)


def test_original_pixels_stay_where_they_were(hand):
    before, after = labelled_batch(hand), turned(labelled_batch(hand))
    for batch in (before, after):
        homogeneous = torch.cat([batch.keypoints_2d, torch.ones(4, 21, 1)], dim=2)
        batch_pixels = (homogeneous @ batch.crop_to_image.mT)[..., :2]
        if batch is before:
            expected = batch_pixels
    torch.testing.assert_close(batch_pixels, expected, atol=1e-3, rtol=0)


def test_no_change_changes_nothing(hand):
    batch = labelled_batch(hand)
    same = turn(batch, no_moves(4))
    for before, after in zip(batch, same, strict=True):
        torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)


def test_joints_that_leave_the_crop_are_no_longer_visible(hand):
    batch = labelled_batch(hand)
    hidden = batch.visibility.clone()
    hidden[:, ::2] = 0
    stray = batch.keypoints_2d + 1000.0  # detections gone astray hide nothing
    batch = batch._replace(visibility=hidden, keypoints_2d=stray)
    shift = torch.tensor([[0.4, 0.0], [0.0, -0.5], [0.0, 0.0], [-0.3, 0.3]])
    after = turn(batch, no_moves(4)._replace(shift=shift))
    where = project(after.joints_3d, after.intrinsics)
    inside = ((where >= 0) & (where < SIZE)).all(-1)
    assert 0.1 < inside.float().mean() < 0.9
    torch.testing.assert_close(after.visibility, hidden * inside)
    unknown = batch._replace(has_joints_3d=torch.zeros(4))
    assert (turn(unknown, no_moves(4)._replace(shift=shift)).visibility == 0).all()


def test_augmentation_varies_samples_and_keeps_the_range(hand):
    torch.manual_seed(0)
    batch = labelled_batch(hand)
    after = Augmentation().augment(batch._replace(image=batch.image.contiguous()))
    assert after.image.min() >= 0
    assert after.image.max() <= 1
    angles = torch.atan2(*(after.pose[:, 0] @ batch.pose[:, 0].mT)[:, [1, 0], 0].T)
    assert angles.abs().max() <= torch.pi / 6
    assert angles.std() > 0.05
