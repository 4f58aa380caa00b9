"""The plain head: one linear regressor applied several times to the pooled features."""

import torch
from torch import nn

from handrec.errors import positive
from handrec.hand.base import HandModel
from handrec.models.base import Backbone, Estimates, Features, MeshHead
from handrec.models.state import STATE_SIZE, decode_state, mean_state
from handrec.types import Camera


class IterativeRegressor(MeshHead):
    """Iterative error feedback on a feature vector (Kanazawa et al., HMR, CVPR 2018, §3.2).

    Args:
        backbone: whose features it reads.
        hand: the hand model.
        iterations: times the same regressor is applied.
        width: of its hidden layer.
    """

    def __init__(
        self, backbone: Backbone, hand: HandModel, iterations: int = 3, width: int = 1024
    ) -> None:
        super().__init__()
        positive(self, iterations=iterations, width=width)
        self.hand = hand
        self.iterations = iterations
        self.hidden = nn.Sequential(nn.Linear(backbone.channels + STATE_SIZE, width), nn.ReLU())
        self.residual = small_linear(width, STATE_SIZE)

    def regress(self, features: Features, camera: Camera) -> Estimates:
        """Return the hands that the pooled features show; see the base class."""
        state = mean_state(self.hand, features.pooled.shape[0])
        estimates = []
        for _ in range(self.iterations):
            known = torch.cat([features.pooled, state.flat()], dim=1)
            state = state.plus(self.residual(self.hidden(known)))
            estimates.append(decode_state(state, self.hand, camera))
        return Estimates(estimates, dense=None)


def small_linear(inputs: int, outputs: int) -> nn.Linear:
    """Return a linear layer that starts near zero: Xavier with gain 0.01, as HMR's and PyMAF's."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight, gain=0.01)
    nn.init.zeros_(layer.bias)
    return layer
