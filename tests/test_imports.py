"""Imports point one way, and a plain import is cheap."""

import ast
import subprocess
import sys
from pathlib import Path

import handrec

PACKAGE = Path(handrec.__file__).parent
#: A layer may import from itself and from lower ones.
LEVEL = {
    "__init__": 0, "errors": 0, "records": 0, "types": 1, "geometry": 1, "hand": 2, "render": 3,
    "losses": 4, "metrics": 4, "models": 4, "data": 4, "methods": 5, "callbacks": 5, "viz": 5,
    "fitting": 6, "cli": 7,
}  # fmt: skip


def imported_layers(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "handrec" and rest:
                yield rest.split(".")[0]


def test_imports_point_one_way():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        layer = path.relative_to(PACKAGE).with_suffix("").parts[0]
        wrong += [
            f"{path.relative_to(PACKAGE)}: {name}"
            for name in imported_layers(path)
            if LEVEL[name] > LEVEL[layer]
        ]
    assert not wrong


def test_importing_handrec_imports_nothing_heavy():
    heavy = "{'torch', 'numpy', 'smplx', 'warp'}"
    code = f"import sys, handrec; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
