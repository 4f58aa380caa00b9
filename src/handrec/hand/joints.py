"""Joint names and orders. Every order is written by name, and maps are made from the names."""

FINGERS = ("thumb", "index", "middle", "ring", "little")

#: The 21 joints of the suite: FreiHAND's (and OpenPose's) order, base to tip.
JOINTS = (
    "wrist",
    "thumb_cmc", "thumb_mcp", "thumb_ip", "thumb_tip",
    "index_mcp", "index_pip", "index_dip", "index_tip",
    "middle_mcp", "middle_pip", "middle_dip", "middle_tip",
    "ring_mcp", "ring_pip", "ring_dip", "ring_tip",
    "little_mcp", "little_pip", "little_dip", "little_tip",
)  # fmt: skip

#: The 16 joints that rotate: MANO's order.
KINEMATIC_JOINTS = (
    "wrist",
    "index_mcp", "index_pip", "index_dip",
    "middle_mcp", "middle_pip", "middle_dip",
    "little_mcp", "little_pip", "little_dip",
    "ring_mcp", "ring_pip", "ring_dip",
    "thumb_cmc", "thumb_mcp", "thumb_ip",
)  # fmt: skip

#: Parent of each kinematic joint (-1: none).
KINEMATIC_PARENTS = (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14)

TIPS = tuple(f"{finger}_tip" for finger in FINGERS)

#: Order of ``[16 kinematic joints, 5 tips (thumb to little)]``, as hand models compute them.
KINEMATIC_THEN_TIPS = KINEMATIC_JOINTS + TIPS

#: Parent of each of the 21 joints (-1: none); the 20 bones run from parent to joint.
PARENTS = tuple(-1 if i == 0 else (0 if i % 4 == 1 else i - 1) for i in range(21))

#: Canonical joints that hang on the wrist: they move as one.
PALM = tuple(i for i, parent in enumerate(PARENTS) if parent < 1)


def order(source: tuple[str, ...], target: tuple[str, ...]) -> list[int]:
    """Return indices ``i`` such that ``source[i[k]] == target[k]``: ``x_target = x_source[i]``."""
    return [source.index(name) for name in target]
