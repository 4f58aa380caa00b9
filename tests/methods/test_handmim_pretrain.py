import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image, ImageOps
from scipy.ndimage import gaussian_filter
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from handrec.data import views
from handrec.data.views import Colours, Geometry, TwoViews, blur
from handrec.errors import UserError
from handrec.losses import distillation as distil
from handrec.methods import handmim_pretrain as pretraining
from handrec.methods.handmim_pretrain import (
    HandMIMPretrain,
    HandMIMPretrainWeights,
    Teacher,
)
from handrec.models.backbones import TimmBackbone
from handrec.models.masking import Masking, draw_masks, encode_masked, patchify
from handrec.types import HandBatch

STILL = Geometry(rotation=0.0, scale=(1.0, 1.0), shift=0.0)
PLAIN = Colours(jitter_share=0.0, grey=0.0, blur=(0.0, 0.0), solarize=(0.0, 0.0))


def batches(count, size=4, side=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    empty = torch.zeros(size)
    for number in range(count):
        image = torch.rand(size, 3, side, side, generator=generator)
        blank = HandBatch(*[empty] * len(HandBatch._fields))
        yield blank._replace(
            image=image,
            keypoints_2d=side * torch.rand(size, 21, 2, generator=generator),
            confidence=torch.ones(size, 21),
            joints_3d=torch.zeros(size, 21, 3),
            sequence=number * size + torch.arange(size),
        )


class Images(pl.LightningDataModule):
    def __init__(self, count=6):
        super().__init__()
        self.batches = list(batches(count))

    def train_dataloader(self):
        return DataLoader(self.batches, batch_size=None)

    def val_dataloader(self):
        return DataLoader(self.batches, batch_size=None)


def method(**options):
    torch.manual_seed(0)
    options.setdefault("views", TwoViews())
    backbone = TimmBackbone("vit_tiny_patch16_224", 32, options={"depth": 1, "patch_size": 8})
    return HandMIMPretrain(backbone, prototypes=16, hidden=32, **options)


def trainer(tmp_path, **options):
    options = {"max_epochs": 2, "log_every_n_steps": 1, **options}
    return pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path, num_sanity_val_steps=0, **options,
    )  # fmt: skip


def lone(pretrain, tmp_path):
    """Let a method's step be called without a training loop."""
    pretrain.trainer = trainer(tmp_path, log_every_n_steps=10**9)
    return pretrain


def token_term(pretrain, batch):
    taken, _ = pretrain.views.take(batch.image)
    images = torch.cat([view.image for view in taken])
    matrices = torch.cat([view.matrix for view in taken])
    seen = pretrain.teacher.backbone.encode(images)
    guessed = pretrain.student.backbone.encode(images)
    terms = pretrain._token_terms(seen, guessed, matrices, [], {})
    return terms["tokens"], seen, guessed


def test_without_movement_alignment_is_plain_distillation(tmp_path):
    """And plain distillation is that of the same head, written out."""
    batch = next(batches(1))
    still = TwoViews(geometry=STILL, colours=PLAIN)
    results = []
    for alignment in ("proto", "invariant"):
        pretrain = lone(method(views=still, alignment=alignment), tmp_path).eval()
        term, seen, guessed = token_term(pretrain, batch)
        results.append(term)
    teacher, student = pretrain.teacher.token_head, pretrain.student.token_head
    target = teacher.score(teacher.points(teacher.embed(seen.pooled)).flatten(1))
    logits = student.score(student.points(student.embed(guessed.pooled)).flatten(1))
    p = (target / 0.04).softmax(-1).unflatten(0, (2, 4))
    s = (logits / 0.1).log_softmax(-1).unflatten(0, (2, 4))
    written_out = -((p[0] * s[1]).sum(-1).mean() + (p[1] * s[0]).sum(-1).mean()) / 2
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(results[0], written_out)


def test_alignment_matters_once_views_move(tmp_path):
    batch = next(batches(1))
    turned = TwoViews(colours=PLAIN)
    terms = []
    for alignment in ("proto", "invariant"):
        pretrain = lone(method(views=turned, alignment=alignment), tmp_path).eval()
        torch.manual_seed(1)
        terms.append(token_term(pretrain, batch)[0])
    assert not torch.allclose(*terms)


def test_local_views_are_compared_with_both_global_ones(tmp_path):
    """In a whole step, and never with the teacher: it sees none."""
    views = TwoViews(local_views=3, local_size=16)
    pretrain = lone(method(views=views, alignment="regress", masking=Masking(share=0.0)), tmp_path)
    logged, taken = {}, []
    pretrain.log_losses = lambda terms, loss: logged.update(terms)
    take = views.take
    views.take = lambda image: taken.append(take(image)) or taken[-1]
    pretrain.eval().training_step(next(batches(1)), 0).backward()
    ((globals_, locals_),) = taken
    assert [view.image.shape[-1] for view in locals_] == [16, 16, 16]

    def points(branch, view):
        tokens = branch.backbone.encode(view.image).pooled
        return pretrain.keypoints(branch.token_head, tokens, view.matrix)

    targets = [points(pretrain.teacher, view) for view in globals_]
    guesses = [points(pretrain.student, view) for view in globals_ + locals_]
    pairs = [(0, 1), (1, 0), *((i, j) for i in range(2) for j in range(2, 5))]
    each = [nn.functional.smooth_l1_loss(guesses[j], targets[i], beta=0.1) for i, j in pairs]
    torch.testing.assert_close(logged["tokens"], torch.stack(each).mean())
    assert pretrain.student.backbone.model.cls_token.grad.norm() > 0


def test_biases_and_vectors_are_not_decayed(tmp_path):
    pretrain = method(weight_decay=(0.04, 0.4))
    weights = []
    optimizer_step = pretrain.optimizer_step

    def note(*args, **kwargs):
        optimizer_step(*args, **kwargs)
        weights.append([group["weight_decay"] for group in args[2].param_groups])

    pretrain.optimizer_step = note
    run = trainer(tmp_path, max_epochs=1)
    run.fit(pretrain, datamodule=Images())
    decayed, plain = (set(group["params"]) for group in run.optimizers[0].param_groups)
    names = {name: p for name, p in pretrain.named_parameters() if p.requires_grad}
    assert decayed | plain == set(names.values())
    assert not decayed & plain
    for name, p in names.items():
        assert (p in plain) == (name.endswith(("bias", "mask_token")) or ".norm" in name), name
    expected = [0.4 - 0.36 * (1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)]
    assert [w[0] for w in weights] == pytest.approx(expected)
    assert [w[1] for w in weights] == [0.0] * 6


@pytest.mark.parametrize("alignment", ["proto", "invariant", "regress"])
@pytest.mark.parametrize("targets", ["centre", "sinkhorn"])
def test_every_learned_parameter_gets_a_gradient_and_the_teacher_none(alignment, targets, tmp_path):
    weights = HandMIMPretrainWeights(koleo=0.1)
    pretrain = lone(
        method(alignment=alignment, teacher=Teacher(targets=targets), weights=weights), tmp_path
    )
    pretrain.training_step(next(batches(1)), 0).backward()
    unreached = {n for n, p in pretrain.named_parameters() if p.requires_grad and p.grad is None}
    assert not unreached
    assert pretrain.mask_token.grad.norm() > 0
    assert all(p.grad is None for p in pretrain.teacher.parameters())


def test_the_terms_of_a_step_are_what_loops_over_patches_and_pairs_give(tmp_path, monkeypatch):
    """In the second epoch, with a teacher that differs from the student."""
    weights = HandMIMPretrainWeights(patches=0.7, pixels=0.3, koleo=0.2)
    recipe = Teacher(temperature=(0.04, 0.08), warmup_epochs=3)
    pretrain = lone(method(weights=weights, teacher=recipe), tmp_path).eval()
    pretrain.trainer.fit_loop.epoch_progress.current.completed = 1
    torch.manual_seed(5)
    with torch.no_grad():
        for p in pretrain.student.parameters():
            p.add_(0.1 * p.std() * torch.randn_like(p) if p.numel() > 1 else 0)
        pretrain.patch_centre.value.copy_(0.01 * torch.randn(16))
    logged, views, masks = {}, [], []
    pretrain.log_losses = lambda terms, loss: logged.update(terms, loss=loss)
    take = pretrain.views.take
    pretrain.views.take = lambda image: views.append(take(image)) or views[-1]
    draw = pretraining.draw_masks
    monkeypatch.setattr(pretraining, "draw_masks", lambda *a: masks.append(draw(*a)) or masks[-1])
    pretrain.training_step(next(batches(1)), 0)

    images = torch.cat([view.image for view in views[0][0]])
    mask = masks[0].mask
    teacher, student = pretrain.teacher, pretrain.student
    seen = teacher.backbone.encode(images)
    guessed = encode_masked(student.backbone, images, mask, pretrain.mask_token)
    patch_terms, errors = [], []
    for i, image in enumerate(images):
        entropies = []
        for n in mask[i].nonzero()[:, 0].tolist():
            y, x = divmod(n, 4)
            (score,) = teacher.patch_head.score(
                teacher.patch_head.embed(seen.grid[i, :, y, x][None])
            )
            token = guessed.grid[i, :, y, x][None]
            (logits,) = student.patch_head.score(student.patch_head.embed(token))
            target = ((score - pretrain.patch_centre.value) / 0.06).softmax(0)
            entropies.append(-(target * (logits / 0.1).log_softmax(0)).sum())
            patch = image[:, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8]
            errors.append((pretrain.decoder(token)[0].view(3, 8, 8) - patch).abs().mean())
        patch_terms.append(torch.stack(entropies).mean() if entropies else torch.zeros(()))
    assert 0 < sum(bool(len(m.nonzero())) for m in mask) < len(mask)  # some are whole
    spread = []
    for tokens in nn.functional.normalize(guessed.pooled, dim=1).chunk(2):
        apart = torch.cdist(tokens, tokens) + 9 * torch.eye(len(tokens))
        spread.append(-(apart.amin(1) + 1e-8).log().mean())
    expected = {
        "patches": torch.stack(patch_terms).mean(),
        "pixels": torch.stack(errors).mean(),
        "koleo": torch.stack(spread).mean(),
    }
    for name, value in expected.items():
        torch.testing.assert_close(logged[name], value, msg=name)
    sum_of_terms = logged["tokens"] + sum(getattr(weights, n) * x for n, x in expected.items())
    torch.testing.assert_close(logged["loss"], sum_of_terms)


def test_a_batch_without_masked_patches_trains(tmp_path):
    pretrain = lone(method(masking=Masking(share=0.0)), tmp_path)
    loss = pretrain.training_step(next(batches(1)), 0)
    loss.backward()
    assert torch.isfinite(loss)
    assert pretrain.mask_token.grad is not None


def test_no_label_is_read_in_training(tmp_path):
    pretrain = lone(method(), tmp_path)
    batch = next(batches(1))
    nan = HandBatch(*(torch.full_like(field.float(), float("nan")) for field in batch))
    torch.manual_seed(3)
    loss = pretrain.training_step(nan._replace(image=batch.image), 0)
    torch.manual_seed(3)
    fresh = lone(method(), tmp_path)
    torch.manual_seed(3)
    assert loss == fresh.training_step(batch, 0)


def test_patches_come_in_the_order_of_tokens():
    image = torch.zeros(2, 3, 16, 24)
    image[1, :, 8:, 16:] = 1  # the last patch of the second view
    patches = patchify(image, 8)
    assert patches.shape == (12, 192)
    assert patches.mean(1).nonzero().tolist() == [[11]]


def test_centre_takes_all_patches_and_all_class_tokens(tmp_path):
    pretrain = lone(method(views=TwoViews(geometry=STILL, colours=PLAIN)), tmp_path)
    batch = next(batches(1))
    pretrain.training_step(batch, 0)
    for centre in (pretrain.token_centre, pretrain.patch_centre):
        centre.step()
    head = pretrain.teacher.token_head
    images = torch.cat([batch.image, batch.image])
    seen = pretrain.teacher.backbone.encode(images)
    every = head.score(head.embed(seen.grid.flatten(2).transpose(1, 2).flatten(0, 1)))
    torch.testing.assert_close(pretrain.patch_centre.value, 0.1 * every.mean(0))
    points = head.points(head.embed(seen.pooled)).flatten(1)
    torch.testing.assert_close(pretrain.token_centre.value, 0.1 * head.score(points).mean(0))


def test_teacher_follows_by_the_average():
    pretrain = method()
    before = copy.deepcopy(pretrain.teacher)
    with torch.no_grad():
        for p in pretrain.student.parameters():
            p.add_(1)
    pretrain.follow(0.9)
    for old, new in zip(before.parameters(), pretrain.teacher.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.1)


def conv_method(**options):
    torch.manual_seed(0)
    backbone = TimmBackbone("vit_tiny_patch16_224", 32, stem="conv", options={"depth": 1})
    return HandMIMPretrain(
        backbone, TwoViews(), prototypes=16, hidden=32, shared_head=False, standardise=True,
        **options,
    )  # fmt: skip


def test_a_training_begins_in_the_modes_that_the_method_wants(tmp_path):
    """Lightning leaves every layer in the mode that it finds it in."""
    pretrain = conv_method(masking=Masking(share=1.0))
    norm = pretrain.teacher.backbone.model.patch_embed.stages[0][1]
    before = norm.running_mean.clone()
    trainer(tmp_path, max_steps=1).fit(pretrain, batches(1))
    assert not pretrain.teacher.token_head.training
    assert norm.num_batches_tracked == 1
    assert not torch.equal(norm.running_mean, before)


def test_batch_norms_of_the_teacher_keep_statistics_of_whole_images(tmp_path):
    pretrain = lone(conv_method(masking=Masking(share=1.0)), tmp_path).train()
    images = []
    encode = pretrain.teacher.backbone.encode
    pretrain.teacher.backbone.encode = lambda image: images.append(image) or encode(image)
    pretrain.training_step(next(batches(1)), 0)
    norm = pretrain.teacher.backbone.model.patch_embed.stages[0][1]
    seen = pretrain.teacher.backbone
    first = seen.model.patch_embed.stages[0][0]((images[0] - seen.mean) / seen.std)
    torch.testing.assert_close(norm.running_mean, 0.1 * first.mean((0, 2, 3)))
    student = pretrain.student.backbone.model.patch_embed.stages[0][1]
    assert not torch.allclose(student.running_mean, norm.running_mean)
    before = norm.running_mean.clone()
    pretrain.follow(0.5)
    assert torch.equal(norm.running_mean, before)


@pytest.mark.parametrize("alignment", ["proto", "regress", "invariant"])
def test_points_that_are_compared_themselves_are_not_standardised(alignment):
    branch = conv_method(alignment=alignment).student
    assert isinstance(branch.patch_head.mlp[-1], nn.BatchNorm1d)
    assert isinstance(branch.token_head.mlp[-1], nn.BatchNorm1d) == (alignment != "regress")


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_standardised_heads_train_with_and_without_masked_patches(share, tmp_path):
    pretrain = lone(conv_method(masking=Masking(share=share)), tmp_path).train()
    loss = pretrain.training_step(next(batches(1, size=1)), 0)
    loss.backward()
    assert torch.isfinite(loss)


@pytest.mark.parametrize("alignment", ["proto", "regress"])
@pytest.mark.parametrize("absent", ["tokens", "patches", "pixels"])
def test_what_a_removed_term_leaves_idle_is_frozen(alignment, absent, tmp_path):
    """Else processes of a distributed training would wait for gradients that never come."""
    weights = HandMIMPretrainWeights(**{absent: 0.0})
    pretrain = lone(conv_method(alignment=alignment, weights=weights), tmp_path).train()
    pretrain.training_step(next(batches(1)), 0).backward()
    unreached = [n for n, p in pretrain.named_parameters() if p.requires_grad and p.grad is None]
    assert not unreached


def test_teacher_and_schedules_move_once_per_optimizer_step(tmp_path, monkeypatch):
    """And the centres, by the mean over the batches of a step."""
    pretrain, momenta = method(teacher=Teacher(momentum=0.5)), []
    monkeypatch.setattr(pretrain, "follow", momenta.append)
    centres = [pretrain.token_centre, pretrain.patch_centre]
    added, seen = [[], []], [[], []]
    for i, centre in enumerate(centres):
        note = lambda mean, i=i, add=centre.add: (added[i].append(mean.clone()), add(mean))  # noqa: E731
        monkeypatch.setattr(centre, "add", note)

    class After(pl.Callback):
        def on_train_batch_end(self, *args):
            for i, centre in enumerate(centres):
                seen[i].append(centre.value.clone())

    trainer(tmp_path, accumulate_grad_batches=3, callbacks=[After()]).fit(
        pretrain, datamodule=Images()
    )
    assert momenta == pytest.approx([0.5, 0.5732233, 0.75, 0.9267767])
    for means, values in zip(added, seen, strict=True):
        expected = torch.zeros(16)
        for i, value in enumerate(values):
            if i % 3 == 2:
                expected = 0.9 * expected + 0.1 * torch.stack(means[i - 2 : i + 1]).mean(0)
            torch.testing.assert_close(value, expected)


def test_each_gradient_is_clipped_by_its_own_norm(tmp_path):
    pretrain = lone(method(clip=3.0, freeze_prototypes=0), tmp_path)
    for i, p in enumerate(pretrain.student.parameters()):
        p.grad = torch.full_like(p, float(i % 2) * 100 / p.numel() ** 0.5 + 1e-3)
    before = [p.grad.clone() for p in pretrain.student.parameters()]
    pretrain.on_before_optimizer_step(torch.optim.SGD(pretrain.parameters(), 1.0))
    for grad, p in zip(before, pretrain.student.parameters(), strict=True):
        scale = min(1.0, 3.0 / (grad.norm().item() + 1e-6))
        torch.testing.assert_close(p.grad, grad * scale)


def test_prototypes_rest_in_the_first_epoch(tmp_path):
    pretrain = method(freeze_prototypes=1)
    before = pretrain.student.token_head.prototypes.weight.clone()
    other = pretrain.student.token_head.mlp[0].weight.clone()
    trainer(tmp_path, max_epochs=1).fit(pretrain, datamodule=Images())
    assert torch.equal(before, pretrain.student.token_head.prototypes.weight)
    assert not torch.equal(other, pretrain.student.token_head.mlp[0].weight)


def test_prototypes_move_afterwards_and_each_step_has_its_rate_and_decay(tmp_path):
    pretrain, seen = method(freeze_prototypes=1, lr=0.01, weight_decay=(0.04, 0.4)), []
    before = pretrain.student.token_head.prototypes.weight.clone()

    class Notes(pl.Callback):
        def on_train_batch_end(self, trainer, *args):
            (optimizer,) = trainer.optimizers
            seen.append([(group["lr"], group["weight_decay"]) for group in optimizer.param_groups])

    trainer(tmp_path, max_epochs=2, callbacks=[Notes()]).fit(pretrain, datamodule=Images(5))
    assert not torch.equal(before, pretrain.student.token_head.prototypes.weight)
    # Of ten steps one warms up, from 0; nine fall to 1e-6 by half a cosine.
    falling = [1e-6 + (0.01 - 1e-6) * (1 + math.cos(math.pi * i / 9)) / 2 for i in range(9)]
    decays = [0.4 - 0.36 * (1 + math.cos(math.pi * i / 10)) / 2 for i in range(10)]
    for (matrices, vectors), rate, decay in zip(seen, [0.0, *falling], decays, strict=True):
        assert matrices == pytest.approx((rate, decay), abs=1e-9)
        assert vectors == pytest.approx((rate, 0.0), abs=1e-9)


def test_resumed_training_equals_the_uninterrupted_bit_for_bit(tmp_path):
    """In the middle of an epoch: weights, teacher, centres, schedules, masks and views.

    Every batch is the same one, for which comes next is the data module's business.
    """
    data = Images()
    data.batches = data.batches[:1] * 6

    class StopAt(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 4:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    whole = method()
    trainer(tmp_path, callbacks=[StopAt()]).fit(whole, datamodule=data)
    rest = method()
    torch.manual_seed(99)
    trainer(tmp_path).fit(
        rest, datamodule=data, ckpt_path=tmp_path / "middle.ckpt", weights_only=False
    )
    different = [
        name
        for name, value in whole.state_dict().items()
        if not torch.equal(value, rest.state_dict()[name])
    ]
    assert not different


def test_monitors_are_logged(tmp_path):
    pretrain = method()
    run = trainer(tmp_path, max_epochs=1)
    run.fit(pretrain, datamodule=Images())
    names = {
        "masked", "token_std", "token_entropy", "token_divergence", "keypoint_rank",
        "patch_entropy", "patch_divergence", "tokens", "patches", "pixels", "loss",
    }  # fmt: skip
    assert names <= {n.removeprefix("train/") for n in run.logged_metrics}
    assert {f"val/{name}" for name in pretrain.validated} <= set(run.callback_metrics)


def test_a_sanity_check_does_not_use_up_the_untrained_network(tmp_path):
    """What it logs is thrown away."""
    run = trainer(tmp_path, max_epochs=1)
    run.num_sanity_val_steps = 2
    run.fit(method(), datamodule=Images())
    assert "val/probe_untrained" in run.callback_metrics


def test_points_in_a_shared_standardised_head_are_refused():
    with pytest.raises(UserError, match="shared_head=false"):
        method(alignment="regress", standardise=True, shared_head=True)
    with pytest.raises(UserError, match="shared_head=false"):
        method(alignment="proto", standardise=True, shared_head=True)


def test_a_pretraining_predicts_no_hands(tmp_path):
    with pytest.raises(UserError, match=r"reconstructs no hands: .*export-backbone"):
        trainer(tmp_path).predict(method(), DataLoader(list(batches(1)), batch_size=None))


def test_a_single_prototype_is_refused():
    backbone = TimmBackbone("vit_tiny_patch16_224", 32, options={"depth": 1})
    with pytest.raises(UserError, match="single prototype"):
        HandMIMPretrain(backbone, TwoViews(), prototypes=1)


def test_prototypes_that_would_never_learn_are_told(tmp_path, caplog):
    trainer(tmp_path, max_epochs=1).fit(method(freeze_prototypes=1), datamodule=Images(1))
    assert "prototypes rest for 1 of 1 epochs" in caplog.text


def test_local_views_are_smaller_than_global_ones():
    image = torch.rand(1, 3, 64, 64)
    _, (local,) = TwoViews(local_views=1).take(image)
    assert local.image.shape[-1] == 32
    assert TwoViews(local_views=1).take(torch.rand(1, 3, 224, 224))[1][0].image.shape[-1] == 96
    with pytest.raises(UserError, match=r"local_size is 96, not less than .* 64"):
        TwoViews(local_views=1, local_size=96).take(image)


def test_views_that_no_patch_fits_are_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match=r"do not tile images of 7 x 7 px"):
        lone(method(views=TwoViews(size=7)), tmp_path).training_step(next(batches(1)), 0)


def test_an_untrained_network_normalises_by_what_it_is_shown():
    backbone = TimmBackbone("vit_tiny_patch16_224", 32, stem="conv", options={"depth": 1})
    untrained = pretraining._untrained(backbone)
    image = 5 + 3 * torch.rand(8, 3, 32, 32)
    found = untrained.encode(image).grid
    torch.testing.assert_close(found, copy.deepcopy(backbone).train().encode(image).grid)
    assert not torch.allclose(found, backbone.eval().encode(image).grid, atol=0.1)


def test_class_tokens_keep_full_precision_under_autocast():
    pretrain = method()
    matrices = torch.eye(3).expand(4, 3, 3)
    head = pretrain.student.token_head
    tokens = torch.randn(4, head.mlp[0].in_features)
    with torch.autocast("cpu", torch.bfloat16):
        found = pretrain.keypoints(head, tokens, matrices)
    assert torch.equal(found, pretrain.keypoints(head, tokens, matrices))


def test_masks_do_not_exceed_what_is_gathered():
    for seed in range(20):
        torch.manual_seed(seed)
        masks = draw_masks(torch.zeros(8, 3, 32, 32), 8, Masking())
        assert (masks.weight > 0).sum() == masks.mask.sum()
        assert masks.weight.sum().item() == pytest.approx(
            distil.patch_weights(masks.mask).sum().item()
        )


@pytest.mark.parametrize("normalise", [False, True])
def test_masked_patches_are_filled_in_from_the_decoder(normalise):
    (batch,) = batches(1)
    pretrain = method(normalise_pixels=normalise).eval()
    nn.init.zeros_(pretrain.decoder.weight)
    nn.init.constant_(pretrain.decoder.bias, 0.25)  # whatever the student sees
    mask = torch.zeros(4, 16)
    mask[:, 5] = 1  # second row, second column of patches of 8 pixels
    filled = pretrain.fill_in(batch.image, mask)
    patch = batch.image[:, :, 8:16, 8:16]
    expected = torch.full_like(patch, 0.25)
    if normalise:
        mean, spread = (f(patch.flatten(1), 1) for f in (torch.mean, torch.std))
        expected = (mean + 0.25 * spread).view(-1, 1, 1, 1).expand_as(patch)
    torch.testing.assert_close(filled[:, :, 8:16, 8:16], expected, rtol=1e-4, atol=1e-4)
    around = torch.ones(32, 32, dtype=torch.bool)
    around[8:16, 8:16] = False
    assert torch.equal(filled[:, :, around], batch.image[:, :, around])


def test_views_are_whole_under_autocast():
    image, views = torch.rand(4, 3, 32, 32), TwoViews(local_views=1, local_size=16)
    seen = []
    for half in (True, False):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            globals_, locals_ = views.take(image)
        seen.append([view.image for view in globals_ + locals_])
    for half, full in zip(*seen, strict=True):
        assert half.dtype == torch.float32
        assert torch.equal(half, full)


ALL = Colours(blur=(0.5, 0.5), solarize=(0.5, 0.5))


def test_a_share_of_the_views_is_blurred_as_by_scipy(monkeypatch):
    monkeypatch.setattr("handrec.data.views._BLUR", (1.3, 1.3))
    image = torch.rand(400, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    found = TwoViews(colours=replace(PLAIN, blur=(0.3, 0.0))).looks[0](image)
    changed = (found != image).flatten(1).any(1)
    assert changed.float().mean() == pytest.approx(0.3, abs=0.06)
    expected = gaussian_filter(image[changed].double().numpy(), (0, 0, 1.3, 1.3), mode="mirror")
    np.testing.assert_allclose(found[changed].numpy(), expected, atol=2e-5)


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (1e-9, 0), (0.5, 2), (1.0, 4)])
def test_only_pictures_that_are_to_be_blurred_are(share, count, monkeypatch):
    seen = []
    monkeypatch.setattr(views, "blur", lambda image: seen.append(len(image)) or image)
    torch.manual_seed(1)
    TwoViews(colours=replace(PLAIN, blur=(share, 0.0))).looks[0](torch.rand(4, 3, 8, 8))
    assert sum(seen) == count


def test_views_are_blurred_by_different_widths():
    dot = torch.zeros(200, 3, 31, 31)
    dot[:, :, 15, 15] = 1
    torch.manual_seed(0)
    left = blur(dot)[:, 0, 15, 15]  # of a wide Gaussian 1 / (2 pi sigma^2)
    assert left.max() > 0.999
    assert left.min() == pytest.approx(1 / (2 * math.pi * 2.0**2), rel=0.1)


def test_a_share_of_the_views_is_solarized_as_by_pillow():
    image = torch.randint(256, (300, 3, 8, 8), generator=torch.Generator().manual_seed(0)) / 255
    torch.manual_seed(0)
    found = TwoViews(colours=replace(PLAIN, solarize=(0.0, 0.3))).looks[1](image)
    changed = (found != image).flatten(1).any(1)
    assert changed.float().mean() == pytest.approx(0.3, abs=0.07)
    for before, after in zip(image[changed], found[changed], strict=True):
        picture = Image.fromarray((255 * before).round().byte().permute(1, 2, 0).numpy())
        expected = np.asarray(ImageOps.solarize(picture)).transpose(2, 0, 1) / 255
        np.testing.assert_allclose(after.numpy(), expected, atol=1e-6)


class FromHost(TorchDispatchMode):
    """Notes what is made of Python's numbers, and what takes tensors from the CPU elsewhere."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        leaves = tree_leaves((args, kwargs, found))
        devices = {x.device.type for x in leaves if isinstance(x, torch.Tensor)}
        if "lift_fresh" in str(func) or {"cpu"} < devices:
            self.names.append(str(func))
        return found


def test_colours_copy_nothing_to_the_device_in_a_step():
    look, image = TwoViews(colours=ALL).looks[0], torch.rand(4, 3, 8, 8, device="meta")
    look(image)  # constants go there once
    with FromHost() as mode:
        look(image)
        assert not mode.names
        torch.rand(4).to("meta")  # that is noted
    assert mode.names


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_views_do_not_make_the_host_wait():
    views = TwoViews(colours=ALL, local_views=1, local_size=16).cuda()
    image = torch.rand(4, 3, 32, 32, device="cuda")
    views.take(image)
    torch.cuda.set_sync_debug_mode("error")
    try:
        views.take(image)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_r_s16_p8_224"])
def test_only_a_vit_is_pretrained(name):
    with pytest.raises(UserError, match=r"needs a ViT of timm's"):
        HandMIMPretrain(TimmBackbone(name, 32), TwoViews())


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "vit_wee_patch16_reg1_gap_256"])
def test_vits_of_other_families_are_pretrained(name, tmp_path):
    backbone = TimmBackbone(name, 32, options={"depth": 1})
    pretrain = lone(HandMIMPretrain(backbone, TwoViews(), prototypes=16, hidden=32), tmp_path)
    pretrain.training_step(next(batches(1)), 0).backward()
    assert pretrain.mask_token.grad.norm() > 0


NAN = float("nan")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Geometry(scale=(1.3, 0.8)), "Geometry: scale goes from .*, not from 1.3 to 0.8"),
        (lambda: Teacher(temperature=(0.04, NAN)), "Teacher: last_temperature must .* not nan"),
        (lambda: method(weight_decay=(0.04, NAN)), "last_weight_decay must be .* not nan"),
        (lambda: Geometry(scale=(0.8, NAN)), "Geometry: greatest_scale must be above 0, not nan"),
        (lambda: Colours(jitter=(-0.4, 0.4, 0.2, 0.1)), "Colours: jitter of brightness .* -0.4"),
        (lambda: Colours(jitter=(0.4, 0.4, 0.2, NAN)), "Colours: jitter of hue .* not nan"),
        (lambda: Colours(jitter_share=1.1), "Colours: jitter_share must be 0 to 1, not 1.1"),
        (lambda: Colours(grey=-0.1), "Colours: grey must be 0 to 1"),
        (lambda: Colours(blur=(0.0, 2.0)), "Colours: blur of view 2 must be 0 to 1, not 2"),
        (lambda: Colours(solarize=(NAN, 0.0)), "Colours: solarize of view 1 must be 0 to 1"),
    ],
)
def test_views_that_make_no_sense_are_refused(build, message):
    with pytest.raises(UserError, match=message):
        build()
