"""All figures of a reconstruction method, sample by sample, over any number of batches."""

import warnings
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, distributed
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from handrec.geometry.procrustes import align
from handrec.hand.anatomy import hand_parts, vertex_penetration
from handrec.hand.base import HandModel
from handrec.metrics import functional
from handrec.metrics.keypoints import KEYPOINTS, keypoint_figures
from handrec.types import HandBatch, HandPrediction

#: Mean errors, millimetres.
LENGTHS = ("mpjpe", "pa_mpjpe", "mpvpe", "pa_mpvpe", "cs_mpjpe", "pa_mpjpe_rigid")

#: Areas under a PCK curve, and the errors that the curve is of.
AREAS = {"auc_j": "mpjpe", "pa_auc_j": "pa_mpjpe", "auc_v": "mpvpe", "pa_auc_v": "pa_mpvpe"}

#: F-scores of the mesh at 5 and 15 mm: in camera space and aligned.
F_SCORES = ("f5", "f15", "pa_f5", "pa_f15")

#: Greatest depth of a vertex in another part of its hand, millimetres, and the share of vertices
#: that are inside one: of the prediction alone, labelled or not.
PENETRATION = ("penetration", "penetration_share")


class Samples(NamedTuple):
    """What was measured, one entry per sample, NaN where a sample lacks the label.

    Attributes:
        ids: index of each sample within its data set.
        values: by metric; millimetres or shares.
        curves: PCK curves at ``functional.PCK_THRESHOLDS``, by the name of their area.
    """

    ids: Int[Tensor, " b"]
    values: Mapping[str, Float[Tensor, " b"]]
    curves: Mapping[str, Float[Tensor, "b t"]]


class HandMetrics(Metric):
    """Errors of joints and meshes, averaged over the samples that have the label.

    ``compute`` gives, in millimetres: ``mpjpe``, ``mpvpe`` (relative to the wrist joint),
    ``pa_mpjpe``, ``pa_mpvpe`` (after the official alignment, joints and mesh separately),
    ``cs_mpjpe`` (camera space), ``pa_mpjpe_rigid`` (after an alignment that may not reflect); and
    as shares: ``auc_j``, ``pa_auc_j``, ``auc_v``, ``pa_auc_v`` (area under the PCK curve from 0 to
    50 mm, root-relative and aligned), ``f5``, ``f15``, ``pa_f5``, ``pa_f15`` (F-scores of the mesh
    in camera space and aligned); and of the projected joints the figures of
    :data:`~handrec.metrics.keypoints.KEYPOINTS`. A figure is NaN where no sample has its label.
    With ``hand`` also ``penetration`` (millimetres) and ``penetration_share``, see
    :data:`PENETRATION`.

    In a distributed run, samples that the sampler repeated to fill the last batches count once.

    Args:
        f_scores: whether to compute the F-scores, by far the slowest: leave them out of
            validation.
        warn: whether ``compute`` warns of what :func:`suspicions` finds.
        hand: whose mesh is predicted, for how far it runs into itself: 16 ms of a core per hand.
    """

    is_differentiable = False
    full_state_update = False

    ids: list[Tensor]
    values: list[Tensor]
    curves: list[Tensor]

    def __init__(
        self, f_scores: bool = True, warn: bool = True, hand: HandModel | None = None
    ) -> None:
        super().__init__()
        self.f_scores = f_scores
        self.warn = warn
        self._surface = None if hand is None else (hand.faces.cpu(), hand_parts(hand).cpu())
        self.names = (
            *LENGTHS, *AREAS, *KEYPOINTS,
            *(F_SCORES if f_scores else ()), *(PENETRATION if hand else ()),
        )  # fmt: skip
        for state in ("ids", "values", "curves"):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def update(self, prediction: HandPrediction, batch: HandBatch) -> None:
        """Measure a batch.

        Args:
            prediction: what the method says of the batch.
            batch: its labels; only those whose ``has_*`` is set count.

        Raises:
            ValueError: if a predicted joint or vertex is not finite.
        """
        _refuse_non_finite(prediction, batch.sample_id)
        prediction = prediction._replace(
            joints=_on_cpu(prediction.joints), vertices=_on_cpu(prediction.vertices)
        )
        batch = batch._replace(
            joints_3d=_on_cpu(batch.joints_3d),
            vertices=_on_cpu(batch.vertices),
            has_joints_3d=batch.has_joints_3d.cpu(),
            has_vertices=batch.has_vertices.cpu(),
        )
        batch = _drop_foreign_mesh(prediction, batch)
        errors = _errors(prediction, batch)
        values = {name: 1000 * error.mean(1) for name, error in errors.items()}
        curves = {
            area: functional.pck_curve(errors[length]).masked_fill(
                values[length].isnan()[:, None], torch.nan
            )
            for area, length in AREAS.items()
        }
        values |= {area: functional.auc(curve) for area, curve in curves.items()}
        if self.f_scores:
            values |= _f_scores(prediction, batch)
        if self._surface is not None:
            depth = 1000 * vertex_penetration(prediction.vertices, *self._surface)
            figures = depth.amax(1), (depth > 0).double().mean(1)
            values |= dict(zip(PENETRATION, figures, strict=True))
        values |= _keypoints(prediction, batch)
        self.ids.append(name_samples(batch.sample_id, self.device))
        self.values.append(_stack([values[name] for name in self.names], self.device))
        self.curves.append(_stack([curves[area] for area in AREAS], self.device))

    def compute(self) -> dict[str, Tensor]:
        """Return the mean of each metric over the samples that have the label."""
        results = {name: value.nanmean() for name, value in self.samples().values.items()}
        if self.warn:
            for suspicion in suspicions(results):
                warnings.warn(suspicion, stacklevel=2)
        return results

    def samples(self) -> Samples:
        """Return what was measured so far, of all ranks: every rank must call it."""
        if len(self.ids) == 0:  # a list, or one tensor once synced
            raise ValueError("no sample was measured: update() comes first")
        synced = self._is_synced  # compute() has synced already
        with self.sync_context(should_sync=not synced, should_unsync=not synced):
            names, values, curves = map(dim_zero_cat, (self.ids, self.values, self.curves))
        kept = first_of_each(names)
        return Samples(
            names[kept, 0],
            dict(zip(self.names, values[kept].unbind(1), strict=True)),
            dict(zip(AREAS, curves[kept].unbind(1), strict=True)),
        )

    def latest(self, name: str) -> Float[Tensor, " b"]:
        """Return one metric of the samples of the latest update."""
        return self.values[-1][:, self.names.index(name)]


def suspicions(results: Mapping[str, Tensor]) -> list[str]:
    """Return a sentence for each sign of a mistake in conventions rather than a bad method.

    Args:
        results: of ``HandMetrics.compute``, millimetres.
    """
    found = []
    # On ordinary predictions the two alignments agree, so a tenth is far more than chance.
    if results["pa_mpjpe_rigid"] > 1.1 * results["pa_mpjpe"] + 0.5:
        found.append(
            "PA-MPJPE is much lower when the alignment may reflect: are the predicted hands "
            "mirrored (wrong side, or an axis flipped)?"
        )
    # Joints lie inside the mesh: right vertices with wrong joints mean wrong names.
    if results["pa_mpjpe"] > 1.5 * results["pa_mpvpe"] + 3:
        found.append(
            "PA-MPJPE is much higher than PA-MPVPE: are the joints in the order of the labels?"
        )
    return found


def _errors(prediction: HandPrediction, batch: HandBatch) -> dict[str, Tensor]:
    """Return the errors of all points in metres ``(B, N)``, NaN in rows without the label."""
    joints, target_joints = prediction.joints, batch.joints_3d
    mesh, target_mesh = prediction.vertices, batch.vertices
    wrist, target_wrist = joints[:, 0], target_joints[:, 0]
    errors = {
        "mpjpe": functional.root_relative_errors(joints, target_joints, wrist, target_wrist),
        "pa_mpjpe": functional.aligned_errors(joints, target_joints),
        "cs_mpjpe": functional.point_errors(joints, target_joints),
        "pa_mpjpe_rigid": functional.aligned_errors(joints, target_joints, reflection=False),
        "mpvpe": functional.root_relative_errors(mesh, target_mesh, wrist, target_wrist),
        "pa_mpvpe": functional.aligned_errors(mesh, target_mesh),
    }
    has_joints, has_mesh = batch.has_joints_3d > 0, batch.has_vertices > 0
    labelled = dict.fromkeys(errors, has_joints)
    labelled |= {"mpvpe": has_mesh & has_joints, "pa_mpvpe": has_mesh}
    return {
        name: error.masked_fill(~labelled[name][:, None], torch.nan)
        for name, error in errors.items()
    }


def _f_scores(prediction: HandPrediction, batch: HandBatch) -> dict[str, Tensor]:
    """Return the four F-scores ``(B,)``, NaN in rows without vertex labels."""
    has_mesh = batch.has_vertices > 0
    mesh, target = prediction.vertices[has_mesh], batch.vertices[has_mesh]
    scores = torch.full((len(has_mesh), len(F_SCORES)), torch.nan, dtype=torch.float64)
    scores[has_mesh, :2] = functional.f_scores(mesh, target)
    scores[has_mesh, 2:] = functional.f_scores(align(mesh, target, reflection=True), target)
    return dict(zip(F_SCORES, scores.unbind(1), strict=True))


def _keypoints(prediction: HandPrediction, batch: HandBatch) -> dict[str, Tensor]:
    """Return the figures of the projected joints ``(B,)``, NaN in rows without keypoints."""
    found, target, confidence = (
        x.detach().float().cpu()
        for x in (prediction.keypoints_2d, batch.keypoints_2d, batch.confidence)
    )
    size = max(batch.image.shape[-2:])
    figures = keypoint_figures(found, target, (confidence > 0).float(), size)
    return dict(zip(KEYPOINTS, figures.unbind(1), strict=True))


def _on_cpu(points: Tensor) -> Tensor:
    """Return points on the CPU in float64, which not every device has."""
    return points.detach().to("cpu", torch.float64)


def _drop_foreign_mesh(prediction: HandPrediction, batch: HandBatch) -> HandBatch:
    """Return the batch without its vertex labels if they are of another topology."""
    predicted, labelled = prediction.vertices.shape[1], batch.vertices.shape[1]
    if predicted == labelled:
        return batch
    if batch.has_vertices.any():
        warnings.warn(
            f"no mesh metrics: {predicted} vertices were predicted, the labels have {labelled}",
            stacklevel=3,
        )
    return batch._replace(
        vertices=torch.zeros_like(prediction.vertices),
        has_vertices=torch.zeros_like(batch.has_vertices),
    )


def _refuse_non_finite(prediction: HandPrediction, ids: Tensor) -> None:
    """Raise a ValueError that counts and names the samples with a NaN or an infinity."""
    finite = prediction.joints.isfinite().all(2).all(1)
    finite &= prediction.vertices.isfinite().all(2).all(1)
    if not finite.all():
        bad = ids[~finite].tolist()
        raise ValueError(
            f"{len(bad)} of {len(ids)} predictions are not finite (samples {bad[:10]}"
            f"{', ...' if len(bad) > 10 else ''}): an average without them would flatter the method"
        )


def _stack(columns: list[Tensor], device: torch.device) -> Tensor:
    """Return the columns side by side, in the float32 that every device has."""
    return torch.stack(columns, dim=1).float().to(device)


def name_samples(ids: Tensor, device: torch.device) -> Tensor:
    """Return ``(B, 2)``: the id of each sample and the rank that measured it."""
    rank = distributed.get_rank() if _is_distributed() else 0
    return torch.stack([ids, torch.full_like(ids, rank)], dim=1).long().to(device)


def _is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def first_of_each(names: Tensor) -> Tensor:
    """Return the rows to keep: the first of each sample that several ranks measured.

    A distributed sampler fills its last batches with samples of other ranks. Where an id repeats
    within a rank, ids are no names of samples, and all rows stay.
    """
    table = names.cpu().numpy()
    first = np.arange(len(table))
    if len(np.unique(table, axis=0)) == len(table):
        first = np.sort(np.unique(table[:, 0], return_index=True)[1])
    return torch.from_numpy(first).to(names.device)
