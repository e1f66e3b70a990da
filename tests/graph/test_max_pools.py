"""Max-pools stand before neurons in the normal form, whatever stood between."""

import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import snn_lowlat
from snn_lowlat.graph import check_convertible, find_sites, normalise
from snn_lowlat.neurons import MAX_POOLS


@pytest.fixture
def images():
    return torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def net(*parts, channels=8):
    torch.manual_seed(0)

    class Part(nn.Module):
        def __init__(self, function):
            super().__init__()
            self.function = function

        def forward(self, x):
            return self.function(x)

    parts = [part if isinstance(part, nn.Module) else Part(part) for part in parts]
    layers = [nn.Conv2d(3, 8, 3, padding=1), *parts, nn.Conv2d(channels, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers).eval()


def norm(*scales):
    """Return a batch norm of 8 channels with these scales, and other statistics than 0 and 1."""
    torch.manual_seed(1)
    layer = nn.BatchNorm2d(8)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([*scales] * 8)[:8])
        for values in (layer.bias, layer.running_mean):
            values.normal_()
        layer.running_var.uniform_(0.5, 2)
    return layer


def order(graph):
    return [type(graph.get_submodule(n.target)).__name__ for n in graph.graph.nodes if n.op == "call_module"]


def assert_same(model, images):
    graph = normalise(model, images)
    with torch.no_grad():
        torch.testing.assert_close(graph(images), model(images), rtol=1e-4, atol=1e-5)
    return graph


def pools_read_currents(graph):
    """Say whether every pool has neurons behind it before anything with weights but a batch norm."""
    for node in graph.graph.nodes:
        if node.op == "call_module" and isinstance(graph.get_submodule(node.target), MAX_POOLS):
            (user,) = node.users
            if user.target is torch.mul or user.op == "call_function":
                (user,) = user.users
            assert isinstance(graph.get_submodule(user.target), (nn.ReLU, *MAX_POOLS)), user
    return True


def test_moves_through_a_batch_norm_of_positive_scales(images):
    graph = assert_same(net(nn.ReLU(), norm(0.5, 2.0), nn.MaxPool2d(2)), images)
    assert order(graph)[:4] == ["Conv2d", "MaxPool2d", "ReLU", "BatchNorm2d"]


@pytest.mark.parametrize("scales", [(-1.0,), (0.5, -2.0), (0.0, -1.0, 3.0)])
def test_moves_through_a_batch_norm_of_any_scales(images, scales):
    """A channel with a negative scale has its largest value where the activation is the smallest."""
    graph = assert_same(net(nn.ReLU(), norm(*scales), nn.MaxPool2d(3, 2, 1)), images)
    assert order(graph)[:4] == ["Conv2d", "MaxPool2d", "ReLU", "BatchNorm2d"]
    assert pools_read_currents(graph)


def test_moves_through_two_batch_norms_and_a_ceiling(images):
    graph = assert_same(net(nn.ReLU6(), norm(-1.0, 1.0), norm(-2.0), nn.MaxPool2d(2)), images)
    assert order(graph)[:3] == ["Conv2d", "MaxPool2d", "ReLU"]
    assert find_sites(graph)["1"].ceiling.item() == 6


@pytest.mark.parametrize("value", [0.0, -1.0, -torch.inf, 0.5])
def test_padding_moves_with_the_pool(images, value):
    graph = assert_same(net(nn.ReLU(), nn.ConstantPad2d((0, 1, 0, 1), value), nn.MaxPool2d(3, 2)), images)
    assert order(graph)[:4] == ["Conv2d", "ConstantPad2d", "MaxPool2d", "ReLU"]


def test_padding_moves_through_a_batch_norm(images):
    graph = assert_same(net(nn.ReLU(), nn.ZeroPad2d(1), norm(1.0, -1.0), nn.MaxPool2d(3, 2)), images)
    assert pools_read_currents(graph)


def test_padding_behind_a_batch_norm_stays(images):
    assert_same(net(nn.ReLU(), norm(1.0, -1.0), nn.ZeroPad2d(1), nn.MaxPool2d(3, 2)), images)


@pytest.mark.parametrize(
    "between",
    [
        lambda x: x + x,
        lambda x: F.avg_pool2d(x, 3, 1, 1),
        lambda x: x.reshape(-1, 2, 4, 8, 8).permute(0, 2, 1, 3, 4).reshape(-1, 8, 8, 8),
        lambda x: torch.cat([x[:, :4] + x[:, 4:], x[:, 4:]], 1),
    ],
    ids=["sum", "average", "shuffle", "slices"],
)
def test_what_adds_up_activations_gets_neurons_behind_its_pool(images, between):
    graph = assert_same(net(nn.ReLU(), between, nn.MaxPool2d(2)), images)
    assert len(find_sites(graph)) == 2
    assert pools_read_currents(graph)


def test_a_pool_before_an_activation_gets_no_second_one(images):
    graph = assert_same(net(nn.ReLU(), lambda x: x + x, nn.MaxPool2d(2), nn.BatchNorm2d(8), nn.ReLU()), images)
    assert len(find_sites(graph)) == 2


def test_a_norm_that_others_read_keeps_its_neurons(images):
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), norm(1.0, -1.0)
            self.head = nn.Conv2d(16, 4, 1)

        def forward(self, x):
            x = self.norm(F.relu(self.conv(x)))
            return self.head(torch.cat([F.max_pool2d(x, 2), F.avg_pool2d(x, 2)], 1)).mean((2, 3))

    torch.manual_seed(0)
    graph = assert_same(Both().eval(), images)
    assert len(find_sites(graph)) == 2


def test_thousands_of_sums_before_a_pool_take_no_time(images):
    def deep(x):
        for _ in range(600):
            x = (x + x) * 0.5
        return x

    started = time.process_time()
    assert check_convertible(net(nn.ReLU(), deep, nn.MaxPool2d(2)), images)
    assert time.process_time() - started < 20


@pytest.mark.parametrize("backend", ["spikingjelly", "snntorch"])
@pytest.mark.parametrize("strategy", ["optimized_potential", "value_range", "temporal_switch"])
def test_rewritten_pools_converge_to_the_network(images, backend, strategy):
    model = net(nn.ReLU(), norm(0.5, -2.0), nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(2), lambda x: x + x)
    errors = []
    for timesteps in (2, 64):
        snn = snn_lowlat.convert(model, [images], strategy=strategy, timesteps=timesteps, backend=backend)
        with torch.no_grad():
            errors.append(float((snn.simulate(images) - model(images)).abs().mean()))
    assert errors[1] < 0.3 * errors[0]
