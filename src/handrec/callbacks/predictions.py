"""Writes what ``predict`` finds in photos: overlays, meshes, parameters."""

import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import pytorch_lightning as pl

from handrec.callbacks.found_hands import (
    DEPTH_NOTE,
    FoundHand,
    describe,
    describe_method,
    draw_hands,
    draw_hands_in_colour,
    place_in_photo,
    rounded,
    shown,
    to_json,
)
from handrec.callbacks.timing import NetworkTimer
from handrec.data.photos import Photos
from handrec.data.stages import describe_stages
from handrec.errors import UserError
from handrec.methods.base import HandMethod
from handrec.render.base import Rasterizer
from handrec.types import HandBatch, HandPrediction
from handrec.viz.mesh_export import export_mesh, export_textured_mesh
from handrec.viz.report import encode_png
from handrec.viz.textured import Render, texture_of
from handrec.viz.viewer import ViewerPage

#: Faults that are listed at the end; more are only counted.
LISTED = 10


def output_names(names: Sequence[str]) -> dict[str, str]:
    """Return the stem of the output files of each photo, folders kept.

    Where two photos differ by their suffix alone, all keep it: ``a.jpg`` gives
    ``a.jpg_overlay.png``.
    """
    stems = [str(PurePosixPath(name).with_suffix("")) for name in names]
    # Lower case: some file systems take A and a for the same.
    unique = len({stem.lower() for stem in stems}) == len(stems)
    return dict(zip(names, stems if unique else names, strict=True))


def prepare_folder(out: Path, inputs: Sequence[Path]) -> None:
    """Make the output folder.

    Args:
        out: the folder.
        inputs: files that must not lie in it.

    Raises:
        UserError: nothing can be written there, or a file of the user's might be replaced.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise UserError(f"{out}: cannot write here ({error.strerror})") from error
    for path in inputs:
        if path.resolve().is_relative_to(out.resolve()):
            raise UserError(f"{path} lies in the output folder: choose another out")


def print_counted(title: str, lines: Sequence[str]) -> None:
    """Print how many of something there were, and the first of them, if any."""
    if lines:
        more = [f"and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
        print(f"{title}: {len(lines)}", *lines[:LISTED], *more, sep="\n  ")


class PredictionWriter(NetworkTimer):
    """Writes the hands that ``predict`` finds in :class:`~handrec.data.photos.Photos`.

    For each photo: ``<stem>_overlay.png``, the photo with every hand's mesh and skeleton (right
    hands blue, left ones orange); ``<stem>.json``, every hand's parameters; ``<stem>_<i>.obj`` and
    so on, the meshes; ``viewer.html``, all of them in 3D. Everything is in the pixels and the
    camera frame of the whole photo.

    Where the method says what hands look like, the ``.glb`` has the estimated texture (without
    light); where it can also draw them (``render(hands, camera, background)``), there is
    ``<stem>_rendered.png``: the photo, its overlay, and the photo with the hands drawn over it in
    their estimated texture and light.

    Args:
        out: folder, made if missing; files of the same name are replaced.
        formats: of the meshes.
        viewer: whether to write the page with the 3D viewer.
        rasterizer: draws the overlays; None takes ``warp``.
    """

    def __init__(
        self,
        out: str = "predictions",
        formats: Sequence[Literal["obj", "glb", "ply"]] = ("obj", "glb"),
        viewer: bool = True,
        rasterizer: Rasterizer | None = None,
    ) -> None:
        super().__init__()
        self.viewer = viewer
        self._page: ViewerPage | None = None
        self.out, self.rasterizer = Path(out), rasterizer
        self.formats: tuple[str, ...] = tuple(formats)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what cannot work before anything is predicted."""
        if stage != "predict":
            return
        if trainer.world_size > 1:
            raise UserError("predict writes from one process: use --trainer.devices=1")
        photos = _photos(trainer)
        given = [Path(file) for file in (photos.boxes, photos.intrinsics) if file is not None]
        prepare_folder(self.out, [*(item.path for item in photos.items), *given])

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count what is to come, and open the page."""
        assert isinstance(pl_module, HandMethod)
        items, self.stages = _photos(trainer).items, _photos(trainer).stages
        self._stems = output_names(list(dict.fromkeys(item.name for item in items)))
        self._missing = Counter(item.name for item in items)
        self._found: defaultdict[str, list[FoundHand]] = defaultdict(list)
        self._written, self._hands = 0, 0
        self._broken: list[str] = []
        if self.viewer:
            title = f"Hands found by {type(pl_module).__name__}"
            note = DEPTH_NOTE[all(item.intrinsics_given for item in items)]
            path = self.out / "viewer.html"
            self._page = ViewerPage(path, title, pl_module.hand.faces, note=note)

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: HandPrediction,
        batch: HandBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take the hands of a batch; write each photo as soon as its last hand is there."""
        self.stop(pl_module.device)
        assert isinstance(pl_module, HandMethod)
        items = _photos(trainer).items
        for index, sample in enumerate(batch.sample_id.tolist()):
            affine = batch.crop_to_image[index]
            hand = place_in_photo(outputs, index, items[sample], pl_module.hand.faces, affine)
            name = hand.item.name
            if all(field.isfinite().all() for field in hand[1:8]):
                self._found[name].append(hand)
            else:
                self._broken.append(f"{name}, box {rounded(hand.item.box, 1)}")
            self._missing[name] -= 1
            if not self._missing[name]:
                self._write(name, trainer, pl_module)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write photos whose last hands were not asked for; say what happened."""
        assert isinstance(pl_module, HandMethod)
        for name in list(self._found):
            self._write(name, trainer, pl_module)
        self._close()
        photos = _photos(trainer)
        print(f"\nhands: {self._hands}, photos: {self._written}, written to {self.out}/")
        for title, lines in (
            ("photos skipped, unreadable", photos.skipped),
            ("photos left out, no entry in the boxes", photos.unboxed),
            ("photos left out, no hand detected", photos.empty),
            ("hands left out, no finite numbers from the method", self._broken),
        ):
            if lines:
                print(f"{title}: {len(lines)}", *lines, sep="\n  ")
        print_counted("boxes skipped, they can hold no hand", photos.unusable)
        if not all(item.intrinsics_given for item in photos.items):
            print("K was not given for every photo: depths there are rough (see the JSON's note)")
        print(describe_stages(self.stages.seconds, {"photos": self._written}))

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Finish the page: what was found so far can be looked at."""
        self._close()

    def _close(self) -> None:
        if self._page is not None:
            self._page.close()

    def _write(self, name: str, trainer: pl.Trainer, method: HandMethod) -> None:
        """Write the files of one photo."""
        hands = self._found.pop(name, [])
        if not hands:
            return
        self._written += 1
        self._hands += len(hands)
        stem = self.out / self._stems[name]
        stem.parent.mkdir(parents=True, exist_ok=True)
        with self.stages("write"):
            meshes = [
                self._write_meshes(Path(f"{stem}_{index}"), hand, method)
                for index, hand in enumerate(hands)
            ]
            report = {"photo": name, **describe_method(trainer, method), **describe(hands, meshes)}
            Path(f"{stem}.json").write_text(to_json(report) + "\n", encoding="utf-8")
        picture = _photos(trainer).picture(hands[0].item.path)
        panels = [picture]
        with self.stages("draw"):
            panels.append(draw_hands(picture, hands, self.rasterizer))
            render: Render | None = getattr(method, "render", None)
            if render is not None and any(hand.seen is not None for hand in hands):
                panels.append(draw_hands_in_colour(picture, hands, render))
        with self.stages("write"):
            Path(f"{stem}_overlay.png").write_bytes(encode_png(panels[1]))
            if len(panels) > 2:
                Path(f"{stem}_rendered.png").write_bytes(encode_png(np.concatenate(panels, axis=1)))
            if self._page is not None:
                self._page.add(name, picture, hands[0].item.intrinsics, shown(hands))

    def _write_meshes(self, stem: Path, hand: FoundHand, method: HandMethod) -> dict[str, str]:
        """Write the meshes of one hand; return their names by suffix."""
        paths = {suffix: Path(f"{stem}.{suffix}") for suffix in self.formats}
        for suffix, path in paths.items():
            if suffix == "glb" and hand.seen is not None:
                texture = texture_of(method.hand, hand.seen.texture, hand.item.side == "left")
                export_textured_mesh(path, hand.vertices, hand.faces, texture)
            else:
                export_mesh(path, hand.vertices, hand.faces)
        return {suffix: path.name for suffix, path in paths.items()}


def _photos(trainer: pl.Trainer) -> Photos:
    """Return the photos that are predicted on."""
    photos = getattr(trainer, "datamodule", None)
    if not isinstance(photos, Photos):
        raise UserError(f"PredictionWriter serves the data Photos, not {type(photos).__name__}")
    return photos
