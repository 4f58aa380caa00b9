"""Random finger poses that a hand can take, for synthetic images and as a prior."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from handrec.hand.anatomy import SphereProxies, pose_from_angles, rest_hand
from handrec.hand.base import HandModel
from handrec.hand.joints import FINGERS, KINEMATIC_JOINTS
from handrec.hand.skinning import posed_joints

#: Gestures in degrees from the rest pose. Thumb: twist, spread and bend of its CMC joint, bend of
#: MCP and IP. Fingers: spread and bend of the MCP joint, bend of the PIP joint; the DIP joint
#: follows. The contacts (fist, pinch, ...) were solved for on OpenHand, the rest set by eye.
GESTURES: dict[str, tuple[tuple[int, ...], ...]] = {
    #           thumb                     index            middle          ring            little
    "rest": ((0, 0, 0, 0, 0), (0, 0, 0), (0, 0, 0), (0, 0, 0), (0, 0, 0)),
    "flat": ((0, 15, 10, 5, 0), (3, 0, 2), (0, 0, 2), (-7, 0, 2), (-11, 0, 2)),
    "stretched": ((0, -10, -20, -12, -15), (-9, -12, -3), (0, -9, -3), (6, -9, -3), (9, -9, -3)),
    "relaxed": ((5, -5, 10, 10, 15), (2, 20, 22), (0, 25, 26), (-5, 28, 30), (-8, 30, 30)),
    "loose": ((5, -10, 15, 15, 20), (2, 35, 40), (0, 40, 45), (-5, 45, 50), (-8, 48, 48)),
    "fist": ((-10, -25, 10, 50, 70), (-2, 71, 105), (-4, 82, 92), (2, 85, 98), (-5, 86, 86)),
    "thumbs up": ((0, 10, -15, -8, -10), (0, 75, 100), (-3, 80, 95), (0, 84, 98), (-5, 86, 86)),
    "point": ((1, -6, 22, 29, 49), (3, 0, 2), (-9, 68, 97), (2, 86, 100), (-5, 86, 86)),
    "gun": ((0, 5, -12, -5, -10), (3, 0, 2), (-6, 70, 95), (0, 84, 98), (-5, 86, 86)),
    "peace": ((0, -14, 30, 48, 75), (-8, 0, 2), (8, 0, 2), (-4, 84, 98), (-9, 84, 86)),
    "three": ((7, -11, 43, 44, 42), (-4, 0, 2), (0, 0, 2), (2, 0, 2), (-8, 73, 81)),
    "four": ((-18, 8, 32, 58, 75), (0, 0, 2), (0, 0, 2), (-3, 0, 2), (-5, 0, 2)),
    "thumb two": ((0, 5, -15, -8, -12), (-4, 0, 2), (4, 0, 2), (-4, 82, 98), (-8, 84, 86)),
    "phone": ((0, -5, -18, -10, -15), (0, 72, 98), (-3, 78, 95), (0, 78, 96), (12, 0, 2)),
    "horns": ((1, -6, 22, 29, 49), (0, 0, 2), (-9, 68, 97), (3, 84, 98), (0, 0, 2)),
    "love": ((0, 5, -15, -8, -12), (-3, 0, 2), (-5, 74, 96), (0, 80, 98), (5, 0, 2)),
    "pinch": ((8, -19, 30, 25, 25), (2, 56, 50), (0, 45, 45), (-5, 50, 50), (-9, 50, 50)),
    "ok": ((13, -19, 21, 20, 10), (2, 55, 53), (2, 15, 15), (-3, 8, 8), (-3, 2, 5)),
    "tripod": ((29, -12, 22, 34, 19), (-1, 50, 55), (2, 55, 61), (-5, 60, 70), (-9, 60, 70)),
    "ring touch": ((8, -21, 27, 26, 24), (0, 10, 10), (0, 15, 15), (-9, 56, 51), (-5, 30, 30)),
    "little touch": ((12, -22, 41, 34, 12), (0, 5, 5), (0, 8, 8), (-3, 25, 33), (-11, 53, 44)),
    "key": ((-4, 4, 18, 18, 17), (-3, 52, 70), (2, 58, 78), (-1, 66, 82), (-9, 65, 80)),
    "hook": ((0, 10, 5, 5, 5), (3, 5, 95), (0, 5, 98), (-6, 5, 95), (-10, 5, 86)),
    "claw": ((5, -15, -5, 15, 40), (-6, -8, 60), (0, -8, 62), (5, -8, 60), (8, -8, 58)),
    "cylinder": ((12, -24, 10, 25, 25), (2, 45, 50), (0, 48, 52), (-5, 50, 52), (-9, 52, 50)),
    "thick cylinder": ((15, -28, 0, 15, 20), (0, 25, 38), (0, 28, 40), (-4, 30, 40), (-7, 32, 38)),
    "sphere": ((10, -25, 0, 15, 25), (-8, 28, 38), (0, 30, 40), (5, 30, 38), (10, 30, 36)),
    "plate": ((8, -20, 12, 10, 5), (1, 60, 8), (0, 60, 8), (-2, 60, 8), (-5, 60, 8)),
    "beak": ((12, -22, 25, 15, 5), (3, 58, 22), (0, 58, 25), (-5, 60, 25), (-10, 60, 28)),
}  # fmt: skip

#: Bend of a DIP joint per bend of its PIP joint: the tendons couple them (Rijpkema and Girard,
#: SIGGRAPH 1991).
DIP_PER_PIP = 2 / 3

_DEGREE = math.pi / 180
_SPREAD = [5, 8, 11, 14]  # columns of a gesture's 17 numbers
_MCP = [6, 9, 12, 15]
_PIP = [7, 10, 13, 16]


#: Self-penetration of the sphere proxies that soft skin allows, metres.
PENETRATION_TOLERANCE = 0.003


class PoseSampler(nn.Module):
    """Draws finger poses: gestures, what lies between them, and mixtures, with noise.

    Half of the poses lie between two gestures, a quarter are single gestures, and in a quarter
    every finger follows a gesture of its own. Noise is shared by the fingers in part; the DIP
    joint follows the PIP joint; all angles are brought within the hand's joint limits. Poses in
    which the hand runs into itself are drawn again.

    Args:
        hand: any hand model; what is needed of it is copied.
        tolerance: self-penetration of the sphere proxies that soft skin allows, metres.
    """

    gestures: Float[Tensor, "g 17"]
    rest: Float[Tensor, "21 3"]
    axes: Float[Tensor, "15 3 3"]
    limits: Float[Tensor, "15 3 2"]

    def __init__(self, hand: HandModel, tolerance: float = PENETRATION_TOLERANCE) -> None:
        super().__init__()
        self.tolerance = tolerance
        self.spheres = SphereProxies(hand)
        rows = [[angle for finger in fingers for angle in finger] for fingers in GESTURES.values()]
        buffers = {
            "gestures": torch.tensor(rows).to(hand.template) * _DEGREE,
            "rest": rest_hand(hand).joints[0],
            "axes": hand.joint_axes.clone(),
            "limits": hand.joint_limits.clone(),
        }
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer, persistent=False)

    def gesture(self, name: str) -> Float[Tensor, "16 3 3"]:
        """Return the pose of one of the ``GESTURES``, the wrist at identity."""
        row = self.gestures[list(GESTURES).index(name)][None]
        return pose_from_angles(self._angles(row), self.axes)[0]

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator) -> Float[Tensor, "count 16 3 3"]:
        """Return random poses, the wrist at identity; the same generator state, the same poses.

        Args:
            count: number of poses.
            generator: source of all randomness; may live on another device than the hand.
        """
        kept: list[Tensor] = []
        missing = count
        while missing > 0:
            # About three in four proposals survive.
            poses = self.propose(min(3 * missing // 2 + 16, 4096), generator)
            kept.append(poses[self.is_free(poses)][:missing])
            missing -= len(kept[-1])
        return torch.cat(kept) if kept else self.propose(0, generator)

    def is_free(self, poses: Float[Tensor, "b 16 3 3"]) -> Bool[Tensor, " b"]:
        """Say which poses do not run into themselves."""
        depth = self.spheres.penetration(posed_joints(poses, self.rest))
        return depth.amax(1) < self.tolerance

    def propose(self, count: int, generator: torch.Generator) -> Float[Tensor, "count 16 3 3"]:
        """Return random poses, self-penetrating ones included."""
        base = self._mix_gestures(count, generator)
        angles = self._angles(base + _noise(count, generator))
        wobble = _normal(angles.shape, generator).to(angles) * (1.5 * _DEGREE)
        low, high = self.limits.unbind(-1)
        return pose_from_angles((angles + wobble).clamp(low, high), self.axes)

    def _mix_gestures(self, count: int, generator: torch.Generator) -> Tensor:
        """Return ``(count, 17)`` numbers between those of two gestures, per finger or per hand."""
        device = generator.device
        shape = (2, count, len(FINGERS))
        choice = torch.randint(len(GESTURES), shape, generator=generator, device=device)
        share = torch.rand(shape[1:], generator=generator, device=device)
        kind = torch.rand(count, 1, generator=generator, device=device)
        together = kind < 0.75
        choice = torch.where(together, choice[..., :1], choice)
        share = torch.where(together, share[:, :1], share)
        share = torch.where(kind < 0.25, torch.zeros_like(share), share)
        columns = torch.tensor([0] * 5 + [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3, device=device)
        first, second = self.gestures.to(device)[
            choice[..., columns], torch.arange(17, device=device)
        ]
        mixed = torch.lerp(first, second, share[:, columns])
        # A ring finger on its own cannot stay straight beside a bent little one (RenderIH).
        coupled = torch.maximum(mixed[:, 13], 0.75 * mixed[:, 16])
        mixed[:, 13] = torch.where(together[:, 0], mixed[:, 13], coupled)
        return mixed

    def _angles(self, gestures: Float[Tensor, "b 17"]) -> Float[Tensor, "b 15 3"]:
        """Return (twist, spread, bend) of the 15 joints from gestures' numbers."""
        gestures = gestures.to(self.axes)
        angles = gestures.new_zeros(len(gestures), 15, 3)
        thumb = KINEMATIC_JOINTS.index("thumb_cmc") - 1
        angles[:, thumb] = gestures[:, :3]
        angles[:, thumb + 1 :, 2] = gestures[:, 3:5]
        for finger, (spread, mcp, pip) in zip(
            FINGERS[1:], zip(_SPREAD, _MCP, _PIP, strict=True), strict=True
        ):
            row = KINEMATIC_JOINTS.index(f"{finger}_mcp") - 1
            angles[:, row, 1] = gestures[:, spread]
            angles[:, row, 2] = gestures[:, mcp]
            angles[:, row + 1, 2] = gestures[:, pip]
            angles[:, row + 2, 2] = gestures[:, pip] * DIP_PER_PIP
        return angles


def _noise(count: int, generator: torch.Generator) -> Tensor:
    """Return ``(count, 17)`` radians: part shared by the bends, part of each its own."""
    noise, shared = _normal((count, 17), generator), _normal((count, 1), generator)
    noise *= 5 * _DEGREE
    noise[:, _SPREAD] *= 0.6
    noise[:, _MCP + _PIP] += shared * (6 * _DEGREE)
    return noise


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device)
