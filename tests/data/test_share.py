"""A share of the labels: the same pictures every time, the same number of steps."""

import pytest
import torch

from handrec.data.share import Shared, checked_share, labelled_share
from handrec.errors import UserError


def test_a_share_is_repeated_to_full_length_and_seen_equally_often():
    chosen = labelled_share(torch.arange(1000), 0.1)
    assert len(chosen) == 1000
    values, counts = chosen.unique(return_counts=True)
    assert len(values) == 100
    assert counts.unique().tolist() == [10]
    assert values.float().mean() == pytest.approx(500, abs=100)  # from all over


def test_larger_shares_hold_smaller_ones_and_all_is_all():
    held: set[int] = set()
    for share in (0.01, 0.05, 0.1, 1.0):
        chosen = set(labelled_share(torch.arange(1000), share).tolist())
        assert len(chosen) == round(1000 * share)
        assert held <= chosen
        held = chosen


def test_it_depends_on_nothing_but_the_count():
    torch.manual_seed(1)
    first = labelled_share(torch.arange(300), 0.05)
    torch.manual_seed(2)
    assert torch.equal(first, labelled_share(torch.arange(300), 0.05))


def test_versions_of_a_picture_stay_together():
    groups = torch.arange(40).repeat(4)  # FreiHAND: four versions of each picture
    chosen = labelled_share(groups, 0.1).unique()
    assert len(chosen) == 16
    assert groups[chosen].unique(return_counts=True)[1].tolist() == [4] * 4


def test_a_tiny_share_keeps_one():
    assert labelled_share(torch.arange(50), 1e-6).unique().numel() == 1


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5])
def test_other_shares_are_refused(share):
    with pytest.raises(UserError, match=r"label_share .* must lie in"):
        checked_share(share)


class Seeded(list):
    seed = 0


def test_rows_are_looked_up_and_what_their_list_carries_is_kept():
    class Squares:
        def __len__(self):
            return 100

        def __getitems__(self, indices):
            self.seed = getattr(indices, "seed", None)
            return [i**2 for i in indices]

    rows = Squares()
    shared, wanted = Shared(rows, 0.05), Seeded([0, 5, 99])
    wanted.seed = 7
    index = labelled_share(torch.arange(100), 0.05).tolist()
    assert shared.__getitems__(wanted) == [index[i] ** 2 for i in (0, 5, 99)]
    assert rows.seed == 7
    assert list(wanted) == [0, 5, 99]
    assert len(shared) == 100
