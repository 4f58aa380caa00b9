"""Refuses to commit what must not be in the repository.

MANO's licence forbids passing its files on; large files stay in every clone for ever; a private key
is public once it is pushed.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

MOST_BYTES = 500_000
PRIVATE_KEY = re.compile(rb"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----")


def complaint(path: Path) -> str | None:
    """Return why a file is refused, or None."""
    if path.name.upper().startswith("MANO_") and path.suffix != ".py":
        return "MANO's licence forbids passing its files on"
    if not path.is_file():
        return None
    size = path.stat().st_size
    if size > MOST_BYTES:
        return f"{size / 1000:.0f} kB; at most {MOST_BYTES // 1000} kB"
    if PRIVATE_KEY.search(path.read_bytes()):
        return "holds a private key"
    return None


def main(arguments: Sequence[str]) -> int:
    """Print a line for each refused file; return 1 if there is one."""
    complaints = {argument: complaint(Path(argument)) for argument in arguments}
    refused = {argument: why for argument, why in complaints.items() if why}
    for argument, why in refused.items():
        print(f"refused: {argument}: {why}", file=sys.stderr)
    return int(bool(refused))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
