"""OpenHand: the embedded hand model, free of any licence question."""

from importlib import resources

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from handrec.hand.anatomy import anatomical_axes, joint_limits
from handrec.hand.base import HandModel
from handrec.hand.joints import JOINTS, KINEMATIC_JOINTS, KINEMATIC_PARENTS, TIPS, order
from handrec.hand.skinning import skin
from handrec.types import Hand

_KINEMATIC = order(JOINTS, KINEMATIC_JOINTS)
_TIPS = order(JOINTS, TIPS)
_JOINTS = order(KINEMATIC_JOINTS + TIPS, JOINTS)


class OpenHand(HandModel):
    """A rigged right hand with ten linear shape directions and linear blend skinning.

    The mesh and its skinning come from an MIT-licensed WebXR hand; the shape directions (overall
    size, palm breadth, palm length, finger length, thumb length, finger thickness, palm thickness,
    index-to-ring ratio, little finger length, phalanx proportion) are ours, sized by published
    anthropometry. ``assets/openhand/PROVENANCE.md`` has the numbers. There are no pose-dependent
    corrections.

    Attributes:
        weights: ``(V, 16)`` skinning weights.
        regressor: ``(21, V)`` finds the joints from rest vertices, in the order of ``JOINTS``.
        shape_directions: ``(V, 3, 10)`` displacement per standard deviation, metres.
    """

    weights: Float[Tensor, "v 16"]
    regressor: Float[Tensor, "21 v"]
    shape_directions: Float[Tensor, "v 3 10"]

    def __init__(self) -> None:
        super().__init__()
        with (resources.files("handrec") / "assets" / "openhand.npz").open("rb") as file:
            arrays = {name: torch.from_numpy(array) for name, array in np.load(file).items()}
        for name in ("faces", "uv_faces"):
            arrays[name] = arrays[name].long()
        arrays["joint_axes"] = anatomical_axes(arrays["regressor"] @ arrays["template"])
        arrays["joint_limits"] = joint_limits()
        for name, array in arrays.items():
            self.register_buffer(name, array, persistent=False)

    def decode(
        self,
        pose: Float[Tensor, "b 16 3 3"],
        betas: Float[Tensor, "b 10"],
        translation: Float[Tensor, "b 3"],
    ) -> Hand:
        """Return the posed hand; see :meth:`HandModel.decode`. Tips lie on the posed skin."""
        with torch.autocast(pose.device.type, enabled=False):
            shaped = self.template + torch.einsum(
                "vcs,bs->bvc", self.shape_directions, betas.float()
            )
            rest = self.regressor[_KINEMATIC] @ shaped
            vertices, joints = skin(shaped, rest, pose, self.weights, KINEMATIC_PARENTS)
            tips = self.regressor[_TIPS] @ vertices
            joints = torch.cat([joints, tips], dim=1)[:, _JOINTS]
            shift = translation.float()[:, None]
            return Hand(vertices + shift, joints + shift)
