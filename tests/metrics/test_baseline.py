"""The mean hand."""

import torch

from handrec.metrics.baseline import MeanHand
from tests.metrics.fakes import TinyHand, fake_batch, project


def test_it_is_the_same_mean_hand_for_every_image():
    hand, batch = TinyHand(), fake_batch(4)
    prediction = MeanHand(hand, distance=0.6).predict(batch)
    expected = hand.template + torch.tensor([0.0, 0.0, 0.6])
    for sample in range(4):
        torch.testing.assert_close(prediction.vertices[sample], expected)
    assert prediction.pose.shape == (4, 16, 3, 3)
    torch.testing.assert_close(prediction.pose[2], hand.mean_pose)
    assert not prediction.betas.any()
    torch.testing.assert_close(
        prediction.keypoints_2d, project(prediction.joints, batch.intrinsics)
    )


def test_it_does_not_look_at_the_labels():
    batch = fake_batch(3)
    blind = batch._replace(joints_3d=0 * batch.joints_3d, vertices=0 * batch.vertices)
    torch.testing.assert_close(
        MeanHand(TinyHand()).predict(batch).joints, MeanHand(TinyHand()).predict(blind).joints
    )
