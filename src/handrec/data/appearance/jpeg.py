"""JPEG compression of a batch: what the codec does to a picture, without its bit stream."""

import math
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

#: Quantisation tables of ITU-T T.81, Annex K.1, at quality 50: luma and chroma.
_LUMA = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55,
    14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip
_CHROMA = (
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99,
    24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99, 99, 99, 99, 99,
    *(99,) * 32,
)  # fmt: skip

#: RGB to Y, Cb, Cr (JFIF), before 128 is added to the chroma.
_TO_YCC = (
    (0.299, 0.587, 0.114),
    (-0.168736, -0.331264, 0.5),
    (0.5, -0.418688, -0.081312),
)
_TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))


@torch.no_grad()
def compress(
    image: Float[Tensor, "b 3 h w"], quality: Float[Tensor, " b"]
) -> Float[Tensor, "b 3 h w"]:
    """Return images as a JPEG file of theirs would show them, 8 bits a channel.

    Baseline coding with half the chroma resolution each way, as cameras and messengers use it.

    Args:
        image: RGB in [0, 1].
        quality: of the IJG's scale, 1 to 100; at 0 an image is returned as it is.
    """
    height, width = image.shape[-2:]
    with torch.autocast(image.device.type, enabled=False):
        levels = (image.float() * 255).round_()
        if width % 16 or height % 16:
            levels = F.pad(levels, (0, -width % 16, 0, -height % 16), mode="replicate")
        planes = _mix(levels, _TO_YCC).round_()
        luma = _requantise(planes[:, :1] - 128, _table(_LUMA, quality)) + 128
        chroma = _requantise(F.avg_pool2d(planes[:, 1:], 2).round_(), _table(_CHROMA, quality))
        # libjpeg's "fancy" upsampling has the same weights, 3/4 and 1/4.
        chroma = F.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False)
        decoded = _mix(torch.cat([luma, chroma], dim=1), _TO_RGB)
        decoded = decoded.round_().clamp_(0, 255).div_(255)
    lossless = (quality <= 0).view(-1, 1, 1, 1)
    return torch.where(lossless, image, decoded[..., :height, :width])


def _mix(planes: Tensor, matrix: tuple[tuple[float, ...], ...]) -> Tensor:
    """Return the planes' linear combinations, one for each row of a matrix."""
    return (torch.tensor(matrix, device=planes.device) @ planes.flatten(2)).view(planes.shape)


def _requantise(planes: Tensor, table: Tensor) -> Tensor:
    """Return planes after their 8 x 8 blocks' cosine coefficients were rounded to table steps."""
    count, channels, height, width = planes.shape
    transform = _cosines().to(planes.device)
    blocks = planes.view(count, channels, height // 8, 8, width // 8, 8).transpose(3, 4)
    coefficients = blocks.reshape(count, -1, 64) @ transform.T
    step = table[:, None]
    coefficients = coefficients.div_(step).round_().mul_(step)
    decoded = (coefficients @ transform).round_().clamp_(-128, 127).view(blocks.shape)
    return decoded.transpose(3, 4).reshape(planes.shape)


@cache
def _cosines() -> Float[Tensor, "64 64"]:
    """Return the orthonormal DCT-II of a row-major 8 x 8 block as a matrix."""
    frequency = torch.arange(8, dtype=torch.float64)[:, None]
    cosine = torch.cos(math.pi * frequency * (2 * frequency.T + 1) / 16) / 2
    cosine[0] /= math.sqrt(2)
    return torch.kron(cosine, cosine).float()


def _table(base: tuple[int, ...], quality: Tensor) -> Float[Tensor, "b 64"]:
    """Return the quantisation steps of each image, by the IJG's rule."""
    quality = quality.float().round().clamp(1, 100)[:, None]
    percent = torch.where(quality < 50, (5000 / quality).floor(), 200 - 2 * quality)
    steps = torch.tensor(base, dtype=torch.float32, device=quality.device)
    return ((steps * percent + 50) / 100).floor().clamp(1, 255)
