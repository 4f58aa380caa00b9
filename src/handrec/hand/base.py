"""The contract of a hand model."""

from abc import ABC, abstractmethod

from jaxtyping import Float, Int
from torch import Tensor, nn

from handrec.types import Hand


class HandModel(nn.Module, ABC):
    """A parametric right hand.

    Convention:
        Rest frame as MANO's right hand: fingers along -x, thumb towards +z, palm facing -y; so a
        rotation by a positive angle about +z bends a finger. Rotations are absolute (a mean pose,
        if the model has one, is already in them) and relative to the parent joint; rotation 0
        turns the whole hand about the wrist joint. The translation is added last:
        ``vertices = skin(rotations, betas) + translation``. Nothing assumes a vertex count.

    Attributes (buffers):
        faces: ``(F, 3)``, counter-clockwise seen from outside (normals point outwards).
        uv: ``(U, 2)`` texture coordinates in [0, 1], v up.
        uv_faces: ``(F, 3)`` indices into ``uv``.
        template: ``(V, 3)`` rest vertices at zero shape, metres.
        mean_pose: ``(16, 3, 3)`` mean of plausible hands; the wrist's is the identity.
        joint_limits: ``(15, 3, 2)`` lower and upper limit of (twist, spread, bend), radians, in
            the frames of ``joint_axes``.
        joint_axes: ``(15, 3, 3)`` rows are the twist, spread and bend axes of kinematic joints
            1 to 15 in the rest frame.
    """

    faces: Int[Tensor, "f 3"]
    uv: Float[Tensor, "u 2"]
    uv_faces: Int[Tensor, "f 3"]
    template: Float[Tensor, "v 3"]
    mean_pose: Float[Tensor, "16 3 3"]
    joint_limits: Float[Tensor, "15 3 2"]
    joint_axes: Float[Tensor, "15 3 3"]

    @abstractmethod
    def decode(
        self,
        pose: Float[Tensor, "b 16 3 3"],
        betas: Float[Tensor, "b 10"],
        translation: Float[Tensor, "b 3"],
    ) -> Hand:
        """Return the hand in the given pose, differentiable in all arguments, in float32.

        Args:
            pose: absolute rotations of the 16 kinematic joints.
            betas: shape coefficients in standard deviations.
            translation: metres, added last.
        """
