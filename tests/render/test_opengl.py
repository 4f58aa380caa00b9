"""The rasterizers against OpenGL, which others wrote: the same faces and the same lit pictures."""

import numpy as np
import pytest
import torch

from handrec.data.appearance.plain import Plain, skin_colours
from handrec.data.scenes import sample_scenes, scene_camera
from handrec.geometry.camera import project
from handrec.geometry.mesh import vertex_normals
from handrec.hand.openhand import OpenHand
from handrec.render.shading import Light, render_lit
from handrec.render.torch_reference import TorchRasterizer
from handrec.render.warp_backend import WarpRasterizer
from tests.render.opengl import Lit, OpenGL, create_context, unlike

SIZE = (112, 112)
#: OpenGL rounds vertices to 1/256 pixel (GL_SUBPIXEL_BITS is 8 in Mesa).
SUBPIXEL = 1 / 256


@pytest.fixture(scope="module")
def hand():
    return OpenHand()


@pytest.fixture(scope="module")
def scenes(hand):
    return sample_scenes(hand, 32, seed=0)


@pytest.fixture(scope="module")
def posed(hand, scenes):
    return hand.decode(scenes.pose, scenes.betas, scenes.translation).vertices


@pytest.fixture(scope="module")
def screen(scenes, posed):
    pixels = project(posed, scene_camera(scenes, SIZE[0]).intrinsics)
    return torch.cat([pixels, posed[..., 2:]], dim=-1)


@pytest.fixture(scope="module")
def opengl(hand, posed):
    pytest.importorskip("moderngl", reason="needs moderngl: pip install -e '.[dev]'")
    try:
        context = create_context()
    except Exception as error:  # moderngl and glcontext raise bare ones
        pytest.skip(f"no OpenGL through EGL (Debian: libegl1 libgl1 libgl1-mesa-dri): {error}")
    with context:
        yield OpenGL(context, hand.faces.numpy(), posed.shape[1], SIZE)
    context.release()


@pytest.fixture(params=[WarpRasterizer, TorchRasterizer])
def rasterizer(request):
    return request.param()


def test_faces_are_those_of_opengl(rasterizer, opengl, hand, screen):
    faces, drawn = hand.faces.numpy(), rasterizer.cover(screen, hand.faces, SIZE).numpy()
    differing = 0
    for corners, ours in zip(screen.numpy(), drawn, strict=True):
        theirs = opengl.face_index(corners)
        distance, depth_apart = unlike(corners, faces, ours, theirs)
        assert ((distance < SUBPIXEL) | (depth_apart < 1e-6)).all()
        differing += len(distance)
    assert differing < 0.005 * (drawn >= 0).sum()


@pytest.mark.parametrize("shift", [(0.0, 0.5), (0.5, 0.0)])
def test_half_a_pixel_would_be_noticed(opengl, hand, screen, shift):
    moved = screen[:1] + torch.tensor([*shift, 0.0])
    ours = WarpRasterizer().cover(moved, hand.faces, SIZE)[0].numpy()
    corners = screen[0].numpy()
    distance, _ = unlike(corners, hand.faces.numpy(), ours, opengl.face_index(corners))
    assert len(distance) > 0.1 * (ours >= 0).sum()
    assert (distance > SUBPIXEL).mean() > 0.5


def test_lit_pictures_are_those_of_opengl(rasterizer, opengl, hand, scenes, posed, screen):
    look = Plain().sample(len(scenes.pose), torch.Generator().manual_seed(0))
    colours, normals = skin_colours(look, hand), vertex_normals(posed, hand.faces)
    light = Light(look["ambient"], look["directional"], look["light_direction"])
    camera = scene_camera(scenes, SIZE[0])
    drawn = render_lit(rasterizer, posed, hand.faces, light, camera, colours=colours)
    for i in range(4):
        given = [part[i].numpy() for part in (normals, colours, *light)]
        theirs = opengl.lit(screen[i].numpy(), Lit(*given))
        same = drawn.face_index[i].numpy() == opengl.face_index(screen[i].numpy())
        difference = np.abs(drawn.image[i].permute(1, 2, 0).numpy() - theirs)[same]
        assert theirs.max() > 0.3
        assert difference.max() < 2e-3  # their rounded corners; 0.5 levels of 8 bits
