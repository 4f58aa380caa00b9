"""S2HAND and S2HAND(V) on small batches: what they learn from, and what they do not look at."""

import math
from dataclasses import fields, replace
from functools import partial
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from tests.standins import standin_mano
from torch.optim import Adam

from handrec.data.augment import Augmentation
from handrec.data.clips import Clip
from handrec.data.synthetic import SyntheticHands
from handrec.errors import UserError
from handrec.geometry.rotations import axis_angle_to_matrix
from handrec.hand.openhand import OpenHand
from handrec.losses.s2hand import confident
from handrec.losses.temporal import find_clips, follow_loss, straightened
from handrec.methods import s2hand_video
from handrec.methods.s2hand import S2HAND, Ramp, S2HANDWeights, heatmap_terms, load_parts
from handrec.methods.s2hand_keypoints import S2HANDKeypoints
from handrec.methods.s2hand_video import S2HANDVideo, S2HANDVideoWeights
from handrec.models.backbones import TimmBackbone
from handrec.models.hourglass import Hourglass
from handrec.models.keypoints import Found, KeypointNetwork, soft_argmax
from handrec.models.s2hand import S2HandRegressor
from handrec.models.s2hand_appearance import AppearanceHead, draw_hand
from handrec.render.lights import Light
from handrec.render.warp_backend import WarpRasterizer
from handrec.types import HandPrediction
from handrec.viz.textured import texture_of

SIZE = 32
NOW = Ramp(0.0, 0.0)


@pytest.fixture(scope="module")
def hand():
    return OpenHand()


@pytest.fixture(scope="module")
def data(hand, tmp_path_factory):
    data = SyntheticHands(
        hand, WarpRasterizer(), image_size=SIZE, batch_size=8, train_size=60, val_size=1,
        test_size=1, video_frames=12, clip=Clip(length=4, stride=2, share=0.5), detector="noisy",
        cache_dir=str(tmp_path_factory.mktemp("cache")),
    )  # fmt: skip
    data.prepare_data()
    data.setup("fit")
    return data


@pytest.fixture(scope="module")
def batch(data):
    """Four single pictures, then a clip of four frames; whatever seed other tests left behind."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PL_GLOBAL_SEED", raising=False)
        return data.label(next(iter(data.train_dataloader())))


def method_of(hand, kind=S2HAND, **arguments):
    torch.manual_seed(0)
    options = {"depth": 1, "embed_dim": 48, "num_heads": 2, "patch_size": 8}
    backbone = TimmBackbone("vit_tiny_patch16_224", SIZE, stem="conv", options=options)
    arguments = {
        "regressor": partial(
            S2HandRegressor, rotation="sixd", camera="weak", widths=(128, 128),
            base_rotation=(0.0, 0.0, 1.5707963),
        ),
        "appearance": AppearanceHead,
        "keypoints": Hourglass(1, 16, 2, 1, upsample=False),
        "texture_gate": 0.0,
        "ramp": NOW,
    } | arguments  # fmt: skip
    method = kind(backbone=backbone, hand=hand, rasterizer=WarpRasterizer(), **arguments)
    method.log_losses = lambda *_: None  # there is no trainer
    method.progress = lambda: 0.5
    return method


def gradients(method, batch):
    method.zero_grad()
    loss = method.training_step(batch, 0)
    loss.backward()
    return loss.item(), {n: p.grad for n, p in method.named_parameters() if p.grad is not None}


def without_labels(batch):
    """Every label but the detections is NaN."""
    nan = {
        name: torch.full_like(getattr(batch, name), torch.nan)
        for name in (
            "joints_3d", "vertices", "pose", "betas", "translation", "mask", "visibility",
            "has_joints_3d", "has_vertices", "has_pose", "has_mask", "has_visibility",
        )
    }  # fmt: skip
    return batch._replace(**nan)


@pytest.mark.parametrize("kind", [S2HAND, S2HANDVideo])
def test_no_3d_label_enters_the_training(hand, batch, kind):
    method = method_of(hand, kind)
    loss, expected = gradients(method, batch)
    method = method_of(hand, kind)
    blind, found = gradients(method, without_labels(batch))
    assert blind == loss
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert gradient.isfinite().all(), name
        # the clip's losses sum frames in a fixed order on a CPU
        assert torch.equal(gradient, expected[name]), name


@pytest.mark.parametrize("kind", [S2HAND, S2HANDVideo])
def test_no_3d_label_enters_by_any_term(hand, batch, kind):
    """Those that are left out by default are on, and those that follow the start."""
    weights = S2HANDVideoWeights if kind is S2HANDVideo else S2HANDWeights
    every = weights(**{field.name: 1e-3 for field in fields(weights)})

    def build():
        method = method_of(hand, kind, weights=every)
        if kind is S2HANDVideo:
            method.start = (method_of(hand).eval().requires_grad_(False),)
        return method

    loss, expected = gradients(build(), batch)
    blind, found = gradients(build(), without_labels(batch))
    assert blind == loss
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert torch.equal(gradient, expected[name]), name


def test_consistency_teaches_both_branches(hand, batch):
    none = {field.name: 0.0 for field in fields(S2HANDWeights)}
    method = method_of(hand, weights=S2HANDWeights(**none | {"consistency": 1.0}))
    _, found = gradients(method, batch)
    for branch in ("backbone.", "regressor.", "keypoints."):
        taught = [g.abs().sum() for name, g in found.items() if name.startswith(branch)]
        assert sum(taught) > 0, branch


def test_no_3d_label_enters_the_2d_branch(batch):
    torch.manual_seed(0)
    method = S2HANDKeypoints(Hourglass(1, 16, 2, 1))
    method.log_losses = lambda *_: None
    loss, found = gradients(method, without_labels(batch))
    assert loss == gradients(method, batch)[0]
    assert all(gradient.isfinite().all() for gradient in found.values())


def weights_after(method, batch, steps=3):
    """Return the losses of some steps of training, and the weights after them."""
    losses = []
    optimizer = Adam(method.parameters(), lr=1e-3)
    for step in range(steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        loss = method.training_step(batch, step)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, method.state_dict()


@pytest.mark.parametrize("kind", [S2HAND, S2HANDKeypoints, S2HANDVideo])
def test_trainings_with_and_without_labels_are_equal_to_the_bit(hand, batch, kind):
    def build():
        if kind is not S2HANDKeypoints:
            return method_of(hand, kind)
        torch.manual_seed(0)
        method = S2HANDKeypoints(Hourglass(1, 16, 2, 1))
        method.log_losses = lambda *_: None
        return method

    losses, weights = weights_after(build(), batch)
    blind, found = weights_after(build(), without_labels(batch))
    assert blind == losses
    assert torch.tensor(losses).isfinite().all()
    assert losses[-1] < losses[0]
    for name, value in weights.items():
        assert torch.equal(found[name], value), name


def test_no_3d_label_chooses_the_checkpoint(hand, batch):
    absent = {name: torch.zeros_like(x) for name, x in without_labels(batch)._asdict().items()
              if x.is_floating_point() and x.isnan().any()}  # fmt: skip
    figures = []
    for given in (batch, batch._replace(**absent)):  # metrics of 3D labels cannot do with NaN
        method = method_of(hand).eval()
        logged = {}
        method.log = lambda name, value, logged=logged, **_: logged.update({name: value})
        method.log_dict = lambda values, logged=logged, **_: logged.update(values)
        with torch.no_grad():
            method.validation_step(given, 0)
            method.on_validation_epoch_end()
        figures.append(logged["val/keypoints_px"].item())
    assert figures[0] == figures[1]
    with torch.no_grad():
        found = method.reconstruct(batch).keypoints_2d
    total = weight = 0.0
    for b in range(len(found)):
        for j in range(21):
            c = batch.confidence[b, j].item()
            distance = (found[b, j] - batch.keypoints_2d[b, j]).norm().item()
            total, weight = total + c * distance * 224 / SIZE, weight + c
    assert figures[0] == pytest.approx(total / weight, rel=1e-5)


def test_every_parameter_gets_a_gradient(hand, batch):
    method = method_of(hand, S2HANDVideo)
    _, found = gradients(method, batch)
    idle = [n for n, p in method.named_parameters() if n not in found or not found[n].any()]
    assert idle == []


@pytest.mark.parametrize(("light", "texture"), [("directional", "faces"), ("harmonics", "atlas")])
def test_every_term_is_there_and_weighted(hand, batch, light, texture):
    look = partial(AppearanceHead, light=light, texture=texture, atlas_size=16)
    weights = S2HANDVideoWeights(likelihood=1e-2, smooth=1.0)
    method = method_of(hand, S2HANDVideo, appearance=look, weights=weights)
    terms = method.terms(method.see(batch), batch)
    of_a_start = {"steady", "steady_keypoints"}  # there is none
    assert terms.keys() == vars(S2HANDVideoWeights()).keys() - of_a_start
    assert all(term.dtype == torch.float32 and term > 0 for term in terms.values())
    method.weights = replace(method.weights, ssim=0.0, motion=0.0, shape=0.0)
    assert terms.keys() - method.terms(method.see(batch), batch).keys() == {
        "ssim", "motion", "shape",
    }  # fmt: skip


def test_both_tables_of_limits(hand):
    """A middle joint bent by 60 degrees is a fist; turned about another axis, it is broken."""
    axes = hand.joint_axes[1]  # of the index finger's middle joint: twist, spread, bend
    one = torch.ones(1)
    excess = {}
    for limits in ("anatomical", "mano_axis_angle"):
        method = method_of(hand, limits=limits)
        for name, axis in zip(("twist", "spread", "bend"), axes, strict=True):
            pose = torch.eye(3).repeat(1, 16, 1, 1)
            pose[:, 2] = axis_angle_to_matrix(math.pi / 3 * axis)
            excess[limits, name] = method.limit_term(pose, one).item()
        assert method.limit_term(torch.eye(3).repeat(1, 16, 1, 1), one) == 0
        assert excess[limits, "bend"] == 0
        for name in ("twist", "spread"):  # 55 degrees beyond, of 16 joints' 48 angles
            expected = math.radians(55) / 48
            assert excess[limits, name] == pytest.approx(expected, rel=0.02)
    assert excess["anatomical", "spread"] != excess["mano_axis_angle", "spread"]


def test_photometric_terms_come_in_slowly(hand, batch):
    method = method_of(hand, ramp=Ramp(0.2, 0.6))
    pictures = {"pixels", "ssim", "brightness", "texture"}
    seen = method.see(batch)
    values = {}
    for progress in (0.1, 0.4, 0.8):
        method.progress = lambda p=progress: p
        values[progress] = method.terms(seen, batch)
    assert not pictures & values[0.1].keys()
    for name in pictures:
        assert values[0.4][name].item() == pytest.approx(values[0.8][name].item() / 2, rel=1e-4)
    assert [Ramp(0.0, 0.0).at(0.0), Ramp(0.5, 0.5).at(0.4), Ramp(0.5, 0.5).at(0.5)] == [1, 0, 1]
    with pytest.raises(UserError, match="a ramp needs"):
        Ramp(0.5, 0.1)


@pytest.mark.parametrize("kind", [S2HAND, S2HANDVideo])
def test_a_batch_without_a_confident_joint_costs_nothing(hand, batch, kind):
    method = method_of(hand, kind)
    loss, found = gradients(method, batch._replace(confidence=0 * batch.confidence))
    assert loss == 0
    assert not any(gradient.any() for gradient in found.values())
    assert method.counts(batch._replace(confidence=0 * batch.confidence))["unseen"] == 1


def test_a_sample_without_a_confident_joint_pulls_on_nothing(hand, batch):
    method = method_of(hand, S2HANDVideo).eval()
    confidence = batch.confidence.clone()
    confidence[[1, 5]] = 0
    batch = batch._replace(confidence=confidence)
    image = batch.image.clone().requires_grad_()
    method.training_step(batch._replace(image=image), 0).backward()
    pull = image.grad.flatten(1).abs().sum(1)
    assert (pull == 0).tolist() == [i in (1, 5) for i in range(8)]


def train(method, batch, steps, lr=2e-3):
    optimizer = Adam([p for p in method.parameters() if p.requires_grad], lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        method.training_step(batch, 0).backward()
        torch.nn.utils.clip_grad_norm_(method.parameters(), 1.0)
        optimizer.step()


def test_overfits_the_keypoints_of_a_batch(hand, batch):
    method = method_of(hand, appearance=None, weights=S2HANDWeights(keypoints=0.02, limits=2.0))
    before = method.terms(method.see(batch), batch)
    train(method, batch, 120)
    after = method.terms(method.see(batch), batch)
    for name, share in {"keypoints": 0.3, "bones": 0.4, "heatmaps": 0.7}.items():
        assert after[name] < share * before[name], name
    assert after["limits"] < 0.05


def test_the_pixels_teach_the_colour_of_the_hand(hand, batch):
    """A blue hand in a known place: texture times light becomes blue."""
    blue = torch.tensor([0.15, 0.3, 0.75]).expand(len(batch.image), len(hand.faces), 3)
    light = Light(
        torch.full((8, 3), 0.6), torch.full((8, 3), 0.4), torch.tensor([[0.0, 0, -1]]).expand(8, 3)
    )
    drawn = draw_hand(WarpRasterizer(), hand, batch.vertices, blue, light, batch.camera)
    weights = S2HANDWeights(texture=0.0)
    method = method_of(hand, weights=weights)
    photo = batch._replace(image=drawn.image, confidence=torch.ones_like(batch.confidence))
    truth = HandPrediction(
        batch.vertices, batch.joints_3d, batch.keypoints_2d, batch.pose, batch.betas,
        batch.translation,
    )  # fmt: skip
    head = method.appearance
    optimizer = Adam(head.parameters(), lr=0.01)
    features = method.backbone.encode(photo.image)
    features = features._replace(fine=tuple(m.detach() for m in features.fine))
    for _ in range(120):
        optimizer.zero_grad()
        terms = method.photometric_terms(truth, head.look(features), photo)
        sum(terms.values()).backward()
        optimizer.step()
    look = head.look(features)
    found = method.render(truth._replace(texture=look.texture, light=look.light), batch.camera)
    error = (found.image - drawn.image).abs().sum((0, 2, 3)) / drawn.mask.sum()
    assert error.max() < 0.04, error


def test_stages_start_from_their_checkpoints(hand, tmp_path):
    """Each from its own file, at the start of the training; the appearance is left as it was."""
    sources, paths = [], []
    for number, name in enumerate(("shape", "keypoints")):
        source = method_of(hand)
        with torch.no_grad():
            for value in source.parameters():
                value.add_(0.01 * (number + 1))
        paths.append(tmp_path / f"{name}.ckpt")
        torch.save({"state_dict": source.state_dict()}, paths[-1])
        sources.append(source.state_dict())
    target = method_of(hand, shape_checkpoint=str(paths[0]), keypoints_checkpoint=str(paths[1]))
    kept = {n: p.clone() for n, p in target.appearance.named_parameters()}
    at_setup(target)
    for name, value in target.state_dict().items():
        if not name.startswith("appearance."):
            source = sources[name.startswith("keypoints.")]
            assert torch.equal(source[name], value), name
    for name, value in target.appearance.named_parameters():
        assert torch.equal(kept[name], value)
    with pytest.raises(UserError, match="does not hold the keypoints"):
        load_parts(method_of(hand, keypoints=Hourglass(2, 16, 2, 1)), paths[1], ("keypoints.",))


def test_a_video_run_starts_from_a_whole_checkpoint(hand, tmp_path):
    source = method_of(hand)
    torch.nn.init.constant_(source.regressor.scale[-1].bias, 1.23)
    path = tmp_path / "source.ckpt"
    torch.save({"state_dict": source.state_dict()}, path)
    target = at_setup(method_of(hand, S2HANDVideo, checkpoint=str(path)), clip=Clip())
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value), name


@pytest.mark.parametrize("kind", [S2HAND, S2HANDVideo])
def test_a_training_that_goes_on_does_not_want_its_start(kind, hand):
    name = "checkpoint" if kind is S2HANDVideo else "shape_checkpoint"
    method = method_of(hand, kind, **{name: "gone.ckpt"})
    with pytest.raises(UserError, match=r"no checkpoint gone\.ckpt"):
        at_setup(method, clip=Clip())
    method._trainer.ckpt_path = "last.ckpt"
    method.setup("fit")


def test_clip_losses_do_not_see_single_pictures(hand, batch):
    method = method_of(hand, S2HANDVideo).eval()
    assert batch.sequence.unique_consecutive(return_counts=True)[1].tolist() == [1, 1, 1, 1, 4]
    image = batch.image.clone().requires_grad_()
    batch = batch._replace(image=image)
    terms = method.clip_terms(method.see(batch), batch)
    sum(terms.values()).backward()
    pull = image.grad.flatten(1).abs().sum(1)
    assert (pull > 0).tolist() == [False] * 4 + [True] * 4


def test_clip_losses_make_a_clip_consistent(hand, batch):
    """Beside what trains as long without them; `same_texture` compares clips, and here is one."""
    off = {"motion": 0.0, "smooth": 0.0, "same_shape": 0.0, "same_texture": 0.0}
    on = off | {"motion": 10.0, "smooth": 20.0, "same_shape": 1.0}
    left = []
    for weights in (off, on):
        method = method_of(hand, S2HANDVideo, weights=S2HANDVideoWeights(**weights))
        train(method, batch, 40)
        left.append(method.clip_terms(method.see(batch), batch))
    for name in ("motion", "smooth", "same_shape"):
        assert 0 <= left[1][name] < 0.2 * left[0][name], name


def at_setup(method, processes=1, **data):
    """Return the method at the start of a training on data with some attributes."""
    method._trainer = SimpleNamespace(
        strategy=None,
        world_size=processes,
        datamodule=SimpleNamespace(**{"name": "mine", "batch_size": 32} | data),
    )
    method.setup("fit")
    return method


def test_unknown_cameras_want_the_weak_perspective(hand):
    assert at_setup(method_of(hand), intrinsics_known=False).regressor.camera == "weak"
    metric = method_of(hand)
    metric.regressor.camera = "perspective"
    at_setup(metric, intrinsics_known=True)
    with pytest.raises(UserError, match=r"mine does not know .* K, .*camera=weak"):
        at_setup(metric, intrinsics_known=False)


def test_data_without_keypoints_are_refused(hand):
    """By every experiment, before anything else is said of them: nothing would be learnt."""
    methods = [
        lambda: method_of(hand),
        lambda: method_of(hand, appearance=None, keypoints=None),
        lambda: method_of(hand, S2HANDVideo),
        lambda: S2HANDKeypoints(Hourglass(1, 16, 2, 1, upsample=False)),
    ]
    for build in methods:
        with pytest.raises(UserError, match=r"mine has no 2D keypoints, .*handrec data keypoints"):
            at_setup(build(), has_keypoints=False, intrinsics_known=False)
        at_setup(build(), has_keypoints=True, clip=Clip())


def test_batches_of_one_picture_are_refused(hand, batch):
    """Unless several processes normalise together, or nothing is normalised over the batch."""
    one = batch._replace(**{name: field[:1] for name, field in batch._asdict().items()})
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        method_of(hand).training_step(one, 0)
    with pytest.raises(UserError, match=r"batches are of one: --data\.batch_size=2 or more"):
        at_setup(method_of(hand), batch_size=1)
    at_setup(method_of(hand), batch_size=1, processes=2)
    at_setup(method_of(hand), batch_size=2)
    frozen = at_setup(method_of(hand, frozen_norm=True), batch_size=1).train()
    assert frozen.training_step(one, 0).isfinite()


def test_no_given_keypoint_is_no_perfect_score(batch):
    """NaN without any; batches without one do not count beside others."""
    torch.manual_seed(0)
    method = S2HANDKeypoints(Hourglass(1, 16, 2, 1))
    blank = batch._replace(confidence=0 * batch.confidence)
    errors = []
    for batches in ([blank], [batch, blank], [batch]):
        trainer = pl.Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        loader = torch.utils.data.DataLoader(batches, batch_size=None)
        (logged,) = trainer.validate(method, loader, verbose=False)
        errors.append(logged["val/keypoints_percent"])
    assert math.isnan(errors[0])
    assert errors[1] == pytest.approx(errors[2])
    assert errors[2] > 0


def test_projected_labels_are_warned_of(hand, caplog):
    for projected in (False, True):
        caplog.clear()
        at_setup(method_of(hand), projected_keypoints=projected)
        assert ("2D keypoints of mine are its 3D labels, projected" in caplog.text) == projected


def statistics(method):
    return [b.clone() for n, b in method.named_buffers() if n.endswith(("running_mean", "_var"))]


def test_batch_normalisation_may_keep_its_statistics(hand, data, tmp_path):
    for frozen in (False, True):
        method = method_of(hand, frozen_norm=frozen)
        before = statistics(method)
        assert before
        trainer = pl.Trainer(
            max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, limit_val_batches=0, default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(method, datamodule=data)
        kept = [torch.equal(a, b) for a, b in zip(before, statistics(method), strict=True)]
        assert all(kept) if frozen else not any(kept)


def test_a_video_run_follows_its_straightened_start(hand, batch, tmp_path, monkeypatch):
    source = method_of(hand)
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": source.state_dict()}, path)
    monkeypatch.setattr(s2hand_video, "load_method", lambda _: source)
    weights = S2HANDVideoWeights(steady=1.0, steady_keypoints=1.0)
    video = method_of(hand, S2HANDVideo, weights=weights, checkpoint=str(path))
    at_setup(video, clip=Clip())
    assert not any(name.startswith("start") for name in video.state_dict())
    with torch.no_grad():
        terms = video.eval().clip_terms(video.see(batch), batch)
        pose = source.eval().reconstruct(batch).pose
        points = source.keypoints.find(batch.image).keypoints[-1]
    clips = find_clips(batch.sequence, batch.frame)
    weight = confident(batch.confidence)
    expected = follow_loss(pose, straightened(pose, clips, weight), clips, weight)
    assert terms["steady"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert expected > 1e-4
    rows = [*range(4, 8)]  # the clip: a line through each coordinate by numpy
    time = batch.frame[rows].numpy()
    line = np.polynomial.polynomial.Polynomial.fit
    each = points[rows].flatten(1).T.numpy()
    straight = np.stack([line(time, x, 1, w=weight[rows].sqrt().numpy())(time) for x in each], 1)
    off = np.linalg.norm(points[rows].numpy() - straight.reshape(4, 21, 2), axis=2).mean(1)
    expected = 224 / SIZE * (off * weight[rows].numpy()).sum() / weight[rows].sum()
    assert terms["steady_keypoints"].item() == pytest.approx(expected.item(), rel=1e-3)
    with pytest.raises(UserError, match="they follow the start, so want a checkpoint"):
        at_setup(method_of(hand, S2HANDVideo, weights=weights), clip=Clip())


def test_steady_keypoints_teach_the_2d_branch_alone(hand, batch):
    """Lifted keypoints carry no gradient back: without the term nothing on clips reaches them."""
    lift = partial(S2HandRegressor, camera="weak", widths=(32, 32), cells=2, lift=True)
    start = method_of(hand)
    video = S2HANDVideo(
        backbone=start.backbone, regressor=lift, hand=hand, rasterizer=WarpRasterizer(),
        keypoints=Hourglass(1, 16, 2, 1, upsample=False),
    )  # fmt: skip
    video.start = (start.eval(),)
    terms = video.clip_terms(video.see(batch), batch)
    taught = {}
    for name, term in terms.items():
        video.zero_grad()
        term.backward(retain_graph=True)
        moved = [n for n, p in video.named_parameters() if p.grad is not None and p.grad.any()]
        taught[name] = any(n.startswith("keypoints.") for n in moved)
    assert [name for name, reached in taught.items() if reached] == ["steady_keypoints"]


class Spot(KeypointNetwork):
    """Finds every joint where the image is bright."""

    def find(self, image):
        maps = (20 * image.mean(1, keepdim=True)).expand(-1, 21, -1, -1)
        return Found(soft_argmax(maps, 1, upsample=False)[None], maps[None], 1)


def test_keypoints_of_disturbed_frames_are_given_where_they_are_undisturbed(hand, batch):
    torch.manual_seed(0)
    image, place = torch.zeros(8, 3, SIZE, SIZE), torch.randint(12, 20, (8, 2))
    for picture, (x, y) in zip(image, place.tolist(), strict=True):
        picture[:, y - 1 : y + 2, x - 1 : x + 2] = 1.0
    disturb = Augmentation(rotation=30.0, scale=0.1, shift=0.1, noise=0.0)
    lift = partial(S2HandRegressor, camera="weak", widths=(32, 32), cells=2, lift=True)
    video = method_of(
        hand, S2HANDVideo, keypoints=Spot(), disturb=disturb, regressor=lift, appearance=None
    )
    at = (place + 0.5)[:, None].expand(-1, 21, -1)
    sure = batch._replace(image=image, keypoints_2d=at, confidence=torch.ones(8, 21))
    lifted = Mock(wraps=video.regressor.regress)
    video.regressor.regress = lifted
    found = video.see(sure).found
    assert (found.keypoints[0] - at).abs().max() < 0.6
    assert (soft_argmax(found.maps[0], 1, upsample=False) - at).norm(dim=2).max() > 2
    # The likelihood looks for the detections where the disturbed picture has them.
    right, wrong = (
        heatmap_terms(x, sure, S2HANDWeights(likelihood=1.0))["likelihood"]
        for x in (found, found._replace(warp=None))
    )
    assert right < wrong - 3
    # The 3D branch lifts what it will be given in evaluation, when nothing is disturbed.
    evaluated = video.eval().see(sure)
    assert evaluated.found.warp is None
    given, wanted = (call.args[2] for call in lifted.call_args_list)
    assert torch.equal(given, wanted)
    assert torch.equal(wanted, Spot().find(image).keypoints[0])


def test_a_single_clip_has_no_texture_to_compare_with(hand, caplog):
    for clips, size in ((1, 8), (2, 12)):
        caplog.clear()
        at_setup(method_of(hand, S2HANDVideo), clip=Clip(), batch_size=size)
        assert ("same_texture compares clips" in caplog.text) == (clips == 1)


def test_each_set_of_a_mixture_has_clips_that_are_seen(hand, caplog):
    def mixed(*strides):
        sets = {str(s): SimpleNamespace(clip=Clip(stride=s), batch_size=8) for s in strides}
        sets["photos"] = SimpleNamespace(batch_size=8)
        return at_setup(method_of(hand, S2HANDVideo), sets=sets, clip=Clip(), batch_size=24)

    mixed(1)
    assert "same_texture compares clips" in caplog.text  # of eight rows, though the batch has 24
    caplog.clear()
    mixed(1, 4)
    assert "same_texture compares clips" not in caplog.text
    with pytest.raises(UserError, match="clips with stride 5"):
        mixed(1, 5)


def test_smooth_does_not_pull_on_the_size(hand, batch):
    video = method_of(hand, S2HANDVideo).eval()
    with torch.no_grad():
        seen = video.see(batch)
    size = torch.ones(len(batch.image), 1, 1, requires_grad=True)
    joints = seen.hand.joints.clone().requires_grad_()
    sized = seen.hand._replace(joints=size * joints)
    smooth = video.clip_terms(seen._replace(hand=sized), batch)["smooth"]
    by_size, by_joint = torch.autograd.grad(smooth, (size, joints))
    assert smooth > 1e-5
    assert by_size.abs().max() < 1e-2 * smooth
    assert by_joint.abs().max() > 1e-3


def test_the_2d_branch_warns_of_projected_labels_too(caplog):
    keypoints = S2HANDKeypoints(Hourglass(1, 16, 2, 1, upsample=False))
    at_setup(keypoints, projected_keypoints=False)
    assert "3D labels, projected" not in caplog.text
    at_setup(keypoints, projected_keypoints=True)
    assert "2D keypoints of mine are its 3D labels, projected" in caplog.text


def test_a_video_run_wants_clips(hand):
    at_setup(method_of(hand, S2HANDVideo), clip=Clip())
    for data, remedy in (({}, "docs/datasets.md"), ({"has_videos": True}, "clip.length=5")):
        with pytest.raises(UserError, match=rf"learns from clips, and mine gives none: .*{remedy}"):
            at_setup(method_of(hand, S2HANDVideo), clip=None, **data)
    with pytest.raises(UserError, match="learns from clips"):
        at_setup(method_of(hand, S2HANDVideo))


def test_a_video_run_wants_clips_that_it_can_see(hand):
    at_setup(method_of(hand, S2HANDVideo), clip=Clip(stride=4))
    with pytest.raises(UserError, match=r"clips with stride 5, .*max_gap=5 joins them"):
        at_setup(method_of(hand, S2HANDVideo), clip=Clip(stride=5))
    at_setup(method_of(hand, S2HANDVideo, max_gap=5), clip=Clip(stride=5))


@pytest.mark.parametrize("texture", ["atlas", "faces"])
def test_textures_of_a_hand_without_coordinates(batch, texture):
    """MANO's files have none: its atlas is projected once, when it is read."""
    mano = standin_mano()
    assert mano.uv_faces.shape == mano.faces.shape
    look = partial(AppearanceHead, texture=texture, atlas_size=16)
    method = method_of(mano, appearance=look, weights=S2HANDWeights(laplacian=0.0))
    loss, found = gradients(method, without_labels(batch))
    assert torch.tensor(loss).isfinite()
    assert found["appearance.texture.2.weight"].any()
    drawn = texture_of(mano, method.eval().reconstruct(batch).texture[:1])
    assert drawn.uv_faces.shape == mano.faces.shape
    assert drawn.image.isfinite().all()


def test_predictions_carry_texture_and_light(hand, batch):
    method = method_of(hand).eval()
    with torch.no_grad():
        found = method.reconstruct(batch)
        drawn = method.render(found, batch.camera)
    assert found.texture.shape == (8, len(hand.faces), 3)
    assert isinstance(found.light, Light)
    assert drawn.image.shape == batch.image.shape
    assert method_of(hand, appearance=None).reconstruct(batch).texture is None
