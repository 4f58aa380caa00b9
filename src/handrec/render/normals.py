"""Normals of meshes, and which side of them is seen."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from handrec.geometry.mesh import face_normals, vertex_normals


def smooth_normals(
    vertices: Float[Tensor, "b v 3"], faces: Int[Tensor, "f 3"]
) -> tuple[Float[Tensor, "b v 3"], Float[Tensor, "b f 1"]]:
    """Return the unit normals of the vertices, and the side of each face that is seen.

    Args:
        vertices: camera frame.
        faces: counter-clockwise seen from outside.
    """
    side = seen_side(vertices, face_normals(vertices.detach(), faces), faces)
    return vertex_normals(vertices, faces), side


def flat_normals(
    vertices: Float[Tensor, "b v 3"], faces: Int[Tensor, "f 3"]
) -> tuple[Float[Tensor, "b f 3"], Float[Tensor, "b f 1"]]:
    """Return the unit normals of the faces, and the side of each that is seen.

    Args:
        vertices: camera frame.
        faces: counter-clockwise seen from outside.
    """
    outward = face_normals(vertices, faces)
    return F.normalize(outward, dim=-1, eps=1e-20), seen_side(vertices, outward, faces)


@torch.no_grad()
def seen_side(
    vertices: Float[Tensor, "b v 3"],
    outward: Float[Tensor, "b f 3"],
    faces: Int[Tensor, "f 3"],
) -> Float[Tensor, "b f 1"]:
    """Return 1 where the outside of a face is seen, -1 where its inside is; no gradient.

    Args:
        vertices: camera frame.
        outward: a normal of each face, of any length.
        faces: counter-clockwise seen from outside.
    """
    away = (outward * vertices[:, faces[:, 0]]).sum(-1, keepdim=True) > 0
    return torch.where(away, -1.0, 1.0)


__all__ = ["flat_normals", "seen_side", "smooth_normals"]
