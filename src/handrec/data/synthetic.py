"""Synthetic hands: needs no data set, no licence and no network."""

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Int
from rich.progress import track
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from handrec.data.augment import Augmentation
from handrec.data.datamodule import HandDataModule
from handrec.data.drawing import draw_scenes, scene_camera
from handrec.data.scenes import EVERY_VIEW, SCENES_VERSION, Scenes, Views, sample_scenes
from handrec.errors import UserError
from handrec.geometry.camera import project
from handrec.hand.base import HandModel
from handrec.render.base import Rasterizer
from handrec.types import Hand, HandBatch

Split = Literal["train", "val", "test"]

#: Scenes are sampled and drawn so many at a time; a split's seed and the block's number seed each.
_BLOCK = 512


class SceneBatch(NamedTuple):
    """What travels to the device.

    Attributes:
        scenes: the scenes.
        picture: their images and masks as bytes if they were drawn before, else empty.
        number: of each scene in its split.
    """

    scenes: Scenes
    picture: Tensor
    number: Int[Tensor, " b"]


class SyntheticHands(HandDataModule):
    """Random hands before random backgrounds, drawn by the suite's own rasterizer.

    Splits are seeded and disjoint. With ``cached`` the pictures are drawn once and kept on disk
    (for CPUs); otherwise every batch is drawn on the device.

    Args:
        hand: the hand model drawn.
        rasterizer: draws.
        image_size: side of the crops, pixels.
        batch_size: of every split.
        train_size: scenes of the split; the same for ``val_size`` and ``test_size``.
        val_size: see ``train_size``.
        test_size: see ``train_size``.
        augmentation: of training batches; None for none.
        views: from which the hands are seen.
        keypoints: ``exact`` projections, or ``detected`` ones with noise and confidences.
        cached: draw once and keep the pictures.
        cache_dir: where scenes and pictures are kept.
        seed: of the splits.
        num_workers: of the loaders; 0 is fastest for cached pictures.
    """

    name = "synthetic"

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
        keypoints: Literal["exact", "detected"] = "exact",
        cached: bool = False,
        cache_dir: str = ".cache/synthetic",
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        if not 0 < batch_size <= train_size:
            raise UserError(
                f"batch_size {batch_size} must lie between 1 and train_size {train_size}"
            )
        if min(image_size, val_size, test_size) < 1:
            raise UserError("image_size, val_size and test_size must be at least 1")
        self.hand = hand
        self.rasterizer = rasterizer
        self.image_size = image_size
        self.batch_size = batch_size
        self.sizes: dict[Split, int] = {"train": train_size, "val": val_size, "test": test_size}
        self.augmentation = augmentation
        self.views = views
        self.keypoints = keypoints
        self.cached = cached
        self.cache_dir = Path(cache_dir)
        self.seed = seed
        self.num_workers = num_workers
        self.tables: dict[Split, SceneTable] = {}
        self.description = (
            f"{image_size} px; fingers within {views.cone:g} degrees of up,"
            f" palm or back within {views.spin:g} of the camera"
        )

    def prepare_data(self) -> None:
        """Sample the scenes, and draw them if they are to be cached, once per configuration.

        An evaluation needs its own split only.
        """
        stage = None if self.trainer is None else self.trainer.state.fn
        needed: dict[str, tuple[Split, ...]] = {"test": ("test",), "validate": ("val",)}
        for split in needed.get(stage.value if stage else "fit", ("train", "val", "test")):
            if not self._file(split).exists():
                self._build(split)

    def setup(self, stage: str) -> None:
        """Map the splits of a stage into memory."""
        wanted: dict[str, tuple[Split, ...]] = {"fit": ("train", "val"), "validate": ("val",)}
        for split in wanted.get(stage, ("test",)):
            path = self._file(split)
            try:
                self.tables[split] = SceneTable(load_file(path))
            except SafetensorError as error:
                raise UserError(
                    f"{path} is damaged ({error}): delete it and start again"
                ) from error

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the training split, shuffled; incomplete batches are dropped."""
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the validation split, in order."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the test split, in order."""
        return self._loader("test")

    def on_after_batch_transfer(self, batch: SceneBatch, dataloader_idx: int) -> HandBatch:
        """Draw the scenes on their device, label them, and augment them in training."""
        labelled = self.label(batch)
        if self.augmentation is not None and self.trainer is not None and self.trainer.training:
            labelled = self.augmentation.to(labelled.image.device).augment(labelled)
        return labelled

    @torch.no_grad()
    def label(self, batch: SceneBatch) -> HandBatch:
        """Return the images with their exact labels."""
        scenes = batch.scenes
        posed = self._pose(scenes)
        if batch.picture.numel():
            picture = batch.picture.float() / 255
            image, mask = picture[:, :3], picture[:, 3:]
        else:
            image, mask = draw_scenes(scenes, posed, self.hand, self.rasterizer, self.image_size)
        camera = scene_camera(scenes, self.image_size)
        keypoints, confidence = project(posed.joints, camera.intrinsics), scenes.confidence
        if self.keypoints == "detected":
            keypoints = keypoints + scenes.keypoint_noise * self.image_size
        else:
            confidence = torch.ones_like(confidence)
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
            visibility=torch.zeros_like(confidence),
            has_visibility=torch.zeros_like(present),
            sample_id=batch.number,
            sequence=batch.number,
            frame=torch.zeros_like(batch.number),
            crop_to_image=scenes.crop_to_image * to_crop,
        )

    def _pose(self, scenes: Scenes) -> Hand:
        self.hand.to(scenes.pose.device)
        self.rasterizer.to(scenes.pose.device)
        return self.hand.decode(scenes.pose, scenes.betas, scenes.translation)

    def _loader(self, split: Split, shuffle: bool = False) -> DataLoader[Any]:
        return DataLoader(
            self.tables[split],
            batch_size=self.batch_size,
            shuffle=shuffle,
            drop_last=shuffle,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            collate_fn=_as_is,
        )

    def _file(self, split: Split) -> Path:
        """Name the split's file by everything that its content depends on."""
        surface = hashlib.sha256(self.hand.template.cpu().numpy().tobytes()).hexdigest()[:8]
        parts = [
            SCENES_VERSION,
            split,
            self.sizes[split],
            self.seed,
            surface,
            self.views.cone,
            self.views.spin,
        ]
        parts += [self.image_size] if self.cached else []
        return self.cache_dir / ("-".join(str(part) for part in parts) + ".safetensors")

    def _build(self, split: Split) -> None:
        """Sample and draw a split; the file appears under its name only when it is complete."""
        blocks: list[dict[str, Tensor]] = []
        starts = range(0, self.sizes[split], _BLOCK)
        what = f"drawing {self.sizes[split]:,} {split} images" if self.cached else f"{split} scenes"
        for start in track(starts, description=what, transient=True):
            count = min(_BLOCK, self.sizes[split] - start)
            seed = _block_seed(self.seed, split, start)
            scenes = sample_scenes(self.hand, count, seed, self.views)
            block = scenes._asdict()
            if self.cached:
                block["picture"] = self._draw(scenes)
            blocks.append(block)
        table = {key: torch.cat([block[key] for block in blocks]).contiguous() for key in blocks[0]}
        path = self._file(split)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(table, partial)
            partial.replace(path)
        except OSError as error:
            raise UserError(f"cannot write the synthetic data to {path.parent}: {error}") from error
        finally:
            with suppress(OSError):  # its folder may be what could not be made
                partial.unlink(missing_ok=True)

    def _draw(self, scenes: Scenes, chunk: int = 64) -> Tensor:
        """Return images and masks as bytes, ``(B, 4, H, W)``."""
        pictures = []
        for rows in torch.arange(len(scenes.pose)).split(chunk):
            part = Scenes(*(column[rows] for column in scenes))
            drawn = draw_scenes(part, self._pose(part), self.hand, self.rasterizer, self.image_size)
            pictures.append((torch.cat(drawn, dim=1) * 255).round().to(torch.uint8))
        return torch.cat(pictures)


class SceneTable(Dataset[SceneBatch]):
    """The scenes of a split; a whole batch is fetched at once, by its indices."""

    def __init__(self, columns: dict[str, Tensor]) -> None:
        self.picture = columns.pop("picture", None)
        self.scenes = Scenes(**columns)

    def __len__(self) -> int:
        return len(self.scenes.pose)

    def __getitems__(self, indices: Sequence[int]) -> SceneBatch:
        """Return the scenes of the given indices as one batch."""
        index = torch.as_tensor(indices)
        picture = torch.empty(0) if self.picture is None else self.picture[index]
        return SceneBatch(Scenes(*(column[index] for column in self.scenes)), picture, index)


def _as_is(batch: Any) -> Any:
    """Keep what ``__getitems__`` returned: it is a batch already."""
    return batch


def _block_seed(seed: int, split: str, start: int) -> int:
    digest = hashlib.sha256(f"{seed}/{split}/{start}".encode()).digest()
    return int.from_bytes(digest[:7], "big")
