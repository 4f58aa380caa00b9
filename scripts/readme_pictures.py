"""Makes the README's pictures from the latest run of `handmim`: python scripts/readme_pictures.py.

Everything in them is synthetic, the "photo" too: no real image may be passed on.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch

from handrec.cli import runs
from handrec.data.appearance.base import Stage
from handrec.data.appearance.plain import Plain
from handrec.data.scenes import Views, sample_scenes, scene_camera
from handrec.geometry.camera import project
from handrec.hand.openhand import OpenHand
from handrec.render.warp_backend import WarpRasterizer
from handrec.viz.contact import grid
from handrec.viz.drawing import Picture, draw_skeleton, to_picture

HANDREC = Path(sys.executable).with_name("handrec")
IMAGES = Path(__file__).parents[1] / "docs" / "images"
SIDE = 224


def synthetic(count: int, seed: int) -> list[tuple[Picture, Picture]]:
    """Return synthetic crops, without and with their joints."""
    hand = OpenHand()
    scenes = sample_scenes(hand, count, seed, Views(cone=30.0, spin=30.0))
    posed = hand.decode(scenes.pose, scenes.betas, scenes.translation)
    camera = scene_camera(scenes, SIDE)
    stage = Stage(hand, posed, scenes.pose, camera, scenes.noise_seed, WarpRasterizer())
    domain = Plain()
    look = domain.sample(count, torch.Generator().manual_seed(seed))
    keypoints = project(posed.joints, camera.intrinsics)
    pictures = [to_picture(image) for image in domain.draw(stage, look).image]
    return [(p, draw_skeleton(p, k)) for p, k in zip(pictures, keypoints, strict=True)]


def photo(folder: Path) -> Path:
    """Write a picture of a right and a left hand with their boxes; return the boxes' file."""
    (right, _), (left, _) = synthetic(2, seed=11)
    Path(folder / "photos").mkdir()
    picture = np.hstack([right, left[:, ::-1]])
    cv2.imwrite(str(folder / "photos" / "hands.png"), picture[..., ::-1])
    margin = SIDE // 10
    boxes = [
        {"box": [x + margin, margin, x + SIDE - margin, SIDE - margin], "side": side}
        for x, side in ((0, "right"), (SIDE, "left"))
    ]
    file = folder / "boxes.json"
    file.write_text(json.dumps({"hands.png": boxes}))
    return file


def save(name: str, picture: Picture, width: int = 512) -> None:
    """Write a picture at the README's size."""
    height = round(picture.shape[0] * width / picture.shape[1])
    small = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(IMAGES / f"{name}.png"), small[..., ::-1])


def main() -> None:
    """Write the three pictures."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    pairs = synthetic(8, seed=3)
    save(
        "synthetic", grid([plain if i % 2 else drawn for i, (plain, drawn) in enumerate(pairs)], 4)
    )
    (sheet,) = (runs.resolve("handmim") / "eval").glob("*/test/contact.png")
    save("evaluation", cv2.imread(str(sheet))[..., ::-1])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        boxes = photo(folder)
        out = f"--out={folder / 'out'}"
        choice = ["--run=handmim", f"--input={folder / 'photos'}", f"--boxes={boxes}", out]
        subprocess.run([HANDREC, "predict", *choice], check=True)
        overlay = cv2.imread(str(folder / "out" / "hands_overlay.png"))[..., ::-1]
        save("photo", overlay)
        shutil.rmtree(folder / "out")


if __name__ == "__main__":
    main()
