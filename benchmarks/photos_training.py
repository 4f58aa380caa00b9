"""Trains `s2hand` further on a few photos with 2D keypoints, and measures how well they are met.

    python benchmarks/photos_training.py FOLDER [FOLDER ...] --start RUN [--scale cpu]
        [--steps 1000] [--pictures FOLDER] [--out FILE]

Each folder holds photos and one file of annotations in COCO's format; nothing else is learnt from.
The weights of RUN, a run of `s2hand`, are the start. Photos and pictures stay out of the record.

The bars: a mean reprojection error of at most 4 % of the hands' boxes, on the photos that were
trained on, with the joints inside their limits.
"""

import argparse
import json
import math
from pathlib import Path

import torch

from _runs import evaluated, handrec, trained
from handrec.cli import runs
from handrec.hand.anatomy import joint_angles, limit_excess
from handrec.hand.openhand import OpenHand
from handrec.records import write_record


def train(folder: Path, file: str, start: Path, scale: str, steps: int) -> Path:
    """Return the run on a folder's photos."""
    weights = runs.choose_checkpoint(start, "last")
    model = {
        "shape_checkpoint": weights,
        "keypoints_checkpoint": weights,
        "regressor.init_args.lift": "true",
        "weights.limits": 10.0,
        "weights.shape": 1e-3,  # as few hands are to be met: shapes of up to two or three
        "frozen_norm": "true",  # a batch has four photos
        "lr": 1.5e-3,
    }
    data = {"root": folder, "annotations": file, "test_annotations": file, "val_share": 0.0}
    run, _ = trained(
        f"photos-{folder.name}-{scale}-{steps}",
        "--exp=s2hand_finetune", f"--scale={scale}", "--dataset=coco_hands", "--seed_everything=0",
        *(f"--model.init_args.{key}={value}" for key, value in model.items()),
        *(f"--data.{key}={value}" for key, value in data.items()), "--data.batch_size=4",
        "--data.augmentation=null",
        f"--trainer.max_steps={steps}", "--trainer.max_epochs=-1",
        "--trainer.check_val_every_n_epoch=100",
    )  # fmt: skip
    return run


def plausible(run: Path, folder: Path, file: str, out: Path) -> tuple[float, float]:
    """Draw the photos; return the largest angle beyond a joint's limits, degrees, and shape."""
    content = json.loads((folder / file).read_text())
    names = {image["id"]: image["file_name"] for image in content["images"]}
    boxes: dict[str, list[dict[str, object]]] = {}
    for annotation in content["annotations"]:
        x, y, width, height = annotation["bbox"]
        box = {"box": [x, y, x + width, y + height], "side": "right"}
        boxes.setdefault(names[annotation["image_id"]], []).append(box)
    out.mkdir(parents=True, exist_ok=True)
    places = out.with_name(f"{out.name}_boxes.json")
    places.write_text(json.dumps(boxes))
    handrec(
        "predict", f"--run={run}", "--which=last", f"--input={folder}", f"--out={out}",
        f"--boxes={places}",
    )  # fmt: skip
    pages = [json.loads((out / f"{Path(name).stem}.json").read_text()) for name in boxes]
    pose = torch.tensor([hand["pose_matrix"] for page in pages for hand in page["hands"]])
    hand = OpenHand()
    beyond = limit_excess(joint_angles(pose, hand.joint_axes), hand.joint_limits)
    largest = max(abs(beta) for page in pages for found in page["hands"] for beta in found["betas"])
    return math.degrees(beyond.max()), largest


def main() -> None:
    """Measure, print, and write a record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--start", required=True)
    parser.add_argument("--scale", default="cpu")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--pictures", type=Path, default=Path("predictions"))
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    rows = []
    for folder in chosen.folders:
        (file,) = (path.name for path in folder.glob("*.json"))
        run = train(folder, file, runs.resolve(chosen.start), chosen.scale, chosen.steps)
        (row,) = (v for k, v in evaluated(run)["test"].items() if k != "mean hand")
        beyond, largest = plausible(run, folder, file, chosen.pictures / folder.name)
        rows.append(
            {
                "photos": folder.name,
                "reprojection_percent_of_box": row["kp_box"],
                "reprojection_px_at_224": row["kp_px"],
                "beyond_limits_degrees": beyond,
                "largest_shape_coefficient": largest,
            }
        )
        print(rows[-1], flush=True)
    if chosen.out:
        config = {"scale": chosen.scale, "steps": chosen.steps, "start": chosen.start}
        write_record(chosen.out, "S2HAND on annotated photos", rows, config, seed=0)


if __name__ == "__main__":
    main()
