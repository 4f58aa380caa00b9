"""S2HAND's photometric losses against loops and other libraries."""

import kornia
import numpy as np
import pytest
import torch

from handrec.hand.openhand import OpenHand
from handrec.losses import photometric as loss
from handrec.losses.photometric import Laplacian


@pytest.fixture
def pictures():
    generator = torch.Generator().manual_seed(0)
    rendered, image = torch.rand(2, 3, 3, 16, 14, generator=generator, dtype=torch.float64)
    mask = (torch.rand(3, 1, 16, 14, generator=generator) > 0.5).double()
    return rendered, image, mask, torch.tensor([0.9, 0.2, 0.5], dtype=torch.float64)


def weighted(values, k):
    return sum(v * x**2 for v, x in zip(values, k.tolist(), strict=True)) / float((k**2).sum())


def test_masked_means_are_the_loops(pictures):
    rendered, image, mask, k = pictures
    pixels, colours, structure = [], [], []
    similar = loss.ssim_map(rendered, image)
    for b in range(3):
        on = mask[b, 0].bool()
        pixels.append((rendered[b] - image[b])[:, on].abs().mean().item())
        colours.append(abs(rendered[b][:, on].mean().item() - image[b][:, on].mean().item()))
        structure.append(1 - similar[b][:, on].mean().item())
    assert loss.pixel_loss(*pictures).item() == pytest.approx(weighted(pixels, k))
    assert loss.mean_colour_loss(*pictures).item() == pytest.approx(weighted(colours, k))
    assert loss.ssim_loss(*pictures).item() == pytest.approx(weighted(structure, k))


def test_pixels_off_the_hand_do_not_count(pictures):
    rendered, image, mask, k = pictures
    other = torch.where(mask.bool(), image, image + 0.3)
    assert loss.pixel_loss(rendered, other, mask, k) == loss.pixel_loss(rendered, image, mask, k)
    assert loss.pixel_loss(rendered, image, 0 * mask, k) == 0


def test_ssim_is_kornias_but_for_the_border(pictures):
    rendered, image, *_ = pictures
    ours = loss.ssim_map(rendered, image)[..., 5:-5, 5:-5]
    theirs = kornia.metrics.ssim(rendered, image, 11, eps=0.0)[..., 5:-5, 5:-5]
    assert torch.allclose(ours, theirs, atol=1e-9)
    assert torch.allclose(loss.ssim_map(image, image), torch.ones_like(image))


def test_ssim_is_the_loop(pictures):
    """Window by window, in numpy, border included."""
    rendered, image = (x[0].numpy() for x in pictures[:2])
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets[:, None] ** 2 + offsets**2) / 4.5)
    window /= window.sum()
    found = loss.ssim_map(*pictures[:2])[0]
    padded = [np.pad(x, ((0, 0), (5, 5), (5, 5))) for x in (rendered, image)]
    for c, y, x in [(0, 0, 0), (1, 8, 7), (2, 15, 13), (0, 3, 11)]:
        a, b = (p[c, y : y + 11, x : x + 11] for p in padded)
        m_a, m_b = (window * a).sum(), (window * b).sum()
        covariance = (window * a * b).sum() - m_a * m_b
        variances = (window * a * a).sum() - m_a**2 + (window * b * b).sum() - m_b**2
        expected = (2 * m_a * m_b + 1e-4) * (2 * covariance + 9e-4)
        expected /= (m_a**2 + m_b**2 + 1e-4) * (variances + 9e-4)
        assert found[c, y, x].item() == pytest.approx(expected)


def test_texture_regularity_is_per_sample(pictures):
    k = pictures[-1]
    offsets = torch.randn(3, 50, 3, generator=torch.Generator().manual_seed(1)).double()
    values = []
    for b in range(3):
        terms = []
        for channel in offsets[b].T:
            mean, sigma = channel.mean(), channel.std(correction=0)
            terms += [abs(t - mean) if abs(t - mean) > 2 * sigma else 0.0 for t in channel]
        values.append(float(sum(terms)) / len(terms))
    assert loss.texture_regularity_loss(offsets, k).item() == pytest.approx(weighted(values, k))
    assert loss.texture_regularity_loss(0 * offsets + 0.3, k) < 1e-12


def test_texture_confidence_is_gated():
    confidence = torch.full((2, 21), 0.8)
    confidence[1, 3] = 0.05
    assert loss.texture_confidence(confidence).tolist() == pytest.approx([0.8, 0])
    assert loss.texture_confidence(confidence, 0.0)[1] > 0.7


def test_a_sample_without_confidence_contributes_nothing(pictures):
    rendered, image, mask, k = pictures
    k[1] = 0
    rendered.requires_grad_()
    value = loss.pixel_loss(rendered, image, mask, k) + loss.ssim_loss(rendered, image, mask, k)
    (gradient,) = torch.autograd.grad(value, rendered)
    assert not gradient[1].any()
    assert gradient[0].any()


@pytest.fixture(scope="module")
def hand():
    return OpenHand()


def test_laplacian_is_the_loop(hand):
    vertices, faces = hand.template.double(), hand.faces
    laplacian = Laplacian(vertices, faces)
    expected = torch.zeros(len(vertices), len(vertices), dtype=torch.float64)
    for face in faces.tolist():
        for corner in range(3):
            a, i, j = (face[(corner + n) % 3] for n in range(3))
            u, v = vertices[i] - vertices[a], vertices[j] - vertices[a]
            angle = torch.acos((u @ v) / (u.norm() * v.norm()))
            expected[i, j] += 1 / angle.tan()
            expected[j, i] += 1 / angle.tan()
    expected = expected.clamp(min=0)
    expected = expected / expected.sum(1, keepdim=True)
    # The mesh as it is now, another one than the weights are from.
    moved = vertices + 0.001 * torch.randn(
        vertices.shape, generator=torch.Generator().manual_seed(0)
    )
    norm = (expected @ moved - moved).norm(dim=1).mean()
    found = laplacian.loss(moved[None], torch.ones(1, dtype=torch.float64))
    assert found.item() == pytest.approx(norm.item(), rel=1e-4)


def test_laplacian_gradient_and_invariance():
    grid = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0)).double()
    vertices = torch.nn.functional.pad(grid, (0, 1))
    cells = [(r * 4 + c) for r in range(3) for c in range(3)]
    faces = torch.tensor([t for i in cells for t in ((i, i + 1, i + 4), (i + 1, i + 5, i + 4))])
    laplacian, one = Laplacian(vertices, faces), torch.ones(1, dtype=torch.float64)
    value = laplacian.loss(vertices[None], one)
    inner = laplacian.loss(2 * vertices[None] + 7, one)
    assert inner.item() == pytest.approx(2 * value.item())
    torch.manual_seed(0)
    noisy = vertices[None] + 0.1 * torch.randn(1, 16, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: laplacian.loss(x, one), noisy.requires_grad_(), fast_mode=True
    )
