import numpy as np
import pytest
import torch
import trimesh

from handrec.viz.mesh_export import export_mesh

# A tetrahedron in the OpenCV camera frame, counter-clockwise seen from outside.
VERTICES = torch.tensor([[0.0, 0, 0.5], [0.1, 0, 0.5], [0, 0.1, 0.5], [0, 0, 0.6]])
FACES = torch.tensor([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]])


@pytest.mark.parametrize(("suffix", "frame"), [("obj", 1), ("ply", 1), ("glb", -1)])
def test_written_mesh_is_in_metres_and_in_the_frame_of_its_format(tmp_path, suffix, frame):
    path = tmp_path / f"hand.{suffix}"
    export_mesh(path, VERTICES, FACES)
    read = trimesh.load(path, process=False, force="mesh")
    np.testing.assert_allclose(read.vertices, VERTICES.numpy() * [1, frame, frame], atol=1e-7)
    np.testing.assert_array_equal(read.faces, FACES)
    assert read.volume == pytest.approx(0.1**3 / 6, rel=1e-5)  # positive: normals point outwards


def test_obj_says_what_frame_it_is_in(tmp_path):
    export_mesh(tmp_path / "hand.obj", VERTICES, FACES)
    assert (tmp_path / "hand.obj").read_text().startswith("# metres, OpenCV camera frame")


def test_the_callers_vertices_are_left_alone(tmp_path):
    before = VERTICES.clone()
    export_mesh(tmp_path / "hand.glb", VERTICES.double(), FACES)
    torch.testing.assert_close(VERTICES, before)
