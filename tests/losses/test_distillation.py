import math

import pytest
import torch

from handrec.losses import distillation as distil

pytestmark = pytest.mark.filterwarnings("error")


def rising(*shape):
    return torch.arange(math.prod(shape), dtype=torch.float64).view(*shape)


TOKENS = torch.sin(0.1 * rising(4, 4))
STUDENT_TOKENS = torch.cos(0.2 * rising(6, 4))
PATCHES = torch.sin(0.05 * rising(4, 4, 4))
STUDENT_PATCHES = torch.cos(0.07 * rising(4, 4, 4))
MASK = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 1]], dtype=torch.float64)


def centre():
    return distil.Centre(4).double()


def token_term(middle, views):
    targets = distil.teacher_targets(TOKENS, middle.value, 0.04).view(2, 2, 4)
    return distil.class_loss(targets, STUDENT_TOKENS[: 2 * views].view(views, 2, 4), 0.1)


def patch_term(middle):
    targets = distil.teacher_targets(PATCHES, middle.value, 0.07).flatten(0, 1)
    weight = distil.patch_weights(MASK).flatten()
    return distil.patch_loss(targets, STUDENT_PATCHES.flatten(0, 1), weight, 0.1)


def test_golden_values_of_ibot_over_two_steps():
    tokens, patches = centre(), centre()
    assert token_term(tokens, 3).item() == pytest.approx(2.2922665439, abs=1e-9)
    assert token_term(tokens, 2).item() == pytest.approx(3.6417, abs=5e-5)
    assert patch_term(patches).item() == pytest.approx(1.2904097169, abs=1e-9)
    for middle, mean in ((tokens, TOKENS.mean(0)), (patches, PATCHES.mean((0, 1)))):
        middle.add(mean)
        middle.step()
    assert tokens.value.tolist() == pytest.approx(
        [0.0509703380, 0.0581536013, 0.0647558130, 0.0707110060], abs=1e-9
    )
    assert patches.value.tolist() == pytest.approx(
        [0.0624208363, 0.0625640625, 0.0625509111, 0.0623814151], abs=1e-9
    )
    assert token_term(tokens, 3).item() == pytest.approx(2.2970011483, abs=1e-9)
    assert patch_term(patches).item() == pytest.approx(1.2905170142, abs=1e-9)


def test_a_centre_moves_by_all_batches_of_a_step():
    """By one alone to the bit as before; a training that goes on between them loses nothing."""
    torch.manual_seed(0)
    means, start = torch.randn(3, 4), torch.randn(4)
    one, many = distil.Centre(4), distil.Centre(4)
    for middle in (one, many):
        middle.value.copy_(start)
        middle.step()  # nothing was added
        assert torch.equal(middle.value, start)
    one.add(means[0])
    one.step()
    assert torch.equal(one.value, start.lerp(means[0], 1 - one.momentum))
    many.add(means[0])
    many.add(means[1])
    rest = distil.Centre(4)
    rest.load_state_dict(many.state_dict())
    rest.add(means[2])
    assert torch.equal(rest.value, start)
    rest.step()
    torch.testing.assert_close(rest.value, 0.9 * start + 0.1 * means.mean(0))
    rest.step()
    torch.testing.assert_close(rest.value, 0.9 * start + 0.1 * means.mean(0))


def test_centres_of_older_checkpoints_load():
    middle = distil.Centre(4)
    middle.add(torch.ones(4))
    middle.load_state_dict({"value": torch.full((4,), 2.0)})
    assert torch.equal(middle.value, torch.full((4,), 2.0))
    assert not middle.total.any()
    assert not middle.count


def test_golden_value_with_an_image_without_masked_patches():
    """lightly's own vector: three images with 2, 1 and 0 masked patches."""
    teacher = torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]])
    student = torch.tensor([[0.7, 0.8], [0.9, 1.0], [1.1, 1.2]])
    weight = torch.tensor([0.5, 0.5, 1.0]) / 3
    targets = distil.teacher_targets(teacher, torch.zeros(2), 0.1)
    assert distil.patch_loss(targets, student, weight, 0.2).item() == pytest.approx(
        0.4057, abs=5e-5
    )


def test_masked_patches_alone_give_the_loss_of_all():
    rows, chosen = distil.gather_masked(MASK, 10)
    weight = distil.patch_weights(MASK).flatten()[rows] * chosen
    targets = distil.teacher_targets(PATCHES, torch.zeros(4).double(), 0.07).flatten(0, 1)
    term = distil.patch_loss(targets[rows], STUDENT_PATCHES.flatten(0, 1)[rows], weight, 0.1)
    torch.testing.assert_close(term, patch_term(centre()))


def test_no_masked_patch_costs_nothing():
    rows, chosen = distil.gather_masked(torch.zeros(2, 4), 1)
    logits = torch.randn(1, 3, requires_grad=True)
    term = distil.patch_loss(torch.full((1, 3), 1 / 3), logits, chosen, 0.1)
    term.backward()
    assert rows.shape == (1,)
    assert term.item() == 0
    assert not logits.grad.any()


def test_sinkhorn_uses_every_prototype_alike():
    torch.manual_seed(0)
    logits = torch.randn(64, 8).tanh()
    targets = distil.sinkhorn_knopp(logits, 0.2, iterations=50)
    torch.testing.assert_close(targets.sum(1), torch.ones(64))
    torch.testing.assert_close(targets.sum(0), torch.full((8,), 8.0), rtol=1e-3, atol=0)
    # Scaling rows and columns leaves the ratios of 2 x 2 minors alone.
    minor = lambda q: q[0, 0] * q[1, 1] / (q[0, 1] * q[1, 0])  # noqa: E731
    torch.testing.assert_close(minor(targets), minor((logits / 0.2).exp()), rtol=1e-3, atol=0)


@pytest.mark.parametrize("temperature", [0.01, 0.04])
def test_sinkhorn_balances_near_a_collapse(temperature):
    """All rows near one prototype and hardly any near the others, at targets as sharp as ours."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.full((128, 16), -0.5) + 0.05 * torch.randn(128, 16, generator=generator)
    logits[:, 3] = 0.9
    targets = distil.sinkhorn_knopp(logits, temperature)
    scaled = ((logits.double() - 1) / temperature).log_softmax(1)
    for _ in range(3):  # written out in logarithms
        scaled = scaled - scaled.logsumexp(0)
        scaled = scaled - scaled.logsumexp(1, keepdim=True)
    torch.testing.assert_close(targets, scaled.exp().float())
    assert (targets.argmax(1) == 3).sum() < 64


def test_sinkhorn_leaves_fillers_out():
    torch.manual_seed(0)
    logits = torch.randn(10, 4).tanh()
    weight = torch.tensor([1.0] * 7 + [0.0] * 3)
    padded = distil.sinkhorn_knopp(logits, 0.1, weight=weight)
    torch.testing.assert_close(padded[:7], distil.sinkhorn_knopp(logits[:7], 0.1))
    assert not padded[7:].any()


def test_koleo_golden_value():
    tokens = torch.tensor([[1, 0], [0.8, 0.6], [0, 2]])
    assert distil.koleo(tokens).item() == pytest.approx(0.3426, abs=5e-5)


def test_koleo_and_reconstruction_keep_full_precision_under_autocast():
    """Neighbours of nearly equal distance, and targets standardised from halves."""
    torch.manual_seed(0)
    tokens = torch.randn(1, 64) + 0.02 * torch.randn(32, 64)
    predicted, patches, weight = torch.randn(8, 48), torch.rand(8, 48).bfloat16(), torch.ones(8)
    with torch.autocast("cpu", torch.bfloat16):
        found = distil.koleo(tokens)
        error = distil.reconstruction_loss(predicted, patches, weight, normalise=True)
    assert torch.equal(found, distil.koleo(tokens))
    whole = distil.reconstruction_loss(predicted, patches.float(), weight, normalise=True)
    assert torch.equal(error, whole)
    assert error.dtype == found.dtype == torch.float32


def test_terms_have_the_gradients_of_finite_differences():
    torch.manual_seed(0)
    targets = torch.rand(5, 4, dtype=torch.float64).softmax(-1)
    weight = torch.tensor([1.0, 0.5, 0, 0.2, 0.3], dtype=torch.float64)
    logits = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: distil.patch_loss(targets, x, weight, 0.5), logits)
    views = logits[:4].unflatten(0, (2, 2)).detach().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: distil.class_loss(targets[:4].unflatten(0, (2, 2)), x, 0.5), views
    )
    points = torch.randn(2, 4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: distil.spread_penalty(x, floor=3.0), points)


def test_rows_are_compared_in_blocks_as_all_at_once(monkeypatch):
    """Against torch's own operations; some rows are fillers, whose targets sum to 0."""
    monkeypatch.setattr(distil, "_BLOCK", 3 * 8)
    torch.manual_seed(0)
    scores, middle = torch.randn(2, 5, 8), torch.randn(8)
    logits = torch.randn(2, 5, 8, requires_grad=True)
    plain = ((scores - middle) / 0.3).softmax(-1)
    targets = distil.teacher_targets(scores, middle, 0.3)
    torch.testing.assert_close(targets, plain)
    targets[0, 3] = plain[0, 3] = 0
    weight = torch.rand(2, 5)
    expected = -(plain * (logits / 0.2).log_softmax(-1)).sum(-1)
    found = distil.cross_entropy(targets, logits, 0.2)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad((x * weight).sum(), logits) for x in (found, expected)]
    torch.testing.assert_close(*gradients)
    assert not distil.cross_entropy(targets, logits.detach(), 0.2).requires_grad


def test_one_row_and_none():
    one, none = torch.randn(8), torch.randn(0, 8)
    targets = distil.teacher_targets(one, torch.zeros(8), 0.3)
    torch.testing.assert_close(targets, (one / 0.3).softmax(-1))
    expected = -(targets * (one / 0.2).log_softmax(-1)).sum()
    torch.testing.assert_close(distil.cross_entropy(targets, one, 0.2), expected)
    assert distil.cross_entropy(none, none, 0.2).shape == (0,)


def test_reconstruction_is_a_mean_over_masked_pixels():
    patches = torch.rand(3, 12)
    predicted = patches + torch.tensor([0.1, 0.3, 9.0])[:, None]
    term = distil.reconstruction_loss(predicted, patches, torch.tensor([0.2, 0.7, 0.0]))
    assert term.item() == pytest.approx(0.2, abs=1e-6)


def test_standardised_pixels_ignore_brightness_and_contrast():
    patches, weight = torch.rand(3, 12), torch.ones(3)
    predicted = torch.randn(3, 12)
    terms = [
        distil.reconstruction_loss(predicted, x, weight, normalise=True)
        for x in (patches, 0.2 + 0.5 * patches)
    ]
    torch.testing.assert_close(*terms, rtol=1e-3, atol=1e-3)


def test_spread_penalty_sees_points_at_one_place():
    apart = 2 * torch.rand(2, 64, 2)
    assert distil.spread_penalty(apart).item() == 0
    together = torch.full((2, 64, 2), 0.3)
    assert distil.spread_penalty(together).item() == pytest.approx(0.4, abs=2e-4)


def test_monitors_tell_collapse_from_health():
    collapsed = torch.tensor([1.0, 0, 0, 0]).expand(6, 4)
    spread = torch.eye(4).repeat(3, 1)
    assert distil.entropy(collapsed).item() == pytest.approx(0, abs=1e-5)
    assert distil.divergence_from_uniform(collapsed).item() == pytest.approx(math.log(4), abs=1e-5)
    assert distil.divergence_from_uniform(spread).item() == pytest.approx(0, abs=1e-5)
    line = torch.linspace(0, 1, 9)[:, None] * torch.ones(1, 5)
    assert distil.effective_rank(line).item() == pytest.approx(1, abs=1e-3)
    cross = torch.cat([torch.eye(5), -torch.eye(5)])
    assert distil.effective_rank(cross).item() == pytest.approx(5, abs=1e-3)
