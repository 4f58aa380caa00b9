"""Crops of annotated images: read by workers, labelled on the device."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, cast

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from handrec.data.augment import Augmentation, Moves, clip_numbers, no_moves, turn_labels
from handrec.data.crops import Box, crop_affine, square_box, warp
from handrec.data.decode import decode_for
from handrec.data.labels import Labels, LabelTable
from handrec.data.sampler import seeded
from handrec.errors import UserError
from handrec.geometry.rotations import axis_angle_to_matrix
from handrec.hand.base import HandModel
from handrec.hand.mano import Mano
from handrec.types import HandBatch

#: What a crop shows: the square around the hand's box, or around the whole image.
Crop = Literal["hand", "image"]

#: What the numbers of a published pose are: axis-angle vectors, offsets of such vectors from MANO's
#: mean, or coefficients of MANO's principal components of these offsets (the wrist's is a vector in
#: all).
PoseFormat = Literal["vectors", "offsets", "components"]

#: Masks are JPEGs: this and brighter is the hand.
_MASK_LEVEL = 128


#: Reads masks that are no pictures of one hand: of a path, and whether it is the left hand that is
#: wanted, 255 on that hand and 0 elsewhere.
MaskReader = Callable[[Path, bool], np.ndarray]


class CropBatch(NamedTuple):
    """What workers hand over.

    Attributes:
        picture: RGB.
        mask: 1 on the hand; of no pixels where no sample has one.
        has_mask: 1 where there is one.
        affine: crop pixels to image pixels, before moves; mirrors for left hands.
        moves: of the augmentation, which the pictures show already.
        labels: of the hands, in their images.
        sample_id: index within the data set.
        sequence: number of the video.
        frame: number in it.
    """

    picture: UInt8[Tensor, "b h w 3"]
    mask: UInt8[Tensor, "b _ _"]
    has_mask: Float[Tensor, " b"]
    affine: Float[Tensor, "b 3 3"]
    moves: Moves
    labels: Labels
    sample_id: Int[Tensor, " b"]
    sequence: Int[Tensor, " b"]
    frame: Int[Tensor, " b"]


class CropSet(Dataset[CropBatch]):
    """Crops of some samples of a part; a whole batch is fetched at once, by its indices.

    Args:
        root: that the files are relative to.
        table: of the part.
        samples: of the part, in order.
        size: width and height of the crops.
        crop: what they show.
        box_scale: side of the crop over the longer side of the hand's box.
        masks: whether to read masks.
        read_mask: for masks that are no pictures; None takes them for pictures.
        augmentation: of pictures and masks; labels follow in :func:`to_hand_batch`.
        mirrored: whether images go on mirrored beyond their borders, see :func:`warp`; of pictures
            without masks.
    """

    def __init__(
        self,
        root: Path,
        table: LabelTable,
        samples: Int[Tensor, " s"],
        size: int,
        crop: Crop,
        box_scale: float,
        masks: bool,
        read_mask: MaskReader | None = None,
        augmentation: Augmentation | None = None,
        mirrored: bool = False,
    ) -> None:
        self.mirrored = mirrored
        self.root, self.table, self.samples = root, table, samples
        self.size, self.crop, self.box_scale = size, crop, box_scale
        self.masks = masks and bool((table.masks != b"").any())
        self.read_mask, self.augmentation = read_mask, augmentation

    def __len__(self) -> int:
        return len(self.samples)

    def __getitems__(self, indices: Sequence[int]) -> CropBatch | str:
        """Return samples as one batch, augmented or not, or what the user has to mend.

        An error that crossed from a worker by itself would bring its traceback along.
        """
        if get_worker_info() is not None:
            cv2.setNumThreads(0)  # workers are the threads
        chosen = self.samples[torch.as_tensor(indices)]
        labels = self.table.labels.rows(self.table.row[chosen])
        size, count = self.size, len(chosen)
        affines = np.stack([self.affine(labels, i) for i in range(count)])
        moves, changes = no_moves(count), None
        if self.augmentation is not None:
            with seeded(indices):
                clip = clip_numbers(self.table.sequence[chosen], self.table.frame[chosen])
                moves = self.augmentation.moves(clip)
                changes = self.augmentation.changes(clip, size)
        back = torch.linalg.inv(moves.matrix(size).double()).numpy()
        picture = np.empty((count, size, size, 3), np.uint8)
        mask = np.zeros((count, size, size) if self.masks else (count, 0, 0), np.uint8)
        try:
            for i, sample in enumerate(chosen.tolist()):
                is_left = bool(labels.is_left[i])
                self._read(
                    sample, is_left, affines[i] @ back[i], _size(labels, i), picture[i], mask[i]
                )
        except UserError as error:
            return f"{error} (sample {sample})"
        if changes is not None:
            changes.of_pictures(picture)
        has_mask = torch.from_numpy(self.table.masks[chosen.numpy()] != b"") & self.masks
        return CropBatch(
            torch.from_numpy(picture),
            torch.from_numpy(mask),
            has_mask.float(),
            torch.from_numpy(affines).float(),
            moves,
            labels,
            chosen,
            self.table.sequence[chosen],
            self.table.frame[chosen],
        )

    def affine(self, labels: Labels, i: int) -> Float[np.ndarray, "3 3"]:
        """Return the affine of a hand's crop."""
        if self.crop == "image":
            height, width = _size(labels, i) or (0, 0)
            square = square_box((0.0, 0.0, float(width), float(height)), 1.0)
        else:
            square = square_box(cast(Box, tuple(labels.box[i].tolist())), self.box_scale)
        return crop_affine(square, self.size, bool(labels.is_left[i]))

    def _read(
        self,
        sample: int,
        is_left: bool,
        affine: Float[np.ndarray, "3 3"],
        image_size: tuple[int, int] | None,
        picture: UInt8[np.ndarray, "s s 3"],
        mask: UInt8[np.ndarray, "_ _"],
    ) -> None:
        """Read a sample's picture and mask into the given arrays."""
        path = self.root / self.table.files[sample].decode()
        image, placed = decode_for(path, affine, image_size)
        name = self.table.masks[sample].decode() if self.masks else ""
        if not name:
            picture[:] = warp(image, placed, self.size, self.mirrored)
            return
        levels, levels_placed = self._levels(self.root / name, is_left, affine, image_size)
        if levels.shape == image.shape[:2] and np.array_equal(placed, levels_placed):
            four = cv2.cvtColor(image, cv2.COLOR_RGB2RGBA)
            four[..., 3] = levels
            four = warp(four, placed, self.size)
            cv2.cvtColor(four, cv2.COLOR_RGBA2RGB, picture)
            levels = four[..., 3]
        else:
            picture[:] = warp(image, placed, self.size)
            levels = warp(levels, levels_placed, self.size)
        np.greater_equal(levels, _MASK_LEVEL, out=mask, casting="unsafe")

    def _levels(
        self,
        path: Path,
        is_left: bool,
        affine: Float[np.ndarray, "3 3"],
        image_size: tuple[int, int] | None,
    ) -> tuple[np.ndarray, Float[np.ndarray, "3 3"]]:
        """Return a mask as large as it was decoded, and the affine for that size."""
        if self.read_mask is None:
            return decode_for(path, affine, image_size, grey=True)
        return self.read_mask(path, is_left), affine


def _size(labels: Labels, i: int) -> tuple[int, int] | None:
    """Return the size of an image, None where it is unknown."""
    height, width = labels.image_size[i].tolist()
    return (height, width) if height else None


@torch.no_grad()
def to_hand_batch(
    crops: CropBatch, hand: HandModel | None, labelled: bool, pose_format: PoseFormat
) -> HandBatch:
    """Return crops with their labels in them, on their device.

    A left hand is mirrored: with the picture, x changes its sign in the camera frame, and of
    axis-angle vectors y and z do.

    Args:
        crops: as workers read them.
        hand: gives the topology; None gives a single vertex.
        labelled: whether parameters and vertices of the labels are this hand's; else both are
            absent.
        pose_format: of the published poses, if they are MANO's.
    """
    labels, affine, side = crops.labels, crops.affine, crops.picture.shape[1]
    sign = 1 - 2 * labels.is_left
    flip = torch.stack([sign, torch.ones_like(sign), torch.ones_like(sign)], dim=1)
    step, start = affine[:, [0, 1], [0, 1]], affine[:, :2, 2]
    intrinsics = labels.intrinsics.clone()
    intrinsics[:, :2] -= start[:, :, None] * intrinsics[:, 2:]
    intrinsics[:, :2] /= step[:, :, None]
    keypoints = (labels.keypoints_2d - start[:, None]) / step[:, None]
    inside = ((keypoints >= 0) & (keypoints < side)).all(-1)
    joints = labels.joints_3d * flip[:, None]
    posed = _posed(labels, joints[:, 0], sign, hand, labelled, pose_format)
    masks = crops.mask[:, None].float()
    batch = HandBatch(
        image=_as_floats(crops.picture),
        intrinsics=intrinsics * flip[:, None],
        keypoints_2d=keypoints * (labels.confidence[..., None] > 0),  # absent ones stay zeros
        confidence=labels.confidence,
        joints_3d=joints,
        mask=masks if masks.numel() else affine.new_zeros(len(affine), 1, side, side),
        has_joints_3d=labels.has_joints_3d,
        has_mask=crops.has_mask,
        is_left=labels.is_left,
        visibility=labels.visibility * inside,
        has_visibility=labels.has_visibility,
        sample_id=crops.sample_id,
        sequence=crops.sequence,
        frame=crops.frame,
        crop_to_image=affine,
        **posed,
    )
    return turn_labels(batch, crops.moves)


def _as_floats(picture: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, "b 3 h w"]:
    """Return pictures in [0, 1], on their device."""
    count, height, width, _ = picture.shape
    if picture.device.type == "cpu":  # NumPy takes huge pages: the faults of small ones cost more
        image = torch.from_numpy(np.empty((count, 3, height, width), np.float32))
    else:
        image = picture.new_empty(count, 3, height, width, dtype=torch.float32)
    return image.copy_(picture.permute(0, 3, 1, 2)).div_(255)


def _posed(
    labels: Labels,
    wrist: Float[Tensor, "b 3"],
    sign: Float[Tensor, " b"],
    hand: HandModel | None,
    labelled: bool,
    pose_format: PoseFormat,
) -> dict[str, Tensor]:
    """Return what depends on the hand model: parameters and vertices, absent or not.

    Data sets publish translations in ways of their own: the labelled wrist says the same in all.
    """
    count, absent = len(wrist), torch.zeros_like(sign)
    if hand is None or not labelled:
        number = 1 if hand is None else len(hand.template)
        return {
            "vertices": wrist.new_zeros(count, number, 3),
            "pose": wrist.new_zeros(count, 16, 3, 3),
            "betas": torch.zeros_like(labels.betas),
            "translation": torch.zeros_like(wrist),
            "has_vertices": absent,
            "has_pose": absent,
        }
    turn = torch.stack([torch.ones_like(sign), sign, sign], dim=1).repeat(1, 16)
    vectors = labels.axis_angle
    if pose_format == "components" and isinstance(hand, Mano):
        offsets = vectors[:, 3:] @ hand.pose_components
        vectors = torch.cat([vectors[:, :3], offsets], dim=1)
    vectors = vectors * turn
    if isinstance(hand, Mano):
        pose = hand.absolute_pose(vectors, flat_hand_mean=pose_format == "vectors")
    else:
        pose = axis_angle_to_matrix(vectors.reshape(-1, 16, 3))
    rest = hand.decode(pose, labels.betas, torch.zeros_like(wrist))
    translation = wrist - rest.joints[:, 0]
    present = labels.has_pose * labels.has_joints_3d
    if labels.vertices.shape[1]:
        flip = torch.stack([sign, torch.ones_like(sign), torch.ones_like(sign)], dim=1)
        vertices, has_vertices = labels.vertices * flip[:, None], labels.has_vertices
    else:
        vertices, has_vertices = rest.vertices + translation[:, None], present
    return {
        "vertices": vertices * has_vertices[:, None, None],
        "pose": pose * present[:, None, None, None],
        "betas": labels.betas * present[:, None],
        "translation": translation * present[:, None],
        "has_vertices": has_vertices,
        "has_pose": present,
    }
