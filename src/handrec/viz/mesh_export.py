"""Mesh files of hands."""

from pathlib import Path
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

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
