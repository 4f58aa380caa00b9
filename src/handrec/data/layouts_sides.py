"""Writes labelled hands in the layouts of published sets with left and right hands.

Every second hand is mirrored into a left one. See :mod:`~handrec.data.layouts`.
"""

import pickle
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from handrec.data.dexycb import IMAGE_SIZE
from handrec.data.keypoint_orders import PRESETS, to_canonical
from handrec.data.layouts import Sample, dump, samples_of, start, write_picture
from handrec.data.marked import mark
from handrec.data.rhd import LEFT, RIGHT
from handrec.errors import UserError
from handrec.hand.base import HandModel
from handrec.hand.mano import Mano
from handrec.types import HandBatch

#: Of the sequences of a subject, s0 holds the last of every five out.
_HELD_OUT = 5


def write_dexycb(
    root: Path, training: Iterable[HandBatch], evaluation: Iterable[HandBatch], hand: HandModel
) -> None:
    """Write DexYCB: each hand is a sequence of one frame by a camera of its own.

    The picture is continued to 640 x 480 pixels by its edges. In the setup s0 a fifth of the
    training hands validates, and the evaluation is the test split.

    Args:
        root: folder to write to; empty or not there.
        training: right hands, square pictures of one size, at most 480 pixels.
        evaluation: the same.
        hand: model of their parameters.
    """
    start(root)
    mark(root, type(hand).__name__)
    numbers = count(1)
    tested = _both_sides(evaluation, hand)
    spaced = [x for one in tested for x in (*[None] * (_HELD_OUT - 1), one)]
    subjects: list[Sequence[tuple[Sample, bool] | None]]
    subjects = [_both_sides(training, hand), [], spaced]
    for subject, hands in enumerate(subjects):
        folder = root / f"{20200700 + subject}-subject-{subject + 1:02d}"
        folder.mkdir()
        for position, one in enumerate(hands):
            _write_sequence(root, folder / f"{position:03d}", one, f"{next(numbers):012d}", hand)


def write_interhand26m(
    root: Path, training: Iterable[HandBatch], evaluation: Iterable[HandBatch], hand: HandModel
) -> None:
    """Write InterHand2.6M: each hand has a camera of its own; a quarter of the training validates.

    Args:
        root: folder to write to; empty or not there.
        training: right hands.
        evaluation: the same.
        hand: model of their parameters.
    """
    start(root)
    mark(root, type(hand).__name__)
    trained = _both_sides(training, hand)
    kept = max(1, len(trained) // 4)
    splits = {"train": trained[:-kept], "val": trained[-kept:]}
    splits["test"] = _both_sides(evaluation, hand)
    for capture, (split, hands) in enumerate(splits.items()):
        _write_split(root, split, str(capture), hands)


def write_rhd(
    root: Path, training: Iterable[HandBatch], evaluation: Iterable[HandBatch], hand: HandModel
) -> None:
    """Write RHD: of the other hand there are some pixels and joints that nobody sees.

    Args:
        root: folder to write to; empty or not there.
        training: right hands.
        evaluation: the same.
        hand: their model.
    """
    start(root)
    to_rhd = np.argsort(to_canonical(PRESETS["rhd"], "rhd"))
    for part, batches in (("training", training), ("evaluation", evaluation)):
        entries = {}
        for number, (sample, is_left) in enumerate(_both_sides(batches, hand)):
            this, other = (LEFT, RIGHT) if is_left else (RIGHT, LEFT)
            mask = np.where(sample.mask >= 128, this[1], 1).astype(np.uint8)
            mask[:2, :2] = other[0]
            write_picture(root / part / "color" / f"{number:05d}.png", sample.picture)
            write_picture(root / part / "mask" / f"{number:05d}.png", mask)
            seen = np.concatenate([sample.keypoints, sample.visibility[:, None]], axis=1)[to_rhd]
            joints = sample.joints.numpy()[to_rhd]
            place = 0 if is_left else 1  # the left hand comes first
            entries[number] = {
                "K": sample.intrinsics.numpy(),
                "xyz": _pair(joints, joints + np.array([0.3, 0, 0]), place),
                "uv_vis": _pair(seen, seen * 0, place),
            }
        path = root / part / f"anno_{part}.pickle"
        path.write_bytes(pickle.dumps(entries, protocol=2))


def _both_sides(batches: Iterable[HandBatch], hand: HandModel) -> list[tuple[Sample, bool]]:
    """Return hands, every second one mirrored, and whether they are left ones."""
    samples = samples_of(batches, hand, flat_hand_mean=False)
    return [(_mirrored(s) if i % 2 else s, i % 2 == 1) for i, s in enumerate(samples)]


def _mirrored(sample: Sample) -> Sample:
    """Return the hand of the other side, in the mirrored picture."""
    last = sample.picture.shape[1] - 1
    camera, keypoints = sample.intrinsics.clone(), sample.keypoints.clone()
    camera[0, 2] = last - camera[0, 2]
    keypoints[:, 0] = last - keypoints[:, 0]
    flip = torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)
    return sample._replace(
        picture=np.ascontiguousarray(sample.picture[:, ::-1]),
        mask=np.ascontiguousarray(sample.mask[:, ::-1]),
        intrinsics=camera,
        keypoints=keypoints,
        joints=sample.joints * flip,
        vertices=sample.vertices * flip,
        axis_angle=(sample.axis_angle.view(16, 3) * -flip).flatten(),
        rest_wrist=sample.rest_wrist * flip,
    )


def _pair(this: np.ndarray, other: np.ndarray, place: int) -> np.ndarray:
    return np.concatenate([other, this] if place else [this, other])


def _write_sequence(
    root: Path, folder: Path, one: tuple[Sample, bool] | None, serial: str, hand: HandModel
) -> None:
    """Write a sequence of DexYCB with one hand, or with no frame at all."""
    meta = {"num_frames": int(one is not None), "serials": [], "mano_sides": ["right"]}
    if one is None:
        _write_yaml(folder / "meta.yml", meta | {"mano_calib": []})
        return
    sample, is_left = one
    meta |= {"serials": [serial], "mano_sides": ["left" if is_left else "right"]}
    _write_yaml(folder / "meta.yml", meta | {"mano_calib": [serial]})
    calibration = root / "calibration"
    _write_yaml(calibration / f"mano_{serial}" / "mano.yml", {"betas": sample.betas.tolist()})
    (top, left), (height, width) = dexycb_margins(sample.mask.shape), IMAGE_SIZE
    bottom, right = (
        whole - part for whole, part in zip(IMAGE_SIZE, sample.mask.shape, strict=True)
    )
    around = (top, bottom - top), (left, right - left)
    (fx, _, cx), (_, fy, cy) = sample.intrinsics[:2].tolist()
    colour = {"fx": fx, "fy": fy, "ppx": cx + left, "ppy": cy + top}
    file = calibration / "intrinsics" / f"{serial}_{width}x{height}.yml"
    _write_yaml(file, {"color": colour})
    wide = np.pad(sample.picture, (*around, (0, 0)), mode="edge")
    write_picture(folder / serial / "color_000000.jpg", wide)
    pose = sample.axis_angle.numpy().copy()
    if isinstance(hand, Mano):  # of a left hand, the components are those of the mirrored file
        components = hand.pose_components.double().numpy()
        if is_left:
            components = components * np.tile([1.0, -1.0, -1.0], 15)
        pose[3:] = np.linalg.solve(components.T, pose[3:])
    np.savez_compressed(
        folder / serial / "labels_000000.npz",
        seg=np.pad(np.where(sample.mask >= 128, 255, 0).astype(np.uint8), around),
        pose_m=np.concatenate([pose, sample.joints[0] - sample.rest_wrist])[None],
        joint_3d=sample.joints.numpy()[None],
        joint_2d=(sample.keypoints.numpy() + np.array([left, top]))[None],
    )


def dexycb_margins(size: tuple[int, ...]) -> tuple[int, int]:
    """Return how many rows and columns a picture has less than DexYCB's; none may have more."""
    rows, columns = (whole - part for whole, part in zip(IMAGE_SIZE, size, strict=True))
    if min(rows, columns) < 0:
        raise UserError(f"DexYCB's pictures are {IMAGE_SIZE[1]} x {IMAGE_SIZE[0]}: --size=480 fits")
    return rows, columns


def _write_split(root: Path, split: str, capture: str, hands: list[tuple[Sample, bool]]) -> None:
    """Write the images and the files of a split of InterHand2.6M."""
    data: dict[str, list[Any]] = {"images": [], "annotations": []}
    cameras: dict[str, dict[str, Any]] = {k: {} for k in ("campos", "camrot", "focal", "princpt")}
    joints, poses = {}, {}
    to_interhand = np.argsort(to_canonical(PRESETS["interhand26m"], "interhand26m"))
    random = np.random.default_rng(0)
    for number, (sample, is_left) in enumerate(hands):
        side, camera, frame = "left" if is_left else "right", f"{400000 + number}", str(number)
        name = f"Capture{capture}/0000_synthetic/cam{camera}/image{number:05d}.jpg"
        height, width = sample.mask.shape
        write_picture(root / "images" / split / name, sample.picture)
        image = {"capture": int(capture), "camera": camera, "frame_idx": number}
        data["images"].append(
            {"id": number, "file_name": name, "width": width, "height": height,
             "seq_name": "0000_synthetic", **image}
        )  # fmt: skip
        low, high = sample.keypoints.amin(0), sample.keypoints.amax(0)
        data["annotations"].append(
            {"id": number, "image_id": number, "hand_type": side, "hand_type_valid": 1,
             "bbox": [*low.tolist(), *(high - low).tolist()],
             "joint_valid": [int(is_left == (i >= 21)) for i in range(42)]}
        )  # fmt: skip
        rotation, position = Rotation.random(rng=random), 1000 * random.normal(size=3)
        k = sample.intrinsics
        for key, value in (
            ("campos", position), ("camrot", rotation.as_matrix()),
            ("focal", k.diagonal()[:2].numpy()), ("princpt", k[:2, 2].numpy()),
        ):  # fmt: skip
            cameras[key][camera] = value.tolist()
        world = rotation.inv().apply(1000 * sample.joints.numpy()[to_interhand]) + position
        joints[frame] = {"world_coord": _pair(world, world * 0, int(is_left)).tolist()}
        poses[frame] = {"right": None, "left": None, side: _world_pose(sample, rotation, position)}
    folder = root / "annotations" / split
    folder.mkdir(parents=True)
    contents = {"data": data, "camera": {capture: cameras}, "joint_3d": {capture: joints}}
    for kind, content in (contents | {"MANO_NeuralAnnot": {capture: poses}}).items():
        dump(folder / f"InterHand2.6M_{split}_{kind}.json", content)


def _world_pose(
    sample: Sample, rotation: Rotation, position: Float[np.ndarray, "3"]
) -> dict[str, list[float]]:
    """Return MANO's parameters in the world's frame, metres."""
    pose = sample.axis_angle.numpy().copy()
    pose[:3] = (rotation.inv() * Rotation.from_rotvec(pose[:3])).as_rotvec()
    wrist = rotation.inv().apply(sample.joints[0].numpy()) + position / 1000
    trans = wrist - sample.rest_wrist.numpy()
    return {"pose": pose.tolist(), "shape": sample.betas.tolist(), "trans": trans.tolist()}


def _write_yaml(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
