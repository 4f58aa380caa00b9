from functools import partial

import pytest
import torch
from torch.nn import functional as F

from handrec.data.appearance.base import Stage
from handrec.data.appearance.compose import Ingredients, compose, to_linear
from handrec.data.appearance.meshes import Part, build
from handrec.data.appearance.props import PropOptions, sample_props
from handrec.geometry.camera import project, resize_camera
from handrec.geometry.rotations import axis_angle_to_matrix, random_rotations
from handrec.hand.joints import JOINTS
from handrec.hand.openhand import OpenHand
from handrec.hand.sampler import PoseSampler
from handrec.render.atlas import bake_atlas
from handrec.render.base import Attribute
from handrec.render.textures import sample_texture
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
    texture = torch.randint(77, 179, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    one = torch.ones(count, 1)
    direction = torch.randn(count, 3, generator=generator) - torch.tensor([0.0, 0.5, 1.0])
    return Ingredients(
        texture=texture,
        tone=torch.ones(count, 3),
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


def candidates(stage, faces, values):
    """Return depth ``(B, 5, H, W)`` and values of a bare hand: of the samples and the middle."""
    found = []
    for scale in (2, 1):
        camera = resize_camera(stage.camera, (scale * SIZE, scale * SIZE))
        alone = render(stage, stage.posed.vertices, faces, values, camera)
        depth = torch.where(alone.mask > 0, alone.depth, torch.inf)
        found.append((alone.mask, depth, alone.image))
    fine, coarse = found
    depth = torch.cat([F.pixel_unshuffle(fine[1], 2), coarse[1]], dim=1)
    values = torch.cat([samples(fine[2]), coarse[2][:, :, None]], dim=2)
    return F.avg_pool2d(fine[0], 2), depth, values


def test_depth_is_that_of_the_bare_hand(hand):
    stage, given = random_stage(hand, 6), make_ingredients(6, NOTHING)
    mask, depth, _ = candidates(stage, hand.faces, hand.template[None])
    picture = compose(stage, given)
    torch.testing.assert_close(picture.mask, mask, atol=0, rtol=0)
    nearest = torch.where(mask > 0, depth[:, :4].amin(1, keepdim=True), 0.0)
    outline, inside = mask < 1, mask == 1
    torch.testing.assert_close(picture.depth[outline], nearest[outline], atol=1e-5, rtol=0)
    off = (picture.depth - depth).abs().amin(1, keepdim=True)[inside]
    assert (off > 1e-5).float().mean() < 0.05  # the middle is on none of the samples' faces
    assert off.quantile(0.999) < 1e-3
    # Behind a forearm, a thing, ... the hand is where it was, but for the end of its wrist.
    covered = compose(stage, make_ingredients(6, ALL))
    clear = (covered.mask == 1) & inside
    assert clear.float().mean() > 0.05
    same = (covered.depth - picture.depth).abs()[clear] < 1e-5
    assert same.float().mean() > 0.98


def test_uv_leads_back_to_the_point_that_is_seen(hand):
    stage, given = random_stage(hand, 4), make_ingredients(4, NOTHING)
    picture = compose(stage, given)
    _, _, rest = candidates(stage, hand.faces, hand.template[None])
    rest = rest.permute(0, 3, 4, 2, 1)
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
    off = (found[:, None] - rest[on_hand]).norm(dim=-1).amin(1)
    assert (off > 1e-4).float().mean() < 0.05
    assert off.quantile(0.999) < 1e-3


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


def test_light_is_that_of_every_sample_averaged(hand):
    """Shaded in torch at each of the samples, without shadows: the same but within plain skin."""
    stage, given = random_stage(hand, 8), make_ingredients(8, ALL)
    places = bake_atlas(hand, 128).position  # continuous over the seams of the atlas
    smooth = (places - places.amin((1, 2), True)) / (
        places.amax((1, 2)) - places.amin((1, 2))
    ).max()
    texture = (255 * smooth).byte().expand(8, -1, -1, -1).contiguous()
    black, off = torch.zeros_like(given.background), torch.zeros(8, 1)
    given = given._replace(texture=texture, shadow=off, background=black)
    picture, meshes = compose(stage, given), build(stage, given.props)
    camera = resize_camera(stage.camera, (2 * SIZE, 2 * SIZE))
    each_face = torch.arange(len(meshes.faces))[:, None].expand(-1, 3).contiguous()
    attributes = {
        "normal": Attribute(meshes.normals),
        "shade": Attribute(meshes.shade),
        "uv": Attribute(meshes.uv, meshes.uv_faces),
        "part": Attribute(meshes.part[None, :, None].float(), each_face),
    }
    shader = partial(shaded, given, F.normalize(-stage.posed.vertices.mean(1), dim=-1))
    drawn = stage.rasterizer.render(meshes.vertices, meshes.faces, attributes, camera, shader)
    expected = encode(F.avg_pool2d(drawn.image, 2).clamp(0, 1))
    torch.testing.assert_close(picture.foreground, F.avg_pool2d(drawn.mask, 2))
    error = (picture.image - expected).abs().amax(1, keepdim=True)
    outline = (picture.foreground > 0) & (picture.foreground < 1)
    assert error[outline].max() < 2e-3
    inside = error[picture.foreground == 1]
    assert inside.mean() < 3e-3
    assert (inside > 0.03).float().mean() < 0.01
    painted = drawn.face_index.where(drawn.face_index >= 0, 0)
    painted = torch.isin(meshes.part[painted], torch.tensor([Part.SLEEVE, Part.THING]))
    painted = (F.avg_pool2d(painted[:, None].float(), 2) > 0) & (picture.foreground > 0)
    assert painted.float().mean() > 0.05
    assert error[painted].max() < 2e-3


def shaded(given, to_camera, surface):
    """Return wrapped diffuse and Blinn's specular light on skin, cloth and things."""
    part, image = surface["part"][..., 0].round().long(), surface.image_index
    on_skin = ~torch.isin(part, torch.tensor([Part.SLEEVE, Part.THING]))[..., None]
    to_light = F.normalize(given.key_direction, dim=-1)
    halfway = F.normalize(to_light + to_camera, dim=-1)
    normal = F.normalize(surface["normal"], dim=-1)
    facing, shine = (
        (normal * axis[image]).sum(-1, keepdim=True).clamp(-1, 1) for axis in (to_light, halfway)
    )
    paint = torch.where(part[..., None] == Part.SLEEVE, given.props.cloth[image],
                        given.props.thing_paint[image])  # fmt: skip
    texture = given.texture / 255 * given.tone[..., None, None]
    skin = sample_texture(texture, surface["uv"], image)
    first, second = torch.sin(2 * torch.pi * surface["uv"]).split(1, dim=-1)
    swing = torch.tanh(paint[..., 8:9] * first * (1 + paint[..., 9:10] * (second - 1)))
    one, other = to_linear(paint[..., :3]), to_linear(paint[..., 3:6])
    albedo = torch.where(on_skin, to_linear(skin), torch.lerp(one, other, (1 + swing) / 2))
    fill = given.ambient[image] + given.sky[image] * (1 - surface["normal"][..., 1:2]) / 2
    wrap = torch.tensor([0.35, 0.15, 0.1]) * on_skin
    key = given.key_colour[image] * ((facing + wrap) / (1 + wrap)).relu()
    strength = given.specular[image] * torch.where(on_skin, 1.0, paint[..., 10:])
    gloss = strength * shine.clamp(min=1e-3) ** given.shininess[image] * (facing > 0)
    return surface["shade"] * (albedo * (fill + key) + gloss * given.key_colour[image])


@pytest.mark.parametrize("direction", [(0.4, 0.0, -1.0), (-0.3, 0.5, -1.2)])
def test_the_shadow_on_the_wall_lies_where_rays_say(hand, direction):
    """A point of the wall is dark if the way to the light leads through the hand."""
    pose = PoseSampler(hand).gesture("flat").expand(1, 16, 3, 3).clone()
    pose[:, 0] = PALM
    stage, given = make_stage(hand, pose), make_ingredients(1, NOTHING)
    light = F.normalize(torch.tensor([direction]), dim=-1)
    given = given._replace(key_direction=light, background=torch.full((1, 3, SIZE, SIZE), 0.8))
    picture = compose(stage, given)
    vertices = stage.posed.vertices[0]
    line = torch.arange(SIZE) + 0.5
    pixels = torch.stack([*torch.meshgrid(line, line, indexing="xy"), torch.ones(SIZE, SIZE)], -1)
    rays = pixels.view(-1, 3) @ torch.linalg.inv(stage.camera.intrinsics[0]).T
    points = rays * (vertices[:, 2].max() + given.wall[0])
    dark = crosses(points, light[0], vertices[hand.faces]).view(SIZE, SIZE).float()
    share = given.shadow * -light[:, 2] / (-light[:, 2] + 0.3 + 0.2 / 2)
    left = decode(picture.image[0, 0]) / decode(torch.tensor(0.8))
    # The map's shadows fade out far from the hand.
    centre = (vertices.amax(0) + vertices.amin(0)) / 2
    near = torch.linalg.cross(points - centre, light.expand_as(points), dim=-1).norm(dim=-1)
    near = near.view(SIZE, SIZE) < 0.85 * (vertices - centre).norm(dim=-1).max()
    clear = (picture.foreground[0, 0] == 0) & near
    inner, outer = (-F.max_pool2d(-dark[None], 5, 1, 2)[0], F.max_pool2d(dark[None], 5, 1, 2)[0])
    assert (clear & (inner > 0)).sum() > 30
    torch.testing.assert_close(
        left[clear & (inner > 0)], 1 - share[0, 0].expand_as(left)[clear & (inner > 0)],
        atol=0.02, rtol=0,
    )  # fmt: skip
    assert (left[clear & (outer == 0)] > 0.999).all()
    edge = left[clear & (inner != outer)]
    assert 0.2 < ((edge - edge.min()) / (1 - edge.min())).mean() < 0.8


def crosses(points, direction, triangles):
    """Return whether rays meet any triangle (Moeller and Trumbore, 1997)."""
    a, b, c = triangles.unbind(1)
    across = torch.linalg.cross(direction.expand_as(a), c - a, dim=-1)
    scale = ((b - a) * across).sum(-1)
    offset = points[:, None] - a
    u = (offset * across).sum(-1) / scale
    turned = torch.linalg.cross(offset, (b - a).expand_as(offset), dim=-1)
    v, distance = (turned @ direction) / scale, (turned * (c - a)).sum(-1) / scale
    return ((u >= 0) & (v >= 0) & (u + v <= 1) & (distance > 0)).any(1)


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


def encode(linear):
    """Return sRGB, the same way."""
    return torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def test_the_polynomial_is_near_the_standard():
    ramp = torch.linspace(0, 1, 256)
    torch.testing.assert_close(to_linear(ramp), decode(ramp), atol=0.003, rtol=0)
