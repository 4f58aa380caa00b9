import dataclasses
import math

import cv2
import pytest
import torch
from scipy import stats

from handrec.data.appearance.jpeg import compress
from handrec.data.appearance.lens import (
    OTHER_LENS,
    Lens,
    LensOptions,
    add_noise,
    blur_kernel,
    convolve,
    expose,
    normal_noise,
    sample_lens,
    to_display,
    to_linear,
)

NOTHING = LensOptions(**dict.fromkeys((f.name for f in dataclasses.fields(LensOptions)), 0.0))


def lens(count, **columns):
    """Return cameras that do nothing but what is named."""
    table = sample_lens(count, torch.Generator().manual_seed(0), NOTHING)
    given = {
        name: torch.as_tensor(value, dtype=torch.float32).expand(getattr(table, name).shape)
        for name, value in columns.items()
    }
    return table._replace(**given)


def photo(count=2, size=48, seed=0):
    coarse = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    picture = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic")
    return (0.1 + 0.8 * picture).clamp(0, 1)


def seeds(count):
    return torch.arange(count) * 7919 - 3


def test_a_camera_that_does_nothing_returns_the_picture():
    image = photo()
    hand = (image[:, :1] > 0.5).float()
    for mask in (None, hand):
        torch.testing.assert_close(expose(image, lens(2), seeds(2), mask), image, atol=1e-5, rtol=0)


def test_sampling_is_a_function_of_the_generator_and_options_alone():
    first, second = (sample_lens(5, torch.Generator().manual_seed(3), LensOptions()) for _ in "ab")
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(
        first.gain, sample_lens(5, torch.Generator().manual_seed(4), LensOptions()).gain
    )


@pytest.mark.parametrize("options", [LensOptions(), OTHER_LENS])
def test_a_row_alone_gives_the_same_picture_in_range(options):
    table = sample_lens(6, torch.Generator().manual_seed(1), options)
    image = photo(6, 50)  # not whole blocks of 16
    hand = (photo(6, 50, seed=1)[:, :1] > 0.5).float()
    together = expose(image, table, seeds(6), hand)
    assert together.shape == image.shape
    assert together.min() >= 0
    assert together.max() <= 1
    for row in (0, 4):
        only = slice(row, row + 1)
        alone = expose(
            image[only], Lens(*(c[only] for c in table)), seeds(6)[only], hand[only]
        )  # an eighth of a bit moves a level of a file now and then
        assert (alone - together[only]).abs().mean() < 1e-3


def test_other_cameras_are_worse():
    image = photo(64, 32)
    differences = [
        (
            expose(image, sample_lens(64, torch.Generator().manual_seed(0), o), seeds(64)) - image
        ).abs()
        for o in (LensOptions(), OTHER_LENS)
    ]
    assert differences[1].mean() > 1.5 * differences[0].mean()


def test_kernels_sum_to_one_are_symmetric_and_as_long_as_told():
    motion = torch.tensor([[0.0, 0.0], [0.05, 0.0], [0.03, -0.04], [0.03, 0.01]])
    radius = torch.tensor([0.0, 0.0, 0.0, 0.02])
    kernel = blur_kernel(motion, radius, 200)
    torch.testing.assert_close(kernel.sum((1, 2)), torch.ones(4))
    torch.testing.assert_close(kernel, kernel.flip(1, 2))  # so their centre of mass is theirs
    assert (kernel >= 0).all()
    reach = kernel.shape[-1] // 2
    assert kernel[0, reach, reach] == 1
    assert (kernel[1] > 1e-6).sum() == 11  # ten pixels of motion, end to end
    x = torch.arange(-reach, reach + 1.0)
    y = x[:, None]
    # The variance of eleven pixels in a row is 10.
    covariance = [(kernel[2] * a * b).sum() for a, b in ((x, x), (y, y), (x, y))]
    torch.testing.assert_close(
        torch.stack(covariance), 10 * torch.tensor([0.36, 0.64, -0.48]), atol=0.4, rtol=0
    )


def test_convolution_agrees_with_opencv():
    image = photo(1, 40)
    kernel = blur_kernel(torch.tensor([[0.1, 0.04]]), torch.tensor([0.02]), 40)
    expected = cv2.filter2D(
        image[0].permute(1, 2, 0).numpy(), -1, kernel[0].numpy(), borderType=cv2.BORDER_REFLECT_101
    )
    blurred = convolve(image, kernel)[0].permute(1, 2, 0)
    torch.testing.assert_close(blurred, torch.from_numpy(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "columns",
    [
        {"motion": [0.1, 0.05]},
        {"motion": [0.1, 0.05], "hand_only": 1},
        {"defocus": 0.05},
        {"sharpening": 1.0, "contrast": 0.5, "gain": 1.5},
        {"aberration": 0.01, "axis": [1.0, -0.5]},
        {"quality": 90},
    ],
)
def test_a_dot_stays_where_it_was(columns):
    image, where = torch.full((1, 3, 64, 64), 0.2), (40, 27)
    image[..., where[0] - 1 : where[0] + 2, where[1] - 1 : where[1] + 2] = 0.6
    hand = (image[:, :1] > 0.4).float()
    dot = to_linear(expose(image, lens(1, **columns), seeds(1), hand))[0, 1]
    dot = (dot - dot.median()).abs()
    line = torch.arange(64.0)
    centre = torch.stack([(dot.sum(1) * line).sum(), (dot.sum(0) * line).sum()]) / dot.sum()
    torch.testing.assert_close(centre, torch.tensor(where).float(), atol=0.15, rtol=0)


def test_the_motion_of_the_hand_leaves_the_rest_sharp_and_mixes_it_in():
    background = 0.3 + 0.2 * (torch.arange(64) // 4 % 2).float().expand(1, 3, 64, 64)
    hand = torch.zeros(1, 1, 64, 64)
    hand[..., 24:40, 24:40] = 1
    image = torch.lerp(background, torch.tensor(0.9), hand)
    moved = expose(image, lens(1, motion=[0.1, 0], hand_only=1), seeds(1), hand)
    shaken = expose(image, lens(1, motion=[0.1, 0]), seeds(1), hand)
    torch.testing.assert_close(moved[..., :16], image[..., :16], atol=1e-4, rtol=0)
    assert (shaken[..., 4:16] - image[..., 4:16]).abs().max() > 0.05
    profile = to_linear(moved)[0, 0, 32]
    assert (profile[31:33] > 0.8).all()
    # At the edge the hand was there half of the time.
    mixed = (0.81 + 0.16) / 2
    assert abs(profile[23:25].mean() - mixed) < 0.06


def test_noise_is_normal_white_and_a_function_of_the_seed():
    noise = normal_noise(torch.tensor([5, -(2**62), 5 + 2**32]), (3, 65, 63))
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 0.01
    rows = noise.flatten(1)
    assert torch.corrcoef(rows).fill_diagonal_(0).abs().max() < 0.04
    for step in (1, 63, 63 * 65):
        lagged = (rows[:, step:] * rows[:, :-step]).mean(1)
        assert lagged.abs().max() < 0.04
    again = normal_noise(torch.tensor([-(2**62)]), (3, 65, 63))
    assert torch.equal(again[0], noise[1])


def test_noise_agrees_with_the_hash_in_whole_numbers():
    def mixed(x):
        x &= 0xFFFFFFFF
        x = (x ^ x >> 16) * 0x7FEB352D & 0xFFFFFFFF
        x = (x ^ x >> 15) * 0x846CA68B & 0xFFFFFFFF
        return x ^ x >> 16

    for seed in (5, -3, 2**40 + 1, -(2**63), 2**63 - 1):
        key = mixed(seed ^ mixed((seed >> 32) + 1))
        bits = [mixed(mixed(counter) ^ key) for counter in range(6)]
        radius = [math.sqrt(-2 * math.log(((b >> 16) + 0.5) / 65536)) for b in bits]
        angle = [2 * math.pi * (b & 0xFFFF) / 65536 for b in bits]
        expected = [r * math.cos(a) for r, a in zip(radius, angle, strict=True)]
        expected += [r * math.sin(a) for r, a in zip(radius, angle, strict=True)]
        noise = normal_noise(torch.tensor([seed]), (1, 3, 4)).flatten()
        torch.testing.assert_close(noise, torch.tensor(expected), atol=1e-4, rtol=0)


def test_the_variance_of_noise_is_linear_in_light_whatever_its_correlation():
    levels = torch.linspace(0.05, 0.9, 6)
    light = levels[:, None, None, None].expand(6, 3, 96, 96)
    for correlation in (0.0, 0.6):
        camera = lens(6, shot=0.03**2, read=0.01, correlation=correlation)
        noisy = add_noise(light, camera, seeds(6)) - light
        expected = 0.03**2 * levels + 0.01**2
        torch.testing.assert_close(noisy.var((1, 2, 3)), expected, rtol=0.06, atol=0)
        neighbours = (noisy[..., 1:] * noisy[..., :-1]).mean((1, 2, 3)) / expected
        assert (neighbours - correlation / (1 + correlation**2)).abs().max() < 0.04


def test_exposure_casts_and_vignettes_are_gains_on_light():
    image = torch.full((1, 3, 32, 32), 0.4)
    gain = torch.tensor([1.5, 1.0, 0.5])
    shown = to_linear(expose(image, lens(1, gain=gain), seeds(1)))
    torch.testing.assert_close(shown.mean((2, 3))[0], 0.16 * gain)
    dark = to_linear(expose(image, lens(1, vignetting=0.5, axis=0), seeds(1)))[0, 0] / 0.16
    assert dark[16, 16] == pytest.approx(1, abs=0.01)
    edge = 1 / (1 + 4 * 0.5 * ((15.5 / 32) ** 2 + (0.5 / 32) ** 2))
    assert dark[16, 31] == pytest.approx(edge, abs=1e-3)
    torch.testing.assert_close(to_display(to_linear(image)), image)


def test_grey_pictures_keep_their_brightness():
    image = photo(1)
    grey = expose(image, lens(1, saturation=0), seeds(1))
    luma = torch.einsum("bchw, c -> bhw", image, torch.tensor([0.299, 0.587, 0.114]))
    torch.testing.assert_close(grey, luma[:, None].expand_as(grey), atol=1e-4, rtol=0)


@pytest.mark.parametrize("quality", [8, 35, 75, 95])
@pytest.mark.parametrize("size", [(64, 64), (50, 43)])
def test_compression_agrees_with_libjpeg(quality, size):
    image = photo(1, 64)[..., : size[0], : size[1]]
    noise = torch.rand(image.shape, generator=torch.Generator().manual_seed(1))
    image = (image + 0.1 * noise).clamp(0, 1)
    levels = (image[0].permute(1, 2, 0) * 255).round().byte().numpy()
    _, file = cv2.imencode(".jpg", levels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    expected = torch.from_numpy(cv2.imdecode(file, cv2.IMREAD_COLOR)[..., ::-1].copy())
    decoded = compress(image, torch.tensor([float(quality)]))[0].permute(1, 2, 0) * 255
    difference = (decoded - expected.float()).abs()
    assert difference.mean() < 1.3
    lost = (expected.float() - torch.from_numpy(levels).float()).abs()
    assert lost.mean() > 4 * difference.mean()  # what agrees is the damage, not the picture


def test_each_image_has_its_own_quality_and_zero_is_none():
    image = photo(1).expand(3, -1, -1, -1)
    damage = (compress(image, torch.tensor([0.0, 90.0, 10.0])) - image).abs().mean((1, 2, 3))
    assert damage[0] == 0
    assert 0 < damage[1] < damage[2] / 2
