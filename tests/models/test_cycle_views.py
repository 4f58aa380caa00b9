import math

import pytest
import torch

from handrec.geometry.camera import project
from handrec.geometry.rotations import geodesic_distance, random_rotations
from handrec.hand.openhand import OpenHand
from handrec.hand.sampler import PoseSampler
from handrec.losses.cycle import in_wrist_frame
from handrec.models.cycle_rotation import Turns, crop_to_box, sample_turns, turn_hand
from handrec.models.cycle_scene import push_pull, without_hand
from handrec.models.texture_vae import TextureVAE
from handrec.types import Camera, HandPrediction


@pytest.fixture(scope="module")
def hand():
    return OpenHand()


@pytest.fixture(scope="module")
def posed(hand):
    generator = torch.Generator().manual_seed(0)
    pose = PoseSampler(hand).sample(6, generator)
    pose[:, 0] = random_rotations(6, generator)
    betas = torch.randn(6, 10, generator=generator)
    translation = torch.tensor([0.05, -0.1, 0.5]).expand(6, 3)
    vertices, joints = hand.decode(pose, betas, translation)
    return HandPrediction(vertices, joints, joints[..., :2], pose, betas, translation)


@pytest.fixture(scope="module")
def camera():
    intrinsics = torch.tensor([[90.0, 0, 20], [0, 90, 40], [0, 0, 1]]).expand(6, 3, 3)
    return Camera(intrinsics, (64, 64))


def angles(turns, progress=1.0, count=20_000):
    rotations = sample_turns(count, turns, progress, torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch.linalg.det(rotations), torch.ones(count))
    return geodesic_distance(rotations, torch.eye(3).expand_as(rotations))


def test_uniform_rotations_have_the_haar_measures_angles():
    found = angles(Turns("so3_uniform"))
    edges = torch.linspace(0, math.pi, 19)
    # the density (1 - cos a) / pi, integrated
    mass = ((edges - edges.sin()) / math.pi).diff()
    share = torch.histogram(found, edges).hist / len(found)
    assert (share - mass).abs().max() < 4 * (mass.max() / len(found)) ** 0.5


def test_a_curriculum_opens_and_its_angles_are_uniform():
    turns = Turns("curriculum", bounds=(30.0, 180.0), rise=0.5, near=0.0)
    for progress, bound in ((0.0, 30), (0.25, 105), (0.5, 180), (1.0, 180)):
        found = torch.rad2deg(angles(turns, progress, 4000))
        assert found.max().item() == pytest.approx(bound, rel=0.01)
        assert found.mean().item() == pytest.approx(bound / 2, rel=0.05)
    still = sample_turns(5, Turns(bounds=(0.0, 0.0)), 1.0, torch.Generator().manual_seed(0))
    torch.testing.assert_close(still, torch.eye(3).expand(5, 3, 3))


def test_a_share_of_the_turns_stays_near():
    found = torch.rad2deg(angles(Turns("curriculum", bounds=(30.0, 180.0), near=0.4)))
    expected = 0.4 + 0.6 * 30 / 180
    assert (found < 30).float().mean().item() == pytest.approx(expected, abs=0.02)
    assert found.max() > 178


@pytest.mark.parametrize("sampling", ["so3_uniform", "euler_box", "curriculum"])
def test_turns_are_rotations_under_autocast_too(sampling):
    with torch.autocast("cpu", torch.bfloat16):
        turns = sample_turns(100, Turns(sampling), 1.0, torch.Generator().manual_seed(0))
    assert turns.dtype == torch.float32
    product = (turns[:, :, :, None] * turns[:, :, None]).sum(1)
    torch.testing.assert_close(product, torch.eye(3).expand(100, 3, 3), atol=1e-6, rtol=0)


def test_an_euler_box_keeps_the_view_within_its_pitch():
    turns = Turns("euler_box", euler=(20.0, 0.0, 180.0))
    rotations = sample_turns(2000, turns, 1.0, torch.Generator().manual_seed(0))
    tilt = torch.rad2deg(torch.acos(rotations[:, 2, 2]))
    assert 19 < tilt.max() < 20.01
    assert torch.atan2(rotations[:, 1, 0], rotations[:, 0, 0]).std() > 1.7  # 2 pi / sqrt(12)


def test_a_hand_comes_back_from_its_turn_and_keeps_its_joints_in_the_wrist_frame(
    hand, posed, camera
):
    rotation = random_rotations(6, torch.Generator().manual_seed(1))
    centre = posed.vertices.mean(1)
    place = centre + torch.tensor([0.0, 0.0, 0.2])
    turned = turn_hand(posed, rotation, centre, place, camera)
    torch.testing.assert_close(turned.vertices.mean(1), place, atol=1e-6, rtol=0)
    # the parameters say the same as the points
    vertices, joints = hand.decode(turned.pose, turned.betas, turned.translation)
    torch.testing.assert_close(vertices, turned.vertices, atol=1e-6, rtol=0)
    torch.testing.assert_close(joints, turned.joints, atol=1e-6, rtol=0)
    local = [in_wrist_frame(h.joints, h.joints[:, 0], h.pose[:, 0]) for h in (posed, turned)]
    torch.testing.assert_close(local[1], local[0], atol=1e-5, rtol=0)
    back = turn_hand(turned, rotation.mT, place, centre, camera)
    for name in ("vertices", "joints", "pose", "translation"):
        torch.testing.assert_close(getattr(back, name), getattr(posed, name), atol=1e-6, rtol=0)


def test_a_crop_holds_the_hand_at_the_size_asked_for(posed, camera):
    margin, shift = torch.full((6,), 1.2), torch.tensor([0.05, -0.03]).expand(6, 2)
    crop = crop_to_box(posed.vertices, camera, margin, shift)
    pixels = project(posed.vertices, crop.intrinsics)
    low, high = pixels.amin(1), pixels.amax(1)
    assert (high - low).amax(1).tolist() == pytest.approx([64 / 1.2] * 6, rel=1e-4)
    middle = torch.tensor([32 - 0.05 * 64, 32 + 0.03 * 64]).expand(6, 2)
    torch.testing.assert_close((low + high) / 2, middle, atol=1e-3, rtol=0)


def test_push_pull_keeps_what_is_known_and_fills_the_rest_smoothly():
    image = torch.rand(2, 3, 20, 28, generator=torch.Generator().manual_seed(0))
    known = torch.ones(2, 1, 20, 28)
    known[:, :, 5:15, 8:20] = 0
    filled = push_pull(torch.where(known > 0, image, torch.tensor(9.0)), known)
    torch.testing.assert_close(filled * known, image * known)
    middle = filled[:, :, 8:12, 11:17]
    assert 0.3 < middle.min() < middle.max() < 0.7  # means of many pixels
    flat = push_pull(known * 0.25 + (1 - known) * 7, known)
    torch.testing.assert_close(flat, torch.full_like(flat, 0.25))


def test_a_picture_without_its_hand_is_the_same_away_from_it():
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 10:20, 10:20] = 1
    painted = without_hand(torch.where(mask > 0, torch.tensor(1.0), image), mask)
    far = torch.ones(32, 32, dtype=torch.bool)
    far[8:22, 8:22] = False
    torch.testing.assert_close(painted[..., far], image[..., far])
    assert painted[..., 10:20, 10:20].max() < 0.95


def test_textures_start_at_their_base_and_depend_on_features(hand):
    torch.manual_seed(0)
    vae = TextureVAE(32, hand, size=64)
    features = torch.randn(3, 32)
    looks = vae.eval()(features)
    assert (looks.texture - vae.base).abs().max() < 0.02
    torch.testing.assert_close(vae(features).texture, looks.texture)  # no noise in evaluation
    one, other = (vae.train()(features) for _ in range(2))
    assert torch.equal(one.mean, other.mean)
    assert not torch.equal(one.offset, other.offset)
    assert looks.direction[:, 2].max() < -0.9  # from the camera
    blue = looks._replace(ambient=looks.ambient * torch.tensor([0.2, 0.4, 1.5])).lit()
    light = ((vae.base[0, :, 30, 30].double() + 0.055) / 1.055) ** 2.4  # sRGB, IEC 61966-2-1
    light *= torch.tensor([0.12, 0.24, 0.9]) + 0.25
    expected = 1.055 * light ** (1 / 2.4) - 0.055
    torch.testing.assert_close(blue[0, :, 30, 30].double(), expected, atol=0.02, rtol=0)
    torch.testing.assert_close(looks.direction.norm(dim=1), torch.ones(3))
    looks.texture.sum().backward()
    assert all(p.grad is not None for p in vae.decoder.parameters())
