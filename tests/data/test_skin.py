"""Skin: what is where, seen in the painted textures and not in the painter's own maps."""

import cv2
import numpy as np
import pytest
import torch
from tests.standins import standin_mano

from handrec.data.appearance.everyday import Everyday
from handrec.data.appearance.noise import noise
from handrec.data.appearance.recovered import RecoveredSkins
from handrec.data.appearance.skin import back_tone, nail_mask, paint_skin, sample_skin
from handrec.data.appearance.skin_bank import SkinBank, shift_tone, skin_bank
from handrec.errors import UserError
from handrec.hand.anatomy import DORSAL
from handrec.hand.joints import FINGERS, JOINTS
from handrec.hand.openhand import OpenHand
from handrec.render.atlas import bake_atlas
from handrec.render.colour import srgb_to_lab
from handrec.render.shading import sample_texture

SIZE = 256


@pytest.fixture(scope="module")
def hand():
    return OpenHand()


def skins(count, seed=0, **columns):
    skin = sample_skin(count, torch.Generator().manual_seed(seed))
    plain = {"polish": torch.zeros(count, 4), "moles": torch.zeros(count, 5, 2)}
    return skin._replace(**plain | columns)


def one_person(tones):
    """Return a table that differs in tone only."""
    return skins(1).rows(torch.zeros(len(tones), dtype=torch.long))._replace(tone=tones)


def rest_joints(hand):
    return hand.decode(torch.eye(3).expand(1, 16, 3, 3), torch.zeros(1, 10), torch.zeros(1, 3))[1][
        0
    ]


def sides(hand):
    """Return the middle of the palm and of the back of the hand, as masks of the atlas."""
    atlas, joints = bake_atlas(hand, SIZE), rest_joints(hand)
    along = atlas.position[0] / joints[JOINTS.index("middle_mcp"), 0]
    metacarpus = (along > 0.3) & (along < 0.8) & atlas.inside[0]
    return metacarpus & (atlas.normal[1] < -0.7), metacarpus & (atlas.normal[1] > 0.7)


def mean_lab(textures, mask):
    return srgb_to_lab(textures)[:, :, mask].mean(-1)


def test_colours_are_finite_and_in_range(hand):
    for model in (hand, standin_mano()):
        textures = paint_skin(model, skins(3), 128)
        assert textures.shape == (3, 3, 128, 128)
        assert 0 <= textures.min() <= textures.max() <= 1


def test_the_same_table_gives_the_same_skin(hand):
    assert all(torch.equal(a, b) for a, b in zip(skins(4), skins(4), strict=True))
    assert torch.equal(paint_skin(hand, skins(2), 128), paint_skin(OpenHand(), skins(2), 128))


def test_rows_do_not_depend_on_each_other(hand):
    skin = sample_skin(4, torch.Generator().manual_seed(3))
    alone = paint_skin(hand, skin.rows(torch.tensor([2])), 128)
    torch.testing.assert_close(paint_skin(hand, skin, 128)[2:3], alone, atol=1e-5, rtol=0)


def test_identities_differ(hand):
    tones = torch.full((4,), 3.0)
    textures = paint_skin(hand, skins(4, tone=tones, undertone=torch.zeros(4, 2)), 128)
    differences = (textures[:, None] - textures[None]).abs().mean((2, 3, 4))
    assert (differences[~torch.eye(4, dtype=torch.bool)] > 0.01).all()


def test_tones_run_along_the_scale(hand):
    lightness, _, yellow = mean_lab(
        paint_skin(hand, one_person(torch.arange(10.0)), SIZE), sides(hand)[1]
    ).unbind(1)
    angle = torch.rad2deg(torch.atan2(lightness - 50, yellow))  # individual typology angle
    assert (angle.diff() < -1).all()
    assert angle[0] > 55  # "very light"
    assert angle[-1] < -30  # "dark"


def test_the_back_has_the_tone_it_is_given(hand):
    tones = torch.tensor([1.0, 4.3, 8.0])
    skin = one_person(tones)._replace(undertone=torch.zeros(3, 2))
    found = mean_lab(paint_skin(hand, skin, SIZE), sides(hand)[1])
    torch.testing.assert_close(found, back_tone(tones), atol=4.0, rtol=0)


def test_palms_are_redder_and_those_of_dark_skin_lighter(hand):
    textures = paint_skin(hand, one_person(torch.tensor([1.0, 4.0, 7.0, 9.0])), SIZE)
    palm, back = (mean_lab(textures, side) for side in sides(hand))
    contrast = palm - back
    assert (contrast[:, 1] > 1).all()
    assert (contrast[2:, 0] > 10).all()
    assert contrast[0, 0].abs() < 10
    assert (contrast[:, 0].diff() > 0).all()


def test_nails_are_on_the_back_of_all_fingertips(hand):
    atlas, joints = bake_atlas(hand, SIZE), rest_joints(hand)
    bare, green = skins(1), skins(1, polish=torch.tensor([[0.0, 1.0, 0.0, 1.0]]))
    change = (paint_skin(hand, bare, SIZE) - paint_skin(hand, green, SIZE)).abs().sum(1)[0]
    nails = (change > 0.3) & atlas.inside[0]
    position, normal = atlas.position[:, nails].T, atlas.normal[:, nails].T
    tips = joints[[JOINTS.index(f"{finger}_tip") for finger in FINGERS]]
    distance, finger = torch.cdist(position, tips).min(1)
    dorsal = torch.tensor([DORSAL[name] for name in FINGERS])[finger]
    assert distance.max() < 0.022
    assert ((normal * dorsal).sum(1) > -0.25).all()  # plates bend over the tip
    assert ((normal * dorsal).sum(1).mean()) > 0.6
    area = torch.bincount(finger, minlength=5) * (1e3 * atlas.pitch) ** 2
    assert ((area > 40) & (area < 300)).all()  # square millimetres


def test_nail_mask_is_where_polish_goes(hand):
    green = skins(1, polish=torch.tensor([[0.0, 1.0, 0.0, 1.0]]), nails=torch.tensor([[1.0, 1, 0]]))
    painted = paint_skin(hand, green, SIZE)[0]
    is_green = (painted[1] > 0.7) & (painted[0] < 0.5)
    mask = nail_mask(hand, SIZE)[0]
    assert is_green.any()
    assert (mask[is_green] > 0.4).all()
    assert not is_green[mask < 0.2].any()


@pytest.mark.parametrize("finger", FINGERS[1:])
def test_creases_are_on_the_palm_side_at_the_joints(hand, finger):
    atlas, joints = bake_atlas(hand, SIZE), rest_joints(hand)
    smooth, deep = (skins(1, creases=torch.tensor([depth])) for depth in (0.0, 1.0))
    change = (paint_skin(hand, smooth, SIZE) - paint_skin(hand, deep, SIZE)).sum(1)[0]
    pip, dip, tip = (joints[JOINTS.index(f"{finger}_{name}")] for name in ("pip", "dip", "tip"))
    for joint, following in ((pip, dip), (dip, tip)):
        axis = torch.nn.functional.normalize(following - joint, dim=0)
        offset = atlas.position.permute(1, 2, 0) - joint
        along = offset @ axis
        around = ((offset - along[..., None] * axis).norm(dim=-1) < 0.012) & atlas.inside[0]
        near = around & (along.abs() < 0.004)
        palm, back = near & (atlas.normal[1] < -0.7), near & (atlas.normal[1] > 0.7)
        between = around & ((along - 0.011).abs() < 0.003) & (atlas.normal[1] < -0.7)
        assert change[palm].mean() > 0.04
        assert change[back].abs().max() < 1e-3
        assert change[between].mean() < 0.3 * change[palm].mean()


def test_no_seam_shows(hand):
    textures = paint_skin(hand, skins(4, seed=5), 512)
    pairs = torch.stack([hand.faces.flatten(), hand.uv_faces.flatten()]).unique(dim=1)
    vertices, uv = pairs[:, pairs[0].argsort()]
    same = vertices[1:] == vertices[:-1]
    first, second = (hand.uv[rows].expand(4, 1, -1, -1) for rows in (uv[:-1][same], uv[1:][same]))
    assert same.sum() > 150
    step = (sample_texture(textures, first) - sample_texture(textures, second)).abs()
    assert step.mean() < 0.006
    assert step.max() < 0.1


def test_banked_skins_are_those_painted(hand):
    bank = SkinBank(hand, 128, count=5, seed=2)
    index = torch.tensor([4, 1])
    expected = paint_skin(hand, bank.skin.rows(index), 128)
    torch.testing.assert_close(bank.textures(index), expected, atol=0.5 / 255 + 1e-5, rtol=0)


def test_shifts_of_tone_meet_their_target(hand):
    inside = bake_atlas(hand, 128).inside
    bank = SkinBank(hand, 128, count=3, seed=4)
    index = torch.arange(3)
    target = bank.tone + torch.tensor([[6.0, 2.0, -2.0], [-5.0, 0.0, 3.0], [3.0, -1.0, 0.0]])
    exact = shift_tone(bank.textures(index), inside, target)
    torch.testing.assert_close(mean_lab(exact, inside[0]), target, atol=0.3, rtol=0)
    quick = bank.textures(index, target - bank.tone)
    torch.testing.assert_close(mean_lab(quick, inside[0]), target, atol=1.5, rtol=0)


def test_banks_are_kept(hand):
    assert skin_bank(hand, 64, 2, 0) is skin_bank(hand, 64, 2, 0)
    assert skin_bank(hand, 64, 2, 0) is not skin_bank(hand, 64, 2, 1)


def write_texture(folder, name, colour, model="OpenHand"):
    folder.mkdir(exist_ok=True)
    cv2.imwrite(str(folder / f"{name}.png"), np.full((32, 32, 3), colour[::-1], np.uint8))
    (folder / f"{name}.json").write_text(f'{{"hand_model": "{model}"}}')


def test_recovered_skins_follow_the_painted_ones_and_are_worn_by_their_share(hand, tmp_path):
    colours = [(150, 100, 80), (90, 60, 50)]
    for name, colour in zip("ba", reversed(colours), strict=True):  # by name
        write_texture(tmp_path, name, colour)
    cv2.imwrite(str(tmp_path / "b_views.png"), np.zeros((8, 8, 3), np.uint8))  # is no texture
    skins = RecoveredSkins(str(tmp_path), share=0.25, painted=3)
    bank = skin_bank(hand, 64, skins, 0)
    assert bank is skin_bank(hand, 64, RecoveredSkins(str(tmp_path), 0.25, 3), 0)
    painted = skin_bank(hand, 64, 3, 0)
    torch.testing.assert_close(bank.tone[:3], painted.tone)
    texture = bank.textures(torch.tensor([3, 4]))
    expected = torch.tensor(colours)[..., None, None].expand(2, 3, 64, 64) / 255
    torch.testing.assert_close(texture, expected, atol=1 / 255, rtol=0)
    lab = srgb_to_lab(expected)[..., 0, 0]
    torch.testing.assert_close(bank.tone[3:], lab, atol=0.5, rtol=0)
    who = Everyday(skins)._identities(torch.linspace(0, 1, 4001)[:-1], 5)
    share = torch.bincount(who, minlength=5) / len(who)
    torch.testing.assert_close(
        share, torch.tensor([0.25, 0.25, 0.25, 0.125, 0.125]), atol=1e-3, rtol=0
    )


def test_textures_that_do_not_fit_are_refused(hand, tmp_path):
    with pytest.raises(UserError, match="no texture"):
        RecoveredSkins(str(tmp_path / "none")).read(hand, 64)
    with pytest.raises(UserError, match="share lies in"):
        RecoveredSkins("x", share=2.0)
    write_texture(tmp_path / "mano", "a", (9, 9, 9), model="Mano")
    with pytest.raises(UserError, match="a texture of Mano, not of OpenHand"):
        RecoveredSkins(str(tmp_path / "mano")).read(hand, 64)
    write_texture(tmp_path / "wide", "a", (9, 9, 9))
    cv2.imwrite(str(tmp_path / "wide" / "a.png"), np.zeros((8, 9, 3), np.uint8))
    with pytest.raises(UserError, match="9 x 8 texels; textures are square"):
        RecoveredSkins(str(tmp_path / "wide")).read(hand, 64)
    (tmp_path / "wide" / "a.json").write_text("[]")
    with pytest.raises(UserError, match="does not say which hand_model"):
        RecoveredSkins(str(tmp_path / "wide")).read(hand, 64)


def test_noise_is_standard_and_as_coarse_as_asked():
    points = torch.rand(20000, 3, generator=torch.Generator().manual_seed(0)) * 0.2
    offset = torch.tensor([[0.1, 0.7, 0.4], [0.5, 0.2, 0.9]])
    values = noise(points, offset, 0.01)
    assert values.mean().abs() < 0.05
    assert values.std() == pytest.approx(0.8, abs=0.05)
    nearby, apart = (noise(points + distance, offset, 0.01) for distance in (0.0003, 0.05))
    assert (values * nearby).mean() > 0.9 * 0.64
    assert (values * apart).mean().abs() < 0.1
    assert (values[0] * values[1]).mean().abs() < 0.1


def test_an_identity_is_the_same_at_every_size(hand):
    skin = sample_skin(2, torch.Generator().manual_seed(9))
    skin = skin._replace(moles=torch.tensor([[[0.3, 0.003]]]).expand(2, 5, 2))
    small, large = (paint_skin(hand, skin, size) for size in (128, 256))
    inside = bake_atlas(hand, 128).inside[0]
    shrunk = torch.nn.functional.avg_pool2d(large, 2)
    assert (small - shrunk)[..., inside].abs().mean() < 0.02
    darkest = [x.where(inside, 2.0).flatten(1).argmin(1) for x in (small.sum(1), shrunk.sum(1))]
    for first, second in zip(*darkest, strict=True):
        assert (first // 128 - second // 128).abs() <= 2
        assert (first % 128 - second % 128).abs() <= 2
