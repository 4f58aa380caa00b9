from fractions import Fraction

import av
import numpy as np
import pytest

from handrec.viz.columns import ColumnFile
from handrec.viz.video import VideoFile

COLOURS = [(250, 10, 10), (10, 250, 10), (10, 10, 250), (255, 255, 255), (0, 0, 0), (200, 160, 120)]


def written(path, size, pictures, times):
    file = VideoFile(path, size, Fraction(25), quality=8)
    for picture, seconds in zip(pictures, times, strict=True):
        file.write(picture, seconds)
    file.close()
    with av.open(path) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        return stream.codec_context, frames


def test_browsers_play_it_and_colours_and_times_stay(tmp_path):
    pictures = [np.full((48, 64, 3), colour, np.uint8) for colour in COLOURS]
    times = [0.0, 0.04, 0.1, 0.14, 0.3, 0.34]
    context, frames = written(tmp_path / "a.mp4", (48, 64), pictures, times)
    assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
    assert b"moov" in (tmp_path / "a.mp4").read_bytes()[:400]  # before the pictures: it streams
    assert [frame.time for frame in frames] == pytest.approx(times, abs=1e-4)
    for frame, picture in zip(frames, pictures, strict=True):
        error = frame.to_ndarray(format="rgb24").astype(int) - picture
        assert abs(error.mean((0, 1))).max() < 6


def test_odd_sizes_grow_by_their_edge(tmp_path):
    ramp = np.broadcast_to(np.linspace(20, 230, 33)[None, :, None], (21, 33, 3)).astype(np.uint8)
    _, frames = written(tmp_path / "a.mp4", (21, 33), [ramp], [0.0])
    found = frames[0].to_ndarray(format="rgb24").astype(int)
    assert found.shape == (22, 34, 3)
    assert abs(found[:21, :33] - ramp).mean() < 4
    assert abs(found[:, 33] - found[:, 32]).mean() < 8


def test_times_that_do_not_go_on_are_moved_up(tmp_path):
    pictures = [np.full((16, 16, 3), 9 * i, np.uint8) for i in range(4)]
    _, frames = written(tmp_path / "a.mp4", (16, 16), pictures, [0.0, 0.1, 0.1, 0.05])
    assert len(frames) == 4
    assert np.all(np.diff([frame.pts for frame in frames]) > 0)


def test_columns_are_what_was_appended(tmp_path):
    rng = np.random.default_rng(0)
    rows = [{"frame": i, "left": i % 2 == 0, "points": rng.normal(size=(5, 3)).astype("f4")}
            for i in range(7)]  # fmt: skip
    file = ColumnFile(tmp_path / "a.npz")
    for row in rows:
        file.append(**row)
    file.close()
    found = np.load(tmp_path / "a.npz")
    assert found["points"].dtype == np.float32
    for name, column in found.items():
        np.testing.assert_array_equal(column, np.array([row[name] for row in rows]))
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_columns_refuse_rows_of_another_shape_and_may_be_empty(tmp_path):
    file = ColumnFile(tmp_path / "a.npz")
    file.close()
    assert np.load(tmp_path / "a.npz").files == []
    file = ColumnFile(tmp_path / "b.npz")
    file.append(points=np.zeros(3))
    with pytest.raises(ValueError, match="points: a row of shape"):
        file.append(points=np.zeros(4))
    file.close()
