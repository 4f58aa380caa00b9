"""Frames of videos as files: every so many, under their own numbers; boxes that follow them."""

import json

import cv2
import numpy as np
import pytest
from tests.videos import write_discs

from handrec.data.boxes import read_boxes
from handrec.data.columns import of_video
from handrec.data.extraction import write_frame_boxes, write_frames
from handrec.errors import UserError


@pytest.fixture
def videos(tmp_path):
    (tmp_path / "videos").mkdir()
    for name, first in (("a.mp4", 20), ("b.mov", 60)):
        write_discs(tmp_path / "videos" / name, [[(first + 4 * i, 45)] for i in range(7)])
    return tmp_path / "videos"


def test_frames_keep_their_numbers(videos, tmp_path):
    assert write_frames(videos, tmp_path / "frames", stride=3) == []
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
        write_frames(videos, tmp_path / "frames", stride=1)
    with pytest.raises(UserError, match="videos is not empty"):
        write_frames(videos / "a.mp4", videos, stride=1)


def test_boxes_of_videos_become_those_of_frames(videos, tmp_path):
    write_frames(videos, tmp_path / "frames", stride=3)
    whole = [{"box": [1, 2, 30, 40], "side": "left"}]
    given = {"a.mp4": whole, "b.mov": {"3": [{"box": [5, 6, 70, 80]}], "4": whole}}
    (tmp_path / "boxes.json").write_text(json.dumps(given))
    out = tmp_path / "out.json"
    write_frame_boxes(tmp_path / "boxes.json", tmp_path / "frames", "right", out)
    found = read_boxes(out, "right")
    assert {name: [tuple(h) for h in hands] for name, hands in found.items()} == {
        **{f"a/{n:06d}.jpg": [((1, 2, 30, 40), "left")] for n in (0, 3, 6)},
        "b/000000.jpg": [],
        "b/000003.jpg": [((5, 6, 70, 80), "right")],
        "b/000006.jpg": [],
    }
    for wrong, said in (
        ({"c.mp4": whole}, "names c.mp4, which is not among the videos"),
        ({"a.mp4": [whole[0] | {"frame": 2}]}, "would have to be followed"),
    ):
        (tmp_path / "boxes.json").write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=said):
            write_frame_boxes(tmp_path / "boxes.json", tmp_path / "frames", "right", out)
