"""Time `handrec score` on an evaluation of HO-3D's size, files included, and check it by loops.

    python benchmarks/score_speed.py [--samples 11524] [--out FILE]

Writes ground truth and predictions as the data set and the servers have them, then runs the
command. The predictions are noisy copies, close enough that every search of the F-scores is busy.
The seconds of plain loops are extrapolated from some samples; a difference to them is an error.
"""

import argparse
import csv
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests' loops are the reference

from tests.metrics import official_loops
from tests.metrics.fakes import TinyHand, fake_batch

from handrec.metrics.official import PROTOCOLS, VERTICES, Points, to_protocol
from handrec.metrics.official_files import write_submission
from handrec.records import write_record

NOISE = 0.006  # metres per coordinate
PROTOCOL = PROTOCOLS["ho3d_v2"]


def hands(count: int) -> tuple[Points, Points]:
    """Return labels and predictions of HO-3D, rounded as files are."""
    batch = fake_batch(count, 0, TinyHand(VERTICES), size=2)
    target = Points(batch.joints_3d, batch.vertices)
    generator = torch.Generator().manual_seed(1)
    guess = Points(*(p + NOISE * torch.randn(p.shape, generator=generator) for p in target))
    return tuple(
        Points(*(part.double().round(decimals=7) for part in to_protocol(points, PROTOCOL)))
        for points in (target, guess)
    )


def write_points(path: Path, points: torch.Tensor) -> None:
    """Write ground truth, as a list of samples."""
    with path.open("w") as file:
        for index, sample in enumerate(points):
            file.write(f"{', ' if index else '['}{sample.tolist()}")
        file.write("]")


def score(folder: Path) -> dict[str, float]:
    """Run the command on the files of a folder; return what it took, start-up included."""
    files = {"--gt-xyz": "xyz.json", "--gt-verts": "verts.json", "--pred": "pred.zip"}
    words = [word for option, file in files.items() for word in (option, str(folder / file))]
    program = "import sys; from handrec.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "score", "--protocol", "ho3d_v2", *words]
    start = time.perf_counter()
    subprocess.run([*command, "--out", str(folder / "out")], check=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "score_s": time.perf_counter() - start,
        "score_cpu_s": used.ru_utime + used.ru_stime,  # of all threads
        "score_peak_gb": used.ru_maxrss / 1e6,
    }


def largest_difference(
    rows: list[dict[str, str]], guess: Points, target: Points
) -> tuple[float, float]:
    """Return the largest difference of means over some samples to plain loops, and seconds."""
    start = time.process_time()
    few = [part[: len(rows)].numpy() for part in (*guess, *target)]
    expected = official_loops.figures("ho3d_v2", *few)
    seconds = time.process_time() - start
    worst = 0.0
    for name, key in PROTOCOL.keys.items():
        mean = np.mean([float(row[f"{name}_mm"]) for row in rows]) / 10
        worst = max(worst, abs(mean - expected[f"{key}_mean3d"]))
    for name, key in (("mesh", "f"), ("mesh_al", "f_al")):
        for threshold in (5, 15):
            mean = np.mean([float(row[f"{name}_f{threshold}"]) for row in rows])
            worst = max(worst, abs(mean - expected[f"{key}_score_{threshold}"]))
    return worst, seconds


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=PROTOCOL.samples)
    parser.add_argument("--checked", type=int, default=8, help="samples also done by plain loops")
    parser.add_argument("--out", type=Path, help="a record to write")
    chosen = parser.parse_args()

    begin = time.perf_counter()
    target, guess = hands(chosen.samples)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, part in zip(("xyz", "verts"), target, strict=True):
            write_points(folder / f"{file}.json", part)
        start = time.process_time()
        write_submission(folder, guess)
        row = {"write_cpu_s": time.process_time() - start, **score(folder)}
        with (folder / "out" / "scores.csv").open() as file:
            rows = list(csv.DictReader(file))[: chosen.checked]
    row["largest_difference"], seconds = largest_difference(rows, guess, target)  # cm or shares
    row["plain_loops_cpu_s"] = seconds / chosen.checked * chosen.samples
    print(*(f"{key} {value:.3g}" for key, value in row.items()), sep=", ")
    if chosen.out:
        config = {"samples": chosen.samples, "threads": torch.get_num_threads()}
        seconds = time.perf_counter() - begin
        write_record(chosen.out, "Official evaluation of HO-3D's size", row, config, 0, seconds)
    if row["largest_difference"] > 1e-6:
        sys.exit(f"differs from plain loops by {row['largest_difference']:.1e}")


if __name__ == "__main__":
    main()
