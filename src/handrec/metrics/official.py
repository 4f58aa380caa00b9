"""The official evaluations of FreiHAND and HO-3D, after the formulas of their scripts.

Convention:
    Points are metres in the joint order and the axes of the protocol, as the files hold them; every
    figure is computed in float64. Errors are distances; a mean is over points, then samples. The
    PCK counts errors ``<=`` each of 100 thresholds from 0 to 50 mm, its area is of trapezoids, and
    the F-scores count distances ``<`` 5 and 15 mm. Alignment is a similarity of each sample, of the
    joints by the joints and of the mesh by its vertices; its orthogonal factor may reflect. Beside
    it stands the same with a proper rotation (*rigid*, determinant +1), which is not official.

Sources:
    ``eval.py`` of lmb-freiburg/freihand and of shreyashampali/ho3d; see docs/evaluation.md.
"""

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from handrec.geometry.procrustes import align
from handrec.hand.joints import JOINTS, KINEMATIC_THEN_TIPS, order
from handrec.metrics import functional
from handrec.metrics.hand import suspicions

ProtocolName = Literal["freihand", "ho3d_v2", "ho3d_v3"]

#: Vertices of MANO, the mesh of both data sets. Others can be scored, but not handed in.
VERTICES = 778

#: Two alignments that are the same but for rounding agree to this, metres.
_SAME = 1e-9

#: Samples by which a guess at a mistake is tested.
_LOOKED_AT = 512


class Protocol(NamedTuple):
    """What sets one evaluation apart.

    Attributes:
        title: the data set.
        samples: size of its evaluation split.
        joints: names of the joints in the order of its files.
        axes: signs that take the suite's OpenCV axes to those of its files.
        keys: official name of each of our figures, in the order of the official file.
    """

    title: str
    samples: int
    joints: tuple[str, ...]
    axes: tuple[float, float, float]
    keys: Mapping[str, str]


class Points(NamedTuple):
    """The hands of a file.

    Attributes:
        joints: metres.
        vertices: metres, or None where only the joints are evaluated.
    """

    joints: Float[Tensor, "n 21 3"]
    vertices: Float[Tensor, "n v 3"] | None


class Scores(NamedTuple):
    """What was measured. Names begin with ``xyz`` (joints) or ``mesh``.

    ``xyz`` is unaligned, ``xyz_al`` aligned as is official, ``xyz_rigid`` aligned without
    reflections, ``xyz_st`` by scale and translation alone (HO-3D).

    Attributes:
        protocol: how.
        errors: mean over each sample's points, metres.
        curves: PCK at ``functional.PCK_THRESHOLDS``, mean over points and samples.
        f_scores: at ``functional.F_THRESHOLDS``, of ``mesh``, ``mesh_al`` and ``mesh_rigid``.
        reflected: where the official alignment of joints or mesh is a reflection.
    """

    protocol: Protocol
    errors: Mapping[str, Float[Tensor, " n"]]
    curves: Mapping[str, Float[Tensor, " t"]]
    f_scores: Mapping[str, Float[Tensor, "n 2"]]
    reflected: Bool[Tensor, " n"]

    def auc(self, name: str) -> float:
        """Return the area under a PCK curve as a share of its range."""
        return float(functional.auc(self.curves[name]))

    def official(self) -> dict[str, float]:
        """Return the figures under their official keys: ``*_mean3d`` in cm, else shares."""
        figures = {}
        for name, key in self.protocol.keys.items():
            if name in self.errors:
                figures[f"{key}_mean3d"] = 100 * float(self.errors[name].mean())
                figures[f"{key}_auc3d"] = self.auc(name)
        return figures | self._f_figures({"f": "mesh", "f_al": "mesh_al"})

    def rigid(self) -> dict[str, float]:
        """Return the figures after the alignment without reflections, in the same units."""
        figures = {}
        for name in ("xyz_rigid", "mesh_rigid"):
            if name in self.errors:
                figures[f"{name}_mean3d"] = 100 * float(self.errors[name].mean())
                figures[f"{name}_auc3d"] = self.auc(name)
        return figures | self._f_figures({"f_rigid": "mesh_rigid"})

    def _f_figures(self, prefixes: Mapping[str, str]) -> dict[str, float]:
        """Return F-scores by threshold, then by prefix."""
        return {
            f"{prefix}_score_{round(1000 * threshold)}": float(
                self.f_scores[name][:, column].mean()
            )
            for column, threshold in enumerate(functional.F_THRESHOLDS)
            for prefix, name in prefixes.items()
            if name in self.f_scores
        }


_FREIHAND_KEYS = {"xyz": "xyz", "xyz_al": "xyz_al", "mesh": "mesh", "mesh_al": "mesh_al"}
_HO3D_KEYS = {
    "xyz": "xyz",
    "xyz_al": "xyz_procrustes_al",
    "xyz_st": "xyz_scale_trans_al",
    "mesh": "mesh",
    "mesh_al": "mesh_al",
}
#: HO-3D's joints are in the order in which MANO makes them, its axes are OpenGL's.
_HO3D = Protocol("HO-3D", 0, KINEMATIC_THEN_TIPS, (1.0, -1.0, -1.0), _HO3D_KEYS)

PROTOCOLS: dict[ProtocolName, Protocol] = {
    "freihand": Protocol("FreiHAND", 3960, JOINTS, (1.0, 1.0, 1.0), _FREIHAND_KEYS),
    "ho3d_v2": _HO3D._replace(title="HO-3D v2", samples=11524),
    "ho3d_v3": _HO3D._replace(title="HO-3D v3", samples=20137),
}


def to_protocol(points: Points, protocol: Protocol) -> Points:
    """Return the suite's hands (FreiHAND's joints, OpenCV axes) as a protocol's files hold them."""
    axes = points.joints.new_tensor(protocol.axes)
    joints = points.joints[:, order(JOINTS, protocol.joints)] * axes
    return Points(joints, None if points.vertices is None else points.vertices * axes)


def evaluate(protocol: Protocol, prediction: Points, target: Points, chunk: int = 256) -> Scores:
    """Return the scores of predictions.

    Args:
        protocol: whose formulas.
        prediction: as the submitted file holds them.
        target: as the ground truth holds them, sample by sample; without vertices only joints are
            scored.
        chunk: samples at a time; the scores do not depend on it.
    """
    errors, curves, f_scores, reflected = [], [], [], []
    for rows in torch.arange(len(target.joints)).split(chunk):
        moved, different = _alignments(protocol, _rows(prediction, rows), _rows(target, rows))
        distances = {
            name: functional.point_errors(points, goal) for name, (points, goal) in moved.items()
        }
        errors.append({name: distance.mean(1) for name, distance in distances.items()})
        curves.append(
            {name: functional.pck_curve(distance).sum(0) for name, distance in distances.items()}
        )
        f_scores.append(_f_scores(moved, different))
        reflected.append(different)
    return Scores(
        protocol,
        {name: torch.cat([part[name] for part in errors]) for name in errors[0]},
        {
            name: torch.stack([part[name] for part in curves]).sum(0) / len(target.joints)
            for name in curves[0]
        },
        {name: torch.cat([part[name] for part in f_scores]) for name in f_scores[0]},
        torch.cat(reflected),
    )


def align_scale_translation(
    source: Float[Tensor, "b n 3"], target: Float[Tensor, "b n 3"], root: int, knuckle: int
) -> Float[Tensor, "b n 3"]:
    """Return ``source`` with the wrist and the length of one bone of ``target``, not turned.

    Where that bone has no length in ``source`` it is only multiplied by the target's length: the
    published script guards the division, although its notes still say NaN.

    Args:
        source: predicted joints.
        target: joints of the label.
        root: index of the wrist.
        knuckle: index of the middle finger's first joint.
    """
    length = (source[:, knuckle] - source[:, root]).norm(dim=-1)
    goal = (target[:, knuckle] - target[:, root]).norm(dim=-1)
    scale = goal / length.where(length > 0, torch.ones_like(length))
    scaled = source * scale[:, None, None]
    aligned: Tensor = scaled - scaled[:, root, None] + target[:, root, None]
    return aligned


def doubts(scores: Scores, prediction: Points, target: Points) -> list[str]:
    """Return a sentence for each sign of a mistake in conventions rather than a bad method.

    Args:
        scores: of the prediction.
        prediction: what was scored.
        target: by what.
    """
    lengths = {name: 1000 * error.mean() for name, error in scores.errors.items()}
    found = suspicions(
        {
            "pa_mpjpe": lengths["xyz_al"],
            "pa_mpjpe_rigid": lengths["xyz_rigid"],
            "pa_mpvpe": lengths.get("mesh_al", torch.tensor(torch.nan)),
        }
    )
    reflections = int(scores.reflected.sum())
    if reflections:
        found.append(
            f"the official alignment reflects {reflections:,} of {len(scores.reflected):,} "
            "predictions: the row 'det = +1' does without reflections"
        )
    looked_at = torch.arange(min(_LOOKED_AT, len(target.joints)))
    prediction, target = _rows(prediction, looked_at), _rows(target, looked_at)
    found += _order_doubts(scores.protocol, prediction, target)
    return found + _frame_doubts(scores.protocol, prediction, target)


def unofficial(protocol: Protocol, target: Points) -> list[str]:
    """Return a sentence for each way in which labels are not those of the official evaluation."""
    found = []
    samples, vertices = len(target.joints), target.vertices
    if samples != protocol.samples:
        found.append(
            f"{samples:,} samples, the official evaluation has {protocol.samples:,}:"
            " do not compare these figures with published ones"
        )
    if vertices is not None and vertices.shape[1] != VERTICES:
        found.append(
            f"meshes of {vertices.shape[1]:,} vertices, the official evaluation has MANO's"
            f" {VERTICES}: the same formulas, but no server takes them"
        )
    return found


def _order_doubts(protocol: Protocol, prediction: Points, target: Points) -> list[str]:
    """Return a sentence if the joints fit far better when read in the other data set's order."""
    others = {"FreiHAND": JOINTS, "HO-3D": KINEMATIC_THEN_TIPS}
    found = []
    plain = 1000 * functional.pa_mpjpe(prediction.joints, target.joints).mean()
    for name, joints in others.items():
        reordered = prediction.joints[:, order(joints, protocol.joints)]
        read = 1000 * functional.pa_mpjpe(reordered, target.joints).mean()
        if read < 0.7 * plain and plain - read > 1:
            found.append(
                f"read in {name}'s joint order the predictions fit to {read:.1f} mm, not "
                f"{plain:.1f} mm: {protocol.title} has another order, see docs/evaluation.md"
            )
    return found


def _frame_doubts(protocol: Protocol, prediction: Points, target: Points) -> list[str]:
    """Return a sentence each if the axes or the unit of the predictions look wrong."""
    found = []
    depth, goal = prediction.joints[..., 2].mean(1), target.joints[..., 2].mean(1)
    if (depth * goal < 0).double().mean() > 0.5:
        axes = "z backward (OpenGL)" if protocol.axes[2] < 0 else "z forward (OpenCV)"
        found.append(
            f"the predictions lie behind the camera of the labels: {protocol.title} has {axes}; "
            "unaligned figures are meaningless"
        )
    size, real = (_spread(points.joints).median() for points in (prediction, target))
    if size > 0 and not 0.1 < size / real < 10:
        times = 10.0 ** round(math.log10(size / real))
        found.append(
            f"the predicted hands are about {times:g} times as large as the labels: metres are "
            "wanted; unaligned figures are meaningless"
        )
    return found


def _spread(points: Float[Tensor, "b n 3"]) -> Float[Tensor, " b"]:
    """Return the norm of the centred points of each sample."""
    norms: Tensor = torch.linalg.matrix_norm(points - points.mean(1, keepdim=True))
    return norms


def _rows(points: Points, rows: Tensor) -> Points:
    """Return some samples in float64."""
    vertices = points.vertices
    return Points(
        points.joints[rows].double(), None if vertices is None else vertices[rows].double()
    )


def _alignments(
    protocol: Protocol, prediction: Points, target: Points
) -> tuple[dict[str, tuple[Tensor, Tensor]], Tensor]:
    """Return the points and their targets under each alignment, and where reflections are used."""
    pairs = {"xyz": (prediction.joints, target.joints)}
    if prediction.vertices is not None and target.vertices is not None:
        pairs["mesh"] = (prediction.vertices, target.vertices)
    moved = dict(pairs)
    reflected = torch.zeros(len(target.joints), dtype=torch.bool)
    for name, (points, goal) in pairs.items():
        official, rigid = (
            align(points, goal, reflection=True),
            align(points, goal, reflection=False),
        )
        moved |= {f"{name}_al": (official, goal), f"{name}_rigid": (rigid, goal)}
        reflected |= ((official - rigid).abs() > _SAME).any(2).any(1)
    if "xyz_st" in protocol.keys:
        root, knuckle = (protocol.joints.index(joint) for joint in ("wrist", "middle_mcp"))
        scaled = align_scale_translation(*pairs["xyz"], root, knuckle)
        moved["xyz_st"] = (scaled, target.joints)
    return moved, reflected


def _f_scores(moved: Mapping[str, tuple[Tensor, Tensor]], reflected: Tensor) -> dict[str, Tensor]:
    """Return the F-scores ``(B, 2)`` of the mesh under each alignment."""
    if "mesh" not in moved:
        return {}
    scores = {name: functional.f_scores(*moved[name]) for name in ("mesh", "mesh_al")}
    scores["mesh_rigid"] = scores["mesh_al"].clone()  # the same but where a reflection was used
    points, goal = moved["mesh_rigid"]
    scores["mesh_rigid"][reflected] = functional.f_scores(points[reflected], goal[reflected])
    return scores
