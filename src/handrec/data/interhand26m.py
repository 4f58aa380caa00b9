"""InterHand2.6M: one or two hands, seen by many cameras.

G. Moon et al., "InterHand2.6M: A Dataset and Baseline for 3D Interacting Hand Pose Estimation from
a Single RGB Image", ECCV 2020. Layout and licence: docs/datasets.md.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial.transform import Rotation
from torch import Tensor

from handrec.data.columns import shift_centres
from handrec.data.json_files import label_file, read_json
from handrec.data.keypoint_orders import PRESETS, to_canonical
from handrec.data.labels import Annotated, Labels, no_labels
from handrec.data.marked import MARK, labelled_hand
from handrec.data.real import RealHands
from handrec.errors import UserError
from handrec.geometry.camera import project

_ORDER = to_canonical(PRESETS["interhand26m"], "interhand26m")
_MILLIMETRE = 1e-3

#: Where the joints of each hand begin.
_FIRST = {"right": 0, "left": 21}

#: Least number of annotated joints of a hand that is used: fewer give no box worth the name.
_LEAST = 6


class _Hand(NamedTuple):
    """One hand in one image: suite's joint order, camera frame of OpenCV.

    Attributes:
        file: of the image, relative to the root.
        video: capture, sequence, camera and side.
        frame: number in it.
        size: ``(height, width)``.
        is_left: whether it is a left hand.
        intrinsics: pixel centres at integers.
        joints: metres.
        valid: of the joints.
        pose: axis-angle, offsets from MANO's mean; None where none is published.
        betas: shape coefficients.
    """

    file: str
    video: str
    frame: int
    size: tuple[int, int]
    is_left: bool
    intrinsics: Float[np.ndarray, "3 3"]
    joints: Float[np.ndarray, "21 3"]
    valid: Float[np.ndarray, "21"]
    pose: Float[np.ndarray, "48"] | None
    betas: Float[np.ndarray, "10"]


class InterHand26M(RealHands):
    """InterHand2.6M (v1.0) as unpacked from its archives; every hand is a crop of its own.

    The published joints are not MANO's, and the published parameters fit them to some 5 mm; where
    ``InterHand2.6M_*_MANO_NeuralAnnot.json`` is there, pose and shape are labels. The translation
    is taken from the labelled wrist.

    Args:
        root: the folder with ``annotations`` and ``images``.
        interacting: use the hands of images with two hands as well, each by itself.
        **options: see :class:`~handrec.data.real.RealHands`.
    """

    name = "interhand26m"
    folders = ("interhand26m", "InterHand2.6M", "InterHand2.6M_5fps_batch1")
    marker = "annotations"
    projected_keypoints = True
    has_videos = True
    parts = MappingProxyType({"train": "train", "val": "val", "test": "test"})
    pose_format = "offsets"

    def __init__(self, root: str | None = None, interacting: bool = False, **options: Any) -> None:
        super().__init__(root, **options)
        self.interacting = interacting

    def facts(self) -> dict[str, Any]:
        """Return the options that the labels depend on."""
        return {"interacting": self.interacting}

    def sources(self, part: str) -> list[Path]:
        """Return the annotation files and the folder of images."""
        names = ("data", "camera", "joint_3d", "MANO_NeuralAnnot")
        files = [self._annotations(part) / f"InterHand2.6M_{part}_{name}.json" for name in names]
        return [*files, self.root / MARK, self.root / "images" / part]

    def read(self, part: str) -> Annotated:
        """Return the hands of a split, in the order of the annotations."""
        data, cameras, joints, poses, *_ = self.sources(part)
        for path in (data, cameras, joints):
            label_file(path, "of the annotations, a download of their own beside the images")
        content = read_json(data)
        for name in ("images", "annotations"):
            if not isinstance(content, dict) or not isinstance(content.get(name), list):
                raise UserError(f"{data}: it has no list of {name}")
        annotated = _Annotations(
            data, read_json(cameras), read_json(joints), read_json(poses) if poses.exists() else {}
        )
        images = {image.get("id"): image for image in content["images"]}
        hands = [
            hand
            for entry in content["annotations"]
            for hand in annotated.hands(entry, images, f"images/{part}", self.interacting)
        ]
        if not hands:
            raise UserError(f"{data}: no hand with joints among its annotations")
        videos = {name: i for i, name in enumerate(dict.fromkeys(hand.video for hand in hands))}
        return Annotated(
            [hand.file for hand in hands],
            [""] * len(hands),
            torch.arange(len(hands)),
            torch.tensor([videos[hand.video] for hand in hands]),
            torch.tensor([hand.frame for hand in hands]),
            _labels(hands),
            labelled_hand(self.root),
        )

    def _annotations(self, part: str) -> Path:
        """Return the folder of a split's annotations; early releases had one folder for all."""
        folder = self.root / "annotations"
        return folder / part if (folder / part).is_dir() else folder / "all"


class _Annotations(NamedTuple):
    """What the files of a split hold.

    Attributes:
        path: of the first, for messages.
        cameras: by capture: position, rotation, focal length, principal point by camera.
        joints: by capture and frame.
        poses: by capture, frame and side.
    """

    path: Path
    cameras: Mapping[str, Any]
    joints: Mapping[str, Any]
    poses: Mapping[str, Any]

    def hands(
        self, entry: Mapping[str, Any], images: Mapping[Any, Any], folder: str, interacting: bool
    ) -> Iterator[_Hand]:
        """Yield the hands of an annotation that are wanted and have joints."""
        where = f"{self.path}: annotation {entry.get('id')}"
        kind = entry.get("hand_type")
        if kind not in ("right", "left", "interacting"):
            raise UserError(f"{where}: hand_type is {kind!r}")
        sides = ("right", "left") if kind == "interacting" else (kind,)
        if kind == "interacting" and not interacting:
            return
        image = images.get(entry.get("image_id"))
        if image is None:
            raise UserError(f"{where}: there is no image {entry.get('image_id')!r}")
        for side in sides:
            try:
                hand = self._hand(entry, image, folder, side)
            except KeyError as error:
                raise UserError(f"{where}: {error} is missing in a file beside it") from error
            except (TypeError, ValueError) as error:
                raise UserError(f"{where}: not the numbers that were expected") from error
            if hand.valid.sum() >= _LEAST and hand.valid[0]:
                yield hand

    def _hand(
        self, entry: Mapping[str, Any], image: Mapping[str, Any], folder: str, side: str
    ) -> _Hand:
        capture, camera, frame = (str(image[key]) for key in ("capture", "camera", "frame_idx"))
        of = {
            key: np.asarray(self.cameras[capture][key][camera], dtype=float)
            for key in ("campos", "camrot", "focal", "princpt")
        }
        rotation, (fx, fy), (cx, cy) = of["camrot"].reshape(3, 3), of["focal"], of["princpt"]
        world = np.asarray(self.joints[capture][frame]["world_coord"], dtype=float).reshape(42, 3)
        points = (world - of["campos"]) @ rotation.T * _MILLIMETRE
        valid = np.asarray(entry["joint_valid"], dtype=float).reshape(42)
        chosen = np.array(_ORDER) + _FIRST[side]
        published = (self.poses.get(capture) or {}).get(frame) or {}
        parameters = published.get(side)
        pose, betas = None, np.zeros(10)
        if parameters is not None:
            pose = np.array(parameters["pose"], dtype=float).reshape(48)
            wrist = Rotation.from_matrix(rotation) * Rotation.from_rotvec(pose[:3])
            pose[:3] = wrist.as_rotvec()
            betas = np.array(parameters["shape"], dtype=float).reshape(10)
        return _Hand(
            f"{folder}/{image['file_name']}", f"{capture}/{image.get('seq_name')}/{camera}/{side}",
            int(frame), (int(image["height"]), int(image["width"])), side == "left",
            np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]),
            points[chosen], (valid[chosen] > 0).astype(float), pose, betas,
        )  # fmt: skip


def _labels(hands: list[_Hand]) -> Labels:
    """Return hands as columns; 3D joints are a label where all of them are annotated."""
    points, valid = _column([h.joints for h in hands]), _column([h.valid for h in hands])
    complete = valid.all(1).float()
    labels = no_labels(len(hands))._replace(
        image_size=torch.tensor([hand.size for hand in hands]),
        intrinsics=shift_centres(_column([hand.intrinsics for hand in hands])),
        is_left=torch.tensor([float(hand.is_left) for hand in hands]),
        confidence=valid,
        joints_3d=points * complete[:, None, None],
        has_joints_3d=complete,
        axis_angle=_column([np.zeros(48) if h.pose is None else h.pose for h in hands]),
        betas=_column([hand.betas for hand in hands]),
        has_pose=torch.tensor([float(hand.pose is not None) for hand in hands]),
    )
    keypoints = project(points, labels.intrinsics)
    known = valid[..., None] > 0
    low = keypoints.masked_fill(~known, torch.inf).amin(1)
    high = keypoints.masked_fill(~known, -torch.inf).amax(1)
    return labels._replace(keypoints_2d=keypoints * known, box=torch.cat([low, high], dim=1))


def _column(rows: list[Any]) -> Tensor:
    return torch.from_numpy(np.stack(rows)).float()
