"""The whole fit, against rendered photos."""

import pytest
import torch

from handrec.fitting.appearance import Appearance
from handrec.fitting.fit import Fit, fit_photo
from handrec.fitting.parameters import HandPrior
from handrec.fitting.photo import crop_hand
from handrec.fitting.photometric import PhotometricFit
from handrec.fitting.pictures import FitPictures
from handrec.hand.openhand import OpenHand
from handrec.render.warp_backend import WarpRasterizer
from handrec.types import HandBatch
from tests.fitting.scenes import Scene, pixel_error, scene, with_confidence

HAND, RASTERIZER = OpenHand(), WarpRasterizer()


@pytest.fixture(scope="module")
def photo() -> Scene:
    return scene("point", (0.2, -0.8, 0.4))


@pytest.fixture(scope="module")
def target(photo: Scene) -> HandBatch:
    """The photo's crop, its keypoints four pixels off: 4 % of the hand's box."""
    noise = torch.randn(21, 2, generator=torch.Generator().manual_seed(1)) * 4
    keypoints = with_confidence(photo.keypoints + noise)
    return crop_hand(photo.photo, keypoints, photo.intrinsics, "right", 112)


@pytest.fixture(scope="module")
def fit(target: HandBatch) -> Fit:
    return fit_photo(HAND, target, RASTERIZER, steps=60)


def test_pixels_mend_what_noisy_keypoints_spoil(photo: Scene, fit: Fit, target: HandBatch) -> None:
    first, last = (
        snapshot.parameters.decode(HAND, target.camera)
        for snapshot in (fit.snapshots[0], fit.snapshots[-1])
    )
    for field in (0, 1):  # vertices, joints
        before = pixel_error(first[field], photo.hand[field], photo.intrinsics)
        after = pixel_error(last[field], photo.hand[field], photo.intrinsics)
        assert after < 0.85 * before
    assert fit.overlap > 0.9
    assert fit.keypoint_error < 0.04  # it has not drifted


def test_the_rendering_comes_to_look_like_the_photo(fit: Fit, target: HandBatch) -> None:
    """The prediction is the last snapshot; its colours are the photo's, its texture in range."""
    texture = fit.prediction.texture
    assert texture.shape == (1, 3, 128, 128)
    assert 0 <= float(texture.min()) <= float(texture.max()) <= 1
    torch.testing.assert_close(texture, fit.snapshots[-1].texture)
    pictures = FitPictures(HAND, target, RASTERIZER, size=112)
    frames = [torch.from_numpy(frame).float() for frame in pictures.frames(fit)]
    off = [(frame[:, :112] - frame[:, 112:]).abs().mean() for frame in frames]
    assert frames[-1].shape == (112, 224, 3)
    assert off[-1] < 0.6 * off[0]
    assert pictures.sheet(fit).shape[1] > 4 * 112


def test_an_appearance_starts_in_the_colour_given_even_if_overexposed() -> None:
    for colour in ([0.6, 0.4, 0.3], [1.0, 0.95, 0.9]):
        appearance = Appearance(torch.tensor(colour))
        light = appearance.light()
        usual = light.ambient + light.directional / 2  # a surface at 60 degrees
        seen = appearance.texture()[..., 0, 0] * usual
        torch.testing.assert_close(seen, torch.tensor([colour]))
        assert appearance.texture().max() <= 0.76
        assert appearance.energy().item() == 0


def test_the_same_photo_gives_the_same_hand(fit: Fit, target: HandBatch) -> None:
    photometric = PhotometricFit(HAND, HandPrior(HAND), RASTERIZER)
    start = fit.snapshots[0].parameters
    found = []
    for _ in range(2):
        appearance = photometric.plain_appearance(start, target)
        segments = photometric.segment(start, target)
        found.append(photometric.descend(start, appearance, segments, target, 3))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, atol=0, rtol=0)
    assert not torch.equal(found[0].angles, start.angles)
