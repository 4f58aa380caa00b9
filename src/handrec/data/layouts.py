"""Writes labelled hands in the layouts of published data sets.

Readers are tested against these writers end to end, and whoever has no data set yet can try its
commands. Formulas are those of the sets' own toolkits (FreiHAND: root joint 9, image position and
scale; HO-3D: OpenGL's frame), not the readers' inverted.
"""

import json
import pickle
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from handrec.data.columns import HALF_PIXEL
from handrec.data.marked import mark
from handrec.errors import UserError
from handrec.geometry.rotations import matrix_to_axis_angle
from handrec.hand.base import HandModel
from handrec.hand.joints import JOINTS, KINEMATIC_THEN_TIPS, order
from handrec.hand.mano import Mano
from handrec.types import HandBatch

JPEG = [
    cv2.IMWRITE_JPEG_QUALITY, 95,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
]  # fmt: skip
_ROOT_JOINT = 9  # middle MCP: where FreiHAND's parameters have their root
_OPENGL = torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)
#: What colour versions after the first do to red, green and blue.
_TINTS = ((1.0, 1.0, 1.0), (0.9, 1.0, 1.1), (1.1, 0.95, 0.9))
_GREEN = (60, 160, 70)

_COCO_FINGERS = ("thumb", "forefinger", "middle_finger", "ring_finger", "pinky_finger")
COCO_NAMES = ("wrist", *(f"{finger}{place}" for finger in _COCO_FINGERS for place in range(1, 5)))


class Sample(NamedTuple):
    """One hand, its labels in double precision, pixel centres at integers."""

    picture: UInt8[np.ndarray, "h w 3"]
    mask: UInt8[np.ndarray, "h w"]
    intrinsics: Float[Tensor, "3 3"]
    keypoints: Float[Tensor, "21 2"]
    visibility: Float[Tensor, "21"]
    joints: Float[Tensor, "21 3"]
    vertices: Float[Tensor, "v 3"]
    axis_angle: Float[Tensor, "48"]
    betas: Float[Tensor, "10"]
    rest_wrist: Float[Tensor, "3"]
    sequence: int
    frame: int


def write_freihand(
    root: Path, training: Iterable[HandBatch], evaluation: Iterable[HandBatch], hand: HandModel
) -> None:
    """Write FreiHAND v2: every training picture in four colour versions, with masks.

    Args:
        root: folder to write to; empty or not there.
        training: right hands, square pictures of one size.
        evaluation: the same.
        hand: model of their parameters.
    """
    start(root)
    mark(root, type(hand).__name__)
    for part, batches in (("training", training), ("evaluation", evaluation)):
        samples, columns = list(samples_of(batches, hand, flat_hand_mean=False)), []
        for k, sample in enumerate(samples):
            if part == "training":
                write_picture(root / part / "mask" / f"{k:08d}.jpg", sample.mask)
                versions = _colour_versions(sample)
            else:
                versions = [sample.picture]
            for v, picture in enumerate(versions):
                number = k + len(samples) * v
                write_picture(root / part / "rgb" / f"{number:08d}.jpg", picture)
            columns.append(_freihand_entry(sample))
        for kind in columns[0]:
            dump(root / f"{part}_{kind}.json", [entry[kind] for entry in columns])


def write_ho3d(
    root: Path,
    training: Iterable[HandBatch],
    evaluation: Iterable[HandBatch],
    hand: HandModel,
    version: str,
) -> None:
    """Write HO-3D: videos in pictures of 4:3, the evaluation's labels in files of their own.

    Args:
        root: folder to write to; empty or not there.
        training: right hands, square pictures of one size, with sequences and frames.
        evaluation: the same.
        hand: model of their parameters.
        version: ``v2`` or ``v3``.
    """
    start(root)
    mark(root, type(hand).__name__)
    suffix = {"v2": ".png", "v3": ".jpg"}[version]
    to_ho3d = order(JOINTS, KINEMATIC_THEN_TIPS)
    for part, batches in (("train", training), ("evaluation", evaluation)):
        lines, xyz, verts = [], [], []
        for sample in samples_of(batches, hand, flat_hand_mean=True):
            name = f"{_recording(sample.sequence)}10/{{}}/{sample.frame:04d}"
            wide, camera = _widen(sample)
            write_picture(root / part / (name.format("rgb") + suffix), wide)
            joints, vertices = sample.joints[to_ho3d] * _OPENGL, sample.vertices * _OPENGL
            meta = _ho3d_meta(sample, camera, joints, part == "train")
            path = root / part / (name.format("meta") + ".pkl")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(pickle.dumps(meta, protocol=2))
            lines.append(name.replace("/{}", ""))
            xyz.append(joints.tolist())
            verts.append(vertices.tolist())
        (root / f"{part}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    dump(root / "evaluation_xyz.json", xyz)
    dump(root / "evaluation_verts.json", verts)


def write_coco(root: Path, batches: Iterable[HandBatch], hand: HandModel) -> None:
    """Write 2D keypoints as mmpose does; every second hand is mirrored into a left one.

    Args:
        root: folder to write to; empty or not there.
        batches: right hands.
        hand: their model.
    """
    start(root)
    images, annotations = [], []
    for number, sample in enumerate(samples_of(batches, hand, flat_hand_mean=True)):
        height, width = sample.mask.shape
        picture, points = sample.picture, sample.keypoints.clone()
        if is_left := number % 2 == 1:
            picture = picture[:, ::-1]
            points[:, 0] = width - 1 - points[:, 0]
        write_picture(root / "images" / f"{number:08d}.jpg", picture)
        low, high = points.amin(0), points.amax(0)
        flags = sample.visibility[:, None] + 1  # hidden 1, visible 2
        images.append(
            {"id": number, "file_name": f"{number:08d}.jpg", "height": height, "width": width}
        )
        annotations.append(
            {
                "id": number,
                "image_id": number,
                "category_id": 1,
                "iscrowd": 0,
                "bbox": [*low.tolist(), *(high - low).tolist()],
                "keypoints": torch.cat([points, flags], 1).flatten().tolist(),
                "hand_type": "left" if is_left else "right",
            }
        )
    category = {"id": 1, "name": "hand", "keypoints": COCO_NAMES}
    content = {"images": images, "annotations": annotations, "categories": [category]}
    dump(root / "annotations.json", content)


def samples_of(
    batches: Iterable[HandBatch], hand: HandModel, flat_hand_mean: bool
) -> Iterator[Sample]:
    """Yield the hands of batches one by one."""
    for batch in batches:
        pictures = (batch.image * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        masks = (batch.mask[:, 0] * 255).round().byte().cpu().numpy()
        rest = hand.decode(batch.pose, batch.betas, torch.zeros_like(batch.translation))
        exact = HandBatch(*(f.cpu().double() if f.is_floating_point() else f.cpu() for f in batch))
        vectors = matrix_to_axis_angle(exact.pose).flatten(1)
        if isinstance(hand, Mano) and not flat_hand_mean:
            vectors[:, 3:] -= hand.mean_axis_angle.cpu().double()
        cameras = exact.intrinsics.clone()
        cameras[:, :2, 2] -= HALF_PIXEL
        for i in range(len(pictures)):
            yield Sample(
                pictures[i], masks[i], cameras[i], exact.keypoints_2d[i] - HALF_PIXEL,
                exact.visibility[i], exact.joints_3d[i], exact.vertices[i], vectors[i],
                exact.betas[i], rest.joints[i, 0].cpu().double(),
                int(exact.sequence[i]), int(exact.frame[i]),
            )  # fmt: skip


def _freihand_entry(sample: Sample) -> dict[str, Any]:
    """Return a hand's entries in FreiHAND's files, by their kind."""
    root = sample.joints[_ROOT_JOINT]
    seen = sample.intrinsics @ root
    focal = (sample.intrinsics[0, 0] + sample.intrinsics[1, 1]) / 2
    parameters = torch.cat(
        [sample.axis_angle, sample.betas, seen[:2] / seen[2:], (focal / root[2])[None]]
    )
    return {
        "K": sample.intrinsics.tolist(),
        "mano": [parameters.tolist()],
        "xyz": sample.joints.tolist(),
        "verts": sample.vertices.tolist(),
        "scale": float(torch.linalg.vector_norm(sample.joints[9] - sample.joints[10])),
    }


def _colour_versions(sample: Sample) -> list[np.ndarray]:
    """Return four pictures of a hand: before a green screen, and in three tints."""
    share = sample.mask[..., None] / 255.0
    green = (share * sample.picture + (1 - share) * np.array(_GREEN)).round().astype(np.uint8)
    tinted = [
        (sample.picture * np.array(tint)).clip(0, 255).round().astype(np.uint8) for tint in _TINTS
    ]
    return [green, *tinted]


def _ho3d_meta(
    sample: Sample, camera: Float[Tensor, "3 3"], joints: Float[Tensor, "21 3"], training: bool
) -> dict[str, Any]:
    """Return a frame's annotation; of the evaluation's hands only box and wrist are published."""
    meta: dict[str, Any] = {"camMat": camera.numpy(), "objName": "none", "objLabel": 0}
    if not training:
        seen = sample.joints @ camera.T
        pixels = seen[:, :2] / seen[:, 2:]
        box = torch.cat([pixels.amin(0), pixels.amax(0)]).numpy()
        return meta | {"handBoundingBox": box, "handJoints3D": joints[0].numpy()}
    turn = torch.diag(_OPENGL) @ _matrix(sample.axis_angle[:3])
    pose = torch.cat([matrix_to_axis_angle(turn), sample.axis_angle[3:]])
    return meta | {
        "handPose": pose.numpy(),
        "handBeta": sample.betas.numpy(),
        "handTrans": (joints[0] - sample.rest_wrist).numpy(),
        "handJoints3D": joints.numpy(),
    }


def _matrix(axis_angle: Float[Tensor, "3"]) -> Float[Tensor, "3 3"]:
    matrix, _ = cv2.Rodrigues(axis_angle.numpy())
    return torch.from_numpy(matrix)


def _widen(sample: Sample) -> tuple[np.ndarray, Float[Tensor, "3 3"]]:
    """Return a square picture widened to 4:3 by its edge pixels, and its camera."""
    pad = sample.picture.shape[0] // 6
    camera = sample.intrinsics.clone()
    camera[0, 2] += pad
    return np.pad(sample.picture, ((0, 0), (pad, pad), (0, 0)), mode="edge"), camera


def _recording(sequence: int) -> str:
    """Return a name of letters alone: digits at the end would number cameras."""
    return f"S{chr(ord('A') + sequence // 26 % 26)}{chr(ord('A') + sequence % 26)}"


def start(root: Path) -> None:
    """Make the folder; what is in it already is not mixed with a new set."""
    if root.is_dir() and any(root.iterdir()):
        raise UserError(f"{root} is not empty")
    root.mkdir(parents=True, exist_ok=True)


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Write a picture, RGB or grey, of the kind that the suffix says; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    order_bgr = picture[..., ::-1] if picture.ndim == 3 else picture
    options = JPEG if path.suffix == ".jpg" else []
    if not cv2.imwrite(str(path), np.ascontiguousarray(order_bgr), options):
        raise UserError(f"cannot write {path}")


def dump(path: Path, content: Any) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(content), encoding="utf-8")
