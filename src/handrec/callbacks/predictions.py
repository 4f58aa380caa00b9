"""Writes what ``predict`` finds in photos: overlays, meshes, parameters."""

import json
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor

from handrec.callbacks.timing import NetworkTimer
from handrec.data.photos import PhotoHand, Photos
from handrec.data.stages import describe_stages
from handrec.errors import UserError
from handrec.geometry.rotations import matrix_to_axis_angle
from handrec.methods.base import HandMethod
from handrec.render.base import Rasterizer
from handrec.types import HandBatch, HandPrediction
from handrec.viz.drawing import MESH_COLOUR, Picture, draw_mesh, draw_skeleton
from handrec.viz.mesh_export import export_mesh, export_textured_mesh
from handrec.viz.report import encode_png
from handrec.viz.textured import Render, draw_textured, one_hand, texture_of
from handrec.viz.viewer import ShownHand, ViewerPage

COLOURS = {"right": MESH_COLOUR, "left": (255, 190, 130)}

CONVENTIONS = {
    "frame": "camera of the whole photo, OpenCV: x right, y down, z forward; metres",
    "pixels": "of the photo turned upright by EXIF; pixel centres at integer + 0.5",
    "joints": "21 in FreiHAND order: wrist, then thumb to little finger from base to tip",
    "pose": "16 joints in MANO order, absolute (mean pose added), relative to the parent, joint 0 "
    "to the camera; of a left hand: for the mirrored right hand model",
    "meshes": ".obj and .ply in the frame above; .glb y up, z backward (glTF)",
}

DEPTH_NOTE = {
    True: "K was given. One view cannot tell a small near hand from a large far one: depth and "
    "size carry the error of the estimated hand size.",
    False: "K was not given: focal length assumed to be the image diagonal. Depth is wrong by as "
    "much as the focal length is; positions in the image are not affected.",
}


class FoundHand(NamedTuple):
    """One predicted hand in the frame and pixels of its photo; a left one is a left hand again.

    Attributes:
        item: where it was looked for.
        vertices: metres, camera frame.
        faces: counter-clockwise seen from outside.
        joints: metres, camera frame.
        keypoints_2d: pixels of the photo.
        pose: absolute rotations of the 16 kinematic joints.
        betas: shape coefficients.
        translation: metres.
        seen: the (right) hand as the method saw it, with texture and light; None without a texture.
    """

    item: PhotoHand
    vertices: Float[Tensor, "v 3"]
    faces: Int[Tensor, "f 3"]
    joints: Float[Tensor, "21 3"]
    keypoints_2d: Float[Tensor, "21 2"]
    pose: Float[Tensor, "16 3 3"]
    betas: Float[Tensor, " 10"]
    translation: Float[Tensor, " 3"]
    seen: HandPrediction | None = None


def place_in_photo(
    prediction: HandPrediction,
    index: int,
    item: PhotoHand,
    faces: Int[Tensor, "f 3"],
    crop_to_image: Float[Tensor, "3 3"],
) -> FoundHand:
    """Return one hand of a batch in the frame of its photo, on the CPU in float32.

    The camera of a crop is the photo's (``K_crop = A^-1 K``), so that a right hand is in place
    already and a left one needs its mirror image: with ``M = diag(-1, 1, 1)`` points become
    ``M x``, rotations ``M R M`` (axis-angle ``(x, -y, -z)``), and faces turn round so that their
    normals still point outwards.

    Args:
        prediction: of a batch, each hand as seen in its crop.
        index: of the hand in the batch.
        item: the hand's.
        faces: of the (right) hand model.
        crop_to_image: the hand's affine.
    """
    vertices, joints, keypoints, pose, betas, translation = (
        field[index].detach().float().cpu() for field in prediction[:6]
    )
    faces, affine = faces.cpu(), crop_to_image.float().cpu()
    if item.side == "left":
        mirror = torch.tensor([-1.0, 1.0, 1.0])
        vertices, joints, translation = vertices * mirror, joints * mirror, translation * mirror
        pose = pose * mirror[:, None] * mirror
        faces = faces.flip(-1)
    keypoints = keypoints @ affine[:2, :2].T + affine[:2, 2]
    seen = None if prediction.texture is None else one_hand(prediction, index)
    return FoundHand(item, vertices, faces, joints, keypoints, pose, betas, translation, seen)


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
                self._broken.append(f"{name}, box {_rounded(hand.item.box, 1)}")
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


def shown(hands: Sequence[FoundHand], numbers: Sequence[int] | None = None) -> list[ShownHand]:
    """Return hands as the viewer wants them, numbered from 0 or as given."""
    return [
        ShownHand(hand.item.side, number, hand.vertices, hand.joints)
        for number, hand in zip(numbers or range(len(hands)), hands, strict=True)
    ]


def describe_method(trainer: pl.Trainer, method: HandMethod) -> dict[str, str | None]:
    """Return what a prediction was made with."""
    checkpoint = trainer.ckpt_path
    return {
        "method": type(method).__name__,
        "hand_model": type(method.hand).__name__,
        "checkpoint": None if checkpoint is None else str(checkpoint),
    }


def to_json(content: Any) -> str:
    """Return indented JSON with rows of numbers on one line each."""
    text = json.dumps(content, indent=1)
    # No string holds the line break that the pattern wants.
    return re.sub(r"\[\n([^\[\]{}\"]*)\]", lambda row: f"[{' '.join(row[1].split())}]", text)


def describe(hands: list[FoundHand], meshes: list[dict[str, str]]) -> dict[str, Any]:
    """Return the parameters of a photo's hands as plain lists and numbers.

    Args:
        hands: of one photo.
        meshes: their mesh files by suffix.
    """
    photo = hands[0].item
    return {
        "image_size": list(photo.image_size),
        "intrinsics": photo.intrinsics.tolist(),
        "intrinsics_given": photo.intrinsics_given,
        "note": DEPTH_NOTE[photo.intrinsics_given],
        "conventions": CONVENTIONS,
        "hands": [describe_hand(hand, files) for hand, files in zip(hands, meshes, strict=True)],
    }


def describe_hand(hand: FoundHand, files: dict[str, str]) -> dict[str, Any]:
    """Return the parameters of a hand as plain lists and numbers.

    Args:
        hand: in its photo.
        files: its meshes by suffix.
    """
    return {
        "side": hand.item.side,
        "box": _rounded(hand.item.box, 3),
        "joints_2d": _rounded(hand.keypoints_2d, 3),
        "joints_3d": _rounded(hand.joints, 6),
        "vertices": files,
        "pose_matrix": _rounded(hand.pose, 7),
        "pose_axis_angle": _rounded(matrix_to_axis_angle(hand.pose), 6),
        "betas": _rounded(hand.betas, 5),
        "translation": _rounded(hand.translation, 6),
    }


def draw_hands_in_colour(picture: Picture, hands: Sequence[FoundHand], render: Render) -> Picture:
    """Return the photo with its hands in their estimated texture and light.

    Args:
        picture: the photo.
        hands: in it.
        render: of the method.
    """
    for hand in farthest_first(hands):
        if hand.seen is not None:
            intrinsics, is_left = torch.from_numpy(hand.item.intrinsics), hand.item.side == "left"
            picture = draw_textured(picture, hand.seen, intrinsics, render, is_left)
    return picture


def farthest_first(hands: Sequence[FoundHand]) -> list[FoundHand]:
    """Return hands in the order in which to draw them."""
    return sorted(hands, key=lambda hand: -float(hand.vertices[:, 2].mean()))


def draw_hands(
    picture: Picture, hands: Sequence[FoundHand], rasterizer: Rasterizer | None = None
) -> Picture:
    """Return the photo with its hands, the farthest drawn first.

    Args:
        picture: the photo.
        hands: in it.
        rasterizer: draws the meshes; None takes ``warp``.
    """
    for hand in farthest_first(hands):
        picture = draw_mesh(
            picture,
            hand.vertices,
            hand.faces,
            torch.from_numpy(hand.item.intrinsics),
            colour=COLOURS[hand.item.side],
            rasterizer=rasterizer,
        )
    for hand in hands:
        picture = draw_skeleton(picture, hand.keypoints_2d)
    return picture


def _rounded(values: Tensor | Sequence[float], digits: int) -> Any:
    """Return nested lists of numbers to so many decimals, short in JSON."""
    return np.asarray(values, dtype=np.float64).round(digits).tolist()


def _photos(trainer: pl.Trainer) -> Photos:
    """Return the photos that are predicted on."""
    photos = getattr(trainer, "datamodule", None)
    if not isinstance(photos, Photos):
        raise UserError(f"PredictionWriter serves the data Photos, not {type(photos).__name__}")
    return photos
