"""Keypoint orders of data sets, by name."""

import re
from collections.abc import Sequence

from handrec.errors import UserError
from handrec.hand.joints import FINGERS, JOINTS, KINEMATIC_THEN_TIPS, order

_FINGER_NAMES = {
    "thumb": "thumb",
    "index": "index", "forefinger": "index", "fore": "index",
    "middle": "middle",
    "ring": "ring",
    "little": "little", "pinky": "little", "pinkie": "little",
}  # fmt: skip

#: Number of a joint along its finger, base to tip.
_PLACES = {"cmc": 1, "mcp": 1, "pip": 2, "dip": 3, "ip": 3, "tip": 4}
_THUMB_PLACES = _PLACES | {"mcp": 2}

_TIP_TO_BASE = tuple(f"{finger}{place}" for finger in FINGERS for place in (4, 3, 2, 1))

#: Orders that files without names are known to use.
PRESETS: dict[str, tuple[str, ...]] = {
    "freihand": JOINTS,
    "rhd": ("wrist", *_TIP_TO_BASE),
    "interhand26m": (*_TIP_TO_BASE, "wrist"),
    "ho3d": KINEMATIC_THEN_TIPS,
}


def canonical_name(name: str) -> str | None:
    """Return the suite's name of a joint that others call e.g. ``forefinger2``, None if unknown."""
    words = re.findall(r"[a-z]+|\d+", name.lower().replace("finger", " ").replace("fore ", "index"))
    words = [word for word in words if word not in ("joint", "right", "left", "hand")]
    if words in (["wrist"], ["root"]):
        return "wrist"
    if len(words) != 2 or words[0] not in _FINGER_NAMES:
        return None
    finger, place = _FINGER_NAMES[words[0]], words[1]
    places = _THUMB_PLACES if finger == "thumb" else _PLACES
    number = int(place) if place.isdigit() else places.get(place, 0)
    if not 1 <= number <= 4:
        return None
    return JOINTS[1 + 4 * FINGERS.index(finger) + number - 1]


def to_canonical(names: Sequence[str], where: str) -> list[int]:
    """Return indices ``i`` such that ``keypoints[i]`` are in the suite's order.

    Args:
        names: of the 21 keypoints as the data set calls them.
        where: the names come from, for the message.

    Raises:
        UserError: a name is unknown, or the names are not those of 21 joints.
    """
    known = [canonical_name(name) for name in names]
    strange = [name for name, found in zip(names, known, strict=True) if found is None]
    if strange:
        raise UserError(
            f"{where}: unknown keypoint order: no joint is called {', '.join(strange[:5])};"
            " name them as wrist, thumb1 ... little4 (1 at the base), or"
            f" keypoints={'|'.join(PRESETS)}"
        )
    found = tuple(name for name in known if name is not None)
    missing = [name for name in JOINTS if name not in found]
    if missing or len(found) != len(JOINTS):
        raise UserError(
            f"{where}: unknown keypoint order: {len(found)} names, expected 21 different ones"
            f" (missing: {', '.join(missing[:5]) or 'none'})"
        )
    return order(found, JOINTS)
