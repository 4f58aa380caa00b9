"""S2HAND's branches: what they promise of shapes, starts and geometry."""

import math
from functools import partial

import pytest
import torch
from tests.standins import standin_mano

from handrec.errors import UserError
from handrec.geometry.camera import project
from handrec.geometry.rotations import axis_angle_to_matrix
from handrec.hand.openhand import OpenHand
from handrec.models.backbones import TimmBackbone
from handrec.models.base import Features
from handrec.models.hourglass import Hourglass, WideningHourglass
from handrec.models.keypoints import Found, soft_argmax
from handrec.models.s2hand import S2HandRegressor, pose_from_components
from handrec.models.s2hand_appearance import MEAN_COLOUR, AppearanceHead, draw_hand
from handrec.render.lights import Harmonics, Light
from handrec.render.torch_reference import TorchRasterizer
from handrec.types import Camera


@pytest.fixture(scope="module")
def hand():
    return OpenHand()


@pytest.fixture(scope="module")
def backbone():
    return TimmBackbone("resnet10t", 64, fine_levels=3)


def camera(count=4):
    intrinsics = torch.tensor([[100.0, 0, 32], [0, 100, 32], [0, 0, 1]])
    return Camera(intrinsics.expand(count, 3, 3), (64, 64))


def features(backbone, size=1.0, count=4):
    pooled = size * torch.randn(count, backbone.channels)
    return Features(torch.randn(count, backbone.channels, 4, 4), pooled)


@pytest.mark.parametrize("pose", ["components", "sixd"])
@pytest.mark.parametrize("rotation", ["axis_angle", "sixd"])
@pytest.mark.parametrize("view", ["perspective", "weak"])
def test_the_hand_is_scaled_about_the_decoded_one(hand, backbone, pose, rotation, view):
    torch.manual_seed(0)
    regressor = S2HandRegressor(backbone, hand, pose=pose, rotation=rotation, camera=view)
    found = regressor.regress(features(backbone, 3.0), camera())
    decoded = hand.decode(found.pose, found.betas, torch.zeros(4, 3))
    expected = found.size[:, None, None] * decoded.vertices + found.translation[:, None]
    torch.testing.assert_close(found.vertices, expected)
    torch.testing.assert_close(found.keypoints_2d, project(found.joints, camera().intrinsics))
    unit = found.pose @ found.pose.mT
    torch.testing.assert_close(unit, torch.eye(3).expand_as(unit), atol=1e-5, rtol=0)
    assert found.size.tolist() == pytest.approx([0.95] * 4, abs=0.01)


def test_starts(hand, backbone):
    torch.manual_seed(0)
    base = (0.3, -0.2, 0.5)
    seen = features(backbone)
    regressor = S2HandRegressor(backbone, hand, base_rotation=base)
    near = regressor.regress(seen, camera())
    torch.testing.assert_close(
        near.translation, torch.tensor([0, 0, 0.65]).expand(4, 3), atol=0.01, rtol=0
    )
    angle = (near.pose[:, 0] @ axis_angle_to_matrix(torch.tensor(base)).T).diagonal(0, 1, 2).sum(1)
    assert ((angle - 1) / 2).clamp(max=1).acos().max() < 0.6
    weak = S2HandRegressor(backbone, hand, camera="weak").regress(seen, camera())
    width = weak.keypoints_2d.amax(1) - weak.keypoints_2d.amin(1)
    assert 20 < width.amax() < 64


def test_mean_shape_has_no_gradient(hand, backbone):
    regressor = S2HandRegressor(backbone, hand, mean_shape=True)
    assert not regressor.regress(features(backbone, count=2), camera(2)).betas.any()


def test_the_regressor_reads_cells_and_lifts_keypoints(hand, backbone):
    torch.manual_seed(0)
    regressor = S2HandRegressor(backbone, hand, cells=2, lift=True).eval()
    seen, found = features(backbone), (64 * torch.rand(4, 21, 2)).requires_grad_()
    before = regressor.regress(seen, camera(), found)
    before.vertices.sum().backward()
    assert found.grad is None  # the 3D branch does not teach the 2D branch through it
    turned = seen._replace(grid=seen.grid.flip(3))
    for other in (
        regressor.regress(turned, camera(), found),
        regressor.regress(seen, camera(), found.flip(1)),
    ):
        assert not torch.allclose(other.pose, before.pose, atol=1e-4)
    with pytest.raises(UserError, match="there is no 2D branch"):
        regressor.regress(seen, camera())


def test_components_are_those_of_the_model(hand):
    coefficients = torch.randn(2, 30)
    torch.testing.assert_close(
        pose_from_components(hand, coefficients), hand.pose_from_components(coefficients)
    )
    mano = standin_mano()
    vectors = mano.mean_axis_angle + coefficients @ mano.pose_components[:30]
    expected = axis_angle_to_matrix(vectors.view(2, 15, 3))
    torch.testing.assert_close(pose_from_components(mano, coefficients)[:, 1:], expected)


@pytest.mark.parametrize("texture", ["faces", "atlas"])
@pytest.mark.parametrize("light", ["directional", "harmonics"])
def test_appearance(hand, backbone, texture, light):
    torch.manual_seed(0)
    head = AppearanceHead(backbone, hand, texture=texture, light=light, atlas_size=16)
    look = head.look(backbone.encode(torch.rand(2, 3, 64, 64)))
    shape = (2, len(hand.faces), 3) if texture == "faces" else (2, 3, 16, 16)
    assert look.texture.shape == shape
    colours = look.texture if texture == "faces" else look.texture.flatten(2).mT
    torch.testing.assert_close(
        colours, torch.tensor(MEAN_COLOUR).expand_as(colours), atol=0.01, rtol=0
    )
    assert isinstance(look.light, Light if light == "directional" else Harmonics)
    loss = sum(part.square().sum() for part in (look.texture, *look.light))
    loss.backward()
    idle = [n for n, p in head.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


def test_a_lit_face_has_its_albedo_times_the_light(hand):
    """By hand: albedo_f * (ambient + directional * max(0, n_f . d)), whatever the face."""
    turn = axis_angle_to_matrix(torch.tensor([[0.0, 0.0, math.pi / 2]]))
    pose = torch.cat([turn[:, None], torch.eye(3).expand(1, 15, 3, 3)], dim=1)
    vertices = hand.decode(pose, torch.zeros(1, 10), torch.tensor([[0, 0.08, 0.5]])).vertices
    colours = torch.rand(1, len(hand.faces), 3, generator=torch.Generator().manual_seed(0))
    direction = torch.tensor([[0.2, -0.3, -1.0]])
    light = Light(torch.full((1, 3), 0.3), torch.tensor([[0.2, 0.4, 0.6]]), 5 * direction)
    drawn = draw_hand(TorchRasterizer(), hand, vertices, colours, light, camera(1))
    face = drawn.face_index[0]
    row, column = (face >= 0).nonzero()[::50].unbind(1)
    assert len(row) > 5
    for y, x in zip(row, column, strict=True):
        a, b, c = vertices[0, hand.faces[face[y, x]]]
        normal = torch.linalg.cross(b - a, c - a)
        normal = normal / normal.norm()
        normal = -normal if normal @ a > 0 else normal
        cosine = max(0.0, float(normal @ direction[0] / direction.norm()))
        gain = 0.3 + torch.tensor([0.2, 0.4, 0.6]) * cosine
        torch.testing.assert_close(
            drawn.image[0, :, y, x], colours[0, face[y, x]] * gain, atol=1e-4, rtol=0
        )


@pytest.mark.parametrize("edges", [True, False])
def test_edges_decide_whether_outlines_pull(hand, edges):
    vertices = (hand.template + torch.tensor([0, 0.0, 0.5]))[None].requires_grad_()
    white = torch.ones(1, len(hand.faces), 3)
    light = Light(torch.ones(1, 3), torch.zeros(1, 3), torch.tensor([[0.0, 0, -1]]))
    drawn = draw_hand(TorchRasterizer(), hand, vertices, white, light, camera(1), edges=edges)
    gradient = None
    if drawn.image.requires_grad:
        (gradient,) = torch.autograd.grad(drawn.image.sum(), vertices, allow_unused=True)
    assert (gradient is not None and bool(gradient.any())) is edges


def test_fine_maps_of_a_convolutional_network():
    backbone = TimmBackbone("resnet18", 64, fine_levels=3).eval()
    image = torch.rand(2, 3, 64, 64)
    encoded = backbone.encode(image)
    assert [tuple(m.shape[1:]) for m in encoded.fine] == [(256, 4, 4), (128, 8, 8), (64, 16, 16)]
    assert backbone.fine_channels == (256, 128, 64)
    plain = TimmBackbone("resnet18", 64).eval()
    plain.load_state_dict(backbone.state_dict())
    torch.testing.assert_close(plain.encode(image).grid, encoded.grid)
    with pytest.raises(UserError, match="fine_levels is for convolutional"):
        TimmBackbone("vit_tiny_patch16_224", 64, fine_levels=2)
    with pytest.raises(UserError, match="reduced by"):
        TimmBackbone("resnet18", 64, fine_levels=7)


def test_appearance_head_reads_the_grid_where_nothing_is_finer(hand):
    backbone = TimmBackbone("resnet10t", 64)
    head = AppearanceHead(backbone, hand)
    look = head.look(Features(torch.rand(2, backbone.channels, 2, 2), torch.rand(2, 1)))
    assert look.texture.shape == (2, len(hand.faces), 3)


@pytest.mark.parametrize("upsample", [False, True])
def test_cells_are_where_the_soft_argmax_reads_them(upsample):
    """A peak in the very corner too, where cells and enlarged maps lie farthest apart."""
    for column, row in ((0, 0), (2, 5), (7, 6)):
        maps = torch.full((1, 21, 7, 8), -1e4)
        maps[..., row, column] = 1e4
        keypoints = soft_argmax(maps, 4, upsample=upsample)
        found = Found(keypoints[None], maps[None], 4, upsample=upsample)
        cell = torch.tensor([float(column), row])
        half_a_pixel = 0.5 / 4  # peaks of enlarged maps are at pixels
        assert (found.to_cells(keypoints) - cell).abs().max() < half_a_pixel


@pytest.mark.parametrize("upsample", [True, False])
def test_soft_argmax_finds_a_peak_in_pixels(upsample):
    maps = torch.zeros(1, 2, 16, 12)
    maps[0, 0, 3, 5] = maps[0, 1, 10, 2] = 200.0
    found = soft_argmax(maps, 4, upsample=upsample)[0]
    expected = torch.tensor([[22.0, 14.0], [10.0, 42.0]])  # centres of the cells
    torch.testing.assert_close(found, expected, atol=2.0 if upsample else 1e-3, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert soft_argmax(maps.bfloat16(), 4, upsample=upsample).dtype == torch.float32


@pytest.mark.parametrize("size", [(64, 64), (56, 40)])
@pytest.mark.parametrize(
    ("build", "stacks"),
    [
        (partial(Hourglass, stacks=2, width=16, depth=2, blocks=1), 2),
        (partial(WideningHourglass, widths=(8, 16, 24), blocks=1), 1),
    ],
)
def test_hourglasses_of_any_size(build, stacks, size):
    torch.manual_seed(0)
    network = build()
    found = network.find(torch.rand(2, 3, *size))
    assert found.keypoints.shape == (stacks, 2, 21, 2)
    assert found.maps.shape == (stacks, 2, 21, 16, 12 if size[1] == 40 else 16)
    assert found.stride == 4
    assert found.warp is None
    found.keypoints.square().sum().backward()
    idle = [n for n, p in network.named_parameters() if p.grad is None]
    assert idle == []


def test_channels_that_cannot_be_halved_are_refused():
    with pytest.raises(UserError, match="width=6: must be a multiple of 4"):
        Hourglass(1, 6, 2, 1)
    with pytest.raises(UserError, match=r"widths=\[8, 15\]: must be even"):
        WideningHourglass((8, 15))
