import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from snn_lowlat.neurons import NEURONS, accumulate_then_fire, spike_counts, spread_spikes


def counts(charge, timesteps, threshold=1.0, initial_potential=0.0):
    values = torch.tensor(threshold), torch.tensor(initial_potential)
    return spike_counts(torch.tensor(charge)[None], timesteps, *values)[0].tolist()


def test_counts_are_whole_thresholds_within_the_window():
    assert counts([-3.0, 0.0, 0.99, 1.0, 2.5, 9.0], 4) == [0, 0, 0, 1, 2, 4]
    assert counts([0.49, 0.5, 1.49], 4, initial_potential=0.5) == [0, 1, 1]
    assert counts([0.8, 1.61, 3.3], 8, threshold=0.8) == [1, 2, 4]


def test_one_threshold_and_potential_for_each_channel():
    charge = torch.full((1, 2, 1, 1), 3.0)
    assert spike_counts(charge, 8, torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0])).flatten().tolist() == [3, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("timesteps", "levels"), [(8, 10), (16, 20), (32, 40), (1, 4), (2, 3)])
def test_sums_of_equal_spikes_never_fall_short(dtype, timesteps, levels):
    """0.8 + 0.8 + 0.8 is below 3 x 0.8 in floating point; the pooled mean of four of them even more often."""
    threshold = torch.tensor(timesteps / levels, dtype=dtype)
    spikes = (torch.rand(timesteps, 50, 4, dtype=dtype, generator=torch.Generator().manual_seed(0)) < 0.5).to(dtype)
    charge = torch.zeros(50, 1, dtype=dtype)
    for step in spikes:
        charge += (step * threshold).mean(1, keepdim=True)
    found = spike_counts(charge, timesteps, threshold, torch.tensor(0.0))
    assert torch.equal(found[:, 0], (spikes.sum((0, 2)) / 4).floor())


@given(timesteps=st.integers(1, 64))
@settings(max_examples=30, deadline=None)
def test_spread_spikes_add_up_to_the_counts(timesteps):
    numbers = torch.arange(timesteps + 1.0)
    spikes = torch.stack([spread_spikes(numbers, step, timesteps) for step in range(1, timesteps + 1)])
    assert set(spikes.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(spikes.sum(0), numbers)
    # Evenly: after each step, the share sent is within half a spike of the share of time gone.
    due = torch.arange(1.0, timesteps + 1)[:, None] * numbers / timesteps
    assert (spikes.cumsum(0) - due).abs().max() <= 0.5


def test_the_order_of_currents_changes_nothing():
    currents = torch.randn(8, 3, 4, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    threshold, potential = torch.tensor(0.7), torch.tensor(0.35)
    expected = accumulate_then_fire(currents, threshold, potential)
    assert 0 < expected.mean() < 1
    assert torch.equal(accumulate_then_fire(currents[torch.randperm(8)], threshold, potential), expected)


def test_it_is_known_to_need_its_whole_window():
    model = NEURONS["accumulate_then_fire"]
    assert not model.online
    assert model.latency_steps(8, 19) == 160
