"""Training batches from several data sets at once."""

from collections.abc import Mapping
from typing import Any

import torch
from pytorch_lightning.utilities import CombinedLoader
from torch.utils.data import DataLoader

from handrec.data.augment import Augmentation
from handrec.data.clips import Clip
from handrec.data.datamodule import HandDataModule
from handrec.data.real import RealHands
from handrec.data.streamed import StreamedImages
from handrec.errors import UserError
from handrec.hand.base import HandModel
from handrec.types import HandBatch

#: Numbers of samples and sequences of different sets are so far apart.
_APART = 1 << 40


class MixedSets(HandDataModule):
    """Batches whose rows come from several data sets, each with what labels it has.

    A label that a set lacks is zeros with its ``has_*`` at 0, as everywhere. An epoch is one pass
    through the set that lasts longest at its share of a batch; others begin again. Validation and
    tests are those of the set named by ``validate_on``. Sets with the option ``clip`` bring clips.

    Args:
        sets: by name. Their own hand, sizes of crops and batches, and augmentation do not count:
            those here do; only drawn sets keep theirs but for the batches, which must fit.
        weights: of a set in a batch, by its name; what is left out has weight 1.
        hand: the method's hand model.
        image_size: side of the crops, pixels.
        batch_size: of all sets together.
        augmentation: of training batches; None for none.
        validate_on: name of the set; None takes the first.
    """

    name = "mixture"

    def __init__(
        self,
        sets: dict[str, HandDataModule],
        weights: dict[str, float] | None = None,
        hand: HandModel | None = None,
        image_size: int = 224,
        batch_size: int = 32,
        augmentation: Augmentation | None = None,
        validate_on: str | None = None,
    ) -> None:
        super().__init__()
        if not sets:
            raise UserError("a mixture wants at least one data set")
        self.sets, self.batch_size = sets, batch_size
        self.validated = next(iter(sets)) if validate_on is None else validate_on
        for name in [self.validated, *(weights or {})]:
            if name not in sets:
                raise UserError(f"a mixture of {', '.join(sets)} has no set {name}")
        self.shares = shares(dict.fromkeys(sets, 1.0) | (weights or {}), batch_size)
        self.hand, self.image_size = hand, image_size
        for name, data in sets.items():
            if isinstance(data, RealHands | StreamedImages):
                data.hand, data.image_size, data.augmentation = hand, image_size, augmentation
            data.batch_size = self.shares[name]  # type: ignore[attr-defined]
        _check_alike({"mixture": self} | sets)
        main = sets[self.validated]
        self.test_splits, self.submission = main.test_splits, main.submission
        self.frame_rate = main.frame_rate
        self.projected_keypoints = any(data.projected_keypoints for data in sets.values())
        self.intrinsics_known = all(data.intrinsics_known for data in sets.values())
        self.clip: Clip | None = _first_of(sets, "clip")
        # For methods that draw: what drawn sets alone are augmented by, if no other is.
        self.augmentation: Augmentation | None = augmentation or _first_of(sets, "augmentation")
        described = ", ".join(f"{count} of {name}" for name, count in self.shares.items())
        self.description = f"batches with {described}; evaluated on {self.validated}"

    def prepare_data(self) -> None:
        """Prepare every set that a stage needs."""
        for data in self._all():
            data.prepare_data()

    def setup(self, stage: str) -> None:
        """Set every set up that a stage needs."""
        for data in self._all() if stage in ("fit", "") else [self.main]:
            data.setup(stage)

    @property
    def has_keypoints(self) -> bool:
        """Whether any of the sets has 2D keypoints: the others' pictures bring variety."""
        return any(data.has_keypoints for data in self.sets.values())

    @property
    def main(self) -> HandDataModule:
        """The set that is validated and tested on."""
        main = self.sets[self.validated]
        main.trainer = self.trainer
        return main

    def train_dataloader(self) -> CombinedLoader:  # type: ignore[override]
        """Return the training splits of all sets."""
        loaders = {name: data.train_dataloader() for name, data in self.sets.items()}
        return CombinedLoader(loaders, "max_size_cycle")

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the validation split of one set."""
        return self.main.val_dataloader()

    def test_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """Return the test splits of one set."""
        return self.main.test_dataloader()

    def fingerprint(self, split: str) -> str:
        """Return that of the set that is evaluated on."""
        return self.main.fingerprint(split)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> HandBatch:
        """Label the parts of a batch, each by its set, and join them."""
        if not isinstance(batch, dict):
            labelled: HandBatch = self.main.on_after_batch_transfer(batch, dataloader_idx)
            return labelled
        parts = []
        for number, (name, part) in enumerate(batch.items()):
            labelled = self.sets[name].on_after_batch_transfer(part, dataloader_idx)
            parts.append(
                labelled._replace(
                    sample_id=labelled.sample_id + number * _APART,
                    sequence=labelled.sequence + number * _APART,
                )
            )
        return HandBatch(*map(torch.cat, zip(*parts, strict=True)))

    def teardown(self, stage: str) -> None:
        """Tear every set down."""
        for data in self._all():
            data.teardown(stage)

    def _all(self) -> list[HandDataModule]:
        for data in self.sets.values():
            data.trainer = self.trainer
        return list(self.sets.values())


def shares(weights: Mapping[str, float], batch_size: int) -> dict[str, int]:
    """Return how many rows of a batch each set has: at least one, as near its weight as that goes.

    Args:
        weights: by name; need not sum to one.
        batch_size: rows of a batch.
    """
    wrong = {name: weight for name, weight in weights.items() if not 0 < weight < float("inf")}
    if wrong:
        raise UserError(f"weights of a mixture are positive: {wrong}")
    if batch_size < len(weights):
        raise UserError(f"batch_size {batch_size} has no room for {len(weights)} data sets")
    total = sum(weights.values())
    exact = {name: weight / total * batch_size for name, weight in weights.items()}
    counts = {name: max(1, int(share)) for name, share in exact.items()}
    while (left := batch_size - sum(counts.values())) != 0:  # largest remainders
        step = 1 if left > 0 else -1
        able = [name for name in counts if step > 0 or counts[name] > 1]
        name = max(able, key=lambda n: step * (exact[n] - counts[n]))
        counts[name] += step
    return counts


def _check_alike(sets: Mapping[str, HandDataModule]) -> None:
    """Refuse sets whose batches cannot be joined."""
    for what in ("image_size", "hand"):
        found = {name: _described(getattr(data, what, None)) for name, data in sets.items()}
        if len(set(found.values())) > 1:
            shown = ", ".join(f"{name} {value}" for name, value in found.items())
            raise UserError(f"the sets of a mixture have its {what}: {shown}")


def _described(value: Any) -> str:
    return str(value) if isinstance(value, int) or value is None else type(value).__name__


def _first_of(sets: Mapping[str, HandDataModule], attribute: str) -> Any:
    """Return an attribute of the first set that has it, or None."""
    found = (getattr(data, attribute, None) for data in sets.values())
    return next(filter(None, found), None)
