"""The official evaluation as plain loops over samples and points; millimetres and shares."""

import numpy as np
from scipy.linalg import orthogonal_procrustes
from scipy.spatial.transform import Rotation


def evaluate(joints, target_joints, vertices, target_vertices):
    """Return every figure of one sample; points are numpy arrays in metres."""
    joints_at_wrist, target_at_wrist = joints - joints[0], target_joints - target_joints[0]
    mesh_at_wrist, target_mesh = vertices - joints[0], target_vertices - target_joints[0]
    aligned_joints = official_alignment(joints, target_joints)
    aligned_mesh = official_alignment(vertices, target_vertices)
    return {
        "mpjpe": mean_error(joints_at_wrist, target_at_wrist),
        "pa_mpjpe": mean_error(aligned_joints, target_joints),
        "mpvpe": mean_error(mesh_at_wrist, target_mesh),
        "pa_mpvpe": mean_error(aligned_mesh, target_vertices),
        "cs_mpjpe": mean_error(joints, target_joints),
        "pa_mpjpe_rigid": mean_error(proper_alignment(joints, target_joints), target_joints),
        "auc_j": area(joints_at_wrist, target_at_wrist),
        "pa_auc_j": area(aligned_joints, target_joints),
        "auc_v": area(mesh_at_wrist, target_mesh),
        "pa_auc_v": area(aligned_mesh, target_vertices),
        "f5": f_score(vertices, target_vertices, 0.005),
        "f15": f_score(vertices, target_vertices, 0.015),
        "pa_f5": f_score(aligned_mesh, target_vertices, 0.005),
        "pa_f15": f_score(aligned_mesh, target_vertices, 0.015),
    }


def official_alignment(source, target):
    """Similarity alignment with reflections allowed."""
    source_mean, target_mean = source.mean(0), target.mean(0)
    source, target = source - source_mean, target - target_mean
    source_norm, target_norm = np.linalg.norm(source) + 1e-8, np.linalg.norm(target) + 1e-8
    rotation, scale = orthogonal_procrustes(target / target_norm, source / source_norm)
    return source / source_norm @ rotation.T * scale * target_norm + target_mean


def proper_alignment(source, target):
    """Similarity alignment with a proper rotation, by scipy's solver."""
    centred, goal = source - source.mean(0), target - target.mean(0)
    rotation, _ = Rotation.align_vectors(goal, centred)
    turned = rotation.apply(centred)
    return turned * (turned * goal).sum() / (centred * centred).sum() + target.mean(0)


def mean_error(prediction, target):
    """Mean distance, millimetres."""
    return 1000 * np.mean([np.linalg.norm(p - t) for p, t in zip(prediction, target, strict=True)])


def area(prediction, target):
    """Area under the PCK curve of 100 thresholds from 0 to 50 mm, mean over the points."""
    thresholds = np.linspace(0, 0.05, 100)
    areas = []
    for p, t in zip(prediction, target, strict=True):
        curve = [float(np.linalg.norm(p - t) <= threshold) for threshold in thresholds]
        areas.append(np.trapezoid(curve, thresholds) / np.trapezoid(np.ones(100), thresholds))
    return np.mean(areas)


def f_score(prediction, target, threshold):
    """F-score of two point sets by brute force."""
    distances = np.linalg.norm(prediction[:, None] - target[None], axis=-1)
    precision = np.mean(distances.min(1) < threshold)
    recall = np.mean(distances.min(0) < threshold)
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0
