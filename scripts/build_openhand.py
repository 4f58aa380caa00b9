"""Build ``openhand.npz`` from the vendored glTF hand: ``python scripts/build_openhand.py``.

Turns the hand into the rest frame of ``HandModel`` (fingers -x, thumb +z, palm -y, wrist joint at
the origin), welds it, merges its 25 WebXR joints to the 16 of MANO, finds the fingertips on the
skin, and adds a joint regressor, ten anthropometric shape directions, and the mean and principal
directions of sampled poses.
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from handrec.geometry.rotations import chordal_mean, matrix_to_axis_angle
from handrec.hand.joints import (
    FINGERS,
    JOINTS,
    KINEMATIC_JOINTS,
    KINEMATIC_PARENTS,
    KINEMATIC_THEN_TIPS,
    order,
)
from handrec.hand.openhand import OpenHand
from handrec.hand.sampler import PoseSampler

Array = NDArray[np.float64]
Index = NDArray[np.int64]

ASSETS = Path(__file__).parents[1] / "src" / "handrec" / "assets" / "openhand"

#: In the file fingers point along -y, the thumb to -z and the palm faces -x. Determinant +1.
REST_FROM_FILE = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])

PHALANGES = {"mcp": "proximal", "pip": "intermediate", "dip": "distal"}


class Rig(NamedTuple):
    """The file's content in the rest frame: per-corner vertices, faces, and named joints."""

    positions: Array
    uv: Array
    weights: Array
    faces: Index
    joints: dict[str, Array]
    joint_names: list[str]


class Hand(NamedTuple):
    """The welded hand. Joints are ``KINEMATIC_THEN_TIPS``, tips on the skin."""

    vertices: Array
    faces: Index
    uv: Array
    uv_faces: Index
    weights: Array
    joints: Array


def webxr_name(joint: str) -> str:
    """Return the WebXR name of one of our joints."""
    if joint == "wrist":
        return "wrist"
    finger, part = joint.split("_")
    if finger == "thumb":
        thumb = {"cmc": "metacarpal", "mcp": "phalanx-proximal", "ip": "phalanx-distal"}
        return f"thumb-{thumb.get(part, part)}"
    finger = "pinky" if finger == "little" else finger
    return f"{finger}-finger-{'tip' if part == 'tip' else 'phalanx-' + PHALANGES[part]}"


def read_glb(path: Path) -> Rig:
    """Return the only mesh of a binary glTF file, in the rest frame."""
    data = path.read_bytes()
    length = struct.unpack_from("<I", data, 12)[0]
    gltf, binary = json.loads(data[20 : 20 + length]), data[28 + length :]

    def accessor(index: int) -> NDArray[np.generic]:
        entry = gltf["accessors"][index]
        view = gltf["bufferViews"][entry["bufferView"]]
        dtype = {5121: "<u1", 5123: "<u2", 5126: "<f4"}[entry["componentType"]]
        width = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}[entry["type"]]
        flat = np.frombuffer(binary, dtype, entry["count"] * width, view["byteOffset"])
        return flat.reshape(-1, width)

    primitive = gltf["meshes"][0]["primitives"][0]
    attributes = {name: accessor(i) for name, i in primitive["attributes"].items()}
    nodes = [gltf["nodes"][i] for i in gltf["skins"][0]["joints"]]
    names = [node["name"] for node in nodes]
    translation = {node["name"]: np.array(node["translation"]) for node in nodes}
    wrist = translation["wrist"]

    weights = np.zeros((len(attributes["POSITION"]), len(nodes)))
    rows = np.arange(len(weights))[:, None]
    np.add.at(weights, (rows, attributes["JOINTS_0"]), attributes["WEIGHTS_0"].astype(np.float64))
    uv = attributes["TEXCOORD_0"].astype(np.float64) * [1, -1] + [0, 1]  # glTF has v down
    return Rig(
        positions=(attributes["POSITION"].astype(np.float64) - wrist) @ REST_FROM_FILE.T,
        uv=uv,
        weights=weights / weights.sum(1, keepdims=True),
        faces=accessor(primitive["indices"]).reshape(-1, 3).astype(np.int64),
        joints={name: REST_FROM_FILE @ (translation[name] - wrist) for name in names},
        joint_names=names,
    )


def merge_weights(rig: Rig) -> Array:
    """Return weights on the 16 joints: metacarpals go to the wrist, tips to the last phalanx."""
    merged = np.zeros((len(rig.weights), len(KINEMATIC_JOINTS)))
    target = {webxr_name(joint): i for i, joint in enumerate(KINEMATIC_JOINTS)}
    for column, name in enumerate(rig.joint_names):
        if name.endswith("-tip"):
            owner = target[name.replace("-tip", "-phalanx-distal")]
        else:
            owner = target.get(name, 0)
        merged[:, owner] += rig.weights[:, column]
    return merged


def pierce(origin: Array, direction: Array, vertices: Array, faces: Index) -> Array:
    """Return where a ray from inside last leaves the mesh (Moeller and Trumbore 1997)."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    edge1, edge2 = b - a, c - a
    p = np.cross(direction, edge2)
    determinant = (edge1 * p).sum(1)
    determinant[np.abs(determinant) < 1e-15] = np.nan
    s = origin - a
    u = (s * p).sum(1) / determinant
    q = np.cross(s, edge1)
    v = (q @ direction) / determinant
    t = (edge2 * q).sum(1) / determinant
    hit = (u >= 0) & (v >= 0) & (u + v <= 1) & (t > 0)
    return np.asarray(origin + t[hit].max() * direction)


def build_hand(rig: Rig) -> Hand:
    """Return the welded hand with its 16 joints and five tips."""
    _, first, group = np.unique(rig.positions, axis=0, return_index=True, return_inverse=True)
    kept = np.sort(first)
    index = np.searchsorted(kept, first[group.ravel()])
    vertices, faces = rig.positions[kept], index[rig.faces]
    joints = [rig.joints[webxr_name(joint)] for joint in KINEMATIC_JOINTS]
    for finger in FINGERS:
        # WebXR tips lie inside: go on along the last phalanx to the skin.
        last = "ip" if finger == "thumb" else "dip"
        start = rig.joints[webxr_name(f"{finger}_{last}")]
        direction = rig.joints[webxr_name(f"{finger}_tip")] - start
        joints.append(pierce(start, direction / np.linalg.norm(direction), vertices, faces))
    return Hand(vertices, faces, rig.uv, rig.faces, merge_weights(rig)[kept], np.stack(joints))


def maximum_entropy(points: Array, prior: Array, target: Array) -> Array:
    """Return the positive weights nearest to a prior whose mean of the points is the target.

    They are ``prior * exp(points @ x)`` for the ``x`` found by Newton's method on the convex dual.
    """
    centred = (points - target) / np.abs(points - target).max()
    x = np.zeros(3)
    for _ in range(50):
        weights = prior * np.exp(centred @ x)
        weights /= weights.sum()
        mean = weights @ centred
        x -= np.linalg.solve((centred * weights[:, None]).T @ centred - np.outer(mean, mean), mean)
    return np.asarray(weights)


def build_regressor(hand: Hand) -> Array:
    """Return the ``(21, V)`` matrix, in the order of ``JOINTS``, that finds joints from vertices.

    A kinematic joint is a positive mean of the skin shared by its bone and its parent's (the
    wrist: of the ring of skin around it); a tip is a point of one triangle.
    """
    rows = []
    for joint, position in enumerate(hand.joints):
        if joint >= len(KINEMATIC_JOINTS):
            rows.append(barycentric_row(hand, position))
            continue
        if joint == 0:
            prior = np.exp(-((hand.vertices[:, 0] / 0.01) ** 2) / 2) * hand.weights[:, 0]
        else:
            prior = hand.weights[:, joint] * hand.weights[:, KINEMATIC_PARENTS[joint]]
        prior = np.where(prior > 1e-3 * prior.max(), prior, 0)
        used = prior > 0
        row = np.zeros(len(hand.vertices))
        row[used] = maximum_entropy(hand.vertices[used], prior[used], position)
        rows.append(row)
    return np.stack(rows)[order(KINEMATIC_THEN_TIPS, JOINTS)]


def barycentric_row(hand: Hand, point: Array) -> Array:
    """Return weights of the corners of the triangle on which the point lies."""
    best, row = np.inf, np.zeros(len(hand.vertices))
    near = np.argsort(np.linalg.norm(hand.vertices[hand.faces].mean(1) - point, axis=1))[:30]
    for face in hand.faces[near]:
        system = np.concatenate([hand.vertices[face].T, np.ones((1, 3))])
        weights, *_ = np.linalg.lstsq(system, np.append(point, 1), rcond=None)
        error = np.abs(system @ weights - np.append(point, 1)).max() - 10 * min(weights.min(), 0)
        if error < best:
            best, row = error, np.zeros(len(hand.vertices))
            row[face] = weights
    return row


class Shape(NamedTuple):
    """One shape direction: a scaling of each segment of the hand, at one standard deviation.

    Attributes:
        palm: relative change along the rest axes (x length, y thickness, z breadth).
        length: relative change of each phalanx along its bone, by joint name or finger.
        thickness: relative change of each phalanx across its bone, by joint name or finger.
    """

    palm: tuple[float, float, float] = (0, 0, 0)
    length: Mapping[str, float] = MappingProxyType({})
    thickness: Mapping[str, float] = MappingProxyType({})


LONG_FINGERS = FINGERS[1:]

#: The ten shape directions, in order; see PROVENANCE.md for the numbers.
SHAPES = {
    "size": Shape((0.06, 0.06, 0.06), dict.fromkeys(FINGERS, 0.06), dict.fromkeys(FINGERS, 0.06)),
    "palm breadth": Shape(palm=(0, 0, 0.035)),
    "palm length": Shape(palm=(0.03, 0, 0)),
    "finger length": Shape(length=dict.fromkeys(LONG_FINGERS, 0.035)),
    "thumb length": Shape(length={"thumb": 0.06}),
    "finger thickness": Shape(thickness=dict.fromkeys(FINGERS, 0.05)),
    "palm thickness": Shape(palm=(0, 0.06, 0)),
    "2D:4D ratio": Shape(length={"index": 0.0165, "ring": -0.0165}),
    "little finger length": Shape(length={"little": 0.035}),
    "phalanx proportion": Shape(
        length={
            **{f"{finger}_mcp": -0.03 for finger in LONG_FINGERS},
            **{f"{finger}_dip": 0.05 for finger in LONG_FINGERS},
            "thumb_mcp": -0.03,
            "thumb_ip": 0.03,
        }
    ),
}


def build_shape_directions(hand: Hand) -> Array:
    """Return ``(V, 3, 10)`` displacements at one standard deviation of each shape direction.

    Each segment is scaled about its joint, carries the segments after it along, and the skin
    blends the segments with its skinning weights: no seam can open.
    """
    return np.stack([displacement(hand, shape) for shape in SHAPES.values()], axis=-1)


def displacement(hand: Hand, shape: Shape) -> Array:
    """Return ``(V, 3)``, metres."""
    heads, tails = hand.joints[: len(KINEMATIC_JOINTS)], bone_ends(hand)
    scalings, shifts = np.zeros((len(heads), 3, 3)), np.zeros_like(heads)
    scalings[0] = np.diag(shape.palm)
    moved = np.zeros_like(hand.vertices)
    for joint, (name, parent) in enumerate(zip(KINEMATIC_JOINTS, KINEMATIC_PARENTS, strict=True)):
        if parent >= 0:
            finger = name.split("_")[0]
            bone = (tails[joint] - heads[joint]) / np.linalg.norm(tails[joint] - heads[joint])
            along = np.outer(bone, bone)
            length = shape.length.get(name, shape.length.get(finger, 0))
            thickness = shape.thickness.get(name, shape.thickness.get(finger, 0))
            scalings[joint] = length * along + thickness * (np.eye(3) - along)
            shifts[joint] = shifts[parent] + scalings[parent] @ (heads[joint] - heads[parent])
        change = shifts[joint] + (hand.vertices - heads[joint]) @ scalings[joint].T
        moved += hand.weights[:, joint, None] * change
    return moved


def bone_ends(hand: Hand) -> Array:
    """Return where the bone of each kinematic joint ends: the next joint of its finger or tip."""
    ends = []
    for joint in KINEMATIC_JOINTS:
        after = "middle_mcp" if joint == "wrist" else JOINTS[JOINTS.index(joint) + 1]
        ends.append(hand.joints[KINEMATIC_THEN_TIPS.index(after)])
    return np.stack(ends)


def build(glb: Path) -> dict[str, NDArray[np.generic]]:
    """Return every array of ``openhand.npz`` that follows from the glTF file."""
    hand = build_hand(read_glb(glb))
    return {
        "template": hand.vertices.astype(np.float32),
        "faces": hand.faces.astype(np.int16),
        "uv": hand.uv.astype(np.float32),
        "uv_faces": hand.uv_faces.astype(np.int16),
        "weights": hand.weights.astype(np.float32),
        "regressor": build_regressor(hand).astype(np.float32),
        "shape_directions": build_shape_directions(hand).astype(np.float32),
        "mean_pose": np.tile(np.eye(3, dtype=np.float32), (16, 1, 1)),
        "pose_components": np.eye(45, dtype=np.float32),
    }


def pose_statistics(hand: OpenHand, count: int = 20_000) -> dict[str, NDArray[np.generic]]:
    """Return the mean and the principal directions of sampled poses."""
    poses = PoseSampler(hand).sample(count, torch.Generator().manual_seed(0)).double()
    mean = chordal_mean(poses)
    offsets = matrix_to_axis_angle(mean[1:].mT @ poses[:, 1:]).flatten(1)
    _, directions = torch.linalg.eigh(offsets.T.cov())
    components = directions.flip(1).T
    # The sign of a direction is arbitrary: let its largest entry be positive.
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    return {
        "mean_pose": mean.float().numpy(),
        "pose_components": (components * largest.sign()).float().numpy(),
    }


def main() -> None:
    """Write the file, then read it as a hand to sample poses, and write it again with them."""
    output = ASSETS.parent / "openhand.npz"
    arrays = build(ASSETS / "right.glb")
    np.savez_compressed(output, **arrays)
    np.savez_compressed(output, **arrays | pose_statistics(OpenHand()))


if __name__ == "__main__":
    main()
