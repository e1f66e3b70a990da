"""Networks whose layers have their channels in other dimensions than 1, in every strategy, host and precision."""

import pytest
import torch
from token_networks import TOKEN_NETWORKS, Pixels, Sequences, Tokens, make_token_network
from torch import nn

import snn_lowlat
from snn_lowlat.evaluation import diagnose
from snn_lowlat.graph import find_sites, normalise
from snn_lowlat.hosts import BACKENDS
from snn_lowlat.simulation import simulate

ROWS = [
    ("optimized_potential", {}),
    ("distribution_aware", {}),
    ("value_range", {}),
    ("temporal_switch", {"output": "pipelined"}),
    ("threshold_balancing", {"granularity": "channel"}),
]
TIMESTEPS = 8


def convert(model, images, strategy, options=None, **others):
    others = {"timesteps": TIMESTEPS, "refinements": ["bias_correction"]} | others
    return snn_lowlat.convert(model, [images], strategy=strategy, **(options or {}), **others)


def activations(graph, images):
    """Return the outputs of a network in normal form, and what its sites answer."""
    found = {}
    handles = [
        graph.get_submodule(name).register_forward_hook(lambda m, i, o, n=name: found.__setitem__(n, o))
        for name in find_sites(graph)
    ]
    outputs = graph(images)
    for handle in handles:
        handle.remove()
    return outputs, found


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("strategy", "options"), ROWS, ids=[name for name, _ in ROWS])
@pytest.mark.parametrize("kind", TOKEN_NETWORKS)
def test_every_strategy_plans_for_the_layers_channels_in_both_hosts(kind, strategy, options, backend):
    model, images = make_token_network(kind)
    snn = convert(model, images, strategy, options, backend=backend)
    graph, plan = snn.normal_form()
    layers = dict(graph.named_modules())
    widths = [m.weight.shape[0] for m in layers.values() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d)]
    assert {site.threshold.numel() for site in plan.values()} <= set(widths)
    outputs, _ = simulate(graph, plan, images.expand(TIMESTEPS, *images.shape))
    for on_host in (False, True):
        snn.run_on_host = on_host
        torch.testing.assert_close(snn.simulate(images), outputs.mean(0), rtol=1e-4, atol=1e-5)
    expected = model(images).detach()
    assert float((snn(images) - expected).norm() / expected.norm()) < 0.4


@pytest.mark.parametrize("kind", TOKEN_NETWORKS)
def test_bias_correction_mends_the_means_of_the_layers_channels(kind):
    model, images = make_token_network(kind)
    graph = normalise(model, images)
    errors = {}
    for refinements in ([], ["bias_correction"]):
        snn = convert(model, images, "optimized_potential", timesteps=2, refinements=refinements)
        corrected, plan = snn.normal_form()
        _, spikes = simulate(corrected, plan, images.expand(2, *images.shape))
        logits, expected = activations(graph, images)
        found = {}
        for name, values in expected.items():
            worth = spikes[name].mean(0) * plan[name].amplitude.view(-1, *[1] * (values.dim() - 2))
            found[name] = (worth - values).movedim(1, 0).flatten(1).mean(1).abs().mean()
        errors[bool(refinements)] = found
        if refinements:
            torch.testing.assert_close(snn(images).mean(0), logits.mean(0), rtol=1e-4, atol=1e-5)
    for name, error in errors[True].items():
        assert error < 0.5 * errors[False][name], name


@pytest.mark.parametrize("kind", [Tokens, Pixels, Sequences])
def test_whole_numbers_are_rounded_for_the_layers_channels(kind):
    model, images = make_token_network(kind)
    snn = convert(model, images, "optimized_potential", precision="int8")
    outputs = snn(images)
    snn.run_on_host = True
    assert torch.equal(snn(images), outputs)
    wide = convert(model, images, "optimized_potential")(images)
    assert float((outputs - wide).norm() / wide.norm()) < 0.15


@pytest.mark.parametrize("kind", TOKEN_NETWORKS)
def test_channel_thresholds_are_trained_for_the_layers_channels(kind):
    model, images = make_token_network(kind)
    snn = convert(model, images, "value_range", refinements=["channel_thresholds"])
    expected = model(images).detach()
    assert snn.latency_steps == TIMESTEPS
    assert float((snn(images) - expected).norm() / expected.norm()) < 0.3


@pytest.mark.parametrize("kind", TOKEN_NETWORKS)
def test_they_are_diagnosed_channel_by_channel(kind):
    model, images = make_token_network(kind)
    snn = convert(model, images, "optimized_potential")
    found = diagnose(snn, model, [images])
    assert [len(site.firing_rates) for site in found.sites] == [site.threshold.numel() for site in snn.plan.values()]
    assert all(site.relative_error < 0.5 for site in found.sites)


def test_they_come_back_from_a_file(tmp_path):
    for kind in TOKEN_NETWORKS:
        model, images = make_token_network(kind)
        snn = convert(model, images, "optimized_potential")
        snn.save(tmp_path / "snn.pt")
        for backend in BACKENDS:
            loaded = snn_lowlat.load(tmp_path / "snn.pt", backend=backend)
            torch.testing.assert_close(loaded(images), snn(images))


@pytest.mark.parametrize("head", [nn.Linear(8, 3), nn.Sequential(nn.Linear(8, 1), nn.Flatten(0))])
def test_the_readout_is_corrected_where_its_channels_are(head):
    """Over tokens, and where each image has one number."""
    torch.manual_seed(0)
    body = [nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU()]
    shape = (5, 6) if isinstance(head, nn.Linear) else (6,)
    model, images = nn.Sequential(*body, head), torch.randn(32, *shape)
    snn = convert(model, images, "optimized_potential", timesteps=2)
    difference = snn(images) - model(images)
    across = (0, 1) if difference.dim() == 3 else 0
    torch.testing.assert_close(difference.mean(across), torch.zeros(difference.shape[2:]), rtol=0, atol=1e-5)
