from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from handrec.callbacks.cycle_strips import CycleStrips, draw_strip, read_photos
from handrec.data.appearance.backgrounds import ProceduralScenes
from handrec.data.appearance.plain import Plain
from handrec.data.augment import Augmentation
from handrec.data.mixed import MixedSets
from handrec.data.mixture import MixedBatch, SyntheticMixture, Unlabelled, without_labels
from handrec.data.share import labelled_share
from handrec.data.synthetic import SyntheticHands
from handrec.errors import UserError
from handrec.hand.openhand import OpenHand
from handrec.losses import cycle as losses
from handrec.methods.cycle_flow import (
    NEAREST,
    NO_TURN,
    Flow,
    Sight,
    frozen_averages,
    is_known,
    pick_batch,
    turn_back,
)
from handrec.methods.cyclehand import LOOKED_AT, CycleHand, CycleHandWeights
from handrec.models.backbones import TimmBackbone
from handrec.models.base import Estimates
from handrec.models.cycle_rotation import Turns
from handrec.models.cycle_scene import Redrawn, Shares, noise_level
from handrec.models.domains import Contrast, describe
from handrec.models.iterative import IterativeRegressor
from handrec.models.texture_vae import TextureVAE
from handrec.render.warp_backend import WarpRasterizer
from handrec.types import HandPrediction

LABELS = ("keypoints_2d", "joints_3d", "vertices", "pose", "betas", "translation", "mask")


@pytest.fixture(scope="module")
def hand():
    return OpenHand()


@pytest.fixture(scope="module")
def data(hand, tmp_path_factory):
    data = SyntheticMixture(
        hand, WarpRasterizer(), Plain(), Unlabelled(size=4), image_size=32, batch_size=8,
        train_size=8, val_size=1, test_size=1, cached=True,
        cache_dir=str(tmp_path_factory.mktemp("cache")),
    )  # fmt: skip
    data.prepare_data()
    data.setup("fit")
    return data


@pytest.fixture(scope="module")
def batch(data):
    return data.mix(next(iter(data.train_dataloader())))


@pytest.fixture(scope="module")
def appearance():
    return Redrawn(skins=1, backgrounds=ProceduralScenes(1))


def tiny_method(hand, appearance, weights=CycleHandWeights(), **options):  # noqa: B008
    torch.manual_seed(0)
    backbone = TimmBackbone(
        "vit_tiny_patch16_224", 32, stem="conv",
        options={"depth": 1, "embed_dim": 48, "num_heads": 2, "patch_size": 8},
    )  # fmt: skip
    options = {"flow": Flow(turns=Turns("so3_uniform")), **options}
    method = CycleHand(
        backbone, partial(IterativeRegressor, width=64), hand, WarpRasterizer(),
        weights=weights, appearance=appearance, texture_size=32, **options,
    )  # fmt: skip
    method.terms = {}
    method.log_losses = lambda terms, loss: method.terms.update(terms)
    method.progress = lambda: 0.5
    return method


def step(method, batch):
    torch.manual_seed(1)
    return method.training_step(batch, 0)


def test_a_batch_is_half_labelled_and_the_other_half_shows_nothing_but_pictures(batch):
    torch.testing.assert_close(batch.has_pose, torch.tensor([1.0] * 4 + [0.0] * 4))
    assert not any(getattr(batch, name)[4:].any() for name in (*LABELS, "confidence", "visibility"))
    assert batch.image[4:].std() > 0.05
    assert batch.sample_id[:4].max() < 8 <= batch.sample_id[4:].min()  # numbers tell them apart


def test_a_share_of_the_labels_is_a_share_of_the_pictures(data, hand):
    few = SyntheticMixture(
        hand, WarpRasterizer(), Plain(), Unlabelled(size=4, share=0.75), image_size=32,
        batch_size=8, train_size=8, val_size=1, test_size=1, cached=True, label_share=0.5,
        cache_dir=str(data.maker.folder),
    )  # fmt: skip
    few.setup("fit")
    shown = torch.cat([mixed.labelled.number for mixed in few.train_dataloader()])
    assert sorted(shown.tolist()) == sorted(labelled_share(torch.arange(8), 0.5).tolist())


def test_a_mixture_among_other_sets_keeps_its_share(data, hand):
    """Others set how much of a batch is its own."""
    for size, counts in ((12, (3, 3)), (16, (4, 4))):
        inner, other = (
            SyntheticMixture(
                hand, WarpRasterizer(), Plain(), Unlabelled(size=4), image_size=32, batch_size=8,
                train_size=8, val_size=1, test_size=1, cached=True,
                cache_dir=str(data.maker.folder),
            )
            for _ in range(2)
        )  # fmt: skip
        both = MixedSets(
            {"inner": inner, "other": other}, hand=hand, image_size=32, batch_size=size
        )
        both.setup("fit")
        mixed = next(iter(inner.train_dataloader()))
        assert (len(mixed.labelled.number), len(mixed.target.number)) == counts
    inner.batch_size = 1
    with pytest.raises(UserError, match="batch_size 1 has no room"):
        inner.train_dataloader()


def test_targets_are_labelled_by_nobody(data):
    mixed = next(iter(data.train_dataloader()))
    nan = {name: torch.nan * getattr(mixed.target.scenes, name) for name in ("pose", "betas")}
    blind = MixedBatch(
        mixed.labelled, mixed.target._replace(scenes=mixed.target.scenes._replace(**nan))
    )
    for one, other in zip(data.mix(mixed), data.mix(blind), strict=True):
        torch.testing.assert_close(one, other)


def test_labels_that_are_absent_are_never_read(hand, batch, appearance):
    loss = step(tiny_method(hand, appearance), batch)
    fields = {name: getattr(batch, name).clone() for name in LABELS}
    for field in fields.values():
        field[4:] = torch.nan
    assert step(tiny_method(hand, appearance), batch._replace(**fields)) == loss


def oracle(method):
    def see(batch):
        truth = HandPrediction(
            batch.vertices, batch.joints_3d, batch.keypoints_2d, batch.pose, batch.betas,
            batch.translation,
        )  # fmt: skip
        return Sight(describe(method.backbone.encode(batch.image)), Estimates([truth] * 2, None))

    method.see = see
    return method


def test_an_oracle_has_no_loss_of_the_cycle(hand, batch, appearance):
    method = oracle(tiny_method(hand, appearance, CycleHandWeights(image=1.0)))
    step(method, pick_batch(batch, torch.arange(4)))
    for name in ("vertices", "rotations", "rendered", "returned", "image"):
        assert method.terms[name].abs() < 1e-3, name
    torch.testing.assert_close(
        method.terms["photo_returned"], method.terms["photo"], atol=1e-3, rtol=0
    )
    assert method.terms["photo"] > 0.01  # the look is not known


@pytest.mark.parametrize("term", ["rendered", "returned", "photo_returned", "contrast"])
def test_every_term_of_the_cycle_reaches_the_backbone(hand, batch, appearance, term):
    off = dict.fromkeys(CycleHandWeights.__dataclass_fields__, 0.0)
    method = tiny_method(hand, appearance, CycleHandWeights(**{**off, term: 1.0}))
    step(method, batch).backward()
    assert [name for name, value in method.terms.items() if value.requires_grad] == [term]
    stem = next(method.backbone.parameters()).grad
    assert stem.isfinite().all()
    assert stem.abs().max() > 0


def test_drawings_follow_their_labels_and_pass_no_gradient(hand, batch, appearance):
    method = tiny_method(hand, appearance)
    sight = method.see(batch)
    looks = method.texture(sight.features[:4])
    cycle = method.cycle(batch, sight, looks, torch.arange(4))
    view = cycle.turned.batch
    assert not any(field.requires_grad for field in view)
    joints = hand.decode(view.pose, view.betas, view.translation).joints
    torch.testing.assert_close(joints, view.joints_3d, atol=1e-5, rtol=0)
    turned = cycle.turned.rotation @ batch.pose[:4, 0]
    torch.testing.assert_close(view.pose[:, 0], turned, atol=1e-5, rtol=0)
    assert ((view.keypoints_2d > 0) & (view.keypoints_2d < 32)).float().mean() > 0.9
    assert cycle.returned.joints.requires_grad


def test_labelled_hands_are_drawn_as_labelled_and_the_others_as_reconstructed(
    hand, batch, appearance
):
    for kind, known in (("known", 4), ("reconstructed", 0)):
        method = tiny_method(hand, appearance, flow=Flow(hands=kind))
        sight = method.see(batch)
        cycle = method.cycle(batch, sight, method.texture(sight.features), torch.arange(8))
        drawn = cycle.turned.batch
        for name in ("pose", "betas"):
            mine, labels, guess = (getattr(x, name) for x in (drawn, batch, cycle.first))
            if name == "pose":
                mine, labels, guess = (x[:, 1:] for x in (mine, labels, guess))
            assert torch.equal(mine[:known], labels[:known])
            assert torch.equal(mine[known:], guess[known:])
            assert not torch.allclose(labels[:4], guess[:4])


def test_what_is_not_believed_costs_nothing_but_is_drawn_and_learned_from(hand, batch, appearance):
    """Keypoints far from the given ones: no gradient to (a) and (d), all of it to (c)."""
    terms, labelled = {}, pick_batch(batch, torch.arange(4))
    for tolerance in (1e3, 1e-3):
        flow = Flow(turns=Turns("so3_uniform"), tolerance=tolerance)
        method = tiny_method(hand, appearance, CycleHandWeights(image=1.0), flow=flow)
        step(method, labelled)
        terms[tolerance] = method.terms
    for name in ("returned", "photo_returned", "image"):
        assert terms[1e-3][name] < 1e-3 * terms[1e3][name], name
    torch.testing.assert_close(terms[1e-3]["rendered"], terms[1e3]["rendered"])


def test_guesses_of_unlabelled_pictures_are_believed_as_far_as_the_dense_map_agrees(
    hand, batch, appearance
):
    """Iterations that agree, and the outline of the hand, or of all that is not."""
    method = oracle(tiny_method(hand, appearance))
    labelled = pick_batch(batch, torch.arange(4))
    unknown = labelled._replace(confidence=torch.zeros_like(labelled.confidence))
    sight = method.see(labelled)
    outline = 40 * (labelled.mask - 0.5)
    trusts = []
    for logits in (outline, -outline):
        dense = torch.cat([torch.zeros(4, 3, 32, 32), logits], dim=1)
        seen = sight._replace(estimates=Estimates(sight.estimates.iterations, dense))
        trusts.append(method._trust(seen, unknown))
        torch.testing.assert_close(method._trust(seen, labelled), torch.ones(4))
    assert trusts[0].min() > 0.8
    assert trusts[1].max() < 0.2


@pytest.mark.parametrize("masked", [False, True])
def test_outlines_do_not_pull_at_hands_of_one_colour(hand, batch, appearance, masked):
    """What a hand covers is no matter of how it looks: over black dark hands would grow."""
    method = tiny_method(hand, appearance, photo_size=32)
    labelled = pick_batch(batch, torch.arange(4))
    source = labelled._replace(has_mask=torch.full((4,), float(masked)))
    with torch.no_grad():
        looks = method.texture(method.see(source).features)
    one = torch.full_like(looks.texture, 0.3)
    plain = looks._replace(
        texture=one, ambient=torch.ones(4, 3), diffuse=torch.zeros_like(looks.diffuse)
    )
    gradients = []
    for look in (plain, looks):
        points = labelled.vertices.clone().requires_grad_()
        hands = HandPrediction(
            points, labelled.joints_3d, labelled.keypoints_2d, labelled.pose, labelled.betas,
            labelled.translation,
        )  # fmt: skip
        drawn = method.draw(hands, look, source)
        method._photometric(drawn, source, torch.ones(4)).backward()
        gradients.append(points.grad.abs().sum())
    assert gradients[0] < 1e-3 * gradients[1]
    torch.testing.assert_close(
        (drawn.image / drawn.mask.clamp(min=1e-3)).amax(), drawn.image.amax(), rtol=0.1, atol=0
    )


def test_colours_pull_hands_towards_where_the_picture_shows_them(hand, batch, appearance):
    """Against differences of the loss; these are larger, for they see outlines and creases move."""
    method = tiny_method(hand, appearance, photo_size=32)
    labelled = pick_batch(batch, torch.arange(4))
    truth = labelled.vertices
    hands = HandPrediction(
        truth, labelled.joints_3d, labelled.keypoints_2d, labelled.pose, labelled.betas,
        labelled.translation,
    )  # fmt: skip
    with torch.no_grad():
        looks = method.texture(method.see(labelled).features)
    spots = torch.rand(4, 3, 10, 10, generator=torch.Generator().manual_seed(0))
    spots = torch.nn.functional.interpolate(spots, (128, 128), mode="bilinear")
    looks = looks._replace(texture=spots)
    drawn = method.draw(hands, looks, labelled)
    image = (drawn.image + 0.5 * (1 - drawn.mask)).detach()
    source = labelled._replace(image=image, has_mask=torch.zeros(4))

    def each(vertices):
        drawn = method.draw(hands._replace(vertices=vertices), looks, source)
        return torch.stack([method._photometric(drawn, source, one) for one in torch.eye(4)])

    assert each(truth).max() < 0.01
    offset = truth - truth.mean(1, keepdim=True)
    x, y, z = torch.eye(3)
    moves = [0.004 * x.expand_as(truth), 0.004 * y.expand_as(truth), 0.05 * offset]
    moves += [0.1 * torch.linalg.cross(axis.expand_as(offset), offset) for axis in (x, y, z)]
    for move in moves:
        for side in (-0.7, 0.7):
            points = (truth + side * move).requires_grad_()
            (gradient,) = torch.autograd.grad(each(points).sum(), points)
            slope = (gradient * move).sum((1, 2))
            with torch.no_grad():
                near, far = (each(truth + (side + step) * move) for step in (-0.2, 0.2))
            share = slope / ((far - near) / 0.4)
            assert share.min() > 0.2
            assert share.max() < 1.2


def test_pictures_of_hands_that_are_not_believed_do_not_move_them(hand, batch, appearance):
    off = dict.fromkeys(CycleHandWeights.__dataclass_fields__, 0.0)
    terms = []
    for tolerance in (1e3, 1e-3):
        flow = Flow(turns=Turns("so3_uniform"), tolerance=tolerance)
        weights = CycleHandWeights(**{**off, "photo": 1.0})
        method = tiny_method(hand, appearance, weights, flow=flow)
        step(method, pick_batch(batch, torch.arange(4)))
        terms.append(method.terms["photo"])
    assert terms[1] < 1e-3 * terms[0]


def test_what_returns_teaches_the_first_reconstruction_too(hand, batch, appearance):
    off = dict.fromkeys(CycleHandWeights.__dataclass_fields__, 0.0)
    method = tiny_method(hand, appearance, CycleHandWeights(**{**off, "returned": 1.0}))
    see, calls = method.see, []

    def deaf(batch):  # (c) passes no gradient
        calls.append(batch)
        with nullcontext() if len(calls) == 1 else torch.no_grad():
            return see(batch)

    method.see = deaf
    step(method, batch).backward()
    assert len(calls) == 2
    assert next(method.backbone.parameters()).grad.abs().max() > 0


def test_hands_that_are_drawn_too_small_do_not_count(hand, batch, appearance):
    method = tiny_method(hand, appearance, flow=Flow(smallest=1.0))
    step(method, batch)
    for name in ("rendered", "returned", "contrast"):
        assert method.terms[name] == 0, name


def test_the_cycle_sets_in_slowly(hand, batch, appearance):
    terms = []
    for progress in (0.05, 0.5):
        method = tiny_method(hand, appearance)
        method.progress = lambda progress=progress: progress
        step(method, batch)
        terms.append(method.terms)
    for name in ("rendered", "returned"):
        torch.testing.assert_close(terms[0][name], terms[1][name] / 2)
    del method.progress
    method._trainer = SimpleNamespace(global_step=30, estimated_stepping_batches=120)
    assert method.progress() == 0.25


def test_a_step_moves_running_statistics_by_its_pictures_alone(hand, batch, appearance):
    stepped, seen = (
        tiny_method(hand, appearance, flow=Flow(recolour=0.0, grain=0.0)) for _ in range(2)
    )
    step(stepped, batch)
    seen.see(batch)
    for (name, mine), theirs in zip(
        stepped.backbone.named_buffers(), seen.backbone.buffers(), strict=True
    ):
        if "running" in name:
            torch.testing.assert_close(mine, theirs)
    assert any("running" in name for name, _ in seen.backbone.named_buffers())


def test_no_hand_is_left_in_a_background_where_the_dense_map_sees_one(hand, batch, appearance):
    method = tiny_method(hand, appearance)
    unknown = pick_batch(batch, torch.arange(4, 8))
    hands = method.see(unknown).estimates.iterations[-1]
    logits = torch.full((4, 4, 16, 16), -9.0)
    logits[..., 8:] = 9.0  # the right half
    plain, without = (method._backgrounds(hands, unknown, dense) for dense in (None, logits))
    roughness = [x[..., 20:].diff(dim=-2).abs().mean() for x in (unknown.image, plain, without)]
    assert roughness[2] < 0.5 * min(roughness[:2])
    left = [x[..., :8].diff(dim=-2).abs().mean() for x in (plain, without)]
    torch.testing.assert_close(*left, rtol=0.05, atol=0)


def test_one_pose_for_everything_does_not_meet_the_cycle(hand, batch, appearance):
    """It returns to itself, but it is not what was drawn."""
    labelled = pick_batch(batch, torch.arange(4))
    rendered = {}
    for kind in ("oracle", "constant"):
        method = oracle(tiny_method(hand, appearance))
        if kind == "constant":
            see, pose = method.see, labelled.pose[:1].expand(4, 16, 3, 3)
            posed = hand.decode(pose, labelled.betas[:1].expand(4, 10), labelled.translation)
            same = labelled._replace(pose=pose, vertices=posed.vertices, joints_3d=posed.joints)
            method.see = lambda batch, see=see, same=same: see(
                pick_batch(same, torch.arange(len(batch.image)))._replace(image=batch.image)
            )
        step(method, labelled)
        rendered[kind] = method.terms["rendered"]
    assert rendered["constant"] > 100 * rendered["oracle"].abs()
    assert rendered["constant"] > 1


def test_strips_of_a_batch_and_of_photos(hand, batch, appearance, tmp_path):
    for name, image in zip(("a", "b", "c"), batch.image[4:], strict=False):
        picture = (image.permute(1, 2, 0) * 255).round().byte().numpy()
        cv2.imwrite(str(tmp_path / f"{name}.png"), picture[..., ::-1])
    photos = read_photos(str(tmp_path), None, 32, 2)
    assert photos.image.shape == (2, 3, 32, 32)
    torch.testing.assert_close(photos.image, batch.image[4:6], atol=1 / 255, rtol=0)
    method = tiny_method(hand, appearance).train()
    state = torch.get_rng_state()
    strips = [draw_strip(method, shown) for shown in (photos, pick_batch(batch, torch.arange(3)))]
    assert torch.equal(torch.get_rng_state(), state)
    assert method.training
    assert all(p.grad is None for p in method.parameters())
    height, width = (side - side % 6 for side in strips[0].shape[:2])
    assert width > 5 * 160
    assert strips[1].shape[0] > 1.3 * height  # a row per hand
    again = draw_strip(method, photos)
    assert (again == strips[0]).all()


def test_strips_are_for_this_method_and_for_photos_that_are_there(hand, appearance, tmp_path):
    trainer = pl.Trainer(logger=False, accelerator="cpu", enable_checkpointing=False)
    method = tiny_method(hand, appearance, phase="base")
    with pytest.raises(UserError, match="no such image or folder"):
        CycleStrips(photos=str(tmp_path / "none")).setup(trainer, method, "fit")
    with pytest.raises(UserError, match="not LightningModule"):
        CycleStrips().setup(trainer, pl.LightningModule(), "fit")


def test_textures_may_start_from_one_recovered_from_photos(hand, batch, appearance, tmp_path):
    path = tmp_path / "mine.png"
    cv2.imwrite(str(path), np.full((16, 16, 3), (30, 60, 120), np.uint8))
    path.with_suffix(".json").write_text('{"hand_model": "OpenHand"}')
    method = tiny_method(hand, appearance, base_texture=str(path)).eval()
    colour = method.reconstruct(batch).texture.mean((0, 2, 3))
    torch.testing.assert_close(colour, torch.tensor([120, 60, 30]) / 255, atol=0.02, rtol=0)
    path.with_suffix(".json").write_text('{"hand_model": "Mano"}')
    with pytest.raises(UserError, match="a texture of Mano, not of OpenHand"):
        tiny_method(hand, appearance, base_texture=str(path))


def test_hands_return_to_where_they_were_however_far_off_they_are_believed_to_be(
    hand, batch, appearance
):
    method = oracle(tiny_method(hand, appearance))
    labelled = pick_batch(batch, torch.arange(4))
    sight = method.see(labelled)
    cycle = method.cycle(labelled, sight, method.texture(sight.features), torch.arange(4))
    seen = cycle.seen.estimates.iterations[-1]
    farther = HandPrediction(
        seen.vertices * 1.2, seen.joints * 1.2, seen.keypoints_2d, seen.pose, seen.betas,
        seen.translation * 1.2,
    )  # fmt: skip
    for hands, off in ((seen, 1e-4), (farther, 0.03)):
        returned = turn_back(hands, cycle.turned, labelled.camera)
        gap = (returned.vertices - labelled.vertices).norm(dim=2).amax()
        assert gap < off
        middle = (returned.vertices - labelled.vertices).mean(1).norm(dim=1).amax()
        assert middle < 1e-4


@pytest.mark.parametrize("distance", [0.05, -0.2])
def test_hands_believed_to_be_too_near_are_drawn_farther_off_and_return_to_where_they_were(
    hand, batch, appearance, distance
):
    method = oracle(tiny_method(hand, appearance))
    near = pick_batch(batch, torch.arange(4))
    shift = torch.tensor([0.0, 0.0, distance]) - near.vertices.mean(1) * torch.tensor([0.0, 0, 1])
    near = near._replace(
        vertices=near.vertices + shift[:, None],
        joints_3d=near.joints_3d + shift[:, None],
        translation=near.translation + shift,
    )
    sight = method.see(near)
    cycle = method.cycle(near, sight, method.texture(sight.features), torch.arange(4))
    drawn = cycle.turned.batch
    torch.testing.assert_close(drawn.vertices.mean(1)[:, 2], torch.full((4,), NEAREST))
    assert drawn.vertices[..., 2].min() > 0.1
    assert (cycle.turned.weight == 1).all()
    gap = (cycle.returned.vertices - near.vertices).norm(dim=2).amax()
    assert gap < 1e-4


def test_the_teacher_form_and_redrawn_pairs(hand, batch, appearance):
    weights = CycleHandWeights(distill=1.0)
    method = tiny_method(hand, appearance, weights, contrast=Contrast("redrawn", prototypes=32))
    step(method, batch).backward()
    assert method.terms["distill"] > 0
    teacher = [p.clone() for p in method.tie.teacher.parameters()]
    torch.optim.SGD(method.parameters(), 0.1).step()
    method.tie.follow(method.backbone)
    moved = [(a - b).abs().max() for a, b in zip(teacher, method.tie.teacher.parameters())]  # noqa: B905
    assert 0 < max(moved) < 0.01
    assert not method.tie.train().teacher.training


def test_a_teacher_leaves_the_pairs_of_the_contrastive_term_as_they_are(hand, batch, appearance):
    weights = CycleHandWeights(distill=1.0)
    method = tiny_method(hand, appearance, weights, contrast=Contrast("turned", prototypes=32))
    tie, given = method.tie.contrast, []
    method.tie.contrast = lambda *arguments: given.append(arguments) or tie(*arguments)
    step(method, batch)
    ((_, _, rotation, _),) = given
    turned_by = rotation.diagonal(dim1=1, dim2=2).sum(1)
    assert turned_by.min() < 2  # of no turn 3
    assert method.terms["distill"] > 0


@pytest.mark.parametrize("pairs", ["turned", "redrawn"])
def test_pairs_that_are_not_believed_are_not_tied(hand, batch, appearance, pairs):
    terms = []
    for tolerance in (1e3, 1e-5):
        flow = Flow(hands="reconstructed", turns=Turns("so3_uniform"), tolerance=tolerance)
        weights = CycleHandWeights(distill=1.0)
        contrast = Contrast(pairs, prototypes=32)
        method = tiny_method(hand, appearance, weights, flow=flow, contrast=contrast)
        step(method, batch)
        terms.append((method.terms["contrast"], method.terms["distill"]))
    for believed, doubted in zip(*terms, strict=True):
        assert believed > 0.1
        assert doubted < 1e-3 * believed


@pytest.mark.parametrize("hands", ["known", "reconstructed"])
def test_a_drawn_label_is_a_pair_however_wrong_the_reconstruction(hand, batch, appearance, hands):
    method = tiny_method(hand, appearance, flow=Flow(share=1.0, hands=hands))
    sight = method.see(batch)
    rows = torch.arange(len(batch.image))
    cycle = method.cycle(batch, sight, method.texture(sight.features), rows)
    assert cycle.trust[:4].max() < 0.5
    drawn = torch.ones(4) if hands == "known" else cycle.trust[:4]
    torch.testing.assert_close(cycle.belief, torch.cat([drawn, cycle.trust[4:]]))


def test_hands_get_fingers_of_labelled_ones_alone(hand, batch, appearance):
    flow = Flow(share=1.0, exchange=1.0, turns=NO_TURN)
    method = tiny_method(hand, appearance, flow=flow)
    sight = method.see(batch)
    rows = torch.arange(len(batch.image))
    cycle = method.cycle(batch, sight, method.texture(sight.features), rows)
    assert cycle.exchanged[:4].sum() >= 2
    assert cycle.exchanged[4:].sum() >= 2
    drawn, first = cycle.turned.batch, cycle.first
    own_pose = torch.cat([batch.pose[:4], first.pose[4:]])
    torch.testing.assert_close(drawn.pose[:, 0], own_pose[:, 0])
    torch.testing.assert_close(drawn.betas, torch.cat([batch.betas[:4], first.betas[4:]]))
    own_place = torch.cat([batch.vertices[:4], first.vertices[4:]]).mean(1)
    torch.testing.assert_close(drawn.vertices.mean(1), own_place, atol=1e-5, rtol=0)
    posed = hand.decode(drawn.pose, drawn.betas, drawn.translation)
    torch.testing.assert_close(posed.joints, drawn.joints_3d, atol=1e-5, rtol=0)
    for row in range(8):
        if not cycle.exchanged[row]:
            torch.testing.assert_close(drawn.pose[row], own_pose[row])
            continue
        for finger in range(5):  # all three joints of a finger come from one hand
            part = slice(1 + 3 * finger, 4 + 3 * finger)
            assert any(torch.equal(drawn.pose[row, part], batch.pose[k, part]) for k in range(4))
    wanted = torch.where(cycle.exchanged, 0.0, torch.where(cycle.known, 1.0, cycle.trust))
    torch.testing.assert_close(cycle.belief, wanted)


def test_where_nothing_is_labelled_no_fingers_are_lent(hand, batch, appearance):
    method = tiny_method(hand, appearance, flow=Flow(share=1.0, exchange=1.0, turns=NO_TURN))
    shown = without_labels(batch)
    sight = method.see(shown)
    rows = torch.arange(len(shown.image))
    cycle = method.cycle(shown, sight, method.texture(sight.features), rows)
    assert not cycle.exchanged.any()
    torch.testing.assert_close(cycle.turned.batch.pose, cycle.first.pose)


def test_hands_with_the_fingers_of_others_do_not_return(hand, batch, appearance):
    def returned(exchange):
        flow = Flow(share=1.0, exchange=exchange)
        method = tiny_method(hand, appearance, flow=flow)
        cycle, given = method.cycle, []
        method.cycle = lambda *arguments: given.append(cycle(*arguments)) or given[0]
        loss = losses.round_trip_loss
        weights = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(losses, "round_trip_loss", lambda *a: weights.append(a[2]) or loss(*a))
            step(method, batch)
        return given[0], weights[0]

    cycle, weight = returned(1.0)
    assert cycle.exchanged.any()
    torch.testing.assert_close(weight > 0, ~cycle.exchanged & (cycle.turned.weight > 0))
    cycle, weight = returned(0.0)
    assert not cycle.exchanged.any()
    assert (weight[:4] > 0).any()


def test_sampled_hands_only_have_drawings(hand, batch, appearance):
    flow = Flow(hands="sampled", turns=Turns("so3_uniform"))
    method = tiny_method(hand, appearance, flow=flow)
    step(method, batch)
    assert "rendered" in method.terms
    assert not {"returned", "photo_returned", "contrast"} & set(method.terms)


def test_labelled_pictures_and_drawings_get_the_colours_of_unlabelled_ones(hand, batch, appearance):
    red = torch.tensor([0.9, 0.1, 0.1])[:, None, None].expand(3, 32, 32)
    batch = batch._replace(image=torch.cat([batch.image[:4], red.expand(4, 3, 32, 32)]))
    redness = {}
    for share in (0.0, 1.0):
        method = tiny_method(hand, appearance, flow=Flow(recolour=share, grain=0.0))
        shown, see = [], method.see
        method.see = lambda x, see=see, shown=shown: shown.append(x.image) or see(x)
        step(method, batch)
        pictures, drawings = shown
        assert torch.equal(pictures[4:], batch.image[4:])
        assert torch.equal(pictures[:4], batch.image[:4]) == (share == 0)
        redness[share] = [(x[:4, 0] - x[:4, 2]).mean() for x in (pictures, drawings)]
    for before, after in zip(redness[0.0], redness[1.0], strict=True):
        assert after > before + 0.1


def test_labelled_pictures_and_drawings_get_the_noise_of_unlabelled_ones(hand, batch, appearance):
    noise = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    batch = batch._replace(image=torch.cat([batch.image[:4], noise]))
    shown = []
    for share in (0.0, 1.0):
        method = tiny_method(hand, appearance, flow=Flow(recolour=0.0, grain=share))
        see = method.see
        method.see = lambda x, see=see: shown.append(x.image) or see(x)
        step(method, batch)
    pictures, drawings, noisy_pictures, noisy_drawings = shown
    assert torch.equal(noisy_pictures[4:], batch.image[4:])
    for before, after in ((pictures[:4], noisy_pictures[:4]), (drawings, noisy_drawings)):
        assert noise_level(after).min() > noise_level(before).max() + 0.05


def test_drawings_leave_running_statistics_alone():
    norm = torch.nn.BatchNorm2d(2)
    with frozen_averages(norm):
        norm(5 + torch.randn(4, 2, 3, 3))
    torch.testing.assert_close(norm.running_mean, torch.zeros(2))
    norm(5 + torch.randn(4, 2, 3, 3))
    assert norm.running_mean.min() > 0.3


def test_phase_two_starts_from_phase_one(hand, batch, appearance, tmp_path):
    base = tiny_method(hand, appearance, phase="base")
    assert step(base, batch) > 0
    assert not {"rendered", "returned"} & set(base.terms)
    torch.save({"state_dict": base.state_dict()}, tmp_path / "base.ckpt")
    method = tiny_method(hand, appearance)
    for parameter in method.parameters():
        parameter.data.zero_()
    method.load_base(tmp_path / "base.ckpt")
    one, other = (m.eval().reconstruct(batch) for m in (base, method))
    torch.testing.assert_close(one.vertices, other.vertices)


def test_a_start_that_does_not_fit_is_told_in_one_line(hand, appearance, tmp_path):
    base, path = tiny_method(hand, appearance, phase="base"), tmp_path / "base.ckpt"
    state = base.state_dict()
    other = {"base_texture": "skins/ann.png"}
    broken = state | {"texture.first.weight": torch.zeros(2, 2)}
    extra = state | {"nothing": torch.zeros(1)}
    for content, message in (
        ({"state_dict": state, "hyper_parameters": other}, r"offsets to the texture skins/ann.png"),
        ({"state_dict": broken}, r"another architecture: size mismatch for texture.first.weight"),
        ({"state_dict": [1]}, r"another architecture: Expected state_dict to be dict"),
        ({"state_dict": extra}, r"does not fit: \['nothing'\]"),
    ):
        torch.save(content, path)
        with pytest.raises(UserError, match=message) as refused:
            tiny_method(hand, appearance).load_base(path)
        assert "\n" not in str(refused.value)


def test_hands_as_deep_in_themselves_as_labels_are_let_be(hand, batch, appearance):
    method = tiny_method(hand, appearance)
    prediction = method.reconstruct(batch)
    for depth, expected in ((0.0029, 0.0), (0.013, 1.0)):
        method.mechanics.spheres.penetration = lambda joints, depth=depth: torch.full((8, 1), depth)
        found = method.mechanics.terms(prediction)["penetration"]
        assert found.item() == pytest.approx(expected, abs=1e-5)


def test_drawings_are_augmented_as_the_pictures_are(hand, appearance):
    method = tiny_method(hand, appearance).train()
    images = torch.rand(3, 3, 32, 32)
    assert method.augmented(images) is images
    for noise in (0.0, 0.5):
        plain = dict.fromkeys(("brightness", "contrast", "saturation", "hue", "blur"), 0.0)
        augmentation = Augmentation(**plain, noise=noise)
        for data in augmented_data(hand, augmentation):
            method._trainer = SimpleNamespace(datamodule=data)
            torch.manual_seed(0)
            changed = (method.augmented(images) - images).abs().mean()
            assert (changed > 0.05) == bool(noise)
    assert method.eval().augmented(images) is images  # strips


def augmented_data(hand, augmentation):
    """Return data modules whose pictures are augmented: by themselves, as a set, in a mixture."""

    def drawn(**options):
        return SyntheticHands(hand, WarpRasterizer(), 32, 4, 8, **options)

    mixture = partial(MixedSets, hand=hand, image_size=32, batch_size=4)
    alone = drawn(augmentation=augmentation)
    return alone, mixture({"drawn": alone}), mixture({"drawn": drawn()}, augmentation=augmentation)


def test_drawings_are_augmented_in_full_precision(hand, appearance):
    method = tiny_method(hand, appearance).train()
    method._trainer = SimpleNamespace(datamodule=SimpleNamespace(augmentation=Augmentation()))
    images = torch.rand(3, 3, 32, 32)
    torch.manual_seed(0)
    changed = method.augmented(images)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(method.augmented(images), changed)
    assert (changed - images).abs().max() > 0.05


def test_textures_learn_nothing_where_nobody_says_where_the_hand_is(hand, batch, appearance):
    method = tiny_method(hand, appearance, phase="base")
    blank = batch._replace(confidence=torch.zeros_like(batch.confidence))
    step(method, batch)
    assert method.terms["photo"] > 0
    step(method, without_labels(blank))
    assert method.terms["photo"] == 0


def test_heads_without_an_outline_are_told(hand, appearance, caplog):
    method = tiny_method(hand, appearance)
    outlined = torch.nn.ModuleDict({"dense": torch.nn.Identity()})
    for head, told in ((outlined, False), (method.head, True)):
        method.head = head
        method._trainer = SimpleNamespace(strategy=None, datamodule=None)
        method.setup("fit")
        assert ("guesses no outline" in caplog.text) == told


@pytest.mark.parametrize("labelled", [True, False])
def test_labels_that_no_hand_can_be_drawn_from_are_told_of_once(
    hand, batch, appearance, caplog, labelled
):
    method = tiny_method(hand, appearance)
    shown = batch if labelled else batch._replace(has_pose=torch.zeros_like(batch.has_pose))
    for _ in range(2 * LOOKED_AT):
        method._look_for_labels(is_known(shown))
    assert caplog.text.count("no label in the first 20 batches") == (not labelled)
    step(method, batch)  # goes on


def test_labels_without_meshes_are_refused(hand, appearance):
    method = tiny_method(hand, appearance)
    data = SimpleNamespace(name="mine", has_keypoints=True, hand=None)
    method._trainer = SimpleNamespace(strategy=None, datamodule=data)
    with pytest.raises(UserError, match=r"data.hand is null, and CycleHand draws"):
        method.setup("fit")


@pytest.mark.parametrize("size", [1, 24])
def test_textures_of_too_few_texels_are_refused(hand, size):
    with pytest.raises(UserError, match=f"at least 32 texels, not {size}"):
        TextureVAE(96, hand, size)


def test_phase_two_goes_on_without_phase_one(hand, appearance):
    method = tiny_method(hand, appearance, checkpoint="gone.ckpt")
    method._trainer = SimpleNamespace(strategy=None, datamodule=None)
    with pytest.raises(UserError, match=r"no checkpoint gone\.ckpt"):
        method.setup("fit")
    method._trainer.ckpt_path = "last.ckpt"
    method.setup("fit")


NAN = float("nan")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Flow(hands="sampled", exchange=0.5), "Flow: only labelled hands lend"),
        (lambda: Flow(exchange=1.5), "Flow: exchange must be 0 to 1, not 1.5"),
        (lambda: CycleStrips(every=0), "CycleStrips: every must be above 0"),
        (lambda: CycleStrips(hands=0), "CycleStrips: hands must be above 0"),
        (lambda: Shares(texture=50.0), "Shares: texture must be 0 to 1, not 50"),
        (lambda: Redrawn(relit=1.5), "Redrawn: relit must be 0 to 1, not 1.5"),
        (lambda: Shares(tone=NAN), "Shares: tone must be 0 to 1, not nan"),
        (lambda: Turns(euler=(NAN, 0.0, 0.0)), "Turns: pitch must be at least 0, not nan"),
        (lambda: Flow(margin=(1.1, float("inf"))), "Flow: greatest_margin must be above 0"),
        (lambda: Flow(margin=(1.5, 1.1)), "Flow: margin goes from .*, not from 1.5 to 1.1"),
        (lambda: Flow(margin=(0.5, 1.1)), "Flow: margin must be at least 1, not 0.5: hands would"),
    ],
)
def test_flows_that_make_no_sense_are_refused(build, message):
    with pytest.raises(UserError, match=message):
        build()


@pytest.mark.parametrize("size", [2, -5, 0])
def test_drawings_too_small_to_compare_are_refused(hand, appearance, size):
    with pytest.raises(UserError, match=f"photo_size is at least 5, not {size}"):
        tiny_method(hand, appearance, photo_size=size)


@pytest.mark.parametrize("phase", ["base", "cycle"])
def test_the_first_phase_wants_labelled_joints(hand, appearance, phase):
    """The second has the cycle to learn from."""
    method = tiny_method(hand, appearance, phase=phase)
    data = SimpleNamespace(name="mine", has_keypoints=False)
    method._trainer = SimpleNamespace(strategy=None, datamodule=data)
    with nullcontext() if phase == "cycle" else pytest.raises(UserError, match="mine has no 2D"):
        method.setup("fit")
