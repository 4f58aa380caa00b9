"""Reconstructed hands with their textures: as mesh files, and drawn back into the photo."""

import math
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torch.nn import functional as F

from handrec.hand.base import HandModel
from handrec.render.textures import Texture
from handrec.render.torch_reference import TorchRasterizer
from handrec.types import Camera, HandPrediction, Rendering
from handrec.viz.drawing import SMOOTH_UP_TO, Picture, region_of, to_picture

#: Side of the atlas that colours of faces are baked into: some 40 texels for a face of OpenHand.
BAKED_SIZE = 512

#: Side of the cells, texels, that hold two faces each where the atlas does not show every face.
CELL = 8

#: Draws a batch of hands with their textures and lights before a background.
Render = Callable[[HandPrediction, Camera, Float[Tensor, "b 3 h w"]], Rendering]

#: Vertices nearer than this are not drawn, metres.
NEAR = 0.01

_BAKED: WeakKeyDictionary[HandModel, dict[int, Tensor]] = WeakKeyDictionary()


def one_hand(prediction: HandPrediction, index: int) -> HandPrediction:
    """Return one hand of a batch as a batch of its own, detached, in float32."""
    rows: list[Any] = []
    for field in prediction:
        if isinstance(field, Tensor):
            rows.append(field[index : index + 1].detach().float())
        elif isinstance(field, tuple):  # a light
            light: Any = type(field)
            rows.append(light(*(x[index : index + 1].detach().float() for x in field)))
        else:
            rows.append(None)
    return HandPrediction(*rows)


def texture_of(hand: HandModel, colours: Tensor, mirrored: bool = False) -> Texture:
    """Return a hand's predicted colours as an image and where the faces lie on it, on the CPU.

    Colours of faces are baked into the hand model's UV atlas; where that has no texel for some of
    the faces (MANO's, which a plane projection makes, has none for those seen edge-on), into cells
    of their own.

    Args:
        hand: the (right) hand model.
        colours: RGB in [0, 1], of one hand: ``(1, F, 3)`` of the faces or ``(1, 3, T, T)`` the
            atlas.
        mirrored: whether it is to lie on a left hand, whose faces are turned round.
    """
    colours = colours.detach().float().cpu()
    uv, uv_faces, image = hand.uv.detach().cpu(), hand.uv_faces.cpu(), colours
    if colours.ndim == 3:
        face = faces_at_texels(hand, BAKED_SIZE)
        if len(face.unique()) < len(uv_faces):
            face, uv, uv_faces = face_cells(len(uv_faces))
        image = colours[0][face].permute(2, 0, 1)[None]
    return Texture(image, uv, uv_faces.flip(-1) if mirrored else uv_faces)


def faces_at_texels(hand: HandModel, size: int) -> Int[Tensor, "t t"]:
    """Return the face at each texel of the UV atlas, beyond the islands the nearest one's.

    Found once per hand model and size. Row 0 is v = 1, as in ``render.textures.Texture``.
    """
    known = _BAKED.setdefault(hand, {})
    if size not in known:
        uv = hand.uv.detach().cpu().clone()
        flat = torch.stack([uv[:, 0] * size, (1 - uv[:, 1]) * size, torch.ones(len(uv))], dim=1)
        face = TorchRasterizer().cover(flat[None], hand.uv_faces.cpu(), (size, size))[0].long()
        y, x = distance_transform_edt(
            (face < 0).numpy(), return_distances=False, return_indices=True
        )
        known[size] = face[torch.from_numpy(y).long(), torch.from_numpy(x).long()]
    return known[size]


def face_cells(
    count: int,
) -> tuple[Int[Tensor, "t t"], Float[Tensor, "u 2"], Int[Tensor, "f 3"]]:
    """Return an atlas of cells, two faces in each: the face at each texel, ``uv``, ``uv_faces``.

    A bilinear look-up inside a face reads texels of that face only.

    Args:
        count: of the faces.
    """
    columns = math.isqrt((count + 1) // 2 - 1) + 1
    steps = torch.arange(columns * CELL)
    x, y = steps % CELL, steps[:, None] % CELL
    second = x + y >= CELL - 1
    face = 2 * (steps[:, None] // CELL * columns + steps // CELL) + second
    # Two texels, by their centres, stay between the faces of a cell.
    end = CELL - 3
    corners = torch.tensor([[0, 0], [0, end], [end, 0]])
    corners = torch.stack([corners, CELL - 1 - corners])[torch.arange(count) % 2]
    cell = torch.arange(count) // 2
    origin = CELL * torch.stack([cell % columns, cell // columns], dim=1)
    uv = (origin[:, None] + corners + 0.5).flatten(0, 1) / (columns * CELL)
    flipped = torch.stack([uv[:, 0], 1 - uv[:, 1]], dim=1)  # v is up
    return face.clamp(max=count - 1), flipped, torch.arange(3 * count).view(count, 3)


@torch.no_grad()
def draw_textured(
    picture: Picture,
    hand: HandPrediction,
    intrinsics: Float[Tensor, "3 3"],
    render: Render,
    mirrored: bool = False,
) -> Picture:
    """Return the picture with a hand drawn over it in its own texture and light.

    Args:
        picture: what to draw on.
        hand: one hand in the picture's camera frame; of a left one what the method saw: the right
            hand in the mirrored picture.
        intrinsics: ``K`` of the picture, pixels.
        render: of the method.
        mirrored: whether the hand is a left one.
    """
    width = picture.shape[1]
    if mirrored:
        flip = intrinsics.new_tensor([[-1.0, 0, width], [0, 1, 0], [0, 0, 1]])
        camera = flip @ intrinsics * intrinsics.new_tensor([-1.0, 1, 1])
        seen = draw_textured(np.ascontiguousarray(picture[:, ::-1]), hand, camera, render)
        return np.ascontiguousarray(seen[:, ::-1])
    intrinsics = intrinsics.to(hand.vertices.device).double()
    region = region_of(hand.vertices[0], intrinsics, (picture.shape[0], width), NEAR)
    if region is None:
        return picture.copy()
    left, top, right, bottom = region
    drawn = picture.copy()
    patch = drawn[top:bottom, left:right]
    origin = intrinsics.new_tensor([[1.0, 0, -left], [0, 1, -top], [0, 0, 1]])
    patch[:] = _draw_over(patch, hand, origin @ intrinsics, render)
    return drawn


def _draw_over(
    patch: Picture, hand: HandPrediction, intrinsics: Float[Tensor, "3 3"], render: Render
) -> Picture:
    """Return a patch with the hand over it, drawn at twice the resolution if it is small."""
    height, width = patch.shape[:2]
    zoom = 2 if max(height, width) <= SMOOTH_UP_TO else 1
    scales = intrinsics.new_tensor([zoom, zoom, 1.0])
    camera = Camera((scales[:, None] * intrinsics)[None].float(), (zoom * height, zoom * width))
    photo = torch.from_numpy(patch.copy()).permute(2, 0, 1)[None].to(hand.vertices) / 255
    drawn = render(hand, camera, F.interpolate(photo, camera.image_size, mode="bilinear"))
    image, mask = (F.avg_pool2d(x, zoom)[0] for x in (drawn.image, drawn.mask))
    # Where no hand is seen, the photo's own pixels stay.
    return np.where(to_picture(mask.expand(3, -1, -1)) > 0, to_picture(image), patch)
