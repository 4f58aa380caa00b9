"""The texture atlas of a hand model seen from the other side: which point is at each texel."""

from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torch.nn import functional as F

from handrec.geometry.mesh import face_normals, vertex_normals
from handrec.hand.base import HandModel
from handrec.render.torch_reference import TorchRasterizer, edge_functions

#: Texels around each island that continue its surface: as far as a bilinear look-up reaches.
_BORDER = 2


class Atlas(NamedTuple):
    """The rest surface, texel by texel; row 0 is v = 1, as in ``render.shading.Texture``.

    Islands go on beyond their border: a face is continued flat for two texels, and whatever lies
    farther off repeats the nearest of these, so no look-up, however coarse, sees a background.

    Attributes:
        position: rest position of each texel, metres.
        normal: unit normal of the smooth surface.
        inside: whether a face covers the centre of the texel.
        texels: flat indices of the texels that are inside or continue a face.
        source: for each flat texel the entry of ``texels`` that it repeats (itself, if it is one).
        pitch: metres on the surface between neighbouring texels, on average.
    """

    position: Float[Tensor, "3 t t"]
    normal: Float[Tensor, "3 t t"]
    inside: Bool[Tensor, "1 t t"]
    texels: Int[Tensor, " n"]
    source: Int[Tensor, " tt"]
    pitch: float

    def spread(self, values: Float[Tensor, "b c n"]) -> Float[Tensor, "b c t t"]:
        """Return maps of what is known at ``texels``."""
        source = self.source.expand(*values.shape[:2], -1)
        maps: Tensor = values.gather(2, source)
        return maps.view(*values.shape[:2], *self.position.shape[1:])


_BAKED: WeakKeyDictionary[HandModel, dict[tuple[int, torch.device], Atlas]] = WeakKeyDictionary()


def bake_atlas(hand: HandModel, size: int) -> Atlas:
    """Return the atlas of a hand model at ``size`` x ``size`` texels, baked once per device."""
    baked = _BAKED.setdefault(hand, {})
    key = (size, hand.template.device)
    if key not in baked:
        # Kept for later, so it must not be born an inference tensor.
        with torch.inference_mode(mode=False), torch.no_grad():
            fields: dict[str, Any] = _bake(hand, size)._asdict()
            tensors = {k: x.to(key[1]) for k, x in fields.items() if isinstance(x, Tensor)}
            baked[key] = Atlas(**{**fields, **tensors})
    return baked[key]


def _bake(hand: HandModel, size: int) -> Atlas:
    template, faces = hand.template.detach().cpu().clone(), hand.faces.cpu()
    uv, uv_faces = hand.uv.detach().cpu().clone(), hand.uv_faces.cpu()
    flat = torch.stack([uv[:, 0] * size, (1 - uv[:, 1]) * size, torch.ones(len(uv))], dim=1)
    face = TorchRasterizer().cover(flat[None], uv_faces, (size, size))[0].long()
    inside = face >= 0
    if not inside.any():
        raise ValueError(f"an atlas of {size} x {size} texels shows no face")
    distance, nearest = distance_transform_edt((~inside).numpy(), return_indices=True)
    near_y, near_x = torch.from_numpy(nearest).long()
    known = torch.from_numpy(distance) <= _BORDER
    y, x = known.nonzero(as_tuple=True)
    anchor = torch.stack([near_x[y, x], near_y[y, x]], dim=1)
    owner = face[anchor[:, 1], anchor[:, 0]]
    weights = _continued(flat[uv_faces[owner], :2], anchor, torch.stack([x, y], dim=1))
    points = (weights * template[faces[owner]]).sum(1)
    normals = vertex_normals(template[None], faces)[0]
    normals = F.normalize((weights * normals[faces[owner]]).sum(1), dim=1)
    source = _sources(known)
    seen = torch.bincount(face[inside], minlength=len(faces)) > 0
    area = face_normals(template, faces)[seen].norm(dim=1).sum() / 2
    pitch = float((area / inside.sum()).sqrt())
    position, normal = (x[source].T.reshape(3, size, size) for x in (points, normals))
    return Atlas(position, normal, inside[None], known.flatten().nonzero()[:, 0], source, pitch)


def _continued(
    corners: Float[Tensor, "n 3 2"], anchor: Int[Tensor, "n 2"], texel: Int[Tensor, "n 2"]
) -> Float[Tensor, "n 3 1"]:
    """Return barycentric weights of texels in the plane of a face that covers their anchors.

    Where a face is a sliver they run away fast: none may change by more than 1 from the anchor's.
    """
    weights = [edge_functions(corners.double(), place + 0.5) for place in (anchor, texel)]
    inner, outer = (w / w.sum(1, keepdim=True) for w in weights)
    step = outer - inner
    step = step / step.abs().amax(1, keepdim=True).clamp(min=1)
    return (inner + step)[..., None].float()


def _sources(known: Bool[Tensor, "t t"]) -> Int[Tensor, " tt"]:
    """Return the rank among the known texels of the known one nearest to each texel."""
    nearest = distance_transform_edt((~known).numpy(), return_distances=False, return_indices=True)
    y, x = torch.from_numpy(nearest).long()
    rank = known.flatten().cumsum(0) - 1
    return rank[(y * known.shape[1] + x).flatten()]
