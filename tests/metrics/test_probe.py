import pytest
import torch

from handrec.metrics.probe import keypoint_error


def test_linear_features_are_read_off():
    torch.manual_seed(0)
    targets = torch.rand(400, 42).double()
    features = targets @ torch.randn(42, 60).double() + 3
    assert keypoint_error(features, targets) < 0.5


def test_noise_gives_the_error_of_the_mean_keypoints():
    torch.manual_seed(0)
    targets = torch.rand(4000, 42).double()
    mean = targets.mean(0)
    expected = 100 * (targets - mean).unflatten(1, (-1, 2)).norm(dim=-1).mean()
    error = keypoint_error(torch.randn(4000, 8).double(), targets)
    assert error == pytest.approx(float(expected), rel=0.02)


def test_it_measures_on_samples_that_it_did_not_fit():
    """With more features than samples the fit is exact on noise, the error is not."""
    torch.manual_seed(0)
    targets = torch.rand(64, 42).double()
    assert keypoint_error(torch.randn(64, 500).double(), targets) > 20
