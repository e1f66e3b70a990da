import pytest
import torch
import torch.nn.functional as F
from torch import nn

import snn_lowlat
from snn_lowlat.errors import ConversionError
from snn_lowlat.int8 import LEVELS, to_integers, with_rounded_weights
from snn_lowlat.models import SmallCNN
from snn_lowlat.simulation import count, simulate


class Varied(nn.Module):
    """Strides, groups, a padded shortcut, a projection, pools and a concatenation."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.grouped = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2)
        self.left, self.right = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.last = nn.Conv2d(16, 6, 3)
        self.head = nn.Linear(6, 3)
        with torch.no_grad():  # lively enough for pictures to differ
            for parameter in self.parameters():
                parameter.mul_(2.5)

    def forward(self, x):
        x = self.stem(x).relu()
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 3))
        x = (self.grouped(x) + shortcut).relu()
        y = F.max_pool2d((self.left(x) + self.right(x)).relu(), 2)
        z = F.avg_pool2d(x, 2).relu()
        x = self.last(torch.cat([y, z], 1)).relu()
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def converted(strategy="optimized_potential", timesteps=4, model=None):
    torch.manual_seed(0)
    images = torch.randn(32, 2, 16, 16)
    model = (model or Varied()).eval()
    return snn_lowlat.convert(model, images, strategy=strategy, timesteps=timesteps).normal_form(), images


def over(images, timesteps):
    return images.expand(timesteps, *images.shape)


STRATEGIES = ["optimized_potential", "distribution_aware", "value_range"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_everything_is_a_whole_number(strategy):
    (graph, plan), images = converted(strategy)
    whole, neurons = to_integers(graph, plan, images, 4)
    layers = [m for m in whole.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == 6
    for layer in layers:
        assert torch.equal(layer.weight, layer.weight.round())
        assert torch.equal(layer.bias, layer.bias.round())
        assert layer.weight.abs().max() <= LEVELS
    assert sum(int(layer.weight.abs().max()) == LEVELS for layer in layers) >= 4  # all but layers that share a unit
    for site in neurons.values():
        assert torch.equal(site.threshold, site.threshold.round())
        assert torch.equal(site.initial_potential, site.initial_potential.round())
        assert (site.amplitude == 1).all()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_little_is_lost(strategy):
    """In a long window, in which single spikes that come earlier or later hardly count."""
    (graph, plan), images = converted(strategy, 32)
    whole, neurons = to_integers(graph, plan, images, 32)
    before, spikes = simulate(graph, plan, over(images, 32))
    after, rounded = simulate(whole, neurons, over(images, 32))
    before, after = before.mean(0), after.mean(0)
    assert (before - after).abs().mean() < 0.04 * before.abs().mean()
    for name in spikes:
        assert (spikes[name].mean(0) - rounded[name].mean(0)).abs().mean() < 0.06
        assert rounded[name].any()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_spikes_do_not_depend_on_how_sums_are_made(strategy):
    (graph, plan), images = converted(strategy)
    whole, neurons = to_integers(graph, plan, images, 4)
    logits, spikes = simulate(whole, neurons, over(images, 4))
    parts = [simulate(whole, neurons, over(part, 4)) for part in images.split(5)]
    last = simulate(whole, neurons, over(images.to(memory_format=torch.channels_last), 4))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    many = simulate(whole, neurons, over(images, 4))
    torch.set_num_threads(threads)
    double = simulate(whole.double(), neurons, over(images.double(), 4))
    for other in (last, many, double, (None, {k: torch.cat([p[1][k] for p in parts], 1) for k in spikes})):
        assert all(torch.equal(other[1][name].to(spikes[name]), spikes[name]) for name in spikes)
    assert torch.equal(last[0], logits)


@pytest.mark.parametrize("timesteps", [1, 4, 16])
def test_counts_are_those_of_the_spikes_also_in_single_precision(timesteps):
    (graph, plan), images = converted("value_range", timesteps)
    whole, neurons = to_integers(graph, plan, images, timesteps)
    _, spikes = simulate(whole, neurons, over(images, timesteps))
    _, counts = count(whole, neurons, images, timesteps)
    assert all(torch.equal(spikes[name].sum(0), counts[name]) for name in counts)


def test_the_networks_stay_as_they_are():
    (graph, plan), images = converted()
    before = {name: value.clone() for name, value in graph.state_dict().items()}
    to_integers(graph, plan, images, 4)
    assert all(torch.equal(value, before[name]) for name, value in graph.state_dict().items())


def test_pruned_channels_are_no_loss():
    """Channels without weights, which a small bias alone drives, as trained networks have."""
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(72, 5),
    ]
    model = nn.Sequential(*layers).eval()
    with torch.no_grad():
        for layer in (module for module in model.modules() if isinstance(module, nn.Conv2d)):
            layer.weight[:4] = 0
            layer.bias[:4] = torch.tensor([1e-3, 1e-9, 0.0, -1.0])
    images = torch.rand(32, 1, 8, 8)
    options = {"timesteps": 64, "refinements": ["bias_correction"]}
    found, expected = (snn_lowlat.convert(model, images, precision=p, **options)(images) for p in ("int8", "fp32"))
    assert float((found - expected).square().mean()) < 0.01 * float(expected.square().mean())


def test_channels_with_next_to_no_weights_do_not_break_the_sums():
    model = Varied()
    with torch.no_grad():
        model.grouped.weight[0] *= 1e-9
        model.grouped.weight[1] = 0
    (graph, plan), images = converted(model=model)
    to_integers(graph, plan, images, 4)


class Twice(nn.Module):
    def __init__(self, middle):
        super().__init__()
        self.first, self.middle, self.last = nn.Conv2d(2, 4, 3), middle, nn.Linear(4 * 196, 3)

    def forward(self, x):
        return self.last(self.middle(self.first(x)).relu().flatten(1))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Twice(nn.Conv2d(4, 4, 1)), "middle.*without neurons between"),
        (nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(784, 3)), "2.*fp32"),
    ],
)
def test_what_has_no_counterpart_is_named(model, message):
    (graph, plan), images = converted(model=model)
    with pytest.raises(ConversionError, match=message):
        to_integers(graph, plan, images, 4)


def test_windows_whose_sums_are_not_exact_are_refused():
    (graph, plan), images = converted()
    with pytest.raises(ConversionError, match=r"4000000 steps|too large for exact"):
        to_integers(graph, plan, images, 4_000_000)


def test_leaks_are_refused():
    (graph, plan), images = converted()
    name = next(iter(plan))
    plan = dict(plan)
    plan[name] = snn_lowlat.SitePlan(
        plan[name].threshold,
        plan[name].initial_potential,
        plan[name].amplitude,
        "leaky_integrate_and_fire",
        {"leak": 0.9},
    )
    with pytest.raises(ConversionError, match=f"{name}.*values are no whole numbers"):
        to_integers(graph, plan, images, 4)


def test_rounded_weights_are_those_in_whole_numbers():
    """Times what their inputs are worth, they are multiples of one unit a channel, and rounding again keeps them."""
    torch.manual_seed(0)
    model, images = SmallCNN(width=4).eval(), torch.rand(20, 1, 8, 8)
    snn = snn_lowlat.convert(model, [images], timesteps=4)
    graph, plan = snn.normal_form()
    rounded = with_rounded_weights(graph, plan, images, 4)
    twice = with_rounded_weights(rounded, plan, images, 4)
    whole, _ = to_integers(graph, plan, images, 4)
    again, _ = to_integers(rounded, plan, images, 4)
    before, first, second = (dict(network.named_parameters()) for network in (graph, rounded, twice))
    for name, weight in before.items():
        if name.endswith("bias"):
            assert torch.equal(first[name], weight)
        else:
            assert not torch.equal(first[name], weight)
            torch.testing.assert_close(first[name], weight, rtol=0, atol=float(weight.abs().max()) / 20)
            torch.testing.assert_close(second[name], first[name], rtol=1e-6, atol=1e-8)
    weights = [(module.weight, other.weight) for module, other in zip(layers(whole), layers(again), strict=True)]
    assert weights
    assert all(torch.equal(one, other) for one, other in weights)


def layers(graph):
    return [module for module in graph.modules() if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)]
