"""Which parts of a method ``torch.compile`` takes: networks of static shapes, not geometry."""

from collections.abc import Iterable

import torch
from torch import nn

from handrec.errors import UserError

#: Graphs that are kept: all modules compiled in place share one count, of 8 by default, beyond
#: which the rest would quietly run as before.
_GRAPHS = 128


class Compilable(nn.Module):
    """A module with networks inside that ``torch.compile`` may take."""

    def networks(self) -> Iterable[nn.Module]:
        """Return parts that are called as modules, always with tensors of a few shapes; or none."""
        return ()


def compile_networks(method: nn.Module, backend: str) -> int:
    """Compile a method's networks in place, at their first call; return how many there are.

    Parameters, their names and so checkpoints stay as they are. The random numbers of ``inductor``
    differ from torch's own, those of ``eager`` and ``aot_eager`` do not.

    Args:
        method: whose networks, :class:`Compilable` modules' in it, are compiled.
        backend: of ``torch.compile``.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _GRAPHS)
    parts = [
        part
        for module in method.modules()
        if isinstance(module, Compilable)
        for part in module.networks()
    ]
    for part in parts:
        part.compile(backend=backend, dynamic=False)
    return len(parts)


def check_compiler(backend: str, device: torch.device) -> None:
    """Raise a UserError unless ``torch.compile`` has the backend and can compile a sum here.

    Args:
        backend: of ``torch.compile``.
        device: that it compiles for.
    """
    known = torch.compiler.list_backends(exclude_tags=())
    if backend not in known:
        raise UserError(f"--compile={backend}: give true, or one of {', '.join(known)}")
    try:
        torch.compile(_plus_one, backend=backend)(torch.zeros(2, device=device))
    except Exception as error:  # whatever it is, there is no training with it
        reason = " ".join(str(error).split("\n\n")[0].split()).rstrip(".")
        raise UserError(
            f"--compile: torch.compile cannot work here: {reason[:200]}. On a CPU it needs a C++"
            " compiler (g++, or the one that CXX names), on a GPU Triton; or leave --compile out"
        ) from error


def _plus_one(x: torch.Tensor) -> torch.Tensor:
    return x + 1
