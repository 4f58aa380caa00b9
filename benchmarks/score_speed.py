"""Time `handrec score` on an evaluation of HO-3D's size, files included, and check it by loops.

    python benchmarks/score_speed.py [--samples 11524] [--out FILE]

Writes ground truth and predictions as the data set and the servers have them, reads and scores
them. The predictions are noisy copies, close enough that every search of the F-scores is busy.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests' loops are the reference

from tests.metrics import official_loops
from tests.metrics.fakes import TinyHand, fake_batch

from handrec.metrics.official import PROTOCOLS, VERTICES, Points, evaluate, to_protocol
from handrec.metrics.official_files import read_ground_truth, read_prediction, write_submission
from handrec.records import write_record

NOISE = 0.006  # metres per coordinate


def hands(count: int) -> tuple[Points, Points]:
    """Return labels and predictions of HO-3D."""
    batch = fake_batch(count, 0, TinyHand(VERTICES), size=2)
    target = Points(batch.joints_3d.double(), batch.vertices.double())
    generator = torch.Generator().manual_seed(1)
    guess = Points(*(p + NOISE * torch.randn(p.shape, generator=generator) for p in target))
    return tuple(to_protocol(points, PROTOCOLS["ho3d_v2"]) for points in (target, guess))


class Clock:
    """CPU seconds of all threads, and wall-clock seconds, by step."""

    def __init__(self) -> None:
        self.row: dict[str, float] = {}
        self.start()

    def start(self) -> None:
        """Begin a step."""
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def stop(self, step: str) -> None:
        """End a step and begin the next."""
        self.row[f"{step}_s"] = time.perf_counter() - self.wall
        self.row[f"{step}_cpu_s"] = time.process_time() - self.cpu
        self.start()


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=PROTOCOLS["ho3d_v2"].samples)
    parser.add_argument("--checked", type=int, default=8, help="samples also done by plain loops")
    parser.add_argument("--out", type=Path, help="a record to write")
    chosen = parser.parse_args()

    begin = time.perf_counter()
    target, guess = hands(chosen.samples)
    clock = Clock()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_submission(folder, guess)
        clock.stop("write")
        for file, part in zip(("xyz", "verts"), target, strict=True):
            (folder / f"{file}.json").write_text(json.dumps(part.tolist()))
        clock.start()
        target = read_ground_truth(folder / "xyz.json", folder / "verts.json")
        guess = read_prediction(folder / "pred.zip", chosen.samples)
        clock.stop("read")
    scores = evaluate(PROTOCOLS["ho3d_v2"], guess, target)
    clock.stop("score")
    few = [part[: chosen.checked].numpy() for part in (*guess, *target)]
    clock.start()
    expected = official_loops.figures("ho3d_v2", *few)
    clock.stop("loops")
    found = evaluate(
        scores.protocol, *(Points(*map(torch.from_numpy, few[i : i + 2])) for i in (0, 2))
    )
    difference = max(abs(found.official()[key] - value) for key, value in expected.items())
    row = clock.row
    row["plain_loops_s"] = row.pop("loops_cpu_s") / chosen.checked * chosen.samples
    del row["loops_s"]
    row["largest_difference"] = difference  # cm or shares
    row["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(*(f"{key} {value:.3g}" for key, value in row.items()), sep=", ")
    if chosen.out:
        config = {"samples": chosen.samples, "threads": torch.get_num_threads()}
        seconds = time.perf_counter() - begin
        write_record(chosen.out, "Official evaluation of HO-3D's size", row, config, 0, seconds)
    if difference > 1e-6:
        sys.exit(f"differs from plain loops by {difference:.1e}")


if __name__ == "__main__":
    main()
