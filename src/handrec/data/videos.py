"""Random videos of one hand: smooth trajectories of pose and view at human speeds.

A hand goes from one key to the next along minimum-jerk curves, as people reach and gesture (T.
Flash and N. Hogan, J. Neuroscience 5, 1985): it starts and ends each movement at rest. Fingers,
view and place have keys of their own, so they seldom rest at once. A curve's peak speed is 15/8 of
its mean speed, which bounds what the steps and durations below give: 3.4 rad/s of the wrist, 0.9
m/s of the hand; fingers closing from flat to fist, in 0.4 s at the fastest, reach 9 rad/s.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from handrec.data.scenes import (
    Scenes,
    Uniform,
    Views,
    cut,
    place,
    rotation_of,
    sample_betas,
    sample_crops,
)
from handrec.hand.anatomy import joint_angles, pose_from_angles
from handrec.hand.base import HandModel
from handrec.hand.sampler import PoseSampler
from handrec.hand.skinning import posed_joints

#: Raise whenever the same seed gives another video: caches are keyed on it.
VIDEOS_VERSION = 1

FRAME_RATE = 30.0

#: Shortest and longest time between two keys, seconds: of the fingers, of view and place.
_GESTURE, _MOVE = (0.4, 1.2), (0.5, 1.5)
#: Farthest from one key to the next.
_LEAN, _TURN, _REACH = 0.9, 0.9, 0.25  # radians, radians, metres
#: Next gestures that are tried for a way on which the hand does not run into itself.
_CANDIDATES = 6
#: Frames over which a crop follows the hand, as a tracker's box does.
_SMOOTHING = 9


def sample_videos(hand: HandModel, count: int, frames: int, seed: int, views: Views) -> Scenes:
    """Return ``count`` videos of ``frames`` scenes each, one after the other, numbered from 0.

    Shape, crop margin and crop shift are constant in a video; everything else but the full
    picture's camera moves. No frame leaves the views.

    Args:
        hand: the model whose poses, shapes and surface are used.
        count: of the videos.
        frames: of each video, 30 a second.
        seed: of all randomness.
        views: from which the hands are seen.
    """
    generator = torch.Generator().manual_seed(seed)
    draw = Uniform(generator)
    pose = _fingers(hand, count, frames, generator)
    lean, turn = _viewpoints(count, frames, views, draw)
    pose[:, :, 0] = rotation_of(lean.flatten(0, 1), turn.flatten()).unflatten(0, (count, frames))
    centre = _places(count, frames, draw)
    betas = sample_betas(count, draw).repeat_interleave(frames, dim=0)
    margin, shift = (x.repeat_interleave(frames, dim=0) for x in sample_crops(count, draw))
    pose = pose.flatten(0, 1)
    translation, boxes = place(hand, pose, betas, centre.flatten(0, 1))
    followed = _follow(boxes.flatten(1).unflatten(0, (count, frames)))
    intrinsics, crop_to_image = cut(followed.reshape(-1, 2, 2), margin, shift)
    sequence = torch.arange(count).repeat_interleave(frames)
    return Scenes(
        pose, betas, translation, intrinsics, crop_to_image, sequence,
        torch.arange(frames).repeat(count), draw.seeds(count * frames),
    )  # fmt: skip


def minimum_jerk(
    keys: Float[Tensor, "s k d"], times: Float[Tensor, "s k"], frames: int
) -> Float[Tensor, "s {frames} d"]:
    """Return curves through keys with two continuous derivatives, at rest in every key.

    Args:
        keys: of each sequence.
        times: of the keys, frames, ascending; the first is at or before 0, the last at or after
            the last frame.
        frames: of the curves.
    """
    now = torch.arange(frames, dtype=times.dtype).expand(len(times), -1).contiguous()
    after = torch.searchsorted(times.contiguous(), now, right=True).clamp(1, times.shape[1] - 1)
    start, end = times.gather(1, after - 1), times.gather(1, after)
    share = ((now - start) / (end - start)).clamp(0, 1)[..., None]
    weight = share**3 * (10 - 15 * share + 6 * share**2)
    index = after[..., None].expand(-1, -1, keys.shape[2])
    return torch.lerp(keys.gather(1, index - 1), keys.gather(1, index), weight)


def _key_times(
    count: int, frames: int, seconds: tuple[float, float], draw: Uniform
) -> Float[Tensor, "s k"]:
    """Return times of enough keys, frames; the first key lies up to one step before frame 0."""
    shortest, longest = (FRAME_RATE * s for s in seconds)
    steps = draw(shortest, longest, count, math.ceil(frames / shortest) + 1)
    first = -draw(0.0, 1.0, count, 1) * steps[:, :1]
    return torch.cat([first, first + steps.cumsum(1)], dim=1)


def _fingers(
    hand: HandModel, count: int, frames: int, generator: torch.Generator
) -> Float[Tensor, "s t 16 3 3"]:
    """Return finger poses that go from gesture to gesture within the joint limits.

    The angles are interpolated: limits are intervals, so nothing in between leaves them. Of some
    next gestures the one is taken on whose way the hand runs into itself least.
    """
    sampler = PoseSampler(hand)
    times = _key_times(count, frames, _GESTURE, Uniform(generator))
    key = joint_angles(sampler.sample(count, generator), sampler.axes)
    keys = [key]
    for _ in range(times.shape[1] - 1):
        poses = sampler.sample(count * _CANDIDATES, generator)
        candidates = joint_angles(poses, sampler.axes).unflatten(0, (count, _CANDIDATES))
        depth = torch.stack(
            [_depth(sampler, torch.lerp(key[:, None], candidates, s)) for s in (0.25, 0.5, 0.75)]
        ).amax(0)
        best = depth.clamp(min=sampler.tolerance).add(1e-6 * torch.arange(_CANDIDATES)).argmin(1)
        key = candidates[torch.arange(count), best]
        keys.append(key)
    angles = minimum_jerk(torch.stack(keys, dim=1).flatten(2), times, frames)
    poses = pose_from_angles(angles.reshape(-1, 15, 3), sampler.axes)
    fingers: Tensor = poses.unflatten(0, (count, frames))
    return fingers


def _depth(sampler: PoseSampler, angles: Float[Tensor, "s c 15 3"]) -> Float[Tensor, "s c"]:
    """Return how deep the hand runs into itself in each pose, metres."""
    poses = pose_from_angles(angles.flatten(0, 1), sampler.axes)
    depth = sampler.spheres.penetration(posed_joints(poses, sampler.rest)).amax(1)
    return depth.view(angles.shape[:2])


def _viewpoints(
    count: int, frames: int, views: Views, draw: Uniform
) -> tuple[Float[Tensor, "s t 2"], Float[Tensor, "s t"]]:
    """Return how hands lean and turn; a video keeps to the palm's side or to the back's.

    Leans fill a disc and turns an interval: both are convex, so no frame leaves the views.
    """
    times = _key_times(count, frames, _MOVE, draw)
    number = times.shape[1]
    tilt = torch.acos(draw(math.cos(math.radians(views.cone)), 1.0, count, number, 1))
    azimuth = draw(-math.pi, math.pi, count, number, 1)
    leans = _stay_near(tilt * torch.cat([azimuth.cos(), azimuth.sin()], dim=2), _LEAN)
    reach = math.radians(views.spin)
    turns = _stay_near(draw(-reach, reach, count, number, 1), _TURN)
    side = math.pi * (draw(0.0, 1.0, count, 1) < 0.5)
    turn = minimum_jerk(turns, _key_times(count, frames, _MOVE, draw), frames)
    return minimum_jerk(leans, times, frames), turn[..., 0] + side


def _places(count: int, frames: int, draw: Uniform) -> Float[Tensor, "s t 3"]:
    """Return where hands are: in the same box as in single pictures."""
    times = _key_times(count, frames, _MOVE, draw)
    depth = draw(0.35, 0.9, count, times.shape[1], 1)
    aside = draw(-0.25, 0.25, count, times.shape[1], 2) * depth
    return minimum_jerk(_stay_near(torch.cat([aside, depth], dim=2), _REACH), times, frames)


def _stay_near(keys: Float[Tensor, "s k d"], farthest: float) -> Float[Tensor, "s k d"]:
    """Return keys that go towards the given ones, by no more than so much at a time."""
    near = [keys[:, 0]]
    for key in keys[:, 1:].unbind(1):
        step = key - near[-1]
        length = torch.linalg.vector_norm(step, dim=1, keepdim=True).clamp(min=1e-6)
        near.append(near[-1] + step * (farthest / length).clamp(max=1))
    return torch.stack(near, dim=1)


def _follow(boxes: Float[Tensor, "s t 4"]) -> Float[Tensor, "s t 4"]:
    """Return boxes that follow given ones smoothly (a Hann window over time)."""
    window = torch.hann_window(_SMOOTHING + 2, periodic=False)[1:-1]
    ends = torch.nn.functional.pad(boxes.mT, (_SMOOTHING // 2, _SMOOTHING // 2), mode="replicate")
    kernel = (window / window.sum()).view(1, 1, -1)
    smooth = torch.nn.functional.conv1d(ends.flatten(0, 1)[:, None], kernel)
    return smooth.view(len(boxes), 4, -1).mT
