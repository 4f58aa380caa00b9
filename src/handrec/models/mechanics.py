"""What a hand can do, as terms that any method's hands can be held to."""

import torch.nn.functional as F
from torch import Tensor, nn

from handrec.hand.anatomy import SphereProxies, joint_angles, limit_excess
from handrec.hand.base import HandModel
from handrec.hand.sampler import PENETRATION_TOLERANCE
from handrec.losses.cycle import limits_loss, penetration_loss
from handrec.types import HandPrediction


class Mechanics(nn.Module):
    """Terms of hands that bend beyond their joints' limits or run into themselves.

    Labels run ``PENETRATION_TOLERANCE`` deep into themselves: as much costs nothing, or the term
    would pull hands off them.

    Args:
        hand: the hand model.
    """

    def __init__(self, hand: HandModel) -> None:
        super().__init__()
        self.hand, self.spheres = hand, SphereProxies(hand)

    def terms(self, hands: HandPrediction) -> dict[str, Tensor]:
        """Return ``limits`` and ``penetration``, see ``losses.cycle``."""
        angles = joint_angles(hands.pose, self.hand.joint_axes)
        deeper = F.relu(self.spheres.penetration(hands.joints) - PENETRATION_TOLERANCE)
        return {
            "limits": limits_loss(limit_excess(angles, self.hand.joint_limits)),
            "penetration": penetration_loss(deeper),
        }
