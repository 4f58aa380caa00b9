"""Augmentation: geometry that labels follow, and colours that they do not.

Data sets on the disk are augmented as they are read: the geometry is part of the one warp that
makes the crop, the colours are changed in 8 bits. Batches that are drawn are augmented on their
device. Random numbers are the CPU's in both.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from handrec.data.colours import Changes, Colours
from handrec.errors import fraction, not_negative
from handrec.geometry.camera import move_pixels, project
from handrec.types import HandBatch


class Moves(NamedTuple):
    """How pictures are moved in their plane, about the crop's centre.

    Attributes:
        angle: radians, positive turns the picture's x axis towards its y axis (clockwise).
        scale: of the hand.
        shift: of the picture, shares of the crop.
    """

    angle: Float[Tensor, " b"]
    scale: Float[Tensor, " b"]
    shift: Float[Tensor, "b 2"]

    def to(self, device: torch.device) -> "Moves":
        """Return the moves on a device."""
        return Moves(*(field.to(device) for field in self))

    def matrix(self, size: int) -> Float[Tensor, "b 3 3"]:
        """Return ``A``: from pixels of a crop to pixels of the moved one, ``size`` pixels wide."""
        warp = _about_z(self.angle)
        warp[:, :2, :2] *= self.scale[:, None, None]
        centre = warp.new_tensor([size / 2, size / 2])
        warp[:, :2, 2] = centre + self.shift * size - warp[:, :2, :2] @ centre
        return warp


def no_moves(count: int) -> Moves:
    """Return moves that leave everything where it is."""
    return Moves(torch.zeros(count), torch.ones(count), torch.zeros(count, 2))


class Augmentation(nn.Module):
    """Turns, scales and shifts training pictures in their plane, then varies their colours.

    The picture is turned about the camera's axis, which is a rotation of the hand: the labels stay
    exact under perspective. No flips: they would make left hands.

    Args:
        rotation: greatest angle, degrees.
        scale: greatest relative change of the hand's size.
        shift: greatest shift, share of the crop.
        brightness: greatest relative change; the same for ``contrast`` and ``saturation``.
        contrast: see ``brightness``.
        saturation: see ``brightness``.
        hue: greatest change, turns.
        blur: probability of a Gaussian blur.
        noise: standard deviation of Gaussian noise, in half of the images.
    """

    def __init__(
        self,
        rotation: float = 30.0,
        scale: float = 0.15,
        shift: float = 0.06,
        brightness: float = 0.25,
        contrast: float = 0.25,
        saturation: float = 0.25,
        hue: float = 0.02,
        blur: float = 0.15,
        noise: float = 0.03,
    ) -> None:
        super().__init__()
        not_negative(self, rotation=rotation, shift=shift, noise=noise)
        fraction(self, scale=scale, blur=blur)
        self.rotation = math.radians(rotation)
        self.scale, self.shift = scale, shift
        share = 0.8 if brightness or contrast or saturation or hue else 0.0
        self.colours = Colours(brightness, contrast, saturation, hue, share, blur, noise)

    @torch.no_grad()
    def augment(self, batch: HandBatch) -> HandBatch:
        """Return the batch with image, intrinsics and labels changed alike, on its device."""
        clip = clip_numbers(batch.sequence, batch.frame)
        batch = turn(batch, self.moves(clip))
        changes = self.changes(clip, batch.image.shape[-1])
        return batch._replace(image=changes.of_batch(batch.image))

    @torch.no_grad()
    def disturb(
        self, image: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b 3 3"]]:
        """Return pictures changed, each on its own, and the warps of their pixels.

        Args:
            image: RGB in [0, 1], of equal width and height.
        """
        rows, size = torch.arange(len(image)), image.shape[-1]
        warp = self.moves(rows).matrix(size).to(image.device)
        with torch.autocast(image.device.type, enabled=False):  # places on pictures are float32
            return self.changes(rows, size).of_batch(_resample(image, warp)), warp

    def moves(self, clip: Int[Tensor, " b"]) -> Moves:
        """Return random moves of some pictures, those of a clip alike, on the CPU.

        Args:
            clip: see :func:`clip_numbers`.
        """
        reach = torch.tensor([self.rotation, self.scale, self.shift, self.shift])
        drawn = (2 * torch.rand(4, len(clip)) - 1) * reach[:, None]
        angle, scale, shift_x, shift_y = drawn[:, clip]
        return Moves(angle, 1 + scale, torch.stack([shift_x, shift_y], dim=1))

    def changes(self, clip: Int[Tensor, " b"], size: int) -> Changes:
        """Return random changes of the colours of some pictures, on the CPU.

        Those of a clip are alike but for the noise: what the hand looks like stays.

        Args:
            clip: see :func:`clip_numbers`.
            size: of the pictures, pixels.
        """
        return self.colours.draw(len(clip), size).alike(clip)


def clip_numbers(sequence: Int[Tensor, " b"], frame: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
    """Return the number of each row's clip, from 0, on the CPU.

    Rows after each other of one sequence with rising frame numbers are a clip.
    """
    begins = (sequence[1:] != sequence[:-1]) | (frame[1:] <= frame[:-1])
    return torch.cat([begins.new_zeros(1), begins]).long().cumsum(0).cpu()


def turn(batch: HandBatch, moves: Moves) -> HandBatch:
    """Return the batch moved in the picture plane: picture, mask and labels.

    Args:
        batch: images of equal width and height; ``K`` with fx = fy and no skew.
        moves: of its rows.
    """
    moves = moves.to(batch.image.device)
    warp = moves.matrix(batch.image.shape[-1])
    warped = _resample(torch.cat([batch.image, batch.mask], dim=1), warp)
    present = batch.has_mask.view(-1, 1, 1, 1)
    return turn_labels(batch._replace(image=warped[:, :3], mask=warped[:, 3:] * present), moves)


def turn_labels(batch: HandBatch, moves: Moves) -> HandBatch:
    """Return the batch with the labels of its pictures moved, which are left as they are.

    With ``A = [[s R, b], [0, 1]]`` the warp of the crop's pixels and ``Z`` the rotation by the same
    angle about the camera's axis, a point ``X`` moves to ``Z X`` and the camera to ``A K Z^T``,
    which is again a pinhole with square pixels if ``K`` is one: the labels stay exact. A joint
    that leaves the crop is no longer visible.

    Args:
        batch: ``K`` with fx = fy and no skew.
        moves: of its rows, on its device.
    """
    size = batch.image.shape[-1]
    warp, turn_3d = moves.matrix(size), _about_z(moves.angle)
    intrinsics = warp @ batch.intrinsics @ turn_3d.mT
    wrist = batch.joints_3d[:, 0] - batch.translation  # the rest wrist, fixed under rotation
    translation = (turn_3d @ batch.joints_3d[:, 0, :, None])[..., 0] - wrist
    root = turn_3d @ batch.pose[:, 0]
    keypoints = move_pixels(batch.keypoints_2d, warp)
    joints = batch.joints_3d @ turn_3d.mT
    # Detected keypoints may be astray: where there are true joints, they say what is in the crop.
    exact = (batch.has_joints_3d > 0)[:, None, None]
    where = torch.where(exact, project(joints, intrinsics), keypoints)
    return batch._replace(
        intrinsics=intrinsics,
        keypoints_2d=keypoints * (batch.confidence > 0)[..., None],  # absent ones stay zeros
        joints_3d=joints,
        vertices=batch.vertices @ turn_3d.mT,
        pose=torch.cat([root[:, None], batch.pose[:, 1:]], dim=1),
        translation=translation * batch.has_pose[:, None],
        visibility=batch.visibility * ((where >= 0) & (where < size)).all(-1),
        crop_to_image=batch.crop_to_image @ torch.linalg.inv(warp),
    )


def _about_z(angle: Tensor) -> Float[Tensor, "b 3 3"]:
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    rows = [cos, -sin, zero, sin, cos, zero, zero, zero, zero + 1]
    return torch.stack(rows, dim=1).view(-1, 3, 3)


def _resample(image: Tensor, warp: Tensor) -> Tensor:
    """Return the image whose pixel ``A p`` shows what was at ``p``; the border is continued."""
    size = image.shape[-1]
    to_unit = warp.new_tensor([[2 / size, 0, -1], [0, 2 / size, -1], [0, 0, 1]])
    backwards = to_unit @ torch.linalg.inv(warp) @ torch.linalg.inv(to_unit)
    grid = F.affine_grid(backwards[:, :2], list(image.shape), align_corners=False)
    return F.grid_sample(image, grid, padding_mode="border", align_corners=False)
