"""``handrec data texture``: the texture of one hand from photos of it."""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from handrec.errors import UserError, keep_inputs

if TYPE_CHECKING:
    import torch

    from handrec.fitting.photographed import PhotographedHand
    from handrec.fitting.texture import RecoveredTexture
    from handrec.fitting.unproject import View
    from handrec.hand.base import HandModel
    from handrec.render.base import Rasterizer
    from handrec.viz.drawing import Picture

#: A texture that shows less of the hand than this is mostly guessed.
_LITTLE = 0.3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the photos, what is known of their hands, and where the texture goes."""
    parser.add_argument(
        "--images", type=Path, nargs="+", required=True, metavar="PATH",
        help="photos of one hand, or folders of them (frames of a video)",
    )  # fmt: skip
    known = parser.add_mutually_exclusive_group(required=True)
    known.add_argument(
        "--keypoints", type=Path,
        help="joints to fit the hands by: a JSON file as fit-image takes it, or a folder with "
        "NAME.json for each photo NAME.jpg",
    )  # fmt: skip
    known.add_argument(
        "--fits", type=Path, help="folder that fit-image has written: NAME.json for each NAME.jpg"
    )
    parser.add_argument("--out", type=Path, required=True, help="PNG file to write")
    parser.add_argument(
        "--size", type=int, default=512, help="texels along each side (default: 512)"
    )
    parser.add_argument("--camera", type=Path, help="as fit-image takes it; with --keypoints")
    parser.add_argument(
        "--side", choices=("right", "left"), default="right", help="of the body; with --keypoints"
    )
    parser.add_argument(
        "--steps", type=int, default=120, help="of each fit, with --keypoints (default: 120)"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default: cpu)")


def run(args: argparse.Namespace) -> int:
    """Recover, write, and say how much of the hand was seen."""
    from handrec.cli.fit_image import available_device
    from handrec.cli.main import is_out_of_memory
    from handrec.fitting.photographed import LEAST_OVERLAP, view_of
    from handrec.fitting.texture import recover_texture
    from handrec.hand.openhand import OpenHand
    from handrec.render.warp_backend import WarpRasterizer

    _check(args)
    photos = _photos(args.images)
    _check_files(args, photos)
    hand, rasterizer = OpenHand().to(available_device(args.device)), WarpRasterizer()
    views: list[View] = []
    sources: list[dict[str, object]] = []
    skipped: list[str] = []
    for path in photos:
        try:
            found = _find(args, path, hand, rasterizer)
            view, overlap = view_of(hand, found, rasterizer)
        except UserError as error:
            skipped.append(str(error))
            continue
        if overlap < LEAST_OVERLAP:
            skipped.append(f"{path}: the fitted hand covers the photo's badly ({overlap:.2f})")
            continue
        views.append(view)
        sources.append({"photo": path.name, "side": found.side, "overlap": round(overlap, 3)})
        print(f"{path}: fit and photo overlap by {overlap:.2f}", flush=True)
    if not views:
        raise UserError(f"no photo shows a hand that can be used: {'; '.join(skipped[:3])}")
    try:
        texture = recover_texture(hand, views, rasterizer, args.size)
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise UserError(
                f"out of memory: take fewer than {len(views)} photos, or a smaller --size"
            ) from error
        raise
    for source, share in zip(sources, texture.shares, strict=True):
        source["share"] = round(share, 4)
    _write(args.out, hand, rasterizer, texture, sources)
    if skipped:
        print(f"photos left out: {len(skipped)}", *skipped, sep="\n  ")
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse before anything slow what cannot work."""
    if args.out.suffix.lower() != ".png":
        raise UserError(f"--out {args.out}: the name of a texture ends in .png")
    if not 32 <= args.size <= 4096:
        raise UserError(f"--size {args.size}: must lie between 32 and 4096")
    if args.steps < 0:
        raise UserError(f"--steps {args.steps}: must not be negative")
    if args.fits and (args.camera or args.side != "right"):
        raise UserError("--fits knows camera and side: leave out --camera and --side")
    for option, path in (("--keypoints", args.keypoints), ("--fits", args.fits)):
        if path is not None and not path.exists():
            raise UserError(f"{option} {path}: there is no such file or folder")
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {args.out}: cannot write here ({error.strerror})") from error


def _check_files(args: argparse.Namespace, photos: list[Path]) -> None:
    """Refuse what would write over what is read, and one list of joints for several photos."""
    from handrec.data.json_files import read_json

    known = args.fits or args.keypoints
    beside = [known / f"{path.stem}.json" for path in photos] if known.is_dir() else [known]
    camera = [args.camera] if args.camera else []
    keep_inputs(f"--out {args.out}", _written(args.out), [*photos, *beside, *camera])
    one_for_all = len(photos) > 1 and args.keypoints and args.keypoints.is_file()
    if one_for_all and isinstance(read_json(args.keypoints), list):
        raise UserError(
            f"{args.keypoints}: one list of joints for {len(photos)} photos; give a COCO file, or a"
            " folder with NAME.json for each"
        )


def _written(out: Path) -> tuple[Path, Path, Path]:
    """Return where texture, report and picture go."""
    return out, out.with_suffix(".json"), out.with_name(f"{out.stem}_views.png")


def _photos(images: list[Path]) -> list[Path]:
    """Return the photos that were named, and those in folders that were."""
    from handrec.data.photos import find_photos
    from handrec.data.suffixes import VIDEOS

    for given in images:
        if given.suffix.lower() in VIDEOS:
            raise UserError(
                f"{given} is a video: `handrec data keypoints {given} --frames FOLDER` takes its"
                " frames out and finds their joints"
            )
    photos = [path for given in images for path in find_photos(given, recursive=False).values()]
    names = Counter(path.stem for path in photos)
    (name, count), *_ = names.most_common(1)
    if count > 1:
        raise UserError(f"{count} photos are called {name}: what is known of one would be of all")
    return photos


def _find(
    args: argparse.Namespace, path: Path, hand: "HandModel", rasterizer: "Rasterizer"
) -> "PhotographedHand":
    """Return the hand in a photo: read, or fitted now."""
    from handrec.cli.fit_image import read_target
    from handrec.fitting.fit import fit_photo
    from handrec.fitting.photographed import photographed, read_fit
    from handrec.types import HandBatch

    if args.fits is not None:
        return read_fit(_beside(args.fits, path), path)
    keypoints = _beside(args.keypoints, path) if args.keypoints.is_dir() else args.keypoints
    item, target = read_target(path, keypoints, args.camera, args.side)
    target = HandBatch(*(field.to(hand.template.device) for field in target))
    fit = fit_photo(hand, target, rasterizer, args.steps)
    return photographed(fit, path, item.side, item.intrinsics, target)


def _beside(folder: Path, photo: Path) -> Path:
    """Return the JSON file of a photo in a folder."""
    path = folder / f"{photo.stem}.json"
    if not path.is_file():
        raise UserError(f"{photo}: there is no {path}")
    return path


def _write(
    out: Path,
    hand: "HandModel",
    rasterizer: "Rasterizer",
    texture: "RecoveredTexture",
    sources: list[dict[str, object]],
) -> None:
    """Write texture, sources and a picture of the hand that wears it; say what was written."""
    from handrec.fitting.pictures import write_png
    from handrec.viz.drawing import to_picture

    _, report, views = _written(out)
    coverage = {name: round(share, 4) for name, share in texture.coverage.items()}
    content = {
        "hand_model": type(hand).__name__,
        "size": texture.image.shape[-1],
        "coverage": coverage,
        "note": "shares of the hand's surface whose colour is seen in a photo, copied from the "
        "other side of a finger or from the next one, or spread from around it",
        "sources": sources,
    }
    write_png(out, to_picture(texture.image))
    report.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    write_png(views, hand_sheet(hand, rasterizer, texture.image))
    seen, copied, spread = (f"{share:.0%}" for share in coverage.values())
    print(f"seen: {seen} of the hand; copied by symmetry: {copied}; filled from around: {spread}")
    if coverage["seen"] < _LITTLE:
        print("little of the hand is seen: what one side looks like does not tell the other")
    print("written:", *(path.as_posix() for path in (out, report, views)), sep="\n  ")


def hand_sheet(
    hand: "HandModel", rasterizer: "Rasterizer", texture: "torch.Tensor", size: int = 320
) -> "Picture":
    """Return a flat hand in a texture, seen from its palm, both sides and its back.

    Args:
        hand: the hand model.
        rasterizer: any backend.
        texture: ``(3, t, t)``, RGB in [0, 1].
        size: width and height of each picture, pixels.
    """
    import torch

    from handrec.geometry.rotations import axis_angle_to_matrix
    from handrec.hand.sampler import PoseSampler
    from handrec.render.shading import Light, Texture, render_lit
    from handrec.types import Camera
    from handrec.viz.contact import grid
    from handrec.viz.drawing import to_picture

    template = hand.template
    quarters = template.new_tensor([[0.0, turn * torch.pi / 2, 0.0] for turn in range(4)])
    # At rest fingers point along -x and the palm faces down: fingers up, palm to the camera.
    upright = template.new_tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    pose = PoseSampler(hand).gesture("flat").expand(4, 16, 3, 3).clone()
    pose[:, 0] = axis_angle_to_matrix(quarters) @ upright
    zero = template.new_zeros(4, 10)
    vertices = hand.decode(pose, zero, zero[:, :3]).vertices
    middle = (vertices.amax(1, keepdim=True) + vertices.amin(1, keepdim=True)) / 2
    vertices = vertices - middle + template.new_tensor([0.0, 0.0, 0.6])
    matrix = template.new_tensor([[2.4, 0.0, 0.5], [0.0, 2.4, 0.5], [0.0, 0.0, 1 / size]]) * size
    direction = template.new_tensor([[-0.3, -0.5, -0.8]]).expand(4, 3)
    light = Light(zero[:, :3] + 0.7, zero[:, :3] + 0.4, direction)
    drawn = render_lit(
        rasterizer, vertices, hand.faces, light, Camera(matrix.expand(4, 3, 3), (size, size)),
        texture=Texture(texture[None], hand.uv, hand.uv_faces), samples=2,
    )  # fmt: skip
    pictures = [to_picture(image) for image in drawn.image + 1 - drawn.mask]
    return grid(pictures, 4, ["palm", "side", "back", "other side"])
