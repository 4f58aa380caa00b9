"""Textured meshes, read back from the bytes of the file, and hands drawn over photos."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from handrec.hand.openhand import OpenHand
from handrec.models.s2hand_appearance import draw_hand
from handrec.render.lights import Light
from handrec.render.torch_reference import TorchRasterizer
from handrec.types import HandPrediction
from handrec.viz.mesh_export import export_textured_mesh
from handrec.viz.textured import draw_textured, face_cells, faces_at_texels, one_hand, texture_of
from tests.standins import standin_mano

MIRROR = torch.tensor([-1.0, 1, 1])
_TYPES = {5126: np.float32, 5125: np.uint32, 5123: np.uint16}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3}


def read_glb(path):
    """Return positions, normals, texture coordinates, faces and texture, by the standard."""
    raw = path.read_bytes()
    end = 20 + int.from_bytes(raw[12:16], "little")
    content, data = json.loads(raw[20:end]), raw[end + 8 :]

    def part(view):
        return data[view.get("byteOffset", 0) :][: view["byteLength"]]

    def accessor(index):
        entry = content["accessors"][index]
        values = np.frombuffer(
            part(content["bufferViews"][entry["bufferView"]]), _TYPES[entry["componentType"]]
        )
        return values.reshape(-1, _WIDTHS[entry["type"]])

    (primitive,) = content["meshes"][0]["primitives"]
    points, normals, uv = (
        accessor(primitive["attributes"][name]) for name in ("POSITION", "NORMAL", "TEXCOORD_0")
    )
    material = content["materials"][primitive["material"]]["pbrMetallicRoughness"]
    source = content["textures"][material["baseColorTexture"]["index"]]["source"]
    png = part(content["bufferViews"][content["images"][source]["bufferView"]])
    texture = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) / 255
    assert material["metallicFactor"] == 0
    return points, normals, uv, accessor(primitive["indices"]).reshape(-1, 3), texture


def look_up(texture, uv):
    """Return the bilinear look-up of glTF: (0, 0) is the upper left corner of the image."""
    height, width, _ = texture.shape
    x, y = uv[:, 0] * width - 0.5, uv[:, 1] * height - 0.5
    total = np.zeros((len(uv), 3))
    for i in (np.floor(x), np.floor(x) + 1):
        for j in (np.floor(y), np.floor(y) + 1):
            weight = (1 - abs(x - i)) * (1 - abs(y - j))
            total += weight[:, None] * texture[j.astype(int) % height, i.astype(int) % width]
    return total


def colours_of(hand, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, len(hand.faces), 3, generator=generator)


@pytest.fixture(scope="module", params=["openhand", "mano"])
def hand(request):
    return OpenHand() if request.param == "openhand" else standin_mano()


@pytest.mark.parametrize("side", ["right", "left"])
def test_every_face_of_the_file_has_its_colour(hand, tmp_path, side):
    colours, left = colours_of(hand), side == "left"
    vertices = hand.template * MIRROR if left else hand.template
    faces = hand.faces.flip(-1) if left else hand.faces
    path = tmp_path / "hand.glb"
    export_textured_mesh(path, vertices, faces, texture_of(hand, colours, left))
    points, _, uv, corners, texture = read_glb(path)
    # Corner by corner: the same places, the half turn between OpenCV and glTF taken back.
    expected = vertices[faces].numpy()
    np.testing.assert_allclose(points[corners] * [1, -1, -1], expected, atol=1e-7)
    for weights in ([1 / 3, 1 / 3, 1 / 3], [0.6, 0.2, 0.2], [0.2, 0.2, 0.6]):
        inside = np.einsum("fcu,c->fu", uv[corners], weights)
        found = look_up(texture, inside)
        # Of the smallest faces on OpenHand's own atlas neighbours show through a little.
        wrong = abs(found - colours[0].numpy()).max(1) > 2 / 255
        assert wrong.mean() <= (0.1 if len(faces) == len(OpenHand().faces) else 0)
        assert np.median(abs(found - colours[0].numpy())) < 1 / 255


@pytest.mark.parametrize("side", ["right", "left"])
def test_normals_are_smooth_over_seams_and_point_outwards(tmp_path, side):
    hand, left = OpenHand(), side == "left"
    vertices = hand.template * MIRROR if left else hand.template
    faces = hand.faces.flip(-1) if left else hand.faces
    path = tmp_path / "hand.glb"
    export_textured_mesh(path, vertices, faces, texture_of(hand, colours_of(hand), left))
    points, normals, _, corners, _ = read_glb(path)
    assert len(points) > len(vertices)  # seams are there twice
    _, place = np.unique(points, axis=0, return_inverse=True)
    for axis in range(3):
        one = np.zeros(place.max() + 1)
        one[place] = normals[:, axis]
        np.testing.assert_array_equal(one[place], normals[:, axis])
    triangles = points[corners].astype(float)
    outward = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    assert (triangles[:, 0] * outward).sum() > 0  # six times the volume
    assert ((outward * normals[corners].mean(1)).sum(1) > 0).all()


def test_an_atlas_is_written_as_it_is(tmp_path):
    hand, image = OpenHand(), torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "hand.glb"
    export_textured_mesh(path, hand.template, hand.faces, texture_of(hand, image))
    texture = read_glb(path)[-1]
    np.testing.assert_allclose(texture, image[0].permute(1, 2, 0), atol=0.5 / 255 + 1e-6)


def test_atlases_are_found_once(hand):
    assert faces_at_texels(hand, 128) is faces_at_texels(hand, 128)
    assert faces_at_texels(hand, 128).min() >= 0


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9])
def test_cells_hold_every_face(count):
    face, uv, uv_faces = face_cells(count)
    assert set(face.unique().tolist()) == set(range(count))
    assert uv_faces.shape == (count, 3)
    assert ((uv > 0) & (uv < 1)).all()


RENDERER = TorchRasterizer()


def hand_seen(hand):
    """A right hand before the camera, each face in a colour of its own, under even light."""
    vertices = hand.template[None] + torch.tensor([0.02, -0.01, 0.5])
    zeros = torch.zeros(1, 21, 3)
    light = Light(torch.ones(1, 3), torch.zeros(1, 3), torch.tensor([[0.0, 0, -1]]))
    return HandPrediction(
        vertices, zeros, zeros[..., :2], torch.eye(3).repeat(1, 16, 1, 1), torch.zeros(1, 10),
        torch.zeros(1, 3), None, torch.full((1, len(hand.faces), 3), 0.5), light,
    )  # fmt: skip


def test_hands_are_drawn_where_they_are():
    hand = OpenHand()
    seen = hand_seen(hand)

    def render(prediction, camera, background):
        return draw_hand(
            RENDERER, hand, prediction.vertices, prediction.texture, prediction.light, camera,
            background,
        )  # fmt: skip

    camera = torch.tensor([[150.0, 0, 70], [0, 140, 40], [0, 0, 1]], dtype=torch.float64)
    photo = np.random.default_rng(0).integers(0, 100, (90, 110, 3)).astype(np.uint8)
    drawn = draw_textured(photo, seen, camera, render)
    changed = (drawn != photo).any(-1)
    # Inside, the colour under even light; elsewhere the photo, to the last bit.
    pixels = seen.vertices[0].double() @ camera.T
    pixels = (pixels[:, :2] / pixels[:, 2:]).numpy()
    inside = np.zeros_like(changed)
    x, y = pixels.astype(int).T
    inside[y, x] = True
    assert changed[inside].mean() > 0.95
    assert abs(drawn[changed].astype(float).mean(1) - 127.5).mean() < 12
    assert not changed[: y.min() - 1].any()
    assert not changed[:, x.max() + 2 :].any()
    assert not changed[:, : x.min() - 1].any()
    # A left hand: what is seen is the mirrored picture, by the mirrored camera.
    flip = np.diag([-1.0, 1, 1])
    flip[0, 2] = photo.shape[1]
    left = torch.from_numpy(flip @ camera.numpy() @ np.diag([-1.0, 1, 1]))
    mirrored = np.ascontiguousarray(photo[:, ::-1])
    again = draw_textured(mirrored, seen, left, render, mirrored=True)
    np.testing.assert_array_equal(again[:, ::-1], drawn)


def test_one_hand_of_a_batch():
    hand = OpenHand()
    one = hand_seen(hand)
    batch = HandPrediction(*(torch.cat([x, 2 * x]) for x in (*one[:6], one.size, one.texture)),
                           Light(*(torch.cat([x, 2 * x]) for x in one.light)))  # fmt: skip
    second = one_hand(batch, 1)
    assert torch.equal(second.texture, 2 * one.texture)
    assert isinstance(second.light, Light)
    assert torch.equal(second.light.ambient, 2 * one.light.ambient)
    assert one_hand(one._replace(texture=None, light=None), 0).light is None
