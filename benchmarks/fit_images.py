"""How well `handrec fit-image` explains real photos: reprojection error and seconds of each.

    python benchmarks/fit_images.py --images FOLDER [FOLDER ...] [--left NAME ...]
                                    [--pictures FOLDER] [--out FILE]

Every folder holds photos and one COCO file with their 2D joints. The bar: a mean reprojection
error of at most 3 % of the hand's box, and at most 15 s of one core for each photo.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from handrec.cli.fit_image import read_target
from handrec.fitting.fit import Fit, fit_photo
from handrec.fitting.pictures import FitPictures, write_png
from handrec.hand.openhand import OpenHand
from handrec.records import write_record
from handrec.render.warp_backend import WarpRasterizer

ERROR_BAR, SECONDS_BAR = 0.03, 15.0


def photos(folder: Path) -> list[tuple[Path, Path]]:
    """Return the annotated photos of a folder, each with the COCO file."""
    files = sorted(folder.glob("*.json"))
    if len(files) != 1:
        raise SystemExit(f"{folder}: {len(files)} .json files; one is wanted")
    names = (Path(image["file_name"]).name for image in json.loads(files[0].read_text())["images"])
    return [(folder / name, files[0]) for name in sorted(names)]


def row(image: Path, side: str, fit: Fit, seconds: float) -> dict[str, Any]:
    """Return what is recorded of a photo."""
    return {
        "photo": image.name,
        "side": side,
        "keypoints_only_percent_of_box": 100 * fit.keypoints_only_error,
        "reprojection_percent_of_box": 100 * fit.keypoint_error,
        "silhouette_iou": fit.overlap,
        "cpu_seconds": seconds,
    }


def main() -> None:
    """Fit, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=Path, nargs="*", default=[], help="folders")
    parser.add_argument("--left", nargs="*", default=[], help="names of photos of left hands")
    parser.add_argument("--pictures", type=Path, help="a folder to write what was fit to")
    parser.add_argument("--out", type=Path, help="a record to write")
    chosen = parser.parse_args()

    for folder in chosen.images:
        if not folder.is_dir():
            print(f"skipped: {folder} is not here; it wants photos and a COCO file of their joints")
    found = [pair for folder in chosen.images if folder.is_dir() for pair in photos(folder)]
    if not found:
        print("no photos: name folders of annotated ones with --images")
        return
    torch.set_num_threads(1)
    hand, rasterizer, rows = OpenHand(), WarpRasterizer(), []
    start = time.perf_counter()
    for image, keypoints in found:
        side = "left" if image.name in chosen.left else "right"
        _, target = read_target(image, keypoints, None, side)
        begin = time.process_time()
        fit = fit_photo(hand, target, rasterizer)
        rows.append(row(image, side, fit, time.process_time() - begin))
        print(*(f"{x:8.3f}" if isinstance(x, float) else f"{x!s:14}" for x in rows[-1].values()))
        if chosen.pictures:
            chosen.pictures.mkdir(parents=True, exist_ok=True)
            pictures = FitPictures(hand, target, rasterizer)
            write_png(chosen.pictures / f"{image.stem}.png", pictures.sheet(fit))
    error = sum(x["reprojection_percent_of_box"] for x in rows) / len(rows) / 100
    slowest = max(x["cpu_seconds"] for x in rows)
    met = error <= ERROR_BAR and slowest <= SECONDS_BAR
    print(f"mean {error:.2%} of the box, slowest {slowest:.1f} s of one core; met: {met}")
    if chosen.out:
        config = {"mean_error": error, "slowest_seconds": slowest, "met": met}
        seconds = time.perf_counter() - start
        write_record(chosen.out, "Fits to single photos", rows, config, None, seconds)


if __name__ == "__main__":
    main()
