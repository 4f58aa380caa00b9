"""DexYCB: hands that grasp objects, seen by eight cameras.

Y.-W. Chao et al., "DexYCB: A Benchmark for Capturing Hand Grasping of Objects", CVPR 2021.
Layout and licence: docs/datasets.md.
"""

from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
import yaml
from jaxtyping import Float, UInt8
from rich.progress import Progress
from torch import Tensor

from handrec.data.columns import joints_box, shift_centres
from handrec.data.labels import Annotated, Labels, no_labels
from handrec.data.marked import MARK, labelled_hand
from handrec.data.real import RealHands
from handrec.errors import UserError, unread
from handrec.geometry.camera import project

Setup = Literal["s0", "s1", "s2", "s3"]

SUBJECTS, SEQUENCES = 10, 100  # sequences of each subject
IMAGE_SIZE = (480, 640)

#: Value of the hand in ``seg``; objects are numbered.
_HAND = 255


class Place(NamedTuple):
    """Where a frame was taken: positions in the sorted lists that the official splits count.

    Attributes:
        subject: of ten.
        camera: of eight.
        sequence: of the subject's hundred; twenty objects, five grasps of each.
    """

    subject: int
    camera: int
    sequence: int


#: The official splits: unseen grasps (s0), subjects (s1), cameras (s2), objects (s3).
SPLITS: dict[Setup, dict[str, Callable[[Place], bool]]] = {
    "s0": {
        "train": lambda p: p.sequence % 5 != 4,
        "val": lambda p: p.sequence % 5 == 4 and p.subject < 2,
        "test": lambda p: p.sequence % 5 == 4 and p.subject >= 2,
    },
    "s1": {
        "train": lambda p: p.subject not in (6, 7, 8),
        "val": lambda p: p.subject == 6,
        "test": lambda p: p.subject in (7, 8),
    },
    "s2": {
        "train": lambda p: p.camera < 6,
        "val": lambda p: p.camera == 6,
        "test": lambda p: p.camera == 7,
    },
    "s3": {
        "train": lambda p: p.sequence // 5 not in (3, 7, 11, 15, 19),
        "val": lambda p: p.sequence // 5 in (3, 19),
        "test": lambda p: p.sequence // 5 in (7, 11, 15),
    },
}


class _Camera(NamedTuple):
    """One camera's frames of one sequence.

    Attributes:
        folder: with the frames, relative to the root.
        intrinsics: pixel centres at integers.
        betas: of the hand.
        is_left: whether it is a left hand.
        frames: how many.
    """

    folder: str
    intrinsics: Float[np.ndarray, "3 3"]
    betas: Float[np.ndarray, "10"]
    is_left: bool
    frames: int


class DexYCB(RealHands):
    """DexYCB as unpacked from its archives. Frames without a hand are left out.

    Left hands have joints and masks only: their parameters go with the flaw of ``MANO_LEFT.pkl``
    (https://github.com/vchoutas/smplx/issues/48), and no shape of a right hand gives their mesh.

    Args:
        root: the folder with ``calibration`` and the subjects.
        setup_name: ``s0`` (unseen grasps, what most papers use), ``s1`` (subjects), ``s2``
            (cameras) or ``s3`` (objects).
        **options: see :class:`~handrec.data.real.RealHands`.
    """

    name = "dexycb"
    folders = ("dexycb", "dex-ycb", "DexYCB")
    marker = "calibration"
    projected_keypoints = True
    has_videos = True
    parts = MappingProxyType({"train": "train", "val": "val", "test": "test"})
    pose_format = "components"

    def __init__(self, root: str | None = None, setup_name: Setup = "s0", **options: Any) -> None:
        super().__init__(root, **options)
        self.setup_name = setup_name
        self.read_mask = read_mask

    def facts(self) -> dict[str, Any]:
        """Return the options that the labels depend on."""
        return {"setup_name": self.setup_name}

    def sources(self, part: str) -> list[Path]:
        """Return the folders of the calibration, the subjects, their sequences and cameras."""
        subjects = self._subjects()
        inner = [path for pattern in ("*/", "*/*/") for s in subjects for path in s.glob(pattern)]
        return [self.root / MARK, self.root / "calibration", *subjects, *sorted(inner)]

    def read(self, part: str) -> Annotated:
        """Return the frames of a split in which there is a hand."""
        cameras = list(self._cameras(part))
        files, masks, columns = [], [], []
        sequence, frame = [], []
        with Progress(transient=True) as progress:
            what = f"{self.name}: reading annotations of {part}"
            for number, camera in enumerate(progress.track(cameras, description=what)):
                for index in range(camera.frames):
                    label = f"{camera.folder}/labels_{index:06d}.npz"
                    found = _frame(self.root / label)
                    if found is None:
                        continue
                    files.append(f"{camera.folder}/color_{index:06d}.jpg")
                    masks.append(label)
                    columns.append((*found, camera))
                    sequence.append(number)
                    frame.append(index)
        if not files:
            raise UserError(f"{self.root}: no frame with a hand in {self.setup_name} {part}")
        count = torch.arange(len(files))
        return Annotated(
            files, masks, count, torch.tensor(sequence), torch.tensor(frame), _labels(columns),
            labelled_hand(self.root),
        )  # fmt: skip

    def _subjects(self) -> list[Path]:
        return sorted(path for path in self.root.glob("[0-9]*-*") if path.is_dir())

    def _cameras(self, part: str) -> Iterator[_Camera]:
        """Yield the cameras of the sequences of a split; refuse a set that is not all there."""
        complete = not (self.root / MARK).exists()  # else handrec wrote it, of any size
        subjects = self._subjects()
        if complete and len(subjects) != SUBJECTS:
            raise UserError(
                f"{self.root}: {len(subjects)} folders of subjects (YYYYMMDD-NAME), expected"
                f" {SUBJECTS}: the official splits count them; is the data set wholly unpacked?"
            )
        inside = SPLITS[self.setup_name][part]
        for subject, folder in enumerate(subjects):
            sequences = sorted(path for path in folder.iterdir() if path.is_dir())
            if complete and len(sequences) != SEQUENCES:
                raise UserError(f"{folder}: {len(sequences)} sequences, expected {SEQUENCES}")
            for number, path in enumerate(sequences):
                yield from self._of_sequence(path, subject, number, inside)

    def _of_sequence(
        self, path: Path, subject: int, number: int, inside: Callable[[Place], bool]
    ) -> Iterator[_Camera]:
        meta = _read_yaml(path / "meta.yml", ("num_frames", "serials", "mano_sides", "mano_calib"))
        if not meta["num_frames"]:
            return
        calibration = self.root / "calibration"
        shape = calibration / f"mano_{meta['mano_calib'][0]}" / "mano.yml"
        betas = np.array(_read_yaml(shape, ("betas",))["betas"], dtype=float)
        if betas.shape != (10,):
            raise UserError(f"{shape}: {betas.size} betas, expected 10")
        is_left = meta["mano_sides"][0] == "left"
        for camera, serial in enumerate(sorted(map(str, meta["serials"]))):
            if inside(Place(subject, camera, number)):
                height, width = IMAGE_SIZE
                file = calibration / "intrinsics" / f"{serial}_{width}x{height}.yml"
                folder = (path / serial).relative_to(self.root).as_posix()
                frames = int(meta["num_frames"])
                yield _Camera(folder, _intrinsics(file), betas, is_left, frames)


def read_mask(path: Path, is_left: bool) -> UInt8[np.ndarray, "h w"]:
    """Return the mask of the hand in a frame's labels: there is one hand, of either side."""
    with _open(path) as content:
        return np.where(content["seg"] == _HAND, 255, 0).astype(np.uint8)


def _frame(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Return joints ``(21, 3)`` and pose ``(48,)`` of a frame, None if it shows no hand."""
    with _open(path) as content:
        arrays = {}
        for name, shape in (("joint_3d", (21, 3)), ("pose_m", (51,))):
            if name not in content or content[name].shape != (1, *shape):
                raise UserError(f"{path}: expected an array {name} of shape {(1, *shape)}")
            arrays[name] = content[name][0].astype(float)
    joints, pose = arrays["joint_3d"], arrays["pose_m"]
    if (joints == -1).all() or not pose.any():
        return None
    return joints, pose[:48]


def _open(path: Path) -> Any:
    """Open an archive of arrays; nothing in it is unpickled."""
    try:
        content = BytesIO(path.read_bytes())  # numpy would leave a damaged file open
    except OSError as error:
        raise unread(path, error) from error
    try:
        return np.load(content, allow_pickle=False)
    except (OSError, BadZipFile, ValueError, EOFError) as error:
        raise UserError(f"{path}: damaged, or no archive of arrays") from error


def _labels(frames: list[tuple[np.ndarray, np.ndarray, _Camera]]) -> Labels:
    """Return frames as columns."""
    joints, pose, cameras = zip(*frames, strict=True)
    points = torch.from_numpy(np.stack(joints)).float()
    intrinsics = _column([camera.intrinsics for camera in cameras])
    is_left = torch.tensor([float(camera.is_left) for camera in cameras])
    present = torch.ones(len(frames))
    labels = no_labels(len(frames))._replace(
        image_size=torch.tensor([IMAGE_SIZE]).repeat(len(frames), 1),
        intrinsics=shift_centres(intrinsics),
        is_left=is_left,
        joints_3d=points,
        has_joints_3d=present,
        axis_angle=_column(pose),
        betas=_column([camera.betas for camera in cameras]),
        has_pose=1 - is_left,
        confidence=torch.ones(len(frames), 21),
    )
    keypoints = project(points, labels.intrinsics)
    return labels._replace(keypoints_2d=keypoints, box=joints_box(keypoints))


def _column(rows: Any) -> Tensor:
    return torch.from_numpy(np.stack(rows)).float()


def _intrinsics(path: Path) -> Float[np.ndarray, "3 3"]:
    """Return the colour camera's ``K``, pixel centres at integers."""
    content = _read_yaml(path, ("color",))["color"]
    try:
        fx, fy, cx, cy = (float(content[key]) for key in ("fx", "fy", "ppx", "ppy"))
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path}: color wants numbers fx, fy, ppx, ppy") from None
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


def _read_yaml(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    """Return a file's mapping, which must have some keys."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise unread(path, error) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML") from error
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing:
        raise UserError(f"{path}: no {', '.join(missing)} in it")
    return dict(content)
