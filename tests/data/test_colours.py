"""Colour changes: against written-out formulas, and 8 bits against floats."""

import colorsys

import cv2
import numpy as np
import pytest
import torch

from handrec.data.augment import Augmentation, clip_numbers
from handrec.data.colours import Changes, Colours, colour_map

LUMA = np.array([0.299, 0.587, 0.114])


def pictures(count=4, size=24):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 6, 6, generator=generator) * 0.6 + 0.2
    return torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")


def changed(image, brightness=1.0, contrast=1.0, saturation=1.0, hue=0.0, **others):
    count = len(image)
    values = (torch.full((count,), x) for x in (brightness, contrast, saturation, hue))
    nothing = {
        "blur": torch.zeros(count), "noisy": torch.zeros(count),
        "start": torch.zeros(count, dtype=torch.long), "strip": torch.zeros(0),
    }  # fmt: skip
    return Changes(*colour_map(*values), **nothing | others)


def test_nothing_changes_nothing():
    image = pictures()
    torch.testing.assert_close(changed(image).of_batch(image), image, atol=1e-6, rtol=0)


def test_each_change_is_what_its_name_says():
    image = pictures(1)
    rgb = image[0].permute(1, 2, 0).double().numpy()
    luma = rgb @ LUMA
    expected = {
        "brightness": 1.2 * rgb,
        "contrast": luma.mean() + 1.2 * (rgb - luma.mean()),
        "saturation": luma[..., None] + 1.2 * (rgb - luma[..., None]),
    }
    for name, one in expected.items():
        found = changed(image, **{name: 1.2}).of_batch(image)[0].permute(1, 2, 0).numpy()
        np.testing.assert_allclose(found, one.clip(0, 1), atol=2e-3)  # YIQ has three digits


def test_hue_turns_colours_and_keeps_luma():
    image = pictures(1) * 0.5 + 0.2
    found = changed(image, hue=0.05).of_batch(image)
    weights = torch.tensor(LUMA).float()[None, :, None, None]
    torch.testing.assert_close(
        (found * weights).sum(1), (image * weights).sum(1), atol=1e-4, rtol=0
    )
    wheel = torch.tensor([colorsys.hsv_to_rgb(h / 48, 0.5, 0.7) for h in range(48)]).mT
    after = changed(wheel[None, :, None], hue=0.05).of_batch(wheel[None, :, None])[0, :, 0].mT
    hues = np.array([colorsys.rgb_to_hsv(*colour)[0] for colour in after.tolist()])
    turned = (hues - np.arange(48) / 48 + 0.5) % 1 - 0.5
    assert abs(turned.mean() - 0.05) < 0.006  # YIQ and HSV agree on average
    assert turned.min() > 0
    back = changed(found, hue=-0.05).of_batch(found)
    torch.testing.assert_close(back, image, atol=1e-4, rtol=0)


def test_blur_is_opencvs_and_leaves_others_alone():
    image = pictures(3)
    soft = changed(image, blur=torch.tensor([0.0, 0.7, 0.0])).of_batch(image)
    expected = cv2.GaussianBlur(image[1].permute(1, 2, 0).numpy(), (3, 3), 0.7)
    np.testing.assert_allclose(soft[1].permute(1, 2, 0).numpy(), expected, atol=1e-5)
    torch.testing.assert_close(soft[::2], image[::2], atol=1e-6, rtol=0)


def test_eight_bits_and_floats_agree():
    torch.manual_seed(0)
    image = (pictures(16) * 255).round() / 255
    changes = Colours(0.3, 0.3, 0.3, 0.03, share=1.0, blur=0.5, noise=0.03).draw(16, 24)
    assert 0 < changes.noisy.sum() < 16
    assert 0 < (changes.blur > 0).sum() < 16
    # Noise is added pixel by pixel in one memory layout each: compared without it here.
    plain = changes._replace(noisy=torch.zeros(16))
    eight = (image * 255).byte().permute(0, 2, 3, 1).contiguous().numpy()
    plain.of_pictures(eight)
    found = torch.from_numpy(eight).permute(0, 3, 1, 2).float() / 255
    assert (found - plain.of_batch(image)).abs().max() < 2.5 / 255


@pytest.mark.parametrize("eight", [True, False])
def test_noise_has_its_deviation_in_half_of_the_pictures(eight):
    torch.manual_seed(0)
    image = torch.full((64, 3, 32, 32), 0.5)
    changes = Colours(0.0, 0.0, 0.0, 0.0, share=0.0, blur=0.0, noise=0.04).draw(64, 32)
    if eight:
        levels = np.full((64, 32, 32, 3), 128, np.uint8)
        changes.of_pictures(levels)
        after = torch.from_numpy(levels).float() / 255
    else:
        after = changes.of_batch(image)
    deviation = after.flatten(1).std(1)
    noisy = changes.noisy > 0
    assert 0.3 < noisy.float().mean() < 0.7
    assert deviation[~noisy].max() < 1e-6
    torch.testing.assert_close(deviation[noisy].mean(), torch.tensor(0.04), atol=0.002, rtol=0)
    first, second = after[noisy][:2].flatten(1) - 0.5
    assert torch.corrcoef(torch.stack([first, second]))[0, 1].abs() < 0.1


def test_the_same_seed_draws_the_same():
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        drawn.append(Augmentation().changes(torch.arange(4), 16))
    for one, other in zip(*drawn, strict=True):
        assert torch.equal(one, other)


def test_the_frames_of_a_clip_change_alike_but_for_the_noise():
    torch.manual_seed(0)
    sequence, frame = torch.tensor([7, 7, 7, 7, 3, 4]), torch.tensor([2, 3, 4, 1, 5, 5])
    image = torch.rand(1, 3, 16, 16).expand(6, -1, -1, -1)
    clip = clip_numbers(sequence, frame)
    clean = Augmentation(noise=0.0, blur=0.5).changes(clip, 16).of_batch(image)
    assert torch.equal(clean[:3], clean[:1].expand(3, -1, -1, -1))
    apart = (clean[2:, None] - clean[None, 2:]).abs().amax((2, 3, 4))
    assert apart.fill_diagonal_(1).min() > 1e-3  # a frame that comes earlier begins a new clip
    noisy = Augmentation(noise=0.1).changes(torch.zeros(40).long(), 16)
    drawn = noisy.of_batch(image[:1].expand(40, -1, -1, -1))[noisy.noisy > 0]
    assert (drawn[1:] - drawn[:1]).abs().amax((1, 2, 3)).min() > 0.05
