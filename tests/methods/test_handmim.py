from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch

from handrec.data.synthetic import SyntheticHands
from handrec.errors import UserError
from handrec.hand.openhand import OpenHand
from handrec.methods.handmim import HandMIM, HandMIMWeights, supervised_terms
from handrec.methods.optim import adamw_layer_decay, warmup_cosine
from handrec.models.backbones import TimmBackbone
from handrec.models.pymaf import PyMAF
from handrec.render.warp_backend import WarpRasterizer
from handrec.types import HandPrediction


@pytest.fixture(scope="module")
def hand():
    return OpenHand()


@pytest.fixture(scope="module")
def batch(hand, tmp_path_factory):
    data = SyntheticHands(
        hand, WarpRasterizer(), image_size=32, batch_size=8, train_size=8, val_size=1,
        test_size=1, cache_dir=str(tmp_path_factory.mktemp("cache")),
    )  # fmt: skip
    data.prepare_data()
    data.setup("fit")
    return data.label(data.tables["train"].rows(torch.arange(8)))


def tiny_method(hand):
    torch.manual_seed(0)
    options = {"depth": 2, "embed_dim": 48, "num_heads": 2, "patch_size": 8}
    backbone = TimmBackbone("vit_tiny_patch16_224", 32, stem="conv", options=options)
    head = partial(PyMAF, map_channels=32, grid=5, points=40, width=128, dropout=0.0)
    method = HandMIM(backbone, head, hand, WarpRasterizer(), HandMIMWeights())
    method.log_losses = lambda *_: None  # there is no trainer
    return method


def test_hands_can_be_held_to_what_hands_can_do(hand, batch):
    plain = tiny_method(hand)
    assert plain.mechanics is None
    weights = HandMIMWeights(limits=1.0, penetration=1.0)
    method = HandMIM(plain.backbone, lambda *_: plain.head, hand, WarpRasterizer(), weights)
    assert method.state_dict().keys() == plain.state_dict().keys()
    for each in (plain, method):
        each.terms = {}
        each.log_losses = lambda terms, loss, each=each: each.terms.update(terms)
        each.train().training_step(batch, 0)
    assert set(method.terms) - set(plain.terms) == {"limits", "penetration"}


def truth(batch):
    return HandPrediction(
        batch.vertices, batch.joints_3d, batch.keypoints_2d, batch.pose, batch.betas,
        batch.translation,
    )  # fmt: skip


def errors_by_iteration(method, batch):
    """Return the mean error of the vertices relative to the wrist, metres, of each iteration."""
    method.eval()
    with torch.no_grad():
        hands = method.iterations(batch)
    method.train()
    relative = batch.vertices - batch.joints_3d[:, :1]
    return [(h.vertices - h.joints[:, :1] - relative).norm(dim=-1).mean().item() for h in hands]


def test_the_truth_has_no_loss(batch):
    for name, term in supervised_terms(truth(batch), batch).items():
        assert term < 1e-6, name


def test_absent_labels_never_reach_the_loss(hand, batch):
    none = 0 * batch.has_pose
    unlabelled = batch._replace(
        has_pose=none, has_vertices=none, has_joints_3d=none, confidence=0 * batch.confidence
    )
    method = tiny_method(hand)
    assert method.training_step(unlabelled, 0) == 0


def test_overfits_a_batch_and_later_iterations_are_better(hand, batch):
    method = tiny_method(hand)
    optimizer = torch.optim.AdamW(method.parameters(), lr=2e-3)
    schedule = warmup_cosine(optimizer, 120, warmup=0.05, floor=0.01)
    before = errors_by_iteration(method, batch)
    underway = []  # once all is learned by heart, iterations have nothing left to mend
    for step in range(120):
        if step in (30, 50, 70):
            underway.append(errors_by_iteration(method, batch))
        loss = method.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(method.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    after = errors_by_iteration(method, batch)
    assert after[-1] < 0.2 * before[-1], f"{[f'{1000 * e:.1f} mm' for e in after]}"
    first, *_, last = map(sum, zip(*underway, strict=True))
    assert last < first


def test_every_parameter_gets_a_gradient(hand, batch):
    method = tiny_method(hand)
    method.training_step(batch, 0).backward()
    idle = [n for n, p in method.named_parameters() if p.grad is None or not p.grad.any()]
    # the class token's output is not used by the head; its own row of the embedding still mixes in
    assert idle == []


def test_rates_fall_towards_the_input(hand):
    method = tiny_method(hand)
    optimizer = adamw_layer_decay(method.backbone.model, [method.head], 1e-3, 0.05, 0.5)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    model = method.backbone.model
    assert len(rates) == sum(1 for m in (model, method.head) for _ in m.parameters())
    stem, first, second = (
        rates[id(next(part.parameters()))] for part in (model.patch_embed, *model.blocks)
    )
    assert stem < first < second <= 1e-3
    assert second == pytest.approx(2 * first)
    assert rates[id(method.head.dense.weight)] == 1e-3
    undecayed = [g for g in optimizer.param_groups if g["weight_decay"] == 0]
    assert all(p.ndim <= 1 or p is model.pos_embed or p is model.cls_token
               for g in undecayed for p in g["params"])  # fmt: skip


def test_schedule_rises_then_falls_to_the_floor():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = warmup_cosine(optimizer, steps=100, warmup=0.1, floor=0.01)
    rates = []
    for _ in range(100):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[55] == pytest.approx(0.01 + 0.99 / 2, abs=1e-9)
    assert schedule.get_last_lr()[0] == pytest.approx(0.01)


def test_data_drawn_with_another_hand_are_refused(hand, batch, tmp_path):
    other = OpenHand()
    other.faces = other.faces.flip(0)
    data = SyntheticHands(
        other, WarpRasterizer(), image_size=32, batch_size=8, train_size=8, val_size=1,
        test_size=1, cache_dir=str(tmp_path),
    )  # fmt: skip
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, max_epochs=1, accelerator="cpu")
    with pytest.raises(UserError, match=r"the data's hand is OpenHand.* the same"):
        trainer.fit(tiny_method(hand), data)


def test_data_without_labelled_joints_are_refused(hand):
    method = tiny_method(hand)
    for has_keypoints in (True, False):
        data = SimpleNamespace(name="mine", has_keypoints=has_keypoints)
        method._trainer = SimpleNamespace(strategy=None, datamodule=data)
        with nullcontext() if has_keypoints else pytest.raises(UserError, match="mine has no 2D"):
            method.setup("fit")
