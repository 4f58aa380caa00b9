import pytest
import torch
from torch.nn import functional as F

from handrec.data.appearance import shadow
from handrec.data.appearance.base import Stage
from handrec.data.appearance.compose import Ingredients, compose, to_linear, to_srgb
from handrec.data.appearance.meshes import Part, build
from handrec.data.appearance.props import PropOptions, sample_props
from handrec.geometry.camera import project, resize_camera
from handrec.geometry.rotations import axis_angle_to_matrix, random_rotations
from handrec.hand.joints import JOINTS
from handrec.hand.openhand import OpenHand
from handrec.hand.sampler import PoseSampler
from handrec.render.base import Attribute
from handrec.render.warp_backend import WarpRasterizer
from handrec.types import Camera, Hand

SIZE = 64
NOTHING = PropOptions(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
ALL = PropOptions(1.0, 0.8, 0.4, 0.3, 0.2, 0.6)
#: Fingers up, palm to the camera, and the back.
UPRIGHT = axis_angle_to_matrix(torch.tensor([0.0, 0.0, torch.pi / 2]))
PALM = axis_angle_to_matrix(torch.tensor([0.0, torch.pi / 2, 0.0])) @ UPRIGHT
BACK = axis_angle_to_matrix(torch.tensor([0.0, -torch.pi / 2, 0.0])) @ UPRIGHT


@pytest.fixture(scope="module")
def hand():
    return OpenHand()


def make_stage(hand, pose, distance=0.55):
    count = len(pose)
    zero = torch.zeros(count, 10)
    posed = hand.decode(pose, zero, zero[:, :3])
    shift = torch.tensor([0.0, 0.0, distance]) - posed.vertices.mean(1)
    posed = hand.decode(pose, zero, shift)
    camera = torch.tensor([[2.4, 0, 0.5], [0, 2.4, 0.5], [0, 0, 1 / SIZE]]) * SIZE
    camera = Camera(camera.expand(count, 3, 3).clone(), (SIZE, SIZE))
    return Stage(hand, posed, pose, camera, torch.arange(count), WarpRasterizer())


def random_stage(hand, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pose = PoseSampler(hand).sample(count, generator)
    pose[:, 0] = random_rotations(count, generator)
    return make_stage(hand, pose)


def make_ingredients(count, options, seed=3):
    generator = torch.Generator().manual_seed(seed)
    texture = torch.rand(count, 3, 32, 32, generator=generator) * 0.4 + 0.3
    one = torch.ones(count, 1)
    direction = torch.randn(count, 3, generator=generator) - torch.tensor([0.0, 0.5, 1.0])
    return Ingredients(
        texture=texture,
        props=sample_props(count, generator, options),
        ambient=0.3 * torch.ones(count, 3),
        sky=0.2 * torch.ones(count, 3),
        harmonics=torch.zeros(count, 9, 3),
        key_colour=torch.ones(count, 3),
        key_direction=direction,
        specular=0.1 * one,
        shininess=20 * one,
        shadow=0.9 * one,
        wall=0.05 * one,
        background=torch.rand(count, 3, SIZE, SIZE, generator=generator),
    )


def rows(record, index):
    """Return some rows of a record of tensors and records."""
    columns = [rows(x, index) if isinstance(x, tuple) else x[index] for x in record]
    return type(record)(*columns)


def render(stage, vertices, faces, values, camera, corners=None):
    attributes = {"value": Attribute(values, corners)}
    shader = lambda surface: surface["value"]  # noqa: E731
    return stage.rasterizer.render(vertices, faces, attributes, camera, shader)


def samples(image):
    """Return ``(B, C, 4, H, W)`` samples of pixels."""
    blocks = F.pixel_unshuffle(image, 2)
    return blocks.view(len(image), image.shape[1], 4, *blocks.shape[-2:])


def test_same_everything_same_picture_row_by_row(hand):
    stage, given = random_stage(hand, 10), make_ingredients(10, ALL)
    first, again = compose(stage, given), compose(stage, given)
    for before, after in zip(first, again, strict=True):
        torch.testing.assert_close(after, before, atol=0, rtol=0)
    index = torch.tensor([7])
    posed, camera = (
        Hand(*rows(stage.posed, index)),
        Camera(stage.camera.intrinsics[index], (SIZE, SIZE)),
    )
    alone = stage._replace(
        posed=posed, camera=camera, pose=stage.pose[index], noise_seed=stage.noise_seed[index]
    )
    for whole, part in zip(first, compose(alone, rows(given, index)), strict=True):
        torch.testing.assert_close(part, whole[index], atol=1e-3, rtol=0)


def test_the_mask_shows_what_no_part_hides(hand):
    """Each part rendered alone, and depths compared."""
    stage, given = random_stage(hand, 10), make_ingredients(10, ALL)
    picture, meshes = compose(stage, given), build(stage, given.props)
    camera = resize_camera(stage.camera, (2 * SIZE, 2 * SIZE))
    depths = []
    for part in Part:
        faces = meshes.faces[meshes.part == part]
        alone = render(stage, meshes.vertices, faces, meshes.shade, camera)
        depths.append(torch.where(alone.mask > 0, alone.depth, torch.inf))
    depth = torch.cat(depths, dim=1)
    assert (depth.isfinite().flatten(2).any(2).sum(0) > 1).all()  # every part is somewhere
    own = (depth[:, :1] <= depth[:, 1:].amin(1, keepdim=True)) & depth[:, :1].isfinite()
    mask = F.avg_pool2d(own.float(), 2)
    assert (mask != picture.mask).float().mean() < 2e-4  # equal depths
    hidden = depth[:, :1].isfinite() & ~own
    assert hidden.float().mean() > 0.005


def test_depth_is_that_of_the_bare_hand(hand):
    stage, given = random_stage(hand, 6), make_ingredients(6, NOTHING)
    camera = resize_camera(stage.camera, (2 * SIZE, 2 * SIZE))
    alone = render(stage, stage.posed.vertices, hand.faces, hand.template[None], camera)
    expected = samples(torch.where(alone.mask > 0, alone.depth, torch.inf)).amin(2)
    picture = compose(stage, given)
    torch.testing.assert_close(picture.mask, F.avg_pool2d(alone.mask, 2), atol=0, rtol=0)
    expected = torch.where(picture.mask > 0, expected, 0.0)
    torch.testing.assert_close(picture.depth, expected, atol=1e-5, rtol=0)
    # Behind a forearm, a thing, ... the hand is where it was, but for the end of its wrist.
    covered = compose(stage, make_ingredients(6, ALL))
    clear = (covered.mask == 1) & (picture.mask == 1)
    assert clear.float().mean() > 0.05
    same = (covered.depth - expected).abs()[clear] < 1e-5
    assert same.float().mean() > 0.98


def test_uv_leads_back_to_the_point_that_is_seen(hand):
    stage, given = random_stage(hand, 4), make_ingredients(4, NOTHING)
    picture = compose(stage, given)
    camera = resize_camera(stage.camera, (2 * SIZE, 2 * SIZE))
    alone = render(stage, stage.posed.vertices, hand.faces, hand.template[None], camera)
    depth = samples(torch.where(alone.mask > 0, alone.depth, torch.inf))
    nearest = depth.argmin(2, keepdim=True).expand(-1, 3, -1, -1, -1)
    rest = samples(alone.image).gather(2, nearest)[:, :, 0].permute(0, 2, 3, 1)
    on_hand = picture.mask[:, 0] > 0
    uv = picture.uv.permute(0, 2, 3, 1)[on_hand]
    a, b, c = hand.uv[hand.uv_faces].unbind(1)
    inverse = torch.linalg.inv(torch.stack([b - a, c - a], dim=-1))
    weights = torch.einsum("fij,pfj->pfi", inverse, uv[:, None] - a)
    weights = torch.cat([1 - weights.sum(-1, keepdim=True), weights], dim=-1)
    depth_inside, face = weights.amin(-1).max(1)
    assert depth_inside.min() > -1e-3
    picked = weights[torch.arange(len(uv)), face]
    found = (picked[..., None] * hand.template[hand.faces[face]]).sum(1)
    assert (found - rest[on_hand]).norm(dim=-1).max() < 1e-4


def test_nothing_hides_the_joints_of_a_flat_hand(hand):
    pose = PoseSampler(hand).gesture("flat").expand(2, 16, 3, 3).clone()
    pose[:, 0] = torch.stack([PALM, BACK])
    stage = make_stage(hand, pose)
    for options in (NOTHING, PropOptions(1.0, 0.0, 0.0, 0.0, 0.0, 0.0)):
        seen = compose(stage, make_ingredients(2, options)).visibility
        assert seen.min() == 1, [JOINTS[i] for i in (seen == 0).nonzero()[:, 1]]


def test_a_fist_hides_its_fingertips(hand):
    pose = PoseSampler(hand).gesture("fist").expand(2, 16, 3, 3).clone()
    pose[:, 0] = torch.stack([PALM, BACK])
    front, back = compose(make_stage(hand, pose), make_ingredients(2, NOTHING)).visibility
    seen_front, seen_back = (
        {name for name, seen in zip(JOINTS, row, strict=True) if seen} for row in (front, back)
    )
    fingers = ("index", "middle", "ring", "little")
    assert not any(f"{finger}_{end}" in seen_back for finger in fingers for end in ("tip", "dip"))
    assert {f"{finger}_mcp" for finger in fingers} | {"wrist"} <= seen_back
    assert not any(f"{finger}_mcp" in seen_front for finger in ("middle", "ring"))


def test_what_is_before_the_hand_hides_joints(hand):
    pose = PoseSampler(hand).gesture("flat")[None].clone()
    pose[:, 0] = PALM
    stage = make_stage(hand, pose)
    given = make_ingredients(1, NOTHING)
    thing = given.props._replace(
        thing=torch.tensor([2.0]),
        thing_half=torch.tensor([[0.04, 1.0, 0.04]]),
        thing_roundness=torch.ones(1, 2),
        thing_place=torch.tensor([[0.0, 0.5, 0.02]]),
    )
    picture = compose(stage, given._replace(props=thing))
    meshes = build(stage, thing)
    ball = meshes.vertices[0, meshes.faces[meshes.part == Part.THING].unique()]
    centre, edge = ball.mean(0), (ball - ball.mean(0)).norm(dim=-1).max()
    ray = F.normalize(stage.posed.joints[0], dim=-1)
    distance = torch.linalg.cross(ray, centre.expand_as(ray), dim=-1).norm(dim=-1)
    seen = picture.visibility[0]
    assert (distance < 0.9 * edge).any()
    assert (seen[distance < 0.9 * edge] == 0).all()
    assert (seen[distance > 1.05 * edge] == 1).all()


def test_joints_outside_of_the_picture_are_not_seen(hand):
    pose = PoseSampler(hand).gesture("flat")[None].clone()
    pose[:, 0] = PALM
    stage = make_stage(hand, pose)
    stage.camera.intrinsics[:, 0, 2] += 0.5 * SIZE
    outside = project(stage.posed.joints, stage.camera.intrinsics)[..., 0] > SIZE
    seen = compose(stage, make_ingredients(1, NOTHING)).visibility
    assert outside.any()
    assert not outside.all()
    torch.testing.assert_close(seen, (~outside).float())


def square(half, depth):
    corners = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]]) * half
    return torch.cat([corners, torch.full((4, 1), depth)], dim=1)


@pytest.mark.parametrize("direction", [(0.0, 0.0, -1.0), (0.6, 0.0, -1.0), (-0.4, 0.5, -2.0)])
def test_the_shadow_of_a_plate_lies_where_geometry_says(direction):
    """A point of the plane is dark if the way to the light leads through the plate."""
    plate, plane = square(0.04, 0.45), square(0.5, 0.5)
    vertices = torch.cat([plate, plane])[None]
    faces = torch.tensor([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]])
    light = torch.tensor([direction])
    focus = torch.cat([square(0.12, 0.45), square(0.12, 0.5)])[None]
    shadows = shadow.cast(WarpRasterizer(), vertices, faces, focus, light, 128)
    line = torch.linspace(-0.1, 0.1, 81)
    points = torch.cartesian_prod(line, line, torch.tensor([0.5]))
    places = shadow.place(shadows, points[None])
    share = shadow.lit(shadows, places, torch.zeros(1, 1, dtype=torch.long))[0]
    crossing = points + light * (0.05 / -light[0, 2])  # at the plate's depth
    inside = 0.04 - crossing[:, :2].abs().amax(1)
    texel = 2 * 1.35 * (0.12**2 * 2 + 0.025**2) ** 0.5 / 128
    assert (share[inside > 3 * texel] < 0.01).all()
    assert (share[inside < -3 * texel] > 0.99).all()
    soft = share[inside.abs() < texel]
    assert 0.3 < soft.mean() < 0.7
    on_plate = torch.cartesian_prod(line[20:60] * 0.6, line[20:60] * 0.6, torch.tensor([0.45]))
    places = shadow.place(shadows, on_plate[None])
    assert shadow.lit(shadows, places, torch.zeros(1, 1, dtype=torch.long)).min() > 0.99


def test_light_adds_up(hand):
    """Half of all lights is half of the light that is reflected, and no light is black."""
    stage, given = random_stage(hand, 3), make_ingredients(3, ALL)
    given = given._replace(background=torch.zeros_like(given.background))
    half = given._replace(
        ambient=given.ambient / 2, sky=given.sky / 2, key_colour=given.key_colour / 2
    )
    whole, dimmed = (decode(compose(stage, x).image) for x in (given, half))
    unsaturated = whole < 0.95
    torch.testing.assert_close(whole[unsaturated], 2 * dimmed[unsaturated], atol=2e-4, rtol=0)
    dark = given._replace(
        ambient=0 * given.ambient, sky=0 * given.sky, key_colour=0 * given.ambient
    )
    assert compose(stage, dark).image.max() == 0


def test_shadows_only_darken(hand):
    stage, given = random_stage(hand, 4), make_ingredients(4, ALL)
    shaded = compose(stage, given).image
    lit = compose(stage, given._replace(shadow=torch.zeros(4, 1))).image
    assert (shaded - lit).max() < 1e-5
    assert ((lit - shaded).amax(1) > 0.05).float().mean() > 0.02


def test_the_background_is_seen_where_nothing_is(hand):
    stage, given = random_stage(hand, 2), make_ingredients(2, NOTHING)
    picture = compose(stage, given._replace(shadow=torch.zeros(2, 1)))
    clear = (picture.mask == 0).expand_as(picture.image)
    torch.testing.assert_close(picture.image[clear], given.background[clear], atol=1e-5, rtol=0)


def decode(srgb):
    """Return linear light by the standard's formula (IEC 61966-2-1)."""
    return torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def test_gamma_follows_the_standard():
    ramp = torch.linspace(0, 1, 256)
    torch.testing.assert_close(decode(to_srgb(ramp)), ramp, atol=1e-5, rtol=0)
    torch.testing.assert_close(to_linear(ramp), decode(ramp), atol=0.003, rtol=0)
