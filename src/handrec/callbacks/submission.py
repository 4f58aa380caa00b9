"""What a test run hands in to an evaluation server, and what the server would say."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from handrec.metrics.official import (
    PROTOCOLS,
    VERTICES,
    Points,
    ProtocolName,
    doubts,
    evaluate,
    to_protocol,
)
from handrec.metrics.official_files import write_scores, write_submission
from handrec.types import HandBatch, HandPrediction


class Submission:
    """Collects the hands of a split and writes them in the order of their ``sample_id``.

    Args:
        name: of the protocol.
        vertices: of the method's hand model; only MANO's mesh can be handed in.
    """

    def __init__(self, name: ProtocolName, vertices: int) -> None:
        self.protocol = PROTOCOLS[name]
        self.vertices = vertices
        self._parts: list[tuple[Tensor, ...]] = []

    def add(self, prediction: HandPrediction, batch: HandBatch) -> None:
        """Add a batch; a left hand, mirrored when it was read, is mirrored back."""
        if self.vertices != VERTICES:
            return
        mirror = torch.ones(len(batch.is_left), 1, 3, device=batch.is_left.device)
        mirror[:, 0, 0] -= 2 * batch.is_left
        labelled = batch.has_joints_3d * batch.has_vertices > 0
        if batch.vertices.shape[1] != VERTICES:
            labelled, batch = labelled & False, batch._replace(vertices=prediction.vertices)
        points = (prediction.joints, prediction.vertices, batch.joints_3d, batch.vertices)
        moved = [(part.detach().float() * mirror).cpu() for part in points]
        self._parts.append((batch.sample_id.cpu(), labelled.cpu(), *moved))

    def gather(self) -> list[str]:
        """Collect the hands of all ranks; return why the server would refuse them; collective."""
        if self.vertices != VERTICES:
            return [
                f"no pred.json: {self.protocol.title} scores MANO's {VERTICES} vertices,"
                f" the method's mesh has {self.vertices:,}"
            ]
        if distributed.is_available() and distributed.is_initialized():
            everyone: list[Any] = [None] * distributed.get_world_size()
            distributed.all_gather_object(everyone, self._parts)
            self._parts = [part for rank in everyone for part in rank]
        columns = [torch.cat(column) for column in zip(*self._parts, strict=True)]
        order = columns[0].argsort(stable=True)
        # A distributed sampler fills its last batches with samples of other ranks.
        first = columns[0][order].diff(prepend=torch.tensor([-1])) > 0
        self._parts = [tuple(column[order[first]] for column in columns)]
        count, wanted = int(first.sum()), self.protocol.samples
        if count == wanted:
            return []
        return [f"pred.json has {count:,} samples, {self.protocol.title}'s server takes {wanted:,}"]

    def write(self, folder: Path) -> None:
        """Write ``pred.json`` and ``pred.zip``, and ``scores.txt`` if every sample has its labels.

        Args:
            folder: where.
        """
        for _, labelled, joints, vertices, *labels in self._parts:
            prediction = to_protocol(Points(joints, vertices), self.protocol)
            write_submission(folder, prediction)
            if labelled.all():
                target = to_protocol(Points(*labels), self.protocol)
                scores = evaluate(self.protocol, prediction, target)
                write_scores(folder, scores, doubts(scores, prediction, target))
