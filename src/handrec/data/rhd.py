"""RHD, the Rendered Hand Pose data set: drawn people, 42 joints, segmented hands.

C. Zimmermann and T. Brox, "Learning to Estimate 3D Hand Pose from Single RGB Images", ICCV 2017.
Layout and licence: docs/datasets.md.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from rich.progress import track
from torch import Tensor

from handrec.data.columns import held_out, joints_box, numbered, shift_centres
from handrec.data.decode import decode, read_encoded
from handrec.data.keypoint_orders import PRESETS, to_canonical
from handrec.data.labels import Annotated, LabelTable, no_labels
from handrec.data.pickles import array, read_pickle
from handrec.data.real import RealHands
from handrec.errors import UserError
from handrec.geometry.camera import project

#: First and last label of a mask that belong to the left and to the right hand: finger parts, palm.
LEFT, RIGHT = (2, 17), (18, 33)

#: Greatest size of an annotation's pickle, bytes: the training's takes about a hundred million.
_LARGEST = 1 << 30

_ORDER = to_canonical(PRESETS["rhd"], "rhd")


class RHD(RealHands):
    """RHD as unpacked from its zip: of each picture, the hand of which more is seen.

    That hand is chosen as in the set's own evaluation: by the pixels of its mask. Parameters and
    meshes are not published.

    Args:
        root: the folder with ``training`` and ``evaluation``.
        val_share: of the training pictures, for validation, by a hash of their names.
        **options: see :class:`~handrec.data.real.RealHands`.
    """

    name = "rhd"
    folders = ("rhd", "RHD_published_v2", "RHD")
    marker = "training/anno_training.pickle"
    projected_keypoints = True

    def __init__(self, root: str | None = None, val_share: float = 0.05, **options: Any) -> None:
        super().__init__(root, **options)
        if not 0 < val_share < 1:
            raise UserError("val_share must lie in (0, 1)")
        self.val_share = val_share
        self.read_mask = read_mask

    def sources(self, part: str) -> list[Path]:
        """Return the annotations and the folders of pictures and masks."""
        names = (f"anno_{part}.pickle", "color", "mask")
        return [self.root / part / name for name in names]

    def read(self, part: str) -> Annotated:
        """Return one hand of each picture of a part."""
        path, *_ = self.sources(part)
        entries = read_pickle(path, _LARGEST)
        numbers = sorted(entries)
        if not all(isinstance(n, int) and isinstance(entries[n], dict) for n in numbers):
            raise UserError(f"{path}: expected a dictionary for each number of a picture")
        files, masks = (
            [f"{part}/{folder}/{n:05d}.png" for n in numbers] for folder in ("color", "mask")
        )
        sides, size = self._sides(masks)
        arrays = {
            key: np.stack([array(f"{path}: entry {n}", entries[n], key, shape) for n in numbers])
            for key, shape in (("K", (3, 3)), ("xyz", (42, 3)), ("uv_vis", (42, 3)))
        }
        cameras = torch.from_numpy(arrays["K"]).float()
        is_left = sides.float()
        # The first 21 joints are the left hand's.
        joints, seen = (
            _one_hand(torch.from_numpy(arrays[key]).float(), sides) for key in ("xyz", "uv_vis")
        )
        present = torch.ones(len(numbers))
        labels = no_labels(len(numbers))._replace(
            image_size=size,
            intrinsics=shift_centres(cameras),
            is_left=is_left,
            joints_3d=joints,
            has_joints_3d=present,
            confidence=torch.ones(len(numbers), 21),
            visibility=(seen[..., 2] > 0).float(),
            has_visibility=present,
        )
        keypoints = project(joints, labels.intrinsics)
        labels = labels._replace(keypoints_2d=keypoints, box=joints_box(keypoints))
        sequence, frame = numbered(len(numbers))
        row = torch.arange(len(numbers))
        return Annotated(files, masks, row, sequence, frame, labels)

    def select(self, split: str, table: LabelTable) -> Int[Tensor, " s"]:
        """Return the samples of a split."""
        samples = torch.arange(len(table))
        if split == "test":
            return samples
        names = [name.decode() for name in table.files]
        chosen = held_out(names, self.val_share)
        is_val = torch.tensor([name in chosen for name in names])
        return samples[~is_val] if split == "train" else samples[is_val]

    def _sides(self, masks: list[str]) -> tuple[Int[Tensor, " n"], Int[Tensor, "n 2"]]:
        """Return 1 for each mask that shows more of the left hand, and the size of each."""

        def look(name: str) -> tuple[int, int, int]:
            levels = _levels(self.root / name)
            left, right = (np.count_nonzero(_between(levels, *hand)) for hand in (LEFT, RIGHT))
            return int(left > right), *levels.shape

        with ThreadPoolExecutor(max_workers=4) as pool:
            what = f"{self.name}: reading {len(masks):,} masks"
            found = list(track(pool.map(look, masks), what, len(masks), transient=True))
        table = torch.tensor(found)
        return table[:, 0], table[:, 1:]


def read_mask(path: Path, is_left: bool) -> UInt8[np.ndarray, "h w"]:
    """Return the mask of one of the hands: 255 on it."""
    return np.where(_between(_levels(path), *(LEFT if is_left else RIGHT)), 255, 0).astype(np.uint8)


def _levels(path: Path) -> UInt8[np.ndarray, "h w"]:
    return decode(read_encoded(path), path, grey=True)


def _between(levels: np.ndarray, first: int, last: int) -> np.ndarray:
    return (levels >= first) & (levels <= last)


def _one_hand(both: Float[Tensor, "n 42 3"], is_left: Int[Tensor, " n"]) -> Float[Tensor, "n 21 3"]:
    """Return the chosen hand of each picture, in the suite's order of joints."""
    hands = both.unflatten(1, (2, 21))
    chosen: Tensor = hands[torch.arange(len(hands)), 1 - is_left]
    return chosen[:, _ORDER]
