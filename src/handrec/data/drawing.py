"""What drawing in any appearance needs: pictures from finer ones, and which joints are seen."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from handrec.geometry.camera import project
from handrec.hand.anatomy import rest_hand
from handrec.hand.base import HandModel
from handrec.hand.joints import JOINTS
from handrec.types import Camera


def joint_thickness(hand: HandModel) -> Float[Tensor, " 21"]:
    """Return how far a visible joint lies behind the skin that shows it at most, metres.

    A joint inside the hand is seen where its own skin is: twice as deep as the nearest skin at
    rest, for limbs are not round and may be seen from their wide side (measured around OpenHand's
    joints: 1.2 to 2.3 times). Tips lie on the skin and are seen from all around, so they count as
    deep as the joint before them. A finger before another is thicker than that.
    """
    vertices, joints = rest_hand(hand)
    depth = 2 * torch.cdist(joints[0], vertices[0]).amin(1)
    for index, name in enumerate(JOINTS):
        if name.endswith("tip"):
            depth[index] = depth[index - 1]
    return depth


def visible_joints(
    joints: Float[Tensor, "b 21 3"],
    camera: Camera,
    surface: Float[Tensor, "b 1 h w"],
    thickness: Float[Tensor, " 21"],
) -> Float[Tensor, "b 21"]:
    """Return 1 for each joint that nothing hides, 0 for others and for those outside the picture.

    Args:
        joints: metres, camera frame.
        camera: of the joints; its size need not be that of ``surface``.
        surface: depth of whatever is nearest at each pixel, metres; 0 where there is nothing.
        thickness: of the skin before each joint, see :func:`joint_thickness`.
    """
    height, width = camera.image_size
    unit = project(joints, camera.intrinsics) / joints.new_tensor([width, height])
    inside = ((unit >= 0) & (unit < 1)).all(-1)
    nearest = F.grid_sample(surface, 2 * unit[:, None] - 1, mode="nearest", align_corners=False)
    before = joints[..., 2] - nearest[:, 0, 0]
    hidden = (nearest[:, 0, 0] > 0) & (before > thickness)
    return (inside & ~hidden).to(joints)


def nearest_of_block(
    depth: Float[Tensor, "b 1 h w"], values: Float[Tensor, "b c h w"], factor: int
) -> tuple[Float[Tensor, "b 1 h2 w2"], Float[Tensor, "b c h2 w2"]]:
    """Return the nearest surface of each block of pixels, and its values: never mixes surfaces.

    Args:
        depth: metres; 0 where there is nothing.
        values: of the same pixels; 0 where there is nothing.
        factor: side of the blocks, pixels.
    """
    closeness = torch.where(depth > 0, 1 / depth.clamp(min=1e-6), torch.zeros_like(depth))
    _, index = F.max_pool2d(closeness, factor, return_indices=True)
    flat = index.flatten(2)
    picked = [x.flatten(2).gather(2, flat.expand(-1, x.shape[1], -1)) for x in (depth, values)]
    size = index.shape[-2:]
    return picked[0].unflatten(2, size), picked[1].unflatten(2, size)
