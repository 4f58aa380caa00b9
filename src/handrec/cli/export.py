"""`handrec export`: writes a trained network as ONNX, and checks that it says the same."""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import yaml

from handrec.cli import runs
from handrec.cli.command_line import CONFIG_KEY
from handrec.cli.folders import make_folder
from handrec.errors import UserError

if TYPE_CHECKING:
    from handrec.methods.base import HandMethod

#: Largest difference to PyTorch that is no cause for doubt, in the unit of each output: metres,
#: entries of rotation matrices, coefficients, and pixels, of which 0.1 mm are so many near by.
TOLERANCE = {
    "vertices": 1e-4, "joints": 1e-4, "translation": 1e-4, "pose": 1e-3, "betas": 1e-3,
    "scale": 1e-3, "keypoints_2d": 1e-1,
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `handrec export` takes."""
    parser.add_argument("run", nargs="?", help="experiment or run (default: the latest run)")
    parser.add_argument("--ckpt", type=Path, help="a checkpoint instead of the run's best")
    parser.add_argument("--which", default="best", choices=["best", "last"], help="checkpoint")
    parser.add_argument("--out", type=Path, help="default: <method>.onnx")
    parser.add_argument("--batch", type=int, help="fixed batch size (default: any)")
    parser.add_argument("--image-size", type=int, help="of the crops (default: as trained)")
    parser.add_argument("--opset", type=int, help="of ONNX's operators (default: 18)")


def run(args: argparse.Namespace) -> int:
    """Write the file, run it beside PyTorch, and say how far they are apart."""
    if args.batch is not None and args.batch < 1:
        raise UserError(f"--batch {args.batch}: must be at least 1")
    if args.image_size is not None and args.image_size < 1:
        raise UserError(f"--image-size {args.image_size}: must be at least 1")
    if args.out and args.out.suffix != ".onnx":
        raise UserError(f"--out {args.out}: must end with .onnx")
    path = args.ckpt or runs.choose_checkpoint(
        runs.resolve(args.run) if args.run else runs.latest(), args.which
    )
    from handrec.methods.loading import read_checkpoint

    size = args.image_size or learned_size(read_checkpoint(path))
    if size is None:
        raise UserError(f"{path} does not say the size of its crops: give --image-size")
    from handrec.cli.hand_cli import quieten
    from handrec.methods.base import HandMethod
    from handrec.methods.loading import load_method
    from handrec.methods.onnx_export import OPSET, export_onnx

    quieten()
    method = load_method(path)
    if not isinstance(method, HandMethod):
        raise UserError(f"{path}: {type(method).__name__} reconstructs no hands")
    out = args.out or Path(f"{type(method).__name__.lower()}.onnx")
    about = {"checkpoint": path.name}
    make_folder(out.parent)
    with TemporaryDirectory(dir=out.parent, prefix=".") as unchecked:
        written = Path(unchecked) / out.name
        export_onnx(method, written, size, args.batch, args.opset or OPSET, about)
        report_parity(written, method, size, args.batch)
        for file in Path(unchecked).iterdir():  # large weights are a file beside the network
            file.replace(out.parent / file.name)
    print(f"{out}: {type(method).__name__}, crops of {size} px, {out.stat().st_size / 1e6:.1f} MB")
    return 0


def learned_size(content: dict[str, Any]) -> int | None:
    """Return the size of the crops that a checkpoint was trained on, if it says so."""
    config = yaml.safe_load(content.get(CONFIG_KEY) or "") or {}
    size = (config.get("data", {}).get("init_args") or {}).get("image_size")
    return None if size is None else int(size)


def report_parity(path: Path, method: "HandMethod", size: int, batch: int | None) -> None:
    """Print how far ONNX Runtime is from PyTorch; raise if it is too far."""
    from handrec.methods.onnx_export import INSTALL, largest_differences

    try:
        differences = largest_differences(path, method, size, batch or 2)
    except ImportError:
        print(f"not checked: ONNX Runtime is not installed ({INSTALL})")
        return
    print("largest differences to PyTorch, in metres, pixels of crops and so on:")
    print("  " + ", ".join(f"{name} {value:.1e}" for name, value in differences.items()))
    wrong = [
        f"{name} by {value:.1e} (at most {TOLERANCE[name]:.0e} is right)"
        for name, value in differences.items()
        if not value <= TOLERANCE[name]  # NaN neither
    ]
    if wrong:
        raise UserError(
            f"{path.name} was not written: ONNX Runtime and PyTorch differ in {', '.join(wrong)}"
        )
