"""`handrec export-backbone`: writes a run's backbone in timm's own naming."""

import argparse
from pathlib import Path
from typing import Any

from torch import Tensor

from handrec.cli import runs
from handrec.errors import UserError

#: Where a method keeps its backbone, by the prefix of its parameters; the first found is written.
PREFIXES = {"teacher": "teacher.backbone.model.", "student": "student.backbone.model."}
PLAIN = "backbone.model."
SUFFIX = ".safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `handrec export-backbone` takes."""
    parser.add_argument("run", nargs="?", default="handmim_pretrain", help="experiment or run")
    parser.add_argument("--ckpt", type=Path, help="a checkpoint instead of the run's last")
    parser.add_argument("--which", default="last", choices=["best", "last"], help="checkpoint")
    parser.add_argument(
        "--branch", default="teacher", choices=[*PREFIXES], help="of a pre-training"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="default: lightning_logs/<experiment>.safetensors, of --ckpt its own name",
    )


def run(args: argparse.Namespace) -> int:
    """Write the file and say how it is used."""
    from safetensors.torch import save_file

    from handrec.methods.loading import read_checkpoint

    if args.out and args.out.suffix != SUFFIX:
        raise UserError(f"--out={args.out}: what is written is a {SUFFIX} file")
    path = args.ckpt or runs.choose_checkpoint(runs.resolve(args.run), args.which)
    content = read_checkpoint(path)
    weights = backbone_weights(content["state_dict"], args.branch)
    if not weights:
        raise UserError(f"{path} holds no backbone: its method keeps none under {PLAIN}*")
    out = args.out or Path(runs.LOGS) / f"{experiment_of(path)}{SUFFIX}"
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, out, metadata=describe(content))
    print(f"{out}: {len(weights)} tensors of {path}")
    print(f"use it by --model.init_args.backbone.init_args.checkpoint={out}")
    return 0


def experiment_of(path: Path) -> str:
    """Return the name of the experiment whose run a checkpoint lies in, else the checkpoint's."""
    run = runs.run_of(path)
    if run is None:
        return path.stem
    return run.parent.name if run.name.startswith("version_") else run.name


def backbone_weights(state: dict[str, Tensor], branch: str) -> dict[str, Tensor]:
    """Return the backbone's parameters and buffers as timm names them."""
    for prefix in (PREFIXES[branch], PLAIN):
        found = {
            name.removeprefix(prefix): value.clone().contiguous()
            for name, value in state.items()
            if name.startswith(prefix)
        }
        if found:
            return found
    return {}


def describe(content: dict[str, Any]) -> dict[str, str]:
    """Return what a reader of the file may want to know: the architecture, and whose it was."""
    hyper = content.get("hyper_parameters", {})
    backbone = hyper.get("backbone", {})
    arguments = backbone.get("init_args", {}) if isinstance(backbone, dict) else {}
    known = {"method": hyper.get("_class_path"), **arguments}
    return {name: str(value) for name, value in known.items() if value is not None}
