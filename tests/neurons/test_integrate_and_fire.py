from __future__ import annotations

import pytest
import torch
from spikingjelly.activation_based import functional, neuron

from snn_lowlat.neurons import NEURONS, integrate_and_fire, integrate_and_fire_step
from snn_lowlat.plan import SitePlan


def case(channelwise: bool, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    currents = torch.randn(12, 5, 4, 6, 6, generator=generator)
    size = (4,) if channelwise else ()
    threshold = torch.rand(size, generator=generator) + 0.3
    return currents, threshold, threshold * torch.rand(size, generator=generator)


@pytest.mark.parametrize("channelwise", [True, False])
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_spikes_equal_those_of_spikingjelly(channelwise: bool, step_mode: str) -> None:
    for seed in range(10):
        currents, threshold, potential = case(channelwise, seed)
        currents = torch.where(torch.rand(currents.shape) < 0.3, (currents * 4).round() / 4, currents)
        node = neuron.ActivationAwareIFNode(threshold, potential, channel_dim=1, step_mode=step_mode).eval()
        functional.reset_net(node)
        with torch.no_grad():
            theirs = node(currents) if step_mode == "m" else torch.stack([node(current) for current in currents])
        assert torch.equal(integrate_and_fire(currents, threshold, potential), theirs)


def test_conservation() -> None:
    currents, threshold, start = case(True)
    currents, threshold, start = currents.double(), threshold.double(), start.double()
    shape = (-1, 1, 1)
    potential = start.view(shape).expand_as(currents[0])
    spikes = []
    for current in currents:
        fired, potential = integrate_and_fire_step(current, potential, threshold)
        spikes.append(fired)
    emitted = torch.stack(spikes).mean(0) * threshold.view(shape)
    assert torch.allclose(emitted, currents.mean(0) - (potential - start.view(shape)) / len(currents), atol=1e-12)
    assert torch.equal(torch.stack(spikes), integrate_and_fire(currents, threshold, start))


@pytest.mark.parametrize("factor", [0.25, 2.0, 64.0])
def test_scaling_everything_changes_no_spike(factor: float) -> None:
    currents, threshold, potential = case(True)
    spikes = integrate_and_fire(currents, threshold, potential)
    assert torch.equal(integrate_and_fire(currents * factor, threshold * factor, potential * factor), spikes)


@pytest.mark.parametrize("timesteps", [1, 2, 4, 8, 16])
def test_half_a_threshold_at_the_start_is_half_a_step_of_current_more(timesteps: int) -> None:
    threshold = torch.tensor(1.0)
    # Off the grid of the staircase, so that rounding decides nothing.
    current = ((torch.arange(-32, 96) + 0.5) / 64).double().reshape(1, 1, -1).expand(timesteps, -1, -1, -1)
    current = current + 1e-3
    half = integrate_and_fire(current, threshold, threshold / 2).sum(0)
    shifted = integrate_and_fire(current + threshold / (2 * timesteps), threshold, torch.zeros(())).sum(0)
    assert torch.equal(half, shifted)
    staircase = (current[0] * timesteps + 0.5).floor().clamp(0, timesteps)
    assert torch.equal(half, staircase)


def test_fires_at_the_threshold_and_keeps_the_rest() -> None:
    current = torch.tensor([[[1.0], [2.5], [-1.0]]])[0].T[None].expand(2, 1, 3)
    spikes = integrate_and_fire(current, torch.tensor(1.0), torch.tensor(0.0))
    assert spikes.tolist() == [[[1.0, 1.0, 0.0]], [[1.0, 1.0, 0.0]]]
    spikes, potential = integrate_and_fire_step(current[0], torch.zeros(1, 3), torch.tensor(1.0))
    assert potential.tolist() == [[0.0, 1.5, -1.0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_spikes_have_the_type_of_the_currents(dtype: torch.dtype) -> None:
    currents, threshold, potential = case(True)
    spikes = integrate_and_fire(currents.to(dtype), threshold, potential)
    assert spikes.dtype == dtype
    assert spikes.unique().tolist() == [0.0, 1.0]


def test_registry() -> None:
    model = NEURONS["integrate_and_fire"]
    currents, threshold, potential = case(True)
    plan = SitePlan(threshold, potential, threshold)
    assert torch.equal(model.window(currents, plan), integrate_and_fire(currents, threshold, potential))
    assert model.online
    assert model.latency_steps(8, 19) == 8
