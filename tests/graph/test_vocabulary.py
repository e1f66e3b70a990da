"""Every operation of the normal form in a tiny network: it converts, runs alike everywhere, is saved and counted."""

import operator
from functools import lru_cache

import pytest
import torch
from torch import nn

import snn_lowlat
from snn_lowlat.errors import ConversionError
from snn_lowlat.evaluation import measure_operations
from snn_lowlat.graph import check_convertible, describe, normalise, rebuild, vocabulary, without_ceilings
from snn_lowlat.graph.operations import module_rule
from snn_lowlat.graph.vocabulary import OPERATIONS, by_dimensions, functions, modules, operation_of, row
from snn_lowlat.hosts import BACKENDS, get_backend
from snn_lowlat.simulation import simulate

TIMESTEPS = 4
IMAGES = {1: (2, 8), 2: (2, 8, 8), 3: (2, 4, 4, 4)}
OPTIONS = {"per-step max pool": {"max_pool": "per_step"}, "rounding": {"precision": "int8"}}


class Net(nn.Module):
    """Two convolutions, an operation given as a function of the network and the image, and a linear layer."""

    def __init__(self, expression, dimensions=2, layer=None):
        super().__init__()
        kind = by_dimensions("convolution")[dimensions]
        self.first, self.second = kind(2, 4, 3, padding=1), kind(2, 4, 3, padding=1)
        self.expression, self.dimensions, self.layer = expression, dimensions, layer
        self.head = nn.LazyLinear(3)

    def forward(self, x):
        return self.head(self.expression(self, x).flatten(1))


def spikes(net, x):
    return torch.relu(net.first(x))


def of_spikes(layer, dimensions):
    return lambda: Net(lambda net, x: net.layer(spikes(net, x)), dimensions, layer())


def of_currents(layer, dimensions):
    return lambda: Net(lambda net, x: torch.relu(net.layer(net.first(x))), dimensions, layer())


def normed(channels, dimensions):
    norm = by_dimensions("norm")[dimensions](channels)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return norm


def levels(net, x):
    return torch.floor(torch.clamp(net.first(x), 0, 1) * 4 + 0.5) / 4


# Each operation where people have it. Max-pools pool currents, and what follows a convolution alone would be folded.
NETWORKS = {
    "ReLU": lambda: Net(spikes),
    "minimum": lambda: Net(lambda net, x: torch.clamp(net.first(x), 0, 1)),
    "floor": lambda: Net(levels),
    "Linear": lambda: Net(spikes),
    "Upsample": of_spikes(lambda: nn.Upsample(scale_factor=2), 2),
    "flatten": lambda: Net(spikes),
    "reshape": lambda: Net(lambda net, x: spikes(net, x).reshape(len(x), 8, 32)),
    "getitem": lambda: Net(lambda net, x: spikes(net, x)[:, 1:, ::2]),
    "permute": lambda: Net(lambda net, x: spikes(net, x).permute(0, 2, 3, 1)),
    "PixelShuffle": of_spikes(lambda: nn.PixelShuffle(2), 2),
    "PixelUnshuffle": of_spikes(lambda: nn.PixelUnshuffle(2), 2),
    "cat": lambda: Net(lambda net, x: torch.cat([spikes(net, x), torch.relu(net.second(x))], 1)),
    "mean": lambda: Net(lambda net, x: spikes(net, x).mean((2, 3))),
    "add": lambda: Net(lambda net, x: torch.relu(net.first(x) + net.second(x))),
    "sub": lambda: Net(lambda net, x: torch.relu(net.first(x) - net.second(x))),
    "mul": lambda: Net(lambda net, x: 0.5 * spikes(net, x)),
    "neg": lambda: Net(lambda net, x: -spikes(net, x)),
    "round": lambda: Net(spikes),
    "clamp": lambda: Net(spikes),
}
for d in IMAGES:
    NETWORKS |= {
        f"Conv{d}d": lambda d=d: Net(spikes, d),
        f"ConvTranspose{d}d": of_currents(lambda d=d: by_dimensions("transposed convolution")[d](4, 3, 2, 2), d),
        f"BatchNorm{d}d": of_spikes(lambda d=d: normed(4, d), d),
        f"MaxPool{d}d": of_spikes(lambda d=d: by_dimensions("max pool")[d](2), d),
        f"PerStepMaxPool{d}d": of_spikes(lambda d=d: by_dimensions("max pool")[d](2), d),
        f"AvgPool{d}d": of_spikes(lambda d=d: by_dimensions("average pool")[d](2), d),
        f"AdaptiveAvgPool{d}d": of_spikes(lambda d=d: by_dimensions("adaptive pool")[d](2), d),
        f"ConstantPad{d}d": of_spikes(lambda d=d: by_dimensions("pad")[d](1, 0.0), d),
    }


@pytest.fixture(params=OPERATIONS, ids=lambda operation: operation.name)
def operation(request):
    return request.param


@lru_cache
def network_of(name):
    """Return a tiny network with this operation, and images for it; in float64, so that no sum decides a spike."""
    torch.manual_seed(0)
    network = NETWORKS[name]()
    images = torch.rand(6, *IMAGES[network.dimensions], generator=torch.Generator().manual_seed(1))
    network(images)
    return network.double().eval(), images.double()


@lru_cache
def converted(operation, backend="spikingjelly", **options):
    network, images = network_of(operation.name)
    options = OPTIONS.get(operation.kind, {}) | options
    return snn_lowlat.convert(network, [images], timesteps=TIMESTEPS, backend=backend, **options), images


def rows_of(graph):
    """Return the rows of what a network consists of; whatever computes has one."""
    rows = {operation_of(graph, node) for node in graph.graph.nodes if node.op.startswith("call")}
    assert None not in rows
    return rows


@torch.no_grad()
def every_way(snn, images):
    """Return what the network's host gives in a time loop and in a window, the reference, and what the user gets."""
    images = images.to(next(snn.network.parameters()).dtype)
    inputs = images.expand(TIMESTEPS, *images.shape)
    snn.reset()
    loop = torch.stack([snn.network(images) for _ in range(TIMESTEPS)])
    window = get_backend(snn.backend).run(snn.network, inputs)
    outputs, _ = simulate(*snn.normal_form(), inputs)
    return loop, window, outputs, snn.readout(images) * torch.arange(1, TIMESTEPS + 1).view(-1, 1, 1)


def test_every_row_has_a_network_here():
    assert {operation.name for operation in OPERATIONS} == set(NETWORKS)
    assert len({operation.name for operation in OPERATIONS}) == len(OPERATIONS)


def test_networks_have_their_operations(operation):
    network, images = network_of(operation.name)
    assert check_convertible(network, images)
    graph = normalise(network, images)
    assert operation in rows_of(graph) | rows_of(converted(operation)[0].normal_form()[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_time_loop_window_and_simulation_agree(operation, backend):
    loop, window, outputs, readout = every_way(*converted(operation, backend))
    for other in (window, outputs):
        torch.testing.assert_close(loop, other, rtol=0, atol=1e-6)
    torch.testing.assert_close(loop.cumsum(0), readout, rtol=0, atol=1e-5)
    assert loop.abs().sum() > 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_saved_and_counted(operation, backend, tmp_path):
    snn, images = converted(operation, backend)
    snn.save(tmp_path / "snn.pt")
    assert torch.equal(snn_lowlat.load(tmp_path / "snn.pt")(images), snn(images))
    counted = measure_operations(snn, [images])[TIMESTEPS]
    assert counted.synaptic_operations > 0
    assert counted.macs > 0


def test_it_is_integer_only_or_refused_by_name(operation):
    network, images = network_of(operation.name)
    if not operation.integers:
        (name,) = (str(node.target) for node in normalise(network, images).graph.nodes if node.target == "layer")
        with pytest.raises(ConversionError, match=f"layer '{name}' can't"):
            converted(operation, precision="int8")
        return
    snn, images = converted(operation, precision="int8")
    first, *others = every_way(snn, images)
    for other in others[:2]:
        assert torch.equal(first, other)
    assert (snn(images) - converted(operation)[0](images)).abs().max() < 0.1


def test_what_keeps_signs_keeps_them(operation):
    snn, images = converted(operation)
    graph, _ = snn.normal_form()
    for module in (module for module in graph.modules() if row(module) is operation):
        if operation.keeps_signs(module):
            assert not (module(images.repeat(1, 2, *[1] * (images.dim() - 2))) < 0).any()


def test_a_rule_understands_each_module():
    made_here = modules("per-step max pool")
    for kind in modules():
        assert kind in made_here or module_rule(kind.__new__(kind)) is not None


def test_queries_are_by_kind_and_fact():
    assert functions("sum") == (operator.add, operator.sub)
    assert modules("convolution", "linear", dimensions=2) == (nn.Conv2d,)
    assert modules("transposed convolution", integers=True) == ()
    assert by_dimensions("pad")[3] is nn.ConstantPad3d
    assert not set(functions(is_saved=True)) & {torch.minimum, torch.floor}


class Odd(nn.Module):
    def forward(self, x):
        return torch.relu(torch.relu(x) * 2)


def test_a_rule_without_a_row_is_an_obstacle(monkeypatch):
    monkeypatch.delitem(vocabulary._ROWS, operator.mul)
    report = check_convertible(Odd(), torch.rand(2, 3))
    assert "no row" in str(report)
    with pytest.raises(ConversionError, match="no row"):
        snn_lowlat.convert(Odd(), torch.rand(2, 3), timesteps=2)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("head", "out_features", 0),
        ("first", "padding", "full"),
        ("first", "padding_mode", "same"),
        ("layer", "size", "x"),
    ],
)
def test_files_name_rows_with_their_options_only(name, option, value):
    graph = without_ceilings(normalise(*network_of("Upsample")))
    description = describe(graph)
    rebuild(description, graph.state_dict())
    description["modules"][name]["options"][option] = value
    with pytest.raises(ValueError, match=f"can't have {option}"):
        rebuild(description, graph.state_dict())
    description["modules"][name] = {"type": "Bilinear", "options": {}}
    with pytest.raises(ValueError, match="none of the normal form"):
        rebuild(description, graph.state_dict())
