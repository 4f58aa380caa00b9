"""Textures recovered from rendered pictures of a hand whose texture is known."""

import pytest
import torch
from torch.nn import functional as F

from handrec.data.appearance.skin_bank import skin_bank
from handrec.fitting import texture as recovery
from handrec.fitting.texture import RecoveredTexture, recover_texture, weighted_median
from handrec.fitting.unproject import View, unproject
from handrec.geometry.rotations import axis_angle_to_matrix
from handrec.hand.openhand import OpenHand
from handrec.hand.sampler import PoseSampler
from handrec.render.shading import Light, Texture, render_lit
from handrec.render.warp_backend import WarpRasterizer
from handrec.types import Camera

HAND, RASTERIZER, SIZE, TEXELS = OpenHand(), WarpRasterizer(), 256, 128

#: Gesture, turn about the vertical, and where the light of that picture comes from.
SHOTS = (("relaxed", 0.0, -0.5), ("relaxed", 3.1, 0.5), ("flat", 1.3, 0.0), ("flat", -1.3, 0.2))


def shoot(
    texture: torch.Tensor, gesture: str, turn: float, sideways: float, exposure: float = 1.0
) -> View:
    """Return a picture of a hand before noise; what is said of its light is true but exposure."""
    pose = PoseSampler(HAND).gesture(gesture)[None]
    upright = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    pose[:, 0] = axis_angle_to_matrix(torch.tensor([0.0, turn, 0.0])) @ upright
    vertices = HAND.decode(pose, torch.zeros(1, 10), torch.zeros(1, 3)).vertices
    middle = (vertices.amax(1, keepdim=True) + vertices.amin(1, keepdim=True)) / 2
    vertices = vertices - middle + torch.tensor([0.0, 0.0, 0.5])
    matrix = torch.tensor([[[2.2 * SIZE, 0, SIZE / 2], [0, 2.2 * SIZE, SIZE / 2], [0, 0, 1]]])
    camera = Camera(matrix, (SIZE, SIZE))
    ambient, lamp = torch.full((1, 3), 0.5), torch.full((1, 3), 0.5)
    direction = torch.tensor([[sideways, -0.6, -0.6]])
    noise = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    drawn = render_lit(
        RASTERIZER, vertices, HAND.faces,
        Light(ambient * exposure, lamp * exposure, direction), camera,
        texture=Texture(texture, HAND.uv, HAND.uv_faces), background=noise, samples=2,
    )  # fmt: skip
    return View(drawn.image, drawn.mask, camera, vertices, Light(ambient, lamp, direction))


@pytest.fixture(scope="module")
def skin() -> torch.Tensor:
    """A dark skin with light palms: the two sides differ as much as they can."""
    return skin_bank(HAND, TEXELS, 4, seed=5).textures(torch.tensor([3]))


@pytest.fixture(scope="module")
def views(skin: torch.Tensor) -> list[View]:
    return [shoot(skin, *shot) for shot in SHOTS]


@pytest.fixture(scope="module")
def recovered(views: list[View]) -> RecoveredTexture:
    return recover_texture(HAND, views, RASTERIZER, TEXELS)


def error(texture: RecoveredTexture, truth: torch.Tensor, where: torch.Tensor) -> float:
    return float((texture.image - truth[0]).abs().mean(0, keepdim=True)[where].mean())


def seen(texture: RecoveredTexture) -> torch.Tensor:
    return (texture.seen > 0.5) & (texture.inside > 0)


def test_what_is_seen_is_recovered(recovered: RecoveredTexture, skin: torch.Tensor) -> None:
    # Two levels of 255: pictures hold 1.5 pixels per texel, and averaging blurs by about that. The
    # same texture without its shading divided out is off by 40 levels.
    assert error(recovered, skin, seen(recovered)) < 2 / 255 * 1.5
    coverage = recovered.coverage
    assert coverage["seen"] > 0.6
    assert sum(coverage.values()) == pytest.approx(1)
    assert sum(recovered.shares) == pytest.approx(1)
    assert min(recovered.shares) > 0.05


def test_shading_is_divided_out(views: list[View], skin: torch.Tensor) -> None:
    plain = Light(torch.full((1, 3), 0.8), torch.zeros(1, 3), torch.tensor([[0.0, 0.0, -1.0]]))
    blind = recover_texture(
        HAND, [view._replace(light=plain) for view in views[:1]], RASTERIZER, TEXELS
    )
    lit = recover_texture(HAND, views[:1], RASTERIZER, TEXELS)
    assert error(lit, skin, seen(lit)) < 0.2 * error(blind, skin, seen(blind))


def test_nothing_of_the_background_or_of_another_finger_gets_in(views: list[View]) -> None:
    """A white hand with one blue finger, before noise: all is white or blue."""
    index = skin_mask(finger="index")
    paint = torch.where(index, torch.tensor([0.1, 0.1, 0.6])[:, None, None], 0.6)[None]
    for shot in SHOTS:
        texels = unproject(HAND, shoot(paint, *shot), RASTERIZER, TEXELS)
        certain = texels.confidence[0] > 0
        off = (texels.colour - paint[0]).abs().amax(0)[certain & ~border(index[0])]
        assert (off > 0.08).float().mean() < 0.002
    assert certain.any()


def skin_mask(finger: str) -> torch.Tensor:
    mask = torch.zeros(TEXELS * TEXELS, dtype=torch.bool)
    for (name, _), place in recovery.finger_places(HAND, TEXELS).items():
        if name == finger:
            mask[torch.from_numpy(place.texels)] = True
    return mask.view(1, TEXELS, TEXELS)


def border(mask: torch.Tensor) -> torch.Tensor:
    planes = torch.stack([mask, ~mask]).float()[None]
    return (F.max_pool2d(planes, 7, stride=1, padding=3) > 0).all(1)[0]


def test_pictures_of_another_exposure_are_brought_together(skin: torch.Tensor) -> None:
    darker = [shoot(skin, *shot, exposure) for shot, exposure in zip(
        (SHOTS[0], ("flat", 0.3, 0.4)), (1.15, 0.85), strict=True)]  # fmt: skip
    texture = recover_texture(HAND, darker, RASTERIZER, TEXELS)
    both = [unproject(HAND, view, RASTERIZER, TEXELS).confidence > 0.5 for view in darker]
    for where in (both[0] & ~both[1], both[1] & ~both[0]):
        assert error(texture, skin, where & seen(texture)) < 0.02  # apart they are off by 0.08


def test_one_wrong_picture_of_three_does_not_count(skin: torch.Tensor) -> None:
    shots = [shoot(skin, "flat", turn, 0.0) for turn in (-0.2, 0.0, 0.2)]
    spoilt = shots[2].image.clone()
    spoilt[..., SIZE // 2 :, :] *= 0.5  # a shadow over the palm
    texture = recover_texture(
        HAND, [*shots[:2], shots[2]._replace(image=spoilt)], RASTERIZER, TEXELS
    )
    assert error(texture, skin, seen(texture)) < 0.025  # a mean is off by 0.05


def test_holes_are_filled_in_the_colour_of_the_hand(
    views: list[View], skin: torch.Tensor, recovered: RecoveredTexture
) -> None:
    hidden = [view._replace(mask=view.mask.clone()) for view in views[:2]]
    for view in hidden:  # of the picture, a third of the hand
        view.mask[..., int(0.6 * SIZE) :, :] = 0
    texture = recover_texture(HAND, hidden, RASTERIZER, TEXELS)
    hole = seen(recovered) & (texture.seen == 0)
    assert hole.sum() > 500
    base = recovery.mean_skin(HAND, TEXELS)
    assert error(texture, skin, hole) < 0.06
    assert error(texture, skin, hole) < 0.4 * float((base - skin)[:, :, hole[0]].abs().mean())
    assert texture.image.isfinite().all()
    assert 0 <= float(texture.image.min()) <= float(texture.image.max()) <= 1


def test_fingers_are_filled_from_their_other_side(
    views: list[View], skin: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    texture = recover_texture(HAND, [views[0], views[3]], RASTERIZER, TEXELS)
    copied = (texture.copied > 0) & (texture.seen < 0.2) & (texture.inside > 0)
    assert copied.sum() > 300
    monkeypatch.setattr(
        recovery, "copy_symmetric", lambda hand, ratio, trust: (ratio, torch.zeros_like(trust))
    )
    spread = recover_texture(HAND, [views[0], views[3]], RASTERIZER, TEXELS)
    assert error(texture, skin, copied) < 0.6 * error(spread, skin, copied)


def test_a_hand_that_is_not_seen_gets_the_base(views: list[View]) -> None:
    blind = views[0]._replace(mask=torch.zeros_like(views[0].mask))
    texture = recover_texture(HAND, [blind], RASTERIZER, TEXELS)
    assert texture.coverage["seen"] == 0
    inside = texture.inside[0] > 0
    base = recovery.mean_skin(HAND, TEXELS)[0]
    torch.testing.assert_close(texture.image[:, inside], base[:, inside], atol=0.02, rtol=0)


def test_the_weighted_median_is_where_half_of_the_weight_is_passed() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(5, 2, 3, 3, generator=generator)
    weight = torch.rand(5, 1, 3, 3, generator=generator)
    found = weighted_median(values, weight)
    for c in range(2):
        for y in range(3):
            for x in range(3):
                place, share = values[:, c, y, x], weight[:, 0, y, x]
                below = [float(share[place <= value].sum()) for value in place.sort().values]
                first = next(i for i, passed in enumerate(below) if passed >= share.sum() / 2)
                assert found[c, y, x] == place.sort().values[first]
