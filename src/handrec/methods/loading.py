"""Rebuilds a method from its checkpoint alone."""

import warnings
from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import is_zipfile

import torch

from handrec.errors import UserError
from handrec.methods.base import Method
from handrec.models.weights import replaced_weights


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return a checkpoint's content; tensors stay on disk until they are used.

    Nothing but tensors and plain containers is unpickled, so nothing in the file can run.
    """
    if not path.is_file():
        raise UserError(f"no checkpoint {path}")
    if not is_zipfile(path):  # the container torch.save writes; its index stands at the end
        raise UserError(f"cannot read checkpoint {path}: not a PyTorch file, or cut short")
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"cannot read checkpoint {path}: {reason}") from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise UserError(f"{path} is not a checkpoint of a training run: it has no state_dict")
    return content


def class_path_of(content: dict[str, Any]) -> str | None:
    """Return the class path of the method that wrote a checkpoint, if it says so."""
    path = content.get("hyper_parameters", {}).get("_class_path")
    return str(path) if path else None


def load_method(path: str | Path) -> Method:
    """Return the method saved in a checkpoint, on the CPU, with its weights and hyperparameters."""
    class_path = class_path_of(read_checkpoint(Path(path)))
    if class_path is None:
        raise UserError(f"{path} does not say which method wrote it")
    module, _, name = class_path.rpartition(".")
    method: type[Method] = getattr(import_module(module), name)
    with replaced_weights(), warnings.catch_warnings():
        # Hyperparameters that are modules are meant to be kept.
        warnings.filterwarnings("ignore", message="(?s)Attribute .* is an instance of .nn.Module.")
        return method.load_from_checkpoint(path, map_location="cpu", weights_only=True)
