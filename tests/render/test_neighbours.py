"""Which faces meet at an edge: against a dictionary of edges."""

from collections import defaultdict

import pytest
import torch
import trimesh

from handrec.render.neighbours import find_neighbours


def naive(faces):
    sides = defaultdict(list)
    for number, (a, b, c) in enumerate(faces.tolist()):
        for corner, edge in enumerate(((b, c), (c, a), (a, b))):
            sides[frozenset(edge)].append((number, corner))
    found = torch.full(faces.shape, -1, dtype=torch.int32)
    for pair in sides.values():
        if len(pair) == 2:
            (one, i), (other, j) = pair
            found[one, i], found[other, j] = other, one
    return found


def shapes():
    closed = torch.tensor(trimesh.creation.icosphere(2).faces)
    torus = torch.tensor(trimesh.creation.torus(1.0, 0.3).faces)
    opened = closed[torch.randperm(len(closed), generator=torch.Generator().manual_seed(0))[:200]]
    fan = torch.tensor([[0, 1, 2], [1, 0, 3], [0, 1, 4], [4, 1, 5]])  # three faces at edge 0-1
    flipped = torch.where(torch.arange(len(closed))[:, None] % 3 == 0, closed.flip(1), closed)
    joined = torch.cat([closed, torus + closed.max() + 1])
    return {
        "closed": closed,
        "open": opened,
        "fan": fan,
        "flipped": flipped,
        "joined": joined,
        "none": closed[:0],
        "int": closed.int(),
        "far": closed + 2**30,
    }


@pytest.mark.parametrize("name", shapes())
def test_neighbours_are_the_naive_ones(name):
    faces = shapes()[name]
    assert torch.equal(find_neighbours(faces), naive(faces))


def test_a_closed_surface_has_no_border_and_a_fan_has_one():
    assert find_neighbours(shapes()["closed"]).min() >= 0
    assert find_neighbours(shapes()["fan"]).tolist() == [
        [-1] * 3,
        [-1] * 3,
        [3, -1, -1],
        [-1, -1, 2],
    ]


def test_a_face_with_a_corner_twice_has_only_faces_that_are_there():
    found = find_neighbours(torch.tensor([[0, 1, 1], [0, 0, 0], [0, 1, 2]]))
    assert found.min() >= -1
    assert found.max() <= 2


def test_neighbours_are_found_once_and_again_when_faces_change():
    faces = shapes()["closed"].clone()
    found = find_neighbours(faces)
    assert find_neighbours(faces) is found
    faces[: len(faces) // 2] = 0
    assert torch.equal(find_neighbours(faces)[len(faces) // 2 :], naive(faces)[len(faces) // 2 :])
    with torch.inference_mode():
        fixed = faces.clone()
    assert torch.equal(find_neighbours(fixed), find_neighbours(faces))
