"""Clips of videos in training batches, beside single pictures."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Dataset

from handrec.data.sampler import generator_of
from handrec.data.tables import SceneBatch, SceneTable, join
from handrec.errors import UserError


@dataclass(frozen=True)
class Clip:
    """Which clips training batches hold.

    Attributes:
        length: frames of a clip.
        stride: from one frame of a clip to the next, frames of its video.
        share: of a batch that is frames of clips, as near as whole clips come; at least one clip.
    """

    length: int = 3
    stride: int = 1
    share: float = 0.5

    def __post_init__(self) -> None:
        if self.length < 2 or self.stride < 1 or not 0 < self.share < 1:
            raise UserError(
                "a clip has at least 2 frames, a stride of at least 1, a share in (0, 1)"
            )

    @property
    def span(self) -> int:
        """Frames of the video from the first to the last of a clip, both included."""
        return (self.length - 1) * self.stride + 1

    def check(self, frames: int) -> None:
        """Refuse sequences of fewer frames than a clip spans."""
        if self.span > frames:
            raise UserError(
                f"a clip of {self.length} frames with stride {self.stride} spans {self.span}"
                f" frames, its sequence has {frames} (video_frames)"
            )

    def per_batch(self, batch_size: int) -> int:
        """Return how many clips a batch of so many pictures holds."""
        clips = max(1, round(self.share * batch_size / self.length))
        if clips * self.length >= batch_size:
            raise UserError(
                f"a batch of {batch_size} has no room for a clip of {self.length} frames beside"
                " single pictures"
            )
        return clips


class PicturesAndClips(Dataset[SceneBatch]):
    """Single pictures by their indices; every batch of them also brings some random clips.

    The frames of a clip follow each other in the batch, after the single pictures. No clip crosses
    a sequence. Clips are drawn by the batch's own seed (``data.sampler``).

    Args:
        pictures: single ones.
        videos: sequences of equal length, one after the other.
        frames: of a sequence.
        clip: of the videos.
        count: clips that a batch brings.
    """

    def __init__(
        self, pictures: SceneTable, videos: SceneTable, frames: int, clip: Clip, count: int
    ) -> None:
        clip.check(frames)
        self.pictures, self.videos = pictures, videos
        self.frames, self.clip, self.count = frames, clip, count

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitems__(self, indices: Sequence[int]) -> SceneBatch:
        """Return the pictures of the given indices, then the frames of some clips."""
        return join([self.pictures.__getitems__(indices), self.videos.rows(self._draw(indices))])

    def _draw(self, indices: Sequence[int]) -> Int[Tensor, " b"]:
        """Return the rows of some clips of the videos."""
        generator = generator_of(indices)
        sequences, starts = len(self.videos) // self.frames, self.frames - self.clip.span + 1
        # Of different sequences where there are enough: two clips of one might join.
        rounds = -(-self.count // sequences)
        order = [torch.randperm(sequences, generator=generator) for _ in range(rounds)]
        sequence = torch.cat(order)[: self.count, None]
        start = torch.randint(starts, (self.count, 1), generator=generator)
        step = torch.arange(self.clip.length) * self.clip.stride
        return (sequence * self.frames + start + step).flatten()
