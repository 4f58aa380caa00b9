"""Random changes of colours: one affine map of RGB per picture, blur and noise.

Brightness, contrast, saturation and hue are linear in RGB (hue as a rotation in YIQ), so that one
matrix does all four at once: a way through HSV costs tens of times as much on a CPU. Workers apply
it to 8-bit pictures as they read them (:meth:`Changes.of_pictures`), devices to float batches
(:meth:`Changes.of_batch`); both show the same picture but for rounding.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

#: RGB to luma and two chroma axes in which hue is an angle (NTSC's YIQ).
_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


@cache
def constant(values: tuple[float, ...], device: torch.device) -> Float[Tensor, " n"]:
    """Return numbers as a tensor, copied to each device once: a copy makes the host wait.

    Do not change it in place.
    """
    with torch.inference_mode(False):  # or a training could not use what a validation made
        return torch.tensor(values, device=device)


@cache
def _hue_axes(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ``_YIQ`` and its inverse on a device, see :func:`constant`."""
    with torch.inference_mode(False):
        return _YIQ.to(device), torch.linalg.inv(_YIQ).to(device)


class Changes(NamedTuple):
    """What happens to the colours of some pictures, on the CPU.

    Attributes:
        matrix: of RGB.
        lift: added to every channel, times the picture's mean luma: contrast pivots there.
        blur: standard deviation of the 3 x 3 blur, pixels; 0 for none.
        noisy: 1 where noise is added.
        start: of each picture's window on the strip of noise.
        strip: of noise, in units of [0, 1], twice as long as a picture: windows overlap.
    """

    matrix: Float[Tensor, "b 3 3"]
    lift: Float[Tensor, " b"]
    blur: Float[Tensor, " b"]
    noisy: Float[Tensor, " b"]
    start: Int[Tensor, " b"]
    strip: Float[Tensor, " s"]

    def alike(self, kind: Int[Tensor, " b"]) -> "Changes":
        """Return changes that give pictures of one kind the same colours; noise stays each's own.

        Args:
            kind: number of each picture's kind, below the number of pictures.
        """
        return self._replace(matrix=self.matrix[kind], lift=self.lift[kind], blur=self.blur[kind])

    def of_batch(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Return a batch changed, on its device, in [0, 1]."""
        device, number = image.device, image[0].numel()
        matrix, lift, noisy = (x.to(device) for x in (self.matrix, self.lift, self.noisy))
        luma = image.mean((2, 3)) @ _hue_axes(device)[0][0]
        pixels = torch.baddbmm((lift * luma)[:, None, None], matrix, image.flatten(2))
        changed = _blurred(pixels.view_as(image), self.blur)
        if len(self.strip):
            windows = self.strip.to(device).unfold(0, number, 1)[self.start.to(device)]
            changed = changed + (noisy[:, None] * windows).view_as(image)
        return changed.clamp(0, 1)

    def of_pictures(self, pictures: UInt8[np.ndarray, "b h w 3"]) -> None:
        """Change pictures of 8 bits in place."""
        levels = (255 * self.strip).round().short().numpy()
        for i, picture in enumerate(pictures):
            luma = float(np.dot(cv2.mean(picture)[:3], _YIQ[0].numpy()))
            column = np.full((3, 1), float(self.lift[i]) * luma)
            picture[:] = cv2.transform(picture, np.hstack([self.matrix[i].numpy(), column]))
            if sigma := float(self.blur[i]):
                kernel = _kernel(sigma).numpy()
                picture[:] = cv2.sepFilter2D(picture, -1, kernel, kernel)
            if self.noisy[i]:
                window = levels[self.start[i] :][: picture.size].reshape(picture.shape)
                picture[:] = cv2.add(picture, window, dtype=cv2.CV_8U)


@dataclass(frozen=True)
class Colours:
    """How far colours may change.

    Attributes:
        brightness: greatest relative change; the same for ``contrast`` and ``saturation``.
        contrast: see ``brightness``.
        saturation: see ``brightness``.
        hue: greatest change, turns.
        share: of the pictures whose colours are changed at all.
        blur: share of blurred pictures (Gaussian, 0.3 to 1 pixel).
        noise: standard deviation of Gaussian noise, in half of the pictures.
    """

    brightness: float
    contrast: float
    saturation: float
    hue: float
    share: float
    blur: float
    noise: float

    def draw(self, count: int, size: int) -> Changes:
        """Return changes for some square pictures, from torch's generator of the CPU.

        Args:
            count: of the pictures.
            size: their side, pixels.
        """
        reach = torch.tensor([self.brightness, self.contrast, self.saturation, self.hue])
        change = (2 * torch.rand(count, 4) - 1) * reach * (torch.rand(count, 1) < self.share)
        blurred, noisy = torch.rand(2, count)
        number = 3 * size * size
        brightness, contrast, saturation = (1 + change[:, :3]).unbind(1)
        return Changes(
            *colour_map(brightness, contrast, saturation, change[:, 3]),
            blur=(0.3 + 0.7 * torch.rand(count)) * (blurred < self.blur),
            noisy=(noisy < 0.5).float() * (self.noise > 0),
            start=torch.randint(number, (count,)),
            strip=self.noise * torch.randn(2 * number if self.noise else 0),
        )


def colour_map(
    brightness: Float[Tensor, " b"],
    contrast: Float[Tensor, " b"],
    saturation: Float[Tensor, " b"],
    turns: Float[Tensor, " b"],
) -> tuple[Float[Tensor, "b 3 3"], Float[Tensor, " b"]]:
    """Return the matrices of RGB and, per unit of the picture's mean luma, what to add.

    Saturation and hue scale and turn the chroma, brightness scales everything, contrast scales the
    distance from the mean luma of the brightened picture: 1, 1, 1 and 0 change nothing.
    """
    angle = -2 * math.pi * turns  # the other way round than HSV counts
    cos, sin = saturation * angle.cos(), saturation * angle.sin()
    one, zero = torch.ones_like(cos), torch.zeros_like(cos)
    rows = [one, zero, zero, zero, cos, -sin, zero, sin, cos]
    chroma = torch.stack(rows, dim=1).view(-1, 3, 3)
    axes, back = (each.to(chroma) for each in _hue_axes(chroma.device))
    matrix = back @ chroma @ axes
    return (brightness * contrast)[:, None, None] * matrix, brightness * (1 - contrast)


def _kernel(sigma: float) -> Float[Tensor, "3"]:
    """Return a Gaussian of three pixels."""
    side = math.exp(-0.5 / sigma**2)
    return torch.tensor([side, 1.0, side]) / (1 + 2 * side)


def _blurred(image: Float[Tensor, "b 3 h w"], sigma: Float[Tensor, " b"]) -> Tensor:
    """Return the batch with some pictures blurred; they are chosen on the CPU, without a sync."""
    chosen = sigma.nonzero().flatten()
    if not len(chosen):
        return image
    rows = torch.stack([_kernel(float(sigma[i])) for i in chosen])
    kernels = (rows[:, :, None] * rows[:, None, :])[:, None].repeat_interleave(3, dim=0)
    index = chosen.to(image.device)
    padded = F.pad(image[index], (1, 1, 1, 1), mode="reflect").flatten(0, 1)[None]
    soft = F.conv2d(padded, kernels.to(image), groups=len(kernels))
    return image.index_copy(0, index, soft.view(len(chosen), *image.shape[1:]))
