"""How hard each of S2HAND's losses pulls at the 3D branch, and whether towards the labels.

    python benchmarks/s2hand_terms.py [--run s2hand] [--batches 8] [--out FILE]

On batches of the test split: the norm of each weighted term's gradient at the regressor's
parameters, and its cosine with the gradient of the error of the fingers' joints in the wrist's own
frame, which is what the labels would ask for. A term whose pull is weak, or has a cosine near 0,
cannot help much; training never sees these labels.
"""

import argparse
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from _runs import data_of
from handrec.cli import runs
from handrec.methods.loading import load_method
from handrec.methods.s2hand import S2HAND
from handrec.records import write_record
from handrec.types import HandBatch


def joint_error(joints: Tensor, pose: Tensor, batch: HandBatch) -> Tensor:
    """Return the mean error of the joints in the wrist's own frame, metres."""
    own, true = (
        torch.einsum("bji,bkj->bki", rotation[:, 0], x - x[:, :1])
        for rotation, x in ((pose, joints), (batch.pose, batch.joints_3d))
    )
    return (own - true).abs().mean()


def pulls(method: S2HAND, batch: HandBatch) -> dict[str, Tensor]:
    """Return value, norm of the weighted gradient, and its cosine with the labels' of each term."""
    parameters = list(method.regressor.parameters())

    def gradient(value: Tensor) -> Tensor:
        found = torch.autograd.grad(value, parameters, retain_graph=True, materialize_grads=True)
        return torch.cat([part.flatten() for part in found])

    seen = method.see(batch)
    hand = seen.hand
    aim = gradient(joint_error(hand.joints, hand.pose, batch))
    rows = {}
    for name, term in method.terms(seen, batch).items():
        pull = gradient(getattr(method.weights, name) * term)
        cosine = torch.cosine_similarity(pull, aim, dim=0)
        rows[name] = torch.stack([term.detach(), pull.norm(), cosine])
    return rows


def main() -> None:
    """Measure, print, and write a record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", default="s2hand", help="experiment or run directory")
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    run = runs.resolve(chosen.run)
    torch.manual_seed(0)
    method = load_method(runs.choose_checkpoint(run, "last")).eval()
    assert isinstance(method, S2HAND)
    method.progress = lambda: 1.0  # type: ignore[method-assign]  # every term has its full weight
    data = data_of(run)
    data.prepare_data()
    data.setup("test")
    loader = data.test_dataloader()
    batches = loader[0] if isinstance(loader, list) else loader
    found = [
        pulls(method, data.on_after_batch_transfer(batch, 0))
        for batch in islice(batches, chosen.batches)
    ]
    rows = []
    for name in found[0]:
        value, norm, cosine = torch.stack([row[name] for row in found]).mean(0).tolist()
        if norm > 0:  # others teach the 2D branch or the texture
            rows.append(
                {"term": name, "value": value, "gradient_norm": norm, "cosine_with_labels": cosine}
            )
            print(rows[-1])
    if chosen.out:
        config = {"batches": chosen.batches, "run": run.parent.name}
        write_record(chosen.out, "Pull of S2HAND's losses", rows, config, seed=0)


if __name__ == "__main__":
    main()
