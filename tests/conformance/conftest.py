"""The plugins and devices that conformance suites run over."""

import importlib
import inspect
import pkgutil

import pytest
import torch

import handrec.render
from handrec.render.base import Rasterizer

#: Backends that need a package and run these tests elsewhere: tests/render/test_nvdiffrast.py.
OPTIONAL = {"NvdiffrastRasterizer"}


def backends():
    for module in pkgutil.iter_modules(handrec.render.__path__, "handrec.render."):
        importlib.import_module(module.name)
    found, left = [], [Rasterizer]
    while left:
        for child in left.pop().__subclasses__():
            left.append(child)
            ours = child.__module__.startswith("handrec.") and child.__name__ not in OPTIONAL
            if ours and not inspect.isabstract(child):
                found.append(child)
    return sorted(set(found), key=lambda backend: backend.__name__)


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=backends(), ids=lambda backend: backend.__name__)
def rasterizer(request):
    return request.param()


@pytest.fixture(params=DEVICES)
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)
