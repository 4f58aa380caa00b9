import numpy as np
import pytest
from tests.videos import damage, write_discs

from handrec.data.video_files import VideoReader, probe
from handrec.errors import UserError

PATH = [[(20 + 2 * i, 40)] for i in range(30)]


@pytest.fixture
def video(tmp_path):
    write_discs(tmp_path / "a.mp4", PATH)
    return tmp_path / "a.mp4"


def centre(picture):
    rows, columns = np.nonzero(picture.mean(-1) > 120)
    return columns.mean() + 0.5, rows.mean() + 0.5


def test_frames_come_in_order_with_their_times(video):
    info = probe(video)
    assert (info.image_size, info.frames) == ((92, 122), 30)
    assert float(info.rate) == pytest.approx(25, rel=0.01)
    reader = VideoReader(video)
    frames = list(reader)
    assert [frame.number for frame in frames] == list(range(30))
    assert [frame.seconds for frame in frames] == pytest.approx([i / 25 for i in range(30)])
    for frame, (expected,) in zip(frames, PATH, strict=True):
        assert centre(frame.picture) == pytest.approx(expected, abs=0.3)
    assert reader.broken == []


def test_a_video_cut_short_is_read_to_its_end_and_that_is_said(video):
    video.write_bytes(video.read_bytes()[: int(0.85 * video.stat().st_size)])
    reader = VideoReader(video)
    count = len(list(reader))
    assert 0 < count < 30
    assert reader.broken
    assert "a.mp4: ends early" in reader.broken[-1]
    assert "of 30 frames" in reader.broken[-1]


def test_damaged_frames_are_named_and_left_out(video):
    damage(video, 0.75, 200)
    reader = VideoReader(video)
    count = len(list(reader))
    assert reader.broken
    assert count < 30
    assert all("a.mp4: frame " in line or "ends early" in line for line in reader.broken)


def test_what_is_no_video_is_refused_by_name(tmp_path):
    for content in (b"", b"no video at all" * 99):
        (tmp_path / "b.mp4").write_bytes(content)
        with pytest.raises(UserError, match=r"b\.mp4: not a video \(Invalid data"):
            probe(tmp_path / "b.mp4")
    with pytest.raises(UserError, match=r"c\.mp4: not a video \(No such file"):
        probe(tmp_path / "c.mp4")


def test_a_video_without_frames_is_refused(tmp_path):
    write_discs(tmp_path / "a.mp4", [])
    with pytest.raises(UserError, match=r"a\.mp4: no"):
        probe(tmp_path / "a.mp4")
