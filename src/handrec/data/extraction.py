"""Frames of videos as files, so that they can be labelled and trained on in any order."""

import json
from pathlib import Path

from rich.progress import Progress

from handrec.data.boxes import Side, read_video_boxes
from handrec.data.layouts import start, write_picture
from handrec.data.user_videos import find_videos
from handrec.data.video_files import VideoReader, probe
from handrec.errors import UserError


def write_frames(source: Path, folder: Path, stride: int) -> list[str]:
    """Write frames of videos as ``folder/VIDEO/NUMBER.jpg`` and return a line for each fault.

    Args:
        source: video or folder of videos.
        folder: to write to, empty or not there.
        stride: from one frame that is written to the next; numbers count all frames.
    """
    videos = {}
    for name, path in find_videos(source, recursive=False).items():
        if (stem := Path(name).stem) in videos:
            raise UserError(f"{source}: {stem} is the name of two videos: rename one")
        videos[stem] = probe(path)
    start(folder)
    faults: list[str] = []
    with Progress(transient=True) as progress:
        task = progress.add_task("writing frames", total=sum(v.frames for v in videos.values()))
        for name, info in videos.items():
            reader = VideoReader(info.path)
            for frame in reader:
                if frame.number % stride == 0:
                    write_picture(folder / name / f"{frame.number:06d}.jpg", frame.picture)
                progress.advance(task)
            faults += reader.broken
    return faults


def write_frame_boxes(path: Path, folder: Path, side: Side, out: Path) -> None:
    """Write the boxes of videos as those of their frames.

    Args:
        path: of a file of boxes of whole videos or of their frames, as of the data set ``video``.
        folder: that :func:`write_frames` wrote to.
        side: of hands whose side no box names.
        out: file of the frames' boxes, as of :class:`~handrec.data.photos.Photos`.
    """
    boxes = {}
    for video, (whole, hands) in read_video_boxes(path, side).items():
        frames = folder / Path(video).stem
        if not frames.is_dir():
            raise UserError(f"{path} names {video}, which is not among the videos")
        if whole and hands.keys() - {0}:
            raise UserError(
                f"{path}: {video}: a box from some frame on would have to be followed: give the"
                ' boxes of each frame, {"0": [...], ...}'
            )
        for frame in sorted(frames.iterdir()):
            found = hands.get(0 if whole else int(frame.stem), [])
            boxes[f"{frames.name}/{frame.name}"] = [{"box": h.box, "side": h.side} for h in found]
    out.write_text(json.dumps(boxes), encoding="utf-8")
