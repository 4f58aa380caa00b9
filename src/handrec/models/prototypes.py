"""The networks of self-distillation: a backbone, and heads from tokens to prototypes' logits."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from handrec.models.base import Backbone

#: How far from the view's centre a pseudo keypoint can lie (1 is the border).
REACH = 1.5
INITIAL_SPREAD = 0.3

#: Tokens that go through a head at once. All patches of a batch at once are a third slower on a
#: CPU: what is between the layers then is too large for memory that was used before.
_ROWS = 2048


class PrototypeHead(nn.Module):
    """DINO's projector: an MLP to a bottleneck, unit length, and cosines with prototypes.

    The prototypes are the rows of a bias-free linear layer with weight normalisation whose gain is
    frozen at 1 (``norm_last_layer``), so logits lie in [-1, 1]. They are float32 under autocast.

    A class token's bottleneck can be read as ``P`` points of the picture plane, see :meth:`points`.

    Args:
        channels: of the tokens.
        prototypes: K.
        hidden: width of the MLP.
        bottleneck: its output, ``2 P``.
        standardise: the bottleneck over the batch, by a batch norm at the end of the MLP (DINO's
            heads have batch norms as an option).
    """

    def __init__(
        self,
        channels: int,
        prototypes: int = 8192,
        hidden: int = 2048,
        bottleneck: int = 256,
        standardise: bool = False,
    ) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        self.prototypes = nn.Linear(bottleneck, prototypes, bias=False)
        self.gain: Tensor
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        with torch.no_grad():
            spread = self.mlp(torch.randn(256, channels)).std()
        if standardise:
            self.mlp.append(nn.BatchNorm1d(bottleneck))
            spread = torch.ones(())
        self.register_buffer("gain", INITIAL_SPREAD / spread)

    def embed(self, tokens: Float[Tensor, "*n c"]) -> Float[Tensor, "*n d"]:
        """Return the bottleneck of each token, float32."""
        layers, norm = self.mlp[:5], self.mlp[5:]
        if tokens.device.type == "cpu":
            embedded = torch.cat([layers(some) for some in tokens.split(_ROWS)])
        else:
            embedded = layers(tokens)
        standardised: Tensor = norm(embedded)
        return standardised.float()

    def points(self, embedded: Float[Tensor, "b d"]) -> Float[Tensor, "b p 2"]:
        """Return a bottleneck as pseudo keypoints in coordinates of its view, -1 to 1 across it.

        They start with a spread of ``INITIAL_SPREAD`` and are bounded by ``REACH tanh``: otherwise
        growing points would make a shift vanish in the unit length.
        """
        points: Tensor = embedded.unflatten(-1, (-1, 2)) * (self.gain / REACH)
        return REACH * points.tanh()

    def score(self, embedded: Float[Tensor, "*n d"]) -> Float[Tensor, "*n k"]:
        """Return the cosine of each bottleneck with each prototype."""
        with torch.autocast(embedded.device.type, enabled=False):
            unit = F.normalize(embedded.float(), dim=-1)
            return F.linear(unit, F.normalize(self.prototypes.weight.float(), dim=-1))

    def mean_score(self, embedded: Float[Tensor, "n d"]) -> Float[Tensor, " k"]:
        """Return the mean of :meth:`score` over all rows, at the cost of one row.

        The last layer is linear, so the mean of the logits is the logits of the mean.
        """
        with torch.autocast(embedded.device.type, enabled=False):
            unit = F.normalize(embedded.float(), dim=-1).mean(0)
            return F.linear(unit, F.normalize(self.prototypes.weight.float(), dim=-1))


class Branch(nn.Module):
    """A backbone with its heads; the teacher is a moving average of the student.

    Args:
        backbone: a ViT.
        prototypes: of each head.
        hidden: width of the heads.
        shared_head: one head for class and patch tokens.
        standardise: see :class:`PrototypeHead`; of the class tokens' head and the patches'. That of
            a shared head is the latter.
    """

    def __init__(
        self,
        backbone: Backbone,
        prototypes: int,
        hidden: int,
        shared_head: bool,
        standardise: tuple[bool, bool] = (False, False),
    ) -> None:
        super().__init__()
        self.backbone = backbone
        heads = [
            PrototypeHead(backbone.channels, prototypes, hidden, standardise=each)
            for each in standardise[1 if shared_head else 0 :]
        ]
        self.token_head, self.patch_head = heads[0], heads[-1]


def align(
    points: Float[Tensor, "b p 2"],
    matrix: Float[Tensor, "b 3 3"],
    *,
    scale_shift: bool = False,
) -> Float[Tensor, "b p 2"]:
    """Return ``A^-1 p``: pseudo keypoints of views in the coordinates of their images.

    Args:
        points: in coordinates of the views.
        matrix: ``A`` of each view, see ``data.views.View``.
        scale_shift: multiply the shift by the points' own extent per axis of the view, without
            gradient (PeCLR), so that it counts the same however far apart the points are.
    """
    with torch.autocast(points.device.type, enabled=False):
        backwards = torch.linalg.inv_ex(matrix.float()).inverse
        linear, shift = backwards[:, None, :2, :2], matrix.float()[:, None, :2, 2]
        points = points.float()
        if scale_shift:
            extent = points.detach().amax(1, keepdim=True) - points.detach().amin(1, keepdim=True)
            shift = shift * extent / 2
        aligned: Tensor = (linear * (points - shift)[:, :, None]).sum(-1)
        return aligned
