"""Batches of labelled pictures and of unlabelled ones from elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from handrec.data.appearance.base import Appearance
from handrec.data.sampler import generator_of
from handrec.data.scenes import EVERY_VIEW, Views
from handrec.data.share import Rows, Shared
from handrec.data.synthetic import SyntheticHands
from handrec.data.tables import SceneBatch, SceneTable
from handrec.errors import UserError
from handrec.hand.base import HandModel
from handrec.render.base import Rasterizer
from handrec.types import HandBatch

#: The labels of a batch by the flag that says which are there.
_LABELS = {
    "has_joints_3d": ("joints_3d",),
    "has_vertices": ("vertices",),
    "has_pose": ("pose", "betas", "translation"),
    "has_mask": ("mask",),
    "has_visibility": ("visibility",),
}

#: Added to the seed of the labelled pictures for that of the others.
_ANOTHER_SEED = 104_729


@dataclass(frozen=True)
class Unlabelled:
    """The pictures without labels.

    Attributes:
        size: how many there are.
        share: of a batch.
        views: from which their hands are seen.
    """

    size: int = 16_384
    share: float = 0.5
    views: Views = EVERY_VIEW

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 < self.share < 1:
            raise UserError("unlabelled: size is at least 1, share in (0, 1)")


class MixedBatch(NamedTuple):
    """What travels to the device.

    Attributes:
        labelled: pictures whose labels are learned from.
        target: pictures whose labels nobody sees.
    """

    labelled: SceneBatch
    target: SceneBatch


class PicturesAndTargets(Dataset[MixedBatch]):
    """Labelled pictures by their indices; every batch of them also brings some random targets.

    Targets are drawn by the batch's own seed (``data.sampler``).

    Args:
        pictures: the labelled ones.
        targets: the others.
        count: targets that a batch brings.
    """

    def __init__(self, pictures: Rows[SceneBatch], targets: SceneTable, count: int) -> None:
        self.pictures, self.targets, self.count = pictures, targets, count

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitems__(self, indices: Sequence[int]) -> MixedBatch:
        """Return the pictures of the given indices and some targets."""
        rows = torch.randint(len(self.targets), (self.count,), generator=generator_of(indices))
        return MixedBatch(self.pictures.__getitems__(indices), self.targets.rows(rows))


class SyntheticMixture(SyntheticHands):
    """Synthetic hands whose training batches also hold unlabelled pictures of another domain.

    Of these only image and camera are given; every label is blanked before anyone sees it. Scenes
    and looks come from other seeds than those of all splits. What is evaluated on is the same as
    that of ``SyntheticHands``.

    Args:
        hand: the hand model drawn.
        rasterizer: draws.
        target: what the unlabelled pictures look like; None takes ``shifted``, whose identities and
            backgrounds are then those that are evaluated on.
        unlabelled: how many they are, and from where they are seen.
        options: of :class:`~handrec.data.synthetic.SyntheticHands`; ``batch_size`` counts both.
    """

    has_videos = False

    def __init__(
        self,
        hand: HandModel,
        rasterizer: Rasterizer,
        target: Appearance | None = None,
        unlabelled: Unlabelled = Unlabelled(),
        **options: Any,
    ) -> None:
        super().__init__(hand, rasterizer, **options)
        target = target or self.maker.shifted
        if target is None:
            raise UserError("unlabelled pictures need an appearance: give target or shifted")
        if self.clip is not None:
            raise UserError("a mixture has no clips")
        self.unlabelled_share = unlabelled.share
        self.count()
        maker = self.maker
        self.target = SyntheticHands(
            hand, rasterizer, self.image_size, min(self.batch_size, unlabelled.size),
            unlabelled.size, views=unlabelled.views, appearance=target, cached=maker.cached,
            cache_dir=str(maker.folder), seed=maker.seed + _ANOTHER_SEED,
        )  # fmt: skip

    def count(self) -> int:
        """Return how many pictures of a batch are unlabelled; its size may have been changed."""
        count = round(self.unlabelled_share * self.batch_size)
        if not 0 < count < self.batch_size:
            raise UserError(f"batch_size {self.batch_size} has no room for both kinds of pictures")
        return count

    def prepare_data(self) -> None:
        """Make what the stage needs; see the base class."""
        super().prepare_data()
        if self.trainer is None or self.trainer.state.fn == "fit":
            self.target.maker.make("train")

    def setup(self, stage: str) -> None:
        """Map the splits of a stage into memory."""
        super().setup(stage)
        if "train" in self.tables:
            path = self.target.maker.path("train")
            self.target.tables["train"] = SceneTable.read(path, self.maker.rows["train"])

    def train_dataloader(self) -> DataLoader[Any]:
        """Return both kinds of training pictures, shuffled; incomplete batches are dropped."""
        table: Rows[SceneBatch] = self.tables["train"]
        if self.label_share < 1:
            table = Shared(table, self.label_share)
        count = self.count()
        mixed = PicturesAndTargets(table, self.target.tables["train"], count)
        return self.loader(
            mixed, self.batch_size - count, training=True, num_workers=self.num_workers
        )

    def on_after_batch_transfer(
        self, batch: SceneBatch | MixedBatch, dataloader_idx: int
    ) -> HandBatch:
        """Draw the scenes on their device, label the labelled ones, augment all in training."""
        if isinstance(batch, SceneBatch):
            return super().on_after_batch_transfer(batch, dataloader_idx)
        mixed = self.mix(batch)
        if self.augmentation is not None:
            mixed = self.augmentation.to(mixed.image.device).augment(mixed)
        return mixed

    def mix(self, batch: MixedBatch) -> HandBatch:
        """Return the labelled pictures, then the targets without any label."""
        both = self.label(batch.labelled), without_labels(self.target.label(batch.target))
        return HandBatch(*map(torch.cat, zip(*both, strict=True)))


def without_labels(batch: HandBatch) -> HandBatch:
    """Return the batch with image and camera, and nothing else that was known of its hands."""
    absent = {flag: torch.zeros_like(getattr(batch, flag)) for flag in _LABELS}
    absent["confidence"] = torch.zeros_like(batch.confidence)
    return without_absent(batch._replace(**absent))


def labelled(batch: HandBatch) -> Bool[Tensor, " b"]:
    """Return which pictures have a 3D label."""
    return (batch.has_pose + batch.has_joints_3d + batch.has_vertices) > 0


def without_absent(batch: HandBatch) -> HandBatch:
    """Return the batch with zeros for labels that are absent, whatever was there, even NaN."""
    blank = {
        name: _present(getattr(batch, name), getattr(batch, flag) > 0)
        for flag, names in _LABELS.items()
        for name in names
    }
    return batch._replace(keypoints_2d=_present(batch.keypoints_2d, batch.confidence > 0), **blank)


def _present(label: Tensor, present: Tensor) -> Tensor:
    return torch.where(
        present.reshape(*present.shape, *[1] * (label.ndim - present.ndim)), label, 0
    )
