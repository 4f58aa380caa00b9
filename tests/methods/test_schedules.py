import pytest

from handrec.methods.schedules import cosine, ramp


@pytest.mark.parametrize(
    ("step", "momentum"),
    [(0, 0.996), (250, 0.9965857864), (500, 0.998), (999, 0.9999999901)],
)
def test_momentum(step, momentum):
    assert cosine(step, 1000, 0.996, 1.0) == pytest.approx(momentum, abs=1e-10)


@pytest.mark.parametrize(
    ("step", "rate"), [(0, 0.0), (1, 5.0505e-6), (99, 5e-4), (100, 5e-4), (550, 2.505e-4)]
)
def test_rate(step, rate):
    assert cosine(step, 1000, 5e-4, 1e-6, warmup=100) == pytest.approx(rate, rel=1e-5)


def test_weight_decay():
    assert cosine(500, 1000, 0.04, 0.4) == pytest.approx(0.22)


@pytest.mark.parametrize(
    ("epoch", "temperature"), [(0, 0.04), (15, 0.0555172), (29, 0.07), (80, 0.07)]
)
def test_temperature(epoch, temperature):
    assert ramp(epoch, 0.04, 0.07, 30) == pytest.approx(temperature, abs=1e-7)


def test_no_ramp():
    assert ramp(0, 0.04, 0.07, 0) == 0.07
