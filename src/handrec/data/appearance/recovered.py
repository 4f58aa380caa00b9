"""Textures recovered from photos (`handrec data texture`), read for the synthetic data."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from handrec.data.crops import read_image
from handrec.errors import UserError
from handrec.hand.base import HandModel


@dataclass(frozen=True)
class RecoveredSkins:
    """Painted skins, and some recovered from photos.

    Attributes:
        folder: of the textures, PNG files; their JSON files beside them name the hand model.
        share: of the looks that wear a recovered skin, in its own tone give or take a little.
        painted: how many identities are painted for the others.
    """

    folder: str
    share: float = 0.5
    painted: int = 96

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or self.painted < 1:
            raise UserError("skins: share lies in [0, 1], painted is at least 1")

    def read(self, hand: HandModel, size: int) -> Float[Tensor, "n 3 t t"]:
        """Return the textures, sRGB in [0, 1].

        Args:
            hand: whose atlas they must be in.
            size: texels along each side.
        """
        found = sorted(Path(self.folder).glob("*.png"))
        paths = [path for path in found if path.with_suffix(".json").is_file()]
        if not paths:
            raise UserError(
                f"{self.folder}: no texture (NAME.png with NAME.json beside it):"
                " handrec data texture makes them"
            )
        return torch.cat([read_texture(path, hand, size) for path in paths])


def read_texture(path: Path, hand: HandModel, size: int) -> Float[Tensor, "1 3 t t"]:
    """Return a recovered texture, sRGB in [0, 1].

    Args:
        path: of the PNG; the JSON beside it, if there is one, must name the hand model.
        hand: whose atlas it must be in.
        size: texels along each side.
    """
    about = path.with_suffix(".json")
    if about.is_file():
        try:
            model = json.loads(about.read_text(encoding="utf-8"))["hand_model"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{about}: does not say which hand_model it is of") from error
        if model != type(hand).__name__:
            raise UserError(f"{path} is a texture of {model}, not of {type(hand).__name__}")
    image = torch.from_numpy(read_image(path)).permute(2, 0, 1)[None].float() / 255
    height, width = image.shape[-2:]
    if height != width:
        raise UserError(f"{path}: {width} x {height} texels; textures are square")
    image = F.interpolate(image, (size, size), mode="bilinear", antialias=True)
    return image.clamp(0, 1).to(hand.template.device)
