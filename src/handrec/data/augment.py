"""Augmentation on the device: geometry that labels follow, and colours that they do not."""

import math

import kornia.augmentation as K
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from handrec.geometry.camera import project
from handrec.types import HandBatch


class Augmentation(nn.Module):
    """Turns, scales and shifts a training batch in the picture plane, then varies its colours.

    The picture is turned about the camera's axis, which is a rotation of the hand: the labels stay
    exact under perspective. No flips: they would make left hands.

    Args:
        rotation: greatest angle, degrees.
        scale: greatest relative change of the hand's size.
        shift: greatest shift, share of the crop.
        brightness: greatest change; the same for ``contrast`` and ``saturation``.
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
        self.rotation = math.radians(rotation)
        self.scale, self.shift = scale, shift
        self.colours = nn.Sequential()
        if brightness or contrast or saturation or hue:
            self.colours.append(K.ColorJiggle(brightness, contrast, saturation, hue, p=0.8))
        if blur:
            self.colours.append(K.RandomGaussianBlur((3, 3), (0.3, 1.0), p=blur))
        if noise:
            self.colours.append(K.RandomGaussianNoise(std=noise, p=0.5))

    @torch.no_grad()
    def augment(self, batch: HandBatch) -> HandBatch:
        """Return the batch with image, intrinsics and labels changed alike.

        The frames of a clip (rows after each other of one sequence) are moved by the same angle,
        scale and shift.
        """
        count, device = len(batch.image), batch.image.device
        reach = torch.tensor([self.rotation, self.scale, self.shift, self.shift], device=device)
        moves = (2 * torch.rand(4, count, device=device) - 1) * reach[:, None]
        begins = batch.sequence[1:] != batch.sequence[:-1]
        clip = torch.cat([begins.new_zeros(1), begins]).long().cumsum(0)
        angle, scale, shift_x, shift_y = moves[:, clip]
        batch = turn(batch, angle, 1 + scale, torch.stack([shift_x, shift_y], dim=1))
        return batch._replace(image=self.colours(batch.image).clamp(0, 1))


def turn(
    batch: HandBatch,
    angle: Float[Tensor, " b"],
    scale: Float[Tensor, " b"],
    shift: Float[Tensor, "b 2"],
) -> HandBatch:
    """Return the batch turned in the picture plane about the crop's centre.

    With ``A = [[s R, b], [0, 1]]`` the warp of the crop's pixels and ``Z`` the rotation by the same
    angle about the camera's axis, a point ``X`` moves to ``Z X`` and the camera to ``A K Z^T``,
    which is again a pinhole with square pixels if ``K`` is one: the labels stay exact. A joint
    that leaves the crop is no longer visible.

    Args:
        batch: images of equal width and height; ``K`` with fx = fy and no skew.
        angle: radians, positive turns the picture's x axis towards its y axis (clockwise).
        scale: of the hand.
        shift: of the picture, shares of the crop.
    """
    size = batch.image.shape[-1]
    warp, turn_3d = _warp_matrix(angle, scale, shift * size, size), _about_z(angle)
    intrinsics = warp @ batch.intrinsics @ turn_3d.mT
    wrist = batch.joints_3d[:, 0] - batch.translation  # the rest wrist, fixed under rotation
    translation = (turn_3d @ batch.joints_3d[:, 0, :, None])[..., 0] - wrist
    root = turn_3d @ batch.pose[:, 0]
    keypoints = batch.keypoints_2d @ warp[:, :2, :2].mT + warp[:, None, :2, 2]
    warped = _resample(torch.cat([batch.image, batch.mask], dim=1), warp)
    joints = batch.joints_3d @ turn_3d.mT
    # Detected keypoints may be astray: where there are true joints, they say what is in the crop.
    exact = (batch.has_joints_3d > 0)[:, None, None]
    where = torch.where(exact, project(joints, intrinsics), keypoints)
    return batch._replace(
        image=warped[:, :3],
        mask=warped[:, 3:] * batch.has_mask.view(-1, 1, 1, 1),
        intrinsics=intrinsics,
        keypoints_2d=keypoints,
        joints_3d=joints,
        vertices=batch.vertices @ turn_3d.mT,
        pose=torch.cat([root[:, None], batch.pose[:, 1:]], dim=1),
        translation=translation,
        visibility=batch.visibility * ((where >= 0) & (where < size)).all(-1),
        crop_to_image=batch.crop_to_image @ torch.linalg.inv(warp),
    )


def _about_z(angle: Tensor) -> Float[Tensor, "b 3 3"]:
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    rows = [cos, -sin, zero, sin, cos, zero, zero, zero, zero + 1]
    return torch.stack(rows, dim=1).view(-1, 3, 3)


def _warp_matrix(angle: Tensor, scale: Tensor, shift: Tensor, size: int) -> Float[Tensor, "b 3 3"]:
    """Return ``A``: pixels to pixels, fixing the centre but for the shift."""
    warp = _about_z(angle)
    warp[:, :2, :2] *= scale[:, None, None]
    centre = warp.new_tensor([size / 2, size / 2])
    warp[:, :2, 2] = centre + shift - warp[:, :2, :2] @ centre
    return warp


def _resample(image: Tensor, warp: Tensor) -> Tensor:
    """Return the image whose pixel ``A p`` shows what was at ``p``; the border is continued."""
    size = image.shape[-1]
    to_unit = warp.new_tensor([[2 / size, 0, -1], [0, 2 / size, -1], [0, 0, 1]])
    backwards = to_unit @ torch.linalg.inv(warp) @ torch.linalg.inv(to_unit)
    grid = F.affine_grid(backwards[:, :2], list(image.shape), align_corners=False)
    return F.grid_sample(image, grid, padding_mode="border", align_corners=False)
