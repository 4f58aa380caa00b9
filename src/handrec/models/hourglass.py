"""S2HAND's 2D branch: a stacked hourglass; and ours for small crops, one hourglass that widens.

A. Newell et al., "Stacked Hourglass Networks for Human Pose Estimation", ECCV 2016. Sizes by
default as in S2HAND's public code.
"""

from collections.abc import Iterable
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from handrec.errors import UserError, positive
from handrec.models.keypoints import Found, KeypointNetwork, soft_argmax


class Residual(nn.Module):
    """A pre-activated bottleneck; it is added to its (projected) input."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        middle = outputs // 2
        sizes = ((inputs, middle, 1), (middle, middle, 3), (middle, outputs, 1))
        layers: list[nn.Module] = []
        for before, after, kernel in sizes:
            convolution = nn.Conv2d(before, after, kernel, padding=kernel // 2)
            layers += [nn.BatchNorm2d(before), nn.ReLU(), convolution]
        self.convolutions = nn.Sequential(*layers)
        self.short = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` plus what the bottleneck says."""
        short: Tensor = self.short(x)
        added: Tensor = short + self.convolutions(x)
        return added


class Level(nn.Module):
    """One resolution of an hourglass and, inside it, all lower ones."""

    def __init__(self, depth: int, width: int, blocks: int) -> None:
        super().__init__()

        def several() -> nn.Sequential:
            return nn.Sequential(*(Residual(width, width) for _ in range(blocks)))

        self.beside, self.down, self.up = several(), several(), several()
        self.inner: nn.Module = Level(depth - 1, width, blocks) if depth > 1 else several()

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the same size."""
        low = self.up(self.inner(self.down(F.max_pool2d(x, 2))))
        beside: Tensor = self.beside(x)
        return beside + F.interpolate(low, scale_factor=2)


class Hourglass(KeypointNetwork):
    """Keypoints from images, one answer per stack.

    Args:
        stacks: hourglasses, each of which sees the one before.
        width: channels, a multiple of 4.
        depth: halvings inside an hourglass.
        blocks: residual modules at each place.
        upsample: whether the softmax is taken over heat maps as large as the image, as published,
            or over their own cells (16 times cheaper).
    """

    def __init__(
        self,
        stacks: int = 2,
        width: int = 256,
        depth: int = 4,
        blocks: int = 2,
        upsample: bool = True,
    ) -> None:
        super().__init__()
        positive(self, stacks=stacks, width=width, depth=depth, blocks=blocks)
        if width % 4:
            raise UserError(f"Hourglass: width={width}: must be a multiple of 4")
        self.depth, self.upsample = depth, upsample
        self.stem = nn.Sequential(
            nn.Conv2d(3, width // 4, 7, stride=2, padding=3),
            nn.BatchNorm2d(width // 4),
            nn.ReLU(),
            Residual(width // 4, width // 2),
            nn.MaxPool2d(2),
            Residual(width // 2, width // 2),
            Residual(width // 2, width),
        )
        self.hourglasses = nn.ModuleList(
            nn.Sequential(
                Level(depth, width, blocks),
                *(Residual(width, width) for _ in range(blocks)),
                nn.Conv2d(width, width, 1),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            )
            for _ in range(stacks)
        )
        self.heatmaps = nn.ModuleList(nn.Conv2d(width, 21, 1) for _ in range(stacks))
        self.features_back = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(stacks - 1))
        self.maps_back = nn.ModuleList(nn.Conv2d(21, width, 1) for _ in range(stacks - 1))
        self.to(memory_format=torch.channels_last)  # a third faster

    def networks(self) -> Iterable[nn.Module]:
        """Return the stem and the stacks."""
        return self.stem, *self.hourglasses

    def find(self, image: Float[Tensor, "b 3 h w"]) -> Found:
        """Return the keypoints of every stack.

        Args:
            image: RGB in [0, 1]; padded with zeros at the right and the bottom to a size that the
                hourglass can halve.
        """
        x = self.stem(_padded(image - 0.5, 4 << self.depth))
        maps = []
        for i, (hourglass, heatmap) in enumerate(zip(self.hourglasses, self.heatmaps, strict=True)):
            features = hourglass(x)
            maps.append(heatmap(features))
            if i < len(self.features_back):
                x = x + self.features_back[i](features) + self.maps_back[i](maps[-1])
        found = [soft_argmax(each, stride=4, upsample=self.upsample) for each in maps]
        return Found(torch.stack(found), torch.stack(maps), 4, upsample=self.upsample)


class WideningHourglass(KeypointNetwork):
    """One hourglass with more channels the lower the resolution: ours, for small crops.

    Crops of 64 px leave an hourglass few cells, and channels cost little where cells are few.

    Args:
        widths: channels at strides 4, 8, ..., even numbers.
        blocks: residual modules at each stride, on the way down.
    """

    def __init__(self, widths: tuple[int, ...] = (64, 128, 256), blocks: int = 2) -> None:
        super().__init__()
        positive(self, widths=min(widths, default=0), blocks=blocks)
        if any(width % 2 for width in widths):
            raise UserError(f"WideningHourglass: widths={list(widths)}: must be even")
        self.halvings = len(widths) - 1
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0] // 2, 3, stride=2, padding=1),
            nn.BatchNorm2d(widths[0] // 2),
            nn.ReLU(),
            nn.Conv2d(widths[0] // 2, widths[0], 3, stride=2, padding=1),
        )
        self.levels = nn.ModuleList(
            nn.Sequential(*(Residual(width, width) for _ in range(blocks))) for width in widths
        )
        pairs = list(pairwise(widths))
        self.down = nn.ModuleList(nn.Conv2d(fine, coarse, 2, stride=2) for fine, coarse in pairs)
        self.up = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(coarse), nn.ReLU(), nn.Conv2d(coarse, fine, 1))
            for fine, coarse in pairs
        )
        self.heatmap = nn.Sequential(
            Residual(widths[0], widths[0]),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
            nn.Conv2d(widths[0], 21, 1),
        )
        self.to(memory_format=torch.channels_last)

    def networks(self) -> Iterable[nn.Module]:
        """Return what works on the maps of each stride."""
        return self.stem, *self.levels, *self.up, self.heatmap

    def find(self, image: Float[Tensor, "b 3 h w"]) -> Found:
        """Return the keypoints; sizes of images as for :class:`Hourglass`."""
        x = self.levels[0](self.stem(_padded(image - 0.5, 4 << self.halvings)))
        finer = []
        for down, level in zip(self.down, self.levels[1:], strict=True):
            finer.append(x)
            x = level(down(x))
        for up in reversed(self.up):
            x = finer.pop() + F.interpolate(up(x), scale_factor=2)
        maps = self.heatmap(x)
        return Found(soft_argmax(maps, stride=4, upsample=False)[None], maps[None], 4)


def _padded(image: Tensor, multiple: int) -> Tensor:
    """Return images with zeros at the right and the bottom, channels last."""
    right, bottom = (-side % multiple for side in image.shape[:-3:-1])
    padded = F.pad(image, (0, right, 0, bottom))
    return padded.contiguous(memory_format=torch.channels_last)
