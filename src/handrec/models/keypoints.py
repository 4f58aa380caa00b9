"""2D branches: networks whose heat maps become keypoints by a soft argmax.

X. Sun et al., "Integral Human Pose Regression", ECCV 2018.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from handrec.geometry.camera import move_pixels
from handrec.models.compiling import Compilable


class Found(NamedTuple):
    """What a 2D branch sees; of one with several stacks the final answer comes last.

    Attributes:
        keypoints: crop pixels, float32.
        maps: logits of the heat maps.
        stride: pixels along a side of their cells, which tile the image.
        warp: from pixels of the image to those that the maps tile, where these are not the same.
        upsample: whether the keypoints were read off enlarged maps, see :func:`soft_argmax`.
    """

    keypoints: Float[Tensor, "s b 21 2"]
    maps: Float[Tensor, "s b 21 h w"]
    stride: int
    warp: Float[Tensor, "b 3 3"] | None = None
    upsample: bool = False

    def to_cells(self, points: Float[Tensor, "b j 2"]) -> Float[Tensor, "b j 2"]:
        """Return where on the maps the soft argmax has points of the image: columns and rows.

        Args:
            points: pixels of the image.
        """
        if self.warp is not None:
            points = move_pixels(points, self.warp)
        if not self.upsample:
            return points / self.stride - 0.5
        sides = points.new_tensor(self.maps.shape[-2:]).flip(0)
        return (points - 0.5) * (sides - 1) / (sides * self.stride - 1)


class KeypointNetwork(Compilable, ABC):
    """A 2D branch."""

    @abstractmethod
    def find(self, image: Float[Tensor, "b 3 h w"]) -> Found:
        """Return the keypoints of images, RGB in [0, 1]."""


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
