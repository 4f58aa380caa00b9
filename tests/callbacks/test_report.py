"""The report of a real test run, read back from its files."""

import csv
import json

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import distributed
from torch.utils.data import DataLoader

from handrec.callbacks.report import EvaluationReport, _examples
from handrec.methods.base import HandMethod
from handrec.metrics.articulation import ARTICULATION
from handrec.metrics.baseline import MeanHand
from handrec.metrics.hand import PENETRATION, HandMetrics
from handrec.metrics.temporal import acceleration_error
from handrec.render.torch_reference import TorchRasterizer
from handrec.types import HandBatch
from tests.metrics.fakes import TinyHand, fake_batch, predict, project

BATCHES = [fake_batch(4, seed, first_id=4 * seed) for seed in range(3)]


class FakeMethod(HandMethod):
    def __init__(self):
        super().__init__()
        self.hand = TinyHand()

    def reconstruct(self, batch):
        return predict(batch)

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        return self.reconstruct(batch)


class IterativeMethod(FakeMethod):
    def iterations(self, batch):
        return [predict(batch, noise) for noise in (0.02, 0.01, 0.005)]


class FakeData(pl.LightningDataModule):
    name = "fakes"

    def __init__(self, batches=BATCHES):
        super().__init__()
        self.batches = batches

    def test_dataloader(self):
        return DataLoader(self.batches, batch_size=None)


def evaluate(method, folder, data=None, **options):
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[EvaluationReport(str(folder), examples=2, rasterizer=TorchRasterizer())],
        **options,
    )
    trainer.test(method, datamodule=data or FakeData(), verbose=False)
    return folder / "eval" / "fakes" / "test"


class SeveralSplits(FakeData):
    """Three splits: the first batch, the others, and two videos of three and five frames."""

    test_splits = ("test", "test_hard_views", "video")

    def test_dataloader(self):
        video = fake_batch(8, 5)._replace(
            sequence=torch.tensor([0, 0, 0, 1, 1, 1, 1, 1]),
            frame=torch.tensor([0, 1, 2, 0, 1, 2, 3, 4]),
        )
        halves = [rows_of(video, slice(0, 5)), rows_of(video, slice(5, 8))]  # cuts the second
        splits = (BATCHES[:1], BATCHES[1:], halves)
        return [DataLoader(batches, batch_size=None) for batches in splits]

    def fingerprint(self, split):
        return f"hash of {split}"


def rows_of(batch, rows):
    return HandBatch(*(field[rows] for field in batch))


def computed(predictor):
    metrics = HandMetrics(warn=False)
    for batch in BATCHES:
        metrics.update(predictor(batch), batch)
    return metrics


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return evaluate(IterativeMethod(), tmp_path_factory.mktemp("run"))


def test_json_holds_what_the_metrics_compute(report):
    content = json.loads((report / "metrics.json").read_text())
    assert content["method"] == "IterativeMethod"
    assert content["data"] == "fakes"
    assert content["samples"] == 12
    assert "torch" in content["versions"]
    predictors = {
        "IterativeMethod": predict,
        "mean hand": MeanHand(TinyHand()).predict,
        "iteration 1": lambda batch: predict(batch, 0.02),
        "iteration 3": predict,
    }
    for row, predictor in predictors.items():
        expected = computed(predictor).compute()
        figures = content["results"][row]
        assert figures.pop("samples") == 12
        light = {"f5", "f15", "pa_f5", "pa_f15"} if "iteration" in row else set()
        assert set(figures) - set(PENETRATION + ARTICULATION) == set(expected) - light
        for name, value in figures.items():
            if name not in PENETRATION + ARTICULATION:
                assert value == pytest.approx(expected[name].item(), abs=1e-4), (row, name)


def test_articulation_is_told_and_the_mean_hand_tells_none(tmp_path, capsys):
    generator = torch.Generator().manual_seed(0)
    bent = [
        b._replace(joints_3d=b.joints_3d + 0.01 * torch.randn(4, 21, 3, generator=generator))
        for b in BATCHES
    ]
    folder = evaluate(IterativeMethod(), tmp_path, FakeData(bent))
    results = json.loads((folder / "metrics.json").read_text())["results"]
    told = [results[f"iteration {i}"]["articulation_r"] for i in (1, 2, 3)]
    assert 0.2 < told[0] < told[1] < told[2] < 1
    assert results["IterativeMethod"]["articulation_r"] == told[2]
    assert results["mean hand"]["articulation_r"] == results["mean hand"]["articulation_sd"] == 0
    assert f"{told[2]:.3f}" in capsys.readouterr().out


def test_iterations_get_better(report):
    results = json.loads((report / "metrics.json").read_text())["results"]
    errors = [results[f"iteration {i}"]["pa_mpjpe"] for i in (1, 2, 3)]
    assert errors[0] > errors[1] > errors[2]


def test_csv_holds_every_sample_and_agrees_with_json(report):
    with (report / "per_sample.csv").open() as file:
        rows = list(csv.DictReader(file))
    results = json.loads((report / "metrics.json").read_text())["results"]["IterativeMethod"]
    samples = computed(predict).samples()
    assert [int(row["id"]) for row in rows] == list(range(12))
    for name, values in samples.values.items():
        column = np.array([float(row[name]) for row in rows])
        np.testing.assert_allclose(column, values.numpy(), rtol=1e-5, atol=1e-6)
        assert column.mean() == pytest.approx(results[name], abs=1e-4)


def test_html_shows_the_table_and_both_pictures(report):
    html = (report / "report.html").read_text()
    results = json.loads((report / "metrics.json").read_text())["results"]
    for row, figures in results.items():
        assert f"<td>{row}</td><td>12</td><td>{figures['mpjpe']:.2f}</td>" in html
    assert html.count("data:image/png;base64,") == 2
    assert (report / "pck.png").read_bytes()[1:4] == b"PNG"
    assert (report / "contact.png").stat().st_size > 5000


def test_the_terminal_shows_the_same_table(tmp_path, capsys):
    folder = evaluate(FakeMethod(), tmp_path)
    printed = capsys.readouterr().out
    results = json.loads((folder / "metrics.json").read_text())["results"]
    assert list(results) == ["FakeMethod", "mean hand"]
    for row, figures in results.items():
        (line,) = (
            line for line in printed.splitlines() if line.strip().startswith(row) and " 12 " in line
        )
        assert line.split()[len(row.split()) :] == [
            "12",
            *(f"{figures[name]:.2f}" for name in ("mpjpe", "pa_mpjpe", "mpvpe", "pa_mpvpe")),
            *(f"{figures[name]:.3f}" for name in ("pa_auc_j", "pa_f5", "pa_f15")),
            "–",  # of articulation: the labels' hands are all alike
            f"{figures['penetration']:.2f}" if "penetration" in figures else "–",
            f"{figures['penetration_share']:.3f}" if "penetration" in figures else "–",
        ]
    assert "reflections" in printed
    assert "wrist" in printed


def test_absent_labels_leave_gaps_not_zeros(tmp_path, capsys):
    half = torch.tensor([1.0, 1, 0, 0])
    batches = [b._replace(has_joints_3d=half, has_vertices=torch.zeros(4)) for b in BATCHES]
    folder = evaluate(FakeMethod(), tmp_path, FakeData(batches))
    results = json.loads((folder / "metrics.json").read_text())["results"]["FakeMethod"]
    assert results["pa_mpvpe"] is None
    assert results["pa_mpjpe"] > 0
    with (folder / "per_sample.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["pa_mpjpe"] != "" for row in rows] == [True, True, False, False] * 3
    assert "12 (6 joints, 0 meshes)" in capsys.readouterr().out


def test_data_without_labels_still_give_a_report(tmp_path):
    zeros = torch.zeros(4)
    batches = [
        b._replace(has_joints_3d=zeros, has_vertices=zeros, confidence=torch.zeros(4, 21))
        for b in BATCHES
    ]
    folder = evaluate(FakeMethod(), tmp_path, FakeData(batches))
    assert not (folder / "contact.png").exists()
    assert (folder / "report.html").exists()


class Mirrored(FakeMethod):
    def reconstruct(self, batch):
        prediction = predict(batch, 0.0)
        return prediction._replace(joints=prediction.joints * torch.tensor([-1.0, 1.0, 1.0]))


def test_every_split_has_its_rows_its_folder_and_its_place_in_the_summary(tmp_path, capsys):
    folder = evaluate(FakeMethod(), tmp_path, SeveralSplits()).parent
    summary = json.loads((folder / "metrics.json").read_text())["splits"]
    assert list(summary) == ["test", "test_hard_views", "video"]
    printed = capsys.readouterr().out
    for split, content in summary.items():
        assert json.loads((folder / split / "metrics.json").read_text()) == content
        assert (folder / split / "report.html").exists()
        assert content["split_sha256"] == f"hash of {split}"
        for row in ("FakeMethod", "mean hand"):
            (line,) = (x for x in printed.splitlines() if x.strip().startswith(f"{split}: {row}"))
            assert f" {content['results'][row]['pa_mpjpe']:.2f} " in line
    metrics = HandMetrics(warn=False)
    metrics.update(predict(BATCHES[0]), BATCHES[0])
    expected = metrics.compute()["pa_mpjpe"].item()
    found = summary["test"]["results"]["FakeMethod"]["pa_mpjpe"]
    assert found == pytest.approx(expected, abs=1e-4)
    assert summary["test_hard_views"]["samples"] == 8


def test_only_splits_with_videos_have_temporal_figures(tmp_path, capsys):
    folder = evaluate(FakeMethod(), tmp_path, SeveralSplits()).parent
    summary = json.loads((folder / "metrics.json").read_text())["splits"]
    temporal = {"accel_error", "jitter", "shape_sd", "bone_sd"}
    assert not temporal & set(summary["test"]["results"]["FakeMethod"])
    found = summary["video"]["results"]["FakeMethod"]
    assert temporal <= set(found)
    batches = SeveralSplits().test_dataloader()[2]
    sequence, frame, predicted, target = (
        torch.cat(columns)
        for columns in zip(
            *((b.sequence, b.frame, predict(b).joints, b.joints_3d) for b in batches), strict=True
        )
    )
    expected = 1000 * acceleration_error(predicted, target, sequence, frame).mean()
    assert found["accel_error"] == pytest.approx(expected.item(), rel=1e-5)
    capsys.readouterr()
    evaluate(FakeMethod(), tmp_path)
    assert "ACCEL" not in capsys.readouterr().out


def test_textures_that_flicker_have_a_column(tmp_path, capsys):
    class Flickering(FakeMethod):
        def reconstruct(self, batch):
            bright = batch.frame[:, None, None] % 2 * torch.full((1, 80, 3), 0.5)
            return super().reconstruct(batch)._replace(texture=bright)

    evaluate(FakeMethod(), tmp_path, SeveralSplits())
    assert "TEXTURE-SD" not in capsys.readouterr().out
    folder = evaluate(Flickering(), tmp_path, SeveralSplits()).parent
    results = json.loads((folder / "metrics.json").read_text())["splits"]["video"]["results"]
    # Videos of three and of five frames: 0, 1, 0 and 0, 1, 0, 1, 0.
    expected = 127.5 * np.mean([np.std([0, 1, 0]), np.std([0, 1, 0, 1, 0])])
    assert results["Flickering"]["texture_sd"] == pytest.approx(expected, rel=1e-5)
    assert "texture_sd" not in results["mean hand"]
    (line,) = (x for x in capsys.readouterr().out.splitlines() if "video: Flickering" in x)
    assert line.split()[-1] == f"{expected:.2f}"


def test_suspicions_reach_the_reader(tmp_path, capsys):
    # The tiny hand is almost flat: bend it, or a mirror would change nothing.
    bend = 0.05 * torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    batches = []
    for batch in BATCHES:
        joints = batch.joints_3d.clone()
        joints[:, 9:] += bend
        batches.append(batch._replace(joints_3d=joints))
    folder = evaluate(Mirrored(), tmp_path, FakeData(batches))
    (warning,) = json.loads((folder / "metrics.json").read_text())["warnings"]
    assert "mirrored" in warning
    assert "mirrored" in capsys.readouterr().out
    assert 'class="warning"' in (folder / "report.html").read_text()


def test_a_fast_dev_run_only_prints(tmp_path, capsys):
    folder = evaluate(FakeMethod(), tmp_path, fast_dev_run=True)
    assert not folder.exists()
    assert "mean hand" in capsys.readouterr().out


def test_test_step_must_return_a_prediction(tmp_path):
    method = FakeMethod()
    method.test_step = lambda batch, batch_idx: torch.zeros(())
    with pytest.raises(TypeError, match="must return a HandPrediction, not Tensor"):
        evaluate(method, tmp_path)


def test_figures_go_to_the_logger(tmp_path):
    logger = pl.loggers.CSVLogger(tmp_path)
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=logger,
        enable_progress_bar=False,
        callbacks=[EvaluationReport(rasterizer=TorchRasterizer())],
    )
    trainer.test(FakeMethod(), datamodule=FakeData(), verbose=False)
    with (tmp_path / "lightning_logs/version_0/metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    expected = computed(predict).compute()["pa_mpjpe"]
    assert float(row["test/pa_mpjpe"]) == pytest.approx(expected.item(), abs=1e-4)
    assert (tmp_path / "lightning_logs/version_0/eval/fakes/test/report.html").exists()


def test_examples_shrink_with_their_camera():
    batch = fake_batch(3, size=320)
    batch = batch._replace(image=batch.image[:, :, :240])  # 240 high, 320 wide: halved
    prediction = predict(batch)
    errors = torch.tensor([1.0, torch.nan, 2.0])  # the second has no label
    examples = list(_examples(prediction, batch, errors))
    assert [example.sample_id for example in examples] == [0, 2]
    for example in examples:
        row = example.sample_id
        assert example.picture.shape == (120, 160, 3)
        torch.testing.assert_close(example.target, 0.5 * batch.keypoints_2d[row])
        projected = project(prediction.joints[row][None], example.intrinsics[None])[0]
        torch.testing.assert_close(projected, example.keypoints)
        pixel = batch.image[row, :, 100:102, 60:62].mean((1, 2))
        np.testing.assert_allclose(example.picture[50, 30], 255 * pixel, atol=1.5)


def test_examples_are_gathered_over_processes(tmp_path, report):
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    try:
        folder = evaluate(IterativeMethod(), tmp_path)
    finally:
        distributed.destroy_process_group()
    assert (folder / "contact.png").read_bytes() == (report / "contact.png").read_bytes()
