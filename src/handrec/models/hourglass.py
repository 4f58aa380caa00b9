"""S2HAND's 2D branch: a stacked hourglass whose heat maps become keypoints by a soft argmax.

A. Newell et al., "Stacked Hourglass Networks for Human Pose Estimation", ECCV 2016; X. Sun et al.,
"Integral Human Pose Regression", ECCV 2018. Sizes by default as in S2HAND's public code.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


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


class Hourglass(nn.Module):
    """Keypoints from images, one answer per stack.

    Args:
        stacks: hourglasses, each of which sees the one before.
        width: channels.
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
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a third faster

    def find(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "s b 21 2"]:
        """Return the keypoints of every stack, crop pixels, the final ones last.

        Args:
            image: RGB in [0, 1]; padded with zeros at the right and the bottom to a size that the
                hourglass can halve.
        """
        multiple = 4 << self.depth
        padding = [-side % multiple for side in image.shape[:-3:-1]]
        padded = F.pad(image - 0.5, (0, padding[0], 0, padding[1]))
        x = self.stem(padded.contiguous(memory_format=torch.channels_last))
        found = []
        for i, (hourglass, heatmap) in enumerate(zip(self.hourglasses, self.heatmaps, strict=True)):
            features = hourglass(x)
            maps = heatmap(features)
            found.append(soft_argmax(maps, stride=4, upsample=self.upsample))
            if i < len(self.features_back):
                x = x + self.features_back[i](features) + self.maps_back[i](maps)
        return torch.stack(found)


def soft_argmax(
    maps: Float[Tensor, "b j h w"], stride: int, *, upsample: bool
) -> Float[Tensor, "b j 2"]:
    """Return the mean position under the softmax of each map, pixels, in float32.

    Args:
        maps: logits; cell centres tile the image at ``stride`` pixels.
        stride: pixels of a cell.
        upsample: take the softmax over the maps enlarged to pixels, corner on corner, as published.
    """
    with torch.autocast(maps.device.type, enabled=False):
        maps = maps.float()
        if upsample:
            maps = F.interpolate(maps, scale_factor=stride, mode="bilinear", align_corners=True)
            stride = 1
        height, width = maps.shape[-2:]
        share = maps.flatten(2).softmax(-1).view_as(maps)
        rows, columns = (
            (torch.arange(side, device=maps.device) + 0.5) * stride for side in (height, width)
        )
        x, y = (share.sum(2) * columns).sum(-1), (share.sum(3) * rows).sum(-1)
        return torch.stack([x, y], dim=-1)
