"""OpenHand: the embedded hand model, free of any licence question."""

from importlib import resources

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from handrec.geometry.rotations import axis_angle_to_matrix, matrix_to_axis_angle
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
        pose_components: ``(45, 45)`` orthonormal rows, the principal directions of the axis-angle
            vectors of joints 1 to 15 relative to ``mean_pose``, most varied first.
    """

    weights: Float[Tensor, "v 16"]
    regressor: Float[Tensor, "21 v"]
    shape_directions: Float[Tensor, "v 3 10"]
    pose_components: Float[Tensor, "45 45"]

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

    def pose_from_components(self, coefficients: Float[Tensor, "b n"]) -> Float[Tensor, "b 16 3 3"]:
        """Return poses from their first ``n`` principal components, the wrist at identity.

        Args:
            coefficients: radians; all zero is the mean pose.
        """
        with torch.autocast(coefficients.device.type, enabled=False):
            offsets = coefficients.float() @ self.pose_components[: coefficients.shape[1]]
            relative = axis_angle_to_matrix(offsets.reshape(-1, 15, 3))
            fingers = self.mean_pose[1:] @ relative
        return torch.cat([self.mean_pose[:1].expand(fingers.shape[0], 1, 3, 3), fingers], dim=1)

    def components_from_pose(
        self, pose: Float[Tensor, "b 16 3 3"], count: int = 45
    ) -> Float[Tensor, "b count"]:
        """Return the first principal components of poses, radians; the wrist is left out."""
        with torch.autocast(pose.device.type, enabled=False):
            relative = matrix_to_axis_angle(self.mean_pose[1:].mT @ pose[:, 1:].float())
            return relative.flatten(1) @ self.pose_components[:count].T
