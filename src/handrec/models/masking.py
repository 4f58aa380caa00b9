"""Masks of patches for masked image modelling, drawn on the device."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from handrec.errors import UserError, fraction, one_of, rising
from handrec.losses.distillation import gather_masked, patch_weights
from handrec.models.backbones import TimmBackbone
from handrec.models.base import Backbone, Features

_TRIES = 10
_ROUNDS = 20  # of blocks; at ratio 0.5 of 14 x 14 patches one mask in a thousand wants 17


#: How masked patches lie.
Shape = Literal["block", "random"]


@dataclass(frozen=True)
class Masking:
    """Which patches the student does not see (iBOT).

    Attributes:
        ratio: lowest and highest share of a masked view's patches.
        share: of the views that are masked at all.
        shape: ``block`` or ``random``.
    """

    ratio: tuple[float, float] = (0.1, 0.5)
    share: float = 0.5
    shape: Shape = "block"

    def __post_init__(self) -> None:
        one_of(self, Shape, shape=self.shape)
        fraction(self, share=self.share, lowest_ratio=self.ratio[0], highest_ratio=self.ratio[1])
        rising(self, ratio=self.ratio)


IBOT_MASKING = Masking()


class Masks(NamedTuple):
    """The masked patches of a batch of views.

    Attributes:
        mask: 1 where masked.
        rows: of masked patches in all views' patches one after another; fillers at the end.
        weight: of each in the patch term; 0 for fillers.
    """

    mask: Float[Tensor, "v n"]
    rows: Int[Tensor, " m"]
    weight: Float[Tensor, " m"]


def draw_masks(views: Float[Tensor, "v 3 h w"], patch: int, masking: Masking) -> Masks:
    """Draw masks for views; how many patches are masked is known without looking at them.

    Args:
        views: on whose device to draw.
        patch: side of a patch, pixels.
        masking: which patches.
    """
    rows, columns = (side // patch for side in views.shape[-2:])
    counts = masked_counts(len(views), rows * columns, masking.ratio, masking.share)
    order = torch.randperm(len(views))
    targets = torch.tensor(counts)[order].to(views.device, non_blocking=True)
    if masking.shape == "block":
        mask = block_masks(targets, rows, columns)
    else:
        mask = random_masks(targets, rows * columns)
    # Two at least, though they be fillers: a batch norm takes no single row.
    index, chosen = gather_masked(mask, max(2, sum(counts)))
    return Masks(mask, index, patch_weights(mask).flatten()[index] * chosen)


def masked_counts(views: int, patches: int, ratio: tuple[float, float], share: float) -> list[int]:
    """Return how many patches to mask in each view: iBOT's ``U(low, high)``, stratified.

    iBOT leaves half of the views whole and draws the ratio of the others anew for each; here the
    ratios of a batch are spread evenly, so that their sum is known before any is drawn.

    Args:
        views: number of views in the batch.
        patches: of a view.
        ratio: lowest and highest share of a view's patches.
        share: of the views that are masked at all.
    """
    # One at least: two views of one picture, a quarter of them masked, would never see a mask.
    masked = max(1, math.floor(views * share + 0.5)) if share else 0
    low, high = ratio
    steps = [(i + 0.5) / masked for i in range(masked)]
    return [int((low + (high - low) * step) * patches) for step in steps] + [0] * (views - masked)


def block_masks(
    targets: Int[Tensor, " b"], rows: int, columns: int, generator: torch.Generator | None = None
) -> Float[Tensor, "b n"]:
    """Return masks of rectangular blocks, 1 where masked (BEiT's algorithm as iBOT uses it).

    Blocks are proposed until the target is met: area ``U((min(H, W) // 3)^2, what is missing)``,
    aspect log-uniform in [0.3, 1 / 0.3]. A block is taken if it adds a patch and does not
    overshoot; a view is left as it is once ten proposals in a row fail. These ten are looked at
    together, and the first that fits is taken; all views go through the same rounds, with no look
    at the outcome: a GPU launches few kernels, and no host waits for it.

    Args:
        targets: patches to mask in each view; never exceeded.
        rows: of patches.
        columns: of patches.
        generator: on the device of ``targets``.
    """
    count, device = len(targets), targets.device
    mask = torch.zeros(count, rows, columns, dtype=torch.bool, device=device)
    views = torch.arange(count, device=device)
    going = torch.ones(count, dtype=torch.bool, device=device)
    y, x = torch.arange(rows, device=device)[:, None], torch.arange(columns, device=device)
    smallest = float((min(rows, columns) // 3) ** 2)
    draws = torch.rand(_ROUNDS, 4, count, _TRIES, generator=generator, device=device)
    slenderness = ((draws[:, 1] - 0.5) * math.log(1 / 0.3)).exp()  # the root of the aspect
    for draw, slender in zip(draws, slenderness, strict=True):
        missing = (targets - mask.sum((1, 2)))[:, None]
        side = (smallest + (missing - smallest) * draw[0]).clamp(min=0).sqrt()
        height, width = (side * slender).round(), (side / slender).round()
        top = (draw[2] * (rows + 1 - height)).floor()
        left = (draw[3] * (columns + 1 - width)).floor()
        top, left, bottom, right = (
            edge[..., None, None] for edge in (top, left, top + height, left + width)
        )
        new = (y >= top) & (y < bottom) & (x >= left) & (x < right) & ~mask[:, None]
        added = new.sum((2, 3))
        fits = (height < rows) & (width < columns) & (added > 0) & (added <= missing)
        going = going & fits.any(1)
        first = fits.int().argmax(1)
        mask = mask | (new[views, first] & going[:, None, None])
    return mask.flatten(1).float()


def random_masks(
    targets: Int[Tensor, " b"], patches: int, generator: torch.Generator | None = None
) -> Float[Tensor, "b patches"]:
    """Return masks of exactly the wanted number of patches, anywhere."""
    order = torch.rand(len(targets), patches, generator=generator, device=targets.device)
    return (order.argsort(1).argsort(1) < targets[:, None]).float()


def want_vit(backbone: Backbone) -> TimmBackbone:
    """Return a backbone whose patches can be masked, or raise a UserError."""
    if (
        isinstance(backbone, TimmBackbone)
        and isinstance(backbone.model, VisionTransformer)
        and backbone.patch > 1  # of a hybrid it is 1: its patches are a ResNet's pixels
    ):
        return backbone
    raise UserError("masked image modelling needs a ViT of timm's, such as vit_small_patch16_224")


def encode_masked(
    backbone: Backbone,
    image: Float[Tensor, "b 3 h w"],
    mask: Float[Tensor, "b n"],
    token: Float[Tensor, " c"],
) -> Features:
    """Return a ViT's features of images whose masked patches it does not see.

    The token takes the place of a masked patch's embedding, before position and class token. A
    convolutional stem sees beyond its patch, so for one the pixels are hidden too.

    Args:
        backbone: a :class:`TimmBackbone` around a ViT.
        image: RGB in [0, 1].
        mask: 1 where a patch is masked, row by row; all 0 gives what ``encode`` does.
        token: stands for a masked patch.
    """
    network = want_vit(backbone)
    network.check_tiling(image)
    model, normalised = network.model, (image - network.mean) / network.std
    rows, columns = model.patch_embed.dynamic_feat_size(image.shape[-2:])
    hidden = mask.bool().view(-1, rows, columns, 1)
    if network.fine_channels:
        shown = 1 - mask.view(-1, 1, rows, columns)
        normalised = normalised * F.interpolate(shown, image.shape[-2:])
    x = model.patch_embed(normalised)
    x = torch.where(hidden, token.to(x), x)
    x = model.norm(model.blocks(model.norm_pre(model.patch_drop(model._pos_embed(x)))))
    return network.as_features(x, image)


def patchify(images: Float[Tensor, "v 3 h w"], side: int) -> Float[Tensor, "n d"]:
    """Return the pixels of each patch, row by row, the views one after another."""
    patches = images.unfold(2, side, side).unfold(3, side, side)  # ten times as fast as F.unfold
    return patches.permute(0, 2, 3, 1, 4, 5).flatten(0, 2).flatten(1)
