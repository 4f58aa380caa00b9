"""Backbones from timm, by name, at any image size."""

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, Literal

import timm
import torch
from jaxtyping import Float
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from handrec.errors import UserError, fraction, not_negative, one_of
from handrec.models.base import Backbone, Features
from handrec.models.weights import are_replaced, read_weights

#: Of a ViT, see :class:`TimmBackbone`.
Stem = Literal["patch", "conv"]


class ConvStem(PatchEmbed):  # type: ignore[misc]
    """Patch embedding by a stack of stride-2 convolutions (Xiao et al., NeurIPS 2021, §4).

    A ViT with it learns from small data in minutes, where one large-stride projection does not.
    Theirs are 3x3; 4x4 ones keep each token centred on its patch. The patch size must be a power
    of two. The maps between the convolutions are kept until :meth:`take_fine`.
    """

    def __init__(self, *args: Any, in_chans: int = 3, embed_dim: int = 768, **kwargs: Any) -> None:
        super().__init__(*args, in_chans=in_chans, embed_dim=embed_dim, **kwargs)
        self.proj = nn.Conv2d(embed_dim, embed_dim, 1)
        halvings = int(math.log2(self.patch_size[0]))
        if 2**halvings != self.patch_size[0]:
            raise UserError(
                f"the conv stem needs a power of 2 as patch size, not {self.patch_size[0]}"
            )
        self.widths = [max(embed_dim >> (halvings - i), 32) for i in range(1, halvings)]
        self.widths.append(embed_dim)
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
            )
            for before, after in pairwise([in_chans, *self.widths])
        )
        self._maps: list[Tensor] = []

    def forward(self, image: Float[Tensor, "b c h w"]) -> Tensor:
        """Return the tokens ``(B, H, W, C)``, as a ViT of dynamic image size wants them."""
        self._maps = []
        image = image.contiguous(memory_format=torch.channels_last)  # a sixth faster on CPUs
        for stage in self.stages:
            image = stage(image)
            self._maps.append(image)
        tokens: Tensor = self.proj(image)
        return tokens.permute(0, 2, 3, 1)

    def take_fine(self) -> tuple[Tensor, ...]:
        """Return the maps finer than the tokens of the last image, coarse to fine, once."""
        maps, self._maps = self._maps, []
        return tuple(maps[-2::-1])


class TimmBackbone(Backbone):
    """Any timm model as a backbone; ViTs take any image size that their patches tile.

    Args:
        name: of the timm model, such as ``vit_small_patch16_224`` or ``resnet50``. Its tag says how
            images are normalised, so foreign weights want theirs: ``vit_small_patch16_224.dino``,
            ``vit_base_patch16_224.mae``.
        image_size: side of the crops in pixels; sets a ViT's position embedding, which is
            interpolated for crops of another size.
        checkpoint: local weights in timm's naming (``.safetensors``, ``.pth``); None is random.
            Not read where a trained method's own weights are loaded, see ``models.weights``.
        drop_path: stochastic depth rate.
        stem: of a ViT: ``patch`` as published, or ``conv``, see :class:`ConvStem`.
        options: further arguments of the timm model (``depth``, ``embed_dim``, ...).
        fine_levels: of a convolutional network: how many of the maps on its way, of 2, 4, ...
            times the last one's resolution, to offer as ``fine``.
    """

    def __init__(
        self,
        name: str = "vit_small_patch16_224",
        image_size: int = 224,
        checkpoint: str | None = None,
        drop_path: float = 0.0,
        stem: Stem = "patch",
        options: dict[str, Any] | None = None,
        fine_levels: int = 0,
    ) -> None:
        super().__init__()
        one_of(self, Stem, stem=stem)
        fraction(self, drop_path=drop_path)
        not_negative(self, fine_levels=fine_levels)
        arguments = {"drop_path_rate": drop_path, **(options or {})}
        if is_vit(name):
            arguments |= {"img_size": image_size, "dynamic_img_size": True}
            arguments |= {"embed_layer": ConvStem} if stem == "conv" else {}
        elif stem == "conv":
            raise UserError(f"stem: conv is for ViTs, and {name} is none")
        self.model = timm.create_model(name, num_classes=0, **arguments)
        self.patch = int(self.model.patch_embed.patch_size[0]) if is_vit(name) else 1
        if image_size < 1 or image_size % self.patch:
            raise UserError(
                f"image_size {image_size} is no multiple of {name}'s patch size {self.patch}"
            )
        self.channels = int(self.model.num_features)
        if stem == "conv":
            self.fine_channels = tuple(self.model.patch_embed.widths[-2::-1])
        self.fine_levels = fine_levels
        if fine_levels:
            self.fine_channels = fine_channels(self.model, fine_levels)
        # timm's default_cfg is the untrained default; pretrained_cfg the one of the tag's weights.
        config = self.model.pretrained_cfg
        self.register_buffer("mean", torch.tensor(config["mean"]).view(1, 3, 1, 1), False)
        self.register_buffer("std", torch.tensor(config["std"]).view(1, 3, 1, 1), False)
        self.mean: Tensor
        self.std: Tensor
        if checkpoint is not None and not are_replaced():
            load_backbone(self.model, checkpoint)

    def networks(self) -> Iterable[nn.Module]:
        """Yield the model's stages: :meth:`encode` does not call the model itself.

        A convolutional model calls the members of its sequences, or the sequences.
        """
        for part in self.model.children():
            yield part
            if isinstance(part, nn.Sequential) and not isinstance(self.model, VisionTransformer):
                yield from part

    def encode(self, image: Float[Tensor, "b 3 h w"]) -> Features:
        """Return the features of RGB images in [0, 1]."""
        self.check_tiling(image)
        normalised = (image - self.mean) / self.std
        if not self.fine_levels:
            return self.as_features(self.model.forward_features(normalised), image)
        grid, maps = self.model.forward_intermediates(normalised)
        return Features(grid, grid.mean((2, 3)), tuple(maps[-2 : -2 - self.fine_levels : -1]))

    def check_tiling(self, image: Float[Tensor, "b 3 h w"]) -> None:
        """Refuse images that the patches of a ViT do not tile."""
        height, width = image.shape[-2:]
        if height % self.patch or width % self.patch:
            raise UserError(
                f"the backbone's patches of {self.patch} px do not tile images of {width} x"
                f" {height} px: give data.image_size (of a pre-training, views.size and"
                f" views.local_size, too) as a multiple of {self.patch}"
            )

    def class_attention(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b y x"] | None:
        """Return where a ViT's class token looks in the last block, a mean over the heads.

        Args:
            image: RGB in [0, 1].

        Returns:
            Shares of the attention on each patch; None without a class token.
        """
        if not isinstance(self.model, VisionTransformer) or self.model.cls_token is None:
            return None
        seen: list[Tensor] = []
        attention: Any = self.model.blocks[-1].attn
        hook = attention.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        features = self.encode(image)
        hook.remove()
        packed = attention.qkv(seen[0]).unflatten(2, (3, attention.num_heads, -1))
        query, key, _ = packed.permute(2, 0, 3, 1, 4)
        query, key = attention.q_norm(query[:, :, :1]), attention.k_norm(key)
        share: Tensor = (attention.scale * query @ key.mT).softmax(-1)[:, :, 0].mean(1)
        patches: Tensor = share[:, self.model.num_prefix_tokens :].unflatten(
            1, features.grid.shape[-2:]
        )
        return patches

    def as_features(self, features: Tensor, image: Float[Tensor, "b 3 h w"]) -> Features:
        """Return what the model made of an image, a map or tokens, as features."""
        if features.ndim == 4:
            return Features(features, features.mean((2, 3)))
        prefix = self.model.num_prefix_tokens
        rows, columns = self.model.patch_embed.dynamic_feat_size(image.shape[-2:])
        grid = features[:, prefix:].transpose(1, 2).unflatten(2, (rows, columns))
        fine = self.model.patch_embed.take_fine() if self.fine_channels else ()
        has_class = self.model.cls_token is not None  # or the prefix is registers alone
        pooled = features[:, 0] if has_class else features[:, prefix:].mean(1)
        return Features(grid, pooled, fine)


def fine_channels(model: Any, levels: int) -> tuple[int, ...]:
    """Return the channels of a convolutional network's maps, coarse to fine, the last left out."""
    if isinstance(model, VisionTransformer) or not hasattr(model, "forward_intermediates"):
        raise UserError("fine_levels is for convolutional networks; a ViT has `stem: conv`")
    stages = sorted(model.feature_info, key=lambda stage: stage["reduction"])
    reductions = [stage["reduction"] for stage in stages]
    if levels >= len(stages) or reductions[-levels - 1 :] != [
        reductions[-1] >> i for i in range(levels, -1, -1)
    ]:
        raise UserError(f"fine_levels {levels}: its maps are reduced by {reductions}")
    return tuple(stage["num_chs"] for stage in stages[-2 : -2 - levels : -1])


#: Modules of timm's whose models cut images into patches and nothing else: not hybrids, which put
#: a ResNet before them.
_PLAIN_VITS = ("timm.models.vision_transformer", "timm.models.deit")


def is_vit(name: str) -> bool:
    """Return whether timm builds ``name`` as a plain vision transformer; refuse unknown names."""
    if not timm.is_model(name):
        close = timm.list_models(f"*{name.split('_', maxsplit=1)[0]}*")[:5]
        raise UserError(
            f"timm has no model {name!r}" + (f"; it has {', '.join(close)} ..." if close else "")
        )
    return timm.model_entrypoint(name).__module__ in _PLAIN_VITS


#: What timm's models call their classifiers, and iBOT and DINOv2 what stands for masked patches.
_LEFT_OUT = ("head.", "head_dist.", "fc.", "classifier.", "masked_embed", "mask_token")


def load_backbone(model: nn.Module, path: str) -> None:
    """Load local weights in timm's naming; a classifier or mask token in the file is left out.

    Position embeddings and patches are resized to the model by timm's own filter.
    """
    own, found = model.state_dict(), read_weights(path)
    state = {k: v for k, v in found.items() if k in own or not k.startswith(_LEFT_OUT)}
    if isinstance(model, VisionTransformer):
        from timm.models.vision_transformer import checkpoint_filter_fn

        state = checkpoint_filter_fn(state, model)
    for key in own:  # in their order: a set would name any
        if key in state and state[key].shape != own[key].shape:
            there = found.get(key, state[key]).shape  # as in the file: the filter resizes patches
            raise UserError(
                f"{path} is of another architecture: {key} is {tuple(there)} there,"
                f" {tuple(own[key].shape)} in the backbone"
            )
    missing, unexpected = model.load_state_dict(state, strict=False)
    of_a_run = any("backbone.model." in key for key in unexpected)
    if missing or unexpected:
        raise UserError(
            f"{path} does not fit the backbone: {len(missing)} parameters missing"
            f" ({', '.join(missing[:3])}), {len(unexpected)} unknown ({', '.join(unexpected[:3])})"
            + ("; of a run `handrec export-backbone` writes the backbone" if of_a_run else "")
        )
