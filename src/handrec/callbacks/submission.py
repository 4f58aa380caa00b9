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
    unofficial,
)
from handrec.metrics.official_files import write_scores, write_submission
from handrec.types import HandBatch, HandPrediction


class Submission:
    """Collects the hands of a split and writes them in the order of their ``sample_id``.

    Servers take MANO's mesh. Another one is written only where all labels have it too, as in the
    suite's synthetic sets: for ``handrec score``.

    Args:
        name: of the protocol.
        vertices: of the method's hand model.
    """

    def __init__(self, name: ProtocolName, vertices: int) -> None:
        self.protocol = PROTOCOLS[name]
        self.vertices = vertices
        self._parts: list[tuple[Tensor, ...]] = []
        self._foreign = False  # a mesh that neither server nor labels have

    def add(self, prediction: HandPrediction, batch: HandBatch) -> None:
        """Add a batch; a left hand, mirrored when it was read, is mirrored back."""
        mirror = torch.ones(len(batch.is_left), 1, 3, device=batch.is_left.device)
        mirror[:, 0, 0] -= 2 * batch.is_left
        labelled = batch.has_joints_3d * batch.has_vertices > 0
        if batch.vertices.shape[1] != self.vertices:
            labelled, batch = labelled & False, batch._replace(vertices=prediction.vertices)
        self._foreign |= self.vertices != VERTICES and not labelled.all()
        if self._foreign:
            return
        points = (prediction.joints, prediction.vertices, batch.joints_3d, batch.vertices)
        moved = [(part.detach().float() * mirror).cpu() for part in points]
        self._parts.append((batch.sample_id.cpu(), labelled.cpu(), *moved))

    def gather(self) -> list[str]:
        """Collect the hands of all ranks; return why the server would refuse them; collective."""
        refused = (
            f"{self.protocol.title}'s server takes MANO's {VERTICES} vertices,"
            f" the method's mesh has {self.vertices:,}"
        )
        if distributed.is_available() and distributed.is_initialized():
            everyone: list[Any] = [None] * distributed.get_world_size()
            distributed.all_gather_object(everyone, (self._foreign, self._parts))
            self._foreign = any(foreign for foreign, _ in everyone)
            self._parts = [part for _, parts in everyone for part in parts]
        if self._foreign:
            self._parts = []
            return [f"no pred.json: {refused}"]
        columns = [torch.cat(column) for column in zip(*self._parts, strict=True)]
        order = columns[0].argsort(stable=True)
        # A distributed sampler fills its last batches with samples of other ranks.
        first = columns[0][order].diff(prepend=torch.tensor([-1])) > 0
        self._parts = [tuple(column[order[first]] for column in columns)]
        if self.vertices != VERTICES:
            return [f"pred.json is for handrec score alone: {refused}"]
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
                warnings = doubts(scores, prediction, target)
                warnings += unofficial(self.protocol, target)
                write_scores(folder, scores, warnings)
