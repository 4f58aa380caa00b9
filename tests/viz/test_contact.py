"""Contact sheets: which samples they show, and where."""

import numpy as np
import torch

from handrec.render.torch_reference import TorchRasterizer
from handrec.viz import contact
from handrec.viz.contact import Example, Gallery
from handrec.viz.drawing import FINGER_COLOURS, WHITE

BLACK = np.zeros((100, 120, 3), np.uint8)
TRIANGLE = torch.tensor([[-0.1, -0.1, 0.5], [0.1, -0.1, 0.5], [0.0, 0.1, 0.5]])
INTRINSICS = torch.tensor([[100.0, 0, 60], [0, 100, 50], [0, 0, 1]])
FACES = torch.tensor([[0, 1, 2]])
#: Wrist at the bottom, five straight fingers, all on pixel centres.
KEYPOINTS = torch.tensor(
    [[60.5, 90.5]] + [[20.5 + 20 * f, 60.5 - 15 * b] for f in range(5) for b in range(4)]
)


def test_grid_places_pictures_row_by_row():
    pictures = [np.full((20, 30, 3), 40 * (i + 1), np.uint8) for i in range(5)]
    sheet = contact.grid(pictures, columns=3)
    assert sheet.shape == (2 * 26 + 6, 3 * 36 + 6, 3)
    for index in range(5):
        top, left = 6 + index // 3 * 26, 6 + index % 3 * 36
        assert (sheet[top : top + 20, left : left + 30] == 40 * (index + 1)).all()
    assert (sheet[-20:, -30:] == 255).all()
    captioned = contact.grid(pictures, columns=3, captions=list("abcde"))
    assert captioned.shape[0] > sheet.shape[0]
    assert (captioned[26:40, 6:36] < 100).any()  # ink under the first picture


def example(sample_id, error):
    return Example(
        sample_id=sample_id,
        error=error,
        picture=BLACK,
        intrinsics=INTRINSICS,
        keypoints=KEYPOINTS,
        target=KEYPOINTS,
        confidence=torch.ones(21),
        vertices=TRIANGLE,
    )


def test_the_gallery_is_bounded_and_keeps_the_extremes():
    errors = np.random.default_rng(0).gamma(2, 5, size=1000)
    gallery = Gallery(extremes=3, capacity=40)
    for sample_id, error in enumerate(errors):
        gallery.add(example(sample_id, error))
        assert len(gallery.examples) <= 40
    chosen = gallery.select(float(np.median(errors)))
    ranks = np.argsort(errors)
    assert [e.sample_id for e in chosen["best"]] == ranks[:3].tolist()
    assert [e.sample_id for e in chosen["worst"]] == ranks[::-1][:3].tolist()
    places = [int(np.flatnonzero(ranks == e.sample_id)[0]) for e in chosen["median"]]
    assert all(350 < place < 650 for place in places)


def test_a_small_gallery_shows_what_there_is():
    gallery = Gallery(extremes=4)
    gallery.add(example(7, 1.0))
    gallery.add(example(8, 3.0))
    chosen = gallery.select(2.0)
    assert [e.sample_id for e in chosen["worst"]] == [8, 7]
    assert [e.sample_id for e in chosen["best"]] == [7, 8]
    sheet = contact.contact_sheet(chosen, FACES, TorchRasterizer())
    assert sheet.shape == (3 * (100 + 26) + 6, 2 * (240 + 6) + 6, 3)


def test_the_sheet_shows_prediction_over_label_beside_the_mesh():
    shifted = example(0, 1.0)._replace(target=KEYPOINTS + 10)
    sheet = contact.contact_sheet({"only": [shifted]}, FACES, TorchRasterizer())
    left, right = sheet[6:106, 6:126], sheet[6:106, 126:246]
    np.testing.assert_allclose(left[52, 20], FINGER_COLOURS[0], atol=30)
    np.testing.assert_allclose(left[62, 30], WHITE, atol=30)
    assert not (left == right).all()
    assert right[50, 60].any()
