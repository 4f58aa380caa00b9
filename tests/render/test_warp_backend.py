"""What is particular to the Warp backend: laziness, quiet, threads."""

import os
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import torch

from handrec.render.base import Attribute, Rasterizer
from handrec.render.layers import find_seen
from handrec.render.lights import reflect
from handrec.render.normals import smooth_normals
from handrec.render.shading import Light, render_lit
from handrec.render.surface import Surface
from handrec.render.warp_backend import WarpRasterizer
from tests.conformance.test_rasterizers import look, soup

DRAW = """
import sys, torch
from handrec.render.warp_backend import WarpRasterizer
assert "warp" not in sys.modules
screen = torch.tensor([[[1.0, 1, 1], [6, 1, 1], [1, 6, 1]]])
assert WarpRasterizer().cover(screen, torch.tensor([[0, 1, 2]]), (8, 8)).max() == 0
"""


def test_warp_is_imported_on_first_use_and_says_nothing():
    run = subprocess.run(  # the kernels may compile: more than a moment
        [sys.executable, "-c", DRAW], capture_output=True, text=True, check=False, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == ""
    assert run.stderr == ""


@pytest.fixture
def threads():
    count = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(count)


def _gnu_openmp():
    return any("libgomp" in path.name for path in (Path(torch.__file__).parent / "lib").iterdir())


def draw():
    vertices, faces = soup()
    vertices = vertices.repeat(2, 1, 1)[:3].requires_grad_()
    white = torch.ones(1, vertices.shape[1], 3, requires_grad=True)
    light = Light(*(torch.ones(3, 3) / 4 for _ in range(3)))
    drawn = render_lit(WarpRasterizer(), vertices, faces, light, look(3), colours=white)
    drawn.image.square().sum().backward()
    return drawn.image, vertices.grad, white.grad


def test_threads_do_not_change_the_result(threads):
    results = []
    for count in (1, 2, 5):
        threads(count)
        results.append(draw())
    for other in results[1:]:
        for one, another in zip(results[0], other, strict=True):
            torch.testing.assert_close(one, another, rtol=1e-5, atol=1e-5)


WAIT = """
import os, time, torch
from handrec.render.warp_backend import WarpRasterizer
torch.set_num_threads(os.cpu_count())
screen = torch.tensor([[[1.0, 1, 1], [6, 1, 1], [1, 6, 1]]]).repeat(8, 1, 1)
WarpRasterizer().cover(screen, torch.tensor([[0, 1, 2]]), (8, 8))
torch.zeros(1 << 20).add_(1)
start = time.process_time()
time.sleep(0.3)
print(time.process_time() - start)
"""


@pytest.mark.skipif(not _gnu_openmp(), reason="another OpenMP than GNU's")
@pytest.mark.skipif(os.cpu_count() == 1, reason="one core")
def test_idle_threads_leave_the_cores_to_the_kernels():
    """The process takes no time while it sleeps, though torch's threads could wait in a loop."""
    long = {**os.environ, "GOMP_SPINCOUNT": "100000000"}

    def seconds():
        command = [sys.executable, "-c", WAIT]
        run = subprocess.run(command, env=long, capture_output=True, text=True, check=True)
        return float(run.stdout)

    # Once in some hundred times, on a crowded machine, they do.
    assert any(seconds() < 0.01 for _ in range(3))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_draws_too(threads):
    threads(2)
    draw()  # the parent's threads exist
    child = os.fork()
    if child == 0:
        # OpenMP's own threads do not survive a fork; ours are made anew.
        right = False
        try:
            right = _cover_in_child()
        except BaseException:  # the tests go on in the parent only
            os.write(2, traceback.format_exc().encode())
        os._exit(0 if right else 1)
    assert os.waitpid(child, 0)[1] == 0


def _cover_in_child():
    screen = torch.tensor([[[1.0, 1, 1], [6, 1, 1], [1, 6, 1]]]).repeat(2, 1, 1)
    return WarpRasterizer().cover(screen, torch.tensor([[0, 1, 2]]), (8, 8)).max() == 0


def test_strided_inputs_are_read_right():
    vertices, faces = soup()
    strided = vertices.mT.contiguous().mT
    assert not strided.is_contiguous()
    rasterizer = WarpRasterizer()
    expected = rasterizer.cover(vertices, faces, (48, 64))
    assert torch.equal(rasterizer.cover(strided, faces, (48, 64)), expected)


@pytest.mark.parametrize("lamps", [1, 5])
@pytest.mark.parametrize("count", [1, 2])
def test_a_matt_surface_is_lit_as_in_torch(threads, lamps, count):
    threads(count)
    generator = torch.Generator().manual_seed(0)
    index = torch.tensor([1] * 20 + [3] * 37).int()  # images without a pixel before, between, after
    normal, albedo, *bulb = (
        torch.randn(n, 3, generator=generator) for n in (57, 57, lamps, lamps, lamps)
    )
    normal[0] = 0
    side = torch.where(torch.arange(57) % 5 == 0, -1.0, 1.0)[:, None]
    weight, results = torch.randn(57, 3, generator=generator), []
    for step in (WarpRasterizer().reflect, reflect):
        leaves = [x.clone().requires_grad_() for x in (normal, albedo, *bulb)]
        surface = Surface({"normal": leaves[0], "side": side}, index)
        colours = step(surface, leaves[1], Light(*leaves[2:]))
        results.append([colours, *torch.autograd.grad((colours * weight).sum(), leaves)])
    colours = results[0][0]
    assert (colours == 0).any()
    assert (colours == 1).any()
    assert ((colours > 0) & (colours < 1)).sum() > 20
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_normals_are_those_of_torch():
    vertices, faces = soup()
    corners = faces.clone()
    corners[1:, 0] = corners[:-1, 1]  # faces that share corners
    weight, results = torch.rand(2, vertices.shape[1], 3), []
    for step in (WarpRasterizer().normals, smooth_normals):
        moving = vertices.clone().requires_grad_()
        normal, side = step(moving, corners)
        results.append([normal, side, *torch.autograd.grad((normal * weight).sum(), moving)])
    assert set(results[0][1].unique().tolist()) == {-1.0, 1.0}
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("packed", [True, False])
def test_slopes_are_those_of_planes(packed):
    vertices, faces = soup()
    screen = torch.cat([vertices[..., :2] * 20 + 24, vertices[..., 2:]], dim=-1)
    rasterizer = WarpRasterizer()
    face_index = rasterizer.cover(screen, faces, (48, 64))
    attribute = Attribute(torch.rand(1, vertices.shape[1], 2), slopes=True)
    seen = find_seen(face_index) if packed else None
    asked = screen, faces, face_index, attribute, seen
    expected = Rasterizer.slopes(rasterizer, *asked)
    for one, other in zip(rasterizer.slopes(*asked), expected, strict=True):
        assert one.any()
        assert (one - other).norm() < 1e-4 * other.norm()
