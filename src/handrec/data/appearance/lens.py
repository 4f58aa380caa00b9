"""What a camera does to a picture: optics, exposure, sensor noise, development, compression.

Nothing here moves anything: every blur is symmetric about the point it blurs, so labels stay exact.
Strengths are our choice, made to look like telephone snapshots and video frames.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from handrec.data.appearance.jpeg import compress
from handrec.data.scenes import Uniform

#: Blur kernels reach this share of the side each way, and are cut there: a bound that needs no look
#: at the numbers.
_REACH = 1 / 16
_LUMA = (0.299, 0.587, 0.114)


class Lens(NamedTuple):
    """A table of cameras; row i is the camera of look i.

    Attributes:
        motion: of the picture during the exposure, x and y, shares of its side.
        hand_only: 1 if what is before the background moved and the camera did not.
        defocus: radius of the disc that a point becomes, share of the side.
        axis: where the optical axis meets the picture, from its centre, shares of its side.
        aberration: relative difference in magnification between red and green, green and blue.
        vignetting: share of light lost half a side away from the axis; it grows with the square.
        gain: of red, green and blue light: exposure and white balance.
        shot: variance of the noise in linear light per unit of light.
        read: standard deviation of the noise of a dark pixel, linear light.
        correlation: weight of the next pixel in a pixel's noise, as demosaicing leaves it.
        contrast: of the tone curve; 0 is straight, negative flattens.
        saturation: 1 as it was, 0 grey.
        sharpening: of the halo that development adds at edges.
        quality: of the JPEG file, 1 to 100; 0 for none.
    """

    motion: Float[Tensor, "b 2"]
    hand_only: Float[Tensor, " b"]
    defocus: Float[Tensor, " b"]
    axis: Float[Tensor, "b 2"]
    aberration: Float[Tensor, " b"]
    vignetting: Float[Tensor, " b"]
    gain: Float[Tensor, "b 3"]
    shot: Float[Tensor, " b"]
    read: Float[Tensor, " b"]
    correlation: Float[Tensor, " b"]
    contrast: Float[Tensor, " b"]
    saturation: Float[Tensor, " b"]
    sharpening: Float[Tensor, " b"]
    quality: Float[Tensor, " b"]


@dataclass(frozen=True)
class LensOptions:
    """How strong, and how frequent, what a camera does is; all zeros (qualities 100) for nothing.

    Attributes:
        motion: probability of motion blur.
        motion_length: greatest, share of the side (at most 0.12).
        hand_only: share of motion blur that is the hand's alone.
        defocus: probability that the focus is missed.
        defocus_radius: greatest then, share of the side (at most 0.06).
        softness: greatest radius otherwise, share of the side.
        exposure: standard deviation, stops.
        cast: standard deviation of the logarithm of the gain of a colour.
        contrast: greatest change of the tone curve, at most 1.
        saturation: greatest relative change.
        grey: probability of a picture without colours.
        vignetting: greatest, see :class:`Lens`.
        aberration: greatest, see :class:`Lens`.
        noise: greatest standard deviation at full light, in linear light.
        sharpening: greatest weight of the halo.
        jpeg: probability of compression.
        worst_quality: of a JPEG file; the best is 95.
    """

    motion: float = 0.25
    motion_length: float = 0.08
    hand_only: float = 0.6
    defocus: float = 0.2
    defocus_radius: float = 0.02
    softness: float = 0.006
    exposure: float = 0.35
    cast: float = 0.07
    contrast: float = 0.5
    saturation: float = 0.3
    grey: float = 0.02
    vignetting: float = 0.12
    aberration: float = 0.003
    noise: float = 0.06
    sharpening: float = 1.0
    jpeg: float = 0.7
    worst_quality: float = 35.0


DEFAULT_LENS = LensOptions()

#: Worse cameras, for pictures that differ from the training pictures.
OTHER_LENS = LensOptions(
    motion=0.3, motion_length=0.1, defocus=0.3, defocus_radius=0.03, softness=0.01, exposure=0.6,
    cast=0.2, contrast=0.9, saturation=0.6, grey=0.1, vignetting=0.2, aberration=0.006,
    noise=0.15, sharpening=2.0, jpeg=0.9, worst_quality=8.0,
)  # fmt: skip


def sample_lens(count: int, generator: torch.Generator, options: LensOptions) -> Lens:
    """Return ``count`` independent cameras."""
    draw = Uniform(generator)
    turn = draw(0.0, 2 * math.pi, count)
    length = options.motion_length * draw(0.0, 1.0, count) * _often(draw, options.motion, count)
    missed = options.defocus_radius * draw(0.0, 1.0, count) * _often(draw, options.defocus, count)
    noise = options.noise * draw(0.0, 1.0, count) ** 2  # most pictures are taken in good light
    stops = options.exposure * draw.normal(count, 1) + options.cast * draw.normal(count, 3)
    worst = min(options.worst_quality, 95)
    # Uniform in the square root: halving a low quality is seen more than a high one.
    quality = draw(0.0, 1.0, count).sqrt() * (95 - worst) + worst
    return Lens(
        motion=torch.stack([turn.cos(), turn.sin()], dim=1) * length[:, None],
        hand_only=_often(draw, options.hand_only, count),
        defocus=torch.maximum(options.softness * draw(0.0, 1.0, count), missed),
        axis=draw(-1.0, 1.0, count, 2),
        aberration=options.aberration * draw(-1.0, 1.0, count),
        vignetting=options.vignetting * draw(0.0, 1.0, count) ** 2,
        gain=2 ** stops.clamp(-2, 2),
        shot=noise**2,
        read=noise * draw(0.02, 0.15, count),
        correlation=draw(0.0, 0.6, count),
        contrast=options.contrast * draw(-0.5, 1.0, count),
        saturation=(1 + options.saturation * draw(-1.0, 1.0, count))
        * (1 - _often(draw, options.grey, count)),
        sharpening=options.sharpening * draw(-1.0, 1.0, count).relu(),
        quality=quality.round() * _often(draw, options.jpeg, count),
    )


def _often(draw: Uniform, probability: float, count: int) -> Tensor:
    return (draw(0.0, 1.0, count) < probability).float()


@torch.no_grad()
def expose(
    image: Float[Tensor, "b 3 h w"],
    lens: Lens,
    noise_seed: Int[Tensor, " b"],
    hand: Float[Tensor, "b 1 h w"] | None = None,
) -> Float[Tensor, "b 3 h w"]:
    """Return the pictures that cameras take, RGB in [0, 1].

    Args:
        image: what is before the camera, RGB in [0, 1], square.
        lens: on the device of the images.
        noise_seed: any 64 bits; the noise is a function of them and of the pixel alone.
        hand: share of each pixel that moves with the hand; without it the whole picture moves.
    """
    with torch.autocast(image.device.type, enabled=False):
        light = _optics(to_linear(image.float()), lens, hand)
        light.mul_(_vignette(light, lens)).mul_(lens.gain[..., None, None])
        picture = to_display(add_noise(light, lens, noise_seed))
        return compress(_develop(picture, lens), lens.quality)


def to_linear(image: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return linear light by the plain power 2: near enough to sRGB's curve for blurs and noise."""
    return image.square()


def to_display(light: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return the inverse of :func:`to_linear`, clipped to [0, 1] as a sensor clips."""
    return light.clamp(0, 1).sqrt_()


def blur_kernel(
    motion: Float[Tensor, "b 2"], radius: Float[Tensor, " b"], size: int
) -> Float[Tensor, "b k k"]:
    """Return the trace of a point: a disc swept along a line centred on it; the sum is 1.

    Its edge falls off over a pixel, so fractions of a pixel count, and with neither motion nor
    radius the kernel is a single 1.

    Args:
        motion: of the point during the exposure, shares of the picture's side.
        radius: of its disc, share of the side.
        size: side of the picture, pixels.
    """
    reach = max(1, round(size * _REACH))
    line = torch.arange(-reach, reach + 1, device=radius.device, dtype=radius.dtype)
    y, x = torch.meshgrid(line, line, indexing="ij")
    half = (motion * size / 2)[:, :, None, None]
    length = half.square().sum(1).clamp(min=1e-12)
    along = ((x * half[:, 0] + y * half[:, 1]) / length).clamp(-1, 1)
    distance = torch.hypot(x - along * half[:, 0], y - along * half[:, 1])
    kernel = (radius[:, None, None] * size + 1 - distance).clamp(0, 1)
    return kernel / kernel.sum((1, 2), keepdim=True)


def convolve(
    image: Float[Tensor, "b c h w"], kernel: Float[Tensor, "b k k"]
) -> Float[Tensor, "b c h w"]:
    """Return each image blurred by its own kernel of odd side, reflected at the border."""
    reach, channels = kernel.shape[-1] // 2, image.shape[1]
    half = (channels + 1) // 2
    padded = F.pad(image, (reach,) * 4, mode="reflect")
    # The kernel is real: two channels, as real and imaginary part, take one transform. Of an odd
    # number of channels the middle one is in both parts.
    spectrum = torch.fft.fft2(torch.complex(padded[:, :half], padded[:, channels - half :]))
    spectrum.mul_(torch.fft.fft2(kernel, s=padded.shape[-2:])[:, None])
    blurred = torch.fft.ifft2(spectrum)[..., 2 * reach :, 2 * reach :]
    return torch.cat([blurred.real, blurred.imag[:, 2 * half - channels :]], dim=1)


def _optics(light: Tensor, lens: Lens, hand: Tensor | None) -> Tensor:
    """Return the light after motion, defocus and lateral chromatic aberration."""
    size = light.shape[-1]
    kernel = blur_kernel(lens.motion, lens.defocus, size)
    if hand is None:
        blurred = convolve(light, kernel)
    else:
        alone = (lens.hand_only * (lens.motion != 0).any(1)).view(-1, 1, 1, 1)
        moving = 1 - alone * (1 - hand)
        blurred, share = convolve(torch.cat([light * moving, moving], dim=1), kernel).split(
            (3, 1), dim=1
        )
        behind = torch.lerp(light, _behind(light, hand), hand)
        blurred = blurred.addcmul_(behind, (1 - share).mul_(alone))
    return _fringe(blurred, lens).clamp_(min=0)


def _behind(light: Tensor, hand: Tensor) -> Tensor:
    """Return a guess at what a hand hides: what surrounds it, very blurred."""
    block = max(1, round(light.shape[-1] * _REACH))
    visible = torch.cat([light * (1 - hand), 1 - hand], dim=1)
    coarse = F.avg_pool2d(visible, block, ceil_mode=True)
    coarse = F.avg_pool2d(F.pad(coarse, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    coarse = F.interpolate(coarse, light.shape[-2:], mode="bilinear", align_corners=False)
    return coarse[:, :3] / (coarse[:, 3:] + 1e-3)


def _from_axis(light: Tensor, lens: Lens) -> tuple[Tensor, Tensor]:
    """Return x and y of the pixels from the optical axis, shares of the side."""
    line = (torch.arange(light.shape[-1], device=light.device) + 0.5) / light.shape[-1] - 0.5
    x, y = (lens.axis[:, :, None, None, None]).unbind(1)
    return line - x, line[:, None] - y


def _fringe(light: Tensor, lens: Lens) -> Tensor:
    """Return the light, changed in place: red magnified and blue reduced, to first order."""
    x, y = _from_axis(light, lens)
    padded = F.pad(light[:, ::2], (1, 1, 1, 1), mode="replicate")
    across = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    down = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    change = (across.mul_(x) + down.mul_(y)).mul_(light.shape[-1] / 2)
    amount = lens.aberration[:, None] * lens.aberration.new_tensor([1.0, -1.0])
    light[:, ::2].addcmul_(change, amount[..., None, None])
    return light


def _vignette(light: Tensor, lens: Lens) -> Tensor:
    """Return the share of light that arrives, relative to the picture's centre."""
    x, y = _from_axis(light, lens)
    strength = 4 * lens.vignetting.view(-1, 1, 1, 1)
    centre = 1 + strength * lens.axis.square().sum(1).view(-1, 1, 1, 1)
    return centre / (1 + strength * (x * x + y * y))


def add_noise(
    light: Float[Tensor, "b 3 h w"], lens: Lens, noise_seed: Int[Tensor, " b"]
) -> Float[Tensor, "b 3 h w"]:
    """Return linear light with Poisson-Gaussian noise: variance ``shot * light + read**2``."""
    height, width = light.shape[-2:]
    noise = normal_noise(noise_seed, (3, height + 1, width + 1))
    shot, read, side = (x.view(-1, 1, 1, 1) for x in (lens.shot, lens.read, lens.correlation))
    noise = torch.addcmul(noise[..., :-1], noise[..., 1:], side)
    noise = torch.addcmul(noise[..., :-1, :], noise[..., 1:, :], side)
    variance_of_sum = (1 + side**2) ** 2
    deviation = torch.addcmul(read**2 / variance_of_sum, light, shot / variance_of_sum).sqrt_()
    return noise.mul_(deviation).add_(light)


def normal_noise(seed: Int[Tensor, " b"], shape: tuple[int, int, int]) -> Float[Tensor, "b c h w"]:
    """Return standard normal numbers that are a function of seed and position alone.

    A counter-based generator: an integer hash of seed and counter gives the same bits on every
    device; its halves, 16 bits each, go through Box and Muller's transform (no number exceeds 4.9).
    """
    count = math.prod(shape)
    counter = _hash(torch.arange((count + 1) // 2, dtype=torch.int32, device=seed.device))
    low, high = _int32(seed), _int32(seed >> 32)
    key = _hash(low ^ _hash(high + 1))
    bits = _hash(counter ^ key[:, None])
    radius = ((((bits >> 16) & 0xFFFF) + 0.5) / 2**16).log_().mul_(-2).sqrt_()
    angle = (bits & 0xFFFF) * (2 * math.pi / 2**16)
    pairs = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
    return pairs[:, :count].view(-1, *shape)


def _int32(number: Tensor) -> Tensor:
    """Return the lower 32 bits."""
    return (((number + 2**31) & 0xFFFFFFFF) - 2**31).to(torch.int32)


def _hash(x: Tensor) -> Tensor:
    """Return C. Wellons' ``lowbias32`` of 32-bit integers, a bijection; products wrap around."""
    x = (x ^ (x >> 16).bitwise_and_(0xFFFF)).mul_(0x7FEB352D)
    x = x.bitwise_xor_((x >> 15).bitwise_and_(0x1FFFF)).mul_(0x846CA68B - 2**32)
    return x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF))


def _develop(image: Tensor, lens: Lens) -> Tensor:
    """Return the picture after tone curve, saturation and sharpening of its brightness."""
    contrast, saturation, sharpening = (
        column.view(-1, 1, 1, 1) for column in (lens.contrast, lens.saturation, lens.sharpening)
    )
    curve = (1 - image).mul_(image).mul_(2 * image - 1)
    image = image.addcmul_(curve, contrast)
    red, green, blue = image.split(1, dim=1)
    luma = _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue
    around = F.avg_pool2d(F.pad(luma, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    halo = (luma - around).mul_(sharpening)
    return torch.lerp(luma, image, saturation).add_(halo).clamp_(0, 1)
