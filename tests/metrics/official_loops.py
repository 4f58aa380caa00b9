"""The figures of the official scripts, one sample and one point at a time, from the formulas."""

import numpy as np
from scipy.linalg import orthogonal_procrustes

from tests.metrics.naive import f_score


def figures(protocol, joints, vertices, target_joints, target_vertices):
    """Return what scores.txt holds; points are numpy arrays ``(N, 21 or 778, 3)`` in metres."""
    ho3d = protocol != "freihand"
    lists = {"xyz": [], "xyz_al": [], "mesh": [], "mesh_al": []} | ({"xyz_st": []} if ho3d else {})
    scores = {"f": [], "f_al": []}
    samples = zip(joints, vertices, target_joints, target_vertices, strict=True)
    for xyz, mesh, goal, target in samples:
        moved, moved_mesh = similarity(xyz, goal), similarity(mesh, target)
        lists["xyz"].append(distances(xyz, goal))
        lists["xyz_al"].append(distances(moved, goal))
        lists["mesh"].append(distances(mesh, target))
        lists["mesh_al"].append(distances(moved_mesh, target))
        if ho3d:
            lists["xyz_st"].append(distances(scale_and_shift(xyz, goal), goal))
        scores["f"].append([f_score(mesh, target, t) for t in (0.005, 0.015)])
        scores["f_al"].append([f_score(moved_mesh, target, t) for t in (0.005, 0.015)])
    names = dict.fromkeys(lists) | {name: name for name in lists}
    if ho3d:
        names |= {"xyz_al": "xyz_procrustes_al", "xyz_st": "xyz_scale_trans_al"}
    found = {}
    for name, errors in lists.items():
        found[f"{names[name]}_mean3d"] = 100 * mean_error(np.array(errors))
        found[f"{names[name]}_auc3d"] = area(np.array(errors))
    for name, values in scores.items():
        for column, threshold in enumerate((5, 15)):
            found[f"{name}_score_{threshold}"] = np.mean([value[column] for value in values])
    return found


def similarity(source, target, reflection=True):
    """Umeyama's alignment after the scripts' normalisation."""
    source_mean, target_mean = source.mean(0), target.mean(0)
    source_norm = np.linalg.norm(source - source_mean) + 1e-8
    target_norm = np.linalg.norm(target - target_mean) + 1e-8
    source, target = (source - source_mean) / source_norm, (target - target_mean) / target_norm
    if reflection:
        turn, scale = orthogonal_procrustes(source, target)
    else:
        left, values, right = np.linalg.svd(source.T @ target)
        signs = np.array([1, 1, np.sign(np.linalg.det(left @ right))])
        turn, scale = left * signs @ right, (values * signs).sum()
    return scale * target_norm * (source @ turn) + target_mean


def scale_and_shift(source, target):
    """HO-3D: the length from wrist to the middle finger's first joint, then the wrist."""
    length = np.sqrt(((source[4] - source[0]) ** 2).sum())
    if length > 0:
        source = source / length
    source = source * np.sqrt(((target[4] - target[0]) ** 2).sum())
    return source - source[0] + target[0]


def distances(points, target):
    return [np.sqrt(((p - t) ** 2).sum()) for p, t in zip(points, target, strict=True)]


def mean_error(errors):
    """Mean over points of their means over samples."""
    return np.mean([np.mean(errors[:, point]) for point in range(errors.shape[1])])


def area(errors):
    """Mean over points of the area under each one's own curve."""
    thresholds = np.linspace(0, 0.05, 100)
    whole = np.trapezoid(np.ones(100), thresholds)
    areas = []
    for point in range(errors.shape[1]):
        curve = np.mean(errors[:, point, None] <= thresholds, axis=0)
        areas.append(np.trapezoid(curve, thresholds) / whole)
    return np.mean(areas)
