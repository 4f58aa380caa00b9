"""Synthetic hands: needs no data set, no licence and no network."""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from handrec.data.appearance.base import Appearance
from handrec.data.appearance.plain import Plain
from handrec.data.augment import Augmentation
from handrec.data.clips import Clip, ClipTable, PicturesAndClips
from handrec.data.datamodule import HandDataModule
from handrec.data.detector import PRESETS, Detector, estimate_blur
from handrec.data.scenes import EVERY_VIEW, Scenes, Views, scene_camera
from handrec.data.share import Shared, checked_share, labelled_share
from handrec.data.splits import SPLITS, SplitMaker
from handrec.data.tables import Chained, SceneBatch, SceneTable
from handrec.errors import UserError, not_negative
from handrec.geometry.camera import project
from handrec.hand.base import HandModel
from handrec.render.base import Rasterizer
from handrec.types import HandBatch


class SyntheticHands(HandDataModule):
    """Random hands in random pictures, drawn by the suite's own rasterizer.

    Splits (``data.splits``, docs/data.md) are seeded and disjoint. With ``cached`` the pictures
    are drawn once and kept on disk (for CPUs); otherwise every batch is drawn on the device.

    Args:
        hand: the hand model drawn.
        rasterizer: draws.
        image_size: side of the crops, pixels.
        batch_size: of every split.
        train_size: pictures of the split; the same for ``val_size``.
        val_size: see ``train_size``.
        test_size: pictures of each test split.
        augmentation: of training batches; None for none.
        views: from which the hands are seen, but for ``test_hard_views``.
        appearance: what the pictures look like; None for ``Plain``.
        shifted: what those of ``test_shift`` look like.
        test_splits: to evaluate on: ``test``, ``test_hard_views``, ``test_shift``, ``video``.
        video_sequences: of the split ``video``; training clips come from others, which have about
            as many frames as ``train_size``.
        video_frames: of each sequence, 30 a second.
        clip: of training batches; None for single pictures only.
        detector: whose 2D keypoints are given: its faults, or ``exact``, ``typical`` or ``noisy``;
            None is ``exact``.
        cached: draw once and keep the pictures.
        cache_dir: where scenes and pictures are kept.
        seed: of the splits.
        num_workers: of the loaders; 0 is fastest for cached pictures.
        label_share: of the training pictures that are shown, see ``data.share``; not of clips.
    """

    name = "synthetic"
    has_videos = True

    def __init__(
        self,
        hand: HandModel,
        rasterizer: Rasterizer,
        image_size: int = 224,
        batch_size: int = 32,
        train_size: int = 100_000,
        val_size: int = 1_000,
        test_size: int = 1_000,
        augmentation: Augmentation | None = None,
        views: Views = EVERY_VIEW,
        appearance: Appearance | None = None,
        shifted: Appearance | None = None,
        test_splits: tuple[str, ...] = ("test",),
        video_sequences: int = 32,
        video_frames: int = 60,
        clip: Clip | None = None,
        detector: Detector | Literal["exact", "typical", "noisy"] | None = None,
        cached: bool = False,
        cache_dir: str = ".cache/synthetic",
        seed: int = 0,
        num_workers: int = 0,
        label_share: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 < batch_size <= train_size:
            raise UserError(
                f"batch_size {batch_size} must lie between 1 and train_size {train_size}"
            )
        if min(image_size, val_size, test_size, video_sequences, video_frames) < 1:
            raise UserError("image_size and the sizes of all splits must be at least 1")
        not_negative(self, num_workers=num_workers)
        if clip is not None:  # before anything is drawn
            clip.check(video_frames)
            clip.per_batch(batch_size)
        videos = max(1, train_size // video_frames)
        rows = dict.fromkeys(SPLITS, test_size) | {
            "train": train_size,
            "val": val_size,
            "video": video_sequences * video_frames,
            "train_video": videos * video_frames,
        }
        appearance = appearance or Plain()
        self.maker = SplitMaker(
            hand, rasterizer, image_size, rows, video_frames, views, appearance, shifted, cached,
            Path(cache_dir), seed,
        )  # fmt: skip
        self.maker.check(test_splits)
        self.hand = hand
        self.image_size = image_size
        self.batch_size = batch_size
        self.augmentation = augmentation
        self.test_splits = tuple(test_splits)
        self.clip = clip
        self.detector = PRESETS[detector] if isinstance(detector, str) else detector
        self.projected_keypoints = self.detector is None
        self.num_workers = num_workers
        self.label_share = checked_share(label_share)
        self.tables: dict[str, SceneTable] = {}
        self.description = (
            f"{image_size} px; {appearance.name}; fingers within {views.cone:g} degrees of up,"
            f" palm or back within {views.spin:g} of the camera"
        )

    def prepare_data(self) -> None:
        """Sample the scenes, and draw them if they are to be cached, once per configuration.

        Only what the stage needs; without a trainer, everything.
        """
        state = None if self.trainer is None else self.trainer.state.fn
        for split in self._needed(state.value if state else ""):
            self.maker.make(split)

    def setup(self, stage: str) -> None:
        """Map the splits of a stage into memory."""
        for split in self._needed(stage):
            first = self.maker.rows["train"] if split == "train_video" else 0  # numbers stay unique
            self.tables[split] = SceneTable.read(self.maker.path(split), first)

    def fingerprint(self, split: str) -> str:
        """Return the SHA-256 of a split's scenes and looks, once it is set up."""
        return self.tables[split].fingerprint if split in self.tables else ""

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the training split, shuffled; incomplete batches are dropped."""
        table = self.tables["train"]
        if self.clip is None:
            shown = table if self.label_share == 1 else Shared(table, self.label_share)
            return self._loader(shown, self.batch_size, shuffle=True)
        count = self.clip.per_batch(self.batch_size)
        rows = Chained(table, self.tables["train_video"])
        clips = ClipTable(rows.column("sequence"), rows.column("frame"), self.clip)
        pictures = labelled_share(torch.arange(len(table)), self.label_share)
        mixed = PicturesAndClips(rows, pictures, clips, count)
        return self._loader(mixed, self.batch_size - count * self.clip.length, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the validation split, in order."""
        return self._loader(self.tables["val"], self.batch_size)

    def test_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """Return the test split, in order; several in a list."""
        loaders = [self._loader(self.tables[name], self.batch_size) for name in self.test_splits]
        return loaders if len(loaders) > 1 else loaders[0]

    def on_after_batch_transfer(self, batch: SceneBatch, dataloader_idx: int) -> HandBatch:
        """Draw the scenes on their device, label them, and augment them in training."""
        testing = self.trainer is not None and self.trainer.testing
        labelled = self.label(batch, self.test_splits[dataloader_idx] if testing else "train")
        if self.augmentation is not None and self.trainer is not None and self.trainer.training:
            labelled = self.augmentation.to(labelled.image.device).augment(labelled)
        return labelled

    @torch.no_grad()
    def label(self, batch: SceneBatch, split: str = "train") -> HandBatch:
        """Return the images with their exact labels and detected keypoints.

        Args:
            batch: of a table.
            split: whose appearance is drawn, where pictures are not kept.
        """
        scenes, posed = batch.scenes, self.maker.pose(batch.scenes)
        if batch.drawn.picture.numel():
            picture = batch.drawn.picture.float() / 255
            image, mask = picture[:, :3], picture[:, 3:]
            visibility = batch.drawn.visibility.float()
        else:
            drawn = self.maker.draw(split, scenes, posed, batch.look)
            image, mask, visibility = drawn.image, drawn.mask, drawn.visibility
        camera = scene_camera(scenes, self.image_size)
        keypoints, confidence = self._detect(
            project(posed.joints, camera.intrinsics), visibility, image, scenes
        )
        present = torch.ones_like(scenes.pose[:, 0, 0, 0])
        to_crop = scenes.crop_to_image.new_tensor([1 / self.image_size, 1 / self.image_size, 1.0])
        return HandBatch(
            image=image,
            intrinsics=camera.intrinsics,
            keypoints_2d=keypoints,
            confidence=confidence,
            joints_3d=posed.joints,
            vertices=posed.vertices,
            pose=scenes.pose,
            betas=scenes.betas,
            translation=scenes.translation,
            mask=mask,
            has_joints_3d=present,
            has_vertices=present,
            has_pose=present,
            has_mask=present,
            is_left=torch.zeros_like(present),
            visibility=visibility,
            has_visibility=present,
            sample_id=batch.number,
            sequence=scenes.sequence,
            frame=scenes.frame,
            crop_to_image=scenes.crop_to_image * to_crop,
        )

    def _detect(
        self, keypoints: Tensor, visibility: Tensor, image: Tensor, scenes: Scenes
    ) -> tuple[Tensor, Tensor]:
        """Return keypoints in the crop and their confidences.

        A detector runs on the full picture: how well it resolves a hand, and so its noise, does
        not depend on the crop's resolution.
        """
        if self.detector is None:
            return keypoints, torch.ones_like(visibility)
        zoom = scenes.crop_to_image[:, 0, 0] / self.image_size
        found, confidence = self.detector.detect(
            keypoints * zoom[:, None, None],
            visibility,
            estimate_blur(image) * zoom,
            scenes.noise_seed,
        )
        return found / zoom[:, None, None], confidence

    def _needed(self, stage: str) -> tuple[str, ...]:
        """Return the splits of a stage: fit, validate, test; of any other, all of them."""
        train = ("train", "val") if self.clip is None else ("train", "val", "train_video")
        stages = {"fit": train, "validate": ("val",), "test": self.test_splits}
        return stages.get(stage, (*train, *self.test_splits))

    def _loader(
        self, table: Dataset[SceneBatch], batch_size: int, shuffle: bool = False
    ) -> DataLoader[Any]:
        return self.loader(table, batch_size, training=shuffle, num_workers=self.num_workers)
