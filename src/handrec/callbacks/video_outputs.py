"""The files of one video's hands, written frame by frame."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor

from handrec.callbacks.found_hands import (
    CONVENTIONS,
    DEPTH_NOTE,
    FoundHand,
    describe_hand,
    draw_hands,
    shown,
)
from handrec.data.stages import Stages
from handrec.data.user_videos import Video
from handrec.data.video_files import Frame
from handrec.render.base import Rasterizer
from handrec.viz.columns import ColumnFile
from handrec.viz.mesh_export import export_mesh
from handrec.viz.video import VideoFile
from handrec.viz.viewer import ViewerPage

#: Frames that the viewer's page holds at most, evenly spread: about 30 MB.
SHOWN_FRAMES = 600


class VideoOutputs:
    """Writes overlay, parameters, meshes and the viewer's page of one video.

    Args:
        stem: path of the files without their suffixes.
        video: whose they are.
        head: what else the JSON file says, before the frames.
        faces: of the right hand.
        formats: of meshes, written for every hand in every frame.
        viewer: whether to write the page.
        rasterizer: draws the overlay; None takes ``warp``.
        stages: where the seconds are counted.
    """

    def __init__(
        self,
        stem: Path,
        video: Video,
        head: dict[str, Any],
        faces: Int[Tensor, "f 3"],
        formats: Sequence[str],
        viewer: bool,
        rasterizer: Rasterizer | None,
        stages: Stages,
    ) -> None:
        self.stem, self.video, self.formats = stem, video, formats
        self.rasterizer, self.stages = rasterizer, stages
        stem.parent.mkdir(parents=True, exist_ok=True)
        info = video.info
        self._overlay = VideoFile(Path(f"{stem}_overlay.mp4"), info.image_size, info.rate)
        self._columns = ColumnFile(Path(f"{stem}.npz"))
        # Open until close().
        self._json = Path(f"{stem}.json").open("w", encoding="utf-8")  # noqa: SIM115
        self._json.write(_opening({"video": video.name, **head, **describe_video(video)}))
        self._page: ViewerPage | None = None
        self._stride = -(-info.frames // SHOWN_FRAMES)
        if viewer:
            note = DEPTH_NOTE[video.intrinsics_given]
            if self._stride > 1:
                note = f"Every {self._stride}. frame. {note}"
            period = self._stride / float(info.rate)
            self._page = ViewerPage(
                Path(f"{stem}_viewer.html"), video.name, faces, "video", period, note
            )
        self.frames = 0

    def write(self, frame: Frame, hands: list[FoundHand], tracks: list[int]) -> None:
        """Append a frame.

        Args:
            frame: of the video.
            hands: found in it.
            tracks: the number of each one's track.
        """
        with self.stages("draw"):
            picture = draw_hands(frame.picture, hands, self.rasterizer)
        with self.stages("write"):
            self._overlay.write(picture, frame.seconds)
            files = [self._write_meshes(frame, *pair) for pair in zip(hands, tracks, strict=True)]
            self._write_parameters(frame, hands, tracks, files)
            if self._page is not None and frame.number % self._stride == 0:
                name = f"frame {frame.number}"
                marked = shown(hands, tracks)
                self._page.add(name, frame.picture, self.video.intrinsics, marked, frame.seconds)
        self.frames += 1

    def _write_parameters(
        self, frame: Frame, hands: list[FoundHand], tracks: list[int], files: list[dict[str, str]]
    ) -> None:
        """Write a line of JSON for the frame, and a row of the npz for each hand."""
        described = [
            {"track": track, **describe_hand(hand, names)}
            for hand, track, names in zip(hands, tracks, files, strict=True)
        ]
        line = {"frame": frame.number, "seconds": round(frame.seconds, 6), "hands": described}
        self._json.write((",\n" if self.frames else "\n") + json.dumps(line))
        for hand, track in zip(hands, tracks, strict=True):
            self._columns.append(
                frame=frame.number,
                seconds=frame.seconds,
                track=track,
                is_left=hand.item.side == "left",
                joints_3d=hand.joints.numpy(),
                joints_2d=hand.keypoints_2d.numpy(),
                vertices=hand.vertices.numpy(),
                pose=hand.pose.numpy(),
                betas=hand.betas.numpy(),
                translation=hand.translation.numpy(),
                scale=hand.scale,
            )

    def _write_meshes(self, frame: Frame, hand: FoundHand, track: int) -> dict[str, str]:
        """Write the meshes of a hand; return their names by suffix."""
        folder = Path(f"{self.stem}_meshes")
        names = {kind: f"{frame.number:06d}_{track}.{kind}" for kind in self.formats}
        for name in names.values():
            folder.mkdir(exist_ok=True)
            export_mesh(folder / name, hand.vertices, hand.faces)
        return {kind: f"{folder.name}/{name}" for kind, name in names.items()}

    def close(self) -> None:
        """Finish all files; after a fault too, they hold what there was until then."""
        self._overlay.close()
        self._json.write("\n]}\n")
        self._json.close()
        self._columns.close()
        if self._page is not None:
            self._page.close()


def describe_video(video: Video) -> dict[str, Any]:
    """Return what the JSON file says of the whole video."""
    return {
        "image_size": list(video.info.image_size),
        "frames_per_second": round(float(video.info.rate), 4),
        "intrinsics": video.intrinsics.tolist(),
        "intrinsics_given": video.intrinsics_given,
        "note": DEPTH_NOTE[video.intrinsics_given],
        "conventions": CONVENTIONS,
    }


def _opening(head: dict[str, Any]) -> str:
    """Return the JSON object up to its list of frames, which follows line by line."""
    return json.dumps(head)[:-1] + ', "frames": ['
