"""The gradient of every loss of S2HAND and S2HAND(V), in float64, against finite differences."""

import inspect

import pytest
import torch

from handrec.geometry.rotations import axis_angle_to_matrix
from handrec.hand.openhand import OpenHand
from handrec.losses import photometric, s2hand, temporal

#: Public functions that are parts of losses, or prepare what they are given.
PARTS = {
    "to_published_pixels", "axis_angle_limits", "joint_weights", "middle_phalanx", "confident",
    "texture_confidence", "cotangent_weights", "find_clips", "full_precision", "straightened",
}  # fmt: skip


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


def losses():
    """Every loss by name: the function of what it pulls on, and where to take its gradient."""
    u, c, w = 224 * draw(3, 21, 2, seed=1), draw(3, 21, seed=2), draw(3, seed=3)
    p, h = 224 * draw(3, 21, 2, seed=4), 224 * draw(2, 3, 21, 2, seed=5)
    p[0] = u[0] + draw(21, 2, seed=6)  # some below the knee
    vectors, hand = draw(3, 16, 3, seed=7) - 0.5, OpenHand()
    limits = hand.joint_limits.double()
    image, mask = draw(3, 3, 16, 14, seed=8), (draw(3, 1, 16, 14, seed=9) > 0.5).double()
    rendered, offsets = draw(3, 3, 16, 14, seed=10), 2 * draw(3, 40, 3, seed=11) - 1
    offsets[:, :3] *= 4  # some outliers
    clips = temporal.find_clips(torch.tensor([0, 0, 0, 0, 5]), torch.tensor([0, 1, 3, 4, 0]))
    frames, k = draw(5, 4, 3, seed=12) - 0.5, draw(5, seed=13)
    quaternions = torch.nn.functional.normalize(draw(6, 4, seed=14) - 0.5, dim=-1)
    ends, time = quaternions.flip(0), draw(6, seed=15)
    grid = torch.nn.functional.pad(torch.cartesian_prod(*[torch.arange(3.0)] * 2), (0, 1)).double()
    corners = [(r * 3 + c) for r in range(2) for c in range(2)]
    faces = torch.tensor([t for i in corners for t in ((i, i + 1, i + 3), (i + 1, i + 4, i + 3))])
    laplacian = photometric.Laplacian(grid, faces)
    table = s2hand.axis_angle_limits().double()
    return {
        "length": (lambda x: s2hand.length(x).sum(), p),
        "piecewise_norm": (lambda x: s2hand.piecewise_norm(x).sum(), 12 * draw(30)),
        "keypoint_loss": (lambda x: s2hand.keypoint_loss(x, u, c), p),
        "bone_direction_loss": (lambda x: s2hand.bone_direction_loss(x, u, c), p),
        "heatmap_loss": (lambda x: s2hand.heatmap_loss(x, u, c), h),
        "likelihood_loss": (lambda x: s2hand.likelihood_loss(x, u / 56, c), draw(2, 3, 21, 4, 4)),
        "consistency_loss": (lambda x, y: s2hand.consistency_loss(x, y, w), p, u),
        "axis_angle_limit_loss": (
            lambda x: s2hand.axis_angle_limit_loss(axis_angle_to_matrix(x), table, w), vectors,
        ),
        "anatomical_limit_loss": (
            lambda x: s2hand.anatomical_limit_loss(
                axis_angle_to_matrix(x), hand.joint_axes.double(), limits, w
            ),
            vectors,
        ),
        "bone_length_loss": (lambda x: s2hand.bone_length_loss(x, 0.03, w), 0.2 * draw(3, 21, 3)),
        "shape_prior": (lambda x: s2hand.shape_prior(x, w), draw(3, 10) - 0.5),
        "pixel_loss": (lambda x: photometric.pixel_loss(x, image, mask, w), rendered),
        "ssim_map": (lambda x, y: photometric.ssim_map(x, y).sum(), rendered, image),
        "ssim_loss": (lambda x: photometric.ssim_loss(x, image, mask, w), rendered),
        "mean_colour_loss": (lambda x: photometric.mean_colour_loss(x, image, mask, w), rendered),
        "texture_regularity_loss": (
            lambda x: photometric.texture_regularity_loss(x, w), offsets,
        ),
        "Laplacian": (lambda x: laplacian.loss(x, w), grid + 0.2 * draw(3, 9, 3)),
        "slerp": (lambda x, y: temporal.slerp(x, y, time), quaternions, ends),
        "motion_loss": (
            lambda x: temporal.motion_loss(axis_angle_to_matrix(x), clips, k), frames,
        ),
        "follow_loss": (
            lambda x: temporal.follow_loss(
                axis_angle_to_matrix(x), axis_angle_to_matrix(0 * x), clips, k
            ), frames,
        ),
        "smooth_loss": (lambda x: temporal.smooth_loss(x, clips, k), frames),
        "spread_loss": (lambda x: temporal.spread_loss(x, clips, k), frames),
        "within_share_loss": (lambda x: temporal.within_share_loss(x, clips, k), frames),
    }  # fmt: skip


LOSSES = losses()


@pytest.mark.parametrize("name", LOSSES)
def test_gradient(name):
    function, *at = LOSSES[name]
    at = [x.clone().requires_grad_() for x in at]
    assert torch.autograd.gradcheck(function, at, fast_mode=True)
    gradients = torch.autograd.grad(function(*at).sum(), at)
    assert all(gradient.any() for gradient in gradients)  # there is something to check


def test_no_loss_is_left_out():
    found = set()
    for module in (s2hand, photometric, temporal):
        for name, thing in inspect.getmembers(module):
            own = getattr(thing, "__module__", "") == module.__name__ and not name.startswith("_")
            if own and (inspect.isfunction(thing) or name == "Laplacian"):
                found.add(name)
    assert found - PARTS == LOSSES.keys()
