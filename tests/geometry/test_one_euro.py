import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from handrec.errors import UserError
from handrec.geometry.one_euro import OneEuro, RotationFilter, VectorFilter
from handrec.geometry.rotations import random_rotations

PARAMETERS = OneEuro(min_cutoff=1.3, beta=0.4, speed_cutoff=0.9)
TIMES = np.cumsum([0.033, 0.03, 0.05, 0.02, 0.033, 0.1] * 8)


def published(values, times, parameters):
    """The paper's algorithm on numbers, line by line (Casiez et al., CHI 2012, Algorithm 1)."""

    def alpha(cutoff, period):
        tau = 1.0 / (2 * math.pi * cutoff)
        return 1.0 / (1.0 + tau / period)

    filtered, speed = [values[0]], 0.0
    for i in range(1, len(values)):
        period = times[i] - times[i - 1]
        raw_speed = (values[i] - values[i - 1]) / period
        a = alpha(parameters.speed_cutoff, period)
        speed = a * raw_speed + (1 - a) * speed
        a = alpha(parameters.min_cutoff + parameters.beta * abs(speed), period)
        filtered.append(a * values[i] + (1 - a) * filtered[-1])
    return np.array(filtered)


def run(smooth, values, times=TIMES):
    steps = np.diff(times, prepend=times[0] - 1)
    return torch.stack([smooth(value, float(dt)) for value, dt in zip(values, steps, strict=True)])


def signal(seed=0):
    noise = np.random.default_rng(seed).normal(0, 0.1, len(TIMES))
    return 2 * np.sin(2 * TIMES) + noise


def test_numbers_are_filtered_as_published():
    values = signal()
    found = run(VectorFilter(PARAMETERS), torch.from_numpy(values)[:, None])
    np.testing.assert_allclose(found[:, 0], published(values, TIMES, PARAMETERS), atol=1e-12)


def test_a_vector_has_one_speed_whatever_its_direction():
    turn = random_rotations(1, torch.Generator().manual_seed(0))[0].double()
    line = torch.from_numpy(signal())[:, None] * torch.tensor([1.0, 0, 0], dtype=torch.float64)
    found = run(VectorFilter(PARAMETERS), line @ turn.T)
    torch.testing.assert_close(found, run(VectorFilter(PARAMETERS), line) @ turn.T)


def test_about_a_fixed_axis_rotations_are_filtered_as_their_angle():
    angles = signal() * 3  # beyond pi either way: the angle goes on, its matrix comes round again
    axis = np.array([0.6, 0.0, 0.8])
    matrices = torch.from_numpy(Rotation.from_rotvec(angles[:, None] * axis).as_matrix())
    found = Rotation.from_matrix(run(RotationFilter(PARAMETERS), matrices).numpy())
    expected = Rotation.from_rotvec(published(angles, TIMES, PARAMETERS)[:, None] * axis)
    assert (found.inv() * expected).magnitude().max() < 1e-7


def test_rotations_do_not_care_for_the_frame():
    generator = torch.Generator().manual_seed(1)
    world, body = random_rotations(2, generator).double()
    path = Rotation.from_rotvec(np.stack([signal(k) for k in range(3)], 1)).as_matrix()
    path = torch.from_numpy(path)
    found = run(RotationFilter(PARAMETERS), path)
    torch.testing.assert_close(run(RotationFilter(PARAMETERS), world @ path @ body),
                               world @ found @ body)  # fmt: skip


def test_rotations_stay_rotations_in_float32():
    rng = np.random.default_rng(0)
    path = torch.from_numpy(Rotation.from_rotvec(rng.normal(0, 2, (400, 3))).as_matrix()).float()
    found = run(RotationFilter(PARAMETERS), path, np.arange(400) / 30)
    eye = torch.eye(3).expand_as(found)
    torch.testing.assert_close(found @ found.mT, eye, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(found), torch.ones(400), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", [VectorFilter, RotationFilter])
def test_what_rests_stays_and_nothing_is_ever_passed_by(kind):
    value = torch.eye(3) if kind is RotationFilter else torch.ones(3)
    smooth = kind(PARAMETERS)
    for _ in range(5):
        torch.testing.assert_close(smooth(value, 1 / 30), value)


def test_noise_shrinks_at_rest_and_a_fast_way_is_kept_up_with():
    noise = torch.randn(300, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    times = np.arange(300) / 30
    still = run(VectorFilter(OneEuro(1.0, 0.0)), noise, times)
    assert still[30:].std() < 0.45 * noise.std()
    ramp = torch.from_numpy(5 * times)[:, None]
    lag = {beta: float((ramp - run(VectorFilter(OneEuro(1.0, beta)), ramp, times))[-1])
           for beta in (0.0, 1.0)}  # fmt: skip
    # Of a first-order low-pass: speed / (2 pi cutoff).
    assert lag[0.0] == pytest.approx(5 / (2 * math.pi), rel=0.01)
    assert lag[1.0] == pytest.approx(5 / (2 * math.pi * 6), rel=0.01)


@pytest.mark.parametrize("bad", [{"min_cutoff": 0.0}, {"beta": -1.0}, {"speed_cutoff": -2.0}])
def test_senseless_parameters_are_refused(bad):
    with pytest.raises(UserError, match="min_cutoff > 0"):
        OneEuro(**bad)
