"""What HandMIM's pre-training is worth: the same fine-tuning from several backbones.

    python benchmarks/handmim_pretraining.py [--rows random handmim] [--labels 0.1] [--seeds 0]
        [--heads pymaf] [--lrs 1e-3] [--scale cpu] [--out FILE]

Each row (``ROWS``) is pre-trained once for each seed, `handmim_pretrain` but for the options named
there, and its teacher exported; then `handmim_finetune` (`handmim` for random weights: the same
recipe) is trained and tested on each share of the labels with each head, for the same steps. The
row `labelled` starts from a backbone that was trained with these labels and another head for
`LABELLED_EPOCHS`: what a fresh head makes of features that know the task. Of several learning rates
every row, random weights included, gets its best one on the validation split. The record is written
after every row; what it holds already is not trained again, so that a long series can be
interrupted.

The bars: HandMIM's PA-MPVPE is at least 15 % below that of random weights at 10 % of the labels and
3 % at all of them, and below that of ``invariant``; PyMAF's is below the iterative head's.
"""

import argparse
import shlex
import time
from pathlib import Path
from typing import Any

from _runs import evaluated, handrec, last_values, measured_before, trained
from handrec.cli import runs
from handrec.records import write_record

MODEL = "--model.init_args"

#: Options of the pre-training; None is none. Cross entropies are far larger than
#: distances of points, so class terms of prototypes weigh 1.
ROWS: dict[str, list[str] | None] = {
    "random": None,
    "handmim": [],
    "proto": [f"{MODEL}.alignment=proto", f"{MODEL}.weights.tokens=1"],
    "invariant": [f"{MODEL}.alignment=invariant", f"{MODEL}.weights.tokens=1"],
    "no_tokens": [f"{MODEL}.weights.tokens=0", f"{MODEL}.weights.spread=0"],
    "no_patches": [f"{MODEL}.weights.patches=0"],
    "no_pixels": [f"{MODEL}.weights.pixels=0"],
    "pixels_only": [f"{MODEL}.weights.{name}=0" for name in ("tokens", "spread", "patches")],
    "labelled": None,
}
#: Of the training that takes the place of a pre-training in the row `labelled`.
LABELLED_EPOCHS = 9
HEADS = {
    "pymaf": [],
    "iterative": [f"{MODEL}.head=handrec.models.iterative.IterativeRegressor"],
}

Row = dict[str, Any]


def pretrain(name: str, key: Row, more: list[str]) -> Row:
    """Pre-train a row once for each seed, and return its figures."""
    options = [f"--scale={key['scale']}", f"--seed_everything={key['seed']}"]
    options += [*(ROWS[key["row"]] or []), *more]
    run, seconds = trained(name, "--exp=handmim_pretrain", *options)
    names = ("probe", "probe_untrained", "probe_pose", "probe_untrained_pose")
    values = last_values(run)
    return {"pretrain_s": seconds} | {name: values[f"val/{name}"] for name in names}


def start(key: Row, chosen: argparse.Namespace, options: list[str]) -> tuple[list[str], Row]:
    """Return the experiment of a row's fine-tuning with its first weights, and their figures."""
    if key["row"] == "random":
        return ["--exp=handmim"], {}
    if key["row"] == "labelled":
        name, figures = "labelled_{head}_{labels:g}_{scale}_{seed}".format(**key), {}
        trained(name, "--exp=handmim", *options, f"--trainer.max_epochs={LABELLED_EPOCHS}")
    else:
        name = "pretrain_{row}_{scale}_{seed}".format(**key)
        figures = pretrain(name, key, chosen.pretrain_options)
    export = Path(runs.LOGS) / f"{name}.safetensors"
    handrec("export-backbone", name, f"--out={export}")
    weights = f"{MODEL}.backbone.init_args.checkpoint={export}"
    return ["--exp=handmim_finetune", weights], figures


def test(run: Path) -> Row:
    """Return the errors of a run on the test split."""
    results = evaluated(run, "--data.init_args.test_splits=[test]")["test"]
    found, mean = results["HandMIM"], results["mean hand"]
    names = ("pa_mpvpe", "pa_mpjpe", "mpjpe")
    return {f"{name}_mm": found[name] for name in names} | {
        "mean_hand_pa_mpvpe_mm": mean["pa_mpvpe"]
    }


def measure(key: Row, chosen: argparse.Namespace) -> Row:
    """Return the figures of one row: the best of the learning rates on the validation split."""
    options = [f"--scale={chosen.scale}", f"--seed_everything={key['seed']}", *HEADS[key["head"]]]
    options += [f"--data.init_args.label_share={key['labels']}", *chosen.finetune_options]
    first, figures = start(key, chosen, options)
    tried = []
    for lr in chosen.lrs:
        name = "finetune_{row}_{head}_{labels:g}_{scale}_{seed}".format(**key) + f"_{lr:g}"
        run, seconds = trained(name, *first, *options, f"{MODEL}.lr={lr}")
        tried.append((last_values(run)["val/pa_mpvpe"], lr, run, seconds))
    error, lr, run, seconds = min(tried, key=lambda item: item[0])
    found = {"lr": lr, "val_pa_mpvpe_mm": error, "finetune_s": seconds}
    return key | test(run) | found | figures


def main() -> None:
    """Measure, print, and write a record after each row."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", nargs="+", choices=[*ROWS], default=["random", "handmim"])
    parser.add_argument("--heads", nargs="+", choices=[*HEADS], default=["pymaf"])
    parser.add_argument("--labels", type=float, nargs="+", default=[0.1], help="shares of them")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--lrs", type=float, nargs="+", default=[1e-3])
    parser.add_argument("--scale", default="cpu")
    for stage in ("pretrain", "finetune"):
        shown = f'more of `handrec fit`, as --{stage}-options="--a=1 --b=2"'
        parser.add_argument(f"--{stage}-options", type=shlex.split, default=[], help=shown)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    name = ", ".join(["HandMIM pre-training", chosen.scale, *chosen.pretrain_options])
    finetune = [option.rpartition(".")[2] for option in chosen.finetune_options]
    name += ", fine-tuned with " + " ".join(finetune) if finetune else ""
    config = {"scale": chosen.scale, "lrs": chosen.lrs}
    began, rows = time.perf_counter(), measured_before(chosen.out, name, config)
    wanted = [
        {"row": row, "head": head, "labels": labels, "scale": chosen.scale, "seed": seed}
        for seed in chosen.seeds
        for labels in chosen.labels
        for head in chosen.heads
        for row in chosen.rows
    ]
    for key in wanted:
        if any(key.items() <= row.items() for row in rows):
            continue
        rows.append(measure(key, chosen))
        print(rows[-1], flush=True)
        if chosen.out:
            seconds = time.perf_counter() - began
            write_record(chosen.out, name, rows, config, seconds=seconds)


if __name__ == "__main__":
    main()
