import numpy as np
import pytest
import torch
import trimesh

from handrec.geometry.mesh import (
    edges,
    face_normals,
    farthest_point_sampling,
    vertex_normals,
)


@pytest.fixture
def sphere():
    mesh = trimesh.creation.icosphere(subdivisions=2, radius=0.03)
    return mesh, torch.tensor(mesh.vertices), torch.tensor(mesh.faces)


def test_normals_point_out_of_a_sphere_and_match_trimesh(sphere):
    mesh, vertices, faces = sphere
    normals = vertex_normals(vertices, faces)
    assert (normals * vertices).sum(-1).min() > 0.0299
    face = face_normals(vertices, faces)
    np.testing.assert_allclose(face.norm(dim=-1) / 2, mesh.area_faces, rtol=1e-9)
    np.testing.assert_allclose(face / face.norm(dim=-1, keepdim=True), mesh.face_normals, atol=1e-9)


def test_vertex_normals_are_area_weighted():
    vertices = torch.tensor([[0.0, 0, 0], [2, 0, 0], [0, 1, 0], [0, 0, 1]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])  # areas 1 and 1/2: normals +z and +x
    expected = torch.tensor([1.0, 0, 2]) / 5**0.5
    torch.testing.assert_close(vertex_normals(vertices, faces)[0], expected)


def test_vertex_normals_of_tiny_and_degenerate_faces_are_safe():
    tiny = 1e-5 * torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    faces = torch.tensor([[0, 1, 2]])
    torch.testing.assert_close(vertex_normals(tiny, faces)[0], torch.tensor([0.0, 0, 1]))
    point = torch.zeros(3, 3, requires_grad=True)
    normals = vertex_normals(point, faces)
    normals.sum().backward()
    assert (normals == 0).all()
    assert point.grad.isfinite().all()


def test_edges_are_trimeshs(sphere):
    mesh, _, faces = sphere
    expected = np.unique(np.sort(mesh.edges_unique, axis=1), axis=0)
    np.testing.assert_array_equal(edges(faces), expected)


def test_farthest_point_sampling_is_greedy():
    points = torch.rand(60, 3, generator=torch.Generator().manual_seed(0))
    chosen = farthest_point_sampling(points, 12).tolist()
    assert len(set(chosen)) == 12
    for step in range(1, 12):  # each is the farthest from those before it
        distance = torch.cdist(points, points[chosen[:step]]).amin(1)
        assert distance[chosen[step]] == distance.max()
    assert farthest_point_sampling(points, 5).tolist() == chosen[:5]
    with pytest.raises(ValueError, match="61 of 60"):
        farthest_point_sampling(points, 61)
