"""What a method makes of a few images, a row for each: to look at while it trains."""

from dataclasses import replace

import pytorch_lightning as pl
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from handrec.methods.base import HandMethod
from handrec.methods.handmim_pretrain import HandMIMPretrain
from handrec.methods.s2hand_keypoints import S2HANDKeypoints
from handrec.models.backbones import TimmBackbone
from handrec.models.masking import draw_masks
from handrec.types import HandBatch
from handrec.viz.contact import grid
from handrec.viz.drawing import Picture, draw_mesh, draw_skeleton
from handrec.viz.strips import enlarged, zoomed
from handrec.viz.textured import draw_textured, one_hand

#: Weakest and strongest attention, RGB in [0, 1].
_WEAK, _STRONG = (0.05, 0.05, 0.3), (1.0, 0.85, 0.2)


def draw_training(method: pl.LightningModule, batch: HandBatch) -> Picture | None:
    """Return a row of pictures for each image, or None for a method that nothing is known of.

    ``HandMIMPretrain``: the image, what the student is shown of it, its reconstruction, where the
    teacher's class token looks. Methods that reconstruct hands: the image, the 2D keypoints that
    are given, the mesh found, its joints, and the hand in its own texture and light, if it has
    them. ``S2HANDKeypoints``: the image, given keypoints, those found.

    Args:
        method: in evaluation.
        batch: some images.
    """
    if isinstance(method, HandMIMPretrain):
        columns = pretraining_columns(method, batch)
    elif isinstance(method, S2HANDKeypoints):
        found = method.keypoints.find(batch.image).keypoints[-1]
        columns = {**_given(batch), "found": _skeletons(batch, found, None)}
    elif isinstance(method, HandMethod):
        columns = hand_columns(method, batch)
    else:
        return None
    rows = list(zip(*columns.values(), strict=True))
    captions = [*columns] * len(rows)
    return grid([picture for row in rows for picture in row], len(columns), captions)


def hand_columns(method: HandMethod, batch: HandBatch) -> dict[str, list[Picture]]:
    """Return the columns of a method that reconstructs hands."""
    found = method.reconstruct(batch)
    columns = _given(batch)
    rows = range(len(batch.image))
    pictures = columns["image"]
    zoom = pictures[0].shape[0] / batch.image.shape[-1]
    cameras = [zoomed(batch.intrinsics[i], zoom) for i in rows]
    columns["found"] = [
        draw_mesh(pictures[i], found.vertices[i], method.hand.faces, cameras[i]) for i in rows
    ]
    columns["its joints"] = _skeletons(batch, found.keypoints_2d, None)
    render = getattr(method, "render", None)
    if render is not None and found.texture is not None:
        columns["in its texture"] = [
            draw_textured(pictures[i], one_hand(found, i), cameras[i], render) for i in rows
        ]
    return columns


def pretraining_columns(method: HandMIMPretrain, batch: HandBatch) -> dict[str, list[Picture]]:
    """Return the columns of the pre-training."""
    image = batch.image
    mask = draw_masks(image, method.patch, replace(method.masking, share=1.0)).mask
    shown = F.interpolate(
        mask.view(-1, 1, image.shape[-2] // method.patch, image.shape[-1] // method.patch),
        image.shape[-2:],
    )
    columns = {
        "image": image,
        "shown": torch.where(shown > 0, 0.5, image),
        "reconstructed": method.fill_in(image, mask),
    }
    backbone = method.teacher.backbone
    looks = backbone.class_attention(image) if isinstance(backbone, TimmBackbone) else None
    if looks is not None:
        columns["class token looks at"] = heat(looks, image)
    return {name: [enlarged(picture) for picture in column] for name, column in columns.items()}


def heat(
    share: Float[Tensor, "b y x"], image: Float[Tensor, "b 3 h w"]
) -> Float[Tensor, "b 3 h w"]:
    """Return images under colours for shares of each: the weakest dark blue, the strongest yellow.

    Args:
        share: of cells that tile the images.
        image: RGB in [0, 1].
    """
    low, high = share.amin((1, 2), keepdim=True), share.amax((1, 2), keepdim=True)
    level = ((share - low) / (high - low).clamp(min=1e-9))[:, None]
    level = F.interpolate(level, image.shape[-2:], mode="bilinear")
    weak, strong = (image.new_tensor(colour).view(3, 1, 1) for colour in (_WEAK, _STRONG))
    return 0.4 * image.mean(1, keepdim=True) + 0.6 * torch.lerp(weak, strong, level)


def _given(batch: HandBatch) -> dict[str, list[Picture]]:
    """Return the images, and their 2D keypoints where there are any."""
    columns = {"image": [enlarged(image) for image in batch.image]}
    if (batch.confidence > 0).any():
        columns["given"] = _skeletons(batch, batch.keypoints_2d, batch.confidence)
    return columns


def _skeletons(
    batch: HandBatch, keypoints: Float[Tensor, "b 21 2"], confidence: Tensor | None
) -> list[Picture]:
    pictures = [enlarged(image) for image in batch.image]
    zoom = pictures[0].shape[0] / batch.image.shape[-1]
    seen = [None] * len(pictures) if confidence is None else confidence
    return [
        draw_skeleton(picture, zoom * points, confidence=some)
        for picture, points, some in zip(pictures, keypoints, seen, strict=True)
    ]
