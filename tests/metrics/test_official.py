"""The official evaluations against loops written from the formulas, and values known beforehand."""

import json
import zipfile

import numpy as np
import pytest
import torch

from handrec.errors import UserError
from handrec.hand.joints import JOINTS
from handrec.metrics import official, official_files
from handrec.metrics.official import PROTOCOLS, Points, doubts, evaluate, to_protocol
from tests.metrics import official_loops
from tests.metrics.fakes import TinyHand, fake_batch

#: HO-3D's joints among FreiHAND's, as two public code bases list them.
HO3D_FROM_FREIHAND = [0, 5, 6, 7, 9, 10, 11, 17, 18, 19, 13, 14, 15, 1, 2, 3, 4, 8, 12, 16, 20]


def hands(count=5, seed=0):
    """Return hands of 778 vertices in the suite's conventions; fingers bent out of their plane."""
    batch = fake_batch(count, seed, TinyHand(778))
    generator = torch.Generator().manual_seed(seed)
    bend = 0.02 * torch.randn(count, 21, 3, generator=generator, dtype=torch.float64)
    return Points(batch.joints_3d.double() + bend, batch.vertices.double())


def noisy(points, noise=0.006, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return Points(
        *(p + noise * torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in points)
    )


def labels(protocol, count=3, seed=0):
    return to_protocol(hands(count, seed), PROTOCOLS[protocol])


def transformed(points, function):
    return Points(*(function(part) for part in points))


@pytest.fixture(params=PROTOCOLS)
def protocol(request):
    return request.param


def test_every_official_figure_equals_the_loops(protocol):
    target = labels(protocol)
    prediction = noisy(transformed(target, lambda p: 1.1 * p + torch.tensor([0.01, 0.0, 0.003])))
    scores = evaluate(PROTOCOLS[protocol], prediction, target, chunk=2)
    arrays = (part.numpy() for part in (*prediction, *target))
    expected = official_loops.figures(protocol, *arrays)
    figures = scores.official()
    assert figures.keys() == expected.keys()
    for key, value in expected.items():
        assert figures[key] == pytest.approx(value, rel=1e-9, abs=1e-9), key
    # The case is neither trivial nor hopeless, or equality would say little.
    assert 0.5 < figures["mesh_al_mean3d"] < 2
    assert 0.05 < figures["f_al_score_5"] < 0.95
    assert 0.0 < figures["f_score_15"] < figures["f_al_score_15"] < 1


def test_figures_without_reflections_equal_the_loops(protocol):
    target = labels(protocol)
    prediction = noisy(target)
    mirrored = transformed(prediction, lambda p: p * torch.tensor([-1.0, 1.0, 1.0]))
    some = torch.tensor([True, False, True])[:, None, None]
    prediction = Points(
        *(torch.where(some, m, p) for m, p in zip(mirrored, prediction, strict=True))
    )
    scores = evaluate(PROTOCOLS[protocol], prediction, target)
    assert scores.reflected.tolist() == some.flatten().tolist()
    for name, part in (("xyz", "joints"), ("mesh", "vertices")):
        pairs = zip(getattr(prediction, part).numpy(), getattr(target, part).numpy(), strict=True)
        errors = np.array(
            [
                official_loops.distances(official_loops.similarity(p, t, reflection=False), t)
                for p, t in pairs
            ]
        )
        found = scores.rigid()
        assert found[f"{name}_rigid_mean3d"] == pytest.approx(100 * errors.mean(), rel=1e-9)
        assert found[f"{name}_rigid_auc3d"] == pytest.approx(official_loops.area(errors), rel=1e-9)
    pairs = list(zip(prediction.vertices.numpy(), target.vertices.numpy(), strict=True))
    for column, threshold in enumerate((5, 15)):
        expected = np.mean(
            [
                official_loops.f_score(
                    official_loops.similarity(p, t, reflection=False), t, threshold / 1000
                )
                for p, t in pairs
            ]
        )
        assert scores.rigid()[f"f_rigid_score_{threshold}"] == pytest.approx(expected, rel=1e-9)
        official_mean = scores.f_scores["mesh_al"][:, column].mean()
        assert expected < official_mean


def test_the_keys_are_those_of_the_servers():
    keys = {
        name: list(evaluate(PROTOCOLS[name], labels(name, 2), labels(name, 2)).official())
        for name in PROTOCOLS
    }
    shares = ["f_score_5", "f_al_score_5", "f_score_15", "f_al_score_15"]
    mesh = ["mesh_mean3d", "mesh_auc3d", "mesh_al_mean3d", "mesh_al_auc3d"]
    xyz = ["xyz_mean3d", "xyz_auc3d"]
    assert keys["freihand"] == [*xyz, "xyz_al_mean3d", "xyz_al_auc3d", *mesh, *shares]
    aligned = [
        f"xyz_{how}_al_{what}"
        for how in ("procrustes", "scale_trans")
        for what in ("mean3d", "auc3d")
    ]
    assert keys["ho3d_v2"] == keys["ho3d_v3"] == [*xyz, *aligned, *mesh, *shares]


def test_a_perfect_prediction(protocol):
    target = labels(protocol)
    figures = evaluate(PROTOCOLS[protocol], target, target).official()
    for key, value in figures.items():
        if "mean3d" in key:
            assert value == pytest.approx(0, abs=1e-5), key  # the norms' 1e-8 leaves some 1e-8 m
        elif "auc" in key and "_al_" in key:
            # ... which is more than the first threshold, 0: half a step of 99 is lost.
            assert value == pytest.approx(1, abs=0.5 / 99 + 1e-9), key
        else:
            assert value == pytest.approx(1, abs=1e-12), key


def test_the_zero_predictor(protocol):
    target = labels(protocol)
    zeros = transformed(target, torch.zeros_like)
    scores = evaluate(PROTOCOLS[protocol], zeros, target)
    figures = scores.official()
    joints, vertices = (part.numpy() for part in target)
    assert figures["xyz_mean3d"] == pytest.approx(100 * np.linalg.norm(joints, axis=-1).mean())
    assert figures["mesh_mean3d"] == pytest.approx(100 * np.linalg.norm(vertices, axis=-1).mean())
    about_mean = np.linalg.norm(joints - joints.mean(1, keepdims=True), axis=-1)
    about_wrist = np.linalg.norm(joints - joints[:, :1], axis=-1)
    if protocol == "freihand":
        assert figures["xyz_al_mean3d"] == pytest.approx(100 * about_mean.mean())
    else:
        assert figures["xyz_procrustes_al_mean3d"] == pytest.approx(100 * about_mean.mean())
        assert figures["xyz_scale_trans_al_mean3d"] == pytest.approx(100 * about_wrist.mean())
    assert figures["f_score_15"] == 0
    # All vertices at the mean: precision is 0 or 1 for all of them, recall counts those near it.
    near = np.linalg.norm(vertices - vertices.mean(1, keepdims=True), axis=-1).min(1) < 0.015
    recall = (np.linalg.norm(vertices - vertices.mean(1, keepdims=True), axis=-1) < 0.015).mean(1)
    assert figures["f_al_score_15"] == pytest.approx((near * 2 * recall / (1 + recall)).mean())
    assert not scores.reflected.any()
    assert doubts(scores, zeros, target) == []


def test_aligned_figures_do_not_see_similarities():
    target = labels("ho3d_v2")
    prediction = noisy(target)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator()))
    moved = transformed(prediction, lambda p: 3 * p @ turn + torch.tensor([0.3, -0.1, 2.0]))
    scaled = transformed(prediction, lambda p: 0.2 * p - 0.7)
    plain, turned, shifted = (
        evaluate(PROTOCOLS["ho3d_v2"], points, target).official()
        for points in (prediction, moved, scaled)
    )
    for key, value in plain.items():
        if "procrustes_al" in key or "mesh_al" in key or "f_al" in key:
            assert turned[key] == pytest.approx(value, rel=1e-5), key
        if "scale_trans" in key:
            assert shifted[key] == pytest.approx(value, rel=1e-9), key
            if "mean3d" in key:
                assert turned[key] > 1.5 * value
        if key in ("xyz_mean3d", "mesh_mean3d"):
            assert turned[key] > 10 * value


def test_units_are_metres_in_and_centimetres_out():
    target = labels("freihand")
    shifted = transformed(target, lambda p: p + torch.tensor([0.0, 0.02, 0.0]))
    figures = evaluate(PROTOCOLS["freihand"], shifted, target).official()
    assert figures["xyz_mean3d"] == pytest.approx(2)
    assert figures["mesh_mean3d"] == pytest.approx(2)
    # 20 mm lies between the 39th and 40th step of 50/99 mm: 60 of 99 steps, and half a one.
    assert figures["xyz_auc3d"] == pytest.approx(59.5 / 99)


def test_joints_alone(protocol):
    target = labels(protocol)
    prediction = noisy(target)
    whole = evaluate(PROTOCOLS[protocol], prediction, target).official()
    joints = evaluate(
        PROTOCOLS[protocol], Points(prediction.joints, None), Points(target.joints, None)
    )
    figures = joints.official()
    assert figures == {key: value for key, value in whole.items() if key.startswith("xyz")}
    assert doubts(joints, Points(prediction.joints, None), Points(target.joints, None)) == []


def test_ho3d_has_other_joints_and_axes():
    points = hands()
    converted = to_protocol(points, PROTOCOLS["ho3d_v3"])
    flip = torch.tensor([1.0, -1.0, -1.0])
    torch.testing.assert_close(converted.joints, points.joints[:, HO3D_FROM_FREIHAND] * flip)
    torch.testing.assert_close(converted.vertices, points.vertices * flip)
    assert to_protocol(points, PROTOCOLS["freihand"]).joints.equal(points.joints)


def doubts_of(protocol, prediction, target):
    return doubts(evaluate(PROTOCOLS[protocol], prediction, target), prediction, target)


def test_ordinary_predictions_raise_no_doubt(protocol):
    target = labels(protocol)
    assert doubts_of(protocol, noisy(target), target) == []


def test_mirrored_hands_raise_a_doubt(protocol):
    target = labels(protocol)
    mirrored = transformed(noisy(target), lambda p: p * torch.tensor([-1.0, 1.0, 1.0]))
    mirror, count = doubts_of(protocol, mirrored, target)
    assert "mirrored" in mirror
    assert "reflects 3 of 3" in count


@pytest.mark.parametrize(
    ("protocol", "made_for", "named"),
    [("freihand", "ho3d_v2", "HO-3D"), ("ho3d_v2", "freihand", "FreiHAND")],
)
def test_another_joint_order_raises_a_doubt(protocol, made_for, named):
    target = labels(protocol)
    prediction = noisy(labels(made_for))
    found = doubts_of(protocol, prediction, target)
    (order,) = (doubt for doubt in found if "joint order" in doubt)
    assert f"read in {named}'s joint order" in order
    assert any("in the order of the labels?" in doubt for doubt in found)
    assert any("behind the camera" in doubt for doubt in found)


def test_millimetres_raise_a_doubt():
    target = labels("freihand")
    (doubt,) = doubts_of("freihand", transformed(noisy(target), lambda p: 1000 * p), target)
    assert "metres are wanted" in doubt
    assert "about 1000 times" in doubt


def write(path, content):
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def files(tmp_path):
    """The files of three samples: labels and predictions as lists of lists."""
    target = labels("freihand")
    xyz, verts = (part.tolist() for part in target)
    return {
        "xyz": write(tmp_path / "evaluation_xyz.json", xyz),
        "verts": write(tmp_path / "evaluation_verts.json", verts),
        "pred": write(tmp_path / "pred.json", [xyz, verts]),
        "target": target,
        "lists": (xyz, verts),
    }


def test_files_are_read_exactly(files, tmp_path):
    target = official_files.read_ground_truth(files["xyz"], files["verts"])
    prediction = official_files.read_prediction(files["pred"], 3)
    for points in (target, prediction):
        assert points.joints.equal(files["target"].joints)
        assert points.vertices.equal(files["target"].vertices)
    joints = official_files.read_prediction(files["pred"], 3, vertices=None)
    assert joints.vertices is None
    assert joints.joints.equal(files["target"].joints)
    spaced = tmp_path / "spaced.json"
    spaced.write_text(" " + json.dumps(files["lists"], indent=1) + "\n\n")
    assert official_files.read_prediction(spaced, 3).vertices.equal(files["target"].vertices)
    spaced.write_text(json.dumps(files["lists"]).replace("]]", "] ]"))
    assert official_files.read_prediction(spaced, 3).vertices.equal(files["target"].vertices)


def test_meshes_of_another_hand_are_read_where_labels_and_predictions_agree(files, tmp_path):
    xyz, verts = files["lists"]
    others = [[*v, *v[:381]] for v in verts]  # as many vertices as OpenHand has
    pred = write(tmp_path / "other.json", [xyz, others])
    target = official_files.read_ground_truth(files["xyz"], write(tmp_path / "v.json", others))
    assert target.vertices.shape == (3, 1159, 3)
    prediction = official_files.read_prediction(pred, 3, vertices=1159)
    assert prediction.vertices.equal(target.vertices)
    with pytest.raises(UserError, match="expected 778 x 3, found 1159 x 3: the mesh of another"):
        official_files.read_prediction(pred, 3)
    with pytest.raises(UserError, match="expected 1159 x 3, found 778 x 3: the mesh of another"):
        official_files.read_prediction(files["pred"], 3, vertices=1159)


@pytest.mark.parametrize(
    "names", [["pred.json"], ["sub/pred.json", "x.json"], ["mine.json", "a.txt"]]
)
def test_a_zip_is_read_as_the_file_in_it(files, tmp_path, names):
    with zipfile.ZipFile(tmp_path / "pred.zip", "w") as archive:
        archive.writestr("__MACOSX/._pred.json", "rubbish")
        archive.write(files["pred"], names[0])
        for name in names[1:]:
            archive.writestr(name, "[]")
    prediction = official_files.read_prediction(tmp_path / "pred.zip", 3)
    assert prediction.joints.equal(files["target"].joints)


def test_a_submission_comes_back(tmp_path, protocol):
    points = transformed(hands(4), lambda p: p.float())
    written = official_files.write_submission(tmp_path, to_protocol(points, PROTOCOLS[protocol]))
    assert written.name == "pred.zip"
    with zipfile.ZipFile(written) as archive:
        assert archive.namelist() == ["pred.json"]
    expected = to_protocol(points, PROTOCOLS[protocol])
    for name in ("pred.json", "pred.zip"):
        read = official_files.read_prediction(tmp_path / name, 4)
        for part, back in zip(expected, read, strict=True):
            torch.testing.assert_close(back, part.double(), atol=6e-8, rtol=0)
    plain = json.loads((tmp_path / "pred.json").read_text())
    assert [len(plain), len(plain[0]), len(plain[1]), len(plain[1][3])] == [2, 4, 4, 778]
    if protocol != "freihand":  # OpenGL: in front of the camera is z < 0
        assert np.array(plain[1])[..., 2].max() < 0
        wrist, thumb_tip = (points.joints[0, JOINTS.index(j)] for j in ("wrist", "thumb_tip"))
        np.testing.assert_allclose(plain[0][0][0], wrist * torch.tensor([1, -1, -1]), atol=1e-6)
        np.testing.assert_allclose(
            plain[0][0][16], thumb_tip * torch.tensor([1, -1, -1]), atol=1e-6
        )


def spoiled(lists, which, sample, change):
    """Return the lists with one sample of one of them changed."""
    copy = [list(part) for part in lists]
    copy[which][sample] = change(copy[which][sample])
    return copy


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x, v: [x[:2], v], "2 samples of joints, the ground truth has 3"),
        (lambda x, v: [x, v[:1]], "1 samples of vertices, the ground truth has 3"),
        (lambda x, v: [v, x], "joints of sample 0: expected 21 x 3, found 778 x 3: .* swapped"),
        (lambda x, v: [x, x], "vertices of sample 0: expected 778 x 3, found 21 x 3: .* swapped"),
        (lambda x, v: x, "joints of sample 0: .* is this a file of labels"),
        (lambda x, v: [x], "1 lists; expected .joints, vertices."),
        (lambda x, v: [x, v, v], "a third list"),
        (lambda x, v: [], "0 lists; expected"),
        (lambda x, v: [[], v], "no samples; expected a list of samples with 21 points"),
        (lambda x, v: {"xyz": x}, r"expected \[joints of all samples"),
        (
            lambda x, v: spoiled((x, v), 0, 1, lambda s: s[:20]),
            "joints of sample 1: expected 21 x 3, found 20 x 3$",
        ),
        (
            lambda x, v: spoiled((x, v), 0, 2, lambda s: [*s, s[0]]),
            "joints of sample 2: expected 21 x 3, found 22 x 3$",
        ),
        (
            lambda x, v: spoiled((x, v), 1, 2, lambda s: s[:777]),
            "vertices of sample 2: expected 778 x 3, found 777 x 3: the mesh of another hand model",
        ),
        (
            lambda x, v: spoiled((x, v), 1, 0, lambda s: [p[:2] for p in s]),
            "vertices of sample 0: expected 778 x 3, found 778 x 2",
        ),
        (
            lambda x, v: spoiled((x, v), 1, 1, lambda s: [[*s[0][:2], float("nan")], *s[1:]]),
            "vertices of sample 1: point 0 is not finite",
        ),
        (
            lambda x, v: spoiled((x, v), 0, 1, lambda s: [*s[:20], [0, float("inf"), 0]]),
            "joints of sample 1: point 20 is not finite",
        ),
        (
            lambda x, v: spoiled((x, v), 0, 0, lambda s: [*s[:20], [0, None, 0]]),
            "joints of sample 0: point 20 is not finite",
        ),
        (
            lambda x, v: spoiled((x, v), 0, 1, lambda s: [*s[:20], [0, 0]]),
            "joints of sample 1: not 21 points",
        ),
        (lambda x, v: spoiled((x, v), 0, 1, lambda s: "oops"), "joints of sample 1: not 21 points"),
        (lambda x, v: spoiled((x, v), 0, 1, lambda s: {}), "joints of sample 1: not 21 points"),
        (lambda x, v: spoiled((x, v), 0, 1, lambda s: 7), "found one number"),
    ],
)
def test_bad_predictions_are_named(files, spoil, message):
    write(files["pred"], spoil(*files["lists"]))
    with pytest.raises(UserError, match=message) as caught:
        official_files.read_prediction(files["pred"], 3)
    assert str(files["pred"]) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_ground_truth_is_named(files, tmp_path):
    xyz, verts = files["xyz"], files["verts"]
    verts_lists = files["lists"][1]
    short = write(tmp_path / "short.json", verts_lists[:2])
    uneven = write(tmp_path / "uneven.json", [verts_lists[0], *(v[:700] for v in verts_lists[1:])])
    for arguments, message in (
        ((verts, xyz), "sample 0: expected 21 x 3, found 778 x 3: are joints and vertices swapped"),
        ((xyz, xyz), "sample 0: expected 778 x 3, found 21 x 3: are joints and vertices swapped"),
        ((xyz, uneven), "uneven.json: sample 1: expected 778 x 3, found 700 x 3"),
        ((xyz, short), "short.json has 2 samples, .*evaluation_xyz.json has 3"),
        ((files["pred"], verts), "is this a file of predictions"),
        ((tmp_path / "absent.json", verts), "absent.json not found"),
        ((tmp_path, verts), "cannot read it"),
    ):
        with pytest.raises(UserError, match=message):
            official_files.read_ground_truth(*arguments)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"expected \[joints"),
        (b"\x80\x03rubbish", "not UTF-8"),
        (b"[[[[1, 2, oops", "is damaged, or no JSON: Expecting value"),
        (b"[[", "is damaged, or no JSON: Expecting value"),
        (b"[" * 5000, "is damaged, or no JSON"),
    ],
)
def test_damaged_files_are_named(tmp_path, content, message):
    path = tmp_path / "pred.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        official_files.read_prediction(path, 3)


def test_truncated_and_continued_files_are_named(files):
    text = files["pred"].read_text()
    for broken, message in (
        (text[:-100], "is damaged, or no JSON"),
        (text[:-1], r"expected ',' or '\]'"),
        (text + "[", "expected the end"),
        (text.replace("], [", "] [", 1), "is damaged, or no JSON"),
    ):
        files["pred"].write_text(broken)
        with pytest.raises(UserError, match=message):
            official_files.read_prediction(files["pred"], 3)


def test_bad_zips_are_named(tmp_path):
    path = tmp_path / "pred.zip"
    path.write_text("no zip")
    with pytest.raises(UserError, match="is damaged, or no zip"):
        official_files.read_prediction(path, 3)
    for names, held in (([], "nothing"), (["a.txt"], "a.txt"), (["a.json", "b.json"], "a.json, b")):
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, "[]")
        with pytest.raises(UserError, match=f"expected one pred.json in it, it holds {held}"):
            official_files.read_prediction(path, 3)


def test_zips_that_cannot_be_unpacked_are_named(files, tmp_path):
    path = tmp_path / "pred.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("pred.json", files["pred"].read_bytes())
    whole = path.read_bytes()
    entry = whole.rfind(b"PK\x01\x02")  # of the directory; flags at 8, kind of packing at 10
    for at, value, message in (
        (100, b"\xff" * 40, "is damaged, or no zip"),
        (entry + 8, b"\x01", "cannot be unpacked here: zip it anew without password"),
        (entry + 10, b"\x63", "cannot be unpacked here"),
    ):
        path.write_bytes(whole[:at] + value + whole[at + len(value) :])
        with pytest.raises(UserError, match=message):
            official_files.read_prediction(path, 3)


def test_a_byte_order_mark_is_read_over(files):
    expected = official_files.read_prediction(files["pred"], 3)
    files["pred"].write_text(files["pred"].read_text(), encoding="utf-8-sig")
    read = official_files.read_prediction(files["pred"], 3)
    assert all(torch.equal(a, b) for a, b in zip(read, expected, strict=True))


def test_protocols_have_the_sizes_of_the_evaluation_splits():
    sizes = {name: protocol.samples for name, protocol in official.PROTOCOLS.items()}
    assert sizes == {"freihand": 3960, "ho3d_v2": 11524, "ho3d_v3": 20137}
