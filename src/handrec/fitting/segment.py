"""Which pixels of a crop are the hand, and what may lie behind it: from a hand roughly in place."""

from typing import NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from handrec.types import HandBatch

#: Of the longer side of the joints' box: how far the outline may be from the rendered one, inwards
#: and outwards.
INWARDS, OUTWARDS = 0.06, 0.10

#: A segmentation whose overlap with the rendered hand (intersection over union) is below this has
#: found something else, and is not used.
LEAST_OVERLAP = 0.6


class Segments(NamedTuple):
    """Where the hand is in a crop.

    Attributes:
        hand: 1 where the photo shows the hand.
        weight: 1 where that is known: 0 on the forearm, which hand models end before.
        behind: a guess of what the photo would show without the hand, RGB in [0, 1].
        overlap: intersection over union of ``hand`` and the rendered mask.
    """

    hand: Float[Tensor, "1 1 h w"]
    weight: Float[Tensor, "1 1 h w"]
    behind: Float[Tensor, "1 3 h w"]
    overlap: float


def segment(
    target: HandBatch, mask: Float[Tensor, "1 1 h w"], joints: Float[Tensor, "21 2"], side: float
) -> Segments:
    """Return the hand's segments, by GrabCut around a rendered mask.

    Args:
        target: a batch of one.
        mask: 1 where the fitted hand is seen.
        joints: of the fitted hand, pixels of the crop.
        side: longer side of the box around the joints, pixels.
    """
    rendered = mask[0, 0].cpu().numpy() > 0.5
    image = (target.image[0].permute(1, 2, 0).cpu().numpy() * 255).round().astype(np.uint8)
    arm = forearm(joints.cpu().numpy(), rendered.shape, side)
    hand = _grab_cut(image, rendered, arm, side)
    union = ((hand | rendered) & ~arm).sum()
    overlap = float(((hand & rendered) & ~arm).sum() / max(union, 1))
    if overlap < LEAST_OVERLAP:
        hand = rendered
    behind = _inpaint(image, _grow(hand | rendered, INWARDS * side) | arm)

    def plane(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values.astype(np.float32))[None, None].to(mask.device)

    plate = torch.from_numpy(behind).to(mask.device).permute(2, 0, 1)[None].float() / 255
    return Segments(plane(hand), plane(~arm), plate, overlap)


def forearm(
    joints: Float[np.ndarray, "21 2"], size: tuple[int, ...], side: float
) -> Bool[np.ndarray, "h w"]:
    """Return the pixels behind the wrist, as seen from the knuckles; none if it is unclear where.

    Args:
        joints: pixels.
        size: ``(height, width)``.
        side: longer side of the box around the joints, pixels.
    """
    away = joints[0] - joints[[5, 9, 13, 17]].mean(0)
    length = np.linalg.norm(away)
    if length < 0.15 * side:
        return np.zeros(size, bool)
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    behind: np.ndarray = (x - joints[0, 0]) * away[0] + (y - joints[0, 1]) * away[1] > 0
    return behind


def _grab_cut(
    image: UInt8[np.ndarray, "h w 3"],
    rendered: Bool[np.ndarray, "h w"],
    arm: Bool[np.ndarray, "h w"],
    side: float,
) -> Bool[np.ndarray, "h w"]:
    """Return the pixels that GrabCut gives to the hand, given what is and what cannot be it."""
    labels = np.full(rendered.shape, cv2.GC_BGD, np.uint8)
    labels[_grow(rendered, OUTWARDS * side)] = cv2.GC_PR_BGD
    labels[arm & _grow(rendered, 0.5 * side)] = cv2.GC_PR_FGD
    labels[rendered] = cv2.GC_PR_FGD
    labels[~_grow(~rendered, INWARDS * side)] = cv2.GC_FGD
    cv2.setRNGSeed(0)  # its mixtures start at random
    empty = np.zeros((1, 65))
    cv2.grabCut(image, labels, None, empty, empty.copy(), 5, cv2.GC_INIT_WITH_MASK)
    hand: np.ndarray = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD))
    hand &= _grow(rendered, OUTWARDS * side)
    return hand


def _inpaint(
    image: UInt8[np.ndarray, "h w 3"], hole: Bool[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Return the image with a hole filled from around it, smoothly."""
    radius = 3
    return np.asarray(cv2.inpaint(image, hole.astype(np.uint8), radius, cv2.INPAINT_TELEA))


def _grow(mask: Bool[np.ndarray, "h w"], pixels: float) -> Bool[np.ndarray, "h w"]:
    """Return the pixels no farther than that from a mask."""
    distance = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 5)
    grown: np.ndarray = distance <= pixels
    return grown
