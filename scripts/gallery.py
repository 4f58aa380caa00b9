"""Draws the gallery of synthetic pictures and the clip that docs/data.md shows.

python scripts/gallery.py [--out docs/images]
"""

import argparse
from pathlib import Path

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from handrec.data.appearance.base import Appearance
from handrec.data.appearance.everyday import Everyday
from handrec.data.appearance.foreign import Foreign
from handrec.data.scenes import Views
from handrec.data.synthetic import SyntheticHands
from handrec.hand.openhand import OpenHand
from handrec.render.warp_backend import WarpRasterizer


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    out = parser.parse_args().out
    sheet(Everyday(), 64, 8).save(out / "synthetic.jpg", quality=85)
    sheet(Foreign(), 16, 8).save(out / "synthetic_shift.jpg", quality=85)
    frames = [picture(image) for image in draw(Everyday(), "video", 60, 128)]
    frames[0].save(
        out / "synthetic_video.webp", save_all=True, append_images=frames[1:], duration=33,
        loop=0, quality=70, method=6,
    )  # fmt: skip


def sheet(appearance: Appearance, count: int, columns: int, size: int = 96) -> Image.Image:
    """Return so many test pictures side by side."""
    images = draw(appearance, "test", count, size)
    return picture(rearrange(images, "(r k) c h w -> c (r h) (k w)", k=columns))


def draw(appearance: Appearance, split: str, count: int, size: int) -> Tensor:
    """Return the first pictures of a split, every view of a hand included."""
    data = SyntheticHands(
        OpenHand(), WarpRasterizer(), size, batch_size=1, train_size=1, val_size=1,
        test_size=count, video_sequences=1, video_frames=count, appearance=appearance,
        views=Views(180, 90) if split == "test" else Views(45, 45), test_splits=(split,),
    )  # fmt: skip
    data.maker.make(split)
    data.setup("test")
    batch = data.tables[split].rows(torch.arange(count))
    return data.label(batch, split).image


def picture(image: Tensor) -> Image.Image:
    """Return an image in [0, 1], (3, H, W), as a picture."""
    return Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())


if __name__ == "__main__":
    main()
