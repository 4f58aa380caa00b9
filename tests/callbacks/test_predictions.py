import json
from unittest.mock import MagicMock

import cv2
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import trimesh
from scipy.spatial.transform import Rotation

from handrec.callbacks.found_hands import place_in_photo
from handrec.callbacks.predictions import PredictionWriter, output_names
from handrec.data.photos import PhotoHand, Photos
from handrec.errors import UserError
from handrec.hand.openhand import OpenHand
from handrec.methods.base import HandMethod
from handrec.models.s2hand_appearance import draw_hand
from handrec.render.lights import Light
from handrec.render.torch_reference import TorchRasterizer
from handrec.types import HandBatch, HandPrediction

SIZE, DEPTH, RADIUS, SCALE = 64, 0.5, 0.016, 1.25
#: Of the hand in its crop, from the crop's centre, metres: right of and above it, as a thumb is.
OFFSET = torch.tensor([0.01, -0.006, 0.0])


class Ball(torch.nn.Module):
    """Stands for a hand model: a ball with a topology."""

    def __init__(self):
        super().__init__()
        ball = trimesh.creation.icosphere(subdivisions=1, radius=RADIUS)
        self.register_buffer("faces", torch.from_numpy(ball.faces.copy()))
        self.register_buffer("template", torch.from_numpy(ball.vertices.copy()).float())


class FixedHand(HandMethod):
    """Puts a ball beside the centre of every crop, in a pose that says which side it is of."""

    def __init__(self, broken=()):
        super().__init__()
        self.hand, self.broken = Ball(), broken

    def reconstruct(self, batch: HandBatch) -> HandPrediction:
        count = len(batch.image)
        centre = torch.tensor([SIZE / 2, SIZE / 2, 1.0]).expand(count, 3)
        ray = torch.linalg.solve(batch.intrinsics, centre)
        translation = ray * DEPTH + OFFSET
        vertices = SCALE * self.hand.template + translation[:, None]
        joints = translation[:, None] + torch.linspace(0, 0.02, 21)[:, None] * torch.ones(3)
        for sample in set(self.broken) & set(batch.sample_id.tolist()):
            joints[batch.sample_id == sample] = torch.nan
        pixels = joints @ batch.intrinsics.mT
        pose = Rotation.from_rotvec(np.linspace([0.1, 0.2, 0.3], [0.7, -0.4, 1.1], 16)).as_matrix()
        return HandPrediction(
            vertices=vertices,
            joints=joints,
            keypoints_2d=pixels[..., :2] / pixels[..., 2:],
            pose=torch.from_numpy(pose).float().expand(count, 16, 3, 3),
            betas=torch.linspace(-1, 1, 10).expand(count, 10),
            translation=translation,
            scale=torch.full((count,), SCALE),
        )

    def predict_step(self, batch, batch_idx):
        return self.reconstruct(batch)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    grey = np.full((150, 240, 3), 90, np.uint8)
    cv2.imwrite(str(folder / "a.png"), grey)
    cv2.imwrite(str(folder / "b.png"), grey)
    hands = [
        {"box": [10, 20, 100, 110], "side": "right"},
        {"box": [130, 30, 220, 120], "side": "left"},
    ]
    (tmp_path / "boxes.json").write_text(json.dumps({"a.png": hands, "b.png": hands[1:]}))
    return folder


def predict(photos, out, method=None, batch_size=2, checkpoint=None, boxes=None, **options):
    data = Photos(
        str(photos),
        boxes=str(boxes or photos.parent / "boxes.json"),
        image_size=SIZE,
        batch_size=batch_size,
        **options,
    )
    writer = PredictionWriter(str(out), rasterizer=TorchRasterizer())
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=[writer],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.predict(method or FixedHand(), data, return_predictions=False, ckpt_path=checkpoint)
    return trainer


def read_png(path):
    return cv2.imread(str(path))[..., ::-1].astype(int)


class TestPrediction:
    def test_files_of_each_photo(self, photos, tmp_path):
        predict(photos, tmp_path / "out")
        expected = "a.json a_0.glb a_0.obj a_1.glb a_1.obj a_overlay.png"
        expected += " b.json b_0.glb b_0.obj b_overlay.png viewer.html"
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == expected.split()

    def test_meshes_lie_on_their_boxes_left_ones_mirrored(self, photos, tmp_path):
        predict(photos, tmp_path / "out")
        changed = (read_png(tmp_path / "out/a_overlay.png") != 90).any(-1)
        rows, columns = np.nonzero(changed)
        focal = np.hypot(150, 240)
        for left_half, box, side in ((True, (10, 20), 1), (False, (130, 30), -1)):
            here = (columns < 115) == left_half
            # Off the box's centre as OFFSET says, mirrored for the left hand.
            x = box[0] + 45 + side * float(OFFSET[0]) / DEPTH * focal
            y = box[1] + 45 + float(OFFSET[1]) / DEPTH * focal
            radius = SCALE * RADIUS / DEPTH * focal
            assert columns[here].min() + columns[here].max() + 1 == pytest.approx(2 * x, abs=8)
            assert rows[here].min() + rows[here].max() + 1 == pytest.approx(2 * y, abs=8)
            assert np.ptp(columns[here]) == pytest.approx(2 * radius, rel=0.35)

    def test_parameters_agree_with_each_other(self, photos, tmp_path):
        predict(photos, tmp_path / "out")
        report = json.loads((tmp_path / "out/a.json").read_text())
        intrinsics = np.array(report["intrinsics"])
        assert report["photo"] == "a.png"
        assert report["image_size"] == [150, 240]
        assert report["intrinsics_given"] is False
        assert "not given" in report["note"]
        assert report["method"] == "FixedHand"
        assert [hand["side"] for hand in report["hands"]] == ["right", "left"]
        size = np.ptp(FixedHand().hand.template.numpy(), axis=0)
        for index, hand in enumerate(report["hands"]):
            joints = np.array(hand["joints_3d"])
            pixels = joints @ intrinsics.T
            np.testing.assert_allclose(pixels[:, :2] / pixels[:, 2:], hand["joints_2d"], atol=2e-2)
            axis_angle = Rotation.from_matrix(hand["pose_matrix"]).as_rotvec()
            np.testing.assert_allclose(hand["pose_axis_angle"], axis_angle, atol=1e-5)
            assert hand["vertices"]["obj"] == f"a_{index}.obj"
            mesh = trimesh.load(tmp_path / f"out/a_{index}.obj", process=False, force="mesh")
            np.testing.assert_allclose(mesh.centroid, hand["translation"], atol=1e-5)
            np.testing.assert_allclose(mesh.extents, hand["scale"] * size, rtol=1e-4)
            assert mesh.volume > 0  # normals point outwards, left or right
            viewed = trimesh.load(tmp_path / f"out/a_{index}.glb", process=False, force="mesh")
            np.testing.assert_allclose(viewed.vertices, mesh.vertices * [1, -1, -1], atol=1e-6)
            assert viewed.volume > 0

    def test_left_hand_is_the_mirror_image_of_the_right(self, photos, tmp_path):
        predict(photos, tmp_path / "out")
        right, left = json.loads((tmp_path / "out/a.json").read_text())["hands"]
        expected = np.array(right["pose_axis_angle"]) * [1, -1, -1]
        np.testing.assert_allclose(left["pose_axis_angle"], expected, atol=1e-5)
        np.testing.assert_allclose(left["betas"], right["betas"])
        spread = [
            np.subtract(hand["joints_3d"][20], hand["joints_3d"][0]) for hand in (right, left)
        ]
        np.testing.assert_allclose(spread[1], spread[0] * [-1, 1, 1], atol=1e-5)

    def test_given_intrinsics_are_used_and_named(self, photos, tmp_path):
        camera = [[310.0, 0, 111], [0, 300, 77], [0, 0, 1]]
        (tmp_path / "K.json").write_text(json.dumps(camera))
        predict(photos, tmp_path / "out", intrinsics=str(tmp_path / "K.json"))
        report = json.loads((tmp_path / "out/b.json").read_text())
        assert report["intrinsics_given"] is True
        assert report["intrinsics"] == camera

    def test_checkpoint_is_named(self, photos, tmp_path):
        checkpoint = str(tmp_path / "best.ckpt")
        predict(photos, tmp_path / "out").save_checkpoint(checkpoint)
        assert json.loads((tmp_path / "out/b.json").read_text())["checkpoint"] is None
        predict(photos, tmp_path / "out", checkpoint=checkpoint)
        assert json.loads((tmp_path / "out/b.json").read_text())["checkpoint"] == checkpoint

    @pytest.mark.parametrize("batch_size", [1, 2, 3])
    def test_batches_do_not_matter(self, photos, tmp_path, batch_size):
        predict(photos, tmp_path / "out", batch_size=batch_size)
        predict(photos, tmp_path / "other", batch_size=16)
        one, other = ((tmp_path / name / "a.json").read_text() for name in ("out", "other"))
        assert one == other

    def test_hands_without_finite_numbers_are_left_out_and_named(self, photos, tmp_path, capsys):
        predict(photos, tmp_path / "out", FixedHand(broken=[0, 2]))
        report = json.loads((tmp_path / "out/a.json").read_text())
        assert [hand["side"] for hand in report["hands"]] == ["left"]
        assert not (tmp_path / "out/b.json").exists()
        said = capsys.readouterr().out
        assert "hands: 1, photos: 1," in said
        assert "b.png, box [130.0, 30.0, 220.0, 120.0]" in said

    def test_summary_counts_and_names_what_was_skipped(self, photos, tmp_path, capsys):
        (photos / "c.png").write_bytes(b"broken")
        boxes = json.loads((tmp_path / "boxes.json").read_text())
        boxes["c.png"] = boxes.pop("b.png")
        (tmp_path / "boxes.json").write_text(json.dumps(boxes))
        predict(photos, tmp_path / "out")
        said = capsys.readouterr().out
        assert f"hands: 2, photos: 1, written to {tmp_path / 'out'}" in said
        assert "photos skipped, unreadable: 1" in said
        assert "c.png: not an image" in said
        assert "photos left out, no entry in the boxes: 1\n  b.png" in said

    def test_out_that_cannot_be_written_is_found_before_predicting(self, photos, tmp_path):
        (tmp_path / "file").write_text("in the way")
        method = FixedHand()
        method.predict_step = lambda *_: pytest.fail("predicted all the same")
        with pytest.raises(UserError, match="file/out: cannot write here"):
            predict(photos, tmp_path / "file/out", method)

    def test_the_users_boxes_are_not_written_among(self, photos, tmp_path):
        (tmp_path / "out").mkdir()
        boxes = (tmp_path / "boxes.json").rename(tmp_path / "out" / "a.json")
        kept = boxes.read_bytes()
        with pytest.raises(UserError, match=r"a\.json lies in the output folder"):
            predict(photos, tmp_path / "out", boxes=boxes)
        assert boxes.read_bytes() == kept

    def test_photos_are_not_written_among(self, photos):
        with pytest.raises(UserError, match="lies in the output folder"):
            predict(photos, photos)


class TexturedHand(FixedHand):
    """Puts a hand with a red thumb side there, and draws it as red as it is."""

    def __init__(self):
        super().__init__()
        self.hand = OpenHand()

    def reconstruct(self, batch):
        found = super().reconstruct(batch)
        count, faces = len(batch.image), self.hand.faces
        red = (self.hand.template[faces].mean(1)[:, 2] > 0).float()
        texture = torch.stack([red, 0 * red, 1 - red], dim=1).expand(count, -1, -1)
        light = Light(torch.ones(count, 3), torch.zeros(count, 3), torch.ones(count, 3))
        return found._replace(texture=texture, light=light)

    def render(self, hands, camera, background):
        return draw_hand(
            TorchRasterizer(), self.hand, hands.vertices, hands.texture, hands.light, camera,
            background,
        )  # fmt: skip


def test_textures_are_written_and_drawn(photos, tmp_path):
    predict(photos, tmp_path / "out", TexturedHand())
    for index, side in enumerate((1, -1)):
        mesh = trimesh.load(tmp_path / f"out/a_{index}.glb", process=False, force="mesh")
        assert mesh.volume > 0
        colours = mesh.visual.material.to_color(mesh.visual.uv)[:, :3].astype(int)
        red = colours[:, 0] > 200
        # Red is the thumb's side, x and z of the camera as the hand lies at rest.
        z = mesh.vertices[:, 2] * -1
        assert (z[red].min() > z[~red].min()) & (z[red].max() > z[~red].max())
        x = mesh.vertices[:, 0] * side
        assert x.min() - x.mean() < -0.05  # fingers to the left; of the left hand, to the right
    panels = read_png(tmp_path / "out/a_rendered.png")
    assert panels.shape == (150, 3 * 240, 3)
    photo, overlay, rendered = np.split(panels, 3, axis=1)
    assert (photo == 90).all()
    np.testing.assert_array_equal(overlay, read_png(tmp_path / "out/a_overlay.png"))
    red, blue = ((rendered[..., i] > 200) & (rendered[..., 1] < 60) for i in (0, 2))
    for half in (slice(None, 115), slice(115, None)):
        assert red[:, half].sum() > 20
        assert blue[:, half].sum() > 20


@pytest.mark.parametrize(
    ("processes", "message"), [(1, "serves the data Photos, not"), (2, r"--trainer\.devices=1")]
)
def test_other_data_or_several_processes_are_refused(tmp_path, processes, message):
    trainer = MagicMock(spec=pl.Trainer, world_size=processes)
    with pytest.raises(UserError, match=message):
        PredictionWriter(str(tmp_path / "out")).setup(trainer, FixedHand(), "predict")
    assert not (tmp_path / "out").exists()


def test_output_names_never_collide():
    assert output_names(["a.jpg", "b.png"]) == {"a.jpg": "a", "b.png": "b"}
    assert output_names(["a.jpg", "x/a.jpg"]) == {"a.jpg": "a", "x/a.jpg": "x/a"}
    clash = ["a.jpg", "A.png", "a.jpg.png", "b.png"]
    assert list(output_names(clash).values()) == clash


def test_mirroring_back_reverses_mirroring():
    """A right hand's left twin, read mirrored, must come back as the twin: compare with numpy."""
    generator = np.random.default_rng(0)
    mirror = np.diag([-1.0, 1, 1])
    points = generator.normal(size=(7, 3))
    pose = Rotation.random(16, random_state=1).as_matrix()
    prediction = HandPrediction(
        *(torch.from_numpy(x)[None] for x in (points, np.zeros((21, 3)), np.zeros((21, 2)), pose)),
        betas=torch.zeros(1, 10),
        translation=torch.zeros(1, 3),
    )
    box = (0.0, 0.0, 9.0, 9.0)
    faces = torch.tensor([[0, 1, 2]])
    for side, change in (("right", np.eye(3)), ("left", mirror)):
        item = PhotoHand("", "", (9, 9), box, box, side, np.eye(3), False)
        hand = place_in_photo(prediction, 0, item, faces, torch.eye(3))
        np.testing.assert_allclose(hand.vertices, points @ change, atol=1e-6)
        # A rotated vector, mirrored, is the mirrored vector turned by the mirrored rotation.
        turned = np.einsum("jab,nb->jna", pose, points) @ change
        mirrored = np.einsum("jab,nb->jna", hand.pose.numpy(), points @ change)
        np.testing.assert_allclose(mirrored, turned, atol=1e-5)
        assert hand.faces.tolist() == ([[0, 1, 2]] if side == "right" else [[2, 1, 0]])
