"""The whole evaluator against the naive one, its masks, its guards and its merging."""

import math
import warnings

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing

from handrec.hand.anatomy import hand_parts, pose_from_angles, vertex_penetration
from handrec.hand.joints import KINEMATIC_JOINTS
from handrec.hand.openhand import OpenHand
from handrec.metrics.hand import HandMetrics, suspicions
from handrec.metrics.keypoints import KEYPOINTS
from tests.metrics import naive
from tests.metrics.fakes import TinyHand, fake_batch, predict


def measured(prediction, batch, **options):
    metrics = HandMetrics(**options)
    metrics.update(prediction, batch)
    return metrics


def naive_samples(prediction, batch):
    points = (prediction.joints, batch.joints_3d, prediction.vertices, batch.vertices)
    return [
        naive.evaluate(*(p.double().numpy() for p in sample))
        for sample in zip(*points, strict=True)
    ]


def test_every_figure_matches_the_naive_evaluation():
    batch = fake_batch()
    prediction = predict(batch, noise=0.008)
    metrics = measured(prediction, batch)
    expected = naive_samples(prediction, batch)
    figures = metrics.samples().values
    assert set(metrics.compute()) == set(figures) == {*expected[0], *KEYPOINTS}
    for name in expected[0]:
        values = figures[name]
        naive_values = torch.tensor([sample[name] for sample in expected], dtype=torch.float32)
        torch.testing.assert_close(values, naive_values, atol=1e-4, rtol=1e-6, msg=name)
        torch.testing.assert_close(metrics.compute()[name], naive_values.mean())


def test_batches_add_up():
    batches = [fake_batch(count, seed) for seed, count in enumerate((2, 5, 1))]
    metrics, shares = HandMetrics(), []
    for batch in batches:
        metrics.update(predict(batch), batch)
        shares.append(measured(predict(batch), batch).compute())
    for name, value in metrics.compute().items():
        mean = np.average([share[name] for share in shares], weights=[2, 5, 1])
        assert value.item() == pytest.approx(mean, rel=1e-5), name


def test_absent_labels_do_not_count():
    batch = fake_batch()
    prediction = predict(batch)
    full = measured(prediction, batch).samples().values
    batch = batch._replace(
        has_joints_3d=torch.tensor([1.0, 0, 1, 0, 0, 1]),
        has_vertices=torch.tensor([1.0, 1, 0, 0, 0, 1]),
        joints_3d=batch.joints_3d * torch.tensor([1.0, 0, 1, 0, 0, 1])[:, None, None],
    )
    metrics = measured(prediction, batch)
    kept = {"pa_mpjpe": [0, 2, 5], "mpvpe": [0, 5], "auc_v": [0, 5], "pa_f5": [0, 1, 5]}
    for name, rows in kept.items():
        values = metrics.samples().values[name]
        assert values.isfinite().nonzero().flatten().tolist() == rows
        torch.testing.assert_close(values[rows], full[name][rows])
        torch.testing.assert_close(metrics.compute()[name], full[name][rows].mean())


def test_no_label_gives_nan():
    batch = fake_batch()
    results = measured(predict(batch), batch._replace(has_vertices=torch.zeros(6))).compute()
    assert results["pa_mpjpe"].isfinite()
    assert results["pa_mpvpe"].isnan()
    assert results["pa_f5"].isnan()


def test_the_light_variant_leaves_out_the_f_scores():
    batch = fake_batch()
    light = measured(predict(batch), batch, f_scores=False).compute()
    full = measured(predict(batch), batch).compute()
    assert set(full) - set(light) == {"f5", "f15", "pa_f5", "pa_f15"}
    assert all(light[name] == full[name] for name in light)


def test_non_finite_predictions_are_counted_and_refused():
    batch = fake_batch(first_id=40)
    prediction = predict(batch)
    prediction.joints[2, 3, 0] = torch.nan
    prediction.vertices[4, 7, 1] = torch.inf
    with pytest.raises(ValueError, match=r"2 of 6 predictions are not finite \(samples \[42, 44\]"):
        HandMetrics().update(prediction, batch)


def test_mirrored_predictions_are_suspected():
    batch = fake_batch()
    mirror = torch.tensor([-1.0, 1.0, 1.0])
    prediction = predict(batch, noise=0.001)
    # The tiny hand is almost flat: bend it, or a mirror would change nothing.
    bent = batch.joints_3d.clone()
    bent[:, 9:] += 0.05 * torch.randn(12, 3, generator=torch.Generator().manual_seed(3))
    metrics = measured(
        prediction._replace(joints=bent * mirror, vertices=prediction.vertices * mirror),
        batch._replace(joints_3d=bent),
    )
    with pytest.warns(UserWarning, match="mirrored"):
        results = metrics.compute()
    assert results["pa_mpjpe"] < 0.01
    assert results["pa_mpjpe_rigid"] > 5


def test_permuted_joints_are_suspected():
    batch = fake_batch()
    prediction = predict(batch, noise=0.001)
    order = [0, *range(5, 21), *range(1, 5)]
    permuted = measured(prediction._replace(joints=prediction.joints[:, order]), batch)
    with pytest.warns(UserWarning, match="order of the labels"):
        permuted.compute()


def test_good_and_unlabelled_predictions_are_not_suspected():
    batch = fake_batch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measured(predict(batch), batch).compute()
        measured(predict(batch), batch._replace(has_vertices=torch.zeros(6))).compute()
    assert suspicions(measured(predict(batch), batch, warn=False).compute()) == []


def test_meshes_of_another_topology_give_joint_metrics_only():
    batch = fake_batch()
    prediction = predict(fake_batch(hand=TinyHand(70)))
    metrics = HandMetrics()
    with pytest.warns(UserWarning, match="70 vertices were predicted, the labels have 50"):
        metrics.update(prediction, batch)
    assert metrics.compute()["pa_mpvpe"].isnan()
    torch.testing.assert_close(
        metrics.compute()["mpjpe"],
        measured(prediction._replace(vertices=predict(batch).vertices), batch).compute()["mpjpe"],
    )


def test_latest_is_of_the_last_batch():
    metrics = measured(predict(fake_batch()), fake_batch())
    other = fake_batch(3, seed=5)
    metrics.update(predict(other), other)
    torch.testing.assert_close(
        metrics.latest("pa_mpjpe"), measured(predict(other), other).samples().values["pa_mpjpe"]
    )


def test_nothing_measured_is_an_error():
    with pytest.raises(ValueError, match="no sample was measured"):
        HandMetrics().samples()


def test_ids_that_name_nothing_drop_nothing():
    batch = fake_batch()._replace(sample_id=torch.zeros(6, dtype=torch.long))
    assert len(measured(predict(batch), batch).samples().ids) == 6


def test_states_merge():
    first, second = fake_batch(3), fake_batch(4, seed=1, first_id=3)
    merged = measured(predict(first), first)
    merged.merge_state(measured(predict(second), second))
    together = measured(predict(first), first)
    together.update(predict(second), second)
    assert sorted(merged.samples().ids.tolist()) == list(range(7))
    for name, value in together.compute().items():
        torch.testing.assert_close(merged.compute()[name], value)


def _evaluate_on_rank(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    batch = fake_batch(6)
    rows = [[0, 1, 4, 5], [2, 3, 0, 1]][rank]  # as a sampler deals batches of 2: one fills the end
    prediction = type(predict(batch))(*(f[rows] if f is not None else f for f in predict(batch)))
    metrics = HandMetrics()
    metrics.update(prediction, type(batch)(*(field[rows] for field in batch)))
    results = metrics.compute() | {"ids": metrics.samples().ids}
    assert len(metrics.latest("mpjpe")) == 4  # the local samples are still there
    torch.save(results, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_agree_with_one(tmp_path):
    multiprocessing.spawn(_evaluate_on_rank, args=(str(tmp_path),), nprocs=2)
    batch = fake_batch(6)
    expected = measured(predict(batch), batch).compute()
    for rank in range(2):
        results = torch.load(tmp_path / f"{rank}.pt")
        assert sorted(results.pop("ids").tolist()) == [0, 1, 2, 3, 4, 5]
        for name, value in expected.items():
            torch.testing.assert_close(results[name], value, msg=name)


def test_hands_that_run_into_themselves_are_measured_labelled_or_not():
    hand = OpenHand()
    angles = torch.zeros(2, 15, 3)
    angles[1, KINEMATIC_JOINTS.index("middle_mcp") - 1, 1] = -math.radians(14)  # into the index
    pose = pose_from_angles(angles, hand.joint_axes)
    translation = torch.tensor([[0.0, 0.0, 0.6]]).expand(2, 3)
    vertices, joints = hand.decode(pose, torch.zeros(2, 10), translation)
    nothing = torch.zeros(2)
    batch = fake_batch(2)._replace(
        vertices=vertices, joints_3d=joints, has_joints_3d=nothing, has_vertices=nothing
    )
    prediction = predict(fake_batch(2))._replace(vertices=vertices, joints=joints)
    figures = measured(prediction, batch, hand=hand, warn=False).samples().values
    assert figures["pa_mpjpe"].isnan().all()
    depth = vertex_penetration(vertices, hand.faces, hand_parts(hand))
    assert figures["penetration"][0] == figures["penetration_share"][0] == 0
    assert 4 < figures["penetration"][1] < 9  # mm: at most half a finger
    assert figures["penetration"][1].item() == pytest.approx(1000 * float(depth[1].max()), abs=0.01)
    share = int((depth[1] > 0).sum()) / depth.shape[1]
    assert figures["penetration_share"][1].item() == pytest.approx(share)
    assert "penetration" not in measured(prediction, batch, warn=False).samples().values
