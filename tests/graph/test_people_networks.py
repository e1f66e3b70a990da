"""What people's own networks bring along: options, names, hooks, neurons behind neurons, deep sums."""

import logging
import time
from collections import OrderedDict
from types import MethodType

import pytest
import torch
import torch.nn.functional as F
from test_spellings import assert_converts
from torch import nn
from torch.nn.utils import prune

import snn_lowlat
from snn_lowlat import check_convertible
from snn_lowlat.graph import bias_carrier, channel_dimensions, find_sites, normalise


def images(count=4):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def small(*parts):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), *parts, nn.Flatten(), nn.Linear(144, 5)).eval()


# The signature of forward().


class Optional(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.linear, self.scale = nn.Conv2d(3, 4, 3), nn.Linear(144, 5), 1.0

    def body(self, x, scale=1.0):
        return self.linear(F.relu(self.conv(x) * scale).flatten(1))


def with_forward(forward):
    return type("Net", (Optional,), {"forward": forward})()


def flag(self, x, flag=False, other=True):
    return self.body(x, 2.0) if flag or not other else self.body(x)


def none(self, x, mask=None):
    return self.body(x) if mask is None else self.body(x * mask)


def values(self, x, number=2, share=0.5, name="relu", sizes=(1, 2), table={"scale": 3.0}, none=None):  # noqa: B006
    if none is None and len(sizes) == 2 and name == "relu":
        return self.body(x, number * share * table["scale"])
    return None


def keyword_only(self, x, *, scale=2.0, features=False):
    return (x, self.body(x)) if features else self.body(x, scale)


def variable(self, x, *args, scale=1.0, **kwargs):
    return self.body(x, kwargs.get("factor", scale + len(args)))


def all_variable(self, *inputs):
    return self.body(inputs[0]) if len(inputs) == 1 else None


def optional_input(self, x=None, tensor=torch.ones(1)):  # noqa: B008
    return self.body(x * tensor)


def positional_only(self, x, /, flag=False):
    return self.body(x)


def attribute(self, x):
    return self.body(x, self.scale) if self.scale > 0 else None


FORWARDS = [flag, none, values, keyword_only, variable, all_variable, optional_input, positional_only, attribute]


@pytest.mark.parametrize("forward", FORWARDS, ids=lambda forward: forward.__name__)
def test_options_of_forward_keep_their_defaults(forward):
    assert len(find_sites(assert_converts(with_forward(forward)))) == 1


@pytest.mark.parametrize(
    ("forward", "words"),
    [
        (lambda self, x, y: self.body(x + y), "takes 2 inputs (x, y)"),
        (lambda self, x, *, mask: self.body(x), "takes 2 inputs (x, mask)"),
        (lambda self, **inputs: self.body(inputs["x"]), "no tensor by position"),
        (lambda self: None, "no tensor by position"),
    ],
)
def test_a_network_of_several_inputs_is_an_obstacle_that_names_them(forward, words):
    report = check_convertible(with_forward(forward), images())
    assert words in str(report)
    assert len(report.obstacles) == 1


def test_an_instance_s_own_forward_is_what_is_converted():
    model = small()
    model.forward = MethodType(lambda self, x: 2 * nn.Sequential.forward(self, x), model)
    graph = normalise(model, images())
    torch.testing.assert_close(graph(images()), model(images()), rtol=1e-4, atol=1e-5)


def test_a_forward_that_calls_another_network_s_layers_is_an_obstacle():
    model = small()
    model.forward = lambda x: 2 * nn.Sequential.forward(model, x)
    assert "no part of the network" in str(check_convertible(model, images()))


# Names of layers.

NAMES = [
    "in",
    "class",
    "graph",
    "self",
    "lambda",
    "None",
    "1",
    "input",
    "x",
    "code",
    "meta",
    "a/b",
    "a b",
    "größe",
    "层",
    "é" * 60,
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("backend", "precision"), [("spikingjelly", "int8"), ("snntorch", "fp32")])
def test_a_layer_of_any_name_converts(name, backend, precision, tmp_path):
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)]
    names = [f"{name}c", f"{name}r", f"{name}d", name, "flatten", f"{name}l"]
    torch.manual_seed(0)
    model = nn.Sequential(OrderedDict(zip(names, layers, strict=True))).eval()
    options = {"timesteps": 4, "backend": backend, "precision": precision, "refinements": ["bias_correction"]}
    snn = snn_lowlat.convert(model, images(), **options)
    assert tuple(snn.plan) == check_convertible(model, images()).sites
    snn.save(tmp_path / "snn.pt")
    for loaded in (snn_lowlat.load(tmp_path / "snn.pt"), snn_lowlat.load(tmp_path / "snn.pt", model=model)):
        assert torch.equal(loaded(images()), snn(images()))
    snn.run_on_host = True
    torch.testing.assert_close(snn(images()), loaded(images()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("first", ["x", "x_amplitude"])
@pytest.mark.parametrize("suffix", ["amplitude", "ceiling", "step", "pool", "constant"])
def test_layers_named_as_what_hosts_add_to_a_site(first, suffix, tmp_path):
    other = f"x_{suffix}"
    names = ["x", other] if first == "x" else [other, "x"]

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.stem = nn.Conv2d(3, 4, 3)
            self.add_module(names[0], snn_lowlat.training.CeilingReLU(1.0, channels=4))
            self.add_module(names[1], nn.Conv2d(4, 4, 1))
            self.linear = nn.Linear(36, 5)

        def forward(self, x):
            x = getattr(self, names[0])(self.stem(x))
            return self.linear(F.max_pool2d(F.relu(getattr(self, names[1])(x)), 2).flatten(1))

    assert_converts(Net(), refinements=["bias_correction"])
    snn = snn_lowlat.convert(Net().eval(), images(), timesteps=4)
    snn.save(tmp_path / "snn.pt")
    for options in ({}, {"model": Net()}):
        assert torch.equal(snn_lowlat.load(tmp_path / "snn.pt", **options)(images()), snn(images()))


# Hooks.


def weight_norm(model):
    nn.utils.weight_norm(model[0])
    with torch.no_grad():
        model[0].weight_g *= 1.5


def spectral_norm(model):
    nn.utils.spectral_norm(model[0])


def pruned(model):
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    prune.random_unstructured(model[-1], "bias", amount=0.5)


def parametrised(model):
    nn.utils.parametrizations.spectral_norm(model[0])
    nn.utils.parametrizations.weight_norm(model[-1])


def orthogonal(model):
    nn.utils.parametrizations.orthogonal(model[-1])


@pytest.mark.parametrize("normalised", [weight_norm, spectral_norm, pruned, parametrised, orthogonal])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_weights_that_are_computed_are_baked_in(normalised, precision):
    model = small().train()
    normalised(model)
    model(images()).sum().backward()  # a computed weight has a history, and spectral norm another estimate
    graph = assert_converts(model, precision=precision, refinements=["bias_correction"])
    assert all(set(dict(m.named_parameters())) <= {"weight", "bias"} for m in graph.children())


def test_hooks_that_only_watch_change_nothing():
    model, seen = small(), []
    for module in model.modules():
        module.register_forward_hook(lambda m, args, output: seen.append(output.detach().numpy().mean()))
        module.register_forward_pre_hook(lambda m, args: seen.append(float(args[0].std())))
        module.register_forward_hook(lambda m, args, kwargs, output: output, with_kwargs=True)
    model.register_full_backward_hook(lambda m, grads, outputs: None)
    graph = normalise(model, images())
    assert seen
    assert not any(module._forward_hooks for module in graph.modules())
    assert model[0]._forward_hooks
    assert check_convertible(model, images()).sites == ("1",)


def doubled(module, args, output):
    return 2 * output


def in_place(module, args, output):
    output.mul_(2)


def halved_input(module, args):
    return args[0] / 2


@pytest.mark.parametrize(("register", "hook", "words"), [
    ("register_forward_hook", doubled, "output"),
    ("register_forward_hook", in_place, "output"),
    ("register_forward_pre_hook", halved_input, "input"),
])  # fmt: skip
@pytest.mark.parametrize("place", ["", "0", "2.1"])
def test_a_hook_that_changes_values_is_an_obstacle_that_names_it(register, hook, words, place):
    model = small(nn.Sequential(nn.Identity(), nn.Conv2d(4, 4, 1)))
    getattr(model.get_submodule(place), register)(hook)
    report = check_convertible(model, images())
    (obstacle,) = report.obstacles
    assert hook.__name__ in obstacle.operation
    assert f"({place or 'the network itself'})" in obstacle.operation
    assert f"changes the module's {words}" in obstacle.advice


# Neurons that read neurons.

BEHIND = {
    "relu": nn.ReLU(),
    "relu6": nn.ReLU6(),
    "clamp": lambda x: x.clamp(0, 1),
    "clamp above": lambda x: x.clamp(max=1),
    "dropout, relu": nn.Sequential(nn.Dropout(), nn.ReLU()),
    "flatten, relu": nn.Sequential(nn.Flatten(), nn.ReLU()),
    "flatten, relu6": nn.Sequential(nn.Flatten(), nn.ReLU6()),
    "pool, relu": nn.Sequential(nn.AvgPool2d(2), nn.ReLU()),
    "pool, relu6": nn.Sequential(nn.AvgPool2d(2), nn.ReLU6()),
    "pool, clamp above": nn.Sequential(nn.AvgPool2d(2), nn.Hardtanh(0, 1)),
    "max-pool, relu6": nn.Sequential(nn.MaxPool2d(2), nn.ReLU6()),
    "max-pool, relu": nn.Sequential(nn.MaxPool2d(2), nn.ReLU()),
    "batch norm, relu": nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()),
    "scale, relu": lambda x: F.relu(0.5 * x),
    "sum, relu": lambda x: F.relu(x + F.avg_pool2d(x, 3, 1, 1)),
    "difference, relu": lambda x: F.relu(x - F.avg_pool2d(x, 3, 1, 1)),
    "relu, pool, relu": nn.Sequential(nn.ReLU(), nn.AvgPool2d(2), nn.ReLU(), nn.AvgPool2d(3), nn.ReLU()),
}
DROPPED = ("relu", "relu6", "clamp", "clamp above", "dropout, relu", "flatten, relu", "max-pool, relu")


class Behind(nn.Module):
    def __init__(self, part):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.part = nn.Conv2d(3, 4, 3), part
        with torch.no_grad():
            self.linear = nn.Linear(part(torch.rand(2, 4, 6, 6)).flatten(1).shape[1], 5)

    def forward(self, x):
        return self.linear(self.part(F.relu(self.conv(x))).flatten(1))


STRATEGIES = [
    ("optimized_potential", ["bias_correction"]),
    ("distribution_aware", ["bias_correction"]),
    ("threshold_balancing", ["bias_correction"]),
    ("temporal_switch", ["bias_correction"]),
    ("value_range", ["bias_correction", "channel_thresholds"]),
    ("value_range", ["channel_thresholds", "bias_correction"]),
]


FAST = ("pool, relu6", "max-pool, relu6")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in FAST)) for n in BEHIND])
@pytest.mark.parametrize("row", STRATEGIES, ids=lambda row: f"{row[0]}-{row[1][0]}")
def test_neurons_may_read_neurons(name, row):
    strategy, refinements = row
    assert_converts(Behind(BEHIND[name]).eval(), images(8), strategy=strategy, refinements=refinements)


@pytest.mark.parametrize("name", BEHIND)
def test_an_activation_that_changes_nothing_is_dropped(name):
    graph = assert_converts(Behind(BEHIND[name]).eval(), images(8), backends=())
    assert len(find_sites(graph)) == (1 if name in DROPPED else 3 if name == "relu, pool, relu" else 2)


def test_refinements_say_which_layer_stays_as_it_is(caplog):
    model = Behind(BEHIND["pool, relu6"]).eval()
    with caplog.at_level(logging.WARNING):
        snn = snn_lowlat.convert(model, images(), refinements=["bias_correction"])
    second = list(snn.plan)[1]
    assert any(second in record.getMessage() for record in caplog.records)
    graph = normalise(model, images())
    assert bias_carrier(graph, find_sites(graph)[second], channel_dimensions(graph, images())) is None


# Deep sums.


class Deep(nn.Module):
    def __init__(self, doubled):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.second, self.doubled = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1), doubled

    def forward(self, x):
        x = start = self.conv(x)
        for _ in range(30 if self.doubled else 2000):
            x = x / 2 + (x / 2 if self.doubled else start * 1e-3)
        return F.max_pool2d(self.second(F.relu(F.max_pool2d(x, 2))), 2).flatten(1)


@pytest.mark.parametrize("doubled", [True, False])
def test_deep_sums_before_a_max_pool_are_walked_once(doubled):
    model, example = Deep(doubled).eval(), torch.randn(2, 1, 4, 4)
    started = time.perf_counter()
    graph = normalise(model, example)
    torch.testing.assert_close(graph(example), model(example), rtol=1e-4, atol=1e-5)
    channels = channel_dimensions(graph, example)
    for site in find_sites(graph).values():
        bias_carrier(graph, site, channels)
    assert time.perf_counter() - started < 30
