"""Frames of videos and of folders, with and without boxes."""

import json

import av
import cv2
import numpy as np
import pytest
import torch

from handrec.data.streams import Picture, Source
from handrec.data.video_frames import VideoFrames, read_frames
from handrec.errors import UserError

FRAMES, HEIGHT, WIDTH = 20, 48, 64


def frame(number):
    """Return a picture that tells its number by its left half; the right half is light."""
    image = np.full((HEIGHT, WIDTH, 3), 10 * number, np.uint8)
    image[:, WIDTH // 2 :] = 230
    return image


def write_video(path, frames=FRAMES):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.bit_rate = 4_000_000
        for number in range(frames):
            picture = av.VideoFrame.from_ndarray(frame(number), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "videos"
    (root / "walk").mkdir(parents=True)
    for name in ("a.mp4", "b.mp4"):
        write_video(root / name)
    for number in range(FRAMES):
        cv2.imwrite(str(root / f"walk/{number:04d}.png"), frame(number))
    return root


def module(root, **options):
    common = {"image_size": 32, "batch_size": 2, "num_workers": 0, "stride": 5, "val_share": 0.3}
    return VideoFrames(str(root), **common | options)


def levels(data, loader):
    """Return frame numbers, and what the pictures' left halves say."""
    for batch in loader:
        read = data.on_after_batch_transfer(batch, 0)
        dark = read.image[:, :, :, 2:10].mean((1, 2, 3)) * 255
        video = (read.sample_id - read.frame) // 10_000_000
        assert torch.equal(read.sequence, read.sample_id)  # no clip of them
        yield from zip(read.frame.tolist(), video.tolist(), dark.tolist(), strict=True)


@pytest.mark.parametrize("workers", [0, 2])
def test_every_frame_at_the_stride_once(root, workers):
    data = module(root, num_workers=workers)
    data.setup("fit")
    seen = list(levels(data, data.train_dataloader()))
    assert sorted({video for _, video, _ in seen} | {2, 1, 0}) == [0, 1, 2]
    assert len(seen) == 8
    if workers == 0:
        assert len({(n, v) for n, v, _ in seen}) == 8
    for number, _, dark in seen:
        assert number % 5 == 0
        assert abs(dark - 10 * number) < 6
    held_out = list(levels(data, data.val_dataloader()))
    assert [n for n, *_ in held_out] == [0, 5, 10, 15]
    assert {v for _, v, _ in held_out}.isdisjoint(v for _, v, _ in seen)


def test_of_a_single_video_the_end_validates(root):
    data = module(root / "a.mp4", stride=2, val_share=0.2)
    data.setup("fit")
    train = {n for n, *_ in levels(data, data.train_dataloader())}
    val = [n for n, *_ in levels(data, data.val_dataloader())]
    assert train == set(range(0, 16, 2))
    assert val == [16, 18]


def test_boxes_cut_hands_out(root, tmp_path):
    path = tmp_path / "boxes.json"
    whole = [{"box": [32, 0, 64, 32], "side": "left"}, {"box": [0, 0, 30, 30]}]
    path.write_text(json.dumps({"a.mp4": whole, "walk": {"5": whole[:1], "6": whole}}))
    data = module(root, boxes=str(path), box_scale=1.0)
    sources = data.find()
    counts = [data.count(source) for source in sources]
    assert counts == [8, 0, 1]  # a.mp4, b.mp4, walk
    found = [list(data.reader()(source)) for source in sources]
    assert [len(one) for one in found] == counts
    assert [p.annotation.side for p in found[0][:2]] == ["left", "right"]
    data.sources = {"train": sources, "val": sources}
    light = [dark for *_, dark in levels(data, data.val_dataloader())]
    assert max(light[0::2][:4]) > 200  # of the light half
    assert light[1] < 20


def test_damaged_frames_are_left_out(root):
    (root / "walk/0005.png").write_bytes(b"no")
    found = list(read_frames(Source(str(root / "walk"), 0), 5, None))
    data = module(root)
    data.setup("fit")
    data.sources["val"] = [Source(str(root / "walk"), 0)]
    seen = [n for n, *_ in levels(data, data.val_dataloader())]
    assert seen == [0, 10, 15]
    assert len(found) == 4
    assert isinstance(found[1], Picture)  # its bytes are only decoded later


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: (r / "b.mp4").write_bytes(b"no video" * 100), "b.mp4: "),
        (lambda r: (r / "b.mp4").write_bytes(b""), "b.mp4: "),
    ],
)
def test_videos_that_cannot_be_decoded_are_named(root, change, said):
    change(root)
    with pytest.raises(UserError, match=said):
        module(root).setup("fit")


@pytest.mark.parametrize(
    ("boxes", "said"),
    [
        ({"c.mp4": []}, "names c.mp4, which is not in"),
        ({"a.mp4": [{"box": [0, 0, 30, 30], "frame": 3}]}, "a.mp4: a box from some frame on would"),
        ({"a.mp4": {"x": []}}, "not the number of a frame"),
        ({"a.mp4": {"20": []}}, r"json: a\.mp4, frame 20: the video has 20 frames, from 0 on"),
        ({"walk": {"21": []}}, "walk, frame 21: the video has 20 frames"),
        ({"a.mp4": [{"box": [9, 9, 9, 30]}]}, r"json: a\.mp4, hand 0: box .* is inverted"),
        (
            {"walk": {"3": [{"box": [0, 0, 30, 30]}, {"box": [64, 0, 90, 30]}]}},
            r"json: walk, frame 3, hand 1: box .* lies outside the image \(64 x 48 pixels\)",
        ),
        ({"a.mp4": [{"box": [True, 9, 19, 30]}]}, r"box is not \[x1, y1, x2, y2\]: \[true"),
        ({"a.mp4": [{"box": ["1", 9, 19, 30]}]}, r"box is not \[x1, y1, x2, y2\]: \[.1"),
    ],
)
def test_boxes_that_cannot_be_used(root, tmp_path, boxes, said):
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(boxes))
    with pytest.raises(UserError, match=said):
        module(root, boxes=str(path)).setup("fit")


def test_folders_without_videos(tmp_path):
    with pytest.raises(UserError, match="neither videos"):
        module(tmp_path).setup("fit")
    with pytest.raises(UserError, match="no such video or folder"):
        module(tmp_path / "gone").setup("fit")
    with pytest.raises(UserError, match=r"no video: say --data\.root"):
        VideoFrames().setup("fit")
