"""Time every figure of an evaluation of FreiHAND's size, and check it against plain loops.

    python benchmarks/metrics_speed.py [--repeats 3] [--out FILE]

The predictions are noisy copies of made-up hands, close enough that every F-score search is
busy: once in camera space and once aligned, as in a real evaluation. The seconds of plain loops
are extrapolated from some samples; a difference to them is an error.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from scipy.spatial.transform import Rotation

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests' naive evaluation is the reference

from tests.metrics import naive

from handrec.metrics.hand import LENGTHS, HandMetrics
from handrec.records import write_record
from handrec.types import HandBatch, HandPrediction

NOISE = 0.006  # metres per coordinate


def hands(count: int, vertices: int) -> tuple[HandPrediction, HandBatch]:
    """Return predictions and labels: blobs of a hand's size, turned, 0.6 m away."""
    torch.manual_seed(0)
    size = torch.tensor([0.05, 0.03, 0.015])
    turn = torch.from_numpy(Rotation.random(count, rng=0).as_matrix()).float()
    points = (size * torch.randn(vertices + 21, 3)) @ turn + torch.tensor([0.0, 0.0, 0.6])
    guess = points + NOISE * torch.randn_like(points)
    nothing, ones = torch.zeros(count, 1), torch.ones(count)
    batch = HandBatch(*[nothing] * len(HandBatch._fields))._replace(
        joints_3d=points[:, :21],
        vertices=points[:, 21:],
        has_joints_3d=ones,
        has_vertices=ones,
        sample_id=torch.arange(count),
    )
    return HandPrediction(guess[:, 21:], guess[:, :21], nothing, nothing, nothing, nothing), batch


def measure(
    prediction: HandPrediction, batch: HandBatch, size: int = 64
) -> tuple[float, float, dict]:
    """Return the wall-clock and CPU seconds of an evaluation, and the values of each sample."""
    metrics = HandMetrics()
    start, start_cpu = time.perf_counter(), time.process_time()
    for first in range(0, len(batch.sample_id), size):
        rows = slice(first, first + size)
        metrics.update(
            HandPrediction(*(None if field is None else field[rows] for field in prediction)),
            HandBatch(*(field[rows] for field in batch)),
        )
    metrics.compute()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    return seconds, cpu_seconds, dict(metrics.samples().values)


def largest_difference(
    values: dict, prediction: HandPrediction, batch: HandBatch, count: int
) -> tuple[float, float]:
    """Return the largest difference to plain loops (metres or shares) and their seconds."""
    worst, start = 0.0, time.perf_counter()
    for row in range(count):
        points = (prediction.joints, batch.joints_3d, prediction.vertices, batch.vertices)
        expected = naive.evaluate(*(p[row].double().numpy() for p in points))
        for name, value in expected.items():
            unit = 1e-3 if name in LENGTHS else 1.0
            worst = max(worst, unit * abs(values[name][row].item() - value))
    return worst, time.perf_counter() - start


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--samples", type=int, default=3960)
    parser.add_argument("--vertices", type=int, default=778)
    parser.add_argument("--checked", type=int, default=40, help="samples also done by plain loops")
    parser.add_argument("--out", type=Path, help="a record to write")
    chosen = parser.parse_args()

    start = time.perf_counter()
    prediction, batch = hands(chosen.samples, chosen.vertices)
    runs = [measure(prediction, batch) for _ in range(chosen.repeats)]
    difference, loops = largest_difference(runs[0][2], prediction, batch, chosen.checked)
    row = {
        "median_s": statistics.median(seconds for seconds, _, _ in runs),
        "slowest_s": max(seconds for seconds, _, _ in runs),
        "cpu_s": statistics.median(cpu for _, cpu, _ in runs),  # of all threads
        "plain_loops_s": loops / chosen.checked * chosen.samples,
        "largest_difference": difference,  # metres or shares
    }
    print(*(f"{key} {value:.3g}" for key, value in row.items()), sep=", ")
    if chosen.out:
        config = {name: value for name, value in vars(chosen).items() if name != "out"}
        config |= {"threads": torch.get_num_threads()}
        seconds = time.perf_counter() - start
        write_record(chosen.out, "Evaluation of FreiHAND's size", row, config, 0, seconds)
    if difference > 1e-6:
        sys.exit(f"differs from plain loops by {difference:.1e}")


if __name__ == "__main__":
    main()
