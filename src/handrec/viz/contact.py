"""Contact sheets: which samples went worst, which went best, and what that looks like."""

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from handrec.render.base import Rasterizer
from handrec.viz.drawing import WHITE, Picture, draw_mesh, draw_skeleton

_BACKGROUND, _INK = 255, (40, 40, 40)
_MARGIN, _CAPTION = 6, 20  # pixels of a grid


def grid(pictures: list[Picture], columns: int, captions: list[str] | None = None) -> Picture:
    """Return pictures in rows on white, each in a cell of the largest size, above its caption.

    Args:
        pictures: row by row.
        columns: pictures in a row.
        captions: one for each picture; plain ASCII.
    """
    captions = captions or [""] * len(pictures)
    cell_height = max(picture.shape[0] for picture in pictures) + _MARGIN
    cell_height += _CAPTION if any(captions) else 0
    cell_width = max(picture.shape[1] for picture in pictures) + _MARGIN
    rows = -(-len(pictures) // columns)
    size = (rows * cell_height + _MARGIN, min(columns, len(pictures)) * cell_width + _MARGIN, 3)
    sheet = np.full(size, _BACKGROUND, np.uint8)
    for index, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        top = _MARGIN + index // columns * cell_height
        left = _MARGIN + index % columns * cell_width
        bottom = top + picture.shape[0]
        sheet[top:bottom, left : left + picture.shape[1]] = picture
        where, font = (left, bottom + _CAPTION - 6), cv2.FONT_HERSHEY_SIMPLEX
        cv2.putText(sheet, caption, where, font, 0.42, _INK, 1, cv2.LINE_AA)
    return sheet


class Example(NamedTuple):
    """A sample to look at, small enough to keep.

    Attributes:
        sample_id: index within its data set.
        error: millimetres.
        picture: the crop.
        intrinsics: ``K`` of the picture.
        keypoints: predicted, pixels of the picture.
        target: labelled keypoints, pixels of the picture.
        confidence: of the labelled keypoints.
        vertices: predicted, metres, camera frame.
    """

    sample_id: int
    error: float
    picture: Picture
    intrinsics: Float[Tensor, "3 3"]
    keypoints: Float[Tensor, "21 2"]
    target: Float[Tensor, "21 2"]
    confidence: Float[Tensor, " 21"]
    vertices: Float[Tensor, "v 3"]


class Gallery:
    """Examples of a whole data set in bounded memory: the extremes, and a fair choice between.

    When it is full, every second example between the extremes goes, in the order of errors.

    Args:
        extremes: how many of the worst and of the best are always kept.
        capacity: how many examples to keep at most.
    """

    def __init__(self, extremes: int = 4, capacity: int = 512) -> None:
        self.extremes = extremes
        self.capacity = max(capacity, 4 * extremes)
        self.examples: list[Example] = []

    def add(self, example: Example) -> None:
        """Keep an example, and drop others if there are too many."""
        self.examples.append(example)
        if len(self.examples) > self.capacity:
            self.examples.sort(key=_error)
            first, last = self.extremes, len(self.examples) - self.extremes
            self.examples[first:last] = self.examples[first:last:2]

    def select(self, median: float) -> dict[str, list[Example]]:
        """Return the worst (worst first), those nearest the median, and the best (best first).

        Args:
            median: of the errors of all samples, millimetres.
        """
        ranked = sorted(self.examples, key=_error)
        count = min(self.extremes, len(ranked))
        middle = sorted(ranked, key=lambda example: abs(example.error - median))[:count]
        return {
            "worst": ranked[::-1][:count],
            "median": sorted(middle, key=_error),
            "best": ranked[:count],
        }


def contact_sheet(
    chosen: dict[str, list[Example]],
    faces: Int[Tensor, "f 3"],
    rasterizer: Rasterizer | None = None,
) -> Picture:
    """Return a sheet with one row per group: predicted skeleton over the label, beside the mesh.

    Args:
        chosen: examples by the name of their group.
        faces: of the predicted meshes.
        rasterizer: draws the meshes; None takes ``warp``.
    """
    pictures, captions = [], []
    for group, examples in chosen.items():
        for example in examples:
            labelled = draw_skeleton(
                example.picture,
                example.target,
                colours=(WHITE,) * 5,
                confidence=example.confidence,
            )
            skeleton = draw_skeleton(labelled, example.keypoints)
            mesh = draw_mesh(
                example.picture,
                example.vertices,
                faces,
                example.intrinsics,
                rasterizer=rasterizer,
            )
            pictures.append(np.concatenate([skeleton, mesh], axis=1))
            captions.append(f"{group}: {example.error:.1f} mm  (#{example.sample_id})")
    return grid(pictures, max(len(examples) for examples in chosen.values()), captions)


def _error(example: Example) -> float:
    return example.error
