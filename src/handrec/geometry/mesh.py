"""Triangle meshes: normals, edges, sampling. Pure functions."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


def face_normals(
    vertices: Float[Tensor, "*b v 3"], faces: Int[Tensor, "f 3"]
) -> Float[Tensor, "*b f 3"]:
    """Return the normals of the faces, twice the area long, outwards for CCW faces."""
    corners = vertices[..., faces, :]
    first, second = corners[..., 1, :] - corners[..., 0, :], corners[..., 2, :] - corners[..., 0, :]
    normals: Tensor = torch.linalg.cross(first, second, dim=-1)
    return normals


def vertex_normals(
    vertices: Float[Tensor, "*b v 3"], faces: Int[Tensor, "f 3"]
) -> Float[Tensor, "*b v 3"]:
    """Return unit normals of the vertices, faces weighted by area.

    Convention:
        A vertex without area around it gets the zero vector and a zero gradient, never a NaN.
    """
    normals = face_normals(vertices, faces)
    index = faces.T.reshape(-1)
    summed = torch.zeros_like(vertices).index_add(-2, index, torch.cat([normals] * 3, dim=-2))
    # Areas are around 1e-6 m^2: far below the default eps of normalize.
    return F.normalize(summed, dim=-1, eps=1e-20)


def edges(faces: Int[Tensor, "f 3"]) -> Int[Tensor, "e 2"]:
    """Return every undirected edge once, lower vertex first, in lexical order."""
    directed = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    unique: Tensor = torch.unique(directed.sort(dim=1).values, dim=0)
    return unique


def farthest_point_sampling(points: Float[Tensor, "n d"], count: int) -> Int[Tensor, " count"]:
    """Return indices of points that cover the set evenly, the most telling first.

    Deterministic: starts at the point farthest from the centroid; ties go to the lower index.
    """
    if not 0 < count <= len(points):
        raise ValueError(f"cannot sample {count} of {len(points)} points")
    chosen = [int((points - points.mean(0)).square().sum(-1).argmax())]
    distance = (points - points[chosen[0]]).square().sum(-1)
    while len(chosen) < count:
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, (points - points[chosen[-1]]).square().sum(-1))
    return torch.tensor(chosen, device=points.device)
