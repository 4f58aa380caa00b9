"""Fitted hands in their photos: fitted now, or read from what `handrec fit-image` has written."""

from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from handrec.data.boxes import Side
from handrec.data.crops import read_image
from handrec.data.json_files import read_json
from handrec.errors import UserError
from handrec.fitting.fit import Fit
from handrec.fitting.photo import Keypoints, crop_hand
from handrec.fitting.segment import segment
from handrec.fitting.unproject import View
from handrec.hand.base import HandModel
from handrec.render.base import Attribute, Rasterizer
from handrec.render.lights import Light
from handrec.types import Camera, HandBatch

#: Width and height of the crops that textures are taken from, pixels.
CROP = 512

#: A photo whose segmented hand overlaps less with the fit (intersection over union) is not used.
LEAST_OVERLAP = 0.75


class PhotographedHand(NamedTuple):
    """A hand that was fitted to a photo. A left one is mirrored, as everywhere in the suite.

    Attributes:
        path: of the photo.
        side: of the body.
        intrinsics: ``K`` of the photo, pixels.
        joints: ``(x, y, 1)`` of the fitted joints, pixels of the photo.
        pose: of the right hand that the mirrored photo shows; as the next three.
        betas: shape coefficients.
        translation: metres.
        light: that it is seen under.
    """

    path: Path
    side: Side
    intrinsics: Float[np.ndarray, "3 3"]
    joints: Keypoints
    pose: Float[Tensor, "1 16 3 3"]
    betas: Float[Tensor, "1 10"]
    translation: Float[Tensor, "1 3"]
    light: Light


def photographed(
    fit: Fit, path: Path, side: Side, intrinsics: Float[np.ndarray, "3 3"], target: HandBatch
) -> PhotographedHand:
    """Return a fit in its photo.

    Args:
        fit: to the crop.
        path: of the photo.
        side: of the body.
        intrinsics: ``K`` of the photo, pixels.
        target: the crop.
    """
    found = fit.prediction
    affine = target.crop_to_image[0].cpu().double()
    pixels = found.keypoints_2d[0].cpu().double() @ affine[:2, :2].T + affine[:2, 2]
    joints = np.column_stack([pixels.numpy(), np.ones(21)])
    light = Light(*(x.detach() for x in found.light))
    return PhotographedHand(
        path, side, intrinsics, joints, found.pose, found.betas, found.translation, light
    )


def read_fit(report: Path, path: Path) -> PhotographedHand:
    """Return the fit that `handrec fit-image` wrote of a photo.

    Args:
        report: its JSON file.
        path: of the photo.
    """
    content: Any = read_json(report)
    try:
        model, hand, light = content["hand_model"], content["hands"][0], content["light"]
        side: Side = hand["side"]
        mirror = torch.tensor([-1.0 if side == "left" else 1.0, 1.0, 1.0])
        pose = torch.tensor(hand["pose_matrix"])[None] * mirror[:, None] * mirror
        translation = torch.tensor(hand["translation"])[None] * mirror
        lamp = Light(
            torch.tensor(light["ambient"])[None],
            torch.tensor(light["directional"])[None],
            torch.tensor(light["direction"])[None] * mirror,
        )
        joints = np.column_stack([np.array(hand["joints_2d"]), np.ones(21)])
        intrinsics, betas = np.array(content["intrinsics"]), torch.tensor(hand["betas"])[None]
        _check_fit(side, pose, translation, betas, intrinsics, joints, *lamp)
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{report}: not what handrec fit-image writes ({error!r})") from error
    if model != "OpenHand":
        raise UserError(f"{report}: a fit of {model}; textures are recovered for OpenHand")
    return PhotographedHand(path, side, intrinsics, joints, pose, betas, translation, lamp)


def _check_fit(side: str, *numbers: Tensor | np.ndarray) -> None:
    """Raise a ValueError if what was read of a fit is of another form, or not finite."""
    if side not in get_args(Side):
        raise ValueError(f"side {side!r}")
    shapes = [(1, 16, 3, 3), (1, 3), (1, 10), (3, 3), (21, 3), (1, 3), (1, 3), (1, 3)]
    for found, shape in zip(numbers, shapes, strict=True):
        if tuple(found.shape) != shape or not np.isfinite(np.asarray(found, dtype=float)).all():
            raise ValueError(f"{tuple(found.shape)} numbers where {shape} finite ones are wanted")


@torch.no_grad()
def view_of(
    hand: HandModel, found: PhotographedHand, rasterizer: Rasterizer, size: int = CROP
) -> tuple[View, float]:
    """Return the crop around a fitted hand, and how well fit and segmented hand overlap.

    Args:
        hand: the model that was fitted.
        found: the hand in its photo.
        rasterizer: any backend.
        size: width and height of the crop, pixels.
    """
    device = hand.template.device
    photo = read_image(found.path)
    crop = crop_hand(photo, found.joints, found.intrinsics, found.side, size)
    target = HandBatch(*(field.to(device) for field in crop))
    parameters = (found.pose, found.betas, found.translation)
    vertices = hand.decode(*(x.to(device) for x in parameters)).vertices
    mask = _covered(hand, vertices, target.camera, rasterizer)
    points = target.keypoints_2d[0]
    side = float((points.amax(0) - points.amin(0)).amax())
    segments = segment(target, mask, points, side)
    light = Light(*(x.to(device) for x in found.light))
    # A distant hand is enlarged to the same crop as a near one: that adds pixels, but no detail.
    detail = min(1.0, float(torch.linalg.det(crop.crop_to_image[0, :2, :2].double()).abs()))
    view = View(target.image, segments.hand, target.camera, vertices, light, detail)
    return view, segments.overlap


def _covered(
    hand: HandModel, vertices: Tensor, camera: Camera, rasterizer: Rasterizer
) -> Float[Tensor, "1 1 h w"]:
    """Return where a hand is seen."""
    depth = {"z": Attribute(vertices[..., 2:])}
    return rasterizer.render(vertices, hand.faces, depth, camera, lambda maps: maps["z"]).mask
