"""``handrec score`` on files as data set and server have them: table, files, mistakes."""

import csv
import json
import re

import pytest
import torch

from handrec.cli import score
from handrec.cli.main import main
from handrec.metrics.functional import PCK_THRESHOLDS
from handrec.metrics.official import PROTOCOLS, Points, to_protocol
from tests.metrics import official_loops
from tests.metrics.fakes import TinyHand, fake_batch, predict

COUNT = 3


@pytest.fixture(params=PROTOCOLS)
def case(request, tmp_path):
    """Write the files of one protocol; return the arguments and the points as arrays."""
    protocol = PROTOCOLS[request.param]
    batch = fake_batch(COUNT, 0, TinyHand(778))
    prediction = predict(batch, 0.004)
    target, guess = (
        to_protocol(Points(joints.double(), vertices.double()), protocol)
        for joints, vertices in (
            (batch.joints_3d, batch.vertices),
            (prediction.joints, prediction.vertices),
        )
    )
    content = {
        "evaluation_xyz": target.joints.tolist(),
        "evaluation_verts": target.vertices.tolist(),
        "pred": [part.tolist() for part in guess],
    }
    for name, value in content.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    args = ["score", "--protocol", request.param]
    for option, name in (("--gt-xyz", "evaluation_xyz"), ("--gt-verts", "evaluation_verts")):
        args += [option, str(tmp_path / f"{name}.json")]
    args += ["--pred", str(tmp_path / "pred.json")]
    return args, request.param, [part.numpy() for part in (*guess, *target)]


def test_scores_txt_holds_the_official_figures_in_full_precision(case, tmp_path):
    args, protocol, arrays = case
    assert main([*args, "--out", str(tmp_path / "deep" / "out")]) == 0
    out = tmp_path / "deep" / "out"
    lines = [line.split(": ") for line in (out / "scores.txt").read_text().splitlines()]
    expected = official_loops.figures(protocol, *arrays)
    assert {key for key, _ in lines} == set(expected)
    for key, value in lines:
        assert float(value) == pytest.approx(expected[key], rel=1e-10, abs=1e-12), key
        assert len(value) > 8 or float(value) in (0, 1), "rounded"
    report = json.loads((out / "scores.json").read_text())
    assert report["official"] == {key: float(value) for key, value in lines}
    assert report["samples"] == COUNT
    assert len(report["without_reflections"]) == 6


def test_curves_and_samples_are_kept(case, tmp_path):
    args, protocol, arrays = case
    main([*args, "--out", str(tmp_path / "out")])
    curves = json.loads((tmp_path / "out" / "pck_data.json").read_text())
    assert list(curves) == list(PROTOCOLS[protocol].keys.values())
    thresholds, shares = (torch.tensor(values, dtype=torch.float64) for values in curves["mesh"])
    torch.testing.assert_close(thresholds, 100 * PCK_THRESHOLDS)
    distances = torch.from_numpy(arrays[1] - arrays[3]).norm(dim=-1)
    expected = (distances[..., None] <= PCK_THRESHOLDS).double().mean((0, 1))
    torch.testing.assert_close(shares, expected)
    with (tmp_path / "out" / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["sample"] for row in rows] == ["0", "1", "2"]
    for row, distance in zip(rows, distances, strict=True):
        assert float(row["mesh_mm"]) == pytest.approx(1000 * float(distance.mean()), rel=1e-6)
        assert row["reflected"] == "0"


def test_the_table_is_in_millimetres(case, capsys):
    args, protocol, arrays = case
    assert main(args) == 0
    printed = capsys.readouterr().out
    expected = official_loops.figures(protocol, *arrays)
    (line,) = (x for x in printed.splitlines() if x.strip().startswith("unaligned"))
    assert line.split() == [
        "unaligned",
        f"{10 * expected['xyz_mean3d']:.2f}",
        f"{expected['xyz_auc3d']:.3f}",
        f"{10 * expected['mesh_mean3d']:.2f}",
        f"{expected['mesh_auc3d']:.3f}",
        f"{expected['f_score_5']:.3f}",
        f"{expected['f_score_15']:.3f}",
    ]
    assert "aligned, det = +1" in printed
    assert ("scale + translation" in printed) == (protocol != "freihand")
    words = " ".join(printed.split())
    assert f"3 samples, the official evaluation has {PROTOCOLS[protocol].samples:,}" in words


def test_joints_alone(case, capsys, tmp_path):
    args, protocol, arrays = case
    without = [arg for arg in args if arg != "--gt-verts" and "verts.json" not in arg]
    assert main([*without, "--out", str(tmp_path / "out")]) == 0
    keys = [x.split(":")[0] for x in (tmp_path / "out" / "scores.txt").read_text().splitlines()]
    assert keys == [k for k in official_loops.figures(protocol, *arrays) if k.startswith("xyz")]
    assert "–" in capsys.readouterr().out


def test_another_mesh_is_scored_with_a_warning_where_both_files_have_it(tmp_path, capsys):
    """As in the sets that ``handrec data synth`` writes; the figures are those of the loops."""
    batch = fake_batch(COUNT, 0, TinyHand(130))
    guess = predict(batch, 0.004)
    points = [p.double() for p in (guess.joints, guess.vertices, batch.joints_3d, batch.vertices)]
    lists = [part.tolist() for part in points]
    paths = {name: str(tmp_path / f"{name}.json") for name in ("pred", "xyz", "verts", "mano")}
    mano = [[*v, *v, *v, *v, *v, *v[:128]] for v in lists[3]]  # 778 of them
    for name, value in zip(paths, (lists[:2], lists[2], lists[3], mano), strict=True):
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    args = ["score", "--protocol", "freihand", "--gt-xyz", paths["xyz"], "--pred", paths["pred"]]
    assert main([*args, "--gt-verts", paths["verts"], "--out", str(tmp_path / "out")]) == 0
    assert "meshes of 130 vertices" in " ".join(capsys.readouterr().out.split())
    official = json.loads((tmp_path / "out" / "scores.json").read_text())["official"]
    expected = official_loops.figures("freihand", *(part.numpy() for part in points))
    assert official == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert main([*args, "--gt-verts", paths["mano"]]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "vertices of sample 0: expected 778 x 3, found 130 x 3: the mesh of another hand" in line


def test_mistakes_are_one_line_and_no_table(case, capsys, tmp_path):
    args, _, _ = case
    xyz, verts = (str(tmp_path / f"evaluation_{name}.json") for name in ("xyz", "verts"))
    swapped = [{xyz: verts, verts: xyz}.get(arg, arg) for arg in args]
    missing = [str(tmp_path / "absent.json") if arg == xyz else arg for arg in args]
    file = tmp_path / "file"
    file.touch()
    for words, message in (
        (swapped, "evaluation_verts.json: sample 0: expected 21 x 3, found 778 x 3"),
        ([*args[:-1], xyz], "is this a file of labels?"),
        ([*args[:-1], str(tmp_path / "absent.zip")], "absent.zip not found: expected pred.json"),
        ([*args, "--out", str(file)], "file: a file is where this folder should be made"),
        ([*args, "--out", str(file / "in")], "file/in: a file is where this folder"),
        (missing, "absent.json not found: expected evaluation_xyz.json, the labelled joints"),
    ):
        assert main(words) == 2
        printed = capsys.readouterr()
        (line,) = printed.err.splitlines()
        assert line.startswith("handrec: error: ")
        assert message in line
        assert "unaligned" not in printed.out


@pytest.mark.parametrize(
    "number", ["1" + 400 * "0", "1" + 5000 * "0", "true", "false", '"1"', "null", "NaN", "1e400"]
)
def test_what_is_no_number_is_refused(case, capsys, tmp_path, number):
    args, _, _ = case
    for name in ("pred", "evaluation_xyz"):
        path = tmp_path / f"{name}.json"
        whole = path.read_text()
        first = re.search(r"-?[\d.]+", whole).group()
        path.write_text(whole.replace(first, number, 1))
        assert main(args) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{name}.json" in line
        assert "traceback" not in line.lower()
        path.write_text(whole)


@pytest.mark.parametrize("content", ["{}", "[]", "[[0, 0, 0]]"])
def test_hints_fit_the_file(case, capsys, tmp_path, content):
    args, _, _ = case
    (tmp_path / "evaluation_xyz.json").write_text(content)
    assert main(args) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "evaluation_xyz.json" in line
    assert "21" in line
    assert "labels?" not in line


def test_every_protocol_can_be_chosen(capsys):
    with pytest.raises(SystemExit):
        main(["score", "--help"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in PROTOCOLS)
    assert set(score.ROWS.values()) == {"", "_st", "_al", "_rigid"}
