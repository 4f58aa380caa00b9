import numpy as np
import pytest
import torch
import torch.nn.functional as F

from handrec.errors import UserError
from handrec.geometry.rotations import interleaved_6d_to_matrix
from handrec.hand.openhand import OpenHand
from handrec.models.base import Backbone, Features
from handrec.models.iterative import IterativeRegressor
from handrec.models.pymaf import PointMLP, PyMAF, regular_grid, sample_points
from handrec.models.state import HandState, decode_state, mean_state, steadied
from handrec.types import Camera


@pytest.fixture(scope="module")
def hand():
    return OpenHand()


@pytest.fixture
def camera():
    intrinsics = torch.tensor([[300.0, 0, 60], [0, 300, 40], [0, 0, 1]])
    return Camera(intrinsics.expand(2, 3, 3), (64, 64))


class Bare(Backbone):
    """The channels of a backbone, without one."""

    def __init__(self, channels, fine_channels=()):
        super().__init__()
        self.channels, self.fine_channels = channels, fine_channels

    def encode(self, image):
        raise NotImplementedError


def head_and_features(hand, fine=()):
    torch.manual_seed(0)
    backbone = Bare(48, tuple(channels for channels, _ in fine))
    head = PyMAF(backbone, hand, map_channels=32, grid=5, points=20, width=64).eval()
    maps = tuple(torch.randn(2, channels, size, size) for channels, size in fine)
    return head, Features(torch.randn(2, 48, 4, 4), torch.randn(2, 48), maps)


def test_point_mlp_has_the_published_number_of_parameters():
    assert sum(p.numel() for p in PointMLP(256).parameters()) == 59_141


def test_point_mlp_equals_pointwise_convolutions_flattened_by_channel():
    torch.manual_seed(0)
    mlp, samples = PointMLP(16), torch.randn(2, 7, 16)
    first, second, last = ((layer.weight[..., None], layer.bias) for layer in mlp.layers)
    x = samples.mT
    y = F.leaky_relu(F.conv1d(x, *first), 0.01)
    y = F.leaky_relu(F.conv1d(torch.cat([y, x], 1), *second), 0.01)
    expected = F.relu(F.conv1d(torch.cat([y, x], 1), *last)).reshape(2, -1)
    torch.testing.assert_close(mlp(samples), expected)


def test_more_points_than_vertices_are_refused(hand):
    with pytest.raises(UserError, match=r"PyMAF: 5000 points of a mesh of \d+ vertices"):
        PyMAF(Bare(48), hand, points=5000)


def test_published_sizes(hand):
    head = PyMAF(Bare(384), hand)
    sizes = [regressor.hidden[0].in_features for regressor in head.regressors]
    assert sizes == [2205 + 109, 975 + 109, 975 + 109]


def test_maps_double_with_every_iteration(hand):
    head, features = head_and_features(hand)
    assert [m.shape[-1] for m in head.pyramid(features)] == [4, 8, 16]


def test_finer_maps_of_the_backbone_are_seen(hand):
    head, features = head_and_features(hand, fine=((24, 8), (16, 16)))
    before = head.pyramid(features)
    changed = features._replace(fine=(features.fine[0], torch.zeros(2, 16, 16, 16)))
    after = head.pyramid(changed)
    assert torch.equal(after[1], before[1])
    assert not torch.equal(after[2], before[2])


def test_starts_at_the_mean_hand_and_every_iteration_counts(hand, camera):
    head, features = head_and_features(hand)
    estimates = head.regress(features, camera)
    assert len(estimates.iterations) == 3
    assert estimates.dense.shape == (2, 4, 16, 16)
    mean = decode_state(mean_state(hand, 2), hand, camera)
    for estimate in estimates.iterations:
        # the residuals start small, at 1 % of Xavier's gain
        assert (estimate.vertices - mean.vertices).norm(dim=-1).mean() < 0.02
        assert not torch.equal(estimate.pose, mean.pose)


def test_an_iteration_sends_no_gradient_to_the_regressor_before_it(hand, camera):
    head, features = head_and_features(hand)
    head.regress(features, camera).iterations[2].vertices.sum().backward()
    assert head.regressors[2].residual.weight.grad.abs().sum() > 0
    assert all(p.grad is None for i in (0, 1) for p in head.regressors[i].parameters())
    assert head.pyramid.first.weight.grad.abs().sum() > 0


def test_sampling_looks_where_pixels_lie():
    """A map that holds its own cell centres gives back the points it is sampled at."""
    size = 8
    centres = (torch.arange(size) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    points = torch.rand(1, 50, 2) * 1.6 - 0.8
    sampled = sample_points(torch.stack([x, y])[None], points)
    torch.testing.assert_close(sampled, points, atol=1e-5, rtol=0)


def test_samples_of_a_hand_thrown_far_off_are_finite():
    points = torch.tensor([[[1e9, -1e9], [0.0, 0.0]]])
    assert sample_points(torch.randn(1, 3, 4, 4), points).isfinite().all()


def test_grid_spans_the_crop_row_by_row():
    grid = regular_grid(21)
    assert grid.shape == (441, 2)
    torch.testing.assert_close(grid[:2], torch.tensor([[-1.0, -1.0], [-0.9, -1.0]]))
    torch.testing.assert_close(grid[-1], torch.tensor([1.0, 1.0]))


def test_mean_state_is_a_hand_that_fills_the_crop(hand, camera):
    mean = decode_state(mean_state(hand, 2), hand, camera)
    torch.testing.assert_close(mean.pose, hand.mean_pose.expand(2, -1, -1, -1), atol=1e-5, rtol=0)
    # the wrist of a centred state lies in the middle of the crop, wherever the principal point is
    torch.testing.assert_close(mean.keypoints_2d[:, 0], torch.full((2, 2), 32.0), atol=1.5, rtol=0)
    extent = mean.keypoints_2d.amax(1) - mean.keypoints_2d.amin(1)
    assert 20 < extent.amax() < 64


def test_state_adds_in_float32():
    state = HandState(torch.ones(1, 96), torch.zeros(1, 10), torch.zeros(1, 3))
    moved = state.plus(torch.full((1, 109), 1e-3, dtype=torch.bfloat16))
    assert moved.pose.dtype == torch.float32
    assert moved.pose[0, 0] != 1


def test_iterative_regressor_is_one_layer_applied_again(hand, camera):
    torch.manual_seed(0)
    head = IterativeRegressor(Bare(48), hand, iterations=2, width=32)
    features = Features(torch.zeros(2, 48, 1, 1), torch.randn(2, 48))
    once = IterativeRegressor(Bare(48), hand, iterations=1, width=32)
    once.load_state_dict(head.state_dict())
    first = once.regress(features, camera).iterations[-1]
    estimates = head.regress(features, camera)
    torch.testing.assert_close(estimates.iterations[0].vertices, first.vertices)
    assert not torch.equal(estimates.iterations[1].vertices, first.vertices)
    assert estimates.dense is None


def rotation_gradient(sixd, through):
    given = sixd.clone().requires_grad_()
    slope = torch.randn(3, 3, generator=torch.Generator().manual_seed(3)).to(sixd)
    (interleaved_6d_to_matrix(through(given)) * slope).sum().backward()
    return given.grad


def test_rotations_that_nearly_vanish_do_not_drown_a_batch():
    """First column short, columns nearly parallel: the gradient's direction, not its size."""
    generator = torch.Generator().manual_seed(0)
    sixd = torch.randn(2000, 6, generator=generator, dtype=torch.float64)
    sixd[:500, 0::2] *= 1e-3
    sixd[500:1000, 1::2] = sixd[500:1000, 0::2] + 1e-3 * sixd[500:1000, 1::2]
    torch.testing.assert_close(steadied(sixd), sixd, rtol=1e-12, atol=0)
    exact, found = (rotation_gradient(sixd, through) for through in (lambda x: x, steadied))
    assert exact.norm(dim=1)[:1000].max() > 1e3
    assert found.norm(dim=1).max() < 5
    torch.testing.assert_close(
        F.cosine_similarity(found, exact), torch.ones(2000, dtype=sixd.dtype)
    )
    columns = sixd.view(2000, 3, 2)
    heights = [
        np.abs(np.linalg.qr(columns[..., order].numpy()).R[:, 1, 1]) for order in ([0, 1], [1, 0])
    ]
    factor = torch.from_numpy(np.minimum(np.minimum(*heights), 1.0))
    assert (factor == 1).any()
    torch.testing.assert_close(found, factor[:, None] * exact)
