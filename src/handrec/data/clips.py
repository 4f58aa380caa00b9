"""Clips of videos in training batches, beside single pictures."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Dataset

from handrec.data.sampler import generator_of
from handrec.data.share import Batch_co, Rows
from handrec.errors import UserError


@dataclass(frozen=True)
class Clip:
    """Which clips training batches hold.

    Attributes:
        length: frames of a clip.
        stride: by how much frame numbers rise from one frame of a clip to the next.
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


class ClipTable:
    """Every clip that some rows hold: frames of one sequence, with numbers a stride apart.

    Where a frame is missing, no clip has it or goes over it.

    Args:
        sequence: of each row, see :class:`~handrec.types.HandBatch`.
        frame: its number in the sequence; no two rows of one sequence have the same.
        clip: what a clip is.

    Attributes:
        rows: of each clip, sequence by sequence.
        counts: clips of each sequence that has any.
        lacking: number of sequences that have none.
        step: what lies most often between a frame and the next of its sequence; 0 without one.
    """

    def __init__(self, sequence: Int[Tensor, " n"], frame: Int[Tensor, " n"], clip: Clip) -> None:
        names, sequence = sequence.unique(return_inverse=True)
        frame = frame - frame.amin()
        apart = int(frame.amax()) + clip.span  # between sequences: no clip reaches the next
        key, order = (sequence * apart + frame).sort()
        wanted = key[:, None] + clip.stride * torch.arange(clip.length)
        found = torch.searchsorted(key, wanted).clamp(max=len(key) - 1)
        self.rows = order[found[(key[found] == wanted).all(1)]]
        _, self.counts = sequence[self.rows[:, 0]].unique_consecutive(return_counts=True)
        self.lacking = len(names) - len(self.counts)
        gaps = key.diff()[sequence[order].diff() == 0]
        self.step = int(gaps.mode().values) if len(gaps) else 0
        self._first = self.counts.cumsum(0) - self.counts
        self._place = sequence * apart - frame  # later frames of a sequence before earlier ones

    def draw(self, count: int, generator: torch.Generator | None) -> Int[Tensor, "{count} t"]:
        """Return the rows of some clips.

        They are of different sequences as long as there are some left, the more often of one the
        more clips it has (P. Efraimidis and P. Spirakis, Inf. Process. Lett. 97, 2006).
        """
        sequences = len(self.counts)
        rounds = -(-count // sequences)
        chance = torch.rand(rounds, sequences, generator=generator, dtype=torch.float64)
        order = (chance.log() / self.counts).topk(min(count, sequences), dim=1).indices
        sequence = order.flatten()[:count]
        share = torch.rand(count, generator=generator, dtype=torch.float64)
        start = (share * self.counts[sequence]).long()
        return self.rows[self._first[sequence] + start]

    def arrange(
        self, pictures: Int[Tensor, " p"], clips: Int[Tensor, "c t"]
    ) -> Int[Tensor, " p+c*t"]:
        """Return the rows of single pictures and clips in an order in which none join.

        Of one sequence what is later comes first: frame numbers rise within a clip only.
        """
        first = torch.cat([pictures, clips[:, :1].expand_as(clips).flatten()])
        order = self._place[first].argsort(stable=True)
        return torch.cat([pictures, clips.flatten()])[order]


class PicturesAndClips(Dataset[Batch_co]):
    """Single pictures by their indices; every batch of them also brings some random clips.

    Rows are in the order of their sequences, the frames of a clip after each other. Clips are drawn
    by the batch's own seed (``data.sampler``).

    Args:
        rows: that pictures and frames are rows of.
        pictures: rows of the single ones.
        clips: of the rows.
        count: clips that a batch brings.
    """

    def __init__(
        self, rows: Rows[Batch_co], pictures: Int[Tensor, " p"], clips: ClipTable, count: int
    ) -> None:
        self.rows, self.pictures, self.clips, self.count = rows, pictures, clips, count

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitems__(self, indices: Sequence[int]) -> Batch_co:
        """Return the pictures of the given indices and the frames of some clips."""
        clips = self.clips.draw(self.count, generator_of(indices))
        chosen = copy(indices) if isinstance(indices, list) else list(indices)
        pictures = self.pictures[torch.as_tensor(chosen)]
        chosen[:] = self.clips.arrange(pictures, clips).tolist()  # and keeps the batch's seed
        return self.rows.__getitems__(chosen)
