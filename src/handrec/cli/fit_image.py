"""``handrec fit-image``: pose, shape, texture and light of the hand in one photo, by descent."""

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from handrec.callbacks.found_hands import FoundHand
    from handrec.data.photos import PhotoHand
    from handrec.fitting.fit import Fit
    from handrec.hand.base import HandModel
    from handrec.render.base import Rasterizer
    from handrec.types import HandBatch


#: What is written, after the photo's name: pictures, meshes and the report.
WRITTEN = ("_overlay.png", "_fit.webp", "_texture.png", ".glb", ".obj", ".json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the photo, its joints, and where results go."""
    parser.add_argument("image", type=Path, help="photo of a hand")
    parser.add_argument(
        "--keypoints", type=Path, required=True,
        help="JSON: 21 [x, y] or [x, y, confidence], wrist and thumb to little finger from base "
        "to tip; or a COCO file whose images name the photo",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("fits"), help="folder (default: fits)")
    parser.add_argument(
        "--camera", type=Path,
        help="JSON: K of the photo, or one per file name (default: focal length = diagonal)",
    )  # fmt: skip
    parser.add_argument("--side", choices=("right", "left"), default="right", help="of the body")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default: cpu)")
    parser.add_argument(
        "--steps", type=int, default=120, help="of descent on the pixels (default: 120)"
    )


def run(args: argparse.Namespace) -> int:
    """Fit, write, and say what was found."""
    from handrec.callbacks.found_hands import place_in_photo
    from handrec.errors import UserError, keep_inputs
    from handrec.fitting.fit import fit_photo
    from handrec.hand.openhand import OpenHand
    from handrec.render.warp_backend import WarpRasterizer
    from handrec.types import HandBatch

    if args.steps < 0:
        raise UserError(f"--steps {args.steps}: must not be negative")
    device = available_device(args.device)
    item, target = read_target(args.image, args.keypoints, args.camera, args.side)
    stem = args.out / args.image.stem
    inputs = [path for path in (args.image, args.keypoints, args.camera) if path]
    keep_inputs(f"--out {args.out}", [Path(f"{stem}{end}") for end in WRITTEN], inputs)
    _make_folder(args.out)
    start = time.perf_counter()
    target = HandBatch(*(field.to(device) for field in target))
    hand, rasterizer = OpenHand().to(device), WarpRasterizer()
    fit = fit_photo(hand, target, rasterizer, args.steps)
    seconds = time.perf_counter() - start
    found = place_in_photo(fit.prediction, 0, item, hand.faces, target.crop_to_image[0])
    written = _write_pictures(stem, hand, fit, target, rasterizer)
    written += _write_mesh(stem, hand, fit, found)
    report = Path(f"{stem}{WRITTEN[5]}")
    report.write_text(json.dumps(describe_fit(fit, found, args, seconds), indent=1) + "\n")
    pixels = fit.keypoint_error * _longer_side(item)
    print(f"{args.image}: joints within {pixels:.1f} pixels on average", end=" ")
    print(f"({fit.keypoint_error:.1%} of the hand's box), {seconds:.1f} s")
    if not item.intrinsics_given:
        focal = item.intrinsics[0, 0]
        print(f"no --camera: focal length assumed to be the diagonal, {focal:.0f} pixels")
    print("written:", *(path.as_posix() for path in [*written, report]), sep="\n  ")
    return 0


def read_target(
    image: Path, keypoints: Path, camera: Path | None, side: str
) -> "tuple[PhotoHand, HandBatch]":
    """Return the hand that is looked for, and the crop around it as a batch of one.

    Args:
        image: photo.
        keypoints: file, see :func:`~handrec.fitting.photo.read_keypoints`.
        camera: file with ``K``, or None for an assumed one.
        side: ``right`` or ``left``.
    """
    from handrec.data.boxes import read_intrinsics
    from handrec.data.crops import default_intrinsics, read_image, square_box
    from handrec.data.photos import PhotoHand
    from handrec.errors import UserError
    from handrec.fitting.photo import CROP_SCALE, crop_hand, joints_box, read_keypoints

    photo = read_image(image)
    size = (photo.shape[0], photo.shape[1])
    joints = read_keypoints(keypoints, image.name, size)
    given = None if camera is None else read_intrinsics(camera)
    if isinstance(given, dict):
        if image.name not in given:
            raise UserError(f"{camera}: no camera of {image.name}")
        given = given[image.name]
    intrinsics = default_intrinsics(*size) if given is None else given
    box = joints_box(joints)
    hand_side: Any = side  # argparse has checked it
    item = PhotoHand(
        image,
        image.name,
        size,
        box,
        square_box(box, CROP_SCALE),
        hand_side,
        intrinsics,
        given is not None,
    )
    return item, crop_hand(photo, joints, intrinsics, hand_side)


def describe_fit(
    fit: "Fit", found: "FoundHand", args: argparse.Namespace, seconds: float
) -> dict[str, Any]:
    """Return what is written as JSON: the hand as ``predict`` describes it, and how well it fits.

    Args:
        fit: in its crop.
        found: the same in its photo.
        args: of the command.
        seconds: that the fit took.
    """
    from handrec.callbacks.found_hands import describe

    light = fit.prediction.light
    mirror = -1 if found.item.side == "left" else 1
    x, y, z = light.direction[0].tolist()
    stem = args.image.stem
    return {
        "photo": found.item.name,
        "method": "fit-image",
        "hand_model": "OpenHand",
        **describe([found], [{"obj": f"{stem}.obj", "glb": f"{stem}.glb"}]),
        "fit": {
            "reprojection_error_px": round(fit.keypoint_error * _longer_side(found.item), 3),
            "reprojection_error_of_box": round(fit.keypoint_error, 5),
            "keypoints_only_error_of_box": round(fit.keypoints_only_error, 5),
            "silhouette_iou": round(fit.overlap, 4),
            "steps": args.steps,
            "seconds": round(seconds, 2),
        },
        "light": {
            "ambient": light.ambient[0].tolist(),
            "directional": light.directional[0].tolist(),
            "direction": [mirror * x, y, z],
            "note": "gains on the stored colours of the texture; direction towards the light, in "
            "the frame above; white by assumption",
        },
    }


def _longer_side(item: "PhotoHand") -> float:
    """Return the longer side of the box around the joints, pixels of the photo."""
    left, top, right, bottom = item.box
    return max(right - left, bottom - top)


def _write_pictures(
    stem: Path, hand: "HandModel", fit: "Fit", target: "HandBatch", rasterizer: "Rasterizer"
) -> list[Path]:
    """Write the sheet, the animation and the texture; return their paths."""
    from handrec.fitting.pictures import FitPictures, write_animation, write_png
    from handrec.viz.drawing import to_picture

    pictures = FitPictures(hand, target, rasterizer)
    overlay, animation, texture = (Path(f"{stem}{ending}") for ending in WRITTEN[:3])
    write_png(overlay, pictures.sheet(fit))
    write_animation(animation, pictures.frames(fit))
    write_png(texture, to_picture(fit.prediction.texture[0]))
    return [overlay, animation, texture]


def _write_mesh(stem: Path, hand: "HandModel", fit: "Fit", found: "FoundHand") -> list[Path]:
    """Write the mesh, textured and plain, in the frame of the photo; return the paths."""
    from handrec.render.shading import Texture
    from handrec.viz.mesh_export import export_mesh, export_textured_mesh

    glb, obj = (Path(f"{stem}{ending}") for ending in WRITTEN[3:5])
    uv_faces = hand.uv_faces.flip(-1) if found.item.side == "left" else hand.uv_faces
    texture = Texture(fit.prediction.texture, hand.uv, uv_faces)
    export_textured_mesh(glb, found.vertices, found.faces, texture)
    export_mesh(obj, found.vertices, found.faces)
    return [glb, obj]


def _make_folder(out: Path) -> None:
    from handrec.errors import UserError

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot write here ({error.strerror})") from error


def available_device(name: str) -> "torch.device":
    """Return a device that is there."""
    import torch

    from handrec.errors import UserError

    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name}: not here; cpu always is") from error
    return device
