import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from handrec.data.appearance import backgrounds, otherworld, scenery
from handrec.data.appearance.backgrounds import FolderBackgrounds, OtherScenes, ProceduralScenes
from handrec.data.scenes import Uniform
from handrec.errors import UserError


def looks(family, count=6, seed=0):
    return family.sample(count, torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def scenes():
    small = pytest.MonkeyPatch()
    small.setattr(backgrounds, "_SIDE", 64)
    family = ProceduralScenes(scenes=len(scenery.SNAPSHOTS))
    family.draw(looks(family, 1), 32)  # its bank
    yield family
    small.undo()


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)

    def picture(shape):
        coarse = generator.integers(0, 256, (4, 4, *shape[2:]), dtype=np.uint8)
        return cv2.resize(coarse, shape[1::-1])

    (tmp_path / "deep/er").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "colour.png"), picture((90, 120, 3)))
    cv2.imwrite(str(tmp_path / "deep/grey.png"), picture((80, 80)))
    cv2.imwrite(str(tmp_path / "deep/er/alpha.png"), picture((100, 80, 4)))
    Image.fromarray(picture((70, 90, 4)), mode="CMYK").save(tmp_path / "cmyk.jpg")
    cv2.imwrite(str(tmp_path / "tiny.png"), picture((20, 20, 3)))
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    (tmp_path / "empty.png").touch()
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


@pytest.mark.parametrize("kind", dict.fromkeys([*scenery.SNAPSHOTS, *otherworld.OTHERWORLD]))
def test_each_kind_draws_different_pictures_in_range(kind):
    pictures, again = (kind(Uniform(torch.Generator().manual_seed(1)), 4, 48) for _ in "ab")
    assert pictures.shape == (4, 3, 48, 48)
    assert pictures.min() >= 0
    assert pictures.max() <= 1
    assert torch.equal(pictures, again)
    for one in range(3):
        assert (pictures[one] - pictures[one + 1]).abs().mean() > 0.01
    assert pictures.std((1, 2, 3)).min() > 1e-3


def test_dead_leaves_have_the_spectrum_of_photographs():
    pictures = scenery.clutter(Uniform(torch.Generator().manual_seed(0)), 6, 128).mean(1)
    line = torch.hann_window(128)
    pictures = (pictures - pictures.mean((1, 2), keepdim=True)) * line * line[:, None]
    amplitude = torch.fft.fft2(pictures).abs().square().mean(0).sqrt()
    frequency = torch.hypot(torch.fft.fftfreq(128), torch.fft.fftfreq(128)[:, None]) * 128
    rings = torch.arange(4, 33)
    level = torch.stack([amplitude[(frequency - ring).abs() < 0.5].mean() for ring in rings])
    slope = np.polyfit(np.log(rings.numpy()), np.log(level.numpy()), 1)[0]
    assert -1.35 < slope < -0.75


def test_looks_are_a_function_of_the_generator_alone(scenes):
    first, second, other = looks(scenes), looks(scenes), looks(scenes, seed=1)
    assert all(len(column) == 6 for column in first.values())
    for name, column in first.items():
        assert torch.equal(column, second[name])
        assert not torch.equal(column, other[name]) or name in {"flip", "blur"}


def test_a_row_alone_gives_the_same_picture_in_range(scenes):
    columns = looks(scenes, 12)
    together = scenes.draw(columns, 40)
    assert together.shape == (12, 3, 40, 40)
    assert together.min() >= 0
    assert together.max() <= 1
    for row in (0, 7):
        alone = scenes.draw({k: v[row : row + 1] for k, v in columns.items()}, 40)
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=0)
    assert (together[1:] - together[:-1]).abs().mean((1, 2, 3)).min() > 0.01


def test_the_bank_depends_on_the_seed_alone(scenes, monkeypatch):
    monkeypatch.setattr(backgrounds, "_SIDE", 64)
    again, other = (ProceduralScenes(len(scenery.SNAPSHOTS), seed=seed) for seed in (0, 1))
    assert torch.equal(again.make(), scenes.make())
    assert not torch.equal(other.make(), scenes.make())


def test_a_look_is_the_same_scene_at_every_size(scenes):
    columns = looks(scenes)
    small = torch.nn.functional.avg_pool2d(scenes.draw(columns, 64), 2)
    assert (small - scenes.draw(columns, 32)).abs().mean() < 0.03


def test_columns_do_what_they_say(scenes):
    plain = {name: column[:1].clone() for name, column in looks(scenes).items()}
    zero, one = torch.zeros(1), torch.ones(1)
    plain |= {"flip": zero, "turn": zero, "blur": zero, "tint": torch.ones(1, 3), "zoom": one}
    plain["scene"] = torch.full((1,), 0.3)
    picture = scenes.draw(plain, 42)
    # Untouched and whole, it is the bank's picture; the pictures of the bank have 63 pixels here.
    bank = scenes.bank(42, torch.device("cpu"))
    whole = bank[int(0.3 * len(bank))][None].float() / 255
    torch.testing.assert_close(
        picture,
        torch.nn.functional.interpolate(whole, (42, 42), mode="bilinear"),
        atol=1e-4,
        rtol=0,
    )
    flipped = scenes.draw(plain | {"flip": one}, 42)
    torch.testing.assert_close(flipped, picture.flip(-1), atol=1e-4, rtol=0)
    tinted = scenes.draw(plain | {"tint": torch.tensor([[0.5, 1.0, 0.25]])}, 42)
    torch.testing.assert_close(
        tinted.square().mean((2, 3)) / picture.square().mean((2, 3)),
        torch.tensor([[0.5, 1.0, 0.25]]),
    )
    blurred = scenes.draw(plain | {"blur": torch.full((1,), 0.06)}, 42)
    assert blurred.diff(dim=-1).abs().mean() < 0.7 * picture.diff(dim=-1).abs().mean()


def test_other_scenes_are_louder(monkeypatch, scenes):
    monkeypatch.setattr(backgrounds, "_SIDE", 64)
    other = OtherScenes(scenes=16)

    def saturation(family):
        picture = family.draw(looks(family, 64), 32)
        return (picture.amax(1) - picture.amin(1)).mean()

    assert saturation(other) > 2 * saturation(scenes)


def test_a_folder_gives_what_can_be_read_and_counts_the_rest(folder, caplog):
    family = FolderBackgrounds(str(folder))
    columns = looks(family, 20)
    pictures = family.draw(columns, 32)
    assert family.bank(32, torch.device("cpu")).shape[0] == 4
    assert family.skipped == 3
    assert "skipped 3 of 7 images" in caplog.text
    assert pictures.shape == (20, 3, 32, 32)
    assert 0 <= pictures.min() < pictures.max() <= 1
    grey = (family.make().float().std(1).mean((1, 2)) < 1e-3).sum()
    assert grey == 1


def test_a_limit_takes_photos_from_all_over(folder):
    for name in ("broken.jpg", "empty.png", "tiny.png"):
        (folder / name).unlink()
    every = FolderBackgrounds(str(folder)).make()
    two = FolderBackgrounds(str(folder), limit=2).make()
    assert torch.equal(two, every[::2])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such folder"),
        ([], "no images"),
        (["bad.png"], "none of its 1 images can be used"),
    ],
)
def test_folders_without_photos_are_refused_in_one_line(tmp_path, content, message):
    folder = tmp_path / "photos"
    if content is not None:
        folder.mkdir()
        for name in content:
            (folder / name).write_bytes(b"nothing")
    family = FolderBackgrounds(str(folder))
    with pytest.raises(UserError, match=message) as error:
        family.draw(looks(family), 32)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "build", [lambda: ProceduralScenes(scenes=0), lambda: FolderBackgrounds(".", limit=0)]
)
def test_empty_banks_are_refused(build):
    with pytest.raises(UserError, match="at least 1"):
        build()
