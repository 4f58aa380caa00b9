"""Pictures of a fit: a still sheet and an animation."""

from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from handrec.fitting.fit import Fit, Snapshot
from handrec.geometry.camera import resize_camera
from handrec.geometry.rotations import axis_angle_to_matrix
from handrec.hand.base import HandModel
from handrec.render.base import Rasterizer
from handrec.render.shading import Texture, render_lit
from handrec.types import HandBatch
from handrec.viz.contact import grid
from handrec.viz.drawing import WHITE, Picture, draw_mesh, draw_skeleton, to_picture

#: Width and height of each panel, pixels.
PANEL = 384

#: Milliseconds that a picture of the animation is shown, and that the last one stays.
FRAME, HOLD = 80, 1500


class FitPictures:
    """Draws the fit of one hand; a left hand is shown as the photo shows it.

    Args:
        hand: that was fit.
        target: a batch of one: the crop that it was fit to.
        rasterizer: any backend.
        size: width and height of a panel, pixels.
    """

    def __init__(
        self, hand: HandModel, target: HandBatch, rasterizer: Rasterizer, size: int = PANEL
    ) -> None:
        self.hand, self.target, self.rasterizer = hand, target, rasterizer
        self.camera = resize_camera(target.camera, (size, size))
        self.image = F.interpolate(target.image, (size, size), mode="bilinear", antialias=True)
        self.photo = to_picture(self.image[0])
        self.zoom = size / target.image.shape[-1]

    def sheet(self, fit: Fit) -> Picture:
        """Return keypoints, mesh, rendering before the photo, and the hand turned by 90 degrees."""
        joints = self.target.keypoints_2d[0] * self.zoom
        given = draw_skeleton(
            self.photo, joints, colours=(WHITE,) * 5, confidence=self.target.confidence[0]
        )
        found = fit.prediction.keypoints_2d[0] * self.zoom
        intrinsics = self.camera.intrinsics[0]
        mesh = draw_mesh(
            self.photo,
            fit.prediction.vertices[0],
            self.hand.faces,
            intrinsics,
            rasterizer=self.rasterizer,
        )
        captions = ["joints: given white, fit coloured", "mesh", "rendered", "from the side"]
        panels = [
            draw_skeleton(given, found),
            mesh,
            self._rendered(fit.snapshots[-1], self.image),
            self._rendered(fit.snapshots[-1], torch.ones_like(self.image), turn=torch.pi / 2),
        ]
        return grid([self._upright(panel) for panel in panels], 4, captions)

    def frames(self, fit: Fit) -> list[Picture]:
        """Return the photo beside the rendering before it, for each snapshot."""
        photo = self._upright(self.photo)
        return [
            np.concatenate([photo, self._upright(self._rendered(snapshot, self.image))], axis=1)
            for snapshot in fit.snapshots
        ]

    @torch.no_grad()
    def _rendered(self, snapshot: Snapshot, background: Tensor, turn: float = 0.0) -> Picture:
        """Return the textured hand before a background, turned about the vertical through it."""
        vertices = snapshot.parameters.decode(self.hand, self.target.camera).vertices
        middle = (vertices.amax(1, keepdim=True) + vertices.amin(1, keepdim=True)) / 2
        rotation = axis_angle_to_matrix(vertices.new_tensor([[0.0, turn, 0.0]]))
        vertices = (vertices - middle) @ rotation.mT + middle
        if turn:  # what was narrow may be wide now: step back
            vertices = vertices + 0.3 * middle
        drawn = render_lit(
            self.rasterizer,
            vertices,
            self.hand.faces,
            snapshot.light,
            self.camera,
            texture=Texture(snapshot.texture, self.hand.uv, self.hand.uv_faces),
            background=background,
        )
        return to_picture(drawn.image[0])

    def _upright(self, picture: Picture) -> Picture:
        """Return a picture of a left hand mirrored back."""
        mirrored = bool(self.target.is_left[0])
        return np.ascontiguousarray(picture[:, ::-1]) if mirrored else picture


def write_animation(path: Path, frames: list[Picture]) -> None:
    """Write an endless animation that stays on its last picture.

    Args:
        path: ends with ``.webp`` (a tenth of the size) or ``.gif``.
        frames: pictures of one size.
    """
    from PIL import Image

    images = [Image.fromarray(frame) for frame in frames]
    durations = [FRAME] * (len(images) - 1) + [HOLD]
    images[0].save(
        path, save_all=True, append_images=images[1:], duration=durations, loop=0, method=2
    )


def write_png(path: Path, picture: Picture) -> None:
    """Write a picture."""
    encoded = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1]
    path.write_bytes(encoded.tobytes())
