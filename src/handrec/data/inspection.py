"""Looks at a data set: what its splits hold, whether its images and labels fit together."""

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from handrec.data.crop_set import CropSet
from handrec.data.decode import complaint, read_encoded
from handrec.data.real import RealHands
from handrec.data.shards import Shards
from handrec.data.streamed import StreamedImages
from handrec.data.streams import Annotation, Picture, Source, Stream, StreamBatch, decoded
from handrec.errors import UserError
from handrec.geometry.camera import project
from handrec.hand.base import HandModel
from handrec.types import HandBatch

_BATCH = 32

#: What decoders fill in where they cannot go on is often grey, and no reason to stop for them.
DAMAGED = "{}: damaged inside, decoders fill in the rest ({})"


class Counts(NamedTuple):
    """How many samples of a split have which label."""

    images: int
    hands: int
    keypoints_2d: int
    joints_3d: int
    vertices: int
    pose: int
    masks: int
    left: int


class Inspection(NamedTuple):
    """What some images of a split and their labels say.

    Attributes:
        images: that were read.
        faults: a line for each file that could not be, or that is damaged.
        known: keypoints that are labelled.
        outside: share of the known keypoints that lie outside their crop.
        joint_errors: millimetres between labelled joints and those of the labelled parameters.
        vertex_errors: the same of vertices.
        pixel_errors: pixels of the image between the projections of these joints.
    """

    images: int
    faults: list[str]
    known: int
    outside: float
    joint_errors: Tensor
    vertex_errors: Tensor
    pixel_errors: Tensor


class StreamInspection(NamedTuple):
    """What the first pictures of a streamed split say.

    Attributes:
        pictures: that were read.
        faults: a line for each that could not be, or that is damaged.
        boxes: pictures with one.
        keypoints: pictures with some.
        left: pictures of left hands.
    """

    pictures: int
    faults: list[str]
    boxes: int
    keypoints: int
    left: int


def inspect_stream(data: StreamedImages, split: str, images: int) -> StreamInspection:
    """Return what the first pictures of each source of a split say; 0 reads all of them."""
    sources, read = data.sources[split], data.reader()
    annotations: list[Annotation] = []
    faults: list[str] = []
    each = -(-images // len(sources)) if images else None
    for source in sources:
        told = 0
        for found in islice(read(source), each):
            told += 1
            image = found if isinstance(found, str) else decoded(found)
            if isinstance(found, str) or isinstance(image, str):
                faults.append(str(image))
                continue
            annotations.append(found.annotation)
            if fault := _damage(found):
                faults.append(fault)
        missing = _wanted(data, source, each) - told
        if missing > 0:  # an archive that was cut off between two files looks whole
            faults.append(f"{source.name}: {missing} pictures are missing, says the index")
    return StreamInspection(
        len(annotations),
        faults,
        boxes=sum(a.box is not None for a in annotations),
        keypoints=sum(a.keypoints is not None for a in annotations),
        left=sum(a.side == "left" for a in annotations),
    )


def _damage(picture: Picture) -> str:
    """Return what decoders had to fill in; empty if nothing."""
    said = complaint(picture.content) if isinstance(picture.content, bytes) else ""
    return DAMAGED.format(picture.where, said) if said else ""


def _wanted(data: StreamedImages, source: Source, most: int | None) -> int:
    """Return how many pictures an archive is known to give; of videos that is an estimate: 0."""
    if not isinstance(data, Shards):
        return 0
    stop = data.count(source) if source.stop is None else source.stop
    number = max(0, (stop or 0) - source.start)
    return number if most is None else min(number, most)


def first_pictures(data: StreamedImages, split: str, count: int) -> list[HandBatch]:
    """Return the first readable pictures of a streamed split: one batch, or none."""
    stream = Stream(data.sources[split], data.reader(), data.image_size, count, data.box_scale)
    batch = next(iter(stream), None)
    return [data.label(batch.crops)] if isinstance(batch, StreamBatch) else []


def count(data: RealHands, split: str) -> Counts:
    """Return what a split of a data set holds, once it is set up."""
    crops = data.crops(split)
    table, chosen = crops.table, crops.samples
    rows = table.row[chosen]
    labels = table.labels

    def of(present: Tensor) -> int:
        return int(present[rows].sum())

    return Counts(
        images=len(chosen),
        hands=len(rows.unique()),
        keypoints_2d=of((labels.confidence > 0).any(1)),
        joints_3d=of(labels.has_joints_3d),
        vertices=of(labels.has_vertices),
        pose=of(labels.has_pose),
        masks=int((table.masks[chosen.numpy()] != b"").sum()),
        left=of(labels.is_left),
    )


def inspect(data: RealHands, split: str, images: int) -> Inspection:
    """Return what evenly spread images of a split say; 0 reads all of them."""
    crops = data.crops(split)
    chosen = spread(len(crops), images)
    faults = {line: line for line in damaged(crops, chosen)}
    known = outside = read = 0
    errors: list[tuple[Tensor, Tensor, Tensor]] = []
    for batch in _read(crops, data, chosen):
        if isinstance(batch, str):
            faults.setdefault(batch.partition(" (sample ")[0], batch)  # one mask is of several
            continue
        read += len(batch.image)
        inside = ((batch.keypoints_2d >= 0) & (batch.keypoints_2d < data.image_size)).all(-1)
        known += int((batch.confidence > 0).sum())
        outside += int(((batch.confidence > 0) & ~inside).sum())
        if data.hand is not None:
            errors.append(residuals(batch, data.hand))
    empty = torch.empty(0)
    joints, vertices, pixels = map(torch.cat, zip((empty,) * 3, *errors, strict=True))
    if not crops.table.labels.vertices.shape[1]:  # they follow from the parameters
        vertices = empty
    share = outside / max(known, 1)
    return Inspection(read, list(faults.values()), known, share, joints, vertices, pixels)


def damaged(crops: CropSet, indices: list[int]) -> list[str]:
    """Return a line for each image or mask that decodes, but not as it was written."""
    samples = crops.samples[indices].numpy()
    names = [*crops.table.files[samples], *(crops.table.masks[samples] if crops.masks else ())]
    faults = []
    for path in (crops.root / name.decode() for name in dict.fromkeys(names) if name):
        try:
            said = complaint(read_encoded(path))
        except UserError:  # a fault of another kind, which reading the crop tells
            continue
        if said:
            faults.append(DAMAGED.format(path, said))
    return faults


@torch.no_grad()
def residuals(batch: HandBatch, hand: HandModel) -> tuple[Tensor, Tensor, Tensor]:
    """Return how far labelled joints and vertices are from those of the labelled parameters.

    The wrist is the same in both: parameters have no other translation here.

    Args:
        batch: samples without pose labels are left out.
        hand: whose parameters are labelled.

    Returns:
        Millimetres of joints and of vertices, and pixels of the whole image of joints, one number
        for each point.
    """
    chosen = batch.has_pose > 0
    posed = hand.decode(batch.pose[chosen], batch.betas[chosen], batch.translation[chosen])
    joints, camera = batch.joints_3d[chosen], batch.intrinsics[chosen]
    apart = project(posed.joints, camera) - project(joints, camera)
    pixels = apart.norm(dim=-1) * batch.crop_to_image[chosen][:, 1, 1, None]
    meshes = batch.has_vertices[chosen] > 0
    vertices = (posed.vertices - batch.vertices[chosen])[meshes].norm(dim=-1)
    return (
        1000 * (posed.joints - joints).norm(dim=-1).flatten(),
        1000 * vertices.flatten(),
        pixels.flatten(),
    )


def spread(total: int, wanted: int) -> list[int]:
    """Return evenly spread numbers below a total; all of them if 0 or too many are wanted."""
    if not 0 < wanted < total:
        return list(range(total))
    return torch.linspace(0, total - 1, wanted).round().long().tolist()


def _read(crops: CropSet, data: RealHands, indices: list[int]) -> Iterator[HandBatch | str]:
    """Yield batches of samples; those with a fault by themselves."""
    for start in range(0, len(indices), _BATCH):
        some = indices[start : start + _BATCH]
        batch = crops.__getitems__(some)
        if not isinstance(batch, str):
            yield data.label(batch)
            continue
        for index in some:
            single = crops.__getitems__([index])
            yield single if isinstance(single, str) else data.label(single)
