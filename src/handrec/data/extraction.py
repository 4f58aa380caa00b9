"""Frames of videos as files, so that they can be labelled and trained on in any order."""

import json
from pathlib import Path

from rich.progress import Progress

from handrec.data.boxes import Side, VideoBoxes, read_video_boxes
from handrec.data.layouts import start, write_picture
from handrec.data.user_videos import find_videos
from handrec.data.video_files import VideoInfo, VideoReader, probe
from handrec.errors import UserError


def look_at_videos(source: Path) -> dict[str, VideoInfo | str]:
    """Return each video by its name without suffix: what it is, or why it cannot be read.

    Args:
        source: video or folder of videos.
    """
    videos: dict[str, VideoInfo | str] = {}
    for name, path in find_videos(source, recursive=False).items():
        if (stem := Path(name).stem) in videos:
            raise UserError(f"{source}: {stem} is the name of two videos: rename one")
        try:
            videos[stem] = probe(path)
        except UserError as error:
            videos[stem] = str(error)
    reasons = [video for video in videos.values() if isinstance(video, str)]
    if len(reasons) == len(videos):
        raise UserError(f"{source}: no video can be read ({'; '.join(reasons[:3])})")
    return videos


def write_frames(videos: dict[str, VideoInfo | str], folder: Path, stride: int) -> list[str]:
    """Write frames of videos as ``folder/VIDEO/NUMBER.jpg`` and return a line for each fault.

    Args:
        videos: as of :func:`look_at_videos`; those that cannot be read are faults.
        folder: to write to, empty or not there.
        stride: from one frame that is written to the next; numbers count all frames.
    """
    start(folder)
    faults = [video for video in videos.values() if isinstance(video, str)]
    readable = {name: video for name, video in videos.items() if isinstance(video, VideoInfo)}
    with Progress(transient=True) as progress:
        task = progress.add_task("writing frames", total=sum(v.frames for v in readable.values()))
        for name, info in readable.items():
            reader = VideoReader(info.path)
            for frame in reader:
                if frame.number % stride == 0:
                    write_picture(folder / name / f"{frame.number:06d}.jpg", frame.picture)
                progress.advance(task)
            faults += reader.broken
    return faults


def read_frame_boxes(
    path: Path, videos: dict[str, VideoInfo | str], side: Side
) -> dict[str, tuple[bool, VideoBoxes]]:
    """Return whether a video's boxes are of all of it, and its boxes, by its name without suffix.

    Args:
        path: of a file of boxes of whole videos or of their frames, as of the data set ``video``.
        videos: that the boxes may be of.
        side: of hands whose side no box names.
    """
    boxes = {}
    for name, (whole, hands) in read_video_boxes(path, side).items():
        if (video := videos.get(Path(name).stem)) is None:
            raise UserError(f"{path} names {name}, which is not among the videos")
        if whole and hands.keys() - {0}:
            raise UserError(
                f"{path}: {name}: a box from some frame on would have to be followed: give the"
                ' boxes of each frame, {"0": [...], ...}'
            )
        last = max(hands, default=0)
        if isinstance(video, VideoInfo) and last >= video.frames:
            raise UserError(f"{path}: {name}, frame {last}: the video has {video.frames} frames")
        boxes[Path(name).stem] = whole, hands
    return boxes


def write_frame_boxes(boxes: dict[str, tuple[bool, VideoBoxes]], folder: Path, out: Path) -> None:
    """Write the boxes of videos as those of their frames.

    Args:
        boxes: as of :func:`read_frame_boxes`.
        folder: that :func:`write_frames` wrote to.
        out: file of the frames' boxes, as of :class:`~handrec.data.photos.Photos`.
    """
    written = {}
    for name, (whole, hands) in boxes.items():
        for frame in sorted((folder / name).glob("*")):
            found = hands.get(0 if whole else int(frame.stem), [])
            written[f"{name}/{frame.name}"] = [{"box": h.box, "side": h.side} for h in found]
    out.write_text(json.dumps(written), encoding="utf-8")
