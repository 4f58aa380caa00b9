"""The soft silhouette against its formula in float64, and its pull from afar."""

import pytest
import torch

import handrec.render.torch_reference as reference
from handrec.hand.openhand import OpenHand
from handrec.render.base import Attribute
from handrec.render.soft import soft_silhouette
from handrec.render.torch_reference import TorchRasterizer
from handrec.types import Camera
from tests.conformance.test_rasterizers import look, odd_scenes, soup, sphere


def brute_force(vertices, faces, camera, sigma):
    """Multiply over all faces at all pixels, in float64."""
    height, width = camera.image_size
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    centre = torch.stack([x, y], dim=-1).view(-1, 2).double() + 0.5
    pictures = []
    for points, intrinsics in zip(vertices.double(), camera.intrinsics.double(), strict=True):
        pixels = points @ intrinsics.T
        pixels = pixels[:, :2] / pixels[:, 2:]
        empty = torch.ones(len(centre), dtype=torch.float64)
        for a, b, c in pixels[faces]:
            distances, signs = [], []
            for start, end in ((a, b), (b, c), (c, a)):
                edge, offset = end - start, centre - start
                along = ((offset @ edge) / (edge @ edge)).clamp(0, 1)
                distances.append((offset - along[:, None] * edge).square().sum(-1))
                signs.append(edge[0] * offset[:, 1] - edge[1] * offset[:, 0])
            signs = torch.stack(signs)
            inside = (signs > 0).all(0) | (signs < 0).all(0)
            distance = torch.stack(distances).amin(0) * (2 / min(height, width)) ** 2
            distance = torch.where(inside, -distance, distance)
            empty = empty * (1 - torch.sigmoid(-distance / sigma))
        pictures.append(1 - empty.view(height, width))
    return torch.stack(pictures)[:, None]


@pytest.mark.parametrize("sigma", [1e-4, 3e-3])
def test_is_the_formula(sigma):
    vertices, faces = soup(3)
    camera = look(2, 12.0, (20, 26))
    actual = soft_silhouette(vertices, faces, camera, sigma=sigma)
    expected = brute_force(vertices, faces, camera, sigma)
    # Each of the faces beyond its reach leaves out up to 1e-4.
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=15e-4)
    assert 0.1 < expected.mean() < 0.9


def test_the_gradient_is_the_formulas():
    vertices, faces = soup(8)
    camera, weight = look(2, 25.0, (20, 26)), torch.rand(2, 1, 20, 26).double()
    inputs = [x.clone().requires_grad_() for x in (vertices, vertices.double())]
    actual = soft_silhouette(inputs[0], faces, camera, sigma=3e-3)
    expected = brute_force(inputs[1], faces, camera, 3e-3)
    ours, theirs = (
        torch.autograd.grad((picture.double() * weight).sum(), x)[0]
        for picture, x in zip((actual, expected), inputs, strict=True)
    )
    assert (ours - theirs).norm() < 0.01 * theirs.norm()


def test_small_chunks_change_nothing(monkeypatch):
    vertices, faces = soup(15)
    results = []
    for size in (1 << 17, 300):
        monkeypatch.setattr(reference, "FRAGMENTS_AT_ONCE", size)
        moving = vertices.clone().requires_grad_()
        picture = soft_silhouette(moving, faces, look(2, 25.0, (20, 26)))
        picture.square().sum().backward()
        results.append((picture.detach(), moving.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_little_blur_is_the_hard_mask():
    vertices, faces = sphere(1)
    hard = TorchRasterizer().render(
        vertices, faces, {"x": Attribute(vertices)}, look(), lambda maps: maps["x"]
    )
    soft = soft_silhouette(vertices, faces, look(), sigma=1e-7)
    assert ((soft > 0.5) != (hard.mask > 0.5)).float().mean() < 0.002


@pytest.mark.parametrize(("vertices", "faces"), odd_scenes())
def test_odd_faces_give_finite_gradients(vertices, faces):
    vertices = vertices.clone().requires_grad_()
    picture = soft_silhouette(vertices, faces, look())
    picture.sum().backward()
    assert picture.isfinite().all()
    assert vertices.grad.isfinite().all()


def test_a_mesh_beside_its_target_is_pulled_there():
    vertices, faces = sphere(1, radius=0.4)
    camera, goal = look(1, 40.0, (32, 48)), torch.tensor([0.8, 0.2, 0.0])

    def draw(moved):
        attributes = {"x": Attribute(moved)}
        rasterizer = TorchRasterizer()
        return rasterizer.render(moved, faces, attributes, camera, lambda maps: maps["x"]).mask

    target, start = draw(vertices + goal), torch.tensor([-0.7, 0.0, 0.0])
    assert not (draw(vertices + start) * target).any()
    shift = start.clone().requires_grad_()
    (hard,) = torch.autograd.grad((draw(vertices + shift) * target).sum(), shift)
    assert not hard.any()
    optimizer = torch.optim.Adam([shift], lr=0.08)
    in_plane = torch.tensor([1.0, 1.0, 0.0])  # the depth is another matter: blur is like size
    for sigma in [0.1] * 20 + [0.01] * 15 + [1e-3] * 10:
        picture = soft_silhouette(vertices + shift * in_plane, faces, camera, sigma=sigma)
        both = picture * target
        optimizer.zero_grad()
        (1 - both.sum() / (picture + target - both).sum()).backward()
        optimizer.step()
    assert (shift - goal)[:2].detach().norm() < 0.15  # 2 px, of 20 at first


def test_the_pull_on_a_hand_is_towards_its_target():
    hand = OpenHand()
    vertices = hand.template[None] - hand.template.mean(0) + torch.tensor([0, 0, 0.6])
    camera = Camera(torch.tensor([[[55.0, 0, 16], [0, 55, 16], [0, 0, 1]]]), (32, 32))
    target = torch.zeros(1, 1, 32, 32)
    target[..., 24:30, 10:22] = 1
    shift = torch.zeros(3, requires_grad=True)
    picture = soft_silhouette(vertices + shift, hand.faces, camera, sigma=3e-2)
    (picture - target).square().sum().backward()
    assert shift.grad[1] < 0
    assert shift.grad[1].abs() > 3 * shift.grad[0].abs()
