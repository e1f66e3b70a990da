"""Networks with max-pools, over time: in every host, step by step, in whole windows, trained, in int8 and saved."""

import pytest
import torch
from networks import MaxPoolNetwork, make_images, make_network, recorded, step_by_step
from spikingjelly.activation_based import functional
from torch import nn

import snn_lowlat
from snn_lowlat.evaluation import diagnose
from snn_lowlat.hosts import BACKENDS
from snn_lowlat.model_file import digest_of
from snn_lowlat.neurons.max_pool import is_cumulative
from snn_lowlat.neurons.surrogate import SpikeOptions
from snn_lowlat.training.spiking_network import TrainableNetwork

STRATEGIES = {
    "optimized_potential": {},
    "value_range": {},
    "temporal_switch": {"output": "online", "hysteresis": 2.0},
}


def convert(strategy="optimized_potential", **options):
    model = make_network(MaxPoolNetwork)
    options = {"timesteps": 4} | STRATEGIES[strategy] | options
    return snn_lowlat.convert(model, [make_images()], strategy=strategy, **options)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("options", [{"max_pool": "per_step"}, {"precision": "int8"}], ids=str)
def test_every_spike_is_the_same_in_time_loops_windows_and_the_fast_simulation(strategy, options):
    images, found = make_images(5), []
    for backend in BACKENDS:
        snn = convert(strategy, backend=backend, **options)
        found += [recorded(snn, images, steps)[1] for steps in (True, False)]
        seen = {}
        snn.readout(images, observe=seen.__setitem__)
        found.append({name: spikes.flatten(2).float() for name, spikes in seen.items()})
    for spikes in found[1:]:
        assert all(torch.equal(spikes[name], values) for name, values in found[0].items())


@pytest.mark.parametrize("backend", BACKENDS)
def test_more_steps_come_closer_to_the_network_unless_each_step_is_pooled(backend):
    images, model = make_images(), make_network(MaxPoolNetwork)
    with torch.no_grad():
        expected = model(images)
    errors = {
        way: [
            float((convert(timesteps=t, max_pool=way, backend=backend)(images) - expected).abs().mean())
            for t in (4, 16, 256)
        ]
        for way in ("cumulative", "per_step")
    }
    assert errors["cumulative"][0] > 2 * errors["cumulative"][1] > 10 * errors["cumulative"][2]
    assert errors["per_step"][2] > 5 * errors["cumulative"][2]


def test_a_window_may_be_given_in_parts_in_multi_step_mode():
    images = make_images(5).expand(8, 5, 1, 8, 8)
    network = convert(timesteps=8).network
    functional.set_step_mode(network, "m")
    functional.reset_net(network)
    whole = network(images)
    functional.reset_net(network)
    parts = [network(part) for part in images.split((3, 1, 4))]
    assert torch.equal(torch.cat(parts), whole)
    functional.reset_net(network)
    assert torch.equal(network(images), whole)


@pytest.mark.parametrize("backend", BACKENDS)
def test_another_batch_starts_anew_after_a_reset(backend):
    snn = convert(backend=backend)
    first, second = make_images(10).split(5)
    expected = step_by_step(snn, second)
    step_by_step(snn, first)
    assert torch.equal(step_by_step(snn, second), expected)


@pytest.mark.parametrize("segments", [1, 3])
def test_fine_tuning_pools_as_the_network_does_and_gradients_pass(segments):
    snn, images = convert(), make_images(6)
    network = TrainableNetwork(
        *snn.normal_form(), snn.provenance.input_shape, 4, SpikeOptions(), segments=segments
    ).train()
    outputs = network(images)
    torch.testing.assert_close(outputs, snn(images), rtol=1e-4, atol=1e-5)
    (outputs**2).sum().backward()
    gradients = [p.grad for name, p in network.named_parameters() if name.endswith("weight")]
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
    other = TrainableNetwork(*snn.normal_form(), snn.provenance.input_shape, 4, SpikeOptions()).train()
    varying = make_images(6) * torch.rand(4, 6, 1, 1, 1, generator=torch.Generator().manual_seed(2))
    (other(varying, constant=False) ** 2).sum().backward()
    assert all(p.grad.abs().sum() > 0 for name, p in other.named_parameters() if name.endswith("weight"))


@pytest.mark.parametrize("way", ["cumulative", "per_step"])
def test_saved_networks_pool_as_they_did(way, tmp_path):
    snn, images = convert(max_pool=way), make_images(5)
    snn.save(tmp_path / "snn.pt")
    for backend in BACKENDS:
        for model in (None, make_network(MaxPoolNetwork)):
            loaded = snn_lowlat.load(tmp_path / "snn.pt", backend=backend, model=model)
            assert torch.equal(loaded(images), snn(images))
    graph, _ = loaded.normal_form()
    assert [is_cumulative(m) for m in graph.modules() if isinstance(m, nn.MaxPool2d)] == [way == "cumulative"] * 3


@pytest.mark.parametrize("strategy", ["optimized_potential", "value_range"])
def test_files_from_before_pool_as_their_networks_did(strategy, tmp_path):
    """Neurons that answer within the step had pools of each step's currents, others pools of running sums."""
    snn, images = convert(strategy), make_images(5)
    snn.save(tmp_path / "snn.pt")
    contents = torch.load(tmp_path / "snn.pt", weights_only=True) | {"version": 2}
    torch.save(contents | {"digest": digest_of(contents)}, tmp_path / "snn.pt")
    way = "per_step" if strategy == "optimized_potential" else "cumulative"
    for model in (None, make_network(MaxPoolNetwork)):
        loaded = snn_lowlat.load(tmp_path / "snn.pt", model=model)
        assert torch.equal(loaded.simulate(images), convert(strategy, max_pool=way).simulate(images))


def test_the_diagnosis_has_a_part_for_pools():
    images, model = make_images(), make_network(MaxPoolNetwork)
    parts = {
        way: [site.parts["pooling"] for site in diagnose(convert(max_pool=way, timesteps=16), model, [images]).sites]
        for way in ("cumulative", "per_step")
    }
    assert max(parts["cumulative"]) < 1e-5
    # The first layer reads the image, which is the same in every step.
    assert parts["per_step"][0] < 1e-5 < 0.05 < max(parts["per_step"])


def test_an_unknown_way_to_pool_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"max_pool 'per_stepp'.*per_step"):
        convert(max_pool="per_stepp")
