"""Reads local weights of backbones, as timm, DINO and iBOT write them."""

from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from handrec.errors import UserError

#: Under which training files keep weights; the first found is taken: a teacher before its student.
_WRAPPERS = ("state_dict", "model", "teacher", "student")
#: What DistributedDataParallel and the pre-trainings' wrappers put before a network's own names.
_PREFIXES = ("module.", "backbone.")
#: What damaged files raise, as far as seen: by zip, by pickle, or by what it then meets.
_STUMBLES: tuple[type[Exception], ...] = (SafetensorError, UnpicklingError, RuntimeError)
_STUMBLES += (EOFError, LookupError, ValueError, OSError, TypeError, AttributeError)
_SAVE = "save the network's state dict alone, torch.save(model.state_dict(), path)"

_replaced: ContextVar[bool] = ContextVar("replaced", default=False)


@contextmanager
def replaced_weights() -> Iterator[None]:
    """Build networks whose weights a checkpoint replaces: those they started from stay unread.

    The file may be gone by then, or be another's.
    """
    token = _replaced.set(True)
    try:
        yield
    finally:
        _replaced.reset(token)


def are_replaced() -> bool:
    """Return whether the network that is built is within :func:`replaced_weights`."""
    return _replaced.get()


def read_weights(path: str) -> dict[str, Tensor]:
    """Return the tensors of a file by the network's own names; nothing in the file can run.

    Of a whole training file of DINO's or iBOT's this is the teacher's backbone.

    Raises:
        UserError: the file is not there, damaged, or holds no weights.
    """
    content = _content(Path(path))
    if isinstance(content, dict):
        held = (content[key] for key in _WRAPPERS if isinstance(content.get(key), dict))
        content = next(held, content)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}: {_SAVE}")
    odd = next((key for key, value in content.items() if not isinstance(value, Tensor)), None)
    if odd is not None:
        raise UserError(f"{path} holds more than weights ({odd}): {_SAVE}")
    for prefix in _PREFIXES:
        if any(key.startswith(prefix) for key in content):  # heads lie beside a `backbone.`
            content = {
                key.removeprefix(prefix): value
                for key, value in content.items()
                if key.startswith(prefix)
            }
    return content


def _content(file: Path) -> Any:
    if not file.is_file():
        raise UserError(f"backbone checkpoint not found: {file}")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        # DINO's and iBOT's training files hold their options, a container without code.
        with torch.serialization.safe_globals([Namespace]):
            return torch.load(file, map_location="cpu", weights_only=True)
    except _STUMBLES as error:
        if "Unsupported global" in str(error):
            name = str(error).split("Unsupported global: GLOBAL ")[-1].split()[0]
            raise UserError(
                f"{file} holds more than weights ({name}), and objects are not unpickled: extract"
                " its state dict with the program that wrote it"
            ) from error
        reason = next(iter(str(error).strip().splitlines()), "")
        raise UserError(
            f"cannot read {file} ({type(error).__name__}: {reason}): damaged, cut short, or no"
            " file of weights"
        ) from error
