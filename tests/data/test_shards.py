"""Shards: dealt out without overlap, shuffled, sides and keypoints kept, damage counted."""

import http.server
import io
import json
import re
import tarfile
import threading
import time
from collections import Counter
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from tests.sets import SIZE, drawn, hand_model

from handrec.data.augment import Augmentation
from handrec.data.packing import pack_folder, write_drawn
from handrec.data.shards import INDEX, Shards, read_annotation, read_shard, write_shards
from handrec.data.streams import Picture, Source, Stream, reader_share
from handrec.errors import UserError


def picture(value, size=40):
    """Return a grey PNG that tells its number."""
    image = np.full((size, size, 3), value, np.uint8)
    image[::2] += 20  # not flat
    return cv2.imencode(".png", image)[1].tobytes()


@pytest.fixture
def shards(tmp_path):
    samples = (("png", picture(4 * i), {}) for i in range(30))
    write_shards(tmp_path / "set", samples, per_shard=6)
    return tmp_path / "set"


def module(folder, **options):
    common = {"image_size": 32, "batch_size": 2, "num_workers": 0, "val_share": 0.2}
    return Shards(str(folder), hand=hand_model("OpenHand"), **common | options)


def numbers(batches):
    return [n for batch in batches for n in batch.crops.sample_id.tolist()]


def test_readers_share_everything_once():
    for count in range(1, 7):
        sources = [Source(str(i), i) for i in range(count)]
        for readers in range(1, 15):
            seen = []
            for reader in range(readers):
                for source, turn, turns in reader_share(sources, reader, readers):
                    seen += [(source.number, k) for k in range(60) if k % turns == turn]
            assert sorted(seen) == [(i, k) for i in range(count) for k in range(60)], readers


@pytest.mark.parametrize(("processes", "workers"), [(1, 0), (1, 2), (2, 0), (3, 2)])
def test_processes_and_workers_see_different_pictures(shards, processes, workers):
    data = module(shards)
    data.setup("fit")
    seen = []
    for process in range(processes):
        stream = Stream(
            data.sources["train"], data.reader(), 32, 2, 1.5, 24 // (2 * processes),
            buffer=5, process=(process, processes),
        )  # fmt: skip
        loader = torch.utils.data.DataLoader(stream, batch_size=None, num_workers=workers)
        batches = list(loader)
        assert len(batches) == len(loader) == 24 // (2 * processes)
        seen += numbers(batches)
    if 4 % (processes * max(workers, 1)) == 0:  # else some readers have more than others
        assert len(set(seen)) == 24
    assert seen != sorted(seen)


def test_epochs_go_on_through_the_data(shards):
    """An epoch shorter than the data does not show the same beginning again and again."""
    torch.manual_seed(0)
    data = module(shards, length=6, buffer=1)
    data.setup("fit")
    loader = data.train_dataloader()
    assert len(loader) == 3
    seen = {n for _ in range(4) for n in numbers(loader)}
    assert len(seen) == 24


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_training_does_not_begin_with_what_it_has_had(shards, workers):
    def first_pictures(so_far):
        data = module(shards, num_workers=workers, buffer=30)
        data.setup("fit")
        data.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        stream = iter(data.train_dataloader())  # Lightning has it before it knows how far it is
        data.trainer.fit_loop.epoch_loop.batch_progress.total.ready = so_far
        return numbers([next(stream) for _ in range(6)])

    assert first_pictures(0) == first_pictures(0)
    assert first_pictures(100) == first_pictures(100)
    assert first_pictures(0) != first_pictures(100)


def test_validation_is_held_out_in_order_and_bounded(shards):
    data = module(shards)
    data.setup("fit")
    assert data.sources["train"][0].name != data.sources["val"][0].name
    train = set(numbers(data.train_dataloader()))
    val = numbers(data.val_dataloader())
    assert len(val) == 6
    assert val == sorted(val)
    assert train.isdisjoint(val)
    bounded = module(shards, val_size=3)
    bounded.setup("fit")
    assert len(numbers(bounded.val_dataloader())) == 3


def test_a_single_archive_is_cut(tmp_path):
    write_shards(tmp_path / "set", (("png", picture(i), {}) for i in range(20)))
    data = module(tmp_path / "set" / "000000.tar", val_share=0.1)
    data.setup("fit")
    assert len(set(numbers(data.train_dataloader()))) == 18
    assert numbers(data.val_dataloader()) == [18, 19]


def test_boxes_sides_and_keypoints_survive(tmp_path):
    batch = drawn("OpenHand")
    write_drawn(tmp_path / "set", [batch], hand_model("OpenHand"), per_shard=4)
    data = module(tmp_path / "set", image_size=SIZE, box_scale=1.5)
    data.setup("fit")
    torch.manual_seed(0)
    for split in (data.val_dataloader(), data.train_dataloader()):
        for read in map(partial(data.on_after_batch_transfer, dataloader_idx=0), split):
            extent = (read.keypoints_2d.amax(1) - read.keypoints_2d.amin(1)).amax(1)
            torch.testing.assert_close(
                extent * 1.5, torch.full((2,), float(SIZE)), rtol=1e-4, atol=0
            )
            assert read.confidence.all()
            assert not read.has_joints_3d.any()
            back = torch.einsum("bij,bnj->bni", read.crop_to_image[:, :2, :2], read.keypoints_2d)
            back += read.crop_to_image[:, None, :2, 2]
            apart = (back[:, None] - batch.keypoints_2d[None]).abs().amax((2, 3))
            assert apart.min(1).values.max() < 1e-3


def test_left_hands_are_mirrored():
    annotation = {"side": "left", "box": [0, 0, 40, 40], "keypoints": [[10, 20, 0.5]] * 21}
    image = np.zeros((40, 40, 3), np.uint8)
    image[:, :20] = 200
    source = Source("x", 0)

    def read(_):
        yield Picture(image, "x", 0, read_annotation(annotation))

    stream = Stream([source], read, 40, 1, 1.0)
    (batch,) = list(stream)
    assert batch.crops.picture[0, :, 25:].float().mean() > 150  # on the right now
    from handrec.data.crop_set import to_hand_batch

    read = to_hand_batch(batch.crops, None, False, "vectors")
    torch.testing.assert_close(read.keypoints_2d[0, 0], torch.tensor([30.0, 20.0]))
    assert read.confidence[0, 0] == 0.5
    assert read.is_left.tolist() == [1.0]


def test_keypoints_are_looked_for(shards, tmp_path, monkeypatch):
    """Among the first pictures; archives of which nothing can be read are not said to lack any."""
    data = module(shards)
    data.setup("fit")
    assert not data.has_keypoints
    for number, sure in enumerate((0.0, 0.5)):
        content = [{}, {"keypoints": [[1, 2, sure]] * 21}]
        samples = (("png", picture(i), content[i % 2]) for i in range(6))
        write_shards(tmp_path / str(number), samples, per_shard=3)
        data = module(tmp_path / str(number))
        data.setup("fit")
        assert data.has_keypoints == (sure > 0)
    monkeypatch.setattr("handrec.data.shards._LOOKED_AT", (1, 1))
    assert not data.has_keypoints
    Path(data.sources["train"][0].name).write_bytes(b"no archive")
    assert data.has_keypoints


def test_augmentation_moves_the_keypoints_with_the_picture(tmp_path):
    image = np.zeros((64, 64, 3), np.uint8)
    cv2.circle(image, (40, 24), 4, (255, 255, 255), -1)
    encoded = cv2.imencode(".png", image)[1].tobytes()
    content = {"box": [8, 8, 56, 56], "keypoints": [[40.5, 24.5, 1]] * 21}
    write_shards(tmp_path / "set", (("png", encoded, content) for _ in range(12)), per_shard=6)
    torch.manual_seed(0)
    quiet = Augmentation(brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0, blur=0.0, noise=0.0)
    data = module(tmp_path / "set", image_size=64, augmentation=quiet, box_scale=1.0)
    data.setup("fit")
    centres = torch.arange(64) + 0.5
    angles = []
    for batch in data.train_dataloader():
        read = data.on_after_batch_transfer(batch, 0)
        for light, keypoint in zip(read.image.mean(1), read.keypoints_2d[:, 0], strict=True):
            if ((keypoint > 10) & (keypoint < 54)).all():
                x, y = (light * centres).sum(), (light * centres[:, None]).sum()
                found = torch.stack([x, y]) / light.sum()
                torch.testing.assert_close(found, keypoint, atol=0.6, rtol=0)
        angles += batch.crops.moves.angle.tolist()
    assert np.std(angles) > 0.05


def damage(folder):
    """Cut one archive, make another no archive, and break a picture and a description."""
    paths = sorted(folder.glob("*.tar"))
    paths[0].write_bytes(paths[0].read_bytes()[:5000])
    paths[1].write_bytes(b"no archive at all" * 100)
    with tarfile.open(paths[2], "w") as archive:
        for name, content in (
            ("a.png", b"broken"), ("b.png", picture(1)), ("b.json", b"{]"), ("c.txt", b"text"),
            ("d.png", picture(2)), ("d.json", json.dumps({"box": [1, 2, 1, 5]}).encode()),
            ("e.png", picture(3)), ("e.json", json.dumps({"keypoints": [[1, 2, 3]]}).encode()),
            ("f.png", picture(4)),
        ):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    (folder / INDEX).unlink()
    return paths


def test_damage_is_left_out_and_counted(shards, caplog):
    paths = damage(shards)
    found = [list(read_shard(Source(str(path), 0))) for path in paths]
    faults = [[x for x in one if isinstance(x, str)] for one in found]
    assert "damaged from here on" in faults[0][0]
    assert sum(isinstance(x, Picture) for x in found[0]) >= 1
    assert "no archive" in faults[1][0]
    said = "\n".join(faults[2])
    for part in ("b.json", "c: no picture among txt", "d.json: box of zero area", "21 times [x"):
        assert part in said
    data = module(shards, length=40, val_share=0.3)
    data.setup("fit")
    data.sources["train"] = [Source(str(path), i) for i, path in enumerate(paths)]
    assert len(list(data.train_dataloader())) == 20
    with caplog.at_level("WARNING"):
        for batch in data.train_dataloader():
            data.on_after_batch_transfer(batch, 0)
        data.teardown("fit")
    assert data.skipped >= 6
    assert "left out: " in caplog.text
    assert f"{data.skipped} pictures or archives were left out" in caplog.text


def test_nothing_readable_ends_the_training(tmp_path):
    write_shards(tmp_path / "set", (("png", b"no", {}) for _ in range(6)), per_shard=3)
    data = module(tmp_path / "set", length=4)
    data.setup("fit")
    (batch,) = list(data.train_dataloader())
    with pytest.raises(UserError, match=r"shards: no picture can be read: .*not an image"):
        data.on_after_batch_transfer(batch, 0)


@pytest.mark.parametrize("good", [3, 4])
def test_what_is_skipped_after_the_last_batch_is_told(tmp_path, good):
    samples = [("png", picture(i), {}) for i in range(good)] + [("png", b"none", {})]
    write_shards(tmp_path / "set", samples)
    source = Source(str(tmp_path / "set/000000.tar"), 0)
    first, second = Stream([source], read_shard, 16, 2, 1.0)
    assert first.skipped == ()
    assert len(second.crops.frame) == good - 2
    assert ["not an image" in line for line in second.skipped] == [True]


@contextmanager
def served(folder, handler=None):
    """Serve a folder; yield the address of its archives, with a range in braces."""
    handler = partial(handler or QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/{{000000..000004}}.tar"
        finally:
            server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    asked: ClassVar[Counter] = Counter()

    def do_GET(self):
        self.asked[self.path] += 1
        super().do_GET()

    def log_message(self, *args):
        pass


class Failing(QuietHandler):
    """Refuses once, dies in the middle of an archive, between two files of one, and hangs."""

    def do_GET(self):
        content = Path(self.directory, self.path[1:]).read_bytes()
        self.asked[self.path] += 1
        if self.path == "/000001.tar" and self.asked[self.path] == 1:
            self.send_error(503)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        cut = {"/000002.tar": 1500, "/000003.tar": 2048, "/000004.tar": 1500}
        self.wfile.write(content[: cut.get(self.path)])
        if self.path == "/000004.tar":
            time.sleep(1.0)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    QuietHandler.asked.clear()
    monkeypatch.setattr("handrec.data.shards._WAITS", (0.0, 0.0))
    monkeypatch.setattr("handrec.data.shards._silent", set())


class Busy(QuietHandler):
    """Answers nothing but that it is busy, four times."""

    def do_GET(self):
        if sum(self.asked.values()) < 4:
            self.asked[self.path] += 1
            self.send_error(503)
        else:
            super().do_GET()


def test_a_silent_server_is_waited_for_once(shards):
    with served(shards, Busy) as pattern:
        urls = [pattern.replace("{000000..000004}", f"00000{i}") for i in range(3)]
        read = [list(read_shard(Source(url, 0))) for url in urls]
        assert [QuietHandler.asked[f"/00000{i}.tar"] for i in range(3)] == [3, 1, 1]
        assert [len(found) for found in read] == [1, 1, 6]  # it is back
        assert "503" in read[1][0]


def test_validation_on_nothing_readable_ends_the_training_too(tmp_path):
    write_shards(tmp_path / "set", (("png", picture(i), {}) for i in range(6)), per_shard=3)
    data = module(tmp_path / "set", length=2)
    data.setup("fit")
    Path(data.sources["val"][0].name).write_bytes(b"")
    (batch,) = list(data.val_dataloader())
    with pytest.raises(UserError, match=r"shards: no picture can be read: .*tar"):
        data.on_after_batch_transfer(batch, 0)


def test_archives_come_from_urls(shards):
    with served(shards) as pattern:
        data = module(pattern, length=24)
        data.setup("fit")
        seen = set(numbers(data.train_dataloader()))
        assert len(seen) == 24
        assert len(numbers(data.val_dataloader())) == 6
        endless = module(pattern)
        endless.setup("fit")
        with pytest.raises(UserError, match=r"nothing says how many pictures http.*length=N"):
            endless.train_dataloader()
        single = module(pattern.replace("{000000..000004}", "000000"), length=4)
        with pytest.raises(UserError, match="is the only source and of unknown length: give two"):
            single.setup("fit")


def test_an_archive_that_the_server_has_not_is_told_and_left_out(shards, caplog):
    (shards / "000002.tar").unlink()
    with served(shards) as pattern:
        gone = pattern.replace("{000000..000004}", "000002")
        assert list(read_shard(Source(gone, 0))) == [f"{gone}: HTTP Error 404: File not found"]
        assert QuietHandler.asked["/000002.tar"] == 1  # it will not come
        data = module(pattern, length=30, buffer=1)  # into the second time
        data.setup("fit")
        data.sources["train"] = [Source(gone.replace("2.tar", f"{i}.tar"), i) for i in range(5)]
        seen = []
        for batch in data.train_dataloader():
            seen += data.on_after_batch_transfer(batch, 0).sample_id.tolist()
        assert len(set(seen)) == 24
        assert data.skipped >= 1
        assert "left out: http" in caplog.text
        assert "404" in caplog.text


def test_a_server_that_fails_costs_what_it_did_not_send(shards, monkeypatch):
    monkeypatch.setattr("handrec.data.shards._SECONDS", 0.2)
    with served(shards, Failing) as pattern:
        urls = [pattern.replace("{000000..000004}", f"00000{i}") for i in range(5)]
        read = [list(read_shard(Source(url, 0))) for url in urls]
    sizes = [(shards / f"00000{i}.tar").stat().st_size for i in range(5)]
    assert [sum(isinstance(x, Picture) for x in found) for found in read] == [6, 6, 1, 2, 0]
    assert QuietHandler.asked["/000001.tar"] == 2  # it was busy, and asked again
    for i, sent in ((2, 1500), (3, 2048)):
        assert read[i][-1] == f"{urls[i]}: ends too early, {sizes[i] - sent:,} bytes did not come"
    assert read[4][-1] == f"{urls[4]}: broke off (timed out)"


def test_a_server_that_is_gone_ends_the_training(shards):
    with served(shards) as pattern:
        data = module(pattern, length=1000, buffer=1)
        data.setup("fit")
        batches = iter(data.train_dataloader())
        data.on_after_batch_transfer(next(batches), 0)
    with pytest.raises(UserError, match=r"shards: no picture can be read: http.*refused"):
        list(map(partial(data.on_after_batch_transfer, dataloader_idx=0), batches))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "shards are not part of handrec: say --data.shards"),
        ("nowhere/{00..03}.tar", "nowhere/00.tar: no such archive"),
        ("pipe:cat x.tar", "pipe is not read, paths, http and https are"),
        ("s3://bucket/x.tar", "s3 is not read"),
    ],
)
def test_what_is_no_archive(given, said):
    data = Shards(given)
    with pytest.raises(UserError, match=said.replace("(", r"\(")):
        data.setup("fit")


@pytest.mark.parametrize("pictures", [0, 1])
def test_a_single_archive_has_one_to_train_and_one_to_validate_on(pictures, tmp_path):
    path = tmp_path / "000000.tar"
    if pictures:
        write_shards(tmp_path, (("png", picture(4), {}) for _ in range(pictures)), per_shard=6)
    else:
        path.write_text("no archive")
    with pytest.raises(UserError, match=rf"{path.name}: {pictures} pictures found, it takes two"):
        Shards(str(path)).setup("fit")


def test_an_empty_folder(tmp_path):
    with pytest.raises(UserError, match="no archives"):
        module(tmp_path).setup("fit")


def test_batches_larger_than_an_epoch(shards):
    data = module(shards, batch_size=99)
    data.setup("fit")
    with pytest.raises(UserError, match="batch_size 99 times 1 processes is more than the 24"):
        data.train_dataloader()


def test_photos_are_packed_mixed_and_shrunk(tmp_path):
    for i in range(12):
        (tmp_path / "photos" / "deep").mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / ("deep" if i % 2 else ".") / f"{i:02d}.png").write_bytes(
            picture(10 * i, 64)
        )
    (tmp_path / "photos/broken.jpg").write_bytes(b"no")
    index, skipped = pack_folder(tmp_path / "photos", tmp_path / "out", 5, shortest=32)
    assert index == {"000000.tar": 5, "000001.tar": 5, "000002.tar": 2}
    assert "not an image" in skipped[0]
    names = []
    for name in index:
        with tarfile.open(tmp_path / "out" / name) as archive:
            for member in archive.getmembers():
                content = archive.extractfile(member).read()
                if member.name.endswith("json"):
                    names.append(json.loads(content)["name"])
                else:
                    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
                    assert image.shape == (32, 32, 3)
    assert len(set(names)) == 12
    assert names != sorted(names)
    with pytest.raises(UserError, match="is not empty"):
        pack_folder(tmp_path / "photos", tmp_path / "out")


def test_boxes_are_packed_and_shrunk_with_their_photos(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").write_bytes(picture(3, 64))
    (tmp_path / "photos/b.png").write_bytes(picture(9, 64))
    boxes = {"a.png": [{"box": [8, 16, 40, 48], "side": "left"}, {"box": [0, 0, 32, 32]}]}
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    index, _ = pack_folder(
        tmp_path / "photos", tmp_path / "out", shortest=32, boxes=tmp_path / "boxes.json"
    )
    assert index == {"000000.tar": 2}
    found = list(read_shard(Source(str(tmp_path / "out/000000.tar"), 0)))
    assert [(p.annotation.box, p.annotation.side) for p in found] == [
        ((4.0, 8.0, 20.0, 24.0), "left"), ((0.0, 0.0, 16.0, 16.0), "right"),
    ]  # fmt: skip
    assert isinstance(found[0], Picture)


@pytest.mark.parametrize(
    ("box", "said"),
    [
        ([8, 16, 8, 48], r"a\.png: box \[8.0, 16.0, 8.0, 48.0\] is inverted"),
        ([64, 0, 96, 32], r"a\.png: box .* lies outside the image \(64 x 64 pixels\)"),
    ],
)
def test_boxes_without_a_hand_are_not_packed(tmp_path, box, said):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").write_bytes(picture(3, 64))
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps({"a.png": [{"box": box}, {"box": [0, 0, 32, 32]}]}))
    index, skipped = pack_folder(tmp_path / "photos", tmp_path / "out", boxes=boxes)
    assert index == {"000000.tar": 1}
    assert len(skipped) == 1
    assert re.match(said, skipped[0])
    boxes.write_text(json.dumps({"a.png": [{"box": box}]}))
    with pytest.raises(UserError, match=f"no photo to pack \\({said}"):
        pack_folder(tmp_path / "photos", tmp_path / "none", boxes=boxes)
