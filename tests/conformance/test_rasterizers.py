"""What every rasterizer promises, against naive float64 arithmetic written here."""

import numpy as np
import pytest
import torch
import trimesh

from handrec.geometry.camera import project
from handrec.render.base import Attribute
from handrec.render.torch_reference import TorchRasterizer
from handrec.types import Camera


def look(batch=1, focal=60.0, size=(48, 64)):
    height, width = size
    intrinsics = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    return Camera(intrinsics.expand(batch, 3, 3), size)


def sphere(subdivisions=2, centre=(0.0, 0.0, 3.0), radius=1.0):
    mesh = trimesh.creation.icosphere(subdivisions)
    turn = trimesh.transformations.rotation_matrix(0.7, (1, 2, 3))[:3, :3]
    vertices = torch.tensor(mesh.vertices @ turn.T * radius, dtype=torch.float32)
    return vertices[None] + torch.tensor(centre), torch.tensor(mesh.faces)


def soup(faces=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    vertices = torch.rand(2, 3 * faces, 3, generator=generator) * 4 - 2
    vertices[..., 2] = vertices[..., 2] / 2 + 2.2
    return vertices, torch.arange(3 * faces).view(-1, 3)


def quad(left, top, right, bottom, depth):
    x, y = [left, right, right, left], [top, top, bottom, bottom]
    corners = torch.tensor([[x, y, [depth] * 4]]).mT
    return corners, torch.tensor([[0, 2, 1], [0, 3, 2]])


def on_screen(vertices, camera):
    pixels = project(vertices, camera.intrinsics.to(vertices))
    return torch.cat([pixels, vertices[..., 2:]], dim=-1)


def draw(rasterizer, vertices, faces, camera, values=None, **options):
    """Draw the values of the vertices; their positions if there are none."""
    values = vertices if values is None else values
    attributes = {"values": Attribute(values)}
    camera = Camera(camera.intrinsics.to(vertices.device), camera.image_size)
    shader = lambda maps: maps["values"]  # noqa: E731
    return rasterizer.render(vertices, faces, attributes, camera, shader, **options)


def brute_force(screen, faces, size, near):
    """Return face ids, and how far (px) each pixel centre is from changing face, in float64."""
    height, width = size
    y, x = np.mgrid[:height, :width] + 0.5
    best, ids = np.full(size, np.inf), np.full(size, -1)
    slack = np.full(size, np.inf)
    for i, corners in enumerate(screen.double().numpy()[faces.numpy()]):
        (ax, ay, az), (bx, by, bz), (cx, cy, cz) = corners
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if min(az, bz, cz) < near or area == 0:
            continue
        ends = ((bx, by, cx, cy), (cx, cy, ax, ay), (ax, ay, bx, by))
        shares, margin = [], np.full(size, np.inf)
        for px, py, qx, qy in ends:
            edge = ((qx - px) * (y - py) - (qy - py) * (x - px)) * np.sign(area)
            margin = np.minimum(margin, edge / np.hypot(qx - px, qy - py))
            shares.append(edge / abs(area))
        depth = 1 / (shares[0] / az + shares[1] / bz + shares[2] / cz)
        slack = np.minimum(slack, np.abs(margin))
        nearer = (margin >= 0) & (depth < best - 1e-9)
        best, ids = np.where(nearer, depth, best), np.where(nearer, i, ids)
    return ids, slack


@pytest.mark.parametrize("scene", [sphere(), soup(), soup(seed=1)], ids=["sphere", "soup", "soup1"])
def test_face_ids_are_the_brute_force_ones(rasterizer, device, scene):
    (vertices, faces), camera = scene, look(len(scene[0]))
    screen = on_screen(vertices, camera)
    actual = rasterizer.cover(screen.to(device), faces.to(device), camera.image_size)
    for image, expected in zip(actual.cpu().numpy(), screen, strict=True):
        ids, slack = brute_force(expected, faces, camera.image_size, rasterizer.near)
        differs = image != ids
        assert (ids >= 0).mean() > 0.2
        assert not (differs & (slack > 1e-4)).any()
        assert differs.mean() < 0.002


def test_first_pixel_and_row_are_at_the_top_left(rasterizer, device):
    # A triangle of half a pixel around the centre of column 5, row 2.
    screen = torch.tensor([[[5.3, 2.3, 1.0], [5.8, 2.4, 1.0], [5.4, 2.8, 1.0]]], device=device)
    ids = rasterizer.cover(screen, torch.tensor([[0, 1, 2]], device=device), (8, 10))
    assert ids.nonzero().tolist() != []
    assert (ids >= 0).nonzero().tolist() == [[0, 2, 5]]


def test_right_is_right_and_down_is_down(rasterizer):
    vertices, faces = sphere(centre=(0.5, 0.8, 4.0), radius=0.2)
    mask = draw(rasterizer, vertices, faces, look()).mask[0, 0]
    row, column = mask.nonzero().double().add(0.5).mean(0).tolist()
    assert column == pytest.approx(32 + 60 * 0.5 / 4, abs=0.5)
    assert row == pytest.approx(24 + 60 * 0.8 / 4, abs=0.5)


def test_a_shared_edge_leaves_no_hole_and_the_lower_face_wins(rasterizer, device):
    # The edges of the squares run exactly through pixel centres.
    corners = torch.tensor([[i + 0.5, j + 0.5, 1.0] for j in range(6) for i in range(6)])
    faces = []
    for j in range(5):
        for i in range(5):
            a, b, c, d = 6 * j + i, 6 * j + i + 1, 6 * j + i + 7, 6 * j + i + 6
            faces += [[a, b, c], [a, c, d]]
    faces = torch.tensor(faces, device=device)
    ids = rasterizer.cover(corners[None].to(device), faces, (6, 6)).cpu()
    for j in range(6):
        for i in range(6):
            touching = [f for f, face in enumerate(faces.tolist()) if 6 * j + i in face]
            assert ids[0, j, i] == min(touching)


def test_of_equal_faces_the_lower_index_is_seen(rasterizer):
    vertices, faces = sphere()
    ids = rasterizer.cover(on_screen(vertices, look()), torch.cat([faces, faces]), (48, 64))
    assert torch.equal(ids, rasterizer.cover(on_screen(vertices, look()), faces, (48, 64)))


def test_interpolates_along_the_rays_of_the_pixels(rasterizer, device):
    # One long, tilted triangle: screen-linear interpolation would be far off.
    vertices = torch.tensor([[[-1.0, -0.6, 1.2], [2.5, -0.2, 4.0], [-0.3, 1.5, 2.5]]])
    camera = look()
    drawn = draw(rasterizer, vertices.to(device), torch.tensor([[0, 1, 2]], device=device), camera)
    a, b, c = vertices[0].double().numpy()
    normal = np.cross(b - a, c - a)
    y, x = np.mgrid[:48, :64] + 0.5
    rays = np.stack([(x - 32) / 60, (y - 24) / 60, np.ones_like(x)])
    hits = rays * (normal @ a) / np.einsum("c,chw->hw", normal, rays)
    seen = drawn.mask[0, 0].cpu().numpy() == 1
    assert seen.sum() > 500
    np.testing.assert_allclose(drawn.image[0].cpu().numpy()[:, seen], hits[:, seen], atol=1e-5)
    np.testing.assert_allclose(drawn.depth[0, 0].cpu().numpy()[seen], hits[2][seen], atol=1e-5)
    assert drawn.depth[0, 0].cpu().numpy()[~seen].max() == 0


def test_weights_sum_to_one(rasterizer):
    vertices, faces = soup()
    drawn = draw(rasterizer, vertices, faces, look(2), torch.ones_like(vertices[:1]))
    torch.testing.assert_close(drawn.image, drawn.mask.expand(-1, 3, -1, -1))
    assert torch.equal(drawn.mask[:, 0] == 1, drawn.face_index >= 0)


@pytest.mark.parametrize("depth", [-3.0, 0.0, 0.009])
def test_nothing_nearer_than_near_is_drawn(rasterizer, depth):
    vertices, faces = quad(-5.0, -5.0, 5.0, 5.0, 2.0)
    vertices[0, 1, 2] = depth  # of the first triangle only
    ids = draw(rasterizer, vertices, faces, look()).face_index
    assert set(ids.unique().tolist()) == {-1, 1}
    vertices[..., 2] = depth
    assert draw(rasterizer, vertices, faces, look()).face_index.max() == -1


def test_near_is_configurable(rasterizer):
    vertices, faces = quad(-5.0, -5.0, 5.0, 5.0, 2.0)
    screen = on_screen(vertices, look())
    assert type(rasterizer)(near=1.9).cover(screen, faces, (8, 8)).min() >= 0
    assert type(rasterizer)(near=2.1).cover(screen, faces, (8, 8)).max() == -1


def odd_scenes():
    whole, faces = quad(-0.5, -0.5, 0.5, 0.5, 2.0)
    point, line, sliver = whole.clone(), whole.clone(), whole.clone()
    point[:] = point[:, :1]
    line[..., 0] = 0.01
    sliver[..., 0] *= 1e-6
    behind = whole * torch.tensor([1.0, 1.0, -1.0])
    aside = whole + torch.tensor([100.0, 0.0, 0.0])
    crossing = whole * torch.tensor([1.0, 1.0, 0.0]) + torch.linspace(-1, 1, 4)[:, None]
    at_eye = whole * torch.tensor([1.0, 1.0, 0.0])
    names = "point line sliver behind aside crossing at_eye"
    scenes = (point, line, sliver, behind, aside, crossing, at_eye)
    return [pytest.param(s, faces, id=n) for s, n in zip(scenes, names.split(), strict=True)]


@pytest.mark.parametrize(("vertices", "faces"), odd_scenes())
def test_odd_faces_give_finite_images_and_gradients(rasterizer, device, vertices, faces):
    vertices = vertices.to(device).clone().requires_grad_()
    drawn = draw(rasterizer, vertices, faces.to(device), look())
    (drawn.image.square().sum() + drawn.mask.sum() + drawn.depth.sum()).backward()
    assert drawn.image.isfinite().all()
    assert drawn.depth.isfinite().all()
    assert vertices.grad.isfinite().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_a_broken_vertex_spoils_only_its_faces(rasterizer, bad):
    screen = torch.tensor([[[1.0, 1, 1], [6, 1, 1], [1, 6, 1], [bad, 2, 1], [2, 8, 1], [8, 2, 1]]])
    faces = torch.tensor([[0, 1, 2], [3, 4, 5]])
    ids = rasterizer.cover(screen, faces, (8, 8))
    alone = rasterizer.cover(screen[:, :3], faces[:1], (8, 8))
    assert torch.equal(ids[alone >= 0], alone[alone >= 0])


def test_an_empty_view_gives_zeros_and_zero_gradients(rasterizer, device):
    vertices = sphere(centre=(0.0, 0.0, -3.0))[0].to(device).requires_grad_()
    values = torch.rand(1, vertices.shape[1], 2, device=device, requires_grad=True)
    drawn = draw(rasterizer, vertices, sphere()[1].to(device), look(), values)
    for picture in (drawn.image, drawn.mask, drawn.depth):
        assert not picture.any()
    (drawn.image.sum() + drawn.mask.sum() + drawn.depth.sum()).backward()
    assert not vertices.grad.any()
    assert not values.grad.any()
    assert (drawn.face_index == -1).all()


def test_forward_is_deterministic(rasterizer, device):
    vertices, faces = (x.to(device) for x in soup(200))
    first, second = (draw(rasterizer, vertices, faces, look(2)) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


def test_background_shows_where_no_face_does_and_gets_its_gradient(rasterizer):
    vertices, faces = sphere()
    background = torch.rand(1, 3, 48, 64, requires_grad=True)
    drawn = draw(rasterizer, vertices, faces, look(), background=background)
    assert torch.equal(drawn.image * (1 - drawn.mask), background * (1 - drawn.mask))
    drawn.image.sum().backward()
    assert torch.equal(background.grad, (1 - drawn.mask).expand_as(background))


def test_attributes_of_faces_and_of_corners(rasterizer):
    vertices, faces = sphere()
    each_face = torch.arange(len(faces))[:, None].expand(-1, 3)
    number = Attribute(torch.arange(len(faces)).float()[None, :, None], each_face)
    # Every face has corners of its own, in another order.
    split = torch.randperm(3 * len(faces), generator=torch.Generator().manual_seed(0)).view(-1, 3)
    values = torch.zeros(3 * len(faces), 3)
    values[split] = vertices[0, faces]
    shader = lambda maps: torch.cat([maps["number"], maps["corner"], maps["vertex"]], -1)  # noqa: E731
    attributes = {
        "number": number,
        "corner": Attribute(values[None], split),
        "vertex": Attribute(vertices),
    }
    drawn = rasterizer.render(vertices, faces, attributes, look(), shader)
    seen = drawn.face_index >= 0
    number, corner, vertex = drawn.image.split([1, 3, 3], dim=1)
    torch.testing.assert_close(number[:, 0][seen].round().int(), drawn.face_index[seen].int())
    torch.testing.assert_close(corner, vertex)


def naive_interpolation(vertices, faces, face_index, values, intrinsics):
    """Solve each pixel's ray for the weights of its face's corners, in camera space."""
    maps = []
    for image, ids in enumerate(face_index):
        y, x = (ids >= 0).nonzero(as_tuple=True)
        pixels = torch.stack([x + 0.5, y + 0.5, torch.ones_like(x)]).double()
        rays = torch.linalg.solve(intrinsics[image].double(), pixels).T
        corners = faces[ids[y, x].long()]
        weights = torch.linalg.solve(vertices[image][corners].mT, rays)
        weights = weights / weights.sum(-1, keepdim=True)
        source = values[min(image, len(values) - 1)]
        at_pixels = (weights[..., None] * source[corners]).sum(1)
        maps.append(at_pixels.new_zeros(*ids.shape, values.shape[-1]).index_put((y, x), at_pixels))
    return torch.stack(maps)


def thin(vertices, faces, generator):
    """Draw each face in to a part of its width, down to a hundredth."""
    corners = vertices[:, faces]
    share = 10 ** (-2 * torch.rand(1, len(faces), 1, generator=generator))
    line = (corners[..., 0, :] + corners[..., 1, :]) / 2
    corners[..., 2, :] = line + share * (corners[..., 2, :] - line)
    return corners.flatten(1, 2)


def kept(screen, faces):
    """Return the share of each face's gradient to keep if it is less than a pixel high."""
    corners = screen.double()[:, faces, :2]
    lengths = (corners - corners.roll(1, 2)).norm(dim=-1)
    a, b, c = lengths.sort(-1, descending=True).values.unbind(-1)
    # Heron's formula, as it is stable for thin triangles
    area = ((a + (b + c)) * (c - (a - b)) * (c + (a - b)) * (a + (b - c))).clamp(min=0).sqrt() / 4
    height = 2 * area / a
    return torch.where((height < 1) & (height < 0.4 * a), height / (0.4 * a).clamp(max=1), 1)


@pytest.mark.parametrize("width", ["wide", "thin"])
@pytest.mark.parametrize("shared", [True, False])
def test_gradients_of_interpolation_are_those_of_naive_float64(rasterizer, device, shared, width):
    vertices, faces = soup(40 if width == "wide" else 400)
    camera, generator = look(2), torch.Generator().manual_seed(0)
    if width == "thin":
        vertices = thin(vertices, faces, generator)
    values = torch.rand(1 if shared else 2, vertices.shape[1], 4, generator=generator)
    cotangent = torch.rand(2, 48, 64, 4, generator=generator)
    screen = on_screen(vertices, camera)
    face_index = rasterizer.cover(screen.to(device), faces.to(device), (48, 64))

    exact = [x.double().requires_grad_() for x in (vertices, values)]
    expected = naive_interpolation(exact[0], faces, face_index.cpu(), exact[1], camera.intrinsics)
    expected_grads = list(torch.autograd.grad((expected * cotangent).sum(), exact))
    share = kept(screen, faces)
    seen = torch.stack([torch.isin(torch.arange(len(faces)), ids) for ids in face_index.cpu()])
    assert ((share[seen] < 0.7).sum() >= 5) == (width == "thin")
    expected_grads[0] = expected_grads[0] * share.repeat_interleave(3, 1)[..., None]

    inputs = [x.to(device).requires_grad_() for x in (vertices, values)]
    (actual,) = rasterizer.interpolate(
        on_screen(inputs[0], camera), faces.to(device), face_index, [Attribute(inputs[1])]
    )
    grads = torch.autograd.grad((actual * cotangent.to(device)).sum(), inputs)
    torch.testing.assert_close(
        actual.cpu().double(), expected, rtol=0, atol=1e-5 if width == "wide" else 1e-4
    )
    for grad, exact_grad in zip(grads, expected_grads, strict=True):
        error = (grad.cpu() - exact_grad).norm() / exact_grad.norm()
        assert error < 1e-4


def waves(size):
    """A smooth weight of every pixel, as a function of the position in the image."""
    height, width = size
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    u, v = (x + 0.5) / width, (y + 0.5) / height
    return 1 + 0.7 * torch.sin(5 * u + 1) + 0.6 * torch.cos(4 * v - 7 * u)


def zoomed(camera, factor):
    height, width = camera.image_size
    scale = torch.tensor([factor, factor, 1.0])
    return Camera(camera.intrinsics * scale[:, None], (height * factor, width * factor))


MOTIONS = {
    "right": lambda v: torch.tensor([1.0, 0, 0]).expand_as(v),
    "down": lambda v: torch.tensor([0, 1.0, 0]).expand_as(v),
    "away": lambda v: torch.tensor([0, 0, 1.0]).expand_as(v),
    "grow": lambda v: v - v.mean(1, keepdim=True),
    "stretch": lambda v: (v - v.mean(1, keepdim=True)) * torch.tensor([1.0, -0.3, 0]),
}


@pytest.mark.parametrize("motion", MOTIONS)
def test_silhouettes_move_as_finite_differences_say(rasterizer, motion):
    vertices, faces = sphere(3)
    camera, direction = look(focal=120.0, size=(96, 128)), MOTIONS[motion](vertices)

    def area(moved, camera):
        mask = draw(rasterizer, moved, faces, camera).mask
        return (mask * waves(camera.image_size)).sum()

    moving = vertices.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(area(moving, camera), moving)
    fine, step = zoomed(camera, 4), 0.03
    with torch.no_grad():
        ahead, behind = (area(vertices + s * direction, fine) for s in (step, -step))
    expected = (ahead - behind) / (2 * step) / 4**2
    assert (gradient * direction).sum() == pytest.approx(expected.item(), rel=0.1)


def wall(left, top, right, bottom, depth, columns, rows):
    """A quad of ``2 * columns * rows`` faces."""
    x, y = torch.linspace(left, right, columns + 1), torch.linspace(top, bottom, rows + 1)
    grid = torch.cartesian_prod(y, x).flip(1)
    first = torch.arange(rows)[:, None] * (columns + 1) + torch.arange(columns)
    a, b, c, d = (first.flatten() + i for i in (0, 1, columns + 2, columns + 1))
    faces = torch.cat([torch.stack([a, c, b], 1), torch.stack([a, d, c], 1)])
    return torch.cat([grid, torch.full_like(grid[:, :1], depth)], 1)[None], faces


@pytest.mark.parametrize("cells", [1, 100], ids=["coarse", "fine"])
@pytest.mark.parametrize("motion", MOTIONS)
def test_an_occlusion_edge_moves_the_occluder_only(rasterizer, motion, cells):
    # Fine faces are as small as a pixel: those on the two sides of an edge do not overlap.
    near, faces = sphere(2 if cells == 1 else 4, centre=(0.1, -0.05, 2.0), radius=0.6)
    far, far_faces = wall(-2.4, -1.8, 2.4, 1.8, 4.0, cells, cells)
    count, camera = near.shape[1], look(focal=120.0, size=(96, 128))
    colours = torch.tensor([[[1.0, 0.2]] * count + [[0.3, 0.9]] * far.shape[1]])
    everything = torch.cat([faces, far_faces + count])
    direction = torch.cat([MOTIONS[motion](near), torch.zeros_like(far)], dim=1)

    def loss(vertices, camera):
        drawn = draw(rasterizer, vertices, everything, camera, colours)
        assert drawn.mask.all()
        return (drawn.image[:, 0] * waves(camera.image_size)).sum()

    vertices = torch.cat([near, far], dim=1).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(vertices, camera), vertices)
    fine, step = zoomed(camera, 4), 0.02
    with torch.no_grad():
        ahead, behind = (loss(vertices + s * direction, fine) for s in (step, -step))
    expected = (ahead - behind) / (2 * step) / 4**2
    assert (gradient * direction).sum() == pytest.approx(expected.item(), rel=0.1)
    assert gradient[:, count:].abs().max() < 1e-3 * gradient[:, :count].abs().max()


def test_faces_of_one_surface_have_no_visibility_gradient_between_them(rasterizer):
    vertices, faces = quad(-4.0, -4.0, 4.0, 4.0, 2.0)
    vertices = vertices.requires_grad_()
    colours = Attribute(torch.tensor([[[1.0], [0.0]]]), torch.tensor([[0, 0, 0], [1, 1, 1]]))
    drawn = rasterizer.render(
        vertices, faces, {"colour": colours}, look(), lambda maps: maps["colour"]
    )
    assert set(drawn.image.round(decimals=3).unique().tolist()) == {0.0, 1.0}
    (gradient,) = torch.autograd.grad(drawn.image.sum(), vertices)
    assert gradient.abs().max() < 1e-3  # rounding; a moving edge would have some 700


@pytest.mark.parametrize("tilt", [0.0, 0.6])
def test_nor_have_faces_smaller_than_a_pixel(rasterizer, tilt):
    vertices, faces = wall(-1.3, -1.0, 1.3, 1.0, 3.0, 100, 100)  # some ten per pixel
    turn = torch.tensor(
        [[np.cos(tilt), 0, -np.sin(tilt)], [0, 1, 0], [np.sin(tilt), 0, np.cos(tilt)]]
    )
    middle = torch.tensor([0.0, 0.0, 3.0])
    screen = on_screen((vertices - middle) @ turn.float().T + middle, look()).requires_grad_()
    face_index = rasterizer.cover(screen.detach(), faces, (48, 64))
    inside = torch.nn.functional.max_pool2d(-(face_index >= 0).float(), 3, 1, 1) == -1
    assert inside.sum() > 500
    # Noise within, black at its border and beyond: there is no contrast at the silhouette.
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 1, 48, 64, generator=generator) * inside[:, None]
    flowing, _ = rasterizer.visibility(image, inside[:, None].float(), screen, faces, face_index)
    (gradient,) = torch.autograd.grad(flowing.square().sum(), screen)
    assert not gradient.any()


def test_a_surface_occludes_itself_by_what_turns_away(rasterizer):
    mesh = trimesh.creation.torus(0.7, 0.3, major_sections=120, minor_sections=60)
    turn = trimesh.transformations.rotation_matrix(1.2, (1, 0.3, 0))[:3, :3]
    shape = torch.tensor(mesh.vertices @ turn.T, dtype=torch.float32)[None]
    faces, away = torch.tensor(mesh.faces), torch.tensor([0.0, 0.0, 3.0])
    colours = shape[..., 2:] - shape[..., :1] + 1
    camera = look(focal=220.0, size=(192, 256))

    def loss(moved, camera):
        behind = torch.full((1, 1, *camera.image_size), 1.2)
        drawn = draw(rasterizer, moved + away, faces, camera, colours, background=behind)
        return (drawn.image[:, 0] * waves(camera.image_size)).sum()

    moving = shape.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(moving, camera), moving)
    fine, step, actual, expected = zoomed(camera, 3), 0.02, [], []
    for motion in MOTIONS.values():
        direction = motion(shape) + 0.3 * shape.roll(1, -1)
        with torch.no_grad():
            ahead, behind = (loss(shape + s * direction, fine).item() for s in (step, -step))
        actual.append((gradient * direction).sum().item())
        expected.append((ahead - behind) / (2 * step) / 3**2)
    actual, expected = np.array(actual), np.array(expected)
    assert np.linalg.norm(actual - expected) < 0.15 * np.linalg.norm(expected)


@pytest.mark.parametrize("near_first", [True, False])
def test_of_two_surfaces_that_end_the_nearer_one_has_the_edge(rasterizer, near_first):
    # The far one begins below the near one, a third of a pixel before its end.
    near, faces = quad(-1.0, -1.0, 0.05, 1.0, 2.0)
    far, _ = quad(0.04 * 1.5, -1.5, 1.5, 1.5, 3.0)
    ordered = [near, far] if near_first else [far, near]
    vertices = torch.cat(ordered, 1).requires_grad_()
    colours = torch.zeros_like(vertices) + (torch.arange(8) < 4)[None, :, None]
    drawn = draw(rasterizer, vertices, torch.cat([faces, faces + 4]), look(), colours)
    assert drawn.mask[0, 0, 24, 5:60].all()
    (gradient,) = torch.autograd.grad(drawn.image[0, 0, 20:28, 20:40].sum(), vertices)
    of_near, of_far = gradient.split(4, dim=1)[:: 1 if near_first else -1]
    assert of_near[..., 0].sum().abs() > 100
    assert of_far[..., 0].sum().abs() < 1e-3


def test_what_is_collapsed_to_a_point_changes_nothing(rasterizer):
    vertices, faces = sphere()
    gradients = []
    for collapsed in (vertices[:, :0], vertices[:, :1].expand_as(vertices), 0 * vertices):
        moving = vertices.clone().requires_grad_()
        everything = torch.cat([moving, collapsed], dim=1)
        more = faces + len(vertices[0]) if collapsed.shape[1] else faces[:0]
        drawn = draw(rasterizer, everything, torch.cat([faces, more]), look())
        loss = (drawn.image * waves((48, 64))).square().sum()
        gradients.append(torch.autograd.grad(loss, moving)[0])
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-4, atol=1e-3)


def test_visibility_leaves_the_image_as_it_is(rasterizer):
    vertices, faces = sphere()
    screen = on_screen(vertices, look())
    face_index = rasterizer.cover(screen, faces, (48, 64))
    layers = torch.rand(1, 4, 48, 64), torch.rand(1, 1, 48, 64)
    flowing = rasterizer.visibility(*layers, screen, faces, face_index)
    assert all(map(torch.equal, flowing, layers))


@pytest.mark.parametrize("seed", range(3))
def test_every_backend_draws_what_the_reference_draws(rasterizer, device, seed):
    vertices, faces = (x.to(device) for x in soup(300, seed))
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(1, vertices.shape[1], 3, generator=generator).to(device)
    weight = torch.rand(2, 3, 48, 64, generator=generator).to(device)
    pictures, gradients = [], []
    for backend in (rasterizer, TorchRasterizer()):
        inputs = [x.clone().requires_grad_() for x in (vertices, values)]
        drawn = draw(backend, inputs[0], faces, look(2), inputs[1])
        loss = ((drawn.image + drawn.mask + drawn.depth) * weight).sum()
        pictures.append(drawn)
        gradients.append(torch.autograd.grad(loss, inputs))
    for one, other in zip(*pictures, strict=True):
        torch.testing.assert_close(one.float(), other.float(), rtol=0, atol=1e-5)
    assert torch.equal(pictures[0].face_index.int(), pictures[1].face_index.int())
    for one, other in zip(*gradients, strict=True):
        assert (one - other).norm() < 1e-4 * other.norm()


def test_autocast_and_half_inputs_stay_float32(rasterizer):
    vertices, faces = sphere()
    values = torch.rand(1, vertices.shape[1], 3)
    plain = draw(rasterizer, vertices, faces, look(), values)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = draw(rasterizer, vertices, faces, look(), values)
        half = draw(rasterizer, vertices.bfloat16(), faces, look(), values.bfloat16())
    assert torch.equal(cast.image, plain.image)
    assert half.image.dtype == half.depth.dtype == half.mask.dtype == torch.float32


def test_no_gradient_is_kept_without_need(rasterizer):
    vertices, faces = sphere()
    with torch.no_grad():
        assert draw(rasterizer, vertices.requires_grad_(), faces, look()).image.grad_fn is None
    assert draw(rasterizer, vertices.detach(), faces, look()).mask.grad_fn is None


def test_a_hand_pulled_by_its_silhouette_finds_its_place(rasterizer):
    vertices, faces = sphere(2)
    camera = look()
    target = draw(rasterizer, vertices, faces, camera).mask
    shift = torch.tensor([0.25, -0.2, 0.4], requires_grad=True)
    optimizer = torch.optim.Adam([shift], lr=0.03)
    for _ in range(60):
        mask = draw(rasterizer, vertices + shift, faces, camera).mask
        optimizer.zero_grad()
        (mask - target).square().mean().backward()
        optimizer.step()
    assert shift.detach().abs().max() < 0.05
