"""Photos to predict on: an image or a folder, with or without boxes around the hands."""

from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch.utils.data import DataLoader, Dataset

from handrec.data.boxes import (
    HandBox,
    Side,
    camera_of,
    place_box,
    read_boxes,
    read_cameras,
)
from handrec.data.crops import Box, crop_affine, crop_intrinsics, read_image, warp
from handrec.data.datamodule import HandDataModule
from handrec.data.detection import MediaPipeHands
from handrec.data.stages import Stages
from handrec.data.suffixes import IMAGES
from handrec.errors import UserError
from handrec.types import HandBatch

#: Decoded photos that are kept between reading and drawing, bytes.
KEPT = 256 * 2**20


class PhotoHand(NamedTuple):
    """One hand in one photo.

    Attributes:
        path: of the photo.
        name: of the photo, relative to the input folder, with forward slashes.
        image_size: ``(height, width)`` of the upright photo.
        box: ``(x1, y1, x2, y2)`` around the hand, pixels of the upright photo.
        square: the square that the network sees, same pixels; may reach outside.
        side: of the body.
        intrinsics: ``K`` of the whole photo, pixels.
        intrinsics_given: whether the user gave ``K``, or it is ``default_intrinsics``.
    """

    path: Path
    name: str
    image_size: tuple[int, int]
    box: Box
    square: Box
    side: Side
    intrinsics: Float[np.ndarray, "3 3"]
    intrinsics_given: bool


class Photos(HandDataModule):
    """Serves the hands in photos to ``predict``; it has no labels.

    Boxes are a JSON file: ``{"photo.jpg": [{"box": [x1, y1, x2, y2], "side": "left"}, ...], ...}``,
    names relative to the input folder (``"trip/photo.jpg"``), pixels of the photo turned upright
    by its EXIF orientation, the whole hand from fingertips to wrist inside. ``side`` is the
    person's own hand, not the side of the picture; where it is left out it is the argument
    ``side``. A photo without an entry is left out; without a file, every photo is one crop.

    Intrinsics are a JSON file with one 3x3 ``K`` for all photos or one per name, for the upright
    photo, pixel centres at integer + 0.5 (add 0.5 to an OpenCV calibration's principal point); or
    a focal length in pixels, the principal point then being the photo's centre.

    Args:
        input: image file or folder.
        boxes: JSON file with the hands of each photo; None takes each photo as one hand.
        detector: file of MediaPipe's hand landmarker, which then finds the hands.
        intrinsics: JSON file or focal length; None assumes
            :func:`~handrec.data.crops.default_intrinsics`.
        side: of hands whose side no box names.
        recursive: look into folders in the input folder too.
        image_size: width and height of the crops, pixels.
        box_scale: side of the crop over the longer side of the box.
        batch_size: hands at a time.
        num_workers: processes that read photos.

    Attributes:
        items: the hands; ``sample_id`` of a batch indexes them. Filled by :meth:`setup`.
        skipped: one line for each unreadable photo.
        unusable: one line for each box that can hold no hand.
        unboxed: names of the photos that the boxes do not mention.
        empty: names of the photos in which the detector found no hand.
        stages: seconds spent reading and cropping, if no other processes do it.
    """

    name = "photos"

    def __init__(
        self,
        input: str,  # noqa: A002
        *,
        boxes: str | None = None,
        detector: str | None = None,
        intrinsics: str | None = None,
        side: Side = "right",
        recursive: bool = False,
        image_size: int = 224,
        box_scale: float = 1.2,
        batch_size: int = 16,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.input, self.recursive = Path(input), recursive
        if boxes is not None and detector is not None:
            raise UserError("boxes say where hands are, a detector finds them: give one of them")
        self.boxes, self.detector, self.intrinsics = boxes, detector, intrinsics
        self.side, self.box_scale, self.image_size = side, box_scale, image_size
        self.batch_size, self.num_workers = batch_size, num_workers
        self.items: list[PhotoHand] = []
        self.skipped: list[str] = []
        self.unusable: list[str] = []
        self.unboxed: list[str] = []
        self.empty: list[str] = []
        self.stages = Stages()
        self._pictures = PictureCache(self.stages)

    def setup(self, stage: str) -> None:
        """Find and read every photo once, so that whatever is wrong is said before predicting."""
        paths = find_photos(self.input, self.recursive)
        boxes = None if self.boxes is None else read_boxes(Path(self.boxes), self.side)
        cameras = None if self.intrinsics is None else read_cameras(self.intrinsics)
        for file, entries in ((self.boxes, boxes), (self.intrinsics, cameras)):
            if file is not None and isinstance(entries, dict):
                self._refuse_unknown(file, entries, paths)
        self.unboxed = [] if boxes is None else sorted(paths.keys() - boxes.keys())
        wanted = {name: path for name, path in paths.items() if boxes is None or boxes.get(name)}
        with self.stages("decode"):
            sizes = _read_sizes(wanted)
        self.skipped = [size for size in sizes.values() if isinstance(size, str)]
        readable = {name: size for name, size in sizes.items() if not isinstance(size, str)}
        if self.detector is not None:
            boxes = self._detect({name: wanted[name] for name in readable})
            self.empty = [name for name in readable if not boxes[name]]
        self.items, self.unusable = [], []
        for name, size in readable.items():
            camera, given = camera_of(cameras, name, size)
            for box, side in [(None, self.side)] if boxes is None else boxes[name]:
                try:
                    place = place_box(name, size, box, self.box_scale)
                except UserError as error:
                    self.unusable.append(str(error))
                    continue
                self.items.append(PhotoHand(wanted[name], name, size, *place, side, camera, given))
        if not self.items:
            reasons = [*self.skipped, *self.unusable][:5]
            reasons = reasons or [f"{self.boxes or self.detector} names no hand in it"]
            raise UserError(f"{self.input}: nothing to predict ({'; '.join(reasons)})")

    def _detect(self, paths: dict[str, Path]) -> dict[str, list[HandBox]]:
        """Return the hands that the detector finds in each photo."""
        assert self.detector is not None
        detector = MediaPipeHands(self.detector)
        found = {}
        for name, path in paths.items():
            picture = read_image(path)
            with self.stages("detect"):
                found[name] = detector.detect(picture)
        return found

    def picture(self, path: Path) -> UInt8[np.ndarray, "h w 3"]:
        """Return a photo, from memory where it was read a moment ago."""
        return self._pictures.read(path)

    def _refuse_unknown(self, file: str, entries: dict[str, Any], paths: dict[str, Path]) -> None:
        """Raise if a file names photos that are not in the input."""
        unknown = sorted(entries.keys() - paths.keys())
        if self.input.is_file():  # the file may serve the whole folder that this photo lies in
            unknown = [name for name in unknown if not (self.input.parent / name).is_file()]
        if unknown:
            more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
            raise UserError(
                f"{file} names photos that are not in {self.input}"
                f"{'' if self.recursive else ' (folders in it want recursive: true)'}: "
                f"{', '.join(unknown[:5])}{more}"
            )

    def predict_dataloader(self) -> DataLoader[HandBatch]:
        """Return the hands in order, those of one photo together."""
        return DataLoader(
            _Crops(self.items, self.image_size, self._pictures),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
        )

    def train_dataloader(self) -> DataLoader[HandBatch]:
        """Refuse: photos have no labels."""
        raise UserError("photos have no labels: they serve predict only")

    def val_dataloader(self) -> DataLoader[HandBatch]:
        """Refuse: photos have no labels."""
        return self.train_dataloader()

    def test_dataloader(self) -> DataLoader[HandBatch]:
        """Refuse: photos have no labels."""
        return self.train_dataloader()


class PictureCache:
    """Reads photos; the last ones stay in memory, up to :data:`KEPT` bytes and always one.

    Args:
        stages: where the seconds are counted.
    """

    def __init__(self, stages: Stages) -> None:
        self.stages = stages
        self._kept: OrderedDict[Path, UInt8[np.ndarray, "h w 3"]] = OrderedDict()

    def read(self, path: Path) -> UInt8[np.ndarray, "h w 3"]:
        """Return an upright RGB photo."""
        if path in self._kept:
            self._kept.move_to_end(path)
        else:
            with self.stages("decode"):
                self._kept[path] = read_image(path)
            while len(self._kept) > 1 and sum(x.nbytes for x in self._kept.values()) > KEPT:
                self._kept.popitem(last=False)
        return self._kept[path]


class _Crops(Dataset[HandBatch]):
    """The crops of hands in photos, every label absent."""

    def __init__(self, items: list[PhotoHand], size: int, pictures: PictureCache) -> None:
        self.items, self.size, self.pictures = items, size, pictures

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> HandBatch:
        item = self.items[index]
        picture = self.pictures.read(item.path)
        with self.pictures.stages("crop"):
            return cut_hand(picture, item, self.size, index)


def cut_hand(
    picture: UInt8[np.ndarray, "h w 3"],
    item: PhotoHand,
    size: int,
    sample_id: int,
    sequence: int | None = None,
    frame: int = 0,
) -> HandBatch:
    """Return the crop of a hand as a row of a batch, every label absent.

    Args:
        picture: that the hand is in.
        item: the hand's.
        size: width and height of the crop.
        sample_id: of the row.
        sequence: of the row; None is its ``sample_id``.
        frame: of the row.
    """
    mirror = item.side == "left"
    affine = crop_affine(item.square, size, mirror)
    crop = torch.from_numpy(warp(picture, affine, size))
    camera = crop_intrinsics(item.intrinsics, affine, mirror)
    absent = torch.zeros(())
    return HandBatch(
        image=crop.permute(2, 0, 1).float() / 255,
        intrinsics=torch.from_numpy(camera).float(),
        keypoints_2d=torch.zeros(21, 2),
        confidence=torch.zeros(21),
        joints_3d=torch.zeros(21, 3),
        vertices=torch.zeros(1, 3),  # no label, so no topology
        pose=torch.zeros(16, 3, 3),
        betas=torch.zeros(10),
        translation=torch.zeros(3),
        mask=torch.zeros(1, size, size),
        has_joints_3d=absent,
        has_vertices=absent,
        has_pose=absent,
        has_mask=absent,
        is_left=torch.tensor(float(mirror)),
        visibility=torch.zeros(21),
        has_visibility=absent,
        sample_id=torch.tensor(sample_id),
        sequence=torch.tensor(sample_id if sequence is None else sequence),
        frame=torch.tensor(frame),
        crop_to_image=torch.from_numpy(affine).float(),
    )


def _read_sizes(paths: dict[str, Path]) -> dict[str, tuple[int, int] | str]:
    """Return ``(height, width)`` of each photo, or why it cannot be read."""
    with ThreadPoolExecutor(max_workers=4) as pool:  # each holds a whole photo
        return dict(zip(paths, pool.map(_size_or_reason, paths.values()), strict=True))


def _size_or_reason(path: Path) -> tuple[int, int] | str:
    """Return ``(height, width)``, or why the photo cannot be read."""
    try:
        return read_image(path).shape[:2]
    except UserError as error:
        return str(error)


def find_photos(source: Path, recursive: bool) -> dict[str, Path]:
    """Return the photos in a folder, or the one given, by name; hidden files are left out."""
    if source.is_file():
        return {source.name: source}
    if not source.is_dir():
        raise UserError(f"{source}: no such image or folder")
    found = sorted(source.rglob("*") if recursive else source.iterdir())
    photos = {
        path.relative_to(source).as_posix(): path
        for path in found
        if path.suffix.lower() in IMAGES and not path.name.startswith(".") and path.is_file()
    }
    if not photos:
        hint = "" if recursive else "; folders in it want recursive: true"
        raise UserError(f"{source}: no images ({', '.join(sorted(IMAGES))}){hint}")
    return photos
