"""Pictures of CycleHand's flow, a row per hand."""

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from handrec.methods.cycle_flow import Cycle, pick_batch
from handrec.render.base import Rasterizer
from handrec.types import HandBatch, HandPrediction, Rendering
from handrec.viz.contact import grid
from handrec.viz.drawing import Picture, draw_mesh, draw_skeleton, to_picture

COLUMNS = ("input", "(a)", "(a) drawn", "(b)", "(c)", "(d)")

#: Smaller pictures are shown enlarged by a whole number, about this many pixels high.
_SIDE = 160


def cycle_strip(
    batch: HandBatch,
    cycle: Cycle,
    drawn: Rendering,
    faces: Int[Tensor, "f 3"],
    rasterizer: Rasterizer | None = None,
) -> Picture:
    """Return input, (a) over it and in its own looks, (b), (c) over it, (d) over the input.

    Captions say by how much each hand was turned, whether it has fingers of others and whether its
    drawing counts, and how far (a) is trusted.

    Args:
        batch: that the rows of the cycle are of.
        cycle: its states.
        drawn: (a) in its own looks, of any size, a row per hand.
        faces: of the meshes.
        rasterizer: draws the meshes; None takes ``warp``.
    """
    source, view = pick_batch(batch, cycle.rows), cycle.turned.batch
    seen = cycle.seen.estimates.iterations[-1]
    white = drawn.image + 1 - drawn.mask
    trace = cycle.turned.rotation.diagonal(dim1=1, dim2=2).sum(1)
    angles = torch.rad2deg(torch.acos(((trace - 1) / 2).clamp(-1, 1)))
    pictures, captions = [], []
    for row in range(len(cycle.rows)):
        image, picture = enlarged(source.image[row]), enlarged(view.image[row])
        zooms = image.shape[0] / source.image.shape[-1], picture.shape[0] / view.image.shape[-1]
        matrices = (
            zoomed(source.intrinsics[row], zooms[0]),
            zoomed(view.intrinsics[row], zooms[1]),
        )
        hands = (cycle.first, matrices[0]), (seen, matrices[1]), (cycle.returned, matrices[0])
        first, third, fourth = (
            _over(where, hand, row, matrix, faces, rasterizer)
            for where, (hand, matrix) in zip((image, picture, image), hands, strict=True)
        )
        looks = cv2.resize(to_picture(white[row]), image.shape[1::-1])
        third = draw_skeleton(third, seen.keypoints_2d[row] * zooms[1])
        pictures += [image, first, looks, picture, third, fourth]
        counts = ", mixed" if cycle.exchanged[row] else ""
        counts += "" if cycle.turned.weight[row] else ", out"
        said = list(COLUMNS)
        said[1] += f" {float(cycle.trust[row]):.2f}"
        said[3] += f" {float(angles[row]):.0f} deg{counts}"
        captions += said
    return grid(pictures, len(COLUMNS), captions)


def _over(
    picture: Picture,
    hands: HandPrediction,
    row: int,
    intrinsics: Float[Tensor, "3 3"],
    faces: Int[Tensor, "f 3"],
    rasterizer: Rasterizer | None,
) -> Picture:
    vertices = hands.vertices[row]
    return draw_mesh(picture, vertices, faces, intrinsics, rasterizer=rasterizer)


def enlarged(image: Float[Tensor, "3 h w"]) -> Picture:
    """Return an image as a picture, each pixel a square of them if it is small."""
    picture = to_picture(image)
    times = max(1, round(_SIDE / picture.shape[0]))
    return np.ascontiguousarray(picture.repeat(times, axis=0).repeat(times, axis=1))


def zoomed(intrinsics: Float[Tensor, "3 3"], zoom: float) -> Float[Tensor, "3 3"]:
    """Return the intrinsics of an enlarged picture."""
    return intrinsics * intrinsics.new_tensor([[zoom], [zoom], [1.0]])


__all__ = ["COLUMNS", "cycle_strip", "enlarged", "zoomed"]
