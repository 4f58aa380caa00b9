"""The records that travel between the layers: shape, unit and frame of every field.

Units are metres, pixels and radians. Cameras follow OpenCV (x right, y down, z forward); pixel
centres lie at integer + 0.5, so that ``(0.5, 0.5)`` is the centre of the first pixel. Every hand
inside the suite is a right hand: a left one is mirrored when it is read and mirrored back when it
is written. Joints are the 21 of FreiHAND, kinematic joints the 16 of MANO (see ``hand.joints``).
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Camera(NamedTuple):
    """A pinhole camera.

    Attributes:
        intrinsics: ``K``, pixels. ``K @ X / Z`` is a pixel position with centres at integer + 0.5.
        image_size: ``(height, width)`` in pixels.
    """

    intrinsics: Float[Tensor, "b 3 3"]
    image_size: tuple[int, int]


class Hand(NamedTuple):
    """A posed hand.

    Attributes:
        vertices: surface points, metres, in the frame of the rotations and translation given.
        joints: the 21 joints in FreiHAND order, metres, same frame.
    """

    vertices: Float[Tensor, "b v 3"]
    joints: Float[Tensor, "b 21 3"]


class HandBatch(NamedTuple):
    """One batch of any data set. An absent label is zeros and its ``has_*`` is 0: multiply it in.

    Attributes:
        image: RGB in [0, 1].
        intrinsics: ``K`` of the crop, pixels.
        keypoints_2d: 21 joints in crop pixels; may be noisy detections.
        confidence: of each 2D keypoint, in [0, 1]; 0 where it is absent.
        joints_3d: 21 joints, metres, camera frame.
        vertices: metres, camera frame, in the topology of the batch's hand model.
        pose: absolute rotations of the 16 kinematic joints (mean pose already added); entry 0 is
            the global rotation to the camera frame.
        betas: shape coefficients, standard deviations.
        translation: metres, camera frame; added after posing (see ``HandModel.decode``).
        mask: 1 on the hand.
        has_joints_3d: 1 where ``joints_3d`` is a label.
        has_vertices: 1 where ``vertices`` is a label.
        has_pose: 1 where ``pose``, ``betas`` and ``translation`` are labels.
        has_mask: 1 where ``mask`` is a label.
        is_left: 1 where the hand was a left one, mirrored when it was read.
        visibility: 1 where a keypoint is not hidden, by the hand itself or by something before it.
        has_visibility: 1 where ``visibility`` is a label.
        sample_id: index within its data set.
        sequence: number of the video that the image is a frame of, its ``sample_id`` if it is of
            none. A clip is so many rows after each other of one ``sequence``.
        frame: number of the frame in its video.
        crop_to_image: homogeneous affine from crop pixels to the pixels of the original image (it
            mirrors for a left hand).
    """

    image: Float[Tensor, "b 3 h w"]
    intrinsics: Float[Tensor, "b 3 3"]
    keypoints_2d: Float[Tensor, "b 21 2"]
    confidence: Float[Tensor, "b 21"]
    joints_3d: Float[Tensor, "b 21 3"]
    vertices: Float[Tensor, "b v 3"]
    pose: Float[Tensor, "b 16 3 3"]
    betas: Float[Tensor, "b 10"]
    translation: Float[Tensor, "b 3"]
    mask: Float[Tensor, "b 1 h w"]
    has_joints_3d: Float[Tensor, " b"]
    has_vertices: Float[Tensor, " b"]
    has_pose: Float[Tensor, " b"]
    has_mask: Float[Tensor, " b"]
    is_left: Float[Tensor, " b"]
    visibility: Float[Tensor, "b 21"]
    has_visibility: Float[Tensor, " b"]
    sample_id: Int[Tensor, " b"]
    sequence: Int[Tensor, " b"]
    frame: Int[Tensor, " b"]
    crop_to_image: Float[Tensor, "b 3 3"]

    @property
    def camera(self) -> Camera:
        """The crop's camera."""
        height, width = self.image.shape[-2:]
        return Camera(self.intrinsics, (height, width))


class HandPrediction(NamedTuple):
    """What a method says of a batch: all that evaluation, prediction and export know about it.

    Attributes:
        vertices: metres, camera frame.
        joints: 21 joints, metres, camera frame.
        keypoints_2d: projected joints, crop pixels.
        pose: absolute rotations of the 16 kinematic joints.
        betas: shape coefficients.
        translation: metres, camera frame.
        scale: of the hand; None for a method that does not scale, which is 1. ``vertices`` are
            ``scale * decode(pose, betas, 0) + translation``, so are the joints.
        texture: RGB in [0, 1], in the method's own parametrisation, or None.
        light: coefficients of the method's light model, or None.
    """

    vertices: Float[Tensor, "b v 3"]
    joints: Float[Tensor, "b 21 3"]
    keypoints_2d: Float[Tensor, "b 21 2"]
    pose: Float[Tensor, "b 16 3 3"]
    betas: Float[Tensor, "b 10"]
    translation: Float[Tensor, "b 3"]
    scale: Float[Tensor, " b"] | None = None
    texture: Any = None
    light: Any = None

    @property
    def size(self) -> Float[Tensor, " b"]:
        """The scale, 1 where the method has none."""
        if self.scale is None:
            return torch.ones_like(self.translation[:, 0])
        return self.scale


class Rendering(NamedTuple):
    """A rendered batch.

    Attributes:
        image: whatever the shader returned where a face is seen, the background elsewhere.
        mask: 1 where a face is seen; its gradient is the visibility gradient.
        depth: camera z in metres, 0 where nothing is seen.
        face_index: the face seen at the pixel's centre, -1 for none; no gradient.
    """

    image: Float[Tensor, "b c h w"]
    mask: Float[Tensor, "b 1 h w"]
    depth: Float[Tensor, "b 1 h w"]
    face_index: Int[Tensor, "b h w"]
