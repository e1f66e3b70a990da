"""Every spelling that torch allows of what can be converted, through both hosts."""

import operator
from types import MethodType

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import snn_lowlat
from snn_lowlat import check_convertible
from snn_lowlat.activations import CeilingReLU
from snn_lowlat.graph import find_sites, normalise
from snn_lowlat.hosts import BACKENDS


class Head(nn.Module):
    """A convolution, what is to be tried, and a linear layer that fits."""

    def __init__(self, part, *extra):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.part = nn.Conv2d(3, 8, 3, padding=1), part
        self.extra = nn.ModuleList(extra)
        with torch.no_grad():
            self.linear = nn.Linear(self.features(images(2)).flatten(1).shape[1], 5)

    def features(self, x):
        return self.part(self.conv(x), *self.extra)

    def forward(self, x):
        return self.linear(self.features(x).flatten(1))


def images(count=4):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def assert_converts(model, example=None, backends=BACKENDS, **options):
    """The normal form computes what the network does, check and conversion agree, and both hosts run; return it."""
    model.eval()
    example = images() if example is None else example
    report = check_convertible(model, example)
    assert report, str(report)
    graph = normalise(model, example[:2])
    with torch.no_grad():
        torch.testing.assert_close(graph(example), model(example), rtol=1e-4, atol=1e-5)
    logits = []
    for backend in backends:
        snn = snn_lowlat.convert(model, [example], timesteps=4, backend=backend, **options)
        assert tuple(snn.plan) == report.sites
        snn.run_on_host = True
        logits.append(snn(example))
        assert logits[-1].isfinite().all()
    for other in logits[1:]:
        torch.testing.assert_close(other, logits[0], rtol=1e-4, atol=1e-5)
    return graph


RELUS = {
    "keyword input": lambda x: F.relu(input=x),
    "keyword of torch.relu": lambda x: torch.relu(input=x),
    "relu_ of functional": F.relu_,
    "torch.relu_": torch.relu_,
    "F.threshold": lambda x: F.threshold(x, 0, 0),
    "torch.threshold": lambda x: torch.threshold(input=x, threshold=0, value=0),
    "F.threshold_": lambda x: F.threshold_(x, 0.0, 0.0),
    "maximum with a tensor": lambda x: torch.maximum(x, torch.zeros(1)),
    "maximum the other way": lambda x: torch.maximum(torch.tensor(0.0), x),
    "maximum with zeros_like": lambda x: torch.maximum(x, torch.zeros_like(x)),
    "max with a tensor": lambda x: torch.max(x, torch.tensor(0.0)),
    "max as a method": lambda x: x.max(torch.tensor(0.0)),
    "fmax": lambda x: torch.fmax(x, torch.zeros(())),
    "clamp_min": lambda x: torch.clamp_min(x, min=0),
    "clamp_": lambda x: x.clamp_(0),
    "clip": lambda x: torch.clip(input=x, min=0.0),
    "clamp with a tensor": lambda x: x.clamp(min=torch.tensor(0.0)),
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "where with a tensor": lambda x: torch.where(x >= 0, x, torch.zeros_like(x)),
    "where the other way": lambda x: torch.where(x < 0, torch.tensor(0.0), x),
    "where with keywords": lambda x: torch.where(condition=x > 0, input=x, other=torch.zeros(())),
    "where as a method": lambda x: x.where(x > 0, torch.tensor(0.0)),
    "masked_fill": lambda x: x.masked_fill(x < 0, 0.0),
    "times a mask": lambda x: x * (x > 0),
    "times a mask of numbers": lambda x: (x > 0).float() * x,
    "hardtanh with keywords": lambda x: F.hardtanh(input=x, min_val=0, max_val=100.0),
    "relu with out": lambda x: torch.clamp(x, min=0, out=torch.empty(0)),
}


@pytest.mark.parametrize("name", RELUS)
def test_every_spelling_of_relu(name):
    graph = assert_converts(Head(RELUS[name]))
    assert len(find_sites(graph)) == 1


CLIPPED = {
    "clamp with a tensor": lambda x: x.clamp(torch.tensor(0.0), torch.tensor(0.5)),
    "minimum of relu": lambda x: torch.minimum(F.relu(x), torch.tensor(0.5)),
    "minimum the other way": lambda x: torch.minimum(torch.tensor(0.5), F.relu(x)),
    "min of max": lambda x: torch.min(torch.max(x, torch.tensor(0.0)), torch.tensor(0.5)),
    "clamp_max": lambda x: torch.clamp_max(input=F.relu(x), max=0.5),
    "clamp of relu": lambda x: F.relu(x).clamp(0, 0.5),
    "hardtanh of relu": lambda x: F.hardtanh(F.relu(x), 0, 0.5),
    "two ceilings": lambda x: F.relu6(x).clamp(max=0.5).clamp(0, 3),
    "relu of clamp": lambda x: F.relu(x.clamp(0, 0.5)),
    "scaled and scaled back": lambda x: torch.clamp(x / 0.5, 0, 1) * 0.5,
}


@pytest.mark.parametrize("name", CLIPPED)
def test_every_spelling_of_a_clipped_relu(name):
    graph = assert_converts(Head(CLIPPED[name]))
    (site,) = find_sites(graph).values()
    assert site.ceiling.item() == pytest.approx(0.5)
    assert site.current.target == "conv"


def test_a_clipped_relu_keeps_its_module_name():
    assert list(find_sites(normalise(Head(lambda x, relu: relu(x).clamp(max=1), nn.ReLU()), images()))) == ["extra_0"]


FOLLOWING = {
    "keyword of flatten": lambda x: torch.flatten(input=x, start_dim=1),
    "keyword of add": lambda x: torch.add(input=x, other=x, alpha=2),
    "keyword of mul": lambda x: torch.mul(input=x, other=0.5),
    "keyword of cat": lambda x: torch.cat(tensors=[x, x], dim=1),
    "axis of cat": lambda x: torch.concatenate([x, x], axis=1),
    "keyword of split": lambda x: torch.split(x, split_size_or_sections=4, dim=1)[0],
    "keyword of chunk": lambda x: torch.chunk(input=x, chunks=2, dim=1)[1],
    "keyword of mean": lambda x: torch.mean(input=x, dim=(2, 3)),
    "axis of mean": lambda x: x.mean(axis=(2, 3), keepdims=True),
    "keyword of permute": lambda x: torch.permute(input=x, dims=(0, 1, 3, 2)),
    "keyword of transpose": lambda x: torch.transpose(x, dim0=2, dim1=3),
    "keyword of a pool": lambda x: F.avg_pool2d(input=x, kernel_size=2),
    "keyword of max-pool": lambda x: F.max_pool2d(input=x, kernel_size=2),
    "keyword of pad": lambda x: F.pad(input=x, pad=(1, 1)),
    "keyword of interpolate": lambda x: F.interpolate(input=x, scale_factor=2),
    "rsub": lambda x: torch.rsub(x, 1),
    "out of add": lambda x: torch.add(x, x, out=torch.empty(0)),
    "adaptive max-pool": lambda x: F.adaptive_max_pool2d(x, 2),
    "adaptive max-pool to one": lambda x: F.adaptive_max_pool2d(input=x, output_size=(1, None)),
    "amax": lambda x: x.amax((2, 3)),
    "amax with keepdim": lambda x: torch.amax(x, dim=(-1, -2), keepdim=True),
    "max over a dimension": lambda x: x.max(dim=3)[0],
    "values of max": lambda x: torch.max(x, 2, keepdim=True).values,
    "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
    "keywords of pixel_unshuffle": lambda x: F.pixel_unshuffle(input=x, downscale_factor=4),
    "channel_shuffle": lambda x: F.channel_shuffle(x, 4),
    "a ReLU again": lambda x: F.relu(F.channel_shuffle(F.relu(F.pixel_shuffle(x, 2)), 2)),
    "watched and not used": lambda x: (x.std(), torch.sigmoid(x), x)[-1],
}


@pytest.mark.parametrize("name", FOLLOWING)
def test_every_spelling_of_what_follows(name):
    graph = assert_converts(Head(lambda x: FOLLOWING[name](F.relu(x))))
    assert len(find_sites(graph)) == 1


@pytest.mark.parametrize(
    ("pool", "shape"),
    [
        (nn.AdaptiveMaxPool1d(4), (8, 16)),
        (nn.AdaptiveMaxPool2d((2, None)), (3, 8, 8)),
        (nn.AdaptiveMaxPool3d(2), (2, 4, 4, 4)),
    ],
)
def test_adaptive_max_pools_become_max_pools_where_windows_are_even(pool, shape):
    torch.manual_seed(0)
    conv = getattr(nn, f"Conv{len(shape) - 1}d")(shape[0], 4, 1)
    example = torch.randn(4, *shape)
    features = pool(conv(example)).flatten(1).shape[1]
    graph = assert_converts(nn.Sequential(conv, nn.ReLU(), pool, nn.Flatten(), nn.Linear(features, 3)), example)
    assert not any("Adaptive" in type(module).__name__ for module in graph.modules())


def test_an_adaptive_max_pool_with_uneven_windows_is_an_obstacle_with_its_sizes():
    report = check_convertible(Head(lambda x: F.adaptive_max_pool2d(F.relu(x), 3)), images())
    assert "windows are of different sizes ((8, 8) to (3, 3))" in str(report)


class Linears(nn.Module):
    def __init__(self, product):
        super().__init__()
        torch.manual_seed(0)
        self.product = product
        self.weight, self.bias = nn.Parameter(torch.randn(192, 6)), nn.Parameter(torch.randn(6))
        self.linear = nn.Linear(6, 5)

    def forward(self, x):
        return self.linear(input=F.relu(self.product(x, self.weight, self.bias)))


PRODUCTS = {
    "@": lambda x, w, b: x @ w + b,
    "matmul": lambda x, w, b: torch.matmul(x, w),
    "matmul with keywords": lambda x, w, b: torch.matmul(input=x, other=w),
    "mm": lambda x, w, b: torch.mm(x, mat2=w),
    "method": lambda x, w, b: x.matmul(w).add(b),
    "addmm": lambda x, w, b: torch.addmm(b, x, w, alpha=0.5),
    "addmm with keywords": lambda x, w, b: torch.addmm(input=b, mat1=x, mat2=w),
    "linear with keywords": lambda x, w, b: F.linear(input=x, weight=w.t(), bias=b),
    "einsum": lambda x, w, b: torch.einsum("ni,io->no", x, w),
    "einsum the other way": lambda x, w, b: torch.einsum("oi, ni -> no", w.t(), x),
}


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_products_with_a_constant_matrix_are_linear_layers(name, precision):
    graph = assert_converts(Linears(PRODUCTS[name]), images().flatten(1), precision=precision)
    assert [type(module) for module in graph.children()] == [nn.Linear, nn.ReLU, nn.Linear]


def test_a_matrix_times_channels_is_a_convolution():
    weight = torch.randn(4, 8)
    graph = assert_converts(Head(lambda x: F.relu(torch.matmul(weight, F.relu(x).flatten(2)))))
    assert len(find_sites(graph)) == 2


@pytest.mark.parametrize(
    "part",
    [
        lambda x: x * (F.relu(x) > 0),
        lambda x: (x > 0).float().sum((2, 3)),
        lambda x: F.relu(x) + (x > 0),
        lambda x: (x > 0).float(),
        lambda x: ((x > 0) * (x > 0)).float(),
        lambda x: torch.where(x > 0, x, 0.1 * x),
        lambda x: torch.where(x > 1, x, 0.0),
    ],
)
def test_other_comparisons_are_obstacles(part):
    assert "comparison" in str(check_convertible(Head(part), images())) or "choice" in str(
        check_convertible(Head(part), images())
    )


def test_a_product_of_activations_is_an_obstacle():
    report = check_convertible(Head(lambda x: F.relu(x) @ F.relu(x).transpose(2, 3)), images())
    assert "computed from the input" in str(report)


class OwnNorm(nn.BatchNorm2d):
    """As in other packages: a batch norm that brings its activation."""

    def __init__(self, channels):
        super().__init__(channels)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        x = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )
        return self.act(x)


class CheckedNorm(nn.BatchNorm2d):
    def _check_input_dim(self, input):
        assert input.dim() == 4


class FrozenBatchNorm2d(nn.Module):
    """As detection transformers copy it."""

    def __init__(self, channels):
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.rand(channels) + value)

    def forward(self, x):
        scale = self.weight.reshape(1, -1, 1, 1) * (self.running_var.reshape(1, -1, 1, 1) + 1e-5).rsqrt()
        return x * scale + (self.bias.reshape(1, -1, 1, 1) - self.running_mean.reshape(1, -1, 1, 1) * scale)


def torchvision_norm(channels):
    from torchvision.ops import FrozenBatchNorm2d

    return FrozenBatchNorm2d(channels)


NORMS = {
    "SyncBatchNorm": nn.SyncBatchNorm,
    "subclass": CheckedNorm,
    "subclass with an activation": OwnNorm,
    "frozen": FrozenBatchNorm2d,
    "torchvision's frozen": torchvision_norm,
    "without affine": lambda channels: nn.BatchNorm2d(channels, affine=False),
}


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_every_batch_norm_is_folded(name, precision):
    norm = NORMS[name](8)
    with torch.no_grad():
        norm.running_mean.uniform_(-0.5, 0.5)
        norm.running_var.uniform_(0.5, 2)
    graph = assert_converts(Head(lambda x, norm: F.relu(norm(x)), norm), precision=precision)
    assert len(find_sites(graph)) == 1
    assert {type(m) for m in graph.children()} == {nn.Conv2d, nn.ReLU, nn.Linear}


def test_functional_batch_norm_with_keywords_and_without_weights():
    mean, var = torch.randn(8), torch.rand(8) + 0.5
    graph = assert_converts(Head(lambda x: F.relu(F.batch_norm(input=x, running_mean=mean, running_var=var, eps=0.1))))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in graph.modules())


def test_batch_norm_by_the_batch_is_an_obstacle():
    mean, var = torch.zeros(8), torch.ones(8)
    report = check_convertible(Head(lambda x: F.relu(F.batch_norm(x, mean, var, training=True))), images())
    assert "statistics of the batch" in str(report)


def test_modules_called_with_keywords():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.act = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), CeilingReLU(1.0)
            self.pool, self.flatten, self.linear = nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5)

        def forward(self, x):
            x = self.pool(input=self.act(values=self.norm(input=self.conv(input=x))))
            return self.linear(input=self.flatten(input=x))

    assert len(find_sites(assert_converts(Net()))) == 1


def test_a_layer_with_a_forward_of_its_own_is_traced_through_it():
    conv = nn.Conv2d(8, 8, 1)
    conv.forward = MethodType(lambda self, x: F.relu(F.conv2d(x, 2 * self.weight, self.bias)), conv)
    model = Head(lambda x, layer: layer(F.relu(x)), conv)
    assert len(find_sites(assert_converts(model))) == 2


@pytest.mark.parametrize("shuffle", [nn.PixelShuffle(2), nn.PixelUnshuffle(2), nn.ChannelShuffle(4)], ids=type)
def test_shuffled_currents_and_spikes_convert(shuffle):
    assert len(find_sites(assert_converts(Head(lambda x, layer: F.relu(layer(x)), shuffle)))) == 1
    graph = assert_converts(Head(lambda x, layer: F.max_pool2d(layer(F.relu(x)), 2), shuffle))
    # What is pooled behind a shuffle are currents; a linear layer reads spikes.
    assert len(find_sites(graph)) == 2


def test_a_parameter_outside_the_network_is_a_constant():
    weight = nn.Parameter(torch.randn(4, 8, 1, 1))
    assert_converts(Head(lambda x: F.conv2d(F.relu(x), weight)))


def test_a_ceiling_with_a_forward_of_its_own_is_traced_through_it():
    class Doubled(CeilingReLU):
        def forward(self, values):
            return 2 * torch.minimum(values.relu(), self.ceiling)

    (site,) = find_sites(assert_converts(Head(lambda x, act: act(x), Doubled(0.5)))).values()
    assert site.ceiling.item() == pytest.approx(0.5)


IN_PLACE = {
    "a statement": lambda x: (x.relu_(), x)[1],
    "a statement of functional": lambda x: (F.relu(x, inplace=True), x)[1],
    "a view": lambda x: (x.clamp_(min=0), x.view(x.shape[0], -1))[1],
    "read before and after": lambda x: x.clone() + F.relu(x, inplace=True) + x,
    "out": lambda x: (torch.clamp(x, min=0, out=x), x)[1],
    "added to": lambda x: (operator.iadd(x, 1.0), F.relu(x))[1],
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_who_reads_a_tensor_after_an_in_place_operation_reads_the_new_values(name):
    graph = assert_converts(Head(IN_PLACE[name]))
    assert len(find_sites(graph)) == 1


def test_a_part_changed_in_place_is_an_obstacle_that_names_the_operation():
    def part(x):
        x[:, :4].relu_()
        return x

    report = check_convertible(Head(part), images())
    assert "in-place operation 'relu_'" in str(report)


def test_pieces_changed_in_place_leave_each_other_alone():
    def part(x):
        first, second = F.relu(x).chunk(2, 1)
        first *= 2
        return torch.cat([first, second], 1)

    assert_converts(Head(part))


def test_item_assignment_says_what_to_do():
    def part(x):
        x[:, 0] = 0
        return F.relu(x)

    model = Head(F.relu)
    model.part = part
    assert "assigns to a part of a tensor" in str(check_convertible(model, images()))
