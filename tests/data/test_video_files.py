from fractions import Fraction

import av
import numpy as np
import pytest
from tests.videos import damage, disc_frame, write_discs

from handrec.data.video_files import VideoReader, probe
from handrec.errors import UserError
from handrec.viz.video import VideoFile

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


@pytest.mark.parametrize("threaded", [False, True])
def test_damaged_frames_are_named_and_left_out(video, threaded):
    damage(video, 0.75, 200)
    reader = VideoReader(video, threaded)
    frames = list(reader)
    assert 0 < len(frames) < 30
    for frame in frames:  # each keeps the number of its time and shows what it should
        assert frame.number == round(frame.seconds * 25)
    missing = sorted(set(range(30)) - {frame.number for frame in frames})
    lines = [f"a.mp4: frame {n} ({n / 25:.3f} s): " for n in missing]
    assert len(reader.broken) == len(lines)
    assert all(line in broken for line, broken in zip(lines, reader.broken, strict=True))


@pytest.mark.parametrize("lost", [7, 29])
def test_frames_after_a_lost_one_keep_their_numbers(video, lost):
    """One packet's content is overwritten; packets are not in the order in which frames show."""
    with av.open(video) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        packet = sorted(packets, key=lambda p: p.pts)[lost]
        start, size = packet.pos, packet.size
    data = bytearray(video.read_bytes())
    data[start : start + size] = b"\xff" * size
    video.write_bytes(data)
    reader = VideoReader(video)
    frames = list(reader)
    numbers = [frame.number for frame in frames]
    assert lost not in numbers
    assert numbers == [round(frame.seconds * 25) for frame in frames]
    missing = sorted(set(range(30)) - set(numbers))
    assert [line.split(" (")[0] for line in reader.broken] == [
        f"{video}: frame {n}" for n in missing
    ]


def test_frames_at_uneven_times_are_counted(tmp_path):
    times = [0.0, 0.04, 0.3, 0.34, 1.0]
    file = VideoFile(tmp_path / "a.mp4", (91, 121), Fraction(25), quality=10)
    for x, seconds in enumerate(times):
        file.write(disc_frame((91, 121), [(20 + 9 * x, 40)], 9.0), seconds)
    file.close()
    reader = VideoReader(tmp_path / "a.mp4")
    frames = list(reader)
    assert [frame.number for frame in frames] == list(range(5))
    assert [frame.seconds for frame in frames] == pytest.approx(times, abs=1e-3)
    assert reader.broken == []


@pytest.mark.parametrize("suffix", ["mkv", "mpg"])
def test_seconds_count_from_the_start_of_what_was_cut_out(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg1video" if suffix == "mpg" else "mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for number, (centre_of,) in enumerate(PATH):
            picture = disc_frame((96, 128), [centre_of], 9.0)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number + 100, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        assert container.streams.video[0].start_time
    seconds = [frame.seconds for frame in VideoReader(path)]
    assert seconds == pytest.approx([i / 25 for i in range(30)], abs=2e-3)


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
