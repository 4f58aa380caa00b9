"""A photo with 2D joints as a batch of one: the crop around the hand, its camera, its keypoints."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8

from handrec.data.boxes import Side
from handrec.data.crops import Box, crop_affine, crop_intrinsics, square_box, warp
from handrec.data.json_files import read_json
from handrec.errors import UserError
from handrec.types import HandBatch

#: Fewer joints than this do not say where a hand is.
FEWEST = 4

#: Side of the crop over the longer side of the box around the joints: fingers are wider than these.
CROP_SCALE = 1.5

#: A box with no side longer than this shows no hand (pixels).
SMALLEST_BOX = 8

Keypoints = Float[np.ndarray, "21 3"]


def read_keypoints(path: Path, image: str, size: tuple[int, int]) -> Keypoints:
    """Return ``(x, y, confidence)`` of the 21 joints of the hand in an image.

    The file is a list of 21 ``[x, y]`` or ``[x, y, confidence]`` in the order of
    ``hand.joints.JOINTS``, or COCO's: ``images`` name the files, ``annotations`` hold 21
    ``(x, y, visibility)`` each. A joint whose visibility is 0 has no weight.

    Args:
        path: of the JSON file.
        image: name of the image; the folder that a COCO file puts before it is not compared.
        size: ``(height, width)`` of the image; joints far outside are refused.

    Raises:
        UserError: one line that says what is wrong.
    """
    content = read_json(path)
    rows = content if isinstance(content, list) else _annotated(path, content, image)
    table = _table(path, rows)
    seen = table[:, 2] > 0
    if seen.sum() < FEWEST:
        raise UserError(
            f"{path}: {seen.sum()} of 21 joints of {image} are visible; "
            f"at least {FEWEST} are needed to place a hand"
        )
    points = table[seen, :2]
    span = np.ptp(points, axis=0).max()
    if span < SMALLEST_BOX:
        raise UserError(f"{path}: the joints of {image} span {span:.1f} pixels: too small a hand")
    height, width = size
    low, high = points.min(0), points.max(0)
    if (low < [-width, -height]).any() or (high > [2 * width, 2 * height]).any():
        raise UserError(
            f"{path}: joints of {image} lie far outside the image ({width} x {height} pixels): "
            "are they in its pixels?"
        )
    return table


def _annotated(path: Path, content: object, image: str) -> object:
    """Return the keypoints of an image's one annotation in a COCO file, as rows."""
    form = f'{path}: neither a list of 21 [x, y] nor COCO\'s {{"images": ..., "annotations": ...}}'
    try:
        images: list[dict[str, object]] = content["images"]  # type: ignore[index]
        annotations: list[dict[str, object]] = content["annotations"]  # type: ignore[index]
        wanted = {x["id"] for x in images if Path(str(x["file_name"])).name == image}
        found = [x["keypoints"] for x in annotations if x["image_id"] in wanted]
    except (KeyError, TypeError) as error:
        raise UserError(form) from error
    if not found:
        raise UserError(f"{path}: no annotation for {image} (it has {len(images)} other images)")
    if len(found) > 1:
        raise UserError(f"{path}: {len(found)} annotations for {image}: keep the hand's to be fit")
    flat = found[0]
    if not isinstance(flat, list):
        raise UserError(f"{path}: keypoints of {image} are not a list")
    if flat and isinstance(flat[0], list):
        return flat
    if len(flat) % 3:
        raise UserError(f"{path}: {len(flat)} numbers for {image}: 63 are wanted, 21 (x, y, v)")
    return [flat[i : i + 3] for i in range(0, len(flat), 3)]


def _table(path: Path, rows: object) -> Keypoints:
    """Return rows of 2 or 3 numbers as ``(x, y, confidence)``, checked."""
    if not isinstance(rows, list) or len(rows) != 21:
        count = len(rows) if isinstance(rows, list) else 0
        raise UserError(f"{path}: {count} joints; 21 are wanted, wrist and then thumb to little")
    try:
        table = np.array(rows, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: joints are not all [x, y] or [x, y, confidence]") from error
    if table.ndim != 2 or table.shape[1] not in (2, 3):
        raise UserError(f"{path}: joints are not all [x, y] or [x, y, confidence]")
    bad = np.flatnonzero(~np.isfinite(table).all(1))
    if len(bad):
        raise UserError(f"{path}: joint {bad[0]} is not finite: {rows[bad[0]]}")
    if table.shape[1] == 2:
        table = np.column_stack([table, np.ones(21)])
    table[:, 2] = table[:, 2].clip(0, 1)  # COCO's visibility runs to 2
    return table


def joints_box(keypoints: Keypoints) -> Box:
    """Return ``(x1, y1, x2, y2)`` of the box around the visible joints."""
    points = keypoints[keypoints[:, 2] > 0, :2]
    (left, top), (right, bottom) = points.min(0).tolist(), points.max(0).tolist()
    return left, top, right, bottom


def crop_hand(
    image: UInt8[np.ndarray, "h w 3"],
    keypoints: Keypoints,
    intrinsics: Float[np.ndarray, "3 3"],
    side: Side,
    size: int = 224,
) -> HandBatch:
    """Return the crop around a hand; a left one is mirrored.

    Args:
        image: the upright photo.
        keypoints: ``(x, y, confidence)``, pixels of the photo.
        intrinsics: ``K`` of the photo, pixels.
        side: of the body.
        size: width and height of the crop.
    """
    mirror = side == "left"
    affine = crop_affine(square_box(joints_box(keypoints), CROP_SCALE), size, mirror)
    crop = torch.from_numpy(warp(image, affine, size)).permute(2, 0, 1).float() / 255
    camera = crop_intrinsics(intrinsics, affine, mirror)
    inverse = np.linalg.inv(affine)
    points = keypoints[:, :2] @ inverse[:2, :2].T + inverse[:2, 2]
    none = torch.zeros(1)
    return HandBatch(
        image=crop[None],
        intrinsics=torch.from_numpy(camera).float()[None],
        keypoints_2d=torch.from_numpy(points).float()[None],
        confidence=torch.from_numpy(keypoints[:, 2]).float()[None],
        joints_3d=torch.zeros(1, 21, 3),
        vertices=torch.zeros(1, 1, 3),
        pose=torch.zeros(1, 16, 3, 3),
        betas=torch.zeros(1, 10),
        translation=torch.zeros(1, 3),
        mask=torch.zeros(1, 1, size, size),
        has_joints_3d=none,
        has_vertices=none,
        has_pose=none,
        has_mask=none,
        is_left=torch.full((1,), float(mirror)),
        visibility=torch.zeros(1, 21),
        has_visibility=none,
        sample_id=torch.zeros(1, dtype=torch.long),
        sequence=torch.zeros(1, dtype=torch.long),
        frame=torch.zeros(1, dtype=torch.long),
        crop_to_image=torch.from_numpy(affine).float()[None],
    )
