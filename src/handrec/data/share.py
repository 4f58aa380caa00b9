"""Training on a share of the labels: fewer pictures, as many steps."""

from collections.abc import Sequence
from copy import copy
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Dataset

from handrec.errors import UserError

Batch_co = TypeVar("Batch_co", covariant=True)


@runtime_checkable
class Rows(Protocol[Batch_co]):
    """Whatever fetches a whole batch by its indices."""

    def __len__(self) -> int: ...

    def __getitems__(self, indices: Sequence[int], /) -> Batch_co: ...


def checked_share(share: float) -> float:
    """Return a share of labels, or raise a UserError that says what it may be."""
    if not 0 < share <= 1:
        raise UserError(f"label_share {share:g} must lie in (0, 1]: 0.1 is a tenth of the labels")
    return share


def labelled_share(groups: Int[Tensor, " n"], share: float) -> Int[Tensor, " n"]:
    """Return the samples of a share of the groups, in turn, until there are ``n``.

    An epoch stays as long as with all labels, so that steps and schedules stay the same. Which
    groups are chosen depends on their number alone, and a larger share holds the smaller ones.

    Args:
        groups: of each sample; those of a group are kept or left together (the versions of one
            picture in FreiHAND).
        share: of the groups, in (0, 1]; at least one is kept.
    """
    samples = torch.arange(len(groups))
    if share == 1:
        return samples
    names = groups.unique()
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(0))
    kept = names[order[: max(1, round(share * len(names)))]]
    chosen = samples[torch.isin(groups, kept)]
    return chosen[samples % len(chosen)]


class Shared(Dataset[Batch_co]):
    """Rows of which only a share of the pictures is shown, see :func:`labelled_share`.

    Args:
        rows: all of them.
        share: of the pictures.
    """

    def __init__(self, rows: Rows[Batch_co], share: float) -> None:
        self.rows = rows
        self.index = labelled_share(torch.arange(len(rows)), share).tolist()

    def __len__(self) -> int:
        return len(self.index)

    def __getitems__(self, indices: Sequence[int]) -> Batch_co:
        """Return the batch of the given indices."""
        chosen = copy(list(indices) if not isinstance(indices, list) else indices)
        chosen[:] = [self.index[i] for i in indices]  # whatever else a list of indices carries
        return self.rows.__getitems__(chosen)
