"""Which joints a picture shows."""

from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from handrec.data.appearance.base import Stage
from handrec.data.appearance.meshes import Meshes, Part
from handrec.geometry.camera import project
from handrec.hand.anatomy import rest_hand
from handrec.hand.base import HandModel
from handrec.hand.joints import FINGERS, JOINTS, PARENTS, TIPS
from handrec.types import Camera

#: A joint's own skin at rest reaches so many times as far as the skin nearest to it: seen through
#: from anywhere within 60 degrees of a right angle to a finger's bone.
_REACH = 2.0

#: The same of joints in the palm: the skin nearest to them is the back's, the palm's half as near.
_REACH_IN_PALM = 3.0

_IN_PALM = [JOINTS.index("thumb_cmc"), *(JOINTS.index(f"{name}_mcp") for name in FINGERS[1:])]


def visible_joints(
    stage: Stage, meshes: Meshes, face_index: Int[Tensor, "b h w"], camera: Camera
) -> Float[Tensor, "b 21"]:
    """Return 1 for the joints that are seen, as annotators mean it.

    A joint lies inside the hand. It is hidden where the surface drawn at its pixel is before it
    and is not its own skin. Its own skin is that of the hand or the forearm which lies, *at rest*,
    within the joint's reach: twice the distance from the joint to the skin nearest to it, or three
    times in the palm (a tip, which is on the skin, has the reach of the joint before it). So its
    finger's other segments hide a joint when they are folded before it, as other fingers, the
    palm, sleeves, things and other hands do. Joints outside of the picture are not seen. Judged by
    the face that is seen at the sample that the joint falls on.

    Args:
        stage: that was drawn.
        meshes: of the stage.
        face_index: seen at each sample, -1 for none.
        camera: of the samples.
    """
    joints = stage.posed.joints
    height, width = camera.image_size
    pixels = project(joints, camera.intrinsics)
    x, y = pixels.unbind(-1)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height) & (joints[..., 2] > 0)
    column, row = x.clamp(0, width - 1).long(), y.clamp(0, height - 1).long()
    face = face_index.flatten(1).gather(1, row * width + column)
    corners = meshes.faces[face.clamp(min=0)]
    part = meshes.part[face.clamp(min=0)]
    skin = (part == Part.HAND) | (part == Part.FOREARM)
    weights = _weights(pixels, meshes.vertices, corners, camera)[..., None]
    images = torch.arange(len(pixels), device=pixels.device)[:, None, None]
    depth = (meshes.vertices[..., 2:][images, corners] * weights).sum((2, 3))
    rest = (meshes.rest[torch.where(skin[..., None], corners, 0)] * weights).sum(2)
    places, reach = _rest_reach(stage.hand, joints.device)
    own = skin & ((rest - places).norm(dim=-1) <= reach)
    hidden = (face >= 0) & (depth < joints[..., 2]) & ~own
    seen: Tensor = (inside & ~hidden).to(joints)
    return seen


def _weights(
    pixels: Float[Tensor, "b j 2"],
    vertices: Float[Tensor, "b v 3"],
    corners: Tensor,
    camera: Camera,
) -> Float[Tensor, "b j 3"]:
    """Return barycentric weights of the pixels in faces, of the nearest point on a face's edge."""
    images = torch.arange(len(pixels), device=pixels.device)[:, None, None]
    points = vertices[images, corners]  # (B, J, 3, 3)
    flat = project(points.flatten(1, 2), camera.intrinsics).view(*corners.shape, 2)
    ax, ay = (flat - pixels[:, :, None]).unbind(-1)
    bx, by = ax.roll(-1, -1), ay.roll(-1, -1)
    cx, cy = ax.roll(-2, -1), ay.roll(-2, -1)
    areas = (bx * cy - by * cx) / points[..., 2].clamp(min=1e-3)
    areas = (areas * areas.sum(-1, keepdim=True).sign()).relu()
    return areas / areas.sum(-1, keepdim=True).clamp(min=1e-12)


@lru_cache(maxsize=8)
def _rest_reach(
    hand: HandModel, device: torch.device
) -> tuple[Float[Tensor, "21 3"], Float[Tensor, " 21"]]:
    """Return the joints at rest and how far their own skin reaches, metres."""
    vertices, joints = (column[0].to(device) for column in rest_hand(hand))
    nearest = torch.cdist(joints, vertices).amin(1)
    for tip in TIPS:
        nearest[JOINTS.index(tip)] = nearest[PARENTS[JOINTS.index(tip)]]
    nearest[_IN_PALM] *= _REACH_IN_PALM / _REACH
    return joints, _REACH * nearest


__all__ = ["visible_joints"]
