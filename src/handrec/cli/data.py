"""``handrec data``: checks data sets, writes synthetic ones, packs and labels photos, and more."""

import argparse
import contextlib
import io
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from handrec.cli import data_check, keypoints, texture
from handrec.cli.data_check import SHOWN_FAULTS, TIPS
from handrec.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from handrec.data.synthetic import SyntheticHands
    from handrec.hand.base import HandModel
    from handrec.types import HandBatch

FORMATS = ("freihand", "ho3d_v2", "ho3d_v3", "coco", "dexycb", "interhand26m", "rhd", "shards")
#: What else people call a format.
_ALSO = {"coco_hands": "coco", "ho3d": "ho3d_v3"}
_VIDEO_FRAMES = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the actions ``check``, ``synth``, ``texture``, ``pack`` and ``keypoints``."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    data_check.add_arguments(
        actions.add_parser("check", help="say what a data set holds and what is wrong")
    )
    synth_parser = actions.add_parser("synth", help="write synthetic hands in a set's layout")
    synth_parser.add_argument(
        "--format",
        required=True,
        metavar="FORMAT",
        choices=(*FORMATS, *_ALSO),
        help=", ".join(FORMATS),
    )  # fmt: skip
    synth_parser.add_argument("--out", type=Path, required=True, help="folder, empty or new")
    synth_parser.add_argument(
        "--count", type=int, default=100, help="training hands (default: 100); an eighth to test"
    )
    synth_parser.add_argument("--size", type=int, default=224, help="of pictures, pixels")
    synth_parser.add_argument("--mano", help="draw this MANO file's hand (default: OpenHand)")
    synth_parser.add_argument("--seed", type=int, default=0)
    texture.add_arguments(
        actions.add_parser("texture", help="recover the texture of a hand from photos of it")
    )
    pack_parser = actions.add_parser("pack", help="pack a folder of photos into shards")
    pack_parser.add_argument("folder", type=Path, help="of the photos, folders in it too")
    pack_parser.add_argument("--out", type=Path, required=True, help="folder, empty or new")
    pack_parser.add_argument(
        "--per-shard", type=int, default=1000, help="pictures of an archive (default: 1000)"
    )
    pack_parser.add_argument(
        "--shortest", type=int, help="shrink pictures whose shorter side is longer, pixels"
    )
    pack_parser.add_argument(
        "--boxes", type=Path, help="JSON file with the hands of each photo, as for predict"
    )
    keypoints_parser = actions.add_parser(
        "keypoints", help="find keypoints in photos and write them as labels"
    )
    keypoints.add_arguments(keypoints_parser)


def run(args: argparse.Namespace) -> int:
    """Run the action."""
    actions = {
        "check": data_check.run, "texture": texture.run, "pack": pack, "keypoints": keypoints.run,
    }  # fmt: skip
    if args.action in actions:
        return actions[args.action](args)
    if args.count < 8 or args.size < 32:
        raise UserError("--count must be at least 8, --size at least 32")
    layout = _ALSO.get(args.format, args.format)
    if layout == "dexycb":  # before minutes of drawing
        from handrec.data.layouts_sides import dexycb_margins

        dexycb_margins((args.size, args.size))
    synthesize(layout, args.out, args.count, args.size, args.mano, args.seed)
    return 0


def pack(args: argparse.Namespace) -> int:
    """Pack photos into shards, and return 1 if some, or boxes of some, are left out."""
    from handrec.data.packing import pack_folder

    if args.per_shard < 1 or (args.shortest is not None and args.shortest < 1):
        raise UserError("--per-shard and --shortest must be at least 1")
    index, skipped = pack_folder(args.folder, args.out, args.per_shard, args.shortest, args.boxes)
    print(f"written: {args.out}: {sum(index.values()):,} pictures in {len(index)} archives")
    print(f"  make train EXP=handmim_pretrain DATA=shards ARGS=--data.shards={args.out}")
    if skipped:
        what = "photos" if args.boxes is None else "photos or boxes"
        print(f"{len(skipped)} {what} left out:", *skipped[:SHOWN_FAULTS], sep="\n  ")
    return 1 if skipped else 0


def synthesize(
    layout: str, out: Path, count: int, size: int, mano: str | None = None, seed: int = 0
) -> None:
    """Write synthetic hands in a data set's layout.

    Args:
        layout: one of :data:`FORMATS`.
        out: folder, empty or not there yet.
        count: of training hands; an eighth as many to test.
        size: height of the pictures.
        mano: file whose hand is drawn; None draws OpenHand.
        seed: of the hands.
    """
    from handrec.data import layouts
    from handrec.data.appearance.plain import Plain
    from handrec.data.packing import write_drawn
    from handrec.data.synthetic import SyntheticHands
    from handrec.hand.mano import Mano
    from handrec.hand.openhand import OpenHand
    from handrec.render.warp_backend import WarpRasterizer

    is_video = layout.startswith("ho3d")
    tips: Any = TIPS.get(layout[:4], "freihand")
    hand: HandModel = OpenHand() if mano is None else Mano(mano, tips=tips)
    videos = max(2, count // _VIDEO_FRAMES)
    frames = videos * _VIDEO_FRAMES
    with TemporaryDirectory() as folder:
        data = SyntheticHands(
            hand, WarpRasterizer(), image_size=size, batch_size=1, val_size=1, seed=seed,
            train_size=1 if is_video else count, test_size=max(1, count // 8),
            test_splits=("video",) if is_video else ("test",), appearance=Plain(),
            video_sequences=videos + max(1, videos // 8), video_frames=_VIDEO_FRAMES,
            cache_dir=folder,
        )  # fmt: skip
        with contextlib.redirect_stdout(io.StringIO()):  # of splits that nobody asked for
            data.prepare_data()
        data.setup("")
        if layout == "freihand":
            layouts.write_freihand(out, _drawn(data, "train"), _drawn(data, "test"), hand)
        elif layout == "coco":
            layouts.write_coco(out, _drawn(data, "train"), hand)
        elif layout == "shards":
            write_drawn(out, _drawn(data, "train"), hand)
        elif layout in (others := _side_writers()):
            others[layout](out, _drawn(data, "train"), _drawn(data, "test"), hand)
        else:
            training, test = _drawn(data, "video", 0, frames), _drawn(data, "video", frames)
            layouts.write_ho3d(out, training, test, hand, layout.removeprefix("ho3d_"))
    name = {"coco": "coco_hands"}.get(layout, layout)
    print(f"written: {out}; look at it: handrec data check {name} {out}")


def _side_writers() -> dict[str, Any]:
    """Return the writers of sets with left and right hands."""
    from handrec.data import layouts_sides as layouts

    return {
        "dexycb": layouts.write_dexycb,
        "interhand26m": layouts.write_interhand26m,
        "rhd": layouts.write_rhd,
    }


def _drawn(
    data: "SyntheticHands", split: str, start: int = 0, stop: int | None = None, chunk: int = 32
) -> "Iterator[HandBatch]":
    """Yield some rows of a split as batches."""
    import torch

    for rows in torch.arange(len(data.tables[split]))[start:stop].split(chunk):
        yield data.label(data.tables[split].rows(rows), split)
