"""``handrec data``: checks data sets, writes synthetic ones, packs and labels photos, and more."""

import argparse
import contextlib
import io
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from handrec.cli import keypoints, texture
from handrec.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console
    from rich.table import Table

    from handrec.data.inspection import Inspection
    from handrec.data.real import RealHands
    from handrec.data.synthetic import SyntheticHands
    from handrec.hand.base import HandModel
    from handrec.types import HandBatch
    from handrec.viz.drawing import Picture

FORMATS = ("freihand", "ho3d_v2", "ho3d_v3", "coco", "dexycb", "interhand26m", "rhd", "shards")
_SHEET = 24  # pictures of a split on the contact sheet
_SHOWN_FAULTS = 10
_VIDEO_FRAMES = 10
#: Which vertices sets take for fingertips, by how their names begin; others as FreiHAND does.
_TIPS = {"ho3d": "ho3d", "dexy": "manopth"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the actions ``check``, ``synth``, ``texture``, ``pack`` and ``keypoints``."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    check_parser = actions.add_parser("check", help="say what a data set holds and what is wrong")
    check_parser.add_argument("name", help="of the data set: freihand, ho3d_v2, coco_hands, ...")
    check_parser.add_argument(
        "root", nargs="?", help="its folder (default: looked for in $HANDREC_DATA)"
    )
    check_parser.add_argument(
        "--set", action="append", default=[], metavar="OPTION=VALUE", dest="options",
        help="option of the data module, such as test_annotations=test.json",
    )  # fmt: skip
    check_parser.add_argument(
        "--images", type=int, default=500, help="read per split; 0 reads all (default: 500)"
    )
    check_parser.add_argument("--mano", help="MANO file or its folder, to compare labels with")
    check_parser.add_argument(
        "--out", type=Path, default=Path("data_check"), help="folder of the contact sheets"
    )
    synth_parser = actions.add_parser("synth", help="write synthetic hands in a set's layout")
    synth_parser.add_argument("--format", choices=FORMATS, required=True)
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
        "check": check, "texture": texture.run, "pack": pack, "keypoints": keypoints.run,
    }  # fmt: skip
    if args.action in actions:
        return actions[args.action](args)
    if args.count < 8 or args.size < 32:
        raise UserError("--count must be at least 8, --size at least 32")
    synthesize(args.format, args.out, args.count, args.size, args.mano, args.seed)
    return 0


def check(args: argparse.Namespace) -> int:
    """Print what a set holds, draw it, and return 1 if something is wrong with its images."""
    from rich.console import Console

    from handrec.data.inspection import inspect
    from handrec.viz.report import encode_png

    console = Console(highlight=False)
    data = build(args.name, args.root, args.options)
    data.hand = labelled_model(data, args.mano)
    data.setup("check")
    console.print(f"{data.name} in {data.root}", markup=False, soft_wrap=True)
    splits = list(dict.fromkeys(("train", "val", *data.test_splits)))
    console.print(_counts_table(data, splits))
    wrong = 0
    for split in splits:
        found = inspect(data, split, args.images)
        _print_inspection(console, split, found)
        wrong += len(found.faults)
        args.out.mkdir(parents=True, exist_ok=True)
        path = args.out / f"{data.name}-{split}.png"
        path.write_bytes(encode_png(sheet(data, split)))
        console.print(f"  contact sheet: {path}", markup=False, soft_wrap=True)
    if data.hand is None and any(t.labels.has_pose.any() for t in data.tables.values()):
        console.print("no MANO file found: parameters were not compared with joints (--mano)")
    skipped = {line for table in data.tables.values() for line in table.skipped}
    if skipped:
        console.print(f"{len(skipped)} images left out, such as {min(skipped)}", soft_wrap=True)
    console.print("nothing wrong" if not wrong else f"{wrong} images cannot be used")
    return 1 if wrong else 0


def pack(args: argparse.Namespace) -> int:
    """Pack photos into shards, and return 1 if some could not be read."""
    from handrec.data.packing import pack_folder

    if args.per_shard < 1 or (args.shortest is not None and args.shortest < 1):
        raise UserError("--per-shard and --shortest must be at least 1")
    index, skipped = pack_folder(args.folder, args.out, args.per_shard, args.shortest, args.boxes)
    print(f"written: {args.out}: {sum(index.values()):,} pictures in {len(index)} archives")
    print(f"  make train EXP=handmim_pretrain DATA=shards ARGS=--data.shards={args.out}")
    if skipped:
        print(f"{len(skipped)} photos left out:", *skipped[:_SHOWN_FAULTS], sep="\n  ")
    return 1 if skipped else 0


def build(name: str, root: str | None, options: list[str]) -> "RealHands":
    """Return the data module of an overlay, without its classes: no hand, no augmentation.

    Args:
        name: of the overlay in ``experiments/data``.
        root: of the data set.
        options: ``NAME=VALUE``, the values as in YAML.
    """
    import yaml

    from handrec.cli.experiments import find, read_yaml
    from handrec.data.real import RealHands

    overlay = read_yaml(find("DATA", name))["data"]
    module_name, _, class_name = overlay["class_path"].rpartition(".")
    cls: Any = getattr(import_module(module_name), class_name)
    if not issubclass(cls, RealHands):
        raise UserError(f"{name} is drawn or streamed: it has no labels on the disk to check")
    given = overlay.get("init_args") or {}
    arguments = {key: value for key, value in given.items() if not isinstance(value, dict)}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals:
            raise UserError(f"--set {option}: expected OPTION=VALUE")
        arguments[key] = yaml.safe_load(value)
    try:
        data: RealHands = cls(**arguments | {"root": root, "num_workers": 0})
    except TypeError as error:
        raise UserError(f"--set: {error}") from error
    return data


def labelled_model(data: "RealHands", mano: str | None) -> "HandModel | None":
    """Return the hand model that a set's parameters are of; None if MANO is not to be found."""
    from handrec.data.marked import labelled_hand
    from handrec.hand.mano import Mano
    from handrec.hand.mano_files import ManoNotFoundError
    from handrec.hand.openhand import OpenHand

    if labelled_hand(data.root) == "OpenHand":
        return OpenHand()
    try:
        tips: Any = _TIPS.get(data.name[:4], "freihand")
        return Mano(mano, tips=tips)
    except ManoNotFoundError:
        if mano:
            raise
        return None


def sheet(data: "RealHands", split: str, pictures: int = _SHEET) -> "Picture":
    """Return evenly spread crops of a split with their joints drawn on them."""
    from handrec.data.inspection import spread
    from handrec.viz.contact import grid
    from handrec.viz.drawing import draw_skeleton, to_picture

    crops = data.crops(split)
    drawn, captions = [], []
    for index in spread(len(crops), pictures):
        read = crops.__getitems__([index])
        if isinstance(read, str):
            continue
        batch = data.label(read)
        drawn.append(
            draw_skeleton(
                to_picture(batch.image[0]), batch.keypoints_2d[0], confidence=batch.confidence[0]
            )
        )
        side = " left, mirrored" if batch.is_left[0] else ""
        captions.append(f"#{int(batch.sample_id[0])}{side}")
    if not drawn:
        raise UserError(f"{data.name}: no image of the split {split} can be read")
    return grid(drawn, min(6, len(drawn)), captions)


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
    tips: Any = _TIPS.get(layout[:4], "freihand")
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
    if layout == "shards":
        print(f"written: {out}; make train DATA=shards ARGS=--data.shards={out}")
        return
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


def _counts_table(data: "RealHands", splits: list[str]) -> "Table":
    """Return what each split holds."""
    from rich.table import Table

    from handrec.data.inspection import Counts, count

    table = Table("split", *(name.replace("_", " ") for name in Counts._fields))
    for split in splits:
        table.add_row(split, *(f"{number:,}" for number in count(data, split)))
    return table


def _print_inspection(console: "Console", split: str, found: "Inspection") -> None:
    """Print what some images of a split say."""
    console.print(f"{split}: {found.images:,} images read, {len(found.faults)} at fault")
    console.print(f"  {found.outside:.1%} of the keypoints outside their crop")
    for what, unit, errors in (
        ("joints", "mm", found.joint_errors),
        ("vertices", "mm", found.vertex_errors),
        ("reprojection", "px", found.pixel_errors),
    ):
        if len(errors):
            figures = f"mean {errors.mean():.3f} {unit}, most {errors.max():.3f} {unit}"
            console.print(f"  parameters against labels, {what}: {figures}", soft_wrap=True)
    for fault in found.faults[:_SHOWN_FAULTS]:
        console.print(f"  {fault}", markup=False, soft_wrap=True)
