"""Hands that were found in a picture: placed, described and drawn."""

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor

from handrec.data.photos import PhotoHand
from handrec.geometry.rotations import matrix_to_axis_angle
from handrec.methods.base import HandMethod
from handrec.render.base import Rasterizer
from handrec.types import HandPrediction
from handrec.viz.drawing import MESH_COLOUR, Picture, draw_mesh, draw_skeleton
from handrec.viz.textured import Render, draw_textured, one_hand
from handrec.viz.viewer import ShownHand

COLOURS = {"right": MESH_COLOUR, "left": (255, 190, 130)}

CONVENTIONS = {
    "frame": "camera of the whole photo, OpenCV: x right, y down, z forward; metres",
    "pixels": "of the photo turned upright by EXIF; pixel centres at integer + 0.5",
    "joints": "21 in FreiHAND order: wrist, then thumb to little finger from base to tip",
    "pose": "16 joints in MANO order, absolute (mean pose added), relative to the parent, joint 0 "
    "to the camera; of a left hand: for the mirrored right hand model",
    "meshes": ".obj and .ply in the frame above; .glb y up, z backward (glTF)",
}

DEPTH_NOTE = {
    True: "K was given. One view cannot tell a small near hand from a large far one: depth and "
    "size carry the error of the estimated hand size.",
    False: "K was not given: focal length assumed to be the image diagonal. Depth is wrong by as "
    "much as the focal length is; positions in the image are not affected.",
}


class FoundHand(NamedTuple):
    """One predicted hand in the frame and pixels of its photo; a left one is a left hand again.

    Attributes:
        item: where it was looked for.
        vertices: metres, camera frame.
        faces: counter-clockwise seen from outside.
        joints: metres, camera frame.
        keypoints_2d: pixels of the photo.
        pose: absolute rotations of the 16 kinematic joints.
        betas: shape coefficients.
        translation: metres.
        scale: of the decoded hand, before it is moved.
        seen: the (right) hand as the method saw it, with texture and light; None without a texture.
    """

    item: PhotoHand
    vertices: Float[Tensor, "v 3"]
    faces: Int[Tensor, "f 3"]
    joints: Float[Tensor, "21 3"]
    keypoints_2d: Float[Tensor, "21 2"]
    pose: Float[Tensor, "16 3 3"]
    betas: Float[Tensor, " 10"]
    translation: Float[Tensor, " 3"]
    scale: float
    seen: HandPrediction | None = None


def place_in_photo(
    prediction: HandPrediction,
    index: int,
    item: PhotoHand,
    faces: Int[Tensor, "f 3"],
    crop_to_image: Float[Tensor, "3 3"],
) -> FoundHand:
    """Return one hand of a batch in the frame of its photo, on the CPU in float32.

    The camera of a crop is the photo's (``K_crop = A^-1 K``), so that a right hand is in place
    already and a left one needs its mirror image: with ``M = diag(-1, 1, 1)`` points become
    ``M x``, rotations ``M R M`` (axis-angle ``(x, -y, -z)``), and faces turn round so that their
    normals still point outwards.

    Args:
        prediction: of a batch, each hand as seen in its crop.
        index: of the hand in the batch.
        item: the hand's.
        faces: of the (right) hand model.
        crop_to_image: the hand's affine.
    """
    vertices, joints, keypoints, pose, betas, translation = (
        field[index].detach().float().cpu() for field in prediction[:6]
    )
    faces, affine = faces.cpu(), crop_to_image.float().cpu()
    if item.side == "left":
        mirror = torch.tensor([-1.0, 1.0, 1.0])
        vertices, joints, translation = vertices * mirror, joints * mirror, translation * mirror
        pose = pose * mirror[:, None] * mirror
        faces = faces.flip(-1)
    keypoints = keypoints @ affine[:2, :2].T + affine[:2, 2]
    seen = None if prediction.texture is None else one_hand(prediction, index)
    scale = float(prediction.size[index])
    return FoundHand(
        item, vertices, faces, joints, keypoints, pose, betas, translation, scale, seen
    )


def shown(hands: Sequence[FoundHand], numbers: Sequence[int] | None = None) -> list[ShownHand]:
    """Return hands as the viewer wants them, numbered from 0 or as given."""
    return [
        ShownHand(hand.item.side, number, hand.vertices, hand.joints)
        for number, hand in zip(numbers or range(len(hands)), hands, strict=True)
    ]


def describe_method(trainer: pl.Trainer, method: HandMethod) -> dict[str, str | None]:
    """Return what a prediction was made with."""
    checkpoint = trainer.ckpt_path
    return {
        "method": type(method).__name__,
        "hand_model": type(method.hand).__name__,
        "checkpoint": None if checkpoint is None else str(checkpoint),
    }


def to_json(content: Any) -> str:
    """Return indented JSON with rows of numbers on one line each."""
    text = json.dumps(content, indent=1)
    # No string holds the line break that the pattern wants.
    return re.sub(r"\[\n([^\[\]{}\"]*)\]", lambda row: f"[{' '.join(row[1].split())}]", text)


def describe(hands: list[FoundHand], meshes: list[dict[str, str]]) -> dict[str, Any]:
    """Return the parameters of a photo's hands as plain lists and numbers.

    Args:
        hands: of one photo.
        meshes: their mesh files by suffix.
    """
    photo = hands[0].item
    return {
        "image_size": list(photo.image_size),
        "intrinsics": photo.intrinsics.tolist(),
        "intrinsics_given": photo.intrinsics_given,
        "note": DEPTH_NOTE[photo.intrinsics_given],
        "conventions": CONVENTIONS,
        "hands": [describe_hand(hand, files) for hand, files in zip(hands, meshes, strict=True)],
    }


def describe_hand(hand: FoundHand, files: dict[str, str]) -> dict[str, Any]:
    """Return the parameters of a hand as plain lists and numbers.

    Args:
        hand: in its photo.
        files: its meshes by suffix.
    """
    return {
        "side": hand.item.side,
        "box": rounded(hand.item.box, 3),
        "joints_2d": rounded(hand.keypoints_2d, 3),
        "joints_3d": rounded(hand.joints, 6),
        "vertices": files,
        "pose_matrix": rounded(hand.pose, 7),
        "pose_axis_angle": rounded(matrix_to_axis_angle(hand.pose), 6),
        "betas": rounded(hand.betas, 5),
        "translation": rounded(hand.translation, 6),
        "scale": round(hand.scale, 6),
    }


def draw_hands_in_colour(picture: Picture, hands: Sequence[FoundHand], render: Render) -> Picture:
    """Return the photo with its hands in their estimated texture and light.

    Args:
        picture: the photo.
        hands: in it.
        render: of the method.
    """
    for hand in farthest_first(hands):
        if hand.seen is not None:
            intrinsics, is_left = torch.from_numpy(hand.item.intrinsics), hand.item.side == "left"
            picture = draw_textured(picture, hand.seen, intrinsics, render, is_left)
    return picture


def farthest_first(hands: Sequence[FoundHand]) -> list[FoundHand]:
    """Return hands in the order in which to draw them."""
    return sorted(hands, key=lambda hand: -float(hand.vertices[:, 2].mean()))


def draw_hands(
    picture: Picture, hands: Sequence[FoundHand], rasterizer: Rasterizer | None = None
) -> Picture:
    """Return the photo with its hands, the farthest drawn first.

    Args:
        picture: the photo.
        hands: in it.
        rasterizer: draws the meshes; None takes ``warp``.
    """
    for hand in farthest_first(hands):
        picture = draw_mesh(
            picture,
            hand.vertices,
            hand.faces,
            torch.from_numpy(hand.item.intrinsics),
            colour=COLOURS[hand.item.side],
            rasterizer=rasterizer,
        )
    for hand in hands:
        picture = draw_skeleton(picture, hand.keypoints_2d)
    return picture


def rounded(values: Tensor | Sequence[float], digits: int) -> Any:
    """Return nested lists of numbers to so many decimals, short in JSON."""
    return np.asarray(values, dtype=np.float64).round(digits).tolist()
