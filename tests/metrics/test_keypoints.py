"""Errors of projected joints, against plain loops; and the report of a set without 3D labels."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch

from handrec.metrics.hand import HandMetrics
from handrec.metrics.keypoints import KEYPOINTS, is_2d_only, keypoint_figures
from tests.callbacks.test_report import FakeData, FakeMethod, evaluate
from tests.metrics.fakes import fake_batch, predict


def without_3d(batch):
    zeros = torch.zeros_like(batch.has_pose)
    return batch._replace(
        has_joints_3d=zeros, has_vertices=zeros, has_pose=zeros,
        joints_3d=0 * batch.joints_3d, vertices=0 * batch.vertices,
    )  # fmt: skip


def loops(found, target, known, size):
    rows = []
    for b in range(len(found)):
        chosen = [k for k in range(21) if known[b, k] > 0]
        if len(chosen) < 2:
            rows.append([np.nan] * 5)
            continue
        xs, ys = ([float(target[b, k, i]) for k in chosen] for i in (0, 1))
        side = max(max(xs) - min(xs), max(ys) - min(ys))
        apart = [np.hypot(*(found[b, k] - target[b, k]).double().numpy()) for k in chosen]
        pck = lambda t: np.mean([d / side <= t for d in apart])  # noqa: B023, E731
        curve = [pck(t) for t in np.linspace(0, 0.2, 101)]
        area = sum((a + b) / 2 for a, b in pairwise(curve)) / 100
        rows.append(
            [np.mean(apart) * 224 / size, 100 * np.mean(apart) / side, pck(0.05), pck(0.1), area]
        )
    return np.array(rows)


def test_figures_are_those_of_loops():
    generator = torch.Generator().manual_seed(0)
    target = 100 * torch.rand(8, 21, 2, generator=generator)
    found = target + 5 * torch.randn(8, 21, 2, generator=generator)
    known = (torch.rand(8, 21, generator=generator) < 0.7).float()
    known[2], known[3, 1:] = 0, 0
    figures = keypoint_figures(found, target * known[..., None], known, 128)
    expected = loops(found, target, known, 128)
    np.testing.assert_allclose(figures.numpy(), expected, atol=2e-4)
    assert figures[2:4].isnan().all()


def test_perfect_keypoints():
    target = 50 * torch.rand(3, 21, 2)
    figures = keypoint_figures(target, target, torch.ones(3, 21), 64)
    torch.testing.assert_close(figures, torch.tensor([[0.0, 0, 1, 1, 1]]).expand(3, 5))


def test_size_of_the_crop_does_not_matter():
    target, found = (40 * torch.rand(2, 4, 21, 2)).unbind(0)
    small = keypoint_figures(found, target, torch.ones(4, 21), 64)
    large = keypoint_figures(2 * found, 2 * target, torch.ones(4, 21), 128)
    torch.testing.assert_close(small, large)


def test_metrics_tell_2d_only_sets():
    batch = fake_batch(4)
    for given, expected in ((batch, False), (without_3d(batch), True)):
        metrics = HandMetrics(f_scores=False, warn=False)
        metrics.update(predict(given), given)
        results = metrics.compute()
        assert is_2d_only(results) == expected
        assert results["kp_px"] > 0
        assert metrics.samples().values["kp_px"].shape == (4,)
    nothing = without_3d(batch)._replace(confidence=torch.zeros(4, 21))
    metrics = HandMetrics(f_scores=False, warn=False)
    metrics.update(predict(nothing), nothing)
    assert metrics.compute()["kp_px"].isnan()
    assert not is_2d_only(metrics.compute())


@pytest.mark.parametrize("only_2d", [True, False])
def test_report_has_columns_for_what_is_labelled(tmp_path, capsys, only_2d):
    batches = [fake_batch(4, seed, first_id=4 * seed) for seed in range(2)]
    if only_2d:
        batches = [without_3d(batch) for batch in batches]
    evaluate(FakeMethod(), tmp_path, FakeData(batches))
    out = capsys.readouterr().out
    assert ("2D PX" in out) == only_2d
    assert ("PA-MPJPE" in out) != only_2d
    folder = next((tmp_path / "eval").glob("*/test"))
    assert (folder / "pck.png").exists() != only_2d
    assert (folder / "contact.png").exists()
    content = json.loads((folder / "metrics.json").read_text())["results"]["FakeMethod"]
    assert set(KEYPOINTS) <= set(content)
    assert only_2d or content["kp_pck10"] > 0.5  # the stand-in predicts from 3D labels
    html = (folder / "report.html").read_text()
    assert ("PCK@.05" in html) == only_2d
