"""Contact sheets: which samples went worst, which went best, and what that looks like.

Convention:
    A *picture* is a numpy array ``(H, W, 3)``, uint8, RGB. Pixel centres lie at integer + 0.5, so
    half a pixel is taken off before cv2, whose centres are integers, draws anything. Functions
    that draw return a new picture.
"""

from typing import NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from handrec.hand.joints import PARENTS

Picture = UInt8[np.ndarray, "_ _ 3"]

#: Thumb to little finger, distinguishable without colour vision (after Okabe and Ito).
FINGER_COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (213, 94, 0))
WHITE = (255, 255, 255)
MESH_COLOUR = (205, 214, 232)
_BACKGROUND, _INK = 255, (40, 40, 40)
_SHIFT = 4  # cv2 draws at fractions of 2**-4 pixels
_MARGIN, _CAPTION = 6, 20  # pixels of a grid


def to_picture(image: Float[Tensor, "3 h w"]) -> Picture:
    """Return an RGB image in [0, 1] as a picture."""
    levels = (image.detach().float().clamp(0, 1) * 255).round().byte()
    return np.ascontiguousarray(levels.permute(1, 2, 0).cpu().numpy())


def draw_skeleton(
    picture: Picture,
    keypoints: Float[Tensor, "21 2"],
    colours: tuple[tuple[int, int, int], ...] = FINGER_COLOURS,
    confidence: Float[Tensor, " 21"] | None = None,
    thickness: float = 1.0,
) -> Picture:
    """Return the picture with the 20 bones and 21 joints drawn over it.

    Args:
        picture: what to draw on.
        keypoints: joints in pixels of the picture; not finite ones are left out.
        colours: of thumb to little finger.
        confidence: joints with confidence 0 are left out, with their bones.
        thickness: of the lines, relative to the default, which follows the picture's size.
    """
    canvas = picture.copy()
    width = max(1, round(thickness * min(canvas.shape[:2]) / 90))
    points = keypoints.detach().double().cpu()
    # Far outside of the picture fixed-point coordinates would overflow.
    seen = points.isfinite().all(1) & (points.abs() < 1e4).all(1)
    if confidence is not None:
        seen &= confidence.detach().cpu() > 0
    fixed = [tuple(_fixed(point)) if ok else (0, 0) for point, ok in zip(points, seen, strict=True)]
    for joint in range(1, len(PARENTS)):
        parent = PARENTS[joint]
        if seen[joint] and seen[parent]:
            colour = colours[(joint - 1) // 4]
            cv2.line(canvas, fixed[parent], fixed[joint], colour, width, cv2.LINE_AA, _SHIFT)
    for joint in seen.nonzero().flatten().tolist():
        colour = colours[(joint - 1) // 4] if joint else WHITE
        cv2.circle(canvas, fixed[joint], width << _SHIFT, colour, -1, cv2.LINE_AA, _SHIFT)
    return canvas


def draw_mesh(
    picture: Picture,
    vertices: Float[Tensor, "v 3"],
    faces: Int[Tensor, "f 3"],
    intrinsics: Float[Tensor, "3 3"],
    colour: tuple[int, int, int] = MESH_COLOUR,
) -> Picture:
    """Return the picture with a mesh painted over it, far faces first, lit from the camera.

    Painting in order of depth is wrong where faces intersect: good enough to look at, not a
    renderer.

    Args:
        picture: what to draw on.
        vertices: metres, camera frame.
        faces: rows of ``vertices``.
        intrinsics: ``K`` of the picture.
        colour: of the surface.
    """
    height, width = picture.shape[:2]
    corners = vertices.detach().double().cpu()[faces.cpu()]  # (F, 3, 3)
    corners = corners[(corners[..., 2] > 0.01).all(1)]
    corners = corners[corners[..., 2].mean(1).argsort(descending=True)]
    normals = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    shade = 0.35 + 0.65 * torch.nn.functional.normalize(normals, dim=1)[:, 2].abs()
    pixels = corners @ intrinsics.detach().double().cpu().T
    pixels = 2 * pixels[..., :2] / pixels[..., 2:]  # drawn at twice the size, then averaged
    canvas = cv2.resize(picture, (2 * width, 2 * height), interpolation=cv2.INTER_NEAREST)
    inside = (pixels.abs() < 1e4).flatten(1).all(1)
    for polygon, light in zip(_fixed(pixels[inside]), shade[inside].tolist(), strict=True):
        cv2.fillConvexPoly(canvas, polygon, [light * c for c in colour], cv2.LINE_8, _SHIFT)
    painted: Picture = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
    return painted


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


def contact_sheet(chosen: dict[str, list[Example]], faces: Int[Tensor, "f 3"]) -> Picture:
    """Return a sheet with one row per group: predicted skeleton over the label, beside the mesh.

    Args:
        chosen: examples by the name of their group.
        faces: of the predicted meshes.
    """
    pictures, captions = [], []
    for group, examples in chosen.items():
        for example in examples:
            labelled = draw_skeleton(
                example.picture, example.target, (WHITE,) * 5, example.confidence, thickness=0.6
            )
            skeleton = draw_skeleton(labelled, example.keypoints, thickness=0.6)
            mesh = draw_mesh(example.picture, example.vertices, faces, example.intrinsics)
            pictures.append(np.concatenate([skeleton, mesh], axis=1))
            captions.append(f"{group}: {example.error:.1f} mm  (#{example.sample_id})")
    return grid(pictures, max(len(examples) for examples in chosen.values()), captions)


def _error(example: Example) -> float:
    return example.error


def _fixed(points: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    """Return points in pixels (centres at integer + 0.5) as cv2's fixed-point coordinates."""
    fixed: np.ndarray[tuple[int, ...], np.dtype[np.int32]] = (
        ((points - 0.5) * 2**_SHIFT).round().int().numpy()
    )
    return fixed
