"""Refines a hand on the pixels of its photo: rendering, silhouette, keypoints and prior at once."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from handrec.fitting.appearance import Appearance
from handrec.fitting.keypoints import box_side, keypoint_energy
from handrec.fitting.parameters import HandParameters, HandPrior
from handrec.fitting.segment import Segments, segment
from handrec.geometry.camera import project
from handrec.hand.base import HandModel
from handrec.render.base import Rasterizer
from handrec.render.shading import Light, Texture, render_lit
from handrec.types import Camera, HandBatch, Rendering


@dataclass(frozen=True)
class PhotometricWeights:
    """Weights of the energies; the keypoints' and the prior's have weight 1.

    Attributes:
        photo: of the mean difference between rendering and photo, over the hand's area.
        silhouette: of the wrongly covered share of the hand's area.
        appearance: of the prior of texture and light.
        sigma: difference of a channel from which on it counts less: shadows, rings, nails.
        keypoint_sigma: of a keypoint, see :func:`~handrec.fitting.keypoints.keypoint_energy`.
    """

    photo: float = 60.0
    silhouette: float = 400.0
    appearance: float = 20.0
    sigma: float = 0.1
    keypoint_sigma: float = 0.012


#: Called with the number of steps done and the hand.
Watch = Callable[[int, HandParameters], None]


class PhotometricFit:
    """Gradient descent on a photo through the rasterizer.

    Rendering and photo are compared where the photo shows the hand, the rendering standing before
    a guess of what is behind: leaving hand uncovered costs what the two differ by. Elsewhere only
    the silhouette counts, or the texture would learn the background that a misplaced hand covers.

    Args:
        hand: any hand model with UV coordinates.
        prior: of that model.
        rasterizer: any backend.
        weights: of the energies.
    """

    def __init__(
        self,
        hand: HandModel,
        prior: HandPrior,
        rasterizer: Rasterizer,
        weights: PhotometricWeights = PhotometricWeights(),
    ) -> None:
        self.hand, self.prior, self.rasterizer, self.weights = hand, prior, rasterizer, weights

    def render(
        self,
        parameters: HandParameters,
        texture: Float[Tensor, "1 3 t t"],
        light: Light,
        camera: Camera,
        background: Float[Tensor, "1 3 h w"] | None = None,
    ) -> Rendering:
        """Return a picture of the hand."""
        vertices = parameters.decode(self.hand, camera).vertices
        return render_lit(
            self.rasterizer,
            vertices,
            self.hand.faces,
            light,
            camera,
            texture=Texture(texture, self.hand.uv, self.hand.uv_faces),
            background=background,
        )

    @torch.no_grad()
    def segment(self, parameters: HandParameters, target: HandBatch) -> Segments:
        """Return the photo's segments, looked for around the hand."""
        posed = parameters.decode(self.hand, target.camera)
        joints = project(posed.joints, target.intrinsics)[0]
        side = float(box_side(target.keypoints_2d, target.confidence))
        return segment(target, self._mask(parameters, target.camera), joints, side)

    @torch.no_grad()
    def plain_appearance(self, parameters: HandParameters, target: HandBatch) -> Appearance:
        """Return the median colour of the photo where the hand is, under a common light."""
        chosen = self._mask(parameters, target.camera)[0, 0] > 0
        pixels = target.image[0].permute(1, 2, 0)[chosen]
        skin = pixels.median(0).values if len(pixels) else target.image.new_full((3,), 0.6)
        return Appearance(skin)

    def _mask(self, parameters: HandParameters, camera: Camera) -> Float[Tensor, "1 1 h w"]:
        """Return where the hand is seen."""
        vertices = parameters.decode(self.hand, camera).vertices
        dark = Light(*vertices.new_zeros(3, 1, 3))
        return render_lit(self.rasterizer, vertices, self.hand.faces, dark, camera).mask

    def descend(
        self,
        parameters: HandParameters,
        appearance: Appearance,
        segments: Segments,
        target: HandBatch,
        steps: int,
        watch: Watch | None = None,
    ) -> HandParameters:
        """Return the hand after so many steps of Adam; the appearance changes in place.

        Args:
            parameters: where to start.
            appearance: the same, see :meth:`plain_appearance`.
            segments: of the photo.
            target: a batch of one.
            steps: about 20 ms each at 224 pixels on one core.
            watch: called before every step.
        """
        free = parameters.free()
        groups = [
            {"params": list(free), "lr": 0.02},
            {"params": list(appearance.parameters()), "lr": 0.02},
        ]
        optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, 5e-4)
        for step in range(steps):
            if watch is not None:
                watch(step, free)
            optimizer.zero_grad()
            self.energy(free, appearance, segments, target).backward()
            optimizer.step()
            schedule.step()
        return free.take(torch.arange(1))

    def energy(
        self,
        parameters: HandParameters,
        appearance: Appearance,
        segments: Segments,
        target: HandBatch,
    ) -> Float[Tensor, ""]:
        """Return the sum of all energies."""
        light = appearance.light()
        drawn = self.render(parameters, appearance.texture(), light, target.camera, segments.behind)
        known = segments.hand * segments.weight
        area = known.sum().clamp(min=1)
        sigma = self.weights.sigma
        squared = ((drawn.image - target.image) / sigma).square().sum(1, keepdim=True)
        difference = ((1 + squared).sqrt() - 1) * known
        outline = (drawn.mask - segments.hand).square() * segments.weight
        joints = parameters.decode(self.hand, target.camera).joints
        near = keypoint_energy(joints, target, self.weights.keypoint_sigma)
        return (
            self.weights.photo * difference.sum() / area
            + self.weights.silhouette * outline.sum() / area
            + self.weights.appearance * appearance.energy()
            + (near + self.prior.energy(parameters, joints)).sum()
        )
