"""From a picture of a hand back to its texture: how each texel looks, and how well it is seen.

A picture shows ``texture * gain`` of the light; the gain of the fitted light is divided out, on the
stored colours, as :class:`~handrec.fitting.appearance.Appearance` multiplies it in.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from handrec.geometry.camera import project
from handrec.geometry.mesh import vertex_normals
from handrec.hand.base import HandModel
from handrec.render.base import Attribute, Rasterizer, Surface
from handrec.render.lights import Light
from handrec.types import Camera

#: A texel seen at a smaller cosine is not used; from the greater one on it is fully trusted.
COSINES = (0.2, 0.5)

#: Depth that neighbouring pixels of one surface do not differ by, metres: a finger is thicker.
STEP = 0.012

#: How far from an edge of the hand or of a finger before another pixels are used: the fit is off by
#: about so much there, and pixels mix. Share of the picture's side.
MARGIN = 0.012

#: A light below this leaves too little of the texture in the picture, and levels above the other
#: one are clipped.
DARKEST, BRIGHTEST = 0.15, 0.98

#: How far behind the first surface a texel may seem to be, metres, seen straight on.
_BIAS = 0.001


class View(NamedTuple):
    """A hand whose place in a picture is known; a batch of one.

    Attributes:
        image: RGB in [0, 1].
        mask: 1 where the picture shows the hand, as far as is known.
        camera: of the picture.
        vertices: metres, camera frame.
        light: gains on the stored colours of the texture.
        detail: share of the picture's pixels that the photo really has, 0 to 1: less than 1 where
            it was enlarged.
    """

    image: Float[Tensor, "1 3 h w"]
    mask: Float[Tensor, "1 1 h w"]
    camera: Camera
    vertices: Float[Tensor, "1 v 3"]
    light: Light
    detail: float = 1.0


class Texels(NamedTuple):
    """What a picture says of the texels of an atlas, row 0 at v = 1.

    Attributes:
        colour: of the texture, RGB in [0, 1]; anything where ``confidence`` is 0.
        confidence: in [0, 1]: whether, and how straight on, a texel is seen.
        weight: among several pictures: confidence, times the photo's pixels that a texel covers.
    """

    colour: Float[Tensor, "3 t t"]
    confidence: Float[Tensor, "1 t t"]
    weight: Float[Tensor, "1 t t"]


class AtlasFaces(NamedTuple):
    """The atlas of a hand model as a picture.

    Attributes:
        screen: texel coordinates of its UV coordinates, and depth 1.
        face: at each texel, -1 for none.
    """

    screen: Float[Tensor, "1 u 3"]
    face: Int[Tensor, "1 t t"]


def atlas_faces(hand: HandModel, rasterizer: Rasterizer, size: int) -> AtlasFaces:
    """Return which face is at each of ``size`` x ``size`` texels."""
    u, v = hand.uv.unbind(1)
    screen = torch.stack([u * size, (1 - v) * size, torch.ones_like(u)], dim=1)[None]
    return AtlasFaces(screen, rasterizer.cover(screen, hand.uv_faces, (size, size)))


def lay_out(
    values: Float[Tensor, "1 v c"], hand: HandModel, rasterizer: Rasterizer, atlas: AtlasFaces
) -> Float[Tensor, "c t t"]:
    """Return a quantity of the vertices texel by texel, 0 off the islands."""
    attribute = Attribute(values, hand.faces)
    (laid,) = rasterizer.interpolate(atlas.screen, hand.uv_faces, atlas.face, [attribute])
    return laid[0].permute(2, 0, 1)


@torch.no_grad()
def unproject(hand: HandModel, view: View, rasterizer: Rasterizer, size: int) -> Texels:
    """Return the texture of the surface that a picture shows.

    Args:
        hand: any hand model with UV coordinates.
        view: the picture.
        rasterizer: any backend.
        size: texels along each side.
    """
    atlas = atlas_faces(hand, rasterizer, size)
    normals = vertex_normals(view.vertices, hand.faces)
    position, normal = (
        lay_out(values, hand, rasterizer, atlas) for values in (view.vertices, normals)
    )
    normal = F.normalize(normal, dim=0, eps=1e-6)
    cosine = -(normal * F.normalize(position, dim=0, eps=1e-6)).sum(0, keepdim=True)
    pixel = project(position.flatten(1).T[None], view.camera.intrinsics)[0].T.view(2, size, size)
    surface = Surface({"normal": normal.permute(1, 2, 0)[None]})
    gain = view.light.gain(surface, surface["normal"])[0].permute(2, 0, 1)
    seen = _seen(hand, view, rasterizer, position, pixel, cosine)
    image = _sample(view.image, pixel, "bilinear")
    level = image.amax(0, keepdim=True)
    seen = seen * ((BRIGHTEST - level) / (1 - BRIGHTEST)).clamp(0, 1)
    seen = seen * (gain.amin(0, keepdim=True) > DARKEST) * (atlas.face >= 0)
    low, high = COSINES
    confidence = seen * ((cosine - low) / (high - low)).clamp(0, 1)
    area = view.detail * _pixels_per_texel(hand, view, atlas)
    colour = (image / gain.clamp(min=DARKEST)).clamp(0, 1)
    return Texels(colour, confidence, confidence * cosine.clamp(min=0) * area)


def _seen(
    hand: HandModel,
    view: View,
    rasterizer: Rasterizer,
    position: Float[Tensor, "3 t t"],
    pixel: Float[Tensor, "2 t t"],
    cosine: Float[Tensor, "1 t t"],
) -> Float[Tensor, "1 t t"]:
    """Return 1 for texels that nothing hides, away from edges."""
    drawn = rasterizer.render(
        view.vertices, hand.faces, {"z": Attribute(view.vertices[..., 2:])}, view.camera,
        lambda maps: maps["z"],
    )  # fmt: skip
    depth = torch.where(drawn.face_index[:, None] >= 0, drawn.depth, 10.0)
    # A slanted surface changes its depth along a window, too; only steps between neighbours count.
    down, right = depth.diff(dim=2).abs() > STEP, depth.diff(dim=3).abs() > STEP
    unusable = F.pad(down, (0, 0, 0, 1)) | F.pad(right, (0, 1)) | (view.mask < 0.5)
    margin = max(1, round(MARGIN * max(view.camera.image_size)))
    usable = 1 - F.max_pool2d(unusable.float(), 2 * margin + 1, stride=1, padding=margin)
    first = _sample(depth, pixel, "nearest")
    metres_per_pixel = position[2:] / view.camera.intrinsics[0, 0, 0]
    reach = _BIAS + metres_per_pixel / cosine.clamp(min=COSINES[0])
    return _sample(usable, pixel, "nearest") * (position[2:] < first + reach)


def _sample(
    image: Float[Tensor, "1 c h w"], pixel: Float[Tensor, "2 t t"], mode: str
) -> Float[Tensor, "c t t"]:
    """Return an image at pixels, 0 outside."""
    height, width = image.shape[-2:]
    scale = pixel.new_tensor([2 / width, 2 / height])
    grid = pixel.permute(1, 2, 0)[None] * scale - 1
    return F.grid_sample(image, grid, mode, align_corners=False)[0]


def _pixels_per_texel(hand: HandModel, view: View, atlas: AtlasFaces) -> Float[Tensor, "1 t t"]:
    """Return how many pixels a texel covers; slanted and distant ones cover few."""
    pixels = project(view.vertices, view.camera.intrinsics)[0]
    shown, laid = _areas(pixels[hand.faces]), _areas(atlas.screen[0, hand.uv_faces, :2])
    ratio = shown / laid.clamp(min=1e-9)
    return torch.where(atlas.face >= 0, ratio[atlas.face.clamp(min=0)], 0.0)


def _areas(corners: Float[Tensor, "f 3 2"]) -> Float[Tensor, " f"]:
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    return (first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]).abs() / 2
