"""`handrec data keypoints`: finds keypoints in photos and writes them in COCO's format."""

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from handrec.cli.folders import make_folder
from handrec.data.suffixes import VIDEOS
from handrec.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float
    from torch import Tensor

    from handrec.data.photos import Photos
    from handrec.types import HandBatch

    #: Keypoints of a batch in the pixels of its crops.
    Finder = Callable[[HandBatch], Float[Tensor, "b 21 2"]]

#: A network looks at a crop as it is and turned by this much either way, degrees.
TURN = 20.0

#: Two looks that differ by 1 / DOUBT of the hand's size take the confidence to 1 / e.
DOUBT = 12.0


class Found(NamedTuple):
    """A hand with its keypoints.

    Attributes:
        name: of the photo.
        image_size: ``(height, width)``.
        keypoints: pixels of the photo, centres at integer + 0.5.
        confidence: of the keypoints.
        box: ``(x1, y1, x2, y2)``.
        side: of the body.
    """

    name: str
    image_size: tuple[int, int]
    keypoints: Any
    confidence: Any
    box: tuple[float, float, float, float]
    side: str


class Network(NamedTuple):
    """A trained network that finds keypoints.

    Attributes:
        path: of its checkpoint.
        find: keypoints of a batch of crops.
        size: of the crops, pixels.
        device: that it is on.
    """

    path: Path
    find: "Finder"
    size: int
    device: Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `handrec data keypoints` takes."""
    parser.add_argument("input", help="photo or folder of photos; with --frames video or folder "
                        "of videos")  # fmt: skip
    parser.add_argument(
        "--frames", type=Path, help="folder, empty or new, to write the frames of videos to"
    )
    parser.add_argument(
        "--stride", type=int, default=1, help="from one frame that is written to the next"
    )
    parser.add_argument("--run", help="experiment or run whose network finds the keypoints")
    parser.add_argument("--ckpt", type=Path, help="its checkpoint, instead of --run")
    parser.add_argument(
        "--detector", help="MediaPipe's hand_landmarker.task: finds the hands, and without --run"
        " or --ckpt the keypoints too",
    )  # fmt: skip
    parser.add_argument("--boxes", help="JSON file with the hands of each photo")
    parser.add_argument("--side", choices=("right", "left"), default="right", help="of hands "
                        "whose side no box names (default: right)")  # fmt: skip
    parser.add_argument("--recursive", action="store_true", help="photos in folders, too")
    parser.add_argument("--size", type=int, help="of the crops (default: as the run was trained)")
    parser.add_argument("--batch-size", type=int, default=16, help="crops at a time")
    parser.add_argument(
        "--out", type=Path, help="file (default: keypoints.json in the folder of photos)"
    )


def run(args: argparse.Namespace) -> int:
    """Find the keypoints and write them down."""
    out = args.out or (args.frames or _folder(args.input)) / "keypoints.json"
    _refuse(args, out)
    network = _network(args) if args.run or args.ckpt else None
    if args.detector:
        from handrec.data.detection import MediaPipeHands

        MediaPipeHands(args.detector)  # refuses what is none before any video is decoded
    if out.parent != args.frames:
        make_folder(out.parent)
    with TemporaryDirectory() as scratch:
        broken = [] if args.frames is None else _to_frames(args, Path(scratch))
        hands, skipped = _by_mediapipe(args) if network is None else _by_network(args, network)
    skipped += broken
    if not hands:
        raise UserError(f"{args.input}: no hand found ({'; '.join(skipped[:3]) or 'in any photo'})")
    out.write_text(json.dumps(as_coco(hands)) + "\n", encoding="utf-8")
    photos = len({hand.name for hand in hands})
    print(f"written: {out}: {len(hands)} hands in {photos} photos; look at them:")
    root = _folder(args.input)
    file = out.name if out.parent.resolve() == root.resolve() else out.resolve()
    print(f"  handrec data check coco_hands {root} --set annotations={file}")
    if skipped:
        print(f"left out: {len(skipped)}", *skipped[:10], sep="\n  ")
    return 0


def _refuse(args: argparse.Namespace, out: Path) -> None:
    """Refuse options that do not go together."""
    if out.exists():
        raise UserError(f"{out} is there already: say --out=FILE, or remove it")
    if args.run and args.ckpt:
        raise UserError("give --run or --ckpt, not both")
    if args.stride < 1:
        raise UserError("--stride must be at least 1")
    if args.stride > 1 and args.frames is None:
        raise UserError("--stride is for the frames of videos: say --frames=FOLDER, too")
    if min(args.batch_size, 1 if args.size is None else args.size) < 1:
        raise UserError("--size and --batch-size must be at least 1")
    by_network = args.run or args.ckpt
    if not (by_network or args.detector):
        raise UserError(
            "who finds the keypoints? --run=NAME or --ckpt=FILE of a trained network, or"
            " --detector=hand_landmarker.task (MediaPipe)"
        )
    if args.boxes and not by_network:
        raise UserError("boxes are for --run and --ckpt: MediaPipe finds hands by itself")
    if args.boxes and args.detector:
        raise UserError("boxes say where hands are, a detector finds them: give one of them")
    if args.frames is None and Path(args.input).suffix.lower() in VIDEOS:
        raise UserError(f"{args.input} is a video: --frames=FOLDER says where its frames go")


def _to_frames(args: argparse.Namespace, scratch: Path) -> list[str]:
    """Write the frames of videos to files and put them in their place; return their faults."""
    from handrec.data import extraction

    videos = extraction.look_at_videos(Path(args.input))
    if args.boxes:
        boxes = extraction.read_frame_boxes(Path(args.boxes), videos, args.side)
    broken = extraction.write_frames(videos, args.frames, args.stride)
    if args.boxes:
        args.boxes = str(scratch / "boxes.json")
        extraction.write_frame_boxes(boxes, args.frames, Path(args.boxes))
    args.input, args.recursive = str(args.frames), True
    return broken


def as_coco(hands: list[Found]) -> dict[str, Any]:
    """Return hands in COCO's format: flags are 1, for visibility is not known.

    ``keypoint_scores`` are the confidences; pixel centres are at integers, as published sets have
    them.
    """
    from handrec.data.columns import HALF_PIXEL
    from handrec.data.layouts import COCO_NAMES

    names = list(dict.fromkeys(hand.name for hand in hands))
    sizes = {hand.name: hand.image_size for hand in hands}
    images = [
        {"id": i, "file_name": name, "height": sizes[name][0], "width": sizes[name][1]}
        for i, name in enumerate(names)
    ]
    numbers = {name: i for i, name in enumerate(names)}
    annotations = []
    for i, hand in enumerate(hands):
        left, top, right, bottom = hand.box
        points = [[round(float(v) - HALF_PIXEL, 3) for v in xy] + [1] for xy in hand.keypoints]
        annotations.append(
            {
                "id": i,
                "image_id": numbers[hand.name],
                "category_id": 1,
                "iscrowd": 0,
                "bbox": [left - HALF_PIXEL, top - HALF_PIXEL, right - left, bottom - top],
                "keypoints": [value for point in points for value in point],
                "keypoint_scores": [round(float(c), 4) for c in hand.confidence],
                "side": hand.side,
            }
        )
    category = {"id": 1, "name": "hand", "keypoints": list(COCO_NAMES)}
    return {"images": images, "annotations": annotations, "categories": [category]}


def look(
    find: "Finder", batch: "HandBatch"
) -> "tuple[Float[Tensor, 'b 21 2'], Float[Tensor, 'b 21']]":
    """Return keypoints in crop pixels and confidences: three looks, and how far they agree.

    Networks say little about how sure they are; a joint that is found elsewhere when the picture is
    turned was not seen well.

    Args:
        find: the network.
        batch: of crops.
    """
    import torch

    from handrec.data.augment import no_moves, turn
    from handrec.geometry.camera import move_pixels

    count, size = len(batch.image), batch.image.shape[-1]
    looks = []
    for angle in (0.0, TURN, -TURN):
        moves = no_moves(count)._replace(angle=torch.full((count,), math.radians(angle)))
        found = find(turn(batch, moves)).float().cpu()
        back = torch.linalg.inv(moves.matrix(size))
        looks.append(move_pixels(found, back))
    looks_ = torch.stack(looks)
    keypoints = looks_.median(0).values
    apart = (looks_ - keypoints).norm(dim=-1).mean(0)
    extent = (keypoints.amax(1) - keypoints.amin(1)).amax(1).clamp(min=1.0)
    return keypoints, (-DOUBT * apart / extent[:, None]).exp()


def _network(args: argparse.Namespace) -> Network:
    """Return the network of the run or checkpoint that was asked for."""
    import torch

    from handrec.cli import runs
    from handrec.cli.export import learned_size
    from handrec.methods.loading import load_method, read_checkpoint

    path = args.ckpt or runs.choose_checkpoint(runs.resolve(args.run), "best")
    size = args.size or learned_size(read_checkpoint(path))
    if size is None:
        raise UserError(f"{path} does not say the size of its crops: give --size")
    method: Any = load_method(path).eval()
    if hasattr(method, "reconstruct"):
        find: Finder = lambda batch: method.reconstruct(batch).keypoints_2d  # noqa: E731
    elif hasattr(method, "keypoints"):
        find = lambda batch: method.keypoints.find(batch.image).keypoints[-1]  # noqa: E731
    else:
        raise UserError(f"{path}: a {type(method).__name__} finds no keypoints")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    method.to(device)
    return Network(path, find, size, device)


def _by_network(args: argparse.Namespace, network: Network) -> tuple[list[Found], list[str]]:
    """Return the hands whose keypoints a trained network finds, and what was left out."""
    from handrec.data.photos import Photos

    photos = Photos(
        args.input, boxes=args.boxes, detector=args.detector, side=args.side,
        recursive=args.recursive, image_size=network.size, batch_size=args.batch_size,
    )  # fmt: skip
    photos.setup("predict")
    print(f"checkpoint {network.path}, crops of {network.size} px")
    return list(_found(photos, network)), photos.skipped + photos.unusable


def _found(photos: "Photos", network: Network) -> "Iterator[Found]":
    """Yield the hands of photos with their keypoints, in the photos' own pixels and sides."""
    import torch
    from rich.progress import track

    from handrec.geometry.camera import move_pixels
    from handrec.types import HandBatch

    loader = photos.predict_dataloader()
    with torch.no_grad():
        for loaded in track(loader, "finding keypoints", transient=True):
            batch = HandBatch(*(field.to(network.device) for field in loaded))
            keypoints, confidence = look(network.find, batch)
            affine = batch.crop_to_image.cpu()
            keypoints = move_pixels(keypoints, affine)
            for i, number in enumerate(batch.sample_id.tolist()):
                item = photos.items[number]
                whole = item.box == (0.0, 0.0, float(item.image_size[1]), float(item.image_size[0]))
                box = _around(keypoints[i]) if whole else item.box
                yield Found(item.name, item.image_size, keypoints[i], confidence[i], box, item.side)


def _by_mediapipe(args: argparse.Namespace) -> tuple[list[Found], list[str]]:
    """Return the hands that MediaPipe finds, and what was left out."""
    import torch

    from handrec.data.crops import read_image
    from handrec.data.detection import MediaPipeHands
    from handrec.data.photos import find_photos

    detector = MediaPipeHands(args.detector)
    hands, skipped = [], []
    for name, path in find_photos(Path(args.input), args.recursive).items():
        try:
            picture = read_image(path)
        except UserError as error:
            skipped.append(str(error))
            continue
        found = detector.landmarks(picture)
        if not found:
            skipped.append(f"{path}: no hand found")
        for hand in found:
            points = torch.from_numpy(hand.points).float()
            sure = torch.full((21,), hand.score)
            size = picture.shape[:2]
            hands.append(Found(name, size, points, sure, _around(points), hand.side))
    return hands, skipped


def _around(points: "Float[Tensor, '21 2']") -> tuple[float, float, float, float]:
    """Return the box around keypoints."""
    (left, top), (right, bottom) = points.amin(0).tolist(), points.amax(0).tolist()
    return left, top, right, bottom


def _folder(given: str) -> Path:
    path = Path(given)
    return path if path.is_dir() else path.parent
