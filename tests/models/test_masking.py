import math
import random

import pytest
import torch

from handrec.errors import UserError
from handrec.models.backbones import TimmBackbone
from handrec.models.masking import (
    Masking,
    block_masks,
    encode_masked,
    masked_counts,
    random_masks,
)


@pytest.mark.parametrize(
    ("ratio", "mean", "deviation"),
    [(0.1, 0.0896, 0.008), (0.3, 0.2918, 0.007), (0.5, 0.4974, 0.005)],
)
def test_block_masks_have_the_statistics_of_ibots(ratio, mean, deviation):
    generator = torch.Generator().manual_seed(0)
    masks = block_masks(torch.full((4000,), int(ratio * 196)), 14, 14, generator).mean(1)
    assert masks.mean().item() == pytest.approx(mean, abs=0.01)
    assert masks.std().item() == pytest.approx(deviation, abs=0.01)
    assert masks.max().item() <= ratio + 1e-6


def test_blocks_are_blocks():
    """A masked patch of a block mask has more masked neighbours than one masked at random."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.full((200,), 60)

    def neighbours(masks):
        grid = masks.view(-1, 14, 14)
        return (grid[:, 1:] * grid[:, :-1]).sum() / grid.sum()

    blocks = neighbours(block_masks(targets, 14, 14, generator))
    assert blocks > 2 * neighbours(random_masks(targets, 196, generator))


def test_a_block_is_looked_for_ten_times():
    """Against one proposal after another, each mask on its own."""
    generator = torch.Generator().manual_seed(0)
    found = block_masks(torch.full((4000,), 40), 8, 12, generator).sum(1)
    random.seed(0)
    naive = torch.tensor([len(one_by_one(40, 8, 12)) for _ in range(4000)])
    assert found.max() <= 40
    assert found.mean().item() == pytest.approx(naive.float().mean().item(), abs=0.1)
    for count in (38, 40):
        shares = [(counts < count).float().mean().item() for counts in (found, naive)]
        assert shares[0] == pytest.approx(shares[1], abs=0.04)


def one_by_one(target, rows, columns):
    masked, smallest = set(), (min(rows, columns) // 3) ** 2
    while len(masked) < target:
        for _ in range(10):
            area = random.uniform(smallest, target - len(masked))
            aspect = math.exp(random.uniform(math.log(0.3), math.log(1 / 0.3)))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if height >= rows or width >= columns:
                continue
            top, left = random.randint(0, rows - height), random.randint(0, columns - width)
            block = {(top + i, left + j) for i in range(height) for j in range(width)} - masked
            if 0 < len(block) <= target - len(masked):
                masked |= block
                break
        else:
            break
    return masked


def test_random_masks_have_exactly_the_wanted_count():
    targets = torch.tensor([0, 1, 50, 196])
    assert random_masks(targets, 196).sum(1).tolist() == targets.tolist()


def test_ratios_are_spread_over_the_masked_half():
    counts = masked_counts(64, 196, (0.1, 0.5), 0.5)
    assert sum(count == 0 for count in counts) == 32
    assert min(counts[:32]) >= 19
    assert max(counts) <= 98
    assert sum(counts) / 32 / 196 == pytest.approx(0.3, abs=0.005)


@pytest.mark.parametrize(("views", "share", "masked"), [(2, 0.25, 1), (2, 0.0, 0), (6, 0.25, 2)])
def test_few_views_are_masked_if_any_are_to_be(views, share, masked):
    counts = masked_counts(views, 16, (0.5, 0.5), share)
    assert counts == [8] * masked + [0] * (views - masked)


@pytest.fixture(scope="module", params=["patch", "conv"])
def backbone(request):
    torch.manual_seed(0)
    return TimmBackbone("vit_tiny_patch16_224", 64, stem=request.param, options={"depth": 2}).eval()


def test_without_masks_it_is_the_plain_encoding(backbone):
    image = torch.rand(2, 3, 64, 64)
    masked = encode_masked(backbone, image, torch.zeros(2, 16), torch.zeros(192))
    plain = backbone.encode(image)
    torch.testing.assert_close(masked.grid, plain.grid)
    torch.testing.assert_close(masked.pooled, plain.pooled)


def test_masked_pixels_are_not_seen(backbone):
    mask = torch.zeros(1, 16)
    mask[0, [2, 5, 6]] = 1
    image = torch.rand(1, 3, 64, 64)
    changed = image.clone()
    changed[..., 0:16, 32:48] = 0
    changed[..., 16:32, 16:48] = 1
    token = torch.randn(192)
    before, after = (encode_masked(backbone, x, mask, token) for x in (image, changed))
    torch.testing.assert_close(before.grid, after.grid)
    changed[..., 48:, 48:] = 0  # not masked
    assert not torch.allclose(before.grid, encode_masked(backbone, changed, mask, token).grid)


def test_mask_token_learns(backbone):
    token = torch.zeros(192, requires_grad=True)
    mask = torch.zeros(1, 16)
    mask[0, 3] = 1
    encode_masked(backbone, torch.rand(1, 3, 64, 64), mask, token).grid.square().sum().backward()
    assert token.grad.norm() > 0


def test_only_vits_can_be_masked():
    with pytest.raises(UserError, match="needs a ViT"):
        encode_masked(
            TimmBackbone("resnet18", 64),
            torch.rand(1, 3, 64, 64),
            torch.zeros(1, 4),
            torch.zeros(8),
        )


def test_images_that_patches_do_not_tile_cannot_be_masked(backbone):
    with pytest.raises(UserError, match="16 px do not tile images of 100 x 100 px"):
        encode_masked(backbone, torch.rand(1, 3, 100, 100), torch.zeros(1, 36), torch.zeros(192))


def test_ratios_go_from_the_lower_to_the_higher():
    with pytest.raises(UserError, match=r"Masking: ratio goes from .*, not from 0\.5 to 0\.1"):
        Masking(ratio=(0.5, 0.1))
