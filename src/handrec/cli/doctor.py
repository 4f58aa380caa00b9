"""``handrec doctor``: says what is installed, what works, what is missing and what to do about it.

Nothing here uses the network.
"""

import argparse
import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlparse

if TYPE_CHECKING:
    from handrec.render.base import Rasterizer

_MARKS = {"ok": "[green]ok[/]", "note": "[yellow]--[/]", "broken": "[red]XX[/]"}

#: Rasterizers of the suite: module and class.
RASTERIZERS = {
    "warp": ("handrec.render.warp_backend", "WarpRasterizer"),
    "torch": ("handrec.render.torch_reference", "TorchRasterizer"),
}

#: Folders that the data sets unpack to, below ``$HANDREC_DATA``.
DATA_SETS = ("FreiHAND_pub_v2", "HO3D_v2", "HO3D_v3")


@dataclass(frozen=True)
class Finding:
    """What was found of one thing.

    Attributes:
        state: ``note`` is something missing that not everyone needs; ``broken`` is essential.
        name: of the thing.
        detail: what was found.
        remedy: what to do about it, if anything.
    """

    state: Literal["ok", "note", "broken"]
    name: str
    detail: str
    remedy: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options: there are none."""


def run(args: argparse.Namespace) -> int:
    """Print all findings; return 1 if something essential is broken, else 0."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    broken = 0
    for title in EXAMINATIONS:
        console.print(f"\n[bold]{title}[/]")
        for finding in _findings(title):
            broken += finding.state == "broken"
            line = f"{_MARKS[finding.state]} {escape(finding.name)}: {escape(finding.detail)}"
            console.print(f"  {line}", soft_wrap=True)
            if finding.remedy:
                console.print(f"       -> {escape(finding.remedy)}", style="dim", soft_wrap=True)
    console.print(f"\nBroken, and essential: {broken}." if broken else "\nReady to run.")
    return 1 if broken else 0


def _findings(title: str) -> Iterator[Finding]:
    """Examine one thing; what goes wrong is a finding, and the other examinations go on."""
    try:
        yield from EXAMINATIONS[title]()
    except Exception as error:  # a broken installation can fail in any way
        yield Finding("broken", title, _line(error))


def machine() -> Iterator[Finding]:
    """Examine Python, PyTorch and CUDA."""
    yield Finding("ok", "Python", f"{platform.python_version()}, {platform.platform()}")
    try:
        import torch

        torchvision = import_module("torchvision")
    except Exception as error:  # a mismatched pair fails in many ways
        remedy = "install a matching pair: https://pytorch.org/get-started"
        yield Finding("broken", "PyTorch", _line(error), remedy)
        return
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    yield Finding("ok", "PyTorch", f"{versions}, {torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        yield Finding("ok", "CUDA", f"{torch.version.cuda}: {', '.join(names)}")
    elif torch.version.cuda is None:
        remedy = "for a GPU install PyTorch's CUDA build: https://pytorch.org/get-started"
        yield Finding("note", "CUDA", "this PyTorch is built for the CPU only", remedy)
    else:
        yield Finding("note", "CUDA", "no GPU in reach", "`nvidia-smi` tells what the driver sees")


def packages() -> Iterator[Finding]:
    """Compare installed packages with the versions that this release was checked with."""
    from packaging.requirements import Requirement

    try:
        requirements = [Requirement(line) for line in metadata.requires("handrec") or []]
    except metadata.PackageNotFoundError:
        yield Finding("note", "handrec", "not installed as a package", "pip install -e .")
        return
    for need in requirements:
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        remedy = f'pip install "{need.name}{need.specifier}"'
        try:
            version = metadata.version(need.name)
        except metadata.PackageNotFoundError:
            yield Finding("broken", need.name, "not installed", remedy)
            continue
        if need.specifier.contains(version, prereleases=True):
            yield Finding("ok", need.name, version)
        else:
            yield Finding("note", need.name, f"{version}, checked with {need.specifier}", remedy)


def rasterizers() -> Iterator[Finding]:
    """Draw a triangle with each backend on each device, and see whether it is there."""
    working = 0
    for name, (module, class_name) in RASTERIZERS.items():
        for device in ("cpu", "cuda") if _cuda() else ("cpu",):
            try:
                _draw_triangle(getattr(import_module(module), class_name)(), device)
            except Exception as error:  # a backend can fail in any way; the others may still work
                yield Finding("note", f"{name} on {device}", f"not available: {_line(error)}")
            else:
                working += 1
                yield Finding("ok", f"{name} on {device}", "draws")
    if not working:
        remedy = "reinstall handrec and warp-lang; the reasons are above"
        yield Finding("broken", "rasterizer", "none works", remedy)
    if find_spec("nvdiffrast"):
        yield Finding("ok", "nvdiffrast", "installed; used only when named")
    else:
        remedy = (
            "only for comparisons, on CUDA, non-commercial: pip install --no-build-isolation "
            "git+https://github.com/NVlabs/nvdiffrast"
        )
        yield Finding("note", "nvdiffrast", "not installed (optional)", remedy)


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _draw_triangle(rasterizer: "Rasterizer", device: str) -> None:
    """Draw a triangle; raise unless it and its gradient come out right."""
    import torch

    from handrec.render.base import Attribute
    from handrec.types import Camera

    corners = [[[-0.5, -0.5, 1.0], [0.5, -0.5, 1.0], [0.0, 0.5, 1.0]]]
    vertices = torch.tensor(corners, device=device, requires_grad=True)
    intrinsics = torch.tensor([[[8.0, 0.0, 4.0], [0.0, 8.0, 4.0], [0.0, 0.0, 1.0]]], device=device)
    rendering = rasterizer.to(device).render(
        vertices,
        torch.tensor([[0, 1, 2]], device=device),
        {"colour": Attribute(torch.ones(1, 3, 3, device=device))},
        Camera(intrinsics, (8, 8)),
        lambda attributes: attributes["colour"],
    )
    mask = rendering.mask[0, 0]
    if mask[4, 4] != 1 or mask[7, 0] != 0:
        raise RuntimeError("draws a wrong triangle")
    (gradient,) = torch.autograd.grad(mask.sum(), vertices)
    if not gradient.isfinite().all() or gradient[0, 2, 1] <= 0:
        raise RuntimeError("gives a wrong gradient")  # a lower tip makes a bigger triangle


def files() -> Iterator[Finding]:
    """Look for MANO and for data sets; neither is needed for the synthetic ones."""
    from handrec.hand.mano_files import ManoNotFoundError, Side, find_mano, mano_folders

    sides: tuple[Side, ...] = ("right", "left")
    for side in sides:
        name = f"MANO, {side}"
        try:
            yield Finding("ok", name, f"{find_mano(side)} (`handrec mano check` examines it)")
        except ManoNotFoundError:
            folders = ", ".join(map(str, mano_folders()))
            remedy = (
                f"optional; register at https://mano.is.tue.mpg.de and put MANO_{side.upper()}.pkl "
                "in one of them, or set HANDREC_MANO"
            )
            yield Finding("note", name, f"not in {folders}", remedy)
    root = os.environ.get("HANDREC_DATA")
    if not root:
        remedy = "optional; export HANDREC_DATA=FOLDER where FreiHAND, HO-3D and others lie"
        yield Finding("note", "data sets", "HANDREC_DATA is not set: synthetic data only", remedy)
        return
    found = [name for name in DATA_SETS if (Path(root) / name).is_dir()]
    if found:
        yield Finding("ok", "data sets", f"{', '.join(found)} in {root}")
    else:
        yield Finding("note", "data sets", f"HANDREC_DATA={root} holds none of {DATA_SETS}")


def logging() -> Iterator[Finding]:
    """Try to write where runs go, and see whether Weights & Biases would log in."""
    from handrec.cli.runs import LOGS

    logs = Path(LOGS)
    try:
        with tempfile.TemporaryFile(dir=logs if logs.exists() else Path()):
            yield Finding("ok", "runs", f"written to {logs.absolute()}")
    except OSError as error:
        remedy = "run from a folder that you may write to"
        yield Finding("broken", "runs", f"cannot write to {logs.absolute()}: {error}", remedy)
    from handrec.cli.loggers import logged_in

    mode = os.environ.get("WANDB_MODE", "").lower()
    server = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    if mode in ("offline", "disabled"):
        yield Finding("ok", "W&B", f"{mode}, as WANDB_MODE says")
    elif logged_in(server.hostname or ""):
        yield Finding("ok", "W&B", "there is a key; whether it is valid, only a run can tell")
    else:
        remedy = "optional; `wandb login`, or WANDB_MODE=offline. CSV logs are written anyway"
        yield Finding("note", "W&B", "not logged in", remedy)


def _line(error: Exception) -> str:
    """Return an error as one short line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


#: What is examined, under the titles printed.
EXAMINATIONS: dict[str, Callable[[], Iterator[Finding]]] = {
    "Machine": machine,
    "Packages": packages,
    "Rasterizers": rasterizers,
    "Files": files,
    "Logging": logging,
}
