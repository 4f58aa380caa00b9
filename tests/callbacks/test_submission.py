"""What a test run hands in, read back as a server and ``handrec score`` would."""

import json

import numpy as np
import pytest
import torch

from handrec.callbacks.submission import Submission
from handrec.cli.main import run_tool
from handrec.errors import UserError
from handrec.metrics.official import PROTOCOLS, Points, evaluate, to_protocol
from handrec.metrics.official_files import read_prediction
from tests.callbacks import test_report
from tests.metrics.fakes import TinyHand, fake_batch, predict

HAND = TinyHand(778)
#: In an order that the files must not keep.
BATCHES = [fake_batch(4, seed, HAND, first_id=4 * seed) for seed in (2, 0, 1)]


class Method(test_report.FakeMethod):
    def __init__(self, hand=HAND):
        super().__init__()
        self.hand = hand


class Data(test_report.FakeData):
    def __init__(self, batches=BATCHES, submission="ho3d_v2"):
        super().__init__(batches)
        self.submission = submission


def in_order(part):
    """Return the predictions or labels of all batches by sample, joints and vertices."""
    batches = sorted(BATCHES, key=lambda batch: int(batch.sample_id[0]))
    if part == "labels":
        return Points(*(torch.cat([b[i] for b in batches]) for i in (4, 5)))
    found = [predict(batch) for batch in batches]
    return Points(torch.cat([p.joints for p in found]), torch.cat([p.vertices for p in found]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return test_report.evaluate(Method(), tmp_path_factory.mktemp("run"), Data())


@pytest.mark.parametrize("name", ["pred.json", "pred.zip"])
def test_a_test_run_hands_in_its_predictions(folder, name):
    read = read_prediction(folder / name, 12)
    for part, expected in zip(
        read, to_protocol(in_order("hands"), PROTOCOLS["ho3d_v2"]), strict=True
    ):
        torch.testing.assert_close(part, expected.double(), atol=1e-7, rtol=0)


def test_scores_are_those_of_handrec_score(folder, tmp_path):
    target = to_protocol(in_order("labels"), PROTOCOLS["ho3d_v2"])
    for name, part in zip(("xyz", "verts"), target, strict=True):
        (tmp_path / f"{name}.json").write_text(json.dumps(part.tolist()))
    words = f"--protocol ho3d_v2 --gt-xyz {tmp_path}/xyz.json --gt-verts {tmp_path}/verts.json"
    run_tool("score", [*words.split(), "--pred", f"{folder}/pred.zip", "--out", f"{tmp_path}/out"])
    scores = [
        dict(line.split(": ") for line in (place / "scores.txt").read_text().splitlines())
        for place in (folder, tmp_path / "out")
    ]
    assert scores[0].keys() == scores[1].keys()
    for key, value in scores[0].items():  # the file has seven digits
        assert float(value) == pytest.approx(float(scores[1][key]), abs=1e-4), key
    results = json.loads((folder / "metrics.json").read_text())["results"]["Method"]
    assert results["pa_mpjpe"] == pytest.approx(
        10 * float(scores[0]["xyz_procrustes_al_mean3d"]), rel=1e-5
    )
    assert results["pa_f5"] == pytest.approx(float(scores[0]["f_al_score_5"]), rel=1e-5)


def test_the_report_says_what_the_server_would_refuse(folder):
    (warning,) = json.loads((folder / "metrics.json").read_text())["warnings"]
    assert warning == "pred.json has 12 samples, HO-3D v2's server takes 11,524"


def test_without_labels_there_is_no_score(tmp_path):
    batches = [b._replace(has_vertices=torch.tensor([1.0, 1, 0, 1])) for b in BATCHES]
    folder = test_report.evaluate(Method(), tmp_path, Data(batches))
    assert (folder / "pred.zip").exists()
    assert not (folder / "scores.txt").exists()


def test_another_mesh_hands_nothing_in(tmp_path):
    batches = [fake_batch(4)._replace(has_vertices=torch.tensor([1.0, 1, 0, 1])), fake_batch(4)]
    folder = test_report.evaluate(Method(TinyHand()), tmp_path, Data(batches))
    assert not (folder / "pred.json").exists()
    (warning,) = json.loads((folder / "metrics.json").read_text())["warnings"]
    assert "MANO's 778 vertices" in warning
    method = Method(TinyHand())
    report = test_report.EvaluationReport(str(tmp_path), submission="freihand")
    trainer = test_report.pl.Trainer(
        accelerator="cpu", logger=False, callbacks=[report], enable_progress_bar=False
    )
    with pytest.raises(UserError, match="submission=freihand: the server scores MANO's 778"):
        trainer.test(method, datamodule=test_report.FakeData(batches), verbose=False)


def test_another_mesh_that_the_labels_have_is_for_handrec_score(tmp_path):
    folder = test_report.evaluate(Method(TinyHand()), tmp_path, Data([fake_batch(4)]))
    (warning,) = json.loads((folder / "metrics.json").read_text())["warnings"]
    assert warning.startswith(
        "pred.json is for handrec score alone: HO-3D v2's server takes MANO's"
    )
    assert read_prediction(folder / "pred.json", 4, vertices=50).vertices.shape == (4, 50, 3)
    scores = json.loads((folder / "scores.json").read_text())
    results = json.loads((folder / "metrics.json").read_text())["results"]["Method"]
    assert 10 * scores["official"]["mesh_al_mean3d"] == pytest.approx(results["pa_mpvpe"], rel=1e-5)
    assert any("meshes of 50 vertices" in warning for warning in scores["warnings"])


def test_what_a_sampler_repeats_counts_once_and_left_hands_are_mirrored_back():
    submission = Submission("freihand", 778)
    left = BATCHES[1]._replace(is_left=torch.tensor([0.0, 1, 0, 0]))
    for batch in (BATCHES[2], left, left):
        submission.add(predict(batch), batch)
    (warning,) = submission.gather()
    assert "8 samples" in warning
    ((ids, _, joints, vertices, *_),) = submission._parts
    assert ids.tolist() == list(range(8))
    mirror = torch.tensor([-1.0, 1, 1])
    torch.testing.assert_close(joints[1], predict(left).joints[1] * mirror)
    torch.testing.assert_close(vertices[1], predict(left).vertices[1] * mirror)
    torch.testing.assert_close(joints[2], predict(left).joints[2])


def test_a_whole_evaluation_raises_no_doubt(monkeypatch):
    submission = Submission("freihand", 778)
    monkeypatch.setattr(submission, "protocol", PROTOCOLS["freihand"]._replace(samples=4))
    submission.add(predict(BATCHES[0]), BATCHES[0])
    assert submission.gather() == []


def test_labels_of_another_mesh_are_not_scored(tmp_path):
    submission = Submission("freihand", 778)
    foreign = BATCHES[0]._replace(vertices=torch.zeros(4, 50, 3))
    submission.add(predict(BATCHES[0]), foreign)
    submission.gather()
    submission.write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pred.json", "pred.zip"]


def test_scoring_does_not_depend_on_the_chunks():
    labels = to_protocol(in_order("labels"), PROTOCOLS["ho3d_v2"])
    hands = to_protocol(in_order("hands"), PROTOCOLS["ho3d_v2"])
    whole, parts = (
        evaluate(PROTOCOLS["ho3d_v2"], hands, labels, chunk).official() for chunk in (12, 5)
    )
    np.testing.assert_allclose(list(whole.values()), list(parts.values()), rtol=1e-12)
