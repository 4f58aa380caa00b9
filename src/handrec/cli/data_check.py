"""``handrec data check``: what a data set holds, what is wrong with it, and pictures to look at."""

import argparse
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from handrec.cli.folders import make_folder
from handrec.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.console import Console
    from rich.table import Table

    from handrec.data.crop_set import CropBatch
    from handrec.data.inspection import Inspection
    from handrec.data.real import RealHands
    from handrec.data.streamed import StreamedImages
    from handrec.hand.base import HandModel
    from handrec.types import HandBatch
    from handrec.viz.drawing import Picture

SHOWN_FAULTS = 10
#: Which vertices sets take for fingertips, by how their names begin; others as FreiHAND does.
TIPS = {"ho3d": "ho3d", "dexy": "manopth"}
_FAR = 20.0  # millimetres: sets whose parameters were fitted to joints stay below 10
_OUTSIDE = 0.5  # share of keypoints: crops have a margin, so that nearly all lie inside
_SHEET = 24  # pictures of a split on the contact sheet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the action takes."""
    parser.add_argument("name", help="of the data set: freihand, ho3d_v2, coco_hands, ...")
    parser.add_argument("root", nargs="?", help="its folder (default: looked for in $HANDREC_DATA)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="OPTION=VALUE", dest="options",
        help="option of the data module, such as test_annotations=test.json",
    )  # fmt: skip
    parser.add_argument(
        "--images", type=int, default=500, help="read per split; 0 reads all (default: 500)"
    )
    parser.add_argument("--mano", help="MANO file or its folder, to compare labels with")
    parser.add_argument(
        "--out", type=Path, default=Path("data_check"), help="folder of the contact sheets"
    )


def run(args: argparse.Namespace) -> int:
    """Print what a set holds, draw it, and return 1 if something is wrong with its images."""
    from rich.console import Console

    from handrec.data.checks import FilesError
    from handrec.data.real import RealHands

    console = Console(highlight=False)
    if args.images < 0:
        raise UserError(f"--images {args.images}: must be at least 0, which reads all")
    data = build(args.name, args.root, args.options)
    make_folder(args.out)
    if not isinstance(data, RealHands):
        return _check_stream(console, data, args)
    try:
        return _check_labelled(console, data, args)
    except FilesError as error:
        console.print(str(error), style="bold yellow", markup=False, soft_wrap=True)
        _print_faults(console, error.faults, args.images)
        console.print(f"{len(error.faults):,} files cannot be used", soft_wrap=True)
        return 1


def _check_labelled(console: "Console", data: "RealHands", args: argparse.Namespace) -> int:
    """Check a set with its labels on the disk; return the status."""
    from handrec.data.inspection import inspect

    data.hand = labelled_model(data, args.mano)
    data.check()
    console.print(f"{data.name} in {data.root}", markup=False, soft_wrap=True)
    splits = list(dict.fromkeys(("train", "val", *data.test_splits)))
    console.print(_counts_table(data, splits))
    wrong: set[str] = set()
    warnings = 0
    for split in splits:
        found = inspect(data, split, args.images)
        warnings += _print_inspection(console, split, found)
        _print_faults(console, found.faults, args.images)
        wrong.update(found.faults)
        batches = (data.label(crops) for crops in _evenly(data, split))
        _write_sheet(console, args.out / f"{data.name}-{split}.png", batches)
    if data.hand is None and any(t.labels.has_pose.any() for t in data.tables.values()):
        console.print("no MANO file found: parameters were not compared with joints (--mano)")
    skipped = {line for table in data.tables.values() for line in table.skipped}
    if skipped:
        console.print(f"{len(skipped)} left out, such as {min(skipped)}", soft_wrap=True)
    return _verdict(console, len(wrong), warnings)


def _check_stream(console: "Console", data: "StreamedImages", args: argparse.Namespace) -> int:
    """Check a set that is read from its start to its end; return the status."""
    from handrec.data.inspection import first_pictures, inspect_stream

    data.setup("check")
    wrong = 0
    for split in ("train", "val"):
        found = inspect_stream(data, split, args.images)
        sources = len(data.sources[split])
        console.print(
            f"{split}: {found.pictures:,} pictures of {sources:,} sources read,"
            f" {len(found.faults)} at fault; with a box {found.boxes:,}, with keypoints"
            f" {found.keypoints:,}, left {found.left:,}",
            soft_wrap=True,
        )
        _print_faults(console, found.faults, args.images)
        wrong += len(found.faults)
        batches = first_pictures(data, split, _SHEET)
        _write_sheet(console, args.out / f"{data.name}-{split}.png", batches)
    return _verdict(console, wrong)


def _verdict(console: "Console", wrong: int, warnings: int = 0) -> int:
    """Print what was found in all, and return the status, of which warnings are no part."""
    said = f"{wrong} files are at fault" if wrong else "no file is at fault"
    if warnings:
        said += f", but {warnings} warnings above want a look: labels that do not fit train nothing"
    console.print(said if wrong or warnings else "nothing wrong", soft_wrap=True)
    return 1 if wrong else 0


def build(name: str, root: str | None, options: list[str]) -> "RealHands | StreamedImages":
    """Return the data module of an overlay, without its classes: no hand, no augmentation.

    Args:
        name: of the overlay in ``experiments/data``.
        root: of the data set.
        options: ``NAME=VALUE``, the values as in YAML.
    """
    import yaml

    from handrec.cli.experiments import find, read_yaml
    from handrec.data.real import RealHands
    from handrec.data.streamed import StreamedImages

    overlay = read_yaml(find("DATA", name))["data"]
    module_name, _, class_name = overlay["class_path"].rpartition(".")
    cls: Any = getattr(import_module(module_name), class_name)
    if not issubclass(cls, RealHands | StreamedImages):
        raise UserError(f"{name} is drawn or a mixture: check its sets by themselves")
    given = overlay.get("init_args") or {}
    arguments = {key: value for key, value in given.items() if not isinstance(value, dict)}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals:
            raise UserError(f"--set {option}: expected OPTION=VALUE")
        try:
            arguments[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"--set {option}: not a value as in YAML") from error
        if isinstance(arguments[key], dict):
            raise UserError(f"--set {option}: a check takes numbers, names and lists only")
    where = "shards" if name == "shards" else "root"
    data: RealHands | StreamedImages = cls(**_parsed(cls, name, arguments, where, root))
    return data


def _parsed(
    cls: type, name: str, arguments: dict[str, Any], where: str, root: str | None
) -> dict[str, Any]:
    """Return the arguments of a data module with the types that a training takes them for."""
    from jsonargparse import ArgumentError, ArgumentParser

    from handrec.cli.parse_errors import shorten

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, as_group=False)
    known = vars(parser.get_defaults())
    for key in arguments.keys() - known.keys():
        raise UserError(f"--set {key}: {name} has no such option, but {', '.join(known)}")
    try:
        parsed = parser.parse_object(arguments | {where: root, "num_workers": 0})
    except ArgumentError as error:
        raise UserError(f"--set {shorten(str(error))}") from error
    return dict(vars(parsed))


def labelled_model(data: "RealHands", mano: str | None) -> "HandModel | None":
    """Return the hand model that a set's parameters are of; None if MANO is not to be found."""
    from handrec.data.marked import labelled_hand
    from handrec.hand.mano import Mano
    from handrec.hand.mano_files import ManoNotFoundError
    from handrec.hand.openhand import OpenHand

    if labelled_hand(data.root) == "OpenHand":
        return OpenHand()
    try:
        tips: Any = TIPS.get(data.name[:4], "freihand")
        return Mano(mano, tips=tips)
    except ManoNotFoundError:
        if mano:
            raise
        return None


def _evenly(data: "RealHands", split: str) -> "Iterator[CropBatch]":
    """Yield evenly spread samples of a split one by one, without those that cannot be read."""
    from handrec.data.inspection import spread

    crops = data.crops(split)
    for index in spread(len(crops), _SHEET):
        if not isinstance(read := crops.__getitems__([index]), str):
            yield read


def _write_sheet(console: "Console", path: Path, batches: "Iterable[HandBatch]") -> None:
    """Write a contact sheet, if there is anything to show."""
    from handrec.viz.report import encode_png

    pictures = [batch for batch in batches if len(batch.image)]
    if pictures:
        path.write_bytes(encode_png(sheet(pictures)))
        console.print(f"  contact sheet: {path}", markup=False, soft_wrap=True)


def sheet(batches: "Iterable[HandBatch]") -> "Picture":
    """Return pictures with their joints drawn on them, side by side."""
    from handrec.viz.contact import grid
    from handrec.viz.drawing import draw_skeleton, to_picture

    drawn, captions = [], []
    for batch in batches:
        for i, number in enumerate(batch.sample_id.tolist()):
            picture, confidence = to_picture(batch.image[i]), batch.confidence[i]
            drawn.append(draw_skeleton(picture, batch.keypoints_2d[i], confidence=confidence))
            captions.append(f"#{number}" + (" left, mirrored" if batch.is_left[i] else ""))
    return grid(drawn, min(6, len(drawn)), captions)


def _counts_table(data: "RealHands", splits: list[str]) -> "Table":
    """Return what each split holds."""
    from rich.table import Table

    from handrec.data.inspection import Counts, count

    headings = {"keypoints_2d": "2D", "joints_3d": "3D", "vertices": "mesh"}
    table = Table("split", *(headings.get(name, name) for name in Counts._fields))
    for split in splits:
        table.add_row(split, *(f"{number:,}" for number in count(data, split)))
    return table


def _print_inspection(console: "Console", split: str, found: "Inspection") -> int:
    """Print what some images of a split say, and return how many warnings that were."""
    console.print(f"{split}: {found.images:,} images read, {len(found.faults)} at fault")
    if found.known:
        console.print(f"  {found.outside:.1%} of the keypoints outside their crop")
    astray = found.outside > _OUTSIDE
    if astray:
        console.print(
            "  warning: that is most of them: boxes or keypoints of other images?",
            style="bold yellow",
        )
    for what, unit, errors in (
        ("joints", "mm", found.joint_errors),
        ("vertices", "mm", found.vertex_errors),
        ("reprojection", "px", found.pixel_errors),
    ):
        if len(errors):
            figures = f"mean {errors.mean():.3f} {unit}, most {errors.max():.3f} {unit}"
            console.print(f"  parameters against labels, {what}: {figures}", soft_wrap=True)
    far = bool(len(found.joint_errors) and found.joint_errors.mean() > _FAR)
    if far:
        console.print(
            "  warning: that is far: joints of another order, or parameters of another hand model?",
            style="bold yellow",
        )
    return int(far) + int(astray)


def _print_faults(console: "Console", faults: list[str], images: int) -> None:
    """Print the first faults; all of them where all images were to be read."""
    shown = faults if images == 0 else faults[:SHOWN_FAULTS]
    for fault in shown:
        console.print(f"  {fault}", markup=False, soft_wrap=True)
    if len(faults) > len(shown):
        console.print(f"  {len(faults) - len(shown):,} more, --images 0 lists them")
