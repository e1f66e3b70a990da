import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from snn_lowlat.neurons import (
    NEURONS,
    event_counts,
    integrate_and_fire,
    online_temporal_switch,
    pipelined_temporal_switch,
    spike_counts,
    switch_events,
    switch_states,
    synaptic_register,
    temporal_switch,
)
from snn_lowlat.plan import SitePlan

THRESHOLD, POTENTIAL = torch.tensor([0.7, 0.4]), torch.tensor([0.35, 0.1])


def currents(timesteps, seed=0, mean=0.1):
    noise = torch.randn(timesteps, 20, 2, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return mean + 0.5 * noise


def test_neurons_are_on_from_the_start_for_their_duration():
    states = switch_states(torch.tensor([[0.0, 1.0, 3.0]]), 3)
    assert states[:, 0].T.tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 1]]


def test_on_and_off_once_and_never_for_no_time():
    events = switch_events(switch_states(torch.tensor([[0.0, 1.0, 3.0]]), 3))
    assert events[:, 0].T.tolist() == [[0, 0, 0, 0], [1, -1, 0, 0], [1, 0, 0, -1]]


def test_off_and_on_in_the_same_step_are_no_event():
    """The first window is on to its end, and the second from its start: nothing is sent in between."""
    windows = torch.cat([switch_states(torch.tensor([[4.0]]), 4), switch_states(torch.tensor([[2.0]]), 4)])
    assert switch_events(windows).flatten().tolist() == [1, 0, 0, 0, 0, 0, -1, 0, 0]


@given(timesteps=st.integers(1, 32))
@settings(max_examples=20, deadline=None)
def test_events_are_two_at_most_and_counted_without_the_states(timesteps):
    durations = torch.arange(timesteps + 1.0)[None]
    events = switch_events(switch_states(durations, timesteps))
    assert set(events.unique().tolist()) <= {-1.0, 0.0, 1.0}
    assert torch.equal(events.abs().sum(0), event_counts(durations))
    assert events.sum(0).abs().max() == 0
    assert event_counts(durations).max() == 2


def test_the_register_holds_the_currents_and_returns_to_zero():
    weights = torch.randint(-9, 10, (5, 6), generator=torch.Generator().manual_seed(0)).float()
    durations = torch.randint(0, 9, (7, 6), generator=torch.Generator().manual_seed(1)).float()
    states = switch_states(durations, 8)
    register = synaptic_register(switch_events(states) @ weights.T)
    assert torch.equal(register[:-1], states @ weights.T)
    assert register[-1].abs().max() == 0
    assert torch.equal(register.sum(0), durations @ weights.T)


def test_durations_are_rounded_charges():
    values = currents(16)
    durations = temporal_switch(values, THRESHOLD, POTENTIAL).sum(0)
    assert torch.equal(durations, spike_counts(values.sum(0), 16, THRESHOLD, POTENTIAL))
    assert 0 < durations.mean() < 16


@pytest.mark.parametrize("timesteps", [1, 8, 64])
def test_a_gap_as_long_as_the_window_is_the_windowed_rule(timesteps):
    values = currents(timesteps)
    expected = temporal_switch(values, THRESHOLD, POTENTIAL)
    assert torch.equal(pipelined_temporal_switch(values, THRESHOLD, POTENTIAL, timesteps), expected)


@pytest.mark.parametrize("gap", [0, 3, 8])
def test_pipelined_neurons_switch_on_once(gap):
    states = pipelined_temporal_switch(currents(16, mean=0.2), THRESHOLD, POTENTIAL, gap)
    assert switch_events(states).abs().sum(0).unique().tolist() == [0.0, 2.0]


def test_pipelined_neurons_answer_what_has_come_so_far():
    rise = torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0])[:, None, None]
    one, none = torch.tensor(1.0), torch.tensor(0.0)
    # From step 2 of its input on, one threshold a step: the charge comes as fast as it drains.
    assert pipelined_temporal_switch(rise, one, none, 1).flatten().tolist() == [0, 1, 1, 1, 0, 0, 0, 0]
    # What inhibits comes too late: the neuron has been on.
    late = torch.tensor([1.0, 0.0, 0.0, -1.0])[:, None, None]
    assert pipelined_temporal_switch(late, one, none, 1).flatten().tolist() == [1, 0, 0, 0]
    assert temporal_switch(late, one, none).sum() == 0


def test_longer_gaps_come_closer_to_the_windowed_rule():
    values = currents(32)
    exact = temporal_switch(values, THRESHOLD, POTENTIAL).sum(0)
    errors = [
        (pipelined_temporal_switch(values, THRESHOLD, POTENTIAL, gap).sum(0) - exact).abs().mean().item()
        for gap in (4, 16, 28)
    ]
    assert errors[0] > errors[1] > errors[2] > 0


def test_online_without_hysteresis_is_integrate_and_fire():
    values = currents(32)
    expected = integrate_and_fire(values, THRESHOLD, POTENTIAL)
    assert torch.equal(online_temporal_switch(values, THRESHOLD, POTENTIAL, 1.0), expected)


def test_hysteresis_sends_fewer_events_for_the_same_value():
    values = torch.full((64, 1, 1), 0.4, dtype=torch.float64)
    one, none = torch.tensor(1.0), torch.tensor(0.0)
    eager, lazy = (online_temporal_switch(values, one, none, h) for h in (1.0, 2.0))
    assert switch_events(lazy).abs().sum() <= 0.55 * switch_events(eager).abs().sum()
    assert abs(lazy.mean() - eager.mean()) <= 2 / 64


def test_what_each_kind_transmits():
    plan = SitePlan(torch.tensor(1.0), torch.tensor(0.5), torch.tensor(1.0), "temporal_switch", {"timesteps": 4})
    model = NEURONS["temporal_switch"]
    states = model.window(torch.rand(4, 3, 2, generator=torch.Generator().manual_seed(0)), plan)
    events = model.transmissions(states, plan)
    assert events.shape == (5, 3, 2)
    assert torch.equal(events.abs().sum(0), model.transmission_counts(states.sum(0), plan))
    assert NEURONS["integrate_and_fire"].transmissions is None
    assert NEURONS["accumulate_then_fire"].transmission_counts is None


def test_latencies():
    def latency(name, **parameters):
        plan = SitePlan(torch.tensor(1.0), torch.tensor(0.5), torch.tensor(1.0), name, parameters)
        return NEURONS[name].latency_steps(8, 19, plan)

    assert latency("temporal_switch", timesteps=8) == 160
    assert latency("temporal_switch_pipelined", timesteps=8, gap=3) == 19 * 3 + 8
    assert latency("temporal_switch_online", hysteresis=2.0) == 8
    with pytest.raises(ValueError, match="gap"):
        NEURONS["temporal_switch_pipelined"].latency_steps(8, 19)
