"""JSON files as people and programs write them."""

import json
from pathlib import Path
from typing import Any

from handrec.errors import UserError


def label_file(path: Path, origin: str) -> Path:
    """Return a file of labels that has to be there.

    Args:
        path: of the file.
        origin: what it is and where it comes from, for the message.

    Raises:
        UserError: it is not there.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: {origin} (docs/datasets.md)")
    return path


def read_json(path: Path) -> Any:
    """Return a JSON file's content.

    Raises:
        UserError: it cannot be read, or a name comes twice in an object, of which all but the last
            would be lost; names the line.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(content := dict(pairs)) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in content if names.count(name) > 1)
            raise UserError(f"{path}: {twice!r} comes twice")
        return content

    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=unique)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}: line {error.lineno}, column {error.colno}: {error.msg}"
            " (is the file complete?)"
        ) from error
    except RecursionError as error:
        raise UserError(f"{path}: lists in lists, too deep to be read: is it damaged?") from error
    except ValueError as error:  # a number of thousands of digits
        raise UserError(f"{path}: {error}") from error
