"""The fused optimizers step as torch's default ones do, and leave clipping to Lightning."""

from copy import deepcopy

import pytest
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch.optim import Adam, AdamW

from handrec.methods.optim import fused


def stepped(network, optimizer, schedule, steps=5):
    torch.manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        network(torch.randn(8, 6)).square().mean().backward()
        optimizer.step()
        schedule.step()
    return torch.cat([p.detach().flatten() for p in network.parameters()])


@pytest.mark.parametrize("kind", [Adam, AdamW])
def test_fused_steps_are_those_of_the_default(kind):
    torch.manual_seed(0)
    one = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.GELU(), torch.nn.Linear(5, 4))
    other = deepcopy(one)
    results = []
    for network, build in ((one, kind), (other, lambda *a, lr: fused(kind, *a, lr))):
        groups = [
            {"params": [p for p in network.parameters() if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in network.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = build(groups, lr=1e-2)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        results.append(stepped(network, optimizer, schedule))
    assert optimizer.param_groups[0]["fused"]
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gradient", [3.0, float("inf")])
def test_scaled_gradients_can_be_clipped_and_overflows_left_out(gradient):
    """Of 16-mixed, which refuses to clip for an optimizer that takes scaled gradients itself."""
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = fused(Adam, [parameter], 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    parameter.grad = torch.full((2,), 1024.0 * gradient)
    scaler.scale(torch.ones(()))
    scaler.unscale_(optimizer)
    plugin.clip_gradients(optimizer, 1.0)
    scaler.step(optimizer)
    expected = -0.1 if gradient == 3.0 else 0.0
    assert parameter.tolist() == pytest.approx([expected, expected], rel=1e-5)
