"""Which faces of a mesh meet at an edge."""

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary


def find_neighbours(faces: Int[Tensor, "f 3"]) -> Int[Tensor, "f 3"]:
    """Return the face across the edge that faces each corner, -1 where the surface ends.

    It ends at an edge of one face alone, and at one of more than two, which has no single other
    side. The result is kept for as long as ``faces`` lives.
    """
    version = 0 if faces.is_inference() else faces._version
    known: tuple[int, Tensor] | None = _FOUND.get(faces)
    if known is None or known[0] != version:
        known = _FOUND[faces] = version, _find_neighbours(faces)
    return known[1]


#: By faces: the version of their tensor, and the neighbours.
_FOUND = WeakTensorKeyDictionary()


def _find_neighbours(faces: Tensor) -> Tensor:
    corners = faces.long()
    start, end = corners[:, [1, 2, 0]], corners[:, [2, 0, 1]]
    key = torch.minimum(start, end) << 32 | torch.maximum(start, end)
    _, edge, count = key.unique(return_inverse=True, return_counts=True)
    face = torch.arange(len(faces), device=faces.device)[:, None].expand(-1, 3)
    both = torch.zeros_like(count).index_add(0, edge.flatten(), face.flatten())[edge]
    return torch.where(count[edge] == 2, both - face, -1).int()


__all__ = ["find_neighbours"]
