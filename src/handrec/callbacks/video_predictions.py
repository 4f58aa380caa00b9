"""Writes what ``predict`` finds in videos: overlays, parameters, meshes, pages."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytorch_lightning as pl

from handrec.callbacks.found_hands import FoundHand, describe_method, place_in_photo
from handrec.callbacks.predictions import output_names, prepare_folder, print_counted
from handrec.callbacks.smoothing import HandSmoother
from handrec.callbacks.timing import NetworkTimer
from handrec.callbacks.video_outputs import VideoOutputs
from handrec.data.crops import Box
from handrec.data.stages import describe_stages
from handrec.data.user_videos import NO_HAND, Video, VideoFrame, Videos
from handrec.errors import UserError
from handrec.geometry.camera import project
from handrec.methods.base import HandMethod
from handrec.render.base import Rasterizer
from handrec.types import HandBatch, HandPrediction


class VideoWriter(NetworkTimer):
    """Writes the hands that ``predict`` finds in :class:`~handrec.data.user_videos.Videos`.

    For each video: ``<stem>_overlay.mp4``, the video with every hand's mesh and skeleton;
    ``<stem>.json``, a line for every frame; ``<stem>.npz``, a row for every hand in every frame;
    ``<stem>_viewer.html``, all of it in 3D; ``<stem>_meshes/``, if meshes are asked for.

    Args:
        out: folder, made if missing; files of the same name are replaced.
        formats: of meshes; by default none are written.
        smooth: whether to filter each hand over time (one-euro).
        viewer: whether to write the page with the 3D viewer.
        rasterizer: draws the overlays; None takes ``warp``.
    """

    def __init__(
        self,
        out: str = "predictions",
        formats: Sequence[Literal["obj", "glb", "ply"]] = (),
        smooth: bool = False,
        viewer: bool = True,
        rasterizer: Rasterizer | None = None,
    ) -> None:
        super().__init__()
        self.out, self.formats = Path(out), tuple(formats)
        self.smooth, self.viewer, self.rasterizer = smooth, viewer, rasterizer
        self._outputs: VideoOutputs | None = None
        self._smoother: HandSmoother | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what cannot work before anything is predicted."""
        if stage != "predict":
            return
        if trainer.world_size > 1:
            raise UserError("predict writes from one process: use --trainer.devices=1")
        videos = _videos(trainer)
        given = [Path(file) for file in (videos.boxes, videos.intrinsics) if file is not None]
        prepare_folder(self.out, [*(video.info.path for video in videos.videos), *given])

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start counting."""
        videos = _videos(trainer)
        self.stages = videos.stages
        self._stems = output_names([video.name for video in videos.videos])
        self._written = self._hands = self._frames = 0
        self._broken: list[str] = []

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: HandPrediction,
        batch: HandBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the frames of a batch; say where their hands were, for the next one."""
        self.stop(pl_module.device)
        assert isinstance(pl_module, HandMethod)
        videos = _videos(trainer)
        self._open(trainer, pl_module, videos.pending[0].video)
        columns = [x.float() for x in (*outputs[:6], outputs.size)]
        outputs = HandPrediction(*columns)
        rows = {sample: row for row, sample in enumerate(batch.sample_id.tolist())}
        for frame in videos.pending:  # by what was found, not by what lags behind it
            self._follow(frame, rows, outputs, batch, pl_module)
        if self._smoother is not None and batch.sample_id[0] != NO_HAND:
            outputs = self._smoothed(outputs, batch, videos)
        while videos.pending:
            frame = videos.pending.popleft()
            self._write(frame, rows, outputs, batch, pl_module)

    def _follow(
        self,
        frame: VideoFrame,
        rows: dict[int, int],
        outputs: HandPrediction,
        batch: HandBatch,
        method: HandMethod,
    ) -> None:
        """Say where the hands of a frame were."""
        for sample, item in frame.hands.items():
            affine = batch.crop_to_image[rows[sample]]
            hand = place_in_photo(outputs, rows[sample], item.hand, method.hand.faces, affine)
            frame.source.follow(item.track, frame.frame.number, box_of(hand))

    def _smoothed(
        self, outputs: HandPrediction, batch: HandBatch, videos: Videos
    ) -> HandPrediction:
        """Return the hands of a batch, filtered over time."""
        assert self._smoother is not None
        times = {sample: f.frame.seconds for f in videos.pending for sample in f.hands}
        seconds = [times[sample] for sample in batch.sample_id.tolist()]
        tracks = batch.sequence.tolist()
        with self.stages("smooth"):
            return self._smoother.smooth(outputs, batch.intrinsics, tracks, seconds)

    def _write(
        self,
        frame: VideoFrame,
        rows: dict[int, int],
        outputs: HandPrediction,
        batch: HandBatch,
        method: HandMethod,
    ) -> None:
        """Write one frame."""
        assert self._outputs is not None
        hands, tracks = [], []
        for sample, item in frame.hands.items():
            row = rows[sample]
            affine = batch.crop_to_image[row]
            hand = place_in_photo(outputs, row, item.hand, method.hand.faces, affine)
            finite = all(field.isfinite().all() for field in hand[1:8])
            if finite:
                hands.append(hand)
                tracks.append(item.track)
            else:
                self._broken.append(f"{frame.video.name}: frame {frame.frame.number}")
        self._outputs.write(frame.frame, hands, tracks)
        self._hands += len(hands)
        self._frames += 1

    def _open(self, trainer: pl.Trainer, method: HandMethod, video: Video) -> None:
        """Open the files of a video, and close those of the one before."""
        if self._outputs is not None and self._outputs.video.name == video.name:
            return
        self._close()
        self._smoother = HandSmoother(method.hand) if self.smooth else None
        head = {**describe_method(trainer, method), "smoothed": self.smooth}
        self._outputs = VideoOutputs(
            self.out / self._stems[video.name], video, head, method.hand.faces,
            self.formats, self.viewer, self.rasterizer, self.stages,
        )  # fmt: skip
        self._written += 1

    def _close(self) -> None:
        if self._outputs is not None:
            with self.stages("write"):
                self._outputs.close()
        self._outputs = None

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Finish the files; say what happened."""
        self._close()
        videos = _videos(trainer)
        counts = f"hands: {self._hands}, frames: {self._frames}, videos: {self._written}"
        print(f"\n{counts}, written to {self.out}/")
        for title, lines in (
            ("videos skipped, unreadable", videos.skipped),
            ("videos left out, no entry in the boxes", videos.unboxed),
            ("boxes skipped, they can hold no hand", videos.unusable),
            ("frames skipped, and hands lost", videos.broken),
            ("hands left out, no finite numbers from the method", self._broken),
        ):
            print_counted(title, lines)
        if not all(video.intrinsics_given for video in videos.videos):
            print("K was not given for every video: depths there are rough (see the JSON's note)")
        print(describe_stages(self.stages.seconds, {"frames": self._frames}))

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Finish the files: what was found so far can be looked at."""
        self._close()


def box_of(hand: FoundHand) -> Box | None:
    """Return the box of a hand's mesh in the pixels of its frame; None of one not finite."""
    if not hand.vertices.isfinite().all():
        return None
    intrinsics = hand.vertices.new_tensor(hand.item.intrinsics)
    pixels = project(hand.vertices[None], intrinsics[None])[0]
    left, top = pixels.amin(0).tolist()
    right, bottom = pixels.amax(0).tolist()
    return left, top, right, bottom


def _videos(trainer: pl.Trainer) -> Videos:
    """Return the videos that are predicted on."""
    videos = getattr(trainer, "datamodule", None)
    if not isinstance(videos, Videos):
        raise UserError(f"VideoWriter serves the data Videos, not {type(videos).__name__}")
    return videos
