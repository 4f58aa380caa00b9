import json

import av
import cv2
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import trimesh

from handrec.callbacks.video_predictions import VideoWriter
from handrec.data.user_videos import Videos
from handrec.errors import UserError
from handrec.hand.base import HandModel
from handrec.methods.base import HandMethod
from handrec.render.torch_reference import TorchRasterizer
from handrec.types import Hand, HandBatch, HandPrediction
from tests.videos import damage, write_discs

SIZE, RADIUS, DISC, FOCAL = 32, 0.02, 9.0, 150.0
#: Two discs; the left one goes right and down, the right one stays.
PATHS = [[(25 + 0.9 * i, 30 + 0.7 * i), (90, 40)] for i in range(20)]


class Ball(HandModel):
    """Stands for a hand model: a ball with a topology."""

    def __init__(self):
        super().__init__()
        ball = trimesh.creation.icosphere(subdivisions=1, radius=RADIUS)
        self.register_buffer("faces", torch.from_numpy(ball.faces.copy()))
        self.register_buffer("template", torch.from_numpy(ball.vertices.copy()).float())

    def decode(self, pose, betas, translation):
        joints = translation[:, None].expand(-1, 21, -1)
        return Hand(self.template + translation[:, None], joints)


class SeesDiscs(HandMethod):
    """Finds the bright disc in each crop, by its centre of mass and its area."""

    def __init__(self):
        super().__init__()
        self.hand = Ball()
        self.sizes = []

    def reconstruct(self, batch: HandBatch) -> HandPrediction:
        count = len(batch.image)
        self.sizes.append(count)
        weight = ((batch.image.mean(1) - 0.2) / 0.7).clamp(0, 1)
        area = weight.sum((1, 2))
        line = torch.arange(SIZE) + 0.5
        x, y = (weight.sum(1) @ line) / area, (weight.sum(2) @ line) / area
        ray = torch.linalg.solve(batch.intrinsics, torch.stack([x, y, torch.ones(count)], 1))
        translation = ray * (batch.intrinsics[:, 0, 0] * RADIUS / (area / torch.pi).sqrt())[:, None]
        eye = torch.eye(3).expand(count, 16, 3, 3)
        hand = self.hand.decode(eye, None, translation)
        keypoints = torch.stack([x, y], 1)[:, None].expand(-1, 21, -1)
        return HandPrediction(*hand, keypoints, eye, torch.zeros(count, 10), translation)

    def predict_step(self, batch, batch_idx):
        return self.reconstruct(batch)


def box(x, y):
    return [x - DISC - 2, y - DISC - 2, x + DISC + 2, y + DISC + 2]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "videos").mkdir()
    write_discs(tmp_path / "videos/a.mp4", PATHS, radius=DISC)
    hands = {
        str(i): [{"box": box(*right), "side": "right"}, {"box": box(*left), "side": "left"}]
        for i, (right, left) in enumerate(PATHS)
        if i not in (7, 8)
    }
    starts = [{"box": box(*PATHS[0][0])}, {"box": box(*PATHS[3][1]), "side": "left", "frame": 3}]
    (tmp_path / "each.json").write_text(json.dumps({"a.mp4": hands}))
    (tmp_path / "starts.json").write_text(json.dumps({"a.mp4": starts}))
    return tmp_path / "videos"


def predict(source, out, boxes=None, method=None, writer=None, **options):
    options = {"image_size": SIZE, "intrinsics": str(FOCAL), "batch_size": 4, **options}
    data = Videos(str(source), boxes=boxes and str(boxes), **options)
    method = method or SeesDiscs()
    callback = VideoWriter(str(out), rasterizer=TorchRasterizer(), **(writer or {}))
    pl.Trainer(
        accelerator="cpu", logger=False, callbacks=[callback], enable_progress_bar=False,
        enable_model_summary=False,
    ).predict(method, data, return_predictions=False)  # fmt: skip
    return data, method


def true_centres(columns):
    return np.array([PATHS[f][int(left)] for f, left in zip(columns["frame"], columns["is_left"],
                                                            strict=True)])  # fmt: skip


def check_places(columns, atol):
    centres = true_centres(columns)
    np.testing.assert_allclose(columns["joints_2d"].mean(1), centres, atol=atol)
    points = columns["translation"]
    principal = np.array([61.0, 46.0])  # of the frames, one pixel larger than they were drawn
    np.testing.assert_allclose(
        FOCAL * points[:, :2] / points[:, 2:] + principal, centres, atol=atol
    )
    np.testing.assert_allclose(points[:, 2], FOCAL * RADIUS / DISC, rtol=0.06)


@pytest.mark.parametrize("batch_size", [1, 4, 50])
def test_boxes_of_each_frame_are_predicted_in_batches(folder, tmp_path, batch_size):
    data, method = predict(folder, tmp_path / "out", tmp_path / "each.json",
                           batch_size=batch_size)  # fmt: skip
    assert max(method.sizes) <= 2 * batch_size
    assert sum(method.sizes) <= 36 + 2  # a chunk without a hand costs one row
    columns = np.load(tmp_path / "out/a.npz")
    assert columns["frame"].tolist() == [i for i in range(20) if i not in (7, 8) for _ in range(2)]
    check_places(columns, 0.35)
    # After a gap hands have new numbers.
    assert columns["track"].tolist() == [0, 1] * 7 + [2, 3] * 11
    assert not data.pending


def test_followed_hands_are_found_all_the_way(folder, tmp_path):
    data, method = predict(folder, tmp_path / "out", tmp_path / "starts.json")
    assert method.sizes == [1] * 3 + [2] * 17
    columns = np.load(tmp_path / "out/a.npz")
    assert len(columns["frame"]) == 37
    assert (columns["is_left"] == (columns["track"] == 1)).all()
    check_places(columns, 0.35)
    assert data.broken == []


def test_a_hand_that_leaves_is_named(folder, tmp_path, capsys):
    paths = [[(60 + 4 * i, 40)] for i in range(20)]
    write_discs(folder / "a.mp4", paths, radius=DISC)
    starts = {"a.mp4": [{"box": box(*paths[0][0])}]}
    (tmp_path / "starts.json").write_text(json.dumps(starts))
    predict(folder, tmp_path / "out", tmp_path / "starts.json")
    said = capsys.readouterr().out
    assert "frames skipped, and hands lost: 1\n  a.mp4: frame 1" in said
    assert "right hand lost" in said
    overlay = av.open(tmp_path / "out/a_overlay.mp4")
    assert len(list(overlay.decode(video=0))) == 20


def test_files_agree_with_each_other_and_the_overlay_with_the_video(folder, tmp_path):
    predict(folder, tmp_path / "out", tmp_path / "each.json", writer={"formats": ["ply"]})
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"a.json", "a.npz", "a_overlay.mp4", "a_viewer.html", "a_meshes"}
    report = json.loads((tmp_path / "out/a.json").read_text())
    assert report["intrinsics"][0][0] == FOCAL
    assert report["intrinsics_given"] is True
    assert [frame["frame"] for frame in report["frames"]] == list(range(20))
    assert report["frames"][5]["seconds"] == pytest.approx(0.2)
    assert report["frames"][7]["hands"] == []
    columns = np.load(tmp_path / "out/a.npz")
    hands = [hand for frame in report["frames"] for hand in frame["hands"]]
    assert len(hands) == len(columns["frame"]) == 36
    for index in (0, 3, 35):
        np.testing.assert_allclose(hands[index]["joints_3d"], columns["joints_3d"][index],
                                   atol=1e-5)  # fmt: skip
        path = tmp_path / "out" / hands[index]["vertices"]["ply"]
        mesh = trimesh.load(path, process=False)
        np.testing.assert_allclose(mesh.vertices, columns["vertices"][index], atol=1e-5)
        assert mesh.volume > 0
    frames = [f.to_ndarray(format="rgb24").astype(int)
              for f in av.open(tmp_path / "out/a_overlay.mp4").decode(video=0)]  # fmt: skip
    assert frames[0].shape == (92, 122, 3)
    blue = frames[4][..., 2] - frames[4][..., 0]
    rows, columns_ = np.nonzero(blue > 25)  # the right hand's mesh, and a finger's bones
    assert np.hypot(rows - PATHS[4][0][1], columns_ - PATHS[4][0][0]).max() < DISC + 5
    assert len(rows) > 80
    assert abs(frames[7] - frames[8]).mean() < 3
    assert (frames[7][..., 2] - frames[7][..., 0]).max() < 25  # no hand was asked for here


def test_smoothing_lags_but_stays(folder, tmp_path):
    predict(folder, tmp_path / "raw", tmp_path / "starts.json")
    predict(folder, tmp_path / "out", tmp_path / "starts.json", writer={"smooth": True})
    raw, found = (np.load(tmp_path / name / "a.npz") for name in ("raw", "out"))
    assert json.loads((tmp_path / "out/a.json").read_text())["smoothed"] is True
    np.testing.assert_array_equal(raw["frame"], found["frame"])  # it does not lead the boxes
    behind = np.abs(raw["joints_2d"] - found["joints_2d"])[raw["track"] == 0]
    assert 0.05 < behind.mean() < 4
    resting = np.abs(raw["joints_2d"] - found["joints_2d"])[raw["track"] == 1]
    assert resting.max() < 0.3


def test_several_videos_one_of_them_no_video(folder, tmp_path, capsys):
    write_discs(folder / "b.mp4", PATHS[:5], radius=DISC)
    (folder / "c.mp4").write_bytes(b"nothing")
    (folder / "._a.mp4").write_bytes(b"hidden")
    predict(folder, tmp_path / "out", image_size=SIZE)
    said = capsys.readouterr().out
    assert "hands: 25, frames: 25, videos: 2, written to" in said
    assert "videos skipped, unreadable: 1" in said
    assert "c.mp4: not a video" in said
    assert "frames per second; ms for each: decode" in said
    assert "K was not given" not in said
    assert len(np.load(tmp_path / "out/b.npz")["frame"]) == 5


def test_broken_frames_are_counted_and_the_rest_is_written(folder, tmp_path, capsys):
    damage(folder / "a.mp4", 0.75, 100)
    predict(folder, tmp_path / "out")
    said = capsys.readouterr().out
    assert "frames skipped, and hands lost:" in said
    assert "a.mp4: frame" in said
    frames = json.loads((tmp_path / "out/a.json").read_text())["frames"]
    assert 0 < len(frames) < 20


def test_boxes_that_can_hold_no_hand_are_counted(folder, tmp_path, capsys):
    good, flat = {"box": [5, 5, 60, 60]}, {"box": [5, 40, 60, 40]}
    boxes = {"a.mp4": {str(n): [flat, good] if n < 3 else [flat] for n in range(12)}}
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    predict(folder, tmp_path / "out", boxes=str(tmp_path / "boxes.json"))
    said = capsys.readouterr().out
    assert "hands: 3, frames: 20, videos: 1" in said
    assert "boxes skipped, they can hold no hand: 12" in said
    assert said.count("is inverted") == 10
    assert "and 2 more" in said


def test_after_a_fault_files_hold_what_there_was(folder, tmp_path):
    method = SeesDiscs()

    def fails_at_the_third(batch, batch_idx):
        return method.reconstruct(batch) if batch_idx < 2 else 1 / 0

    method.predict_step = fails_at_the_third
    with pytest.raises(ZeroDivisionError):
        predict(folder, tmp_path / "out", method=method)
    assert len(json.loads((tmp_path / "out/a.json").read_text())["frames"]) == 8
    assert len(np.load(tmp_path / "out/a.npz")["frame"]) == 8
    assert (tmp_path / "out/a_viewer.html").read_text().endswith("</html>\n")
    assert len(list(av.open(tmp_path / "out/a_overlay.mp4").decode(video=0))) == 8


def test_only_a_few_frames_are_in_memory(folder, tmp_path, monkeypatch):
    most = 0
    step = SeesDiscs.predict_step

    def counted(self, batch, index):
        nonlocal most
        most = max(most, len(self.trainer.datamodule.pending))
        return step(self, batch, index)

    monkeypatch.setattr(SeesDiscs, "predict_step", counted)
    predict(folder, tmp_path / "out", tmp_path / "each.json", batch_size=3)
    assert most == 3


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ({"b.mp4": []}, r"names videos that are not in .*: b\.mp4"),
        ({"a.mp4": {"40": []}}, r"a\.mp4, frame 40: the video has 20 frames"),
        ({"a.mp4": {"first": []}}, r"a\.mp4: not the number of a frame"),
        ({"a.mp4": [{"box": [0, 0, 9, 9], "frame": -1}]}, "not the number of a frame"),
        ({"a.mp4": {"3": [{"box": [5, 5, 1, 9]}]}}, r"a\.mp4, frame 3: box .* is inverted"),
        ({"a.mp4": {"3": {"box": [5, 5, 1, 9]}}}, r"a\.mp4, frame 3: not a list of hands"),
        ({"a.mp4": [{"box": [0, 0, 9]}]}, r"a\.mp4, hand 0: box is not"),
        ({"a.mp4": [[0, 0, 9, 9]]}, r"a\.mp4, hand 0: wants the keys"),
        ({"a.mp4": 7}, r"a\.mp4: not a list of hands"),
        ({}, "nothing to predict"),
    ],
)
def test_boxes_that_make_no_sense_are_refused_before_predicting(folder, tmp_path, boxes, message):
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    with pytest.raises(UserError, match=message):
        Videos(str(folder), boxes=str(tmp_path / "boxes.json")).setup("predict")


def test_inputs_that_are_not_there_are_named(folder, tmp_path):
    with pytest.raises(UserError, match="nowhere: no such video or folder"):
        Videos(str(tmp_path / "nowhere")).setup("predict")
    (tmp_path / "bare").mkdir()
    cv2.imwrite(str(tmp_path / "bare/a.png"), np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(UserError, match="bare: no videos"):
        Videos(str(tmp_path / "bare")).setup("predict")
    with pytest.raises(UserError, match="lies in the output folder"):
        predict(folder, folder)
    for bad in ("0", "-7", "inf"):
        with pytest.raises(UserError, match="positive number of pixels"):
            Videos(str(folder), intrinsics=bad).setup("predict")
