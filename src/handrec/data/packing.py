"""Packs a folder of photos into shards, and drawn hands as well."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from handrec.data.boxes import HandBox, check_box, read_boxes
from handrec.data.columns import hashed_share
from handrec.data.decode import decode, read_encoded
from handrec.data.layouts import JPEG, samples_of
from handrec.data.photos import find_photos
from handrec.data.shards import describe, write_shards
from handrec.data.streams import Annotation
from handrec.errors import UserError
from handrec.hand.base import HandModel
from handrec.types import HandBatch

_QUALITY = [cv2.IMWRITE_JPEG_QUALITY, 92]

#: A sample of an archive: suffix and bytes of the picture, content of its ``.json``.
Sample = tuple[str, bytes, dict[str, Any]]


def pack_folder(
    folder: Path,
    out: Path,
    per_shard: int = 1000,
    shortest: int | None = None,
    boxes: Path | None = None,
) -> tuple[dict[str, int], list[str]]:
    """Pack the photos below a folder into shards, mixed by a hash of their names.

    Args:
        folder: of the photos.
        out: folder to write to; empty or not there.
        per_shard: pictures of an archive.
        shortest: pictures whose shorter side is longer are shrunk to it, pixels; None keeps files
            as they are.
        boxes: JSON file of the hands of each photo, as ``predict`` takes it: each becomes a sample,
            and photos without one are left out; None packs each photo once.

    Returns:
        Pictures by the name of the archive, and a line for each photo that could not be read and
        for each box that can hold no hand, which are left out.
    """
    photos = find_photos(folder, recursive=True)
    hands = None if boxes is None else read_boxes(boxes, "right")
    if hands is not None and (unknown := sorted(hands.keys() - photos.keys())):
        raise UserError(f"{boxes} names {unknown[0]}, which is not in {folder}")
    names = [name for name in photos if hands is None or hands.get(name)]
    mixed = [names[i] for i in hashed_share(names).argsort(stable=True).tolist()] if names else []
    skipped: list[str] = []

    def samples() -> Iterator[Sample]:
        for name in mixed:
            try:
                suffix, encoded, size, scale = _shrunk(photos[name], shortest)
            except UserError as error:
                skipped.append(str(error))
                continue
            for hand in [None] if hands is None else hands[name]:
                try:
                    if hand is not None:
                        check_box(name, size, hand.box)
                except UserError as error:
                    skipped.append(str(error))
                    continue
                yield suffix, encoded, {"name": name} | _described(hand, scale)

    index = write_shards(out, samples(), per_shard)
    if not index:
        raise UserError(f"{folder}: no photo to pack ({'; '.join(skipped[:3]) or boxes})")
    return index, skipped


def write_drawn(
    root: Path, batches: Iterable[HandBatch], hand: HandModel, per_shard: int = 50
) -> None:
    """Write drawn right hands as shards, with boxes and keypoints.

    Args:
        root: folder to write to; empty or not there.
        batches: the hands.
        hand: their model.
        per_shard: pictures of an archive.
    """

    def samples() -> Iterator[Sample]:
        for sample in samples_of(batches, hand, flat_hand_mean=True):
            points = sample.keypoints.numpy() + 0.5
            known = np.concatenate([points, np.ones((21, 1))], axis=1)
            (left, top), (right, bottom) = points.min(0).tolist(), points.max(0).tolist()
            ordered = cv2.cvtColor(sample.picture, cv2.COLOR_RGB2BGR)
            encoded = cv2.imencode(".jpg", ordered, JPEG)[1].tobytes()
            yield "jpg", encoded, describe(Annotation((left, top, right, bottom), "right", known))

    write_shards(root, samples(), per_shard)


def _shrunk(path: Path, shortest: int | None) -> tuple[str, bytes, tuple[int, int], float]:
    """Return suffix and bytes of a photo, ``(height, width)`` before, and by what it was scaled.

    Raises:
        UserError: it cannot be read.
    """
    encoded = read_encoded(path)
    image = decode(encoded, path)
    height, width = image.shape[:2]
    scale = 1.0 if shortest is None else min(1.0, shortest / min(height, width))
    if scale == 1:
        return path.suffix.lstrip(".").lower(), encoded, (height, width), 1.0
    size = [max(1, round(scale * side)) for side in image.shape[1::-1]]
    smaller = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    written = cv2.imencode(".jpg", cv2.cvtColor(smaller, cv2.COLOR_RGB2BGR), _QUALITY)[1]
    return "jpg", written.tobytes(), (height, width), scale


def _described(hand: HandBox | None, scale: float) -> dict[str, Any]:
    if hand is None:
        return {}
    left, top, right, bottom = (scale * value for value in hand.box)
    return describe(Annotation((left, top, right, bottom), hand.side))
