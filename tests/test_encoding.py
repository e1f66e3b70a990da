import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import snn_lowlat
from snn_lowlat.encoding import input_events, temporal_switch, temporal_switch_events, temporal_switch_values

PIXELS = torch.linspace(-1, 1, 401, dtype=torch.float64)[None]


@given(timesteps=st.integers(2, 200))
@settings(max_examples=30, deadline=None)
def test_two_spikes_a_pixel_that_decode_to_it(timesteps):
    events = temporal_switch_events(PIXELS, timesteps)
    assert set(events.unique().tolist()) <= {-1.0, 0.0, 1.0}
    assert set(events.abs().sum(0).unique().tolist()) <= {0.0, 2.0}
    decoded = temporal_switch_values(events)
    assert (decoded - PIXELS).abs().max() <= 0.5 / (timesteps - 1) + 1e-12
    assert (decoded * PIXELS >= 0).all()


@pytest.mark.parametrize("timesteps", [2, 7, 16, 50])
def test_rounding_down_loses_less_than_a_step(timesteps):
    decoded = temporal_switch_values(temporal_switch_events(PIXELS, timesteps, round_down=True))
    lost = PIXELS.abs() - decoded.abs()
    assert 0.9 / (timesteps - 1) < lost.max() < 1 / (timesteps - 1)
    assert lost.min() > -1e-3 / (timesteps - 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("round_down", [False, True])
@pytest.mark.parametrize("timesteps", [2, 7, 16, 50])
def test_decoded_pixels_are_encoded_to_the_same_spikes(timesteps, round_down, dtype):
    events = temporal_switch_events(PIXELS.to(dtype), timesteps, round_down=round_down)
    again = temporal_switch_events(temporal_switch_values(events), timesteps, round_down=round_down)
    assert torch.equal(again, events)


def test_the_time_between_the_spikes_is_the_intensity():
    events = temporal_switch_events(torch.tensor([[1.0, 0.5, -0.5, 0.1, 0.0]]), 5)
    assert events[:, 0].T.tolist() == [
        *([1, 0, 0, 0, -1], [1, 0, -1, 0, 0], [-1, 0, 1, 0, 0]),
        *([0, 0, 0, 0, 0], [0, 0, 0, 0, 0]),
    ]


def test_currents_are_the_registers_of_the_events_and_average_to_the_pixel():
    images = torch.rand(3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    currents = temporal_switch(images, 9, seed=0)
    events = temporal_switch_events(images, 9)
    torch.testing.assert_close(currents, events.cumsum(0) * 9 / 8)
    torch.testing.assert_close(currents.mean(0), temporal_switch_values(events))


def test_one_step_is_too_short_for_two_spikes():
    assert temporal_switch(torch.ones(1, 3), 1, seed=0).tolist() == [[[0, 0, 0]]]


@pytest.mark.parametrize("value", [1.5, -1.01, float("nan")])
def test_intensities_out_of_range(value):
    with pytest.raises(ValueError, match="normalisation into the network"):
        temporal_switch(torch.tensor([[0.0, value]]), 8, seed=0)


def test_what_each_coding_sends():
    images = torch.rand(2, 5)
    assert input_events("direct", images, 4, 0) is None
    assert torch.equal(input_events("temporal_switch", images, 4, 0), temporal_switch_events(images, 4))
    assert input_events("poisson", images, 4, 0).unique().tolist() == [0, 1]


def test_networks_read_two_spikes_a_pixel():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 12), torch.nn.ReLU(), torch.nn.Linear(12, 3)).double().eval()
    images = torch.rand(40, 16, dtype=torch.float64) * 2 - 1
    snn = snn_lowlat.convert(model, images, strategy="temporal_switch", timesteps=200, encoder="temporal_switch")
    torch.testing.assert_close(snn(images), snn.simulate(images))
    with torch.no_grad():
        assert (snn(images) - model(images)).abs().mean() < 0.02
