import math

import numpy as np
import pytest
import scipy.signal
import scipy.stats
import torch

from handrec.data.appearance.backgrounds import ProceduralScenes
from handrec.data.appearance.base import Stage
from handrec.data.appearance.everyday import Everyday
from handrec.data.appearance.lens import LensOptions
from handrec.data.appearance.props import PropOptions
from handrec.data.scenes import Uniform, sample_scenes, scene_camera
from handrec.hand.openhand import OpenHand
from handrec.models.cycle_scene import (
    Own,
    Redrawn,
    Shares,
    add_grain,
    noise_level,
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
    return redraw(appearance, stage, Own(texture, background, torch.ones(3)), shares, generator)


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


def test_cameras_expose_for_the_hand_that_is_seen(stage):
    """In its own tone a hand is as bright whoever's skin it hides; a darker one is less dark."""
    many = Redrawn(skins=8, backgrounds=ProceduralScenes(1), props=NO_PROPS, lens=NO_LENS)
    own = Own(torch.full((3, 3, 32, 32), 0.5), torch.zeros(3, 3, 32, 32), torch.ones(3))
    look = many.dress(own, Shares(1.0, 1.0, 0.0, 0.0), torch.Generator().manual_seed(0))
    look |= {"light.key_colour": torch.ones(3, 3), "light.ambient": torch.ones(3, 3)}
    look |= {"tint": torch.zeros(3, 3), "skin": torch.tensor([0.0, 0.4, 0.9])}
    given = many.gather(stage, look, 32)
    one = given.key_colour[:1].expand(3, 3)  # by the mean colour, banks by the mean of colours
    torch.testing.assert_close(given.key_colour, one, rtol=0.02, atol=0)
    dark = many.gather(stage, look | {"own.texture": torch.full((3, 3, 32, 32), 0.2)}, 32)
    assert (dark.ambient > 1.5 * given.ambient).all()
    painted = many.gather(stage, look | {"own.keeps_texture": torch.zeros(3)}, 32)
    plain = super(Redrawn, many).gather(stage, look, 32)
    torch.testing.assert_close(painted.ambient, plain.ambient)


@pytest.mark.parametrize("lend", [16, 64, 0])
def test_some_hands_are_drawn_in_the_looks_of_another_that_lends(appearance, lend):
    texture, lends = torch.rand(64, 3, 2, 2), (torch.arange(64) < lend).float()
    own = Own(texture, texture.flip(1), lends)
    for swap in (0.0, 0.5):
        generator = torch.Generator().manual_seed(0)
        look = appearance.dress(own, Shares(swap=swap), generator)
        whose = [
            (look[f"own.{name}"][:, None] == theirs).flatten(2).all(2)
            for name, theirs in (("texture", texture), ("background", texture.flip(1)))
        ]
        assert torch.equal(*whose)
        assert (whose[0].sum(1) == 1).all()  # somebody's, whole
        kept = whose[0].diagonal()
        assert kept.float().mean() == pytest.approx(1 - swap, abs=0.15)
        assert (whose[0][~kept].float().argmax(1) < (lend or 64)).all()


def test_some_drawings_are_relit_in_any_colour_from_any_side():
    count, plain = 4000, Redrawn(skins=1, backgrounds=ProceduralScenes(1))
    share = Redrawn(skins=1, backgrounds=ProceduralScenes(1), relit=0.25)

    def lights(appearance):
        return appearance.sample_lights(count, Uniform(torch.Generator().manual_seed(0)))

    everyday, some = lights(plain), lights(share)
    assert all(map(torch.equal, everyday, lights(Everyday(skins=1))))
    relit = (some.key_direction != everyday.key_direction).any(1)
    assert relit.float().mean() == pytest.approx(0.25, abs=0.03)
    for name in ("ambient", "sky", "key_colour"):
        both = getattr(some, name), getattr(everyday, name)
        assert torch.equal(both[0][~relit], both[1][~relit])
        assert (both[0] != both[1]).any(1)[relit].all()
    direction = some.key_direction[relit]
    torch.testing.assert_close(direction.norm(dim=1), torch.ones(len(direction)))
    for axis in direction.T:  # uniform on the sphere: each coordinate is (Archimedes)
        assert scipy.stats.kstest(axis, scipy.stats.uniform(-1, 2).cdf).pvalue > 1e-3
    key, rest = some.key_colour[relit], (some.ambient + some.sky)[relit]
    # Everyday light is red against blue; this has every hue, and is as often green as violet.
    violet = (key[:, 0] * key[:, 2]).sqrt() / key[:, 1]
    shares = [(hue > 1.3).float().mean().item() for hue in (violet, 1 / violet)]
    assert shares[0] == pytest.approx(shares[1], abs=0.05)
    assert shares[0] > 0.2
    usual = everyday.key_colour
    assert ((usual[:, 0] * usual[:, 2]).sqrt() / usual[:, 1]).log().abs().max() < math.log(1.3)
    contrast = key.log().mean(1).exp() / rest.log().mean(1).exp()
    assert 0.299 <= contrast.min() < 0.32
    assert 5.6 < contrast.max() <= 6.001


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


def test_noise_is_measured_where_there_is_a_picture_behind_it():
    generator = torch.Generator().manual_seed(0)
    ramp = torch.linspace(0.2, 0.8, 64).expand(1, 3, 64, 64)
    for deviation in (0.0, 0.01, 0.05):
        noisy = ramp + deviation * torch.randn(1, 3, 64, 64, generator=generator)
        found = noise_level(noisy)
        for channel, level in zip(noisy[0].double().numpy(), found[0], strict=True):
            kernel = np.array([[1.0, -1.0], [-1.0, 1.0]]) / 2
            diagonal = scipy.signal.correlate2d(channel, kernel, mode="valid")[::2, ::2]
            expected = np.median(np.abs(diagonal)) / scipy.stats.norm.ppf(0.75)
            assert level == pytest.approx(expected, rel=2e-3, abs=1e-6)
            assert level == pytest.approx(deviation, rel=0.15, abs=1e-6)


def test_some_pictures_get_the_noise_of_others_and_none_loses_its_own():
    generator = torch.Generator().manual_seed(0)
    smooth = torch.linspace(0.3, 0.7, 32).expand(200, 3, 32, 32)
    little, much = (
        smooth + deviation * torch.randn(smooth.shape, generator=generator)
        for deviation in (0.01, 0.05)
    )
    for share in (0.0, 0.25, 1.0):
        found = add_grain(little, much, share, torch.Generator().manual_seed(1))
        changed = (found - little).abs().amax((1, 2, 3)) > 0
        assert changed.float().mean() == pytest.approx(share, abs=0.1)
        if share:
            assert noise_level(found[changed]).mean() == pytest.approx(0.05, rel=0.1)
    found = add_grain(much, little, 1.0, torch.Generator().manual_seed(1))
    torch.testing.assert_close(found, much.clamp(0, 1))
    assert torch.equal(add_grain(much, much[:0], 1.0, generator), much)
