"""The detector model against the published figures it is held to, and what drives its errors."""

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from handrec.data.detector import PRESETS, Detector, estimate_blur
from handrec.data.noise import SeededNoise
from handrec.data.scenes import Views, full_intrinsics, sample_scenes
from handrec.geometry.camera import project
from handrec.hand.openhand import OpenHand

COUNT = 600


@pytest.fixture(scope="module")
def hands():
    """Keypoints in the full picture, a third of them hidden, and the sides of their crops."""
    hand = OpenHand()
    scenes = sample_scenes(hand, COUNT, 0, Views(60.0, 60.0))
    joints = hand.decode(scenes.pose, scenes.betas, scenes.translation).joints
    keypoints = project(joints, full_intrinsics().expand(COUNT, 3, 3))
    hidden = torch.rand(COUNT, 21, generator=torch.Generator().manual_seed(0)) < 0.34
    return keypoints, (~hidden).float(), scenes.noise_seed, scenes.crop_to_image[:, 0, 0]


def figures(name, hands):
    keypoints, visible, seed, side = hands
    found, confidence = PRESETS[name].detect(keypoints, visible, torch.zeros(COUNT), seed)
    error = (found - keypoints).norm(dim=-1)
    box = (keypoints.amax(1) - keypoints.amin(1)).amax(1)[:, None]
    palm = (keypoints[:, 9] - keypoints[:, 0]).norm(dim=-1)
    crop = error * (224 / side)[:, None]  # pixels of crops of 224
    return {
        "pck": (error < 0.2 * box).float().mean().item(),
        "auc": 1 - crop.clamp(max=30).mean().item() / 30,
        "epe": crop.mean().item(),
        "inlier_epe": crop[error < 0.2 * box].mean().item(),
        "palm": (error.mean() / palm.mean()).item(),
        "error": error / box,
        "confidence": confidence,
    }


def test_exact_is_exact(hands):
    keypoints, visible, seed, _ = hands
    found, confidence = PRESETS["exact"].detect(keypoints, visible, torch.zeros(COUNT), seed)
    torch.testing.assert_close(found, keypoints, atol=0, rtol=0)
    assert (confidence == 1).all()


def test_typical_errs_as_rtmpose_on_five_data_sets(hands):
    """Published: PCK@0.2 0.964, AUC 0.839, mean error 5.06 px."""
    found = figures("typical", hands)
    assert found["pck"] == pytest.approx(0.964, abs=0.01)
    assert found["auc"] == pytest.approx(0.839, abs=0.03)
    assert found["epe"] == pytest.approx(5.06, abs=1.2)


def test_noisy_lies_between_mediapipe_and_hands_in_the_wild(hands):
    """Published: 13.4 % of the palm (MediaPipe), PCK@0.2 0.800 (COCO-WholeBody)."""
    found = figures("noisy", hands)
    assert 0.80 < found["pck"] < 0.90  # so at least 10 % are outliers
    assert found["palm"] == pytest.approx(0.134, abs=0.04)
    assert found["inlier_epe"] > 5


@pytest.mark.parametrize("name", ["typical", "noisy"])
def test_confidences_know_of_errors_but_not_of_all(name, hands):
    found = figures(name, hands)
    error, confidence = found["error"].flatten(), found["confidence"].flatten()
    assert 0 <= confidence.min() <= confidence.max() <= 1
    correlation = torch.corrcoef(torch.stack([error, confidence]))[0, 1]
    assert -0.9 < correlation < -0.3
    wrong = error > 0.2
    # the chance that a right keypoint is surer than a wrong one
    ranks = confidence[~wrong][:4000, None] - confidence[wrong][None, :300]
    assert 0.75 < (ranks > 0).float().mean() < 0.97
    assert 0.05 < (confidence[wrong] > 0.5).float().mean() < 0.35  # sure, and wrong


def test_tails_are_heavier_than_a_normal_distribution_s(hands):
    error = figures("typical", hands)["error"].flatten()
    assert error.quantile(0.99) > 8 * error.median()  # normal: 2.6 times


def error_with(hands, detector, visible=None, blur=0.0, zoom=1.0):
    keypoints, shown, seed, _ = hands
    shown = shown if visible is None else torch.full_like(shown, visible)
    found, _ = detector.detect(keypoints * zoom, shown, torch.full((COUNT,), blur), seed)
    return (found / zoom - keypoints).norm(dim=-1).median()


def test_noise_grows_with_occlusion_blur_and_distance(hands):
    noise = Detector(outliers=0.0, swaps=0.0)
    sharp = error_with(hands, noise, visible=1.0)
    assert error_with(hands, noise, visible=0.0) > 2 * sharp
    assert error_with(hands, noise, visible=1.0, blur=5.0) > 1.5 * sharp
    assert error_with(hands, noise, visible=1.0, zoom=0.25) > 2 * sharp


def test_swaps_are_of_neighbouring_fingers_and_of_tips(hands):
    """Without noise, every wrong keypoint lies on another joint: which one?"""
    keypoints, _, seed, _ = hands
    detector = Detector(noise=0.0, outliers=0.0, swaps=0.1)
    visible, sharp = torch.ones(COUNT, 21), torch.zeros(COUNT)
    found, _ = detector.detect(4 * keypoints, visible, sharp, seed)  # resolved well
    taken = torch.cdist(found, 4 * keypoints).argmin(2)
    assert (taken[:, 0] == 0).all()
    finger, place = (taken[:, 1:] - 1) // 4, (taken[:, 1:] - 1) % 4
    true_finger, true_place = torch.arange(20) // 4, torch.arange(20) % 4
    upright = finger[:, 0] == 0  # the thumb's CMC joint tells whether the hand is turned round
    assert (~upright).float().mean() == pytest.approx(0.025, abs=0.015)
    assert (finger[~upright, 16] == 0).all()
    moved = (finger != true_finger)[upright]
    assert not moved[:, true_place == 0].any()  # MCP joints stay
    assert moved[:, 7].float().mean() == pytest.approx(0.2, abs=0.05)  # index: two neighbours
    short = (place != true_place)[upright]
    assert short[:, 3::4].float().mean() == pytest.approx(0.1, abs=0.02)
    assert not short[:, true_place != 3].any()


def test_an_image_s_keypoints_do_not_depend_on_its_batch(hands):
    keypoints, visible, seed, _ = hands
    whole = PRESETS["noisy"].detect(keypoints, visible, torch.zeros(COUNT), seed)
    rows = torch.tensor([5, 400, 17])
    part = PRESETS["noisy"].detect(keypoints[rows], visible[rows], torch.zeros(3), seed[rows])
    torch.testing.assert_close(part[0], whole[0][rows], atol=1e-4, rtol=0)
    torch.testing.assert_close(part[1], whole[1][rows], atol=1e-5, rtol=0)


def test_blur_is_recognised():
    generator = torch.Generator().manual_seed(0)
    blocks = torch.rand(4, 3, 8, 8, generator=generator)
    sharp = torch.nn.functional.interpolate(blocks, size=(128, 128), mode="nearest")
    found = []
    for sigma in (0.0, 2.0, 4.0):
        radius = np.arange(-15, 16)
        kernel = torch.from_numpy(np.exp(-(radius**2) / (2 * max(sigma, 0.01) ** 2))).float()
        kernel = (kernel / kernel.sum()).view(1, 1, -1, 1)
        blurred = sharp.flatten(0, 1)[:, None]
        for weights in (kernel, kernel.mT):
            pad = (15, 15, 0, 0) if weights.shape[-1] > 1 else (0, 0, 15, 15)
            blurred = torch.nn.functional.pad(blurred, pad, mode="replicate")
            blurred = torch.nn.functional.conv2d(blurred, weights)
        found.append(estimate_blur(blurred.view(4, 3, 128, 128)).mean().item())
    assert found == pytest.approx([0.0, 2.0, 4.0], abs=0.7)


def splitmix64(state):
    """The reference algorithm, in Python's integers."""
    mask = 2**64 - 1
    value = state & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return value ^ (value >> 31)


def test_noise_is_splitmix64():
    for seed in (0, 1, 2**61 + 12345):
        start = splitmix64(seed)
        expected = [
            ((splitmix64(start + k * 0x9E3779B97F4A7C15) >> 40) + 0.5) / 2**24 for k in range(1, 6)
        ]
        noise = SeededNoise(torch.tensor([seed]))
        found = torch.cat([noise.uniform(2), noise.uniform(3)], dim=1)[0]
        torch.testing.assert_close(found.double(), torch.tensor(expected, dtype=torch.float64))


def test_noise_is_uniform_normal_and_independent_of_neighbouring_seeds():
    noise = SeededNoise(torch.arange(400))
    uniform, normal = noise.uniform(50), noise.normal(5, 10)
    assert kstest(uniform.flatten().numpy(), "uniform").pvalue > 1e-3
    assert kstest(normal.flatten().numpy(), "norm").pvalue > 1e-3
    neighbours = torch.corrcoef(torch.stack([uniform[:-1].flatten(), uniform[1:].flatten()]))
    assert neighbours[0, 1].abs() < 0.03
