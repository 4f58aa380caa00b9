import pytest
import torch

from handrec.metrics.probe import _RIDGES, KeypointProbe, keypoint_error, leave_one_out
from handrec.types import HandBatch


def test_linear_features_are_read_off():
    torch.manual_seed(0)
    targets = torch.rand(400, 42).double()
    features = targets @ torch.randn(42, 60).double() + 3
    assert keypoint_error(features, targets) < 0.5


def test_noise_gives_the_error_of_the_mean_keypoints():
    torch.manual_seed(0)
    targets = torch.rand(1500, 42).double()
    mean = targets.mean(0)
    expected = 100 * (targets - mean).unflatten(1, (-1, 2)).norm(dim=-1).mean()
    error = keypoint_error(torch.randn(1500, 8).double(), targets)
    assert error == pytest.approx(float(expected), rel=0.02)


def test_no_sample_is_predicted_from_itself():
    """With more features than samples the fit is exact on noise, the error is not."""
    torch.manual_seed(0)
    targets = torch.rand(64, 42).double()
    assert keypoint_error(torch.randn(64, 500).double(), targets) > 30


def test_residuals_are_those_of_fitting_anew_without_each_sample():
    torch.manual_seed(0)
    features, targets = torch.randn(12, 5).double(), torch.rand(12, 4).double()
    found = leave_one_out(features, targets)
    for ridge, residual in zip(_RIDGES, found, strict=True):
        for i in range(12):
            rest = torch.arange(12) != i
            x = (features - features[rest].mean(0)) / features.std(0) / 5**0.5
            offset = targets[rest].mean(0)
            system = x[rest].T @ x[rest] + ridge * torch.eye(5)
            weights = torch.linalg.solve(system, x[rest].T @ (targets[rest] - offset))
            expected = targets[i] - x[i] @ weights - offset
            torch.testing.assert_close(residual[i], expected, atol=1e-4, rtol=0)


def batch(confidence):
    count = len(confidence)
    blank = HandBatch(*[torch.zeros(count)] * len(HandBatch._fields))
    return blank._replace(
        image=torch.zeros(count, 3, 8, 8), keypoints_2d=torch.rand(count, 21, 2),
        confidence=confidence,
    )  # fmt: skip


def test_samples_without_labels_are_left_out():
    probe, confidence = KeypointProbe(), torch.ones(6, 21)
    confidence[2, 5] = 0
    probe.update("probe", torch.randn(6, 4), batch(confidence))
    assert len(probe.features["probe"][0]) == len(probe.targets["probe"][0]) == 5
    probe.reset()
    probe.update("probe", torch.randn(6, 4), batch(torch.zeros(6, 21)))
    assert torch.tensor(probe.compute()["probe"]).isnan()
