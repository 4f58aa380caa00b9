"""The `handrec` command: finds the tool that was asked for and reports mistakes in one line."""

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Sequence

from handrec.errors import UserError

LIGHTNING = {
    "fit": "train: handrec fit --exp=NAME [--dataset=NAME] [--scale=NAME] [--model.KEY=VALUE ...]",
    "validate": "validate a trained run: handrec validate --run=NAME",
    "test": "evaluate a trained run: handrec test --run=NAME [--dataset=NAME] [--ckpt_path=FILE]",
    "predict": "reconstruct photos or videos: handrec predict --input=PATH [--boxes=FILE]",
}
#: Tools that need no Trainer: a module each, with `add_arguments(parser)` and `run(args) -> int`.
TOOLS = {
    "doctor": ("handrec.cli.doctor", "say what is installed, what is missing and what to do"),
    "data": ("handrec.cli.data", "check a data set, write synthetic data, recover textures"),
    "mano": ("handrec.cli.mano", "check or convert MANO files"),
    "fit-image": ("handrec.cli.fit_image", "fit a hand to one photo with 2D joints, no network"),
    "score": ("handrec.cli.score", "score a pred.json as FreiHAND or HO-3D officially do"),
    "runs": ("handrec.cli.runs", "list trained runs, or print the latest one's directory"),
    "export": ("handrec.cli.export", "write a trained network as ONNX"),
    "sweep": ("handrec.cli.sweep", "run a W&B sweep file here, by Optuna, without an account"),
    "export-backbone": (
        "handrec.cli.export_backbone",
        "write the backbone of a run as timm weights (safetensors)",
    ),
    "results": ("handrec.cli.results", "write docs/results/ anew from results/"),
}

RATE = "--model.init_args.lr"
MEMORY = (
    "out of memory: lower --data.init_args.batch_size (--trainer.accumulate_grad_batches=2 makes up"
    " for half of it), --data.init_args.image_size{drawn}; --trainer.precision=bf16-mixed needs"
    " less than 32-true"
)
#: Said to those whose method, or data, draw.
DRAWN = (
    ", or the pictures a rasterizer draws at a time"
    " (--{part}.init_args.rasterizer.init_args.chunk=8)"
)
#: How torch (CPU, cuBLAS, cuDNN), Warp, and workers that the system killed say it.
OUT_OF_MEMORY = (
    "can't allocate memory",
    "ALLOC_FAILED",
    "Failed to allocate",
    "is killed by signal: Killed",
)
#: Of writing to a full disk.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        return dispatch(args)
    except KeyboardInterrupt:
        print("handrec: stopped", file=sys.stderr)
        return 130
    except Exception as error:
        line = mistake(error)
        if line is None or os.environ.get("HANDREC_DEBUG") == "1":
            raise
        print(f"handrec: error: {line}", file=sys.stderr)
        return 2


def dispatch(args: list[str]) -> int:
    """Run the command that the first argument names."""
    command = args[0] if args else "--help"
    if command in ("-h", "--help", "help"):
        print(overview())
        return 0
    if command == "--version":
        from importlib.metadata import version

        print(f"handrec {version('handrec')}")
        return 0
    if command in LIGHTNING:
        from handrec.cli.command_line import expand

        # Read when torch is imported; its C++ warns of what methods do on purpose.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        expanded = expand(args)  # cheap, and finds most mistakes: before importing torch
        from handrec.cli.hand_cli import HandCLI

        HandCLI(expanded)
        return 0
    if command in TOOLS:
        return run_tool(command, args[1:])
    from handrec.cli.experiments import did_you_mean

    close = did_you_mean(command, [*LIGHTNING, *TOOLS])
    raise UserError(f"unknown command '{command}'{close}; see handrec --help")


def run_tool(name: str, args: list[str]) -> int:
    """Parse a tool's arguments and run it."""
    module, description = TOOLS[name]
    tool = importlib.import_module(module)
    parser = argparse.ArgumentParser(f"handrec {name}", description=description)
    tool.add_arguments(parser)
    if "--" in args and parser.get_default("options") is not None:  # another command's, after it
        cut = args.index("--")
        parser.set_defaults(options=args[cut + 1 :])
        args = args[:cut]
    return int(tool.run(parser.parse_args(args)) or 0)


def overview() -> str:
    """Return the help text."""
    tools = {name: description for name, (_, description) in TOOLS.items()}
    rows = [f"  {name:<16}{text}" for name, text in {**LIGHTNING, **tools}.items()]
    return "\n".join(
        [
            "usage: handrec COMMAND [OPTIONS]",
            "",
            "3D hand reconstruction with few or no 3D labels.",
            "",
            *rows,
            "",
            "`handrec COMMAND --help` lists a command's options; `make help` the short forms.",
            "HANDREC_DEBUG=1 shows the traceback behind an error.",
        ]
    )


def mistake(error: BaseException) -> str | None:
    """Return the line that tells a user what to mend, or None for a defect of the program."""
    if isinstance(error, argparse.ArgumentError):
        from handrec.cli.parse_errors import shorten

        return shorten(str(error))
    cause: BaseException | None = error
    while cause is not None:  # a constructor's UserError reaches us wrapped by the parser
        if isinstance(cause, UserError | OSError) or is_misconfiguration(cause):
            full = isinstance(cause, OSError) and cause.errno in FULL
            room = " (make room; a training goes on with RESUME=1)" if full else ""
            return " ".join(str(cause).split()) + room
        cause = cause.__cause__
    if type(error).__module__.startswith("wandb."):
        return f"W&B: {' '.join(str(error).split())} (WANDB_MODE=offline does without it)"
    text = str(error)
    if isinstance(error, FloatingPointError):
        where = "".join(f" {note}" for note in getattr(error, "__notes__", ()))
        return f"{text}{where}: the training diverged; lower the learning rate ({RATE})"
    if isinstance(error, RuntimeError) and text.startswith("Error(s) in loading state_dict"):
        return "the checkpoint does not fit the model: " + " ".join(text.split()[:40]) + " ..."
    drawn = "".join(getattr(error, "__notes__", ()))  # of `hand_cli`, which knows what is run
    return MEMORY.format(drawn=drawn) if is_out_of_memory(error) else None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, the device's or the machine's; does not import torch."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY))
    )


def is_misconfiguration(error: BaseException) -> bool:
    """Return whether Lightning blames the configuration; does not import Lightning to ask."""
    return type(error).__name__ == "MisconfigurationException"
