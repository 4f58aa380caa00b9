"""What shakes in S2HAND's hands along videos: features, or the 2D branch's keypoints.

    python benchmarks/s2hand_shaking.py [--run s2hand] [--out FILE]

Acceleration errors on `video` of a run with `regressor.lift`: as it is; with what the regressor
reads averaged over five neighbouring frames, keypoints or features; with true keypoints. `median`
and `top 5 %`: of the errors of single frames, and the share of their sum that the worst of them
have (a hand seen from its other side for a frame).
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from _runs import data_of
from handrec.cli import runs
from handrec.errors import UserError
from handrec.geometry.camera import project
from handrec.methods.loading import load_method
from handrec.methods.s2hand import S2HAND
from handrec.metrics.temporal import acceleration_error
from handrec.models.base import Features
from handrec.records import write_record
from handrec.types import Camera, HandBatch

#: Frames on either side of one that it is averaged with.
_REACH = 2


def averaged(values: Tensor, sequence: Tensor) -> Tensor:
    """Return the mean of each frame and its neighbours; rows are in the order of their videos."""
    rows = torch.arange(len(values))
    near = (rows[:, None] - rows).abs() <= _REACH
    weight = (near & (sequence[:, None] == sequence)).float()
    return ((weight / weight.sum(1, keepdim=True)) @ values.flatten(1)).view_as(values)


def figures(errors: Tensor) -> dict[str, float]:
    """Return statistics of acceleration errors, given in metres per square second."""
    worst = errors[errors >= errors.quantile(0.95)].sum() / errors.sum()
    return {
        "accel_error_mm_s2": 1000 * float(errors.mean()),
        "median_mm_s2": 1000 * float(errors.median()),
        "top_5_percent": float(worst),
    }


@torch.no_grad()
def measure(method: S2HAND, batches: list[HandBatch]) -> list[dict[str, float | str]]:
    """Return a row for each way of reading the videos."""
    if method.keypoints is None:
        raise UserError("the run has no 2D branch")
    seen = [method.backbone.encode(batch.image) for batch in batches]
    grid, pooled = (torch.cat([getattr(x, name) for x in seen]) for name in ("grid", "pooled"))
    found = torch.cat([method.keypoints.find(batch.image).keypoints[-1] for batch in batches])
    joints, intrinsics, sequence, frame = (
        torch.cat([getattr(batch, name) for batch in batches])
        for name in ("joints_3d", "intrinsics", "sequence", "frame")
    )
    features = seen[0]._replace(grid=grid, pooled=pooled)
    calm = features._replace(grid=averaged(grid, sequence), pooled=averaged(pooled, sequence))
    camera = Camera(intrinsics, batches[0].camera.image_size)
    ways: dict[str, tuple[Features, Tensor]] = {
        "as it is": (features, found),
        "keypoints averaged": (features, averaged(found, sequence)),
        "features averaged": (calm, found),
        "true keypoints": (features, project(joints, intrinsics)),
    }
    rows: list[dict[str, float | str]] = []
    for name, (read, keypoints) in ways.items():
        hand = method.regressor.regress(read, camera, keypoints)
        rows.append(
            {"read": name, **figures(acceleration_error(hand.joints, joints, sequence, frame))}
        )
    return rows


def main() -> None:
    """Measure, print, and write a record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", default="s2hand", help="experiment or run directory")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    run = runs.resolve(chosen.run)
    method = load_method(runs.choose_checkpoint(run, "last")).eval()
    if not isinstance(method, S2HAND):
        raise UserError(f"{run} is no run of S2HAND")
    data = data_of(run)
    data.test_splits = ["video"]
    data.prepare_data()
    data.setup("test")
    loader = data.test_dataloader()
    batches = [data.on_after_batch_transfer(batch, 0) for batch in loader]
    rows = measure(method, batches)
    print(*rows, sep="\n")
    if chosen.out:
        write_record(chosen.out, "What shakes along videos", rows, {"run": chosen.run})


if __name__ == "__main__":
    main()
