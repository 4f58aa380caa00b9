"""Trains and evaluates `s2hand`, its ablations, and the same network with 3D labels.

    python benchmarks/s2hand_training.py [--scale cpu] [--seeds 0 1 2] [--rows full no_limits ...]
        [--epochs N] [--out FILE]

From detected 2D keypoints and pixels alone; `labelled` learns from exact 3D labels instead, its 2D
branch from the same detected keypoints; `labelled_exactly` also from the labels' projections. A run
that is in `lightning_logs/` already, by the name `s2hand-<row>-<scale>[-<epochs>]-<seed>`, is not
trained again. Each run's record is written beside FILE, with row and seed in its name.

The bars, on `test`: PA-MPJPE at most 0.8 times the mean hand's in minutes on two CPU cores; at a
longer budget at most 0.65 times, and at most 1.4 times that of the labelled rows for as long.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from _runs import evaluated, trained, without
from handrec.geometry.camera import project
from handrec.losses.hand import total
from handrec.methods.handmim import HandMIMWeights, supervised_terms
from handrec.methods.s2hand import S2HAND, heatmap_terms
from handrec.records import write_record
from handrec.types import HandBatch

MODEL = "--model.init_args"
NO_PICTURES = [f"{MODEL}.appearance=null"]


class Labelled(S2HAND):
    """S2HAND's network, with HandMIM's supervised losses in place of S2HAND's on the 3D branch."""

    def training_step(self, batch: HandBatch, batch_idx: int) -> Tensor:
        """Return the loss of a labelled batch."""
        seen = self.see(batch)
        assert seen.found is not None
        labels = total(supervised_terms(seen.hand, batch), HandMIMWeights())
        return labels + total(heatmap_terms(seen.found, batch, self.weights), self.weights)


class LabelledExactly(Labelled):
    """The same, with a 2D branch that learns from the labels' projections."""

    def training_step(self, batch: HandBatch, batch_idx: int) -> Tensor:
        """Return the loss of a labelled batch."""
        exact = project(batch.joints_3d, batch.intrinsics)
        sure = torch.ones_like(batch.confidence)
        return super().training_step(batch._replace(keypoints_2d=exact, confidence=sure), batch_idx)


ROWS = {
    "full": [],
    "keypoints_only": [
        *without("bones", "limits", "scale", "shape", "consistency", "laplacian"), *NO_PICTURES,
    ],
    "no_orientation": without("bones"),
    "no_limits": without("limits"),
    "no_photometric": NO_PICTURES,
    "no_consistency": without("consistency"),
    "labelled": ["--model=s2hand_training.Labelled", *NO_PICTURES],
    "labelled_exactly": ["--model=s2hand_training.LabelledExactly", *NO_PICTURES],
}  # fmt: skip


def figures(run: Path) -> dict[str, float]:
    """Return a run's errors by split, and their ratio to the mean hand's."""
    found: dict[str, float] = {}
    for split, results in evaluated(run).items():
        mean = results.pop("mean hand")
        (row,) = results.values()
        found |= {
            f"{split}_pa_mpjpe_mm": row["pa_mpjpe"],
            f"{split}_pa_mpvpe_mm": row["pa_mpvpe"],
            f"{split}_ratio_to_mean_hand": row["pa_mpjpe"] / mean["pa_mpjpe"],
        }
    return found


def main() -> None:
    """Measure, print, and write the records."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scale", default="cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--epochs", type=int, help="default: the scale's")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    budget = chosen.scale + (f"-{chosen.epochs}" if chosen.epochs else "")
    epochs = [f"--trainer.max_epochs={chosen.epochs}"] if chosen.epochs else []
    for seed in chosen.seeds:
        for row in chosen.rows:
            choice = ["--exp=s2hand", f"--scale={chosen.scale}", f"--seed_everything={seed}"]
            run, seconds = trained(f"s2hand-{row}-{budget}-{seed}", *choice, *epochs, *ROWS[row])
            measured = {"row": row, "seed": seed, **figures(run)}
            print(measured, flush=True)
            if chosen.out:
                out = chosen.out.with_stem(f"{chosen.out.stem}-{budget}-{row}-{seed}")
                config = {"scale": chosen.scale} | (
                    {"epochs": chosen.epochs} if chosen.epochs else {}
                )
                write_record(out, f"s2hand {budget}", measured, config, seconds=seconds)


if __name__ == "__main__":
    main()
