"""Mesh files of hands."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from handrec.geometry.mesh import vertex_normals
from handrec.render.shading import Texture

#: Skin-like base colour of exported meshes, linear RGBA.
COLOUR = (190, 105, 65, 255)


def export_mesh(path: Path, vertices: Float[Tensor, "v 3"], faces: Int[Tensor, "f 3"]) -> None:
    """Write a mesh in metres, its vertices in order; the suffix of the path names the format.

    Convention:
        ``.obj`` and ``.ply`` keep the camera frame of OpenCV (x right, y down, z forward), so that
        they agree with ``K`` and the predicted joints. glTF (``.glb``) prescribes y up and a
        camera that looks along -z: its vertices are ``diag(1, -1, -1)`` times ours, a rotation, so
        that faces and handedness stay, and viewers show the hand upright as the photo does.

    Args:
        path: ends with ``.obj``, ``.ply`` or ``.glb``.
        vertices: metres, OpenCV camera frame.
        faces: counter-clockwise seen from outside.
    """
    import trimesh

    # process=False: no vertex is merged or moved, so that indices stay those of the hand model.
    mesh = trimesh.Trimesh(
        vertices.detach().cpu().double().numpy(), faces.cpu().numpy(), process=False
    )
    options: dict[str, Any] = {}
    if path.suffix == ".obj":
        options = {"header": "metres, OpenCV camera frame: x right, y down, z forward"}
    if path.suffix == ".glb":
        options = {"include_normals": True}
        mesh.vertices *= (1.0, -1.0, -1.0)
        visual: Any = trimesh.visual  # untyped
        skin = visual.material.PBRMaterial(
            baseColorFactor=COLOUR, metallicFactor=0.0, roughnessFactor=0.8
        )
        mesh.visual = visual.TextureVisuals(material=skin)
    mesh.export(path, **options)


def export_textured_mesh(
    path: Path,
    vertices: Float[Tensor, "v 3"],
    faces: Int[Tensor, "f 3"],
    texture: Texture,
) -> None:
    """Write a mesh with its texture as glTF, in the frame of :func:`export_mesh`'s ``.glb``.

    glTF has one index for position and UV: vertices on a seam are written once for each side, with
    the normal of the unbroken surface.

    Args:
        path: ends with ``.glb``.
        vertices: metres, OpenCV camera frame.
        faces: counter-clockwise seen from outside.
        texture: of the mesh, without light; ``uv_faces`` go with ``faces`` corner by corner.
    """
    import trimesh
    from PIL import Image

    pairs = torch.stack([faces.cpu(), texture.uv_faces.cpu()], dim=-1).reshape(-1, 2)
    corners, index = torch.unique(pairs, dim=0, return_inverse=True)
    levels = (texture.image[0].detach().cpu().clamp(0, 1) * 255).round().byte()
    visual: Any = trimesh.visual  # untyped
    skin = visual.material.PBRMaterial(
        baseColorTexture=Image.fromarray(levels.permute(1, 2, 0).numpy()),
        metallicFactor=0.0,
        roughnessFactor=0.8,
    )
    points = vertices.detach().cpu().double()
    normals = F.normalize(vertex_normals(points[None], faces.cpu())[0], dim=-1)
    # OpenCV to glTF: a half turn about x, of positions and of normals.
    upright, outward = (x[corners[:, 0]].numpy() * (1.0, -1.0, -1.0) for x in (points, normals))
    mesh = trimesh.Trimesh(
        upright, index.reshape(-1, 3).numpy(), vertex_normals=outward, process=False
    )
    uv = texture.uv.detach().cpu().numpy()[corners[:, 1]]
    mesh.visual = visual.TextureVisuals(uv=uv, material=skin)
    mesh.export(path, include_normals=True)
