import numpy as np
import pytest
import torch

from handrec.data.appearance.backgrounds import ProceduralScenes
from handrec.data.appearance.base import Stage
from handrec.data.appearance.lens import LensOptions
from handrec.data.appearance.props import PropOptions
from handrec.data.scenes import sample_scenes, scene_camera
from handrec.hand.openhand import OpenHand
from handrec.models.cycle_scene import (
    Own,
    Redrawn,
    Shares,
    recolour,
    redraw,
    transfer_colours,
)
from handrec.render.warp_backend import WarpRasterizer

NO_LENS = LensOptions(
    **dict.fromkeys(LensOptions.__dataclass_fields__, 0.0) | {"worst_quality": 1.0}
)
NO_PROPS = PropOptions(**dict.fromkeys(PropOptions.__dataclass_fields__, 0.0))


@pytest.fixture(scope="module")
def appearance():
    return Redrawn(skins=2, backgrounds=ProceduralScenes(1), props=NO_PROPS, lens=NO_LENS)


@pytest.fixture(scope="module")
def stage():
    hand = OpenHand()
    scenes = sample_scenes(hand, 3, seed=0)
    posed = hand.decode(scenes.pose, scenes.betas, scenes.translation)
    camera = scene_camera(scenes, 32)
    return Stage(hand, posed, scenes.pose, camera, scenes.noise_seed, WarpRasterizer())


def draw(appearance, stage, texture, background, shares):
    generator = torch.Generator().manual_seed(0)
    return redraw(appearance, stage, Own(texture, background), shares, generator)


def test_the_background_stays_where_there_is_no_hand_and_skin_leaves_the_mask(appearance, stage):
    background = torch.zeros(3, 3, 32, 32)
    background[:, 1] = torch.linspace(0.5, 0.9, 32)
    textures = torch.full((3, 3, 32, 32), 0.4), torch.rand(3, 3, 32, 32)
    own = Shares(texture=1.0, swap=0.0, background=1.0)
    one, other = (draw(appearance, stage, texture, background, own) for texture in textures)
    assert torch.equal(one.mask, other.mask)
    assert not torch.equal(one.image, other.image)
    hue = one.image[:, [0, 2]].amax(1, keepdim=True)[one.mask == 0]
    assert hue.max() < 0.02  # shadows darken the green, and nothing else is there
    behind = [picture.image.where(picture.mask == 0, 0) for picture in (one, other)]
    torch.testing.assert_close(*behind, atol=2e-3, rtol=0)  # lenses round, in transforms


def test_a_glove_stays_one_where_its_tone_is_kept_and_is_a_skin_otherwise(appearance, stage):
    green = torch.tensor([0.1, 0.6, 0.1]).view(1, 3, 1, 1).expand(3, 3, 32, 32)
    for tone in (0.0, 1.0):
        shares = Shares(texture=1.0, tone=tone, swap=0.0, background=0.0)
        picture = draw(appearance, stage, green, green, shares)
        red, other, _ = (picture.image * picture.mask).mean((0, 2, 3))
        assert (other > red) == bool(tone)


def test_some_textures_are_a_neighbours(appearance):
    own = Own(torch.rand(64, 3, 2, 2), torch.zeros(64, 3, 2, 2))
    for swap in (0.0, 0.5):
        generator = torch.Generator().manual_seed(0)
        worn = appearance.dress(own, Shares(swap=swap), generator)["own.texture"]
        alike = (worn[:, None] == own.texture).flatten(2).all(2)
        assert (alike.sum(1) == 1).all()  # somebody's, whole
        assert alike.diagonal().float().mean() == pytest.approx(1 - swap, abs=0.15)


def test_nothing_is_kept_where_nothing_shall_be(appearance, stage):
    black = torch.zeros(3, 3, 32, 32)
    none = Shares(texture=0.0, swap=0.0, background=0.0)
    one, other = (draw(appearance, stage, x, x, none) for x in (black, black + 1))
    torch.testing.assert_close(one.image, other.image)


def test_colours_get_the_mean_and_covariance_of_others():
    generator = torch.Generator().manual_seed(0)
    mix = torch.eye(3) + 0.3 * torch.randn(2, 2, 3, 3, generator=generator)
    flat = torch.rand(2, 2, 3, 400, generator=generator)
    image, like = (0.5 + 0.2 * mix @ flat).view(2, 2, 3, 20, 20)
    found = transfer_colours(image, like)
    for triple in zip(found, like, image, strict=True):
        one, other, before = (x.flatten(1).double().numpy() for x in triple)
        np.testing.assert_allclose(one.mean(1), other.mean(1), atol=1e-5)
        np.testing.assert_allclose(np.cov(one), np.cov(other), atol=1e-4)
        change = np.linalg.lstsq(before.T - before.mean(1), one.T - one.mean(1), rcond=None)[0]
        np.testing.assert_allclose(change, change.T, atol=1e-3)  # turns no colour more than needed
        assert (np.linalg.eigvalsh(change) > 0).all()
    torch.testing.assert_close(transfer_colours(image, image), image, atol=1e-4, rtol=0)


def test_some_drawings_are_recoloured_and_flat_pictures_do_no_harm():
    drawn = torch.rand(200, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    grey = torch.full_like(drawn, 0.5)
    for share in (0.0, 0.25, 1.0):
        found = recolour(drawn, grey, share, torch.Generator().manual_seed(1))
        assert found.isfinite().all()
        assert (found - drawn).amax((1, 2, 3)).gt(0).float().mean() == pytest.approx(share, abs=0.1)
        assert found.sub(0.5).abs().amax() <= drawn.sub(0.5).abs().amax()
