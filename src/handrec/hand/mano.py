"""MANO as a :class:`HandModel`, from the user's own files, through smplx's layer.

MANO's files and smplx's code are for non-commercial research: neither is shipped with this suite,
smplx is imported only here, and nothing of MANO enters a checkpoint. See
:func:`handrec.hand.mano_files.find_mano` for where the files are looked for.
"""

import contextlib
import io
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from handrec.errors import UserError
from handrec.geometry.rotations import axis_angle_to_matrix
from handrec.hand.anatomy import anatomical_axes, joint_limits
from handrec.hand.base import HandModel
from handrec.hand.joints import JOINTS, KINEMATIC_THEN_TIPS, order
from handrec.hand.mano_files import ManoArrays, Side, find_mano, read_mano
from handrec.types import Hand

TipConvention = Literal["freihand", "ho3d", "smplx", "manopth", "manopth_left", "handoccnet"]

#: Vertices taken for the fingertips, thumb to little finger. Each code base has its own; the one to
#: use is the one that the joint labels were made with.
TIP_VERTICES: dict[TipConvention, tuple[int, int, int, int, int]] = {
    "freihand": (744, 320, 443, 555, 672),
    "ho3d": (744, 333, 444, 555, 672),
    "smplx": (744, 320, 443, 554, 671),
    "manopth": (745, 317, 444, 556, 673),
    "manopth_left": (745, 317, 445, 556, 673),
    "handoccnet": (728, 353, 442, 576, 694),
}


class Mano(HandModel):
    """MANO, read from the user's ``MANO_RIGHT.pkl`` or ``MANO_LEFT.pkl`` (or an ``.npz`` of it).

    Poses are absolute, as everywhere in the suite: the mean pose is *in* them and is not added
    again. Parameters published as axis-angle go through :meth:`absolute_pose` first.

    MANO has no texture coordinates. ``uv`` is a planar projection of the rest pose along y: faces
    that look down (the palm) fill the left half of the texture, the others (the back) the right
    half, both at one scale, fingers up. Faces seen edge-on get little texture, and the thumb may
    overlap the palm; it serves to show and to regularise a texture, not to publish one.

    Attributes:
        tips: the five fingertip vertices, thumb to little finger.
        mean_axis_angle: ``(45,)`` the mean pose of joints 1 to 15 as MANO stores it.
        pose_components: ``(45, 45)`` rows are the principal components of the axis-angle pose:
            ``coefficients @ pose_components[:n]`` is an offset from ``mean_axis_angle``.
    """

    tips: Tensor
    joint_order: Tensor
    mean_axis_angle: Float[Tensor, "45"]
    pose_components: Float[Tensor, "45 45"]

    def __init__(
        self,
        path: str | None = None,
        side: Side = "right",
        tips: TipConvention = "freihand",
        fix_left_shape: bool = True,
    ) -> None:
        """Read the files and build the layer.

        Args:
            path: a MANO file or the folder of one; None looks in the usual places
                (see :func:`~handrec.hand.mano_files.find_mano`).
            side: which file to use. A left hand is mirrored (x to -x) as it is read, so that the
                model is a right hand in either case, as everything inside the suite is.
            tips: which vertices are the fingertips, see :data:`TIP_VERTICES`.
            fix_left_shape: the released left file has the right hand's ``shapedirs``, so that one
                ``betas`` makes two different hands (https://github.com/vchoutas/smplx/issues/48).
                True negates their x, as InterHand2.6M does; False keeps the file, as the labels of
                DexYCB need. No effect on a right hand.
        """
        super().__init__()
        file = find_mano(side, path)
        arrays = read_mano(file)
        if arrays.side != side:
            raise UserError(f"{file} holds a {arrays.side} hand, and side={side!r} was asked for")
        if side == "left":
            fix = np.array([[-1.0], [1.0], [1.0]]) if fix_left_shape else 1.0
            arrays = mirrored(replace(arrays, shapedirs=arrays.shapedirs * fix))
        self.layer = _smplx_layer(arrays)
        self._register(tips=torch.tensor(TIP_VERTICES[tips]))
        self._register(joint_order=torch.tensor(order(KINEMATIC_THEN_TIPS, JOINTS)))
        self._register_constants(arrays)

    def decode(  # noqa: D102 -- the contract's docstring holds
        self,
        pose: Float[Tensor, "b 16 3 3"],
        betas: Float[Tensor, "b 10"],
        translation: Float[Tensor, "b 3"],
    ) -> Hand:
        with torch.autocast(pose.device.type, enabled=False):
            pose = pose.float()
            # The layer, unlike smplx.MANO, adds no mean pose to rotation matrices.
            posed = self.layer(
                betas=betas.float(),
                global_orient=pose[:, :1],
                hand_pose=pose[:, 1:],
                transl=translation.float(),
            )
            joints = torch.cat([posed.joints, posed.vertices[:, self.tips]], dim=1)
        return Hand(posed.vertices, joints[:, self.joint_order])

    def absolute_pose(
        self, axis_angle: Float[Tensor, "b 48"], flat_hand_mean: bool = False
    ) -> Float[Tensor, "b 16 3 3"]:
        """Return the rotations of a published axis-angle pose, with the mean pose in them.

        The mean is added to the axis-angle vectors, as MANO defines it: not to the rotations.

        Args:
            axis_angle: wrist, then joints 1 to 15; radians. PCA coefficients go through
                ``pose_components`` first. Of a left hand, mirrored: (x, -y, -z) of each vector.
            flat_hand_mean: False if the 45 numbers are offsets from the mean (FreiHAND, DexYCB,
                InterHand2.6M), True if they are absolute (HO-3D, H2O-3D).
        """
        with torch.autocast(axis_angle.device.type, enabled=False):
            vectors = axis_angle.float()
            if not flat_hand_mean:
                vectors = vectors + nn.functional.pad(self.mean_axis_angle, (3, 0))
            return axis_angle_to_matrix(vectors.reshape(-1, 16, 3))

    def _register(self, **buffers: Tensor) -> None:
        """Register buffers that stay out of checkpoints: MANO may not be passed on."""
        for name, value in buffers.items():
            self.register_buffer(name, value, persistent=False)

    def _register_constants(self, arrays: ManoArrays) -> None:
        uv, uv_faces = planar_uv(arrays.v_template, arrays.faces)
        self._register(
            faces=torch.tensor(arrays.faces.copy()),
            template=_float(arrays.v_template),
            mean_axis_angle=_float(arrays.hands_mean),
            pose_components=_float(arrays.hands_components),
            uv=_float(uv),
            uv_faces=torch.tensor(uv_faces),
            joint_limits=joint_limits(),
        )
        flat, zero = torch.eye(3).expand(1, 16, 3, 3), torch.zeros(1, 10)
        with torch.no_grad():
            rest = self.decode(flat, zero, zero[:, :3])
            self._register(
                mean_pose=self.absolute_pose(torch.zeros(1, 48))[0],
                joint_axes=anatomical_axes(rest.joints[0]),
            )


def mirrored(arrays: ManoArrays) -> ManoArrays:
    """Return the hand of the other side: reflected at the plane x = 0.

    A reflection ``S = diag(-1, 1, 1)`` turns a rotation ``R`` into ``S R S`` and its axis-angle
    vector ``(x, y, z)`` into ``(x, -y, -z)``; faces change their winding to keep looking outwards.
    """
    points = np.array([-1.0, 1.0, 1.0])
    matrices = np.outer(points, points).reshape(9)
    vectors = np.tile([1.0, -1.0, -1.0], 15)
    posedirs = arrays.posedirs.reshape(-1, 3, 15, 9) * points[:, None, None] * matrices
    return replace(
        arrays,
        v_template=arrays.v_template * points,
        shapedirs=arrays.shapedirs * points[:, None],
        posedirs=posedirs.reshape(arrays.posedirs.shape),
        faces=arrays.faces[:, ::-1],
        hands_components=arrays.hands_components * vectors,
        hands_mean=arrays.hands_mean * vectors,
        side="left" if arrays.side == "right" else "right",
    )


def planar_uv(
    vertices: NDArray[np.float64], faces: NDArray[np.int64], margin: float = 0.02
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return ``uv (2V, 2)`` and ``uv_faces (F, 3)``: palm in the left half, back in the right.

    Args:
        vertices: rest vertices of a right hand, ``(V, 3)``.
        faces: ``(F, 3)``, counter-clockwise seen from outside.
        margin: kept free around each half, in texture widths.
    """
    plane = vertices[:, [2, 0]] * [1, -1]  # across the palm, and along the fingers
    low, high = plane.min(axis=0), plane.max(axis=0)
    scale = np.min(np.array([0.5 - 2 * margin, 1 - 2 * margin]) / (high - low))
    centred = (plane - (low + high) / 2) * scale
    palm, back = centred + np.array([0.25, 0.5]), centred * [-1, 1] + np.array([0.75, 0.5])
    a, b, c = (vertices[faces[:, corner]] for corner in range(3))
    is_back = np.cross(b - a, c - a)[:, 1] >= 0
    return np.concatenate([palm, back]), faces + len(vertices) * is_back[:, None]


def _float(array: NDArray[np.float64]) -> Tensor:
    return torch.tensor(array, dtype=torch.float32)


def _smplx_layer(arrays: ManoArrays) -> nn.Module:
    """Return smplx's layer of a right hand, its buffers kept out of checkpoints."""
    from smplx.body_models import MANOLayer
    from smplx.utils import Struct

    content = Struct(
        v_template=arrays.v_template,
        shapedirs=arrays.shapedirs,
        posedirs=arrays.posedirs,
        J_regressor=arrays.J_regressor,
        weights=arrays.weights,
        kintree_table=np.stack([arrays.parents, np.arange(16)]),
        f=arrays.faces,
        hands_components=arrays.hands_components,
        hands_mean=arrays.hands_mean,
    )
    options = {"use_pca": False, "create_body_pose": False}  # the body's is a stray parameter
    with contextlib.redirect_stdout(io.StringIO()):  # it prints that MANO has ten betas
        layer: nn.Module = MANOLayer(model_path="", data_struct=content, is_rhand=True, **options)
    for module in layer.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            module.register_buffer(name, buffer, persistent=False)
    return layer
