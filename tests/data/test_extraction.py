"""Frames of videos as files: every so many, under their own numbers; boxes that follow them."""

import json

import cv2
import numpy as np
import pytest
from tests.videos import write_discs

from handrec.data.boxes import read_boxes
from handrec.data.columns import of_video
from handrec.data.extraction import (
    look_at_videos,
    read_frame_boxes,
    write_frame_boxes,
    write_frames,
)
from handrec.errors import UserError


@pytest.fixture
def videos(tmp_path):
    (tmp_path / "videos").mkdir()
    for name, first in (("a.mp4", 20), ("b.mov", 60)):
        write_discs(tmp_path / "videos" / name, [[(first + 4 * i, 45)] for i in range(7)])
    return tmp_path / "videos"


def test_frames_keep_their_numbers(videos, tmp_path):
    assert write_frames(look_at_videos(videos), tmp_path / "frames", stride=3) == []
    files = sorted((tmp_path / "frames").rglob("*.jpg"))
    names = [file.relative_to(tmp_path / "frames").as_posix() for file in files]
    assert names == [f"{v}/{n:06d}.jpg" for v in "ab" for n in (0, 3, 6)]
    for file, name in zip(files, names, strict=True):
        picture = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
        _, columns = np.nonzero(picture > 120)
        first = 20 if name.startswith("a") else 60
        assert columns.mean() + 0.5 == pytest.approx(first + 4 * of_video(name)[1], abs=0.5)


def test_what_cannot_be_written_is_refused(videos, tmp_path):
    (videos / "a.mov").write_bytes((videos / "a.mp4").read_bytes())
    with pytest.raises(UserError, match="a is the name of two videos: rename one"):
        look_at_videos(videos)
    with pytest.raises(UserError, match="videos is not empty"):
        write_frames(look_at_videos(videos / "a.mp4"), videos, stride=1)


def test_videos_that_cannot_be_read_are_faults_until_all_are(videos, tmp_path):
    (videos / "b.mov").write_bytes(b"no video")
    found = look_at_videos(videos)
    (fault,) = write_frames(found, tmp_path / "frames", stride=3)
    assert "b.mov: not a video" in fault
    assert [folder.name for folder in (tmp_path / "frames").iterdir()] == ["a"]
    (tmp_path / "boxes.json").write_text(json.dumps({"b.mov": [], "a.mp4": []}))
    boxes = read_frame_boxes(tmp_path / "boxes.json", found, "right")
    write_frame_boxes(boxes, tmp_path / "frames", tmp_path / "out.json")
    assert len(read_boxes(tmp_path / "out.json", "right")) == 3
    (videos / "a.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match=r"videos: no video can be read \(.*a\.mp4: not a video"):
        look_at_videos(videos)


def test_boxes_of_videos_become_those_of_frames(videos, tmp_path):
    found = look_at_videos(videos)
    write_frames(found, tmp_path / "frames", stride=3)
    whole = [{"box": [1, 2, 30, 40], "side": "left"}]
    given = {"a.mp4": whole, "b.mov": {"3": [{"box": [5, 6, 70, 80]}], "4": whole}}
    (tmp_path / "boxes.json").write_text(json.dumps(given))
    out = tmp_path / "out.json"
    boxes = read_frame_boxes(tmp_path / "boxes.json", found, "right")
    write_frame_boxes(boxes, tmp_path / "frames", out)
    written = read_boxes(out, "right")
    assert {name: [tuple(h) for h in hands] for name, hands in written.items()} == {
        **{f"a/{n:06d}.jpg": [((1, 2, 30, 40), "left")] for n in (0, 3, 6)},
        "b/000000.jpg": [],
        "b/000003.jpg": [((5, 6, 70, 80), "right")],
        "b/000006.jpg": [],
    }
    for wrong, said in (
        ({"c.mp4": whole}, "names c.mp4, which is not among the videos"),
        ({"a.mp4": [whole[0] | {"frame": 2}]}, "would have to be followed"),
        ({"a.mp4": {"6": whole, "7": whole}}, "a.mp4, frame 7: the video has 7 frames"),
    ):
        (tmp_path / "boxes.json").write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=said):
            read_frame_boxes(tmp_path / "boxes.json", found, "right")
