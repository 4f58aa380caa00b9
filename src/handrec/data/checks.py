"""What keeps a data set on the disk from training: labels that cannot be meant, files at fault."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch import Tensor

from handrec.data.decode import read_encoded
from handrec.data.labels import Annotated
from handrec.errors import UserError

logger = logging.getLogger(__name__)

#: Diagonal of the box around the joints of any hand, metres: others are in other units.
HAND_SPAN = (0.03, 0.6)

#: Share of samples whose box may lie outside their picture: a few hands leave the view in videos.
OUTSIDE_SHARE = 0.02


class FilesError(UserError):
    """Files of a set are missing or damaged.

    Args:
        message: names the first, and counts the others.
        faults: a line for each.
    """

    def __init__(self, message: str, faults: Sequence[str]) -> None:
        super().__init__(message)
        self.faults = list(faults)


def check_labels(root: Path, part: Annotated) -> None:
    """Refuse labels that no training should see.

    Raises:
        UserError: names the file, the sample and what was expected.
    """
    labels = part.labels
    if len(part) == 0:
        raise UserError(f"{root}: no annotated image")
    for name, column in labels._asdict().items():
        bad = ~column.flatten(1).isfinite().all(1) if column.dim() > 1 else ~column.isfinite()
        _refuse(root, part, bad, f"{name} holds a number that is not finite")
    focal = labels.intrinsics[:, [0, 1], [0, 1]]
    _refuse(root, part, (focal <= 0).any(1), "a focal length that is not positive")
    behind = (labels.joints_3d[..., 2] <= 0).any(1) & (labels.has_joints_3d > 0)
    _refuse(
        root, part, behind,
        "joints behind the camera, expected z > 0 (metres, x right, y down, z forward)",
    )  # fmt: skip
    size = labels.box[:, 2:] - labels.box[:, :2]
    _refuse(root, part, (size <= 0).any(1), "box of zero area, expected x1 < x2 and y1 < y2")
    span = (labels.joints_3d.amax(1) - labels.joints_3d.amin(1)).norm(dim=1)
    odd = ((span < HAND_SPAN[0]) | (span > HAND_SPAN[1])) & (labels.has_joints_3d > 0)
    _refuse(
        root, part, odd, "the joints do not span a hand's {:g} to {:g} metres".format(*HAND_SPAN)
    )
    _check_inside(root, part)


def _check_inside(root: Path, part: Annotated) -> None:
    """Refuse boxes outside their pictures, and warn where they are few.

    Raises:
        UserError: more than ``OUTSIDE_SHARE`` of the samples have one.
    """
    box, (height, width) = part.labels.box, part.labels.image_size.unbind(1)
    outside = (box[:, 2:] <= 0).any(1) | (box[:, 0] >= width) | (box[:, 1] >= height)
    outside &= (height > 0) & (width > 0)  # 0 is unknown
    if not outside.any():
        return
    row = int(outside.nonzero()[0])
    what = f"box outside its picture of {width[row]} x {height[row]} pixels"
    share = float(outside[part.row].float().mean())
    if share > OUTSIDE_SHARE:
        _refuse(root, part, outside, what)
    logger.warning("%s", _told(root, part, outside, what))


def _refuse(root: Path, part: Annotated, bad: Tensor, what: str) -> None:
    if bad.any():
        raise UserError(_told(root, part, bad, what))


def _told(root: Path, part: Annotated, bad: Tensor, what: str) -> str:
    """Return a line that names the first of some rows of labels and counts the others."""
    row = int(bad.nonzero()[0])
    sample = int((part.row == row).nonzero()[0]) if (part.row == row).any() else row
    more = f" (and {int(bad.sum()) - 1} more)" if bad.sum() > 1 else ""
    value = ""
    if what.startswith("box"):
        value = f": {[round(x, 1) for x in part.labels.box[row].tolist()]}"
    return f"{root / part.files[sample]} (sample {sample}): {what}{value}{more}"


def check_files(root: Path, files: Sequence[str]) -> None:
    """Refuse a set of which images are missing, empty or truncated.

    Raises:
        FilesError: names the first of them, counts the others, and holds them all.
    """
    unique = list(dict.fromkeys(files))
    with ThreadPoolExecutor(max_workers=4) as pool:
        faults = list(filter(None, pool.map(lambda name: _fault(root / name), unique)))
    if faults:
        more = f" (and {len(faults) - 1} more of {len(unique)} files)" if len(faults) > 1 else ""
        raise FilesError(f"{faults[0]}{more}: is the data set wholly unpacked?", faults)


def _fault(path: Path) -> str | None:
    """Return what is wrong with an image file, as far as its ends tell."""
    try:
        read_encoded(path)
    except UserError as error:
        return str(error)
    return None
