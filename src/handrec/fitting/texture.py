"""The texture of one hand from pictures of it: un-projected, fused, and filled where none shows it.

Everything is said as the logarithm of a ratio to a base texture, the mean of painted skins: what is
missing then keeps the nails, creases and palm lines of the base, in the colours of this hand.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.ndimage import distance_transform_edt
from scipy.sparse import coo_matrix, diags
from scipy.sparse.linalg import spsolve
from scipy.spatial import cKDTree
from torch import Tensor

from handrec.data.appearance.skin_bank import mean_skin
from handrec.fitting.unproject import AtlasFaces, Texels, View, atlas_faces, lay_out, unproject
from handrec.geometry.mesh import edges
from handrec.hand.anatomy import rest_hand
from handrec.hand.base import HandModel
from handrec.hand.joints import JOINTS, KINEMATIC_JOINTS, PARENTS
from handrec.render.atlas import bake_atlas
from handrec.render.base import Rasterizer

#: Difference of logarithms from which on a picture is doubted at a texel.
_SIGMA = 0.12

#: Difference of hue, of logarithms of the channels, from which on a texel is taken for no skin.
_HUE_SIGMA = 0.15

#: Rounds of fusing and of matching the brightness of pictures.
_ROUNDS = 6

#: A picture that shares so many texels with others is made as bright as these; with fewer, less so.
_SHARED = 200.0

#: Trust in a texel that is known from the other side of its finger, or from the next finger.
_MIRRORED, _NEIGHBOUR = 0.5, 0.3

#: Such a texel is at most so far away once laid over its counterpart, metres.
_OFF = 0.003

#: How much of a vertex's colour comes from its neighbours, against its own texels.
_STIFFNESS = 0.1

#: Colours below this have no logarithm worth comparing.
_DARKEST = 0.02


class RecoveredTexture(NamedTuple):
    """A texture, and where it comes from.

    Attributes:
        image: RGB in [0, 1] in the hand model's atlas, row 0 at v = 1.
        seen: trust in each texel that a picture shows, in [0, 1].
        copied: the same for those known from the other side of a finger or from the next one.
        inside: 1 where the atlas shows the hand.
        shares: of the fused texture that come from each picture.
    """

    image: Float[Tensor, "3 t t"]
    seen: Float[Tensor, "1 t t"]
    copied: Float[Tensor, "1 t t"]
    inside: Float[Tensor, "1 t t"]
    shares: list[float]

    @property
    def coverage(self) -> dict[str, float]:
        """Shares of the hand's surface by where their colour comes from."""
        area = self.inside.sum()
        seen = float((self.seen * self.inside).sum() / area)
        copied = float(((1 - self.seen) * self.copied * self.inside).sum() / area)
        return {"seen": seen, "symmetry": copied, "diffusion": 1 - seen - copied}


@torch.no_grad()
def recover_texture(
    hand: HandModel, views: Sequence[View], rasterizer: Rasterizer, size: int = 512
) -> RecoveredTexture:
    """Return the texture of a hand that one or several pictures show.

    Args:
        hand: any hand model with UV coordinates.
        views: pictures of one hand, in any poses.
        rasterizer: any backend.
        size: texels along each side.
    """
    atlas = atlas_faces(hand, rasterizer, size)
    base = mean_skin(hand, size)[0].clamp(min=_DARKEST).log()
    found = [unproject(hand, view, rasterizer, size) for view in views]
    found = [doubt_foreign(texels, base) for texels in found]
    ratio, shares = fuse(found, base)
    seen = torch.stack([texels.confidence for texels in found]).amax(0)
    ratio, copied = copy_symmetric(hand, ratio, seen)
    trust = seen + (1 - seen) * copied
    smooth = lay_out(diffuse(hand, atlas, ratio, trust)[None], hand, rasterizer, atlas)
    image = (base + smooth + trust * (ratio - smooth)).exp().clamp(0, 1)
    inside = (atlas.face >= 0).float()
    return RecoveredTexture(_grow(image, inside), seen, copied, inside, shares)


def doubt_foreign(texels: Texels, base: Float[Tensor, "3 t t"]) -> Texels:
    """Return what a picture says, less sure where the hue is not that of the rest of the hand.

    A fit is never quite in place, and what is behind a hand or in it must not become its skin. The
    price: rings and polish come out paler, too, as far as this goes.

    Args:
        texels: of one picture.
        base: logarithm of the base texture.
    """
    ratio = texels.colour.clamp(min=_DARKEST).log() - base
    hue = ratio - ratio.mean(0)
    certain = hue[:, texels.confidence[0] > 0.5]
    if not certain.shape[1]:
        return texels
    off = (hue - certain.median(1).values[:, None, None]).square().sum(0, keepdim=True)
    trust = 1 / (1 + (off / _HUE_SIGMA**2).square())
    return texels._replace(confidence=texels.confidence * trust, weight=texels.weight * trust)


def fuse(
    found: Sequence[Texels], base: Float[Tensor, "3 t t"]
) -> tuple[Float[Tensor, "3 t t"], list[float]]:
    """Return the robust mean of several pictures' textures, as logarithms of ratios to the base.

    Weights fall with the distance from what the others say (Cauchy's), starting at the weighted
    median. Pictures are made as bright as the others where they overlap, all together staying as
    bright as they are: one fitted light is never quite right.

    Args:
        found: of each picture.
        base: logarithm of the base texture.

    Returns:
        The ratio, 0 where nothing is seen, and each picture's share of it.
    """
    # Only the texels that some picture shows: of many pictures all would take gigabytes.
    shown = torch.stack([texels.weight for texels in found]).amax((0, 1)) > 0
    colour = torch.stack([texels.colour[:, shown] for texels in found])
    colour = colour.clamp(min=_DARKEST).log() - base[:, shown]
    weight = torch.stack([texels.weight[:, shown] for texels in found])
    gain = colour.new_zeros(len(found), 3, 1)
    mean = weighted_median(colour, weight)
    # Without a second opinion a picture cannot be compared.
    shared = weight * (weight > 0).sum(0).gt(1)
    robust = weight
    for _ in range(_ROUNDS):
        residual = colour - gain - mean
        robust = weight / (1 + (residual / _SIGMA).square().mean(1, keepdim=True))
        common = robust * (shared > 0)
        slack = _SHARED * weight.sum() / (len(found) * shown.numel()) + 1e-9
        excess = (common * residual).sum(2) / (common.sum(2) + slack)
        gain = gain + excess[..., None]
        gain = gain - gain.mean(0)
        mean = (robust * (colour - gain)).sum(0) / robust.sum(0).clamp(min=1e-9)
    used = robust.sum((1, 2))
    ratio = torch.zeros_like(base)
    ratio[:, shown] = mean
    return ratio, (used / used.sum().clamp(min=1e-9)).tolist()


def weighted_median(
    values: Float[Tensor, "n c *t"], weight: Float[Tensor, "n 1 *t"]
) -> Float[Tensor, "c *t"]:
    """Return the lower weighted median over the first axis, channel by channel."""
    ordered, index = values.sort(dim=0)
    passed = weight.expand_as(values).gather(0, index).cumsum(0)
    reached = passed >= passed[-1:] / 2
    first = reached.float().argmax(0, keepdim=True)
    return ordered.gather(0, first)[0]


def copy_symmetric(
    hand: HandModel, ratio: Float[Tensor, "3 t t"], seen: Float[Tensor, "1 t t"]
) -> tuple[Float[Tensor, "3 t t"], Float[Tensor, "1 t t"]]:
    """Fill what is not seen of a finger from its other side, or from the finger beside it.

    A finger looks much alike on its thumb's and its little finger's side, and like its neighbour;
    its back and its front differ, and so do the two sides of a palm: these are not copied.

    Args:
        hand: whose atlas it is.
        ratio: logarithms of ratios to the base texture, where they are seen.
        seen: trust in them.

    Returns:
        The ratio with what was copied in it, and the trust in what was.
    """
    size = ratio.shape[-1]
    places = finger_places(hand, size)
    known = (seen.flatten() > 0.5).cpu().numpy()
    source = np.full(size * size, -1)
    trust = np.zeros(size * size)
    for (finger, level), own in places.items():
        others = [name for name in _beside(finger) if (name, level) in places]
        for donor, share in [(finger, _MIRRORED), *((name, _NEIGHBOUR) for name in others)]:
            wanting = (source[own.texels] < 0) & ~known[own.texels]
            given = places[donor, level]
            usable = known[given.texels]
            if not usable.any() or not wanting.any():
                continue
            mirror = np.array([1, 1, -1]) if donor == finger else np.ones(3)
            place = own.place[wanting] * mirror * (given.length / own.length)
            normal = own.normal[wanting] * mirror
            # Normals count as if a turn by a radian were a way of 10 mm.
            tree = cKDTree(np.hstack([given.place[usable], 0.01 * given.normal[usable]]))
            distance, nearest = tree.query(np.hstack([place, 0.01 * normal]))
            nearest, close = np.asarray(nearest), np.asarray(distance) < _OFF
            rows = own.texels[wanting][close]
            source[rows] = given.texels[usable][nearest[close]]
            trust[rows] = share
    copied = torch.from_numpy(source).to(ratio.device)
    flat = ratio.flatten(1)
    flat = torch.where(copied >= 0, flat[:, copied.clamp(min=0)], flat)
    return flat.view_as(ratio), torch.from_numpy(trust).to(ratio).view_as(seen)


class FingerTexels(NamedTuple):
    """The texels of one phalanx.

    Attributes:
        texels: flat indices in the atlas.
        place: along the bone, towards the palm and towards the little finger, metres.
        normal: in the same frame.
        length: of the bone, metres.
    """

    texels: Int[np.ndarray, " n"]
    place: Float[np.ndarray, "n 3"]
    normal: Float[np.ndarray, "n 3"]
    length: float


def finger_places(hand: HandModel, size: int) -> dict[tuple[str, str], FingerTexels]:
    """Return the texels of each phalanx, by finger and by the joint that the phalanx starts at."""
    atlas = bake_atlas(hand, size)
    inside = atlas.inside.flatten().nonzero()[:, 0]
    point, normal = (x.flatten(1).T[inside] for x in (atlas.position, atlas.normal))
    joints = rest_hand(hand).joints[0]
    ends = torch.arange(1, len(JOINTS), device=joints.device)
    starts = joints[[PARENTS[end] for end in ends.tolist()]]
    bones = joints[1:] - starts
    along = ((point[:, None] - starts) * bones).sum(-1) / bones.square().sum(-1)
    nearest = starts + along.clamp(0, 1)[..., None] * bones
    owner = ends[(point[:, None] - nearest).norm(dim=-1).argmin(1)]
    places = {}
    for end in ends.tolist():
        finger, level = JOINTS[PARENTS[end]].partition("_")[::2]
        if not level:  # of the palm
            continue
        axes = hand.joint_axes[KINEMATIC_JOINTS.index(JOINTS[PARENTS[end]]) - 1]
        rows = owner == end
        start = joints[PARENTS[end]]
        place, facing = (x[rows] @ axes.T for x in (point - start, normal))
        places[finger, level] = FingerTexels(
            inside[rows].cpu().numpy(),
            place.cpu().double().numpy(),
            facing.cpu().double().numpy(),
            float((joints[end] - start).norm()),
        )
    return places


def _beside(finger: str) -> list[str]:
    """Return the fingers that look like another, the nearest first; the thumb is like none."""
    fingers = ("index", "middle", "ring", "little")
    if finger not in fingers:
        return []
    here = fingers.index(finger)
    others = [name for name in fingers if name != finger]
    return sorted(others, key=lambda name: abs(fingers.index(name) - here))


def diffuse(
    hand: HandModel,
    atlas: AtlasFaces,
    ratio: Float[Tensor, "3 t t"],
    trust: Float[Tensor, "1 t t"],
) -> Float[Tensor, "v 3"]:
    """Return a smooth ratio at each vertex: near what is known, and even where nothing is.

    The minimum of ``sum_v w_v |x_v - r_v|^2 + s sum_edges |x_i - x_j|^2``, r the mean ratio of the
    texels on the faces around a vertex, w the trusted share of these.
    """
    count = len(hand.template)
    corners = hand.faces[atlas.face.flatten().clamp(min=0)].flatten()
    inside = (atlas.face.flatten() >= 0).float()
    each = torch.stack([inside, inside * trust.flatten()]).repeat_interleave(3, dim=1)
    values = (ratio.flatten(1) * inside * trust.flatten()).repeat_interleave(3, dim=1)
    summed = ratio.new_zeros(5, count).index_add(1, corners, torch.cat([each, values]))
    total, weight = summed[:2].double().cpu().numpy()
    mean = (summed[2:] / summed[1].clamp(min=1e-9)).double().cpu().numpy()
    weight = weight / total.clip(1)
    first, second = edges(hand.faces).T.cpu().numpy()
    ones = np.ones(len(first))
    adjacent = coo_matrix((ones, (first, second)), (count, count))
    adjacent = adjacent + adjacent.T
    degree = np.asarray(adjacent.sum(1)).ravel()
    system = diags(weight + _STIFFNESS * degree + 1e-9) - _STIFFNESS * adjacent
    solved = spsolve(system.tocsc(), (weight * mean).T)
    return torch.from_numpy(solved).to(ratio)


def _grow(image: Float[Tensor, "3 t t"], inside: Float[Tensor, "1 t t"]) -> Tensor:
    """Return the image with the nearest texel of the hand wherever there is none."""
    outside = inside[0].cpu().numpy() == 0
    y, x = distance_transform_edt(outside, return_distances=False, return_indices=True)
    return image[:, torch.from_numpy(y).long(), torch.from_numpy(x).long()]
