"""Networks of neurons that switch: nothing but the changes of their states passes between the layers."""

import pytest
import torch
from matrix import HOSTS, STRATEGIES
from networks import NETWORKS, ResidualNetwork, make_images, make_network, recorded

import snn_lowlat
from snn_lowlat.simulation import simulate, simulate_events

ROWS = STRATEGIES["temporal_switch"]


@pytest.fixture(params=ROWS, ids=lambda row: row.get("output", "windowed"), scope="module")
def row(request):
    return request.param


@pytest.fixture(params=NETWORKS, ids=lambda kind: kind.__name__, scope="module")
def kind(request):
    return request.param


def convert(row, kind, **options):
    model, images = make_network(kind).double(), make_images(8).double()
    options = {"timesteps": 6, "strategy": "temporal_switch"} | row | options
    return snn_lowlat.convert(model, [images], **options), images


def test_registers_that_events_charge_give_the_same_network(row, kind):
    snn, images = convert(row, kind)
    graph, plan = snn.normal_form()
    inputs = images.expand(6, *images.shape)
    outputs, states = simulate(graph, plan, inputs)
    by_events, events, left = simulate_events(graph, plan, inputs)
    for name in states:
        assert torch.equal(events[name].cumsum(0)[:-1], states[name]), name
        assert left[name].abs().max() < 1e-12, name
    torch.testing.assert_close(by_events, outputs)


def test_registers_return_to_exactly_zero_on_integers(row, kind):
    snn, images = convert(row, kind)
    graph, plan = snn.normal_form()
    generator = torch.Generator().manual_seed(0)
    for parameter in graph.parameters():
        parameter.data = torch.randint(-2, 3, parameter.shape, generator=generator).double()
    plan = {
        name: snn_lowlat.SitePlan(torch.tensor(3.0), torch.tensor(1.0), torch.tensor(1.0), site.neuron, site.parameters)
        for name, site in plan.items()
    }
    inputs = (4 * images).round().expand(6, *images.shape)
    outputs, states = simulate(graph, plan, inputs)
    by_events, events, left = simulate_events(graph, plan, inputs)
    for name in states:
        assert left[name].abs().max() == 0, name
        assert torch.equal(events[name].cumsum(0)[:-1], states[name]), name
    torch.testing.assert_close(by_events, outputs)


def test_two_events_a_neuron_but_for_neurons_that_answer_at_once(row, kind):
    snn, images = convert(row, kind, encoder="temporal_switch", timesteps=16)
    _, events = snn.simulate(images, record_events=True)
    most = max(events.counts(layer).max() for layer in events.layers)
    assert most == 2 if row.get("output") != "online" else most > 2


def test_neurons_that_send_spikes_have_no_registers(kind):
    model, images = make_network(kind), make_images(4)
    graph, plan = snn_lowlat.convert(model, [images], timesteps=2).normal_form()
    with pytest.raises(ValueError, match="send spikes"):
        simulate_events(graph, plan, images.expand(2, *images.shape))


@pytest.mark.parametrize("backend", HOSTS)
def test_a_time_loop_sends_events(row, kind, backend):
    """Their sum over a time loop is what is on; each is the change of the step."""
    snn, images = convert(row, kind, backend=backend)
    snn.reset()
    on = {}
    for _ in range(snn.latency_steps):
        snn.network(images)
        for name, layer in snn.spiking_layers().items():
            on[name] = on.get(name, 0) + layer.event
            assert torch.equal(on[name], layer.state)
            assert set(layer.event.unique().tolist()) <= {-1.0, 0.0, 1.0}


@pytest.mark.parametrize("backend", HOSTS)
@pytest.mark.parametrize("row", [{}, {"output": "pipelined", "gap": 2}, {"output": "pipelined", "gap": 5}], ids=str)
def test_a_new_image_in_every_window(row, kind, backend):
    """Layers work on different images at the same time, and shortcuts wait for what they are added to."""
    snn, images = convert(row, kind, backend=backend)
    first = snn.latency_steps - snn.timesteps
    shown = [images[min(step // 6, 7)][None] for step in range(first + 8 * 6)]
    snn.reset()
    with torch.no_grad():
        outputs = torch.stack([snn.network(image) for image in shown])[first:, 0]
    torch.testing.assert_close(outputs.unflatten(0, (8, 6)).mean(1), snn.simulate(images))


@pytest.mark.parametrize("backend", HOSTS)
def test_a_new_image_in_every_window_of_neurons_that_count(backend):
    snn, images = convert({"strategy": "value_range"}, ResidualNetwork, backend=backend)
    first = snn.latency_steps - snn.timesteps
    snn.reset()
    with torch.no_grad():
        shown = [images[min(step // 6, 7)][None] for step in range(first + 8 * 6)]
        outputs = torch.stack([snn.network(image) for image in shown])[first:, 0]
    torch.testing.assert_close(outputs.unflatten(0, (8, 6)).mean(1), snn.simulate(images))


def test_durations_are_those_of_neurons_that_count(kind):
    """Only what is sent differs: two events in the place of every spike."""
    images = make_images(8).double()
    rates, switches = (convert({"strategy": name}, kind)[0] for name in ("value_range", "temporal_switch"))
    _, spikes = recorded(rates, images, steps=False)
    _, states = recorded(switches, images, steps=False)
    for name in spikes:
        assert torch.equal(states[name].sum(0), spikes[name].sum(0)), name
