"""2D keypoints in COCO's format, as mmpose and COCO-WholeBody store those of hands."""

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from handrec.data.boxes import Side
from handrec.data.columns import (
    HALF_PIXEL,
    held_out,
    held_out_videos,
    image_size,
    numbered,
    videos_by_name,
)
from handrec.data.crops import default_intrinsics
from handrec.data.json_files import label_file, read_json
from handrec.data.keypoint_orders import PRESETS, to_canonical
from handrec.data.labels import Annotated, LabelTable, no_labels
from handrec.data.real import RealHands
from handrec.errors import UserError


class _Found(NamedTuple):
    """One annotated hand.

    Attributes:
        where: file and annotation, for messages.
        image: entry of the image.
        box: ``(x1, y1, x2, y2)``, or None where there is none.
        keypoints: ``(21, 3)``: x, y and COCO's visibility flag or a score, in the file's order.
        scores: confidences of detected keypoints; ones for annotated ones.
        side: of the body.
    """

    where: str
    image: dict[str, Any]
    box: list[float] | None
    keypoints: Float[np.ndarray, "21 3"]
    scores: Float[np.ndarray, "21"]
    side: str


class CocoHands(RealHands):
    """Hands with 2D keypoints in COCO's format.

    Read are ``annotations`` with 21 keypoints (mmpose's files of FreiHAND, OneHand10K, Panoptic,
    RHD) and those of COCO-WholeBody, whose people have up to two hands. The order of keypoints is
    taken from the names in ``categories``. A flag of 0 is an absent keypoint; whether the others
    are hidden is a label only in files that tell 1 (hidden) from 2 (visible). ``keypoint_scores``
    of an annotation, as ``handrec data keypoints`` writes them, are confidences, and so are scores
    of a detector between 0 and 1 in the place of flags.

    The side of the body is read from ``side`` or ``hand_type`` of an annotation, if it says.
    Cameras are unknown: :func:`~handrec.data.crops.default_intrinsics`. With ``clip``, images are
    frames of videos (:func:`~handrec.data.columns.videos_by_name`).

    Args:
        root: folder of the annotations; other paths are relative to it.
        annotations: file to train and validate on; None takes the only JSON file in ``root``.
        test_annotations: file to evaluate on, all of it; None evaluates on the validation split.
        images: folder of the images; None tries ``root`` and ``root/images``.
        keypoints: name of an order, or 21 names, where the file has none.
        side: of hands of which the file does not say.
        val_share: of the images, for validation, by a hash of the annotated keypoints: copies of
            a picture in other colours stay together; with ``clip`` of whole videos, of a single
            one its end. 0 trains and validates on all of them.
        box_scale: side of the crop over the longer side of the hand's box.
        **options: see :class:`~handrec.data.real.RealHands`.
    """

    name = "coco_hands"
    folders = ("coco_hands",)
    marker = "."
    intrinsics_known = False
    has_videos = True
    has_detections = True  # or annotated keypoints, at least one of each hand

    def __init__(
        self,
        root: str | None = None,
        annotations: str | None = None,
        test_annotations: str | None = None,
        images: str | None = None,
        keypoints: str | tuple[str, ...] | None = None,
        side: Side = "right",
        val_share: float = 0.05,
        box_scale: float = 1.25,
        **options: Any,
    ) -> None:
        super().__init__(root, box_scale=box_scale, **options)
        if isinstance(keypoints, str) and keypoints not in PRESETS:
            raise UserError(f"keypoints={keypoints}: unknown order, there are {', '.join(PRESETS)}")
        self.annotations, self.test_annotations, self.images = annotations, test_annotations, images
        self.keypoints = PRESETS[keypoints] if isinstance(keypoints, str) else keypoints
        if not 0 <= val_share < 1:
            raise UserError(f"val_share must lie in [0, 1), not {val_share:g}: 0 validates on all")
        self.side, self.val_share = side, val_share
        test = "annotations" if test_annotations is None else "test_annotations"
        self.parts = {"train": "annotations", "val": "annotations", "test": test}

    def facts(self) -> dict[str, Any]:
        """Return the options that the labels depend on."""
        facts = {"keypoints": self.keypoints, "side": self.side, "images": self.images}
        return facts if self.clip is None else facts | {"videos": True}

    def sources(self, part: str) -> list[Path]:
        """Return the file of a part."""
        given = self.annotations if part == "annotations" else self.test_annotations
        if given is not None:
            return [self.root / given]
        found = sorted(self.root.glob("*.json")) or sorted(self.root.glob("annotations/*.json"))
        if len(found) != 1:
            names = ", ".join(path.name for path in found[:5]) or "none"
            raise UserError(
                f"{self.root}: expected one JSON file of annotations, there is {names}:"
                " choose with --data.annotations=FILE"
            )
        return found

    def read(self, part: str) -> Annotated:
        """Return the hands of a file."""
        (path,) = self.sources(part)
        content = read_json(label_file(path, "annotations in COCO's format, given as an option"))
        _check_sections(path, content)
        indices = to_canonical(self._names(path, content), str(path))
        every = list(_hands(path, content, self.side))
        hands = [hand for hand in every if _has_keypoints(hand)]
        if not hands:
            raise UserError(f"{path}: no hand with a keypoint among its annotations")
        folder = self._images_folder(hands[0].image["file_name"])
        files = [str(folder / hand.image["file_name"]) for hand in hands]
        sizes = torch.tensor([self._image_size(folder, hand) for hand in hands])
        points = torch.from_numpy(np.stack([hand.keypoints for hand in hands])[:, indices]).float()
        known = (points[..., 2] > 0).float()
        scores = torch.from_numpy(np.stack([hand.scores for hand in hands])[:, indices]).float()
        keypoints = (points[..., :2] + HALF_PIXEL) * (known * scores > 0)[..., None]
        told = torch.full((len(hands),), float((points[..., 2] == 2).any()))
        cameras = np.stack([default_intrinsics(*size) for size in sizes.tolist()])
        boxes = [_box(hand, points[i, known[i] > 0, :2]) for i, hand in enumerate(hands)]
        labels = no_labels(len(hands))._replace(
            image_size=sizes,
            box=torch.stack(boxes),
            is_left=torch.tensor([float(hand.side == "left") for hand in hands]),
            intrinsics=torch.from_numpy(cameras).float(),
            keypoints_2d=keypoints,
            confidence=points[..., 2].clamp(0, 1) * scores,
            visibility=(points[..., 2] == 2).float() * told[:, None],
            has_visibility=told,
        )
        sequence, frame = numbered(len(hands))
        if self.clip is not None:
            sequence, frame = videos_by_name(files, [hand.side for hand in hands])
        return Annotated(
            files, [""] * len(files), torch.arange(len(files)), sequence, frame, labels,
            skipped=[f"{hand.where}: no keypoint" for hand in every if not _has_keypoints(hand)],
        )  # fmt: skip

    def select(self, split: str, table: LabelTable) -> Int[Tensor, " s"]:
        """Return the samples of a split: images go to one side or the other together."""
        samples = torch.arange(len(table))
        if (split == "test" and self.test_annotations is not None) or self.val_share == 0:
            return samples
        if self.clip is not None:
            is_val = held_out_videos([name.decode() for name in table.files], self.val_share)
            return samples[~is_val] if split == "train" else samples[is_val]
        names = _groups(table)
        chosen = held_out(names, self.val_share)
        is_val = torch.tensor([name in chosen for name in names])
        return samples[~is_val] if split == "train" else samples[is_val]

    def _names(self, path: Path, content: dict[str, Any]) -> tuple[str, ...]:
        """Return the names of the 21 keypoints, in the file's order."""
        named = _category_names(path, content)
        if self.keypoints is not None:
            _refuse_another_order(path, named, self.keypoints)
            return self.keypoints
        if any("lefthand_kpts" in entry for entry in content["annotations"][:1]):
            return PRESETS["freihand"]  # COCO-WholeBody
        if named is not None:
            return named
        raise UserError(
            f"{path}: unknown keypoint order: its categories name no 21 keypoints; say"
            f" --data.keypoints={'|'.join(PRESETS)}, or the 21 names"
        )

    def _images_folder(self, name: str) -> Path:
        """Return the folder of the images, relative to the root."""
        folders = [Path(self.images)] if self.images else [Path(), Path("images")]
        for folder in folders:
            if (self.root / folder / name).is_file():
                return folder
        tried = " and ".join(str(self.root / folder / name) for folder in folders)
        raise UserError(f"no image {tried}: say where they are, --data.images=FOLDER")

    def _image_size(self, folder: Path, hand: _Found) -> tuple[int, int]:
        if "height" in hand.image and "width" in hand.image:
            return _side_length(hand, "height"), _side_length(hand, "width")
        return image_size(self.root / folder / hand.image["file_name"])


def _side_length(hand: _Found, side: str) -> int:
    """Return the height or width of a hand's image, pixels, checked."""
    pixels = hand.image[side]
    if isinstance(pixels, bool) or not isinstance(pixels, int | float) or not 1 <= pixels < 1e6:
        raise UserError(
            f"{hand.where}: {side} of {hand.image['file_name']} is {pixels!r}, expected a positive"
            " number of pixels"
        )
    return int(pixels)


def _category_names(path: Path, content: dict[str, Any]) -> tuple[str, ...] | None:
    """Return the names that a file gives 21 keypoints; None if it gives none."""
    categories = content.get("categories") or []
    if not isinstance(categories, list) or not all(isinstance(c, dict) for c in categories):
        raise UserError(f"{path}: not in COCO's format: its categories are no list of objects")
    for category in categories:
        names = category.get("keypoints")
        if isinstance(names, list) and len(names) == 21:
            return tuple(map(str, names))
    return None


def _refuse_another_order(
    path: Path, named: tuple[str, ...] | None, given: tuple[str, ...]
) -> None:
    """Refuse an order that contradicts the one that a file names, where that is understood."""
    if named is None:
        return
    try:
        own = to_canonical(named, str(path))
    except UserError:
        return
    if own != to_canonical(given, "--data.keypoints"):
        raise UserError(
            f"{path} names its keypoints ({named[0]}, {named[1]}, ...), in another order than"
            " --data.keypoints says: leave the option out"
        )


def _check_sections(path: Path, content: Any) -> None:
    """Refuse what is not COCO's format."""
    for name in ("images", "annotations"):
        listed = content.get(name) if isinstance(content, dict) else None
        if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
            raise UserError(f"{path}: not in COCO's format: it has no list of {name}")


def _hands(path: Path, content: dict[str, Any], default_side: str) -> Iterator[_Found]:
    """Yield the annotated hands in order; crowds are left out."""
    images = {str(image.get("id")): image for image in content["images"]}
    for index, entry in enumerate(content["annotations"]):
        where = f"{path}: annotation {index} (id {entry.get('id')})"
        image = images.get(str(entry.get("image_id")))
        if image is None:
            raise UserError(f"{where}: there is no image {entry.get('image_id')!r}")
        if not isinstance(image.get("file_name"), str):
            raise UserError(f"{path}: image {image.get('id')!r} has no file_name")
        if entry.get("iscrowd"):
            continue
        yield from _hands_of(where, image, entry, default_side)


def _has_keypoints(hand: _Found) -> bool:
    return bool((hand.keypoints[:, 2] > 0).any())


def _hands_of(
    where: str, image: dict[str, Any], entry: dict[str, Any], default_side: str
) -> Iterator[_Found]:
    """Yield the hands of an entry: of one as of COCO-WholeBody both, of any other one."""
    if "lefthand_kpts" in entry or "righthand_kpts" in entry:
        for side in ("left", "right"):
            if entry.get(f"{side}hand_valid"):
                box, points = (entry.get(f"{side}hand_{what}") for what in ("box", "kpts"))
                yield _found(f"{where}, {side} hand", image, box, points, side)
        return
    side = _side(where, entry, default_side)
    found = _found(where, image, entry.get("bbox"), entry.get("keypoints"), side)
    yield found._replace(scores=_scores(where, entry.get("keypoint_scores")))


def _side(where: str, entry: dict[str, Any], default: str) -> str:
    """Return the side of the body that an entry says, in any case; the default if it says none."""
    for name in ("side", "hand_type"):
        if (given := entry.get(name)) is not None:
            side = given.lower() if isinstance(given, str) else given
            if side not in ("left", "right"):
                raise UserError(f'{where}: {name} is {given!r}, expected "left" or "right"')
            return str(side)
    return default


def _found(where: str, image: dict[str, Any], box: Any, points: Any, side: str) -> _Found:
    """Return a hand, its numbers checked."""
    try:
        keypoints = np.asarray(points, dtype=float).reshape(21, 3)
    except (TypeError, ValueError):
        count = len(points) if isinstance(points, list) else "none"
        raise UserError(f"{where}: {count} keypoint numbers, expected 63 (x, y, flag)") from None
    if not np.isfinite(keypoints).all():
        raise UserError(f"{where}: a keypoint is not finite")
    if box is None:
        return _Found(where, image, None, keypoints, np.ones(21), side)
    try:
        left, top, width, height = (float(value) for value in box)
    except (TypeError, ValueError):
        raise UserError(f"{where}: bbox {box} is not [x, y, width, height]") from None
    if not (width > 0 and height > 0):
        raise UserError(f"{where}: box of zero area, [x, y, width, height] = {box}")
    corners = [left, top, left + width, top + height]
    return _Found(where, image, corners, keypoints, np.ones(21), side)


def _scores(where: str, given: Any) -> Float[np.ndarray, "21"]:
    """Return confidences, checked and clipped to [0, 1]; ones where there are none."""
    if given is None:
        return np.ones(21)
    try:
        scores = np.asarray(given, dtype=float)
    except (TypeError, ValueError):
        scores = np.zeros(0)
    if scores.shape != (21,) or not np.isfinite(scores).all():
        raise UserError(f"{where}: keypoint_scores are not 21 numbers")
    return scores.clip(0, 1)


def _box(hand: _Found, known: Float[Tensor, "k 2"]) -> Float[Tensor, "4"]:
    """Return a hand's box, or the one around its known keypoints."""
    if hand.box is not None:
        return torch.tensor(hand.box)
    return torch.cat([known.amin(0), known.amax(0)]) + HALF_PIXEL


def _groups(table: LabelTable) -> list[str]:
    """Return for each sample what it must not be parted from: all that was annotated in its image.

    mmpose's FreiHAND has each picture in four colour versions, with the same keypoints.
    """
    points = table.labels.keypoints_2d.numpy()
    annotated: dict[bytes, str] = {}
    for file, keypoints in zip(table.files, points, strict=True):
        annotated[file] = annotated.get(file, "") + sha256(keypoints.tobytes()).hexdigest()
    return [annotated[file] for file in table.files]
