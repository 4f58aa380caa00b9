"""The nvdiffrast adapter, against a stand-in written from the package's documentation.

Where CUDA and the package are there, the same tests run on the package itself.
"""

import importlib.util
import sys
import types

import numpy as np
import pytest
import torch

from handrec.errors import UserError
from handrec.render import nvdiffrast_backend
from handrec.render.base import Rasterizer
from handrec.render.nvdiffrast_backend import NvdiffrastRasterizer
from handrec.render.warp_backend import WarpRasterizer
from tests.conformance import test_rasterizers as conformance
from tests.conformance.test_rasterizers import draw, look, soup, sphere

PACKAGE = "nvdiffrast.torch"


def checked(*tensors, dtype):
    for tensor in tensors:
        assert tensor.dtype == dtype
        assert tensor.is_contiguous()


def rasterize(context, pos, tri, resolution, ranges=None, grad_db=True):
    """Row 0 is at y/w = -1; u and v are the weights of corners 0 and 1; 1 + the face comes last."""
    assert isinstance(context, RasterizeCudaContext)
    assert ranges is None
    checked(pos, dtype=torch.float32)
    checked(tri, dtype=torch.int32)
    height, width = resolution
    raster = np.zeros((len(pos), height, width, 4))
    for image, vertices in zip(raster, pos.detach().cpu().double().numpy(), strict=True):
        nearest = np.full((height, width), np.inf)
        for number, corners in enumerate(vertices[tri.cpu().numpy()], 1):
            with np.errstate(all="ignore"):
                draw_face(image, nearest, number, corners)
    raster = torch.from_numpy(raster).float().to(pos.device)
    return raster, raster.new_zeros(len(pos), height, width, 0)


def draw_face(image, nearest, number, corners):
    height, width = nearest.shape
    x, y, z, w = corners.T
    assert (w > 0).all()
    if not np.isfinite(corners).all() or (np.abs(z / w) > 1).all():
        return
    columns, rows = (x / w + 1) * width / 2 - 0.5, (y / w + 1) * height / 2 - 0.5
    left, top = np.ceil(np.clip([columns.min(), rows.min()], 0, [width, height])).astype(int)
    right, bottom = np.floor(np.clip([columns.max(), rows.max()], -1, [width - 1, height - 1]) + 1)
    j, i = np.mgrid[top : int(bottom), left : int(right)]
    # Homogeneous edge functions at the pixel's normalised coordinates.
    fx, fy = (2 * i + 1) / width - 1, (2 * j + 1) / height - 1
    px, py = (p - f[..., None] * w for p, f in ((x, fx), (y, fy)))
    areas = [px[..., k - 2] * py[..., k - 1] - px[..., k - 1] * py[..., k - 2] for k in range(3)]
    total = sum(areas)
    u, v, rest = (area / total for area in areas)
    depth = (u * z[0] + v * z[1] + rest * z[2]) / (u * w[0] + v * w[1] + rest * w[2])
    area = (columns[1] - columns[0]) * (rows[2] - rows[0])
    area -= (columns[2] - columns[0]) * (rows[1] - rows[0])
    window = np.s_[top : int(bottom), left : int(right)]
    shown = (np.minimum(np.minimum(u, v), rest) >= 0) & (depth < nearest[window])
    shown &= abs(area) > 1e-6
    nearest[window][shown] = depth[shown]
    image[window][shown] = np.stack([u, v, depth, np.full_like(u, number)], axis=-1)[shown]


def interpolate(attr, rast, tri, rast_db=None, diff_attrs=None):
    """Of values ``[B or 1, V, A]``, differentiable in the values and in u and v."""
    checked(attr, rast, dtype=torch.float32)
    checked(tri, dtype=torch.int32)
    u, v, _, number = rast.unbind(-1)
    corners = tri.long()[(number.long() - 1).clamp(min=0)]
    image = torch.arange(len(rast), device=rast.device)[:, None, None, None] % len(attr)
    values = attr[image, corners]
    weights = torch.stack([u, v, 1 - u - v], dim=-1)
    seen = (number > 0)[..., None]
    return (weights[..., None] * values).sum(-2) * seen, attr.new_zeros(0)


def antialias(color, rast, pos, tri, topology_hash=None, pos_gradient_boost=1.0):
    """Not what the package does: a half of the right neighbour's colour, to see that it is used."""
    checked(color, rast, pos, dtype=torch.float32)
    checked(tri, dtype=torch.int32)
    assert rast.shape[:3] == color.shape[:3]
    return (color + color.roll(-1, 2)) / 2 + 0 * pos.sum()


class RasterizeCudaContext:
    def __init__(self, device=None):
        self.device = device


@pytest.fixture
def stand_in(monkeypatch):
    module = types.ModuleType(PACKAGE)
    for part in (RasterizeCudaContext, rasterize, interpolate, antialias):
        setattr(module, part.__name__, part)
    package = types.ModuleType("nvdiffrast")
    package.torch = module
    monkeypatch.setitem(sys.modules, "nvdiffrast", package)
    monkeypatch.setitem(sys.modules, PACKAGE, module)
    monkeypatch.setattr(nvdiffrast_backend, "DEVICE", "cpu")
    nvdiffrast_backend._context.cache_clear()
    yield module
    nvdiffrast_backend._context.cache_clear()


class OnCuda(Rasterizer):
    """Draws on CUDA what lies on a CPU, so that one suite serves both."""

    def __init__(self, near=0.01, chunk=None):
        super().__init__(near, chunk)
        self.inner = NvdiffrastRasterizer(near)

    def cover(self, screen, faces, size):
        return self.inner.cover(screen.cuda(), faces.cuda(), size).cpu()

    def interpolate(self, screen, faces, face_index, attributes):
        there = [
            item._replace(
                values=item.values.cuda(),
                corners=None if item.corners is None else item.corners.cuda(),
            )
            for item in attributes
        ]
        args = (screen.cuda(), faces.cuda(), face_index.cuda(), there)
        return [values.cpu() for values in self.inner.interpolate(*args)]

    def visibility(self, *args):
        return tuple(x.cpu() for x in self.inner.visibility(*(x.cuda() for x in args)))


@pytest.fixture(params=["stand-in", pytest.param("package", marks=pytest.mark.gpu)])
def rasterizer(request):
    if request.param == "stand-in":
        if request.node.originalname in FOR_THE_PACKAGE:
            pytest.skip("slow on the stand-in, whose gradients are compared with Warp's below")
        request.getfixturevalue("stand_in")
        return NvdiffrastRasterizer()
    if not torch.cuda.is_available() or importlib.util.find_spec("nvdiffrast") is None:
        pytest.skip("needs CUDA and nvdiffrast")
    if request.node.originalname in DIFFERENT:
        pytest.skip("the package has its own rule for ties and edges")
    return OnCuda()


@pytest.fixture
def device():
    return torch.device("cpu")


#: They want the lower of equally deep faces, or the reference's rounding.
DIFFERENT = {
    "test_every_backend_draws_what_the_reference_draws",
    "test_face_ids_are_the_brute_force_ones",
    "test_of_equal_faces_the_lower_index_is_seen",
}

FOR_THE_PACKAGE = {
    "test_a_hand_pulled_by_its_silhouette_finds_its_place",
    "test_a_surface_occludes_itself_by_what_turns_away",
    "test_an_occlusion_edge_moves_the_occluder_only",
    "test_silhouettes_move_as_finite_differences_say",
}
#: Pixel centres exactly on edges do not survive the way through clip coordinates.
LEFT_OUT = {"test_a_shared_edge_leaves_no_hole_and_the_lower_face_wins"}

for name, function in vars(conformance).items():
    if name.startswith("test_") and name not in LEFT_OUT:
        globals()[name] = function


def test_the_package_is_asked_for_on_construction(monkeypatch):
    monkeypatch.setitem(sys.modules, "nvdiffrast", None)
    monkeypatch.delitem(sys.modules, PACKAGE, raising=False)
    with pytest.raises(UserError, match=r"pip install git\+https://github.com/NVlabs/nvdiffrast"):
        NvdiffrastRasterizer()


def test_other_devices_are_refused(stand_in, monkeypatch):
    monkeypatch.setattr(nvdiffrast_backend, "DEVICE", "cuda")
    vertices, faces = sphere()
    with pytest.raises(UserError, match="CUDA only, not on cpu"):
        draw(NvdiffrastRasterizer(), vertices, faces, look())


def test_the_top_row_comes_first_and_values_follow_their_corners(stand_in):
    # A corner in each of three places, red, green and blue.
    screen = torch.tensor([[[2.0, 1.0, 1.0], [60.0, 3.0, 2.0], [4.0, 44.0, 3.0]]])
    faces = torch.tensor([[0, 1, 2]])
    rasterizer = NvdiffrastRasterizer()
    seen = rasterizer.cover(screen, faces, (48, 64))
    colours = nvdiffrast_backend.Attribute(torch.eye(3)[None])
    (drawn,) = rasterizer.interpolate(screen, faces, seen, [colours])
    for corner, strength in zip(screen[0, :, :2], drawn[0].unbind(-1), strict=True):
        row, column = divmod(strength.argmax().item(), 64)
        assert (torch.tensor([column + 0.5, row + 0.5]) - corner).norm() < 2


def test_gradients_are_those_of_warp(stand_in):
    vertices, faces = soup(100)
    weight = torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    gradients = []
    for backend in (NvdiffrastRasterizer(), WarpRasterizer()):
        moving = vertices.clone().requires_grad_()
        drawn = draw(backend, moving, faces, look(2))
        loss = ((drawn.image + drawn.mask + drawn.depth) * weight).sum()
        gradients.append(torch.autograd.grad(loss, moving)[0])
    assert (gradients[0] - gradients[1]).norm() < 1e-4 * gradients[1].norm()


def test_antialias_uses_the_package_only_where_a_gradient_is_asked_for(stand_in):
    vertices, faces = sphere()
    rasterizer = NvdiffrastRasterizer(antialias=True)
    plain = draw(rasterizer, vertices, faces, look())
    blended = draw(rasterizer, vertices.clone().requires_grad_(), faces, look())
    assert set(plain.mask.unique().tolist()) == {0.0, 1.0}
    expected = (plain.image + plain.image.roll(-1, 3)) / 2
    torch.testing.assert_close(blended.image, expected, rtol=0, atol=1e-6)
    assert set(blended.mask.unique().tolist()) == {0.0, 0.5, 1.0}
