"""Trains `s2hand_video` from a run of `s2hand`, and compares the two.

    python benchmarks/s2hand_video_training.py [--scale cpu] [--seeds 0 1 2] [--out FILE]

The start is the row `full` of `s2hand_training.py`, trained here if it is not in
`lightning_logs/`. Both are measured with their last weights on `video` and `test`.

The bars, against the start: on `video` a PA-MPJPE that is not higher, an acceleration error at
least 25 % lower, shape and texture deviating at least 40 % less along each video; on `test` a
PA-MPJPE at most 2 % higher.
"""

import argparse
from pathlib import Path

from _runs import evaluated, trained
from handrec.cli import runs
from handrec.records import write_record

#: What is measured: column of the report, unit.
FIGURES = {
    "video": {
        "pa_mpjpe": "_mm", "pa_mpvpe": "_mm", "mpjpe": "_mm", "accel_error": "_mm_s2",
        "shape_sd": "", "shape_between": "", "bone_sd": "_mm", "texture_sd": "_levels",
        "texture_between": "_levels",
    },
    "test": {"pa_mpjpe": "_mm", "pa_mpvpe": "_mm"},
}  # fmt: skip


def figures(run: Path) -> dict[str, float]:
    """Return what is measured of a run."""
    splits = evaluated(run, "--data.init_args.test_splits=[test, video]")
    found = {}
    for split, columns in FIGURES.items():
        (row,) = (row for name, row in splits[split].items() if name != "mean hand")
        found |= {f"{split}_{column}{unit}": row[column] for column, unit in columns.items()}
    return found


def main() -> None:
    """Measure, print, and write the records."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scale", default="cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    for seed in chosen.seeds:
        choice = [f"--scale={chosen.scale}", f"--seed_everything={seed}"]
        before, _ = trained(f"s2hand-full-{chosen.scale}-{seed}", "--exp=s2hand", *choice)
        start = f"--model.init_args.checkpoint={runs.choose_checkpoint(before, 'last')}"
        name = f"s2hand_video-{chosen.scale}-{seed}"
        after, seconds = trained(name, "--exp=s2hand_video", *choice, start)
        old, new = figures(before), figures(after)
        change = {f"{key}_change": new[key] / old[key] - 1 for key in old if old[key]}
        rows = [
            {"row": "s2hand", "seed": seed, **old},
            {"row": "s2hand_video", "seed": seed, **new},
        ]
        print(*rows, change, sep="\n", flush=True)
        if chosen.out:
            out = chosen.out.with_stem(f"{chosen.out.stem}-{chosen.scale}-{seed}")
            config = {"scale": chosen.scale, **change}
            write_record(out, f"s2hand_video {chosen.scale}", rows, config, seed, seconds)


if __name__ == "__main__":
    main()
