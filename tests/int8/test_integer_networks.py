"""Networks of many kinds in whole numbers: equal to the last bit everywhere and near to floating point, or refused."""

import pytest
import torch
from torch import nn

import snn_lowlat
from snn_lowlat.errors import ConversionError
from snn_lowlat.hosts import BACKENDS
from snn_lowlat.int8 import to_integers, whole_numbers
from snn_lowlat.simulation import simulate


class Net(nn.Module):
    """A network of a few layers and one expression."""

    def __init__(self, expression, **layers):
        super().__init__()
        self.expression = expression
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self.expression(self, x)


def conv(inputs, outputs, **options):
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


def normed(kind, channels):
    norm = kind(channels)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return norm


def head(net, x):
    return net.head(torch.relu(x).flatten(1))


def two_readers(net, x):
    current = net.first(x)
    fired = torch.relu(current)
    return head(net, (current + net.second(fired)) + (current + net.third(fired)))


IMAGE = (3, 6, 6)
CONVERTED = {
    "an MLP that flattens first": lambda: nn.Sequential(nn.Flatten(), nn.Linear(108, 20), nn.ReLU(), nn.Linear(20, 4)),
    "an MLP that flattens and cuts": lambda: Net(
        lambda n, x: n.head(torch.relu(n.first(x.flatten(1)[:, :50]))), first=nn.Linear(50, 9), head=nn.Linear(9, 4)
    ),
    "pixels are normalised": lambda: Net(
        lambda n, x: head(n, n.first((x - 0.4) / torch.tensor([0.2, 0.3, 0.4]).view(1, 3, 1, 1))),
        first=conv(3, 5),
        head=nn.Linear(180, 4),
    ),
    "a batch norm comes first": lambda: nn.Sequential(
        normed(nn.BatchNorm2d, 3), conv(3, 5), nn.ReLU(), nn.Flatten(), nn.Linear(180, 4)
    ),
    "a batch norm of features comes first": lambda: nn.Sequential(
        nn.Flatten(), normed(nn.BatchNorm1d, 108), nn.Linear(108, 9), nn.ReLU(), nn.Linear(9, 4)
    ),
    "pixels are padded and pooled": lambda: nn.Sequential(
        nn.ZeroPad2d(1), nn.AvgPool2d(2), conv(3, 5), nn.ReLU(), nn.Flatten(), nn.Linear(80, 4)
    ),
    "neurons read pixels": lambda: Net(
        lambda n, x: head(n, n.first(torch.relu(x - 0.3))), first=conv(3, 5), head=nn.Linear(180, 4)
    ),
    "neurons stand before a sum with what they read": lambda: Net(
        two_readers, first=conv(3, 5), second=conv(5, 5), third=conv(5, 5), head=nn.Linear(180, 4)
    ),
    "a shortcut from the image to the end": lambda: Net(
        lambda n, x: n.head(torch.relu(n.first(x.flatten(1)))) + n.shortcut(x.flatten(1)),
        first=nn.Linear(108, 9),
        head=nn.Linear(9, 4),
        shortcut=nn.Linear(108, 4),
    ),
    "spikes and a layer on the image are added": lambda: Net(
        lambda n, x: head(n, torch.relu(n.first(x)) + torch.relu(n.second(x)) + n.third(x)),
        first=conv(3, 5),
        second=conv(3, 5),
        third=conv(3, 5),
        head=nn.Linear(180, 4),
    ),
    "one layer twice": lambda: Net(
        lambda n, x: head(n, n.second(torch.relu(n.second(torch.relu(n.first(x)))))),
        first=conv(3, 5),
        second=conv(5, 5),
        head=nn.Linear(180, 4),
    ),
    "branches are joined": lambda: Net(
        lambda n, x: head(n, n.third(torch.cat([torch.relu(n.first(x)), torch.relu(n.second(x))], 1))),
        first=conv(3, 5),
        second=conv(3, 4),
        third=conv(9, 5),
        head=nn.Linear(180, 4),
    ),
    "differences, factors and constants": lambda: Net(
        lambda n, x: head(n, -(n.first(x) * 0.5 - n.second(x) * 0.5) + 0.3 - torch.tensor([0.1, 0.2]).view(1, 2, 1, 1)),
        first=conv(3, 2),
        second=conv(3, 2),
        head=nn.Linear(72, 4),
    ),
    "spikes are scaled and negated": lambda: Net(
        lambda n, x: n.head(-(torch.relu(n.first(x)) * 0.3).flatten(1)), first=conv(3, 5), head=nn.Linear(180, 4)
    ),
    "means over images": lambda: Net(
        lambda n, x: n.head(torch.relu(n.first(x)).mean((2, 3))), first=conv(3, 5), head=nn.Linear(5, 4)
    ),
    "groups": lambda: nn.Sequential(
        *(conv(3, 6, groups=3), nn.ReLU(), conv(6, 6, groups=6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 4))
    ),
    "nearest neighbours": lambda: nn.Sequential(
        *(conv(3, 5), nn.ReLU(), nn.Upsample(scale_factor=2), conv(5, 2), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
    ),
    "no weights at all": lambda: Net(lambda n, x: torch.relu(x).mean((2, 3))),
}
OTHER_SHAPES = {
    "one dimension": (
        (3, 12),
        lambda: nn.Sequential(
            *(nn.Conv1d(3, 5, 3), nn.ReLU(), nn.AvgPool1d(2), nn.Conv1d(5, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1)),
            *(nn.Flatten(), nn.Linear(4, 4)),
        ),
    ),
    "three dimensions": (
        (2, 6, 6, 6),
        lambda: nn.Sequential(nn.Conv3d(2, 3, 3), nn.ReLU(), nn.AvgPool3d(2), nn.Flatten(), nn.Linear(24, 4)),
    ),
}
ALL = {name: (IMAGE, make) for name, make in CONVERTED.items()} | OTHER_SHAPES
REFUSED = {
    "no neurons between two layers": (
        lambda: Net(
            lambda n, x: (lambda h: head(n, h + n.second(h)))(n.first(x)),
            first=conv(3, 5),
            second=conv(5, 5),
            head=nn.Linear(180, 4),
        ),
        "'second'.*without neurons between",
    ),
    "channels of different units in one": (
        lambda: nn.Sequential(
            *(conv(3, 8), nn.PixelShuffle(2), nn.ReLU(), conv(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(576, 4))
        ),
        "'1'.*mix what is worth more",
    ),
    "a transposed convolution": (
        lambda: nn.Sequential(
            *(conv(3, 5), nn.ReLU(), nn.ConvTranspose2d(5, 4, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(576, 4))
        ),
        "'2'.*no counterpart",
    ),
    "means of neighbours": (
        lambda: nn.Sequential(
            *(conv(3, 5), nn.ReLU(), nn.Upsample(scale_factor=2, mode="bilinear"), nn.Flatten(), nn.Linear(720, 4))
        ),
        "'2'.*no counterpart",
    ),
    "spikes beside pixels": (
        lambda: Net(
            lambda n, x: head(n, n.second(torch.cat([torch.relu(n.first(x)), x], 1))),
            first=conv(3, 5),
            second=conv(8, 5),
            head=nn.Linear(180, 4),
        ),
        "'cat'.*joins the image",
    ),
    "a sum of one term": (
        lambda: Net(lambda n, x: (lambda h: head(n, h + h))(n.first(x)), first=conv(3, 5), head=nn.Linear(180, 4)),
        "'add'.*to itself",
    ),
}


def made(make, shape=IMAGE):
    torch.manual_seed(0)
    model = make().eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.kaiming_normal_(parameter)
    return model, torch.rand(24, *shape)


@pytest.mark.parametrize("name", ALL)
def test_both_hosts_and_the_simulation_give_the_same_numbers_in_any_batch(name):
    shape, make = ALL[name]
    model, images = made(make, shape)
    readouts = []
    for backend in BACKENDS:
        snn = snn_lowlat.convert(model, images, timesteps=16, precision="int8", backend=backend)
        assert snn.precision == "int8"
        readouts.append(snn.readout(images))
        snn.micro_batch, snn.run_on_host = 5, True
        readouts.append(snn.readout(images))
    assert all(torch.equal(other, readouts[0]) for other in readouts)
    graph, plan = snn.normal_form()
    double, _ = simulate(graph.double(), plan, snn._encoded(images.double(), 16))
    torch.testing.assert_close(double.mean(0).float(), readouts[0][-1])
    single = snn_lowlat.convert(model, images, timesteps=16)(images)
    assert (readouts[0][-1] - single).norm() < 0.15 * single.norm()


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_counterpart_is_refused_by_name(name):
    make, message = REFUSED[name]
    model, images = made(make)
    with pytest.raises(ConversionError, match=f"{message}.*precision='fp32'"):
        snn_lowlat.convert(model, images, timesteps=4, precision="int8")


def test_a_layer_whose_inputs_are_worth_too_little_beside_others_is_refused():
    """Sums of 36 spikes that are worth a 36th each have no weights left beside spikes that are worth 1."""
    model, images = made(
        lambda: Net(
            lambda n, x: n.left(torch.relu(n.first(x)).mean((2, 3))) + n.right(torch.relu(n.first(x))[:, :, 0, 0]),
            first=conv(3, 5),
            left=nn.Linear(5, 4),
            right=nn.Linear(5, 4),
        )
    )
    with pytest.raises(ConversionError, match=r"'left'.*far less than those of 'right'"):
        snn_lowlat.convert(model, images, timesteps=4, precision="int8")


@pytest.mark.parametrize("encoder", ["poisson", "temporal_switch"])
def test_pixels_that_come_as_spikes_are_not_counted_by_their_mean(encoder):
    model, images = made(CONVERTED["pixels are normalised"])
    for precision in ("fp32", "int8"):
        snn = snn_lowlat.convert(
            model, images, timesteps=8, precision=precision, strategy="value_range", encoder=encoder
        )
        assert snn.is_counted == (precision == "fp32")
        assert torch.equal(snn(images).argmax(1), snn.simulate(images).argmax(1))
        torch.testing.assert_close(snn(images), snn.simulate(images), rtol=1e-4, atol=1e-4)


def numbers_of(snn):
    return whole_numbers(*snn.normal_form(), snn.timesteps)


@pytest.mark.parametrize("kind", ["weight", "bias", "threshold", "potential", "amplitude", "large"])
def test_whether_numbers_are_whole_is_read_from_them(kind):
    model, images = made(ALL["branches are joined"][1])
    graph, plan = snn_lowlat.convert(model, images, timesteps=4).normal_form()
    assert not whole_numbers(graph, plan).everything
    graph, plan = to_integers(graph, plan, images, 4)
    before = whole_numbers(graph, plan, 4)
    assert before.everything
    assert before.on_bytes == {"third_1", "head_1"}
    layer, name = graph.get_submodule("third_1"), next(reversed(plan))
    with torch.no_grad():
        if kind == "weight":
            layer.weight[0, 0, 0, 0] = 0.5
        elif kind == "bias":
            layer.bias[0] = 0.5
        elif kind == "large":
            layer.weight[0, 0, 0, 0] = 128
    if kind in ("threshold", "potential", "amplitude"):
        key = "initial_potential" if kind == "potential" else kind
        values = {k: getattr(plan[name], k) for k in ("threshold", "initial_potential", "amplitude")}
        plan = plan | {name: snn_lowlat.SitePlan(**values | {key: values[key] + 0.5})}
    after = whole_numbers(graph, plan, 4)
    assert not after.everything
    assert ("third_1" in after.on_bytes) == (kind in ("threshold", "potential", "amplitude"))
    assert not whole_numbers(graph, plan, 2**20).everything
