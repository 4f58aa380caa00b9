"""What all data sets on the disk share: root, checks, cached labels, crops, loaders."""

import logging
import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from handrec.data.augment import Augmentation
from handrec.data.checks import check_files, check_labels
from handrec.data.clips import Clip, ClipTable, PicturesAndClips
from handrec.data.crop_set import (
    Crop,
    CropBatch,
    CropSet,
    MaskReader,
    PoseFormat,
    to_hand_batch,
)
from handrec.data.datamodule import HandDataModule
from handrec.data.detections import count_blank
from handrec.data.labels import Annotated, LabelTable, cache_path, save
from handrec.data.share import checked_share, labelled_share
from handrec.errors import UserError, positive
from handrec.hand.base import HandModel
from handrec.metrics.temporal import FRAME_RATE
from handrec.types import HandBatch

logger = logging.getLogger(__name__)

#: Raise whenever the same files give other labels: caches are keyed on it.
LABELS_VERSION = 4

#: Environment variable that names the folder of all data sets.
ROOT_VARIABLE = "HANDREC_DATA"


class RealHands(HandDataModule):
    """A data set on the disk.

    A subclass reads the parts of its set (:meth:`read`); everything else is here. Before anything
    trains, each part is read once, checked (``data.checks``) and kept as
    columns in ``cache_dir``; a set that fails is not used. :meth:`check` looks at all of it again.

    Args:
        root: folder of the data set; None looks for ``folders`` in ``$HANDREC_DATA``.
        hand: the method's hand model. Vertices and parameters count as labels if they are of this
            model; None drops them.
        image_size: side of the crops, pixels.
        batch_size: of every split.
        crop: ``hand``: the square around the labelled hand; ``image``: the whole image.
        box_scale: side of the crop over the longer side of the hand's box; for ``hand``.
        masks: read masks, where the set has some.
        augmentation: of training batches; None for none.
        num_workers: processes that read images; 0 reads in the main one.
        cache_dir: where labels are kept.
        label_share: of the training pictures that are shown, see ``data.share``; not of clips.
        clip: of training batches, where the set has videos; None for single pictures only.
        frame_rate: numbers of video frames that pass in a second; accelerations follow from it.

    Attributes:
        folders: names that the set's folder may have in ``$HANDREC_DATA``.
        marker: file that tells whether a folder is the set's root.
        test_marker: another one, of those who have no more than the part to evaluate on.
        parts: what a stage's splits are selected from: the name of the part of each split.
        pose_format: what the numbers of the published poses are.
        read_mask: for masks that are no pictures.
        has_detections: whether the training part's keypoints may be a detector's: hands of which
            it is sure of no joint are kept, counted and told.
        mirrored: whether images go on mirrored beyond their borders, see ``data.crops.warp``.
    """

    folders: tuple[str, ...] = ()
    marker: str = ""
    test_marker: str = ""
    parts: Mapping[str, str] = MappingProxyType(
        {"train": "training", "val": "training", "test": "evaluation"}
    )
    pose_format: PoseFormat = "vectors"
    read_mask: MaskReader | None = None
    has_detections: bool = False
    mirrored: bool = False

    def __init__(
        self,
        root: str | None = None,
        hand: HandModel | None = None,
        image_size: int = 224,
        batch_size: int = 32,
        crop: Crop = "hand",
        box_scale: float = 1.5,
        masks: bool = True,
        augmentation: Augmentation | None = None,
        num_workers: int = 2,
        cache_dir: str = ".cache/labels",
        label_share: float = 1.0,
        clip: Clip | None = None,
        frame_rate: float = FRAME_RATE,
    ) -> None:
        super().__init__()
        if min(image_size, batch_size) < 1 or box_scale <= 0:
            raise UserError("image_size, batch_size and box_scale must be positive")
        positive(self, frame_rate=frame_rate)
        self.frame_rate = frame_rate
        if clip is not None:
            if not self.has_videos:
                raise UserError(f"{self.name}: its pictures are of no videos, so it has no clips")
            clip.per_batch(batch_size)  # refuses what has no room, before anything is read
        self.clip = clip
        self.given_root, self.cache_dir = root, Path(cache_dir)
        self.hand = hand
        self.image_size, self.batch_size = image_size, batch_size
        self.crop, self.box_scale, self.masks = crop, box_scale, masks
        self.augmentation = augmentation
        self.num_workers = num_workers
        self.label_share = checked_share(label_share)
        self.tables: dict[str, LabelTable] = {}
        shown = f"{box_scale:g} x the hand's box" if crop == "hand" else "the whole image"
        self.description = f"{image_size} px; crops of {shown}"

    @abstractmethod
    def sources(self, part: str) -> list[Path]:
        """Return the files and folders that a part's labels are read from.

        Labels that are kept serve as long as the sizes and times of change of all of these do not
        change: a folder's tells of files that come and go, not of changes within files.
        """

    @abstractmethod
    def read(self, part: str) -> Annotated:
        """Return the samples of a part; a UserError names what is wrong with it."""

    def facts(self) -> dict[str, Any]:
        """Return the options that the labels depend on."""
        return {}

    def select(self, split: str, table: LabelTable) -> Int[Tensor, " s"]:
        """Return the samples of a split among those of its part; all of them by default."""
        return torch.arange(len(table))

    @property
    def has_keypoints(self) -> bool:
        """Whether a keypoint of the training part has a confidence above 0."""
        return bool((self.tables[self.parts["train"]].labels.confidence > 0).any())

    @cached_property
    def root(self) -> Path:
        """The data set's folder.

        Raises:
            UserError: there is none, or it is not this data set's.
        """
        if self.given_root:
            root = Path(self.given_root).expanduser()
            if not root.is_dir():
                raise UserError(f"{self.name}: no folder {root}")
            if not self._is_root(root):
                raise UserError(f"{root} is not the root of {self.name}: it has no {self.marker}")
            return root
        home = os.environ.get(ROOT_VARIABLE)
        if not home:
            raise UserError(
                f"{self.name} is not part of handrec: give its folder, --data.root=FOLDER, or set"
                f" {ROOT_VARIABLE} to the folder of all data sets (docs/datasets.md says how to"
                " get them)"
            )
        for folder in (*self.folders, "."):
            if self._is_root(Path(home).expanduser() / folder):
                return Path(home).expanduser() / folder
        raise UserError(
            f"no {self.name} in {ROOT_VARIABLE}={home}: no {self.marker} there or in"
            f" {', '.join(self.folders)}"
        )

    def _is_root(self, folder: Path) -> bool:
        markers = filter(None, (self.marker, self.test_marker))
        return any((folder / marker).exists() for marker in markers)

    def prepare_data(self) -> None:
        """Read and check the parts that the stage needs, and keep their labels, once."""
        state = None if self.trainer is None else self.trainer.state.fn
        for part in self._needed(state.value if state else ""):
            self._prepare(part)

    def setup(self, stage: str) -> None:
        """Map the labels of a stage into memory, and say how many of them teach nothing."""
        for part in self._needed(stage):
            if self.trainer is None:  # which would have prepared the data
                self._prepare(part)
            self.tables[part] = LabelTable(self._cache(part))
            self._check_hand(self.tables[part])
            if self.has_detections and part == self.parts["train"]:
                count_blank(str(self.root), self.tables[part].labels.confidence)

    def check(self) -> None:
        """Read and check every part again, whatever is kept of it, and set it up."""
        for part in self._needed("check"):
            self._cache(part).unlink(missing_ok=True)  # what fails now shall not serve a training
        self.setup("check")

    def fingerprint(self, split: str) -> str:
        """Return the SHA-256 of the labels and file names of a split's part, once it is set up."""
        table = self.tables.get(self.parts.get(split, ""))
        return "" if table is None else table.fingerprint

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the training split, shuffled; an incomplete batch is dropped."""
        return self._loader("train")

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the validation split, in order."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """Return the test splits, in order."""
        loaders = [self._loader(split) for split in self.test_splits]
        return loaders if len(loaders) > 1 else loaders[0]

    def on_after_batch_transfer(self, batch: CropBatch | str, dataloader_idx: int) -> HandBatch:
        """Label the crops on their device; workers augmented those of the training already."""
        if isinstance(batch, str):
            raise UserError(batch)
        return self.label(batch)

    def label(self, batch: CropBatch) -> HandBatch:
        """Return crops with their labels."""
        if self.hand is not None:
            self.hand.to(batch.affine.device)
        return to_hand_batch(batch, self.hand, self._labelled, self.pose_format)

    def crops(self, split: str, augmentation: Augmentation | None = None) -> CropSet:
        """Return the crops of a split, once it is set up; augmented only if that is asked for."""
        table = self.tables[self.parts[split]]
        chosen = self.select(split, table)
        if not len(chosen):
            hint = ": --data.val_share says how many validate" if hasattr(self, "val_share") else ""
            raise UserError(
                f"{self.name}: the split {split} is empty, of {len(table):,} samples{hint}"
            )
        if split == "train" and self.clip is None:
            chosen = chosen[labelled_share(table.row[chosen], self.label_share)]
        return CropSet(
            self.root, table, chosen, self.image_size, self.crop, self.box_scale, self.masks,
            self.read_mask, augmentation, self.mirrored,
        )  # fmt: skip

    def _with_clips(self, crops: CropSet, clip: Clip) -> PicturesAndClips[CropBatch | str]:
        """Return the training crops as single pictures, with clips of them in every batch."""
        table = crops.table
        clips = ClipTable(table.sequence[crops.samples], table.frame[crops.samples], clip)
        if not len(clips.rows):
            longest = int(table.sequence[crops.samples].unique(return_counts=True)[1].max())
            hint = f"the longest has {longest}"
            if clips.step and clip.stride % clips.step:
                hint = f"most lie {clips.step} apart, --data.init_args.clip.stride={clips.step}"
            raise UserError(
                f"{self.name}: no video of the training split has {clip.length} frames with numbers"
                f" {clip.stride} apart: {hint}"
            )
        if clips.lacking:
            logger.warning(
                "%s: %d of %d videos have no %d frames with numbers %d apart: no clips of them",
                self.name, clips.lacking, clips.lacking + len(clips.counts), clip.length,
                clip.stride,
            )  # fmt: skip
        pictures = labelled_share(table.row[crops.samples], self.label_share)
        return PicturesAndClips(crops, pictures, clips, clip.per_batch(self.batch_size))

    @property
    def _labelled(self) -> bool:
        """Whether parameters and vertices are of the hand model at hand."""
        table = next(iter(self.tables.values()))
        return self.hand is not None and type(self.hand).__name__ == table.hand

    def _prepare(self, part: str) -> None:
        if not (path := self._cache(part)).exists():
            annotated = self.read(part)
            check_labels(self.root, annotated)
            check_files(self.root, [*annotated.files, *filter(None, annotated.masks)])
            save(path, annotated)

    def _check_hand(self, table: LabelTable) -> None:
        """Refuse vertices that are not of the hand model that they are said to be of."""
        found = table.labels.vertices.shape[1]
        if self.hand is None or type(self.hand).__name__ != table.hand or not found:
            return
        if found != len(self.hand.template):
            raise UserError(
                f"{self.root}: labels have {found} vertices, expected the"
                f" {len(self.hand.template)} of {table.hand}"
            )

    def _cache(self, part: str) -> Path:
        facts = {"version": LABELS_VERSION, "class": type(self).__qualname__} | self.facts()
        return cache_path(self.cache_dir, f"{self.name}-{part}", self.sources(part), facts)

    def _needed(self, stage: str) -> tuple[str, ...]:
        """Return the parts of a stage: fit, validate, test; of any other, all of them."""
        stages: dict[str, Sequence[str]] = {
            "fit": ("train", "val"),
            "validate": ("val",),
            "test": self.test_splits,
        }
        splits = stages.get(stage, ("train", "val", *self.test_splits))
        return tuple(dict.fromkeys(self.parts[split] for split in splits))

    def _loader(self, split: str) -> DataLoader[Any]:
        training = split == "train"
        crops = self.crops(split, self.augmentation if training else None)
        if training and len(crops) < self.batch_size:
            raise UserError(
                f"{self.name}: batch_size {self.batch_size} is more than the {len(crops)} samples"
                " of the training split"
            )
        rows: Dataset[CropBatch | str] = crops
        size = self.batch_size
        if training and self.clip is not None:
            rows = self._with_clips(crops, self.clip)
            size -= self.clip.per_batch(size) * self.clip.length
        return self.loader(
            rows,
            size,
            training=training,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
        )
