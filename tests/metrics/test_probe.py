import pytest
import torch

from handrec.metrics import probe as probes
from handrec.metrics.articulation import articulation
from handrec.metrics.probe import _RIDGES, KeypointProbe, leave_group_out
from handrec.types import HandBatch


def error(features, targets, groups=None):
    points = targets.unflatten(1, (-1, 2))
    groups = torch.arange(len(features)) if groups is None else groups
    return probes.linear_error(features, points, groups)


def test_linear_features_are_read_off():
    torch.manual_seed(0)
    targets = torch.rand(400, 42)
    features = targets @ torch.randn(42, 60) + 3
    assert error(features, targets) < 0.005


def test_noise_gives_the_error_of_the_mean_keypoints():
    torch.manual_seed(0)
    targets = torch.rand(1500, 42)
    expected = (targets - targets.mean(0)).unflatten(1, (-1, 2)).norm(dim=-1).mean()
    assert error(torch.randn(1500, 8), targets) == pytest.approx(float(expected), rel=0.02)


def test_no_sample_is_predicted_from_itself():
    """With more features than samples the fit is exact on noise, the error is not."""
    torch.manual_seed(0)
    assert error(torch.randn(64, 500), torch.rand(64, 42)) > 0.3


def test_no_frame_is_predicted_from_its_video():
    """Features that tell nothing but the video know its frames' keypoints, but of no other's."""
    torch.manual_seed(0)
    video = torch.arange(20).repeat_interleave(4)
    features, targets = torch.randn(20, 30)[video], torch.rand(20, 42)[video]
    assert error(features, targets) < 0.01
    assert error(features, targets, video) > 0.3


@pytest.mark.parametrize("groups", [list(range(12)), [0, 0, 1, 2, 2, 2, 3, 4, 5, 5, 6, 0]])
def test_residuals_are_those_of_fitting_anew_without_each_group(groups):
    torch.manual_seed(0)
    features, targets = torch.randn(12, 5).double(), torch.rand(12, 4).double()
    groups = torch.tensor(groups)
    found = leave_group_out(features, targets, groups)
    for ridge, residual in zip(_RIDGES, found, strict=True):
        for i in range(12):
            rest = groups != groups[i]
            x = (features - features[rest].mean(0)) / features.std(0) / 5**0.5
            offset = targets[rest].mean(0)
            system = x[rest].T @ x[rest] + ridge * torch.eye(5)
            weights = torch.linalg.solve(system, x[rest].T @ (targets[rest] - offset))
            expected = targets[i] - x[i] @ weights - offset
            torch.testing.assert_close(residual[i], expected, atol=1e-4, rtol=0)


def batch(confidence, **columns):
    count = len(confidence)
    blank = HandBatch(*[torch.zeros(count)] * len(HandBatch._fields))
    return blank._replace(
        image=torch.zeros(count, 3, 8, 8), keypoints_2d=torch.rand(count, 21, 2),
        joints_3d=torch.rand(count, 21, 3), confidence=confidence,
        sequence=torch.arange(count), **columns,
    )  # fmt: skip


def test_samples_without_labels_are_left_out():
    """Each target is the feature itself but where there is no label."""
    torch.manual_seed(0)
    confidence, labelled = torch.ones(60, 21), torch.ones(60)
    confidence[2, 5], labelled[7] = 0, 0
    some = batch(confidence, has_joints_3d=labelled)
    features = torch.cat([some.keypoints_2d.flatten(1), articulation(some.joints_3d).flatten(1)], 1)
    known = KeypointProbe()
    known.update("probe", features, some)
    told = known.compute()
    some.keypoints_2d[2], some.joints_3d[7] = 1e4, torch.rand(21, 3) * 1e4
    ignorant = KeypointProbe()
    ignorant.update("probe", features, some)
    assert ignorant.compute() == pytest.approx(told, rel=0.2)
    known.reset()
    known.update("probe", torch.randn(6, 4), batch(torch.zeros(6, 21)))
    assert all(torch.tensor(value).isnan() for value in known.compute().values())


@pytest.mark.parametrize("sizes", [[10] * 30, [7, 64, 1, 90, 33]])
def test_of_many_samples_evenly_spaced_ones_are_kept(sizes, monkeypatch):
    monkeypatch.setattr(probes, "MOST", 40)
    samples, rows = probes.Samples(), torch.arange(sum(sizes))
    for part in rows.split(sizes):
        samples.add([part])
    (kept,) = samples.columns()
    assert 20 <= len(kept) <= 40
    assert torch.equal(kept, rows[:: samples.spacing])


def test_processes_share_what_may_be_kept(monkeypatch):
    """The kernel is of all their rows: more machines must not make it larger."""
    monkeypatch.setattr(probes, "MOST", 40)
    others = iter([[30, 31, 32], "rows"])

    def gather(found, mine):
        other = next(others)
        found[:] = other if other != "rows" else [mine] * 3

    monkeypatch.setattr(probes.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(probes.distributed, "get_world_size", lambda: 3)
    monkeypatch.setattr(probes.distributed, "all_gather_object", gather)
    (rows,) = probes._of_all([torch.arange(30)])
    assert torch.equal(rows, torch.arange(30)[::3].repeat(3))
