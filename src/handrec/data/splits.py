"""The splits of synthetic data: what each holds out, and how it comes to lie on the disk."""

import hashlib
import inspect
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from handrec.data.appearance.base import Appearance, Look, Picture, Stage
from handrec.data.scenes import SCENES_VERSION, Scenes, Views, sample_scenes, scene_camera
from handrec.data.tables import BLOCK, Block, Drawn, SceneTable, block_seed, build, key_of
from handrec.data.videos import VIDEOS_VERSION, sample_videos
from handrec.errors import UserError
from handrec.hand.base import HandModel
from handrec.render.base import Rasterizer
from handrec.types import Hand


@dataclass(frozen=True)
class Split:
    """What a split is made of.

    Attributes:
        hands: which hands and cameras: splits that share this word show the same ones.
        outside: seen from every view but those of the training.
        shifted: drawn in the other appearance.
        video: sequences instead of single pictures.
    """

    hands: str
    outside: bool = False
    shifted: bool = False
    video: bool = False


#: By name. ``test`` and ``test_shift`` show the same hands: only the pictures differ.
SPLITS = {
    "train": Split("train"),
    "val": Split("val"),
    "test": Split("test"),
    "test_hard_views": Split("test_hard_views", outside=True),
    "test_shift": Split("test", shifted=True),
    "video": Split("video", video=True),
    "train_video": Split("train_video", video=True),
}

#: Those that an evaluation can name.
TEST_SPLITS = ("test", "test_hard_views", "test_shift", "video", "val")


@dataclass
class SplitMaker:
    """Samples, draws and keeps splits.

    Attributes:
        hand: the model drawn.
        rasterizer: draws.
        image_size: side of the crops, pixels.
        rows: pictures of each split, by name.
        frames: of a sequence.
        views: from which the hands are seen.
        appearance: what the pictures look like.
        shifted: what those of shifted splits look like.
        cached: whether pictures are kept; else scenes and looks are.
        folder: of the files.
        seed: of the splits.
    """

    hand: HandModel
    rasterizer: Rasterizer
    image_size: int
    rows: dict[str, int]
    frames: int
    views: Views
    appearance: Appearance
    shifted: Appearance | None
    cached: bool
    folder: Path
    seed: int

    def check(self, splits: tuple[str, ...]) -> None:
        """Raise a UserError unless each of the splits can be evaluated on."""
        unknown = [name for name in splits if name not in TEST_SPLITS]
        if unknown or not splits:
            known = ", ".join(TEST_SPLITS)
            raise UserError(f"no test split {', '.join(unknown) or 'named'}: there are {known}")
        if any(SPLITS[name].outside for name in splits) and self.views.share >= 1:
            raise UserError("test_hard_views is empty: give views a narrower cone or spin")
        for name in splits:
            self.appearance_of(name)

    def make(self, split: str) -> None:
        """Make a split and print its fingerprint, unless it lies on the disk already."""
        if self.path(split).exists():
            return
        step = BLOCK
        if SPLITS[split].video:
            step = max(1, BLOCK // self.frames) * self.frames
        starts = range(0, self.rows[split], step)
        what = f"drawing {self.rows[split]:,} {split} images" if self.cached else f"{split} scenes"
        blocks = (self._block(split, start, step) for start in starts)
        sha256 = build(self.path(split), blocks, len(starts), self._identity(split), what)
        print(f"handrec: made {split}, {self.rows[split]:,} pictures, sha256 {sha256}", flush=True)

    def path(self, split: str) -> Path:
        """Return the split's file, named by everything that its content depends on."""
        kind = SPLITS[split]
        facts = self._identity(split) | {
            "scenes": (SCENES_VERSION, VIDEOS_VERSION, asdict(kind)),
            "size": (self.rows[split], self.frames if kind.video else 1),
            "seed": self.seed,
            "views": asdict(self.views),
        }
        if self.cached:
            drawn_by = f"{type(self.rasterizer).__qualname__} {self.rasterizer.near}"
            facts["pictures"] = (self.image_size, drawn_by)
        return self.folder / f"{split}-{key_of(facts)}.safetensors"

    def appearance_of(self, split: str) -> Appearance:
        """Return what a split's pictures look like."""
        if not SPLITS[split].shifted:
            return self.appearance
        if self.shifted is None:
            raise UserError(f"{split} needs another appearance: --data.init_args.shifted=CLASS")
        return self.shifted

    def pose(self, scenes: Scenes) -> Hand:
        """Return the hands of scenes, on the scenes' device."""
        self.hand.to(scenes.pose.device)
        self.rasterizer.to(scenes.pose.device)
        return self.hand.decode(scenes.pose, scenes.betas, scenes.translation)

    def draw(self, split: str, scenes: Scenes, posed: Hand, look: Look) -> Picture:
        """Return the pictures of scenes in a split's appearance."""
        camera = scene_camera(scenes, self.image_size)
        stage = Stage(self.hand, posed, scenes.pose, camera, scenes.noise_seed, self.rasterizer)
        return self.appearance_of(split).draw(stage, look)

    def _block(self, split: str, start: int, step: int) -> Block:
        """Return the rows of a split from ``start`` on."""
        kind, count = SPLITS[split], min(step, self.rows[split] - start)
        seed = block_seed(self.seed, kind.hands, start)
        looks = count
        if kind.video:
            looks = count // self.frames
            scenes = sample_videos(self.hand, looks, self.frames, seed, self.views)
        else:
            scenes = sample_scenes(self.hand, count, seed, self.views, kind.outside)
        scenes = scenes._replace(sequence=scenes.sequence + start * looks // count)
        generator = torch.Generator().manual_seed(block_seed(self.seed, split, start, "look"))
        look = self.appearance_of(split).sample(looks, generator)
        drawn = self._keep(split, scenes, look) if self.cached else None
        return Block(scenes, look, drawn)

    @torch.no_grad()
    def _keep(self, split: str, scenes: Scenes, look: Look, chunk: int = 64) -> Drawn:
        """Return pictures as they are kept."""
        parts: list[Drawn] = []
        table = SceneTable.of(scenes, look)
        for rows in torch.arange(len(table)).split(chunk):
            batch = table.rows(rows)
            drawn = self.draw(split, batch.scenes, self.pose(batch.scenes), batch.look)
            levels = torch.cat([drawn.image, drawn.mask], dim=1) * 255
            parts.append(Drawn(levels.round().to(torch.uint8), drawn.visibility.to(torch.uint8)))
        return Drawn(*map(torch.cat, zip(*parts, strict=True)))

    def _identity(self, split: str) -> dict[str, Any]:
        """Return what a split's pictures depend on beside scenes and looks."""
        appearance = self.appearance_of(split)
        return {
            "hand": self._hand_digest,
            "appearance": (_described(appearance), appearance.version),
        }

    @cached_property
    def _hand_digest(self) -> str:
        digest = hashlib.sha256(type(self.hand).__qualname__.encode())
        for name, buffer in sorted(self.hand.named_buffers()):
            digest.update(f"{name}{tuple(buffer.shape)}".encode())
            digest.update(buffer.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def _described(thing: object) -> Any:
    """Return what tells an object's content from another's: itself, or its class and arguments."""
    if thing is None or isinstance(thing, bool | int | float | str | Path):
        return thing
    if isinstance(thing, dict):
        return {str(key): _described(value) for key, value in thing.items()}
    if isinstance(thing, list | tuple):
        return [_described(value) for value in thing]
    names = list(inspect.signature(type(thing)).parameters)
    missing = [name for name in names if not hasattr(thing, name)]
    if missing:
        raise TypeError(
            f"{type(thing).__name__} must keep its arguments {', '.join(missing)} as attributes:"
            " caches are looked up by them"
        )
    kind = f"{type(thing).__module__}.{type(thing).__qualname__}"
    return {"class": kind, **{name: _described(getattr(thing, name)) for name in names}}
