"""Which hand model a set in a published layout was labelled with.

The published sets are labelled with MANO. Sets that the suite writes in their layouts
(``handrec data synth``) may show another hand; a file in their root says which.
"""

import json
from pathlib import Path

from handrec.data.json_files import read_json
from handrec.errors import UserError

MARK = "handrec.json"


def labelled_hand(root: Path) -> str:
    """Return the name of the hand model that a set's parameters and vertices are of."""
    if not (root / MARK).is_file():
        return "Mano"
    content = read_json(root / MARK)
    if not isinstance(content, dict) or not isinstance(content.get("hand"), str):
        raise UserError(f'{root / MARK}: expected {{"hand": "name of the hand model"}}')
    return str(content["hand"])


def mark(root: Path, hand: str) -> None:
    """Write down which hand model a set's parameters and vertices are of."""
    (root / MARK).write_text(json.dumps({"hand": hand}) + "\n", encoding="utf-8")
