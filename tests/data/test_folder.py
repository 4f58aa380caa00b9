"""A folder of images: what is no picture is left out and counted, the rest becomes upright RGB."""

import logging

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from tests.sets import everything, prepared

from handrec.data.decode import complaint, decode, decode_crop, is_truncated
from handrec.data.folder import Folder
from handrec.errors import UserError

COLOUR = (200, 100, 40)


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "images"
    (root / "deep/er").mkdir(parents=True)
    colour = Image.new("RGB", (60, 40), COLOUR)
    colour.save(root / "a.png")
    colour.save(root / "deep/er/b.jpg", quality=98, subsampling=0)
    colour.convert("L").save(root / "grey.png")
    colour.convert("CMYK").save(root / "cmyk.jpg", quality=98, subsampling=0)
    alpha = colour.copy()
    alpha.putalpha(128)
    alpha.save(root / "alpha.png")
    colour.resize((20, 60)).save(root / "tiny.png")
    (root / "broken.jpg").write_bytes(b"no image")
    (root / "empty.png").touch()
    (root / "cut.jpg").write_bytes((root / "deep/er/b.jpg").read_bytes()[:-60])
    (root / "notes.txt").write_text("x")
    return root


def reader(root, **options):
    options = {"image_size": 32, "batch_size": 2, "num_workers": 0} | options
    return Folder(str(root), cache_dir=str(root.parent / "cache"), **options)


def test_what_is_no_picture_is_left_out_and_counted(root, caplog):
    with caplog.at_level(logging.WARNING):
        data = prepared(reader(root))
    assert [name.decode() for name in data.tables["images"].files] == [
        "a.png", "alpha.png", "cmyk.jpg", "deep/er/b.jpg", "grey.png",
    ]  # fmt: skip
    reasons = {line.split(": ")[0].rsplit("/", 1)[1]: line for line in data.skipped}
    assert sorted(reasons) == ["broken.jpg", "cut.jpg", "empty.png", "tiny.png"]
    assert "20 x 60 pixels, smaller than 32" in reasons["tiny.png"]
    assert "truncated" in reasons["cut.jpg"]
    assert "4 of 9 images left out" in caplog.text


def test_every_kind_becomes_rgb(root):
    read = everything(prepared(reader(root)), "images")
    expected = torch.tensor(COLOUR) / 255
    luma = (expected * torch.tensor([0.299, 0.587, 0.114])).sum().expand(3)
    for i, colour in enumerate([expected] * 4 + [luma]):
        assert (read.image[i].mean((1, 2)) - colour).abs().max() < 0.03, i
    assert not any(field.any() for name, field in read._asdict().items() if name.startswith("has_"))
    assert not read.confidence.any()
    assert read.crop_to_image[0, 0].tolist() == [60 / 32, 0, 0]  # the whole, in a square


def test_wide_images_go_on_mirrored(tmp_path):
    """Parallel streaks would tell a pre-training how its view was turned."""
    (tmp_path / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "images/a.png")
    Image.fromarray(pixels).save(tmp_path / "images/b.png")
    read = everything(prepared(reader(tmp_path / "images", image_size=64)), "images")
    shown = (255 * read.image[0]).round().byte().permute(1, 2, 0).numpy()
    expected = np.pad(pixels, ((16, 16), (0, 0), (0, 0)), mode="symmetric")
    np.testing.assert_array_equal(shown, expected)


def test_new_files_are_seen_and_the_split_is_by_name(root):
    data = prepared(reader(root, val_share=0.3))
    val = {data.tables["images"].files[i] for i in data.crops("val").samples}
    assert len(val) == 2
    Image.new("RGB", (50, 50)).save(root / "deep/new.png")
    again = prepared(reader(root, val_share=0.3))
    assert len(again.tables["images"]) == 6


def test_nothing_to_train_on(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(UserError, match="no images"):
        reader(tmp_path / "x").setup("fit")
    (tmp_path / "x/a.jpg").write_bytes(b"none")
    with pytest.raises(UserError, match=r"no image to train on .*a\.jpg: not an image"):
        reader(tmp_path / "x").setup("fit")


def picture(height, width):
    """Return a smooth picture: what a photo is once it is shown at a quarter of its size."""
    coarse = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize("shape", [(280, 320), (283, 317)])
@pytest.mark.parametrize("zoom", [0.7, 3.9, 4.1, 6.3, 8.2])
@pytest.mark.parametrize("mirror", [False, True])
def test_reduced_decoding_shows_the_same(tmp_path, shape, zoom, mirror):
    from handrec.data.crops import crop_affine, warp

    image = picture(*shape)
    cv2.imwrite(str(tmp_path / "a.jpg"), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    side = 30 * zoom
    affine = crop_affine((20.0, 10.0, 20.0 + side, 10.0 + side), 30, mirror)
    whole = decode((tmp_path / "a.jpg").read_bytes(), "a.jpg")
    expected = warp(whole, affine, 30).astype(int)
    found = decode_crop(tmp_path / "a.jpg", affine, 30, shape).astype(int)
    assert np.abs(found - expected).mean() < 1.0
    shifted = warp(whole, affine @ np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]]), 30)
    assert np.abs(found - shifted).mean() > 2 * np.abs(found - expected).mean()


def test_truncation_is_seen_whatever_the_decoder_says():
    image = picture(64, 64)
    for suffix in (".jpg", ".png"):
        encoded = cv2.imencode(suffix, image)[1].tobytes()
        assert not is_truncated(encoded)
        assert not is_truncated(encoded + b"\0" * 16)  # as some cameras pad
        for share in (0.5, 0.9, 0.995):
            assert is_truncated(encoded[: int(share * len(encoded))])
    preview = cv2.imencode(".jpg", image[:16, :16])[1].tobytes()
    encoded = cv2.imencode(".jpg", image)[1].tobytes()
    exif = b"\xff\xe1" + (len(preview) + 2).to_bytes(2, "big") + preview
    assert not is_truncated(encoded[:2] + exif + encoded[2:])
    assert is_truncated(encoded[:2] + exif + encoded[2:-30])


@pytest.mark.parametrize("length", [64, 512])
def test_zeros_inside_a_jpeg_are_complained_of(length, capfd):
    """Decoders fill in the rest; a training cannot tell it from a picture."""
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.integers(0, 255, (200, 300, 3), np.uint8), (0, 0), 3)
    whole = cv2.imencode(".jpg", image)[1].tobytes()
    assert complaint(whole) == ""
    start = whole.rfind(b"\xff\xda") + 20
    found = 0
    places = np.linspace(start, len(whole) - length - 2, 40).astype(int)
    for place in places:
        broken = whole[:place] + bytes(length) + whole[place + length :]
        assert not is_truncated(broken)
        assert decode(broken, "x").shape == image.shape
        capfd.readouterr()  # of decode
        found += complaint(broken).startswith("Corrupt JPEG data")
        assert capfd.readouterr().err == ""
    assert found > {64: 0.4, 512: 0.9}[length] * len(places)


def test_an_odd_header_is_no_damage(capfd):
    content = bytearray(cv2.imencode(".jpg", np.zeros((9, 9, 3), np.uint8))[1].tobytes())
    content[11] = 3  # JFIF 3.1
    decode(bytes(content), "x")
    assert "unknown JFIF revision" in capfd.readouterr().err  # libjpeg has a remark
    assert complaint(bytes(content)) == ""


def test_what_is_no_jpeg_or_cannot_be_decoded_is_not_complained_of():
    png = cv2.imencode(".png", np.zeros((9, 9, 3), np.uint8))[1].tobytes()
    for content in (b"", png, b"\xff\xd8no picture\xff\xd9"):
        assert complaint(content) == ""
