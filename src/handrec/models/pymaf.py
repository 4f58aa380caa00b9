"""The PyMAF head: regress, project the mesh, look again where it lies.

H. Zhang et al., PyMAF (ICCV 2021) and PyMAF-X (TPAMI 2023), re-implemented from their formulas.
Deviations, each an argument: the pyramid starts on the ViT's tokens (HandMIM attaches the head
"after the tokens"); the hidden layers may have an activation; the dense map also holds the mask.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from handrec.errors import UserError, fraction, positive
from handrec.geometry.camera import project
from handrec.geometry.mesh import farthest_point_sampling
from handrec.hand.base import HandModel
from handrec.models.base import Backbone, Estimates, Features, MeshHead
from handrec.models.iterative import small_linear
from handrec.models.state import STATE_SIZE, HandState, decode_state, mean_state
from handrec.types import Camera, HandPrediction

#: Samples further out than this see the border: a hand thrown far off must not give NaN.
_FARTHEST_SAMPLE = 1.5


class PyMAF(MeshHead):
    """Pyramidal mesh alignment feedback.

    Iteration 0 samples a feature map on a regular grid, later ones where the last mesh projects,
    on ever finer maps; a small MLP shrinks each sample, and a regressor turns all of them and the
    last state into a residual. The state and the mesh are constants to the next iteration:
    gradients flow through features (and the dense map, if it is fed back), MLP and regressor only.

    Args:
        backbone: whose features it reads.
        hand: the hand model.
        iterations: T; each after the first works on a map of twice the resolution.
        levels: maps of the pyramid, of which the iterations take the finest; None for one each.
        map_channels: of the pyramid's maps.
        grid: points per side of the first iteration's grid.
        points: mesh vertices sampled in later iterations.
        width: of the regressors' hidden layers.
        dropout: of the regressors.
        activation: put a GELU after each hidden layer of the regressors; PyMAF has none.
        dense_feedback: let the regressors also see what the dense map says at each point. From
            rest positions to a pose is a short way, so a small network learns in minutes;
            PyMAF uses its dense map for supervision only.
    """

    def __init__(
        self,
        backbone: Backbone,
        hand: HandModel,
        iterations: int = 3,
        levels: int | None = None,
        map_channels: int = 256,
        grid: int = 21,
        points: int = 195,
        width: int = 1024,
        dropout: float = 0.5,
        activation: bool = False,
        dense_feedback: bool = False,
    ) -> None:
        super().__init__()
        sizes = {"map_channels": map_channels, "grid": grid, "points": points, "width": width}
        positive(self, iterations=iterations, **sizes)
        fraction(self, dropout=dropout)
        if points > len(hand.template):
            raise UserError(f"PyMAF: {points} points of a mesh of {len(hand.template)} vertices")
        self.hand = hand
        levels = levels or iterations
        if levels < iterations:
            raise UserError(f"PyMAF: {iterations} iterations want as many levels, not {levels}")
        self.pyramid = FeaturePyramid(backbone, map_channels, levels)
        self.samplers = nn.ModuleList(PointMLP(map_channels) for _ in range(iterations))
        self.dense_feedback = dense_feedback
        per_point = 5 + 4 * dense_feedback
        sample_sizes = [per_point * grid**2] + [per_point * points] * (iterations - 1)
        self.regressors = nn.ModuleList(
            Regressor(size, width, dropout, activation) for size in sample_sizes
        )
        self.dense = nn.Conv2d(map_channels, 4, kernel_size=3, padding=1)
        self.register_buffer("grid", regular_grid(grid), persistent=False)
        sampled = farthest_point_sampling(hand.template, points)
        self.register_buffer("sampled_vertices", sampled, persistent=False)
        self.grid: Float[Tensor, "n 2"]
        self.sampled_vertices: Int[Tensor, " p"]

    def networks(self) -> Iterable[nn.Module]:
        """Return what works on maps and on samples; where to sample is geometry."""
        return self.pyramid, *self.samplers, *(regressor.hidden for regressor in self.regressors)

    def regress(self, features: Features, camera: Camera) -> Estimates:
        """Return the hand after each iteration and the dense map; see the base class."""
        maps = self.pyramid(features)
        dense = self.dense(maps[-1])
        state = mean_state(self.hand, features.grid.shape[0])
        points = self.grid.expand(features.grid.shape[0], -1, -1)
        estimates: list[HandPrediction] = []
        for feature_map, sampler, regressor in zip(
            maps[-len(self.samplers) :], self.samplers, self.regressors, strict=True
        ):
            samples = sampler(sample_points(feature_map, points))
            if self.dense_feedback:
                samples = torch.cat([samples, sample_surface(dense, points)], dim=1)
            state = regressor(samples, state.detach())
            estimates.append(decode_state(state, self.hand, camera))
            points = self._project_mesh(estimates[-1], camera)
        return Estimates(estimates, dense)

    @torch.no_grad()
    def _project_mesh(self, estimate: HandPrediction, camera: Camera) -> Float[Tensor, "b p 2"]:
        """Return where the sampled vertices lie in the crop, [-1, 1] from edge to edge."""
        height, width = camera.image_size
        pixels = project(estimate.vertices[:, self.sampled_vertices], camera.intrinsics)
        return 2 * pixels / pixels.new_tensor([width, height]) - 1


class FeaturePyramid(nn.Module):
    """Maps of growing resolution: a 1x1 convolution on the tokens, then deconvolutions.

    With a ViT/16 at 224 px the maps are PyMAF's 14, 28 and 56. Where the backbone has finer maps of
    its own they are added.
    """

    def __init__(self, backbone: Backbone, map_channels: int, levels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(backbone.channels, map_channels, kernel_size=1, bias=False)
        self.upsamplers = nn.ModuleList(
            nn.ConvTranspose2d(map_channels, map_channels, 4, 2, 1, bias=False)
            for _ in range(levels - 1)
        )
        self.laterals = nn.ModuleList(
            nn.Conv2d(channels, map_channels, kernel_size=1, bias=False)
            for channels in backbone.fine_channels[: levels - 1]
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(map_channels) for _ in range(levels))

    def forward(self, features: Features) -> list[Tensor]:
        """Return the maps, coarse to fine."""
        maps = [F.relu(self.norms[0](self.first(features.grid)))]
        for level, upsample in enumerate(self.upsamplers):
            finer = upsample(maps[-1])
            if level < len(self.laterals):
                finer = finer + self.laterals[level](features.fine[level])
            maps.append(F.relu(self.norms[level + 1](finer)))
        return maps


class PointMLP(nn.Module):
    """Shrinks each sampled feature to five numbers; layers 2 and 3 see the feature again.

    Widths C, C/2, C/4, 5 as PyMAF's 256, 128, 64, 5 (59,141 parameters).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [
                nn.Linear(channels, channels // 2),
                nn.Linear(channels // 2 + channels, channels // 4),
                nn.Linear(channels // 4 + channels, 5),
            ]
        )

    def forward(self, samples: Float[Tensor, "b n c"]) -> Float[Tensor, "b f"]:
        """Return the shrunk samples, flattened channel by channel."""
        first, second, last = self.layers
        hidden = F.leaky_relu(first(samples))
        hidden = F.leaky_relu(second(torch.cat([hidden, samples], dim=-1)))
        shrunk = F.relu(last(torch.cat([hidden, samples], dim=-1)))
        return rearrange(shrunk, "b n c -> b (c n)")


class Regressor(nn.Module):
    """One residual step of the state (PyMAF, section 3.1 (4) of its code's loop)."""

    def __init__(self, sample_size: int, width: int, dropout: float, activation: bool) -> None:
        super().__init__()
        between = nn.GELU if activation else nn.Identity
        self.hidden = nn.Sequential(
            nn.Linear(sample_size + STATE_SIZE, width), between(), nn.Dropout(dropout),
            nn.Linear(width, width), between(), nn.Dropout(dropout),
        )  # fmt: skip
        self.residual = small_linear(width, STATE_SIZE)

    def forward(self, samples: Float[Tensor, "b f"], state: HandState) -> HandState:
        """Return the refined state."""
        return state.plus(self.residual(self.hidden(torch.cat([samples, state.flat()], dim=1))))


def sample_surface(
    dense: Float[Tensor, "b 4 h w"], points: Float[Tensor, "b n 2"]
) -> Float[Tensor, "b f"]:
    """Return the mask and the masked rest position at each point, flattened by channel."""
    mask = torch.sigmoid(dense[:, 3:].float())
    surface = torch.cat([dense[:, :3].float() * mask, mask], dim=1)
    return rearrange(sample_points(surface, points), "b n c -> b (c n)")


def sample_points(
    feature_map: Float[Tensor, "b c h w"], points: Float[Tensor, "b n 2"]
) -> Float[Tensor, "b n c"]:
    """Return bilinear samples of a map in float32.

    Convention:
        Points are (x, y), and -1 and 1 are the outer edges of the map (``align_corners=False``):
        with the centres of a map's cells at the centres of the pixels they cover, this is where a
        projected point lies. PyMAF's True is up to half a cell off at the border.
    """
    points = points.clamp(-_FARTHEST_SAMPLE, _FARTHEST_SAMPLE)
    sampled = F.grid_sample(
        feature_map.float(), points[:, :, None].float(), padding_mode="border", align_corners=False
    )
    return rearrange(sampled, "b c n 1 -> b n c")


def regular_grid(side: int) -> Float[Tensor, "n 2"]:
    """Return ``side * side`` points (x, y) that span [-1, 1], row by row."""
    line = torch.linspace(-1, 1, side)
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x, y], dim=-1).flatten(0, 1)
