"""Photos to predict on: an image or a folder, with or without boxes around the hands."""

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float
from torch.utils.data import DataLoader, Dataset

from handrec.data.crops import (
    Box,
    crop_affine,
    crop_intrinsics,
    default_intrinsics,
    read_image,
    square_box,
    warp,
)
from handrec.data.datamodule import HandDataModule
from handrec.errors import UserError
from handrec.types import HandBatch

Side = Literal["right", "left"]

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})

#: A box with a side shorter than this is a mistake, not a hand (pixels).
MIN_BOX = 8

#: Hands whose box has no side of this length are predicted with a warning (pixels).
SMALL_BOX = 64

logger = logging.getLogger(__name__)


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
    photo, pixel centres at integer + 0.5 (add 0.5 to an OpenCV calibration's principal point).

    Args:
        input: image file or folder.
        boxes: JSON file with the hands of each photo; None takes each photo as one hand.
        intrinsics: JSON file; None assumes :func:`~handrec.data.crops.default_intrinsics`.
        side: of hands whose side no box names.
        recursive: look into folders in the input folder too.
        image_size: width and height of the crops, pixels.
        box_scale: side of the crop over the longer side of the box.
        batch_size: hands at a time.
        num_workers: processes that read photos.

    Attributes:
        items: the hands; ``sample_id`` of a batch indexes them. Filled by :meth:`setup`.
        skipped: one line for each unreadable photo.
        unboxed: names of the photos that the boxes do not mention.
    """

    name = "photos"

    def __init__(
        self,
        input: str,  # noqa: A002
        *,
        boxes: str | None = None,
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
        self.boxes, self.intrinsics = boxes, intrinsics
        self.side, self.box_scale, self.image_size = side, box_scale, image_size
        self.batch_size, self.num_workers = batch_size, num_workers
        self.items: list[PhotoHand] = []
        self.skipped: list[str] = []
        self.unboxed: list[str] = []

    def setup(self, stage: str) -> None:
        """Find and read every photo once, so that whatever is wrong is said before predicting."""
        paths = find_photos(self.input, self.recursive)
        boxes = None if self.boxes is None else read_boxes(Path(self.boxes), self.side)
        cameras = None if self.intrinsics is None else read_intrinsics(Path(self.intrinsics))
        for file, entries in ((self.boxes, boxes), (self.intrinsics, cameras)):
            if file is not None and isinstance(entries, dict):
                self._refuse_unknown(file, entries, paths)
        self.unboxed = [] if boxes is None else sorted(paths.keys() - boxes.keys())
        wanted = {name: path for name, path in paths.items() if boxes is None or boxes.get(name)}
        with ThreadPoolExecutor(max_workers=4) as pool:  # each holds a whole photo
            sizes = dict(zip(wanted, pool.map(_size_or_reason, wanted.values()), strict=True))
        self.skipped = [size for size in sizes.values() if isinstance(size, str)]
        self.items = []
        for name, size in sizes.items():
            if isinstance(size, str):
                continue
            given = cameras.get(name) if isinstance(cameras, dict) else cameras
            camera = default_intrinsics(*size) if given is None else given
            for box, side in [(None, self.side)] if boxes is None else boxes[name]:
                self.items.append(
                    PhotoHand(
                        wanted[name],
                        name,
                        size,
                        *self._place(name, size, box),
                        side,
                        camera,
                        given is not None,
                    )
                )
        if not self.items:
            reasons = self.skipped[:5] or [f"{self.boxes} names no hand in it"]
            raise UserError(f"{self.input}: nothing to predict ({'; '.join(reasons)})")

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

    def _place(self, name: str, size: tuple[int, int], box: Box | None) -> tuple[Box, Box]:
        """Return a hand's box and the square to crop; refuse a box that can hold no hand."""
        height, width = size
        if box is None:
            box = (0.0, 0.0, float(width), float(height))
            return box, square_box(box, 1.0)
        left, top, right, bottom = box
        shown = f"{name}: box {[round(x, 1) for x in box]}"
        if right <= left or bottom <= top:
            raise UserError(f"{shown} is inverted: it wants [x1, y1, x2, y2], x1 < x2, y1 < y2")
        if right <= 0 or bottom <= 0 or left >= width or top >= height:
            raise UserError(f"{shown} lies outside the image ({width} x {height} pixels)")
        if max(right - left, bottom - top) > 4 * max(width, height):
            raise UserError(f"{shown} is far larger than the image ({width} x {height} pixels)")
        if min(right - left, bottom - top) < MIN_BOX:
            raise UserError(f"{shown} is smaller than {MIN_BOX} pixels")
        if max(right - left, bottom - top) < SMALL_BOX:
            logger.warning("%s is smaller than %d pixels: expect a poor hand", shown, SMALL_BOX)
        return box, square_box(box, self.box_scale)

    def predict_dataloader(self) -> DataLoader[HandBatch]:
        """Return the hands in order, those of one photo together."""
        return DataLoader(
            _Crops(self.items, self.image_size),
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


class _Crops(Dataset[HandBatch]):
    """The crops of hands in photos, every label absent."""

    def __init__(self, items: list[PhotoHand], size: int) -> None:
        self.items, self.size = items, size

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> HandBatch:
        item, size = self.items[index], self.size
        mirror = item.side == "left"
        affine = crop_affine(item.square, size, mirror)
        crop = torch.from_numpy(warp(_read_cached(item.path), affine, size))
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
            sample_id=torch.tensor(index),
            sequence=torch.tensor(index),
            frame=torch.tensor(0),
            crop_to_image=torch.from_numpy(affine).float(),
        )


#: The hands of one photo follow each other: read it once.
_read_cached = lru_cache(maxsize=1)(read_image)


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
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    }
    if not photos:
        hint = "" if recursive else "; folders in it want recursive: true"
        raise UserError(f"{source}: no images ({', '.join(sorted(SUFFIXES))}){hint}")
    return photos


def read_boxes(path: Path, side: Side) -> dict[str, list[tuple[Box, Side]]]:
    """Return the boxes and sides of the hands of each photo (format: see :class:`Photos`)."""
    content = _read_json(path)
    if not isinstance(content, dict):
        raise UserError(f'{path}: not of the form {{"photo.jpg": [{{"box": ...}}, ...], ...}}')
    boxes = {}
    for name, hands in content.items():
        if not isinstance(hands, list):
            raise UserError(f"{path}: {name}: not a list of hands")
        boxes[name] = [
            _parse_hand(f"{path}: {name}, hand {i}", h, side) for i, h in enumerate(hands)
        ]
    return boxes


def _parse_hand(where: str, hand: Any, side: Side) -> tuple[Box, Side]:
    """Return box and side of one entry of a boxes file."""
    if not isinstance(hand, dict) or "box" not in hand or hand.keys() - {"box", "side"}:
        raise UserError(f'{where}: wants the keys "box" and "side", got {json.dumps(hand)}')
    if (box := _numbers(hand["box"], (4,))) is None:
        raise UserError(f"{where}: box is not [x1, y1, x2, y2]: {json.dumps(hand['box'])}")
    if (hand_side := hand.get("side", side)) not in ("right", "left"):
        raise UserError(f'{where}: side is neither "right" nor "left": {json.dumps(hand_side)}')
    return cast(Box, tuple(box.tolist())), hand_side


def read_intrinsics(
    path: Path,
) -> Float[np.ndarray, "3 3"] | dict[str, Float[np.ndarray, "3 3"]]:
    """Return the camera matrix of all photos, or of each (format: see :class:`Photos`)."""
    content = _read_json(path)
    if isinstance(content, dict):
        return {name: _parse_camera(f"{path}: {name}", matrix) for name, matrix in content.items()}
    return _parse_camera(str(path), content)


def _parse_camera(where: str, content: Any) -> Float[np.ndarray, "3 3"]:
    """Return a camera matrix, checked."""
    matrix = _numbers(content, (3, 3))
    if matrix is None or matrix[2].tolist() != [0, 0, 1] or min(matrix[0, 0], matrix[1, 1]) <= 0:
        raise UserError(f"{where}: not a camera matrix [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]")
    return matrix


def _numbers(content: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return an array of finite numbers of the given shape, or None if it is not one."""
    try:
        array = np.asarray(content, dtype=float)
    except (TypeError, ValueError):
        return None
    return array if array.shape == shape and np.isfinite(array).all() else None


def _read_json(path: Path) -> Any:
    """Return a JSON file's content; errors name the line, a name may not come twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(content := dict(pairs)) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in content if names.count(name) > 1)
            raise UserError(f"{path}: {twice!r} comes twice")
        return content

    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}: line {error.lineno}, column {error.colno}: {error.msg}"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text") from error
