"""The atlas against barycentrics solved face by face, and against look-ups as renderers do them."""

import numpy as np
import pytest
import torch

from handrec.hand.openhand import OpenHand
from handrec.render.atlas import bake_atlas
from handrec.render.shading import sample_texture
from tests.standins import standin_mano

SIZE = 256


@pytest.fixture(scope="module", params=[OpenHand, standin_mano], ids=["openhand", "mano"])
def hand(request):
    return request.param()


def look_up(maps, uv):
    return sample_texture(maps[None], uv[None, None])[0, 0]


def test_positions_are_those_of_each_face():
    hand = OpenHand()
    atlas, checked = bake_atlas(hand, SIZE), 0
    for face in range(0, len(hand.faces), 97):
        a, b, c = hand.uv[hand.uv_faces[face]].double().numpy()
        columns, rows = np.array([a, b, c]).T * [[SIZE], [-SIZE]] + [[0], [SIZE]]
        for row in range(int(rows.min()), int(rows.max()) + 1):
            for column in range(int(columns.min()), int(columns.max()) + 1):
                point = np.array([(column + 0.5) / SIZE, 1 - (row + 0.5) / SIZE])
                second, third = np.linalg.solve(np.stack([b - a, c - a], axis=1), point - a)
                weights = np.array([1 - second - third, second, third])
                if weights.min() > 1e-3:
                    expected = weights @ hand.template[hand.faces[face]].double().numpy()
                    found = atlas.position[:, row, column].numpy()
                    np.testing.assert_allclose(found, expected, atol=1e-6)
                    assert atlas.inside[0, row, column]
                    checked += 1
    assert checked > 100


def test_a_renderers_look_up_finds_the_middle_of_faces():
    hand = OpenHand()
    atlas = bake_atlas(hand, 512)
    middle = hand.template[hand.faces].mean(1)
    found = look_up(atlas.position, hand.uv[hand.uv_faces].mean(1))
    assert (found - middle).norm(dim=1).max() < 1e-3
    assert (found - middle).norm(dim=1).mean() < 1e-4


def test_islands_go_on_beyond_their_borders():
    hand = OpenHand()
    atlas = bake_atlas(hand, 512)
    corners, vertices = hand.uv_faces.flatten(), hand.faces.flatten()
    error = (look_up(atlas.position, hand.uv[corners]) - hand.template[vertices]).norm(dim=1)
    on_border = torch.isin(
        vertices, torch.tensor([v for v in vertices.unique() if _copies(hand, v) > 1])
    )
    assert on_border.sum() > 500
    assert error[on_border].max() < 1.5e-3  # two texels are 1.3 mm
    assert error[on_border].mean() < 2e-4


def _copies(hand, vertex):
    return len(hand.uv_faces[hand.faces == vertex].unique())


def test_every_texel_is_filled(hand):
    atlas = bake_atlas(hand, SIZE)
    low, high = hand.template.amin(0) - 0.015, hand.template.amax(0) + 0.015
    points = atlas.position.flatten(1).T
    assert ((points >= low) & (points <= high)).all()
    torch.testing.assert_close(atlas.normal.norm(dim=0), torch.ones(SIZE, SIZE))
    assert atlas.inside.flatten()[atlas.texels].sum() == atlas.inside.sum()
    assert torch.equal(atlas.source[atlas.texels], torch.arange(len(atlas.texels)))


def test_spreading_returns_what_is_known():
    atlas = bake_atlas(OpenHand(), 64)
    values = torch.rand(2, 3, len(atlas.texels))
    spread = atlas.spread(values)
    assert torch.equal(spread.flatten(2)[..., atlas.texels], values)
    assert torch.equal(atlas.spread(atlas.position.flatten(1)[None, :, atlas.texels])[0],
                       atlas.position)  # fmt: skip


def test_it_is_baked_once_and_fit_for_training():
    hand = OpenHand()
    with torch.inference_mode():
        atlas = bake_atlas(hand, 64)
    assert bake_atlas(hand, 64) is atlas
    assert bake_atlas(hand, 32) is not atlas
    weight = torch.ones(3, 1, 1, requires_grad=True)
    (atlas.position * weight).sum().backward()
    torch.testing.assert_close(weight.grad.flatten(), atlas.position.sum((1, 2)))


def test_texels_are_as_far_apart_as_the_surface_says():
    hand = OpenHand()
    atlas = bake_atlas(hand, 512)
    step = (atlas.position[:, :, 1:] - atlas.position[:, :, :-1]).norm(dim=0)
    both = atlas.inside[0, :, 1:] & atlas.inside[0, :, :-1]
    assert step[both].median() == pytest.approx(atlas.pitch, rel=0.15)
