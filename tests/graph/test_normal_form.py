import operator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from snn_lowlat import ConversionError, check_convertible
from snn_lowlat.activations import CeilingReLU
from snn_lowlat.graph import bias_carrier, channel_dimensions, depth, find_sites, normalise, output_bias_carrier


class Lambda(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def conv(seed=0, channels=8, inputs=3):
    torch.manual_seed(seed)
    return nn.Conv2d(inputs, channels, 3, padding=1)


def net(*parts):
    """A convolution, then the parts, each a module or a function."""
    return nn.Sequential(conv(), *[p if isinstance(p, nn.Module) else Lambda(p) for p in parts])


@pytest.fixture
def images():
    torch.manual_seed(1)
    return torch.randn(4, 3, 8, 8)


def assert_same(model, images, tolerance=1e-5):
    model.eval()
    graph = normalise(model, images[:2])
    with torch.no_grad():
        torch.testing.assert_close(graph(images), model(images), rtol=tolerance, atol=tolerance)
    return graph


ACTIVATIONS = {
    "module": (nn.ReLU(), None),
    "in place": (nn.ReLU(inplace=True), None),
    "F.relu": (F.relu, None),
    "F.relu in place": (lambda x: F.relu(x, inplace=True), None),
    "torch.relu": (torch.relu, None),
    "method": (lambda x: x.relu(), None),
    "method in place": (lambda x: x.relu_(), None),
    "clamp": (lambda x: x.clamp(min=0), None),
    "torch.clamp": (lambda x: torch.clamp(x, 0), None),
    "clamp_min": (lambda x: x.clamp_min(0), None),
    "threshold": (nn.Threshold(0, 0), None),
    "ReLU6": (nn.ReLU6(), 6.0),
    "F.relu6": (F.relu6, 6.0),
    "Hardtanh": (nn.Hardtanh(0.0, 0.7), 0.7),
    "F.hardtanh": (lambda x: F.hardtanh(x, 0.0, 0.7), 0.7),
    "clamp with ceiling": (lambda x: x.clamp(0, 0.5), 0.5),
    "clamp of relu": (lambda x: F.relu(x).clamp(max=0.5), 0.5),
    "clamp_max of relu": (lambda x: x.relu().clamp_max(0.5), 0.5),
    "trained ceiling": (CeilingReLU(0.4), 0.4),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_spelling_of_relu_becomes_a_site(name, images):
    activation, ceiling = ACTIVATIONS[name]
    graph = assert_same(net(activation, nn.Flatten(), nn.Linear(512, 5)), images)
    (site,) = find_sites(graph).values()
    assert (site.ceiling is None) == (ceiling is None)
    if ceiling is not None:
        assert site.ceiling.item() == pytest.approx(ceiling)


def test_a_ceiling_for_each_channel(images):
    activation = CeilingReLU(1.0, channels=8)
    with torch.no_grad():
        activation.ceiling.copy_(torch.linspace(0.1, 0.8, 8))
    (site,) = find_sites(assert_same(net(activation), images)).values()
    assert torch.equal(site.ceiling, activation.ceiling.detach())


def test_each_use_of_a_shared_activation_is_a_site_of_its_own(images):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.relu = conv(), conv(1, inputs=8), nn.ReLU(inplace=True)

        def forward(self, x):
            return self.relu(self.second(self.relu(self.first(x))))

    assert list(find_sites(assert_same(Shared(), images))) == ["relu", "relu_1"]


SHAPES = {
    "sizes read from tensors": lambda x: F.avg_pool2d(x, x.size()[3]).view(x.size(0), -1),
    "adaptive pooling": lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1),
    "mean": lambda x: x.mean([2, 3]),
    "mean with keepdim": lambda x: x.mean((-1, -2), keepdim=True).squeeze(-1).squeeze(-1),
    "sum": lambda x: x.sum(dim=(2, 3)),
    "max_pool2d": lambda x: F.max_pool2d(x, 2),
    "max_pool2d with sizes": lambda x: F.max_pool2d(x, kernel_size=x.shape[-1] // 2, stride=2, padding=1),
    "avg_pool2d with padding": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "pad": lambda x: F.pad(x, (1, 0, 2, 1)),
    "pad channels": lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)),
    "slices": lambda x: x[:, 2:6, ..., 1:],
    "one column": lambda x: x[:, :, 0],
    "ellipsis": lambda x: x[..., ::2],
    "cat": lambda x: torch.cat([x, 2 * x], 1),
    "cat of negative dim": lambda x: torch.cat((x, x), dim=-3),
    "chunk": lambda x: operator.add(*x.chunk(2, dim=1)),
    "split": lambda x: torch.cat(torch.split(x, [3, 5], dim=1)[::-1], 1),
    "shuffle": lambda x: x.view(x.shape[0], 2, 4, 8, 8).transpose(1, 2).contiguous().view(x.shape[0], -1, 8, 8),
    "permute": lambda x: x.permute(0, 1, 3, 2),
    "+": lambda x: x + x[:, [0, 1, 2, 3, 4, 5, 6, 7][0] :],
    "torch.add with alpha": lambda x: torch.add(x, x, alpha=3),
    "minus a constant": lambda x: 1 - x / 4,
    "zero shortcut": lambda x: torch.cat([x, torch.zeros_like(x)], 1),
    "interpolate": lambda x: F.interpolate(x, scale_factor=2.0),
    "dropout": lambda x: F.dropout(x, 0.5, False),
    "loop over sizes": lambda x: sum(x[:, i : i + 1] for i in range(x.shape[1])),
    "branch on sizes": lambda x: x * 2 if x.shape[2] == 8 else x,
    "detach and clone": lambda x: x.detach().clone().contiguous(),
}


@pytest.mark.parametrize("name", SHAPES)
def test_operations_between_sites(name, images):
    graph = assert_same(net(nn.ReLU(), SHAPES[name]), images)
    assert len(find_sites(graph)) == 1


def test_in_place_addition(images):
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = conv(), conv(1, inputs=8)

        def forward(self, x):
            x = F.relu(self.first(x))
            out = self.second(x)
            out += x
            return F.relu(out)

    graph = assert_same(Residual(), images)
    first, second = find_sites(graph).values()
    channels = channel_dimensions(graph, images)
    assert [bias_carrier(graph, site, channels) for site in (first, second)] == ["first", "second"]
    assert depth(graph) == 2


def test_constant_tensors_and_normalisation_inside_the_network(images):
    class Normalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.rand(1, 3, 1, 1))
            self.std = nn.Parameter(torch.rand(3, 1, 1) + 0.5)
            self.conv = conv()

        def forward(self, x):
            return F.relu(self.conv((x - self.mean) / self.std))

    assert_same(Normalised(), images)


def test_functional_layers(images):
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(4, 3, 3, 3))
            self.weight = nn.Parameter(torch.randn(5, 4))

        def forward(self, x):
            x = F.relu(F.conv2d(x, self.kernel, stride=2, padding=1))
            return F.linear(x.mean((2, 3)), self.weight)

    assert_same(Functional(), images)


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_is_folded_after_convolutions_and_linear_layers(affine, images):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8, affine=affine),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 4, 2, 2),
        nn.BatchNorm2d(4, affine=affine),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(576, 10),
        nn.BatchNorm1d(10, affine=affine),
        nn.ReLU(),
    )
    for _ in range(5):
        model(torch.randn(16, 3, 8, 8))
    graph = assert_same(model, images, 1e-4)
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in graph.modules())


def test_a_batch_norm_that_cannot_be_folded_stays(images):
    model = nn.Sequential(conv(), nn.ReLU(), nn.BatchNorm2d(8), nn.ReLU())
    model(torch.randn(16, 3, 8, 8))
    graph = assert_same(model, images)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in graph.modules()) == 1
    assert bias_carrier(graph, list(find_sites(graph).values())[1], channel_dimensions(graph, images)) == "2"


def test_a_layer_shared_by_two_batch_norms_is_folded_twice(images):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.first, self.second = conv(), nn.BatchNorm2d(8), nn.BatchNorm2d(8)

        def forward(self, x):
            return F.relu(self.first(self.conv(x))) + F.relu(self.second(self.conv(x)))

    model = Shared()
    model(torch.randn(16, 3, 8, 8) * 3)
    model.second(torch.randn(16, 8, 4, 4) + 2)
    assert_same(model, images, 1e-4)


class TestMaxPool:
    def order(self, graph):
        return [type(graph.get_submodule(n.target)).__name__ for n in graph.graph.nodes if n.op == "call_module"]

    def test_moves_before_the_activation(self, images):
        graph = assert_same(net(nn.ReLU(), nn.Dropout(), nn.MaxPool2d(3, 2, 1)), images)
        assert self.order(graph) == ["Conv2d", "MaxPool2d", "ReLU"]

    def test_moves_before_a_ceiling(self, images):
        graph = assert_same(net(nn.ReLU6(), nn.MaxPool2d(2)), images)
        assert self.order(graph) == ["Conv2d", "MaxPool2d", "ReLU"]
        assert find_sites(graph)["1"].ceiling.item() == 6

    def test_two_pools_move(self, images):
        graph = assert_same(net(nn.ReLU(), nn.MaxPool2d(2), nn.MaxPool2d(2)), images)
        assert self.order(graph) == ["Conv2d", "MaxPool2d", "MaxPool2d", "ReLU"]

    def test_an_activation_that_others_read_keeps_its_neurons(self, images):
        class Both(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = conv()

            def forward(self, x):
                x = F.relu(self.conv(x))
                return torch.cat([F.max_pool2d(x, 2), F.avg_pool2d(x, 2)], 1)

        graph = assert_same(Both(), images)
        assert sorted(self.order(graph)) == ["AvgPool2d", "Conv2d", "MaxPool2d", "ReLU", "ReLU"]

    def test_moves_through_a_concatenation(self, images):
        class Inception(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.second = conv(), conv(1)

            def forward(self, x):
                return F.max_pool2d(torch.cat([F.relu(self.first(x)), F.relu6(self.second(x))], 1), 2)

        graph = assert_same(Inception(), images)
        assert sorted(self.order(graph)) == ["Conv2d", "Conv2d", "MaxPool2d", "MaxPool2d", "ReLU", "ReLU"]


OBSTACLES = {
    "SiLU": (nn.SiLU(), "SiLU"),
    "sigmoid": (torch.sigmoid, "sigmoid"),
    "gelu": (F.gelu, "gelu"),
    "layer norm": (nn.LayerNorm(8), "LayerNorm"),
    "gate": (lambda x: x * x, "multiplies two activations"),
    "softmax": (lambda x: F.softmax(x, 1), "softmax"),
    "batch in the shape": (lambda x: x.view(-1, 8), "mixes"),
    "cat along the batch": (lambda x: torch.cat([x, x]), "batch"),
    "one image": (lambda x: x[0], "batch"),
    "Hardtanh(-1, 1)": (nn.Hardtanh(), "negative"),
    "tuple": (lambda x: (x, x), "returns a tuple"),
    "data-dependent branch": (lambda x: x if x.sum() > 0 else -x, "tracing stopped"),
    "lstm": (nn.LSTM(8, 8), "LSTM"),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_obstacles_are_named(name, images):
    part, words = OBSTACLES[name]
    report = check_convertible(net(nn.ReLU(), part), images)
    assert not report
    assert words in str(report)
    with pytest.raises(ConversionError, match="obstacle") as error:
        normalise(net(nn.ReLU(), part), images)
    assert error.value.obstacles == report.obstacles


def test_all_obstacles_are_listed_at_once(images):
    report = check_convertible(net(nn.SiLU(), torch.sigmoid, nn.ReLU(), torch.tanh), images)
    assert [obstacle.operation.split()[0] for obstacle in report.obstacles] == ["SiLU", "sigmoid()", "tanh()"]
    assert "node 'sigmoid'" in str(report)


def test_an_activation_read_after_being_changed_in_place_is_read_changed(images):
    class Aliased(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = conv(), conv(1, inputs=8)

        def forward(self, x):
            x = self.first(x)
            return self.second(F.relu(x, inplace=True)) + x

    assert len(find_sites(assert_same(Aliased(), images))) == 1


def test_a_tensor_of_the_batch_s_size_is_noticed(images):
    model = net(nn.ReLU(), lambda x: torch.cat([x, x + torch.zeros(x.shape)], 1))
    assert "batch" in str(check_convertible(model, images))


def test_a_network_without_relu_is_not_convertible(images):
    assert "nothing to convert" in str(check_convertible(nn.Sequential(conv()), images))


def test_the_report_of_a_convertible_network(images):
    report = check_convertible(net(nn.ReLU()), images)
    assert report.convertible
    assert report.sites == ("1",)
    assert str(report) == "convertible, layers of neurons (1): 1"


def test_the_users_network_is_not_changed(images):
    model = net(nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2)).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    graph = normalise(model, images)
    with torch.no_grad():
        for parameter in graph.parameters():
            parameter.add_(1)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_torch_traces_the_normal_form_to_itself(images):
    graph = normalise(net(CeilingReLU(0.3, channels=8), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(128, 5)), images)
    again = torch.fx.symbolic_trace(graph)
    assert [(n.op, str(n.target)) for n in again.graph.nodes] == [(n.op, str(n.target)) for n in graph.graph.nodes]


def test_every_layer_with_weights_has_a_bias(images):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3, bias=False))
    graph = assert_same(model, images)
    assert all(m.bias is not None for m in graph.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
    assert output_bias_carrier(graph, channel_dimensions(graph, images)) == "3"


def test_weight_norm_is_resolved(images):
    model = net(nn.ReLU())
    nn.utils.parametrizations.weight_norm(model[0])
    assert_same(model, images)


@pytest.mark.parametrize("example", [torch.zeros(3), torch.zeros(0, 3, 8, 8), "image"])
def test_an_example_that_is_no_batch_is_refused(example):
    with pytest.raises(ConversionError, match="batch"):
        check_convertible(net(nn.ReLU()), example)
