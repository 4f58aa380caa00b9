"""Which pixels are the hand."""

import numpy as np
import torch

from handrec.fitting.photo import crop_hand
from handrec.fitting.segment import forearm, segment
from handrec.types import HandBatch
from tests.fitting.scenes import Scene, scene, with_confidence


def crops(photo: Scene) -> tuple[HandBatch, torch.Tensor]:
    """Return the crop and the hand's true mask: the only pixels that are more red than blue."""
    keypoints = with_confidence(photo.keypoints)
    batch = crop_hand(photo.photo, keypoints, photo.intrinsics, "right")
    return batch, (batch.image[:, :1] > batch.image[:, 2:]).float()


def overlap(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first * second).sum() / ((first + second) > 0).sum())


def test_a_displaced_mask_finds_the_hand() -> None:
    batch, truth = crops(scene("peace", (0, 0, 0)))
    displaced = truth.roll((6, 6), (2, 3))
    assert overlap(displaced, truth) < 0.8
    found = segment(batch, displaced, batch.keypoints_2d[0] + 6, 150.0)
    assert overlap(found.hand * found.weight, truth * found.weight) > 0.9
    # Off the hand the guess of what is behind is the photo itself, on it something blue.
    far = torch.zeros(224, 224, dtype=torch.bool)
    far[:10] = True
    torch.testing.assert_close(found.behind[0][:, far], batch.image[0][:, far])
    inside = found.behind[0][:, (truth[0, 0] * found.weight[0, 0]) > 0]
    assert inside[2].mean() > inside[0].mean()


def test_what_is_far_from_the_rendered_hand_is_not_used() -> None:
    """A photo of one colour: GrabCut can only guess."""
    batch, truth = crops(scene("flat", (0, 0, 0)))
    grey = batch._replace(image=torch.full_like(batch.image, 0.5))
    found = segment(grey, truth, batch.keypoints_2d[0], 150.0)
    assert found.overlap >= 0.6 or torch.equal(found.hand, truth)


def test_the_forearm_lies_behind_the_wrist() -> None:
    joints = np.zeros((21, 2), np.float32)
    joints[0] = 50, 60
    joints[[5, 9, 13, 17]] = [[40, 20], [46, 20], [54, 20], [60, 20]]
    behind = forearm(joints, (100, 100), 60.0)
    assert behind[60:].all()
    assert not behind[:60].any()
    joints[[5, 9, 13, 17]] = 50, 59  # fingers point at the camera
    assert not forearm(joints, (100, 100), 60.0).any()
