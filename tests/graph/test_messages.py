"""What a check says of networks that can't be converted: the reason that is true, once."""

import pytest
import torch
import torch.nn.functional as F
from test_spellings import assert_converts
from torch import nn

from snn_lowlat import CalibrationError, ConversionError, check_convertible, convert
from snn_lowlat.graph import find_sites, normalise


def images(count=4):
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    def __init__(self, part=F.relu, after=lambda x: x):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.part, self.after, self.linear = part, after, nn.Linear(144, 5)
        self.eval()

    def forward(self, x):
        return self.after(self.linear(self.part(self.norm(self.conv(x))).flatten(1)))


def obstacles(model, example=None):
    """What the check says, which must be what a conversion says."""
    example = images() if example is None else example
    report = check_convertible(model, example)
    assert not report
    with pytest.raises(ConversionError) as error:
        convert(model, example)
    assert error.value.obstacles == report.obstacles
    assert "in-place" not in str(report)
    return report.obstacles


def test_nan_in_the_first_images_is_said():
    example = images()
    example[1, 0, 0, 0] = float("nan")
    (obstacle,) = check_convertible(Net(), example).obstacles
    assert "first images contain NaN" in obstacle.advice
    with pytest.raises(CalibrationError, match="NaN"):
        convert(Net(), example)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["conv.weight", "norm.running_var", "norm.bias", "linear.bias"])
def test_weights_of_nan_or_infinity_are_named(name, value):
    model = Net()
    with torch.no_grad():
        model.state_dict(keep_vars=True)[name].view(-1)[0] = value
    (obstacle,) = obstacles(model)
    assert obstacle.operation == f"the weight {name!r}"


def test_weights_that_nothing_reads_may_be_anything():
    model = Net()
    model.unused = nn.Linear(2, 2)
    nn.init.constant_(model.unused.weight, float("nan"))
    assert check_convertible(model, images())


@pytest.mark.parametrize(("name", "value"), [("conv.weight", 3e38), ("norm.running_var", -1.0)])
def test_values_that_overflow_are_named_by_the_layer_that_makes_them(name, value):
    model = Net()
    with torch.no_grad():
        model.state_dict(keep_vars=True)[name].fill_(value)
    (obstacle,) = obstacles(model)
    assert f"({name.split('.')[0]})" in obstacle.operation
    assert "NaN or infinite values" in obstacle.advice


def test_huge_running_variances_convert():
    model = Net()
    model.norm.running_var.fill_(1e30)
    assert check_convertible(model, images())


class KeptActive(nn.Dropout):
    def train(self, mode=True):
        self.training = True
        return self


KEPT = nn.Dropout(0.3)
KEPT.train = lambda mode=True: KEPT

ACTIVE = {
    "F.dropout": lambda x: F.dropout(F.relu(x)),
    "F.dropout with training": lambda x: F.dropout(F.relu(x), 0.1, training=True),
    "F.dropout2d by position": lambda x: F.dropout2d(F.relu(x), 0.1, True),
    "torch.dropout": lambda x: torch.dropout(F.relu(x), 0.1, train=True),
    "alpha_dropout": lambda x: F.alpha_dropout(F.relu(x), 0.1, True),
    "a module that stays in training": nn.Sequential(nn.ReLU(), KeptActive(0.3)),
}


@pytest.mark.parametrize("name", ACTIVE)
def test_active_dropout_is_an_obstacle_that_says_so(name):
    (obstacle,) = obstacles(Net(ACTIVE[name]))
    assert "drops values at inference" in obstacle.advice or "active" in obstacle.advice


def test_dropout_that_drops_nothing_converts():
    assert check_convertible(Net(lambda x: F.dropout(F.relu(x), 0.0, True)), images())
    assert check_convertible(Net(lambda x: F.dropout(F.relu(x), 0.5, False, inplace=True)), images())
    assert check_convertible(Net(lambda x: torch.dropout(F.relu(x), 0.5, train=False)), images())


def test_noise_is_found_by_calling_twice():
    (obstacle,) = obstacles(Net(lambda x: F.relu(x) + torch.randn(4, 1, 1)))
    assert "another output each time" in obstacle.advice


def test_a_batch_norm_that_stays_in_training_is_said():
    class Active(nn.BatchNorm2d):
        def train(self, mode=True):
            self.training = True
            return self

    (obstacle,) = obstacles(Net(nn.Sequential(Active(4), nn.ReLU())))
    assert "statistics of the batch" in obstacle.advice


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_precisions_convert(dtype):
    model, example = Net().to(dtype), images().to(dtype)
    assert check_convertible(model, example)
    graph = normalise(model, example)
    assert {value.dtype for value in graph.parameters()} == {dtype}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_images_of_another_type_than_the_weights_are_said(dtype):
    (obstacle,) = check_convertible(Net(), images().to(dtype)).obstacles
    assert f"images are {str(dtype)[6:]} and weights float32" in obstacle.advice


class Autocast(Net):
    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x).float()


@pytest.mark.parametrize("part", [F.relu, F.relu6, lambda x: F.relu(x) + 1])
def test_autocast_inside_forward_converts_in_the_precision_of_the_weights(part):
    graph = normalise(Autocast(part), images())
    assert len(find_sites(graph)) == 1
    assert {value.dtype for value in (*graph.parameters(), *graph.buffers())} == {torch.float32}
    torch.testing.assert_close(graph(images()), Autocast(part)(images()), rtol=0.1, atol=0.1)


def test_a_network_that_takes_one_batch_size_only_is_said():
    (obstacle,) = obstacles(Net(after=lambda x: x + torch.zeros(2, 1)))
    assert "batch" in obstacle.advice


# Obstacles that follow from others.


class Recurrent(nn.Module):
    def __init__(self, read):
        super().__init__()
        self.lstm, self.linear, self.read = nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 5), read

    def forward(self, x):
        return self.linear(F.relu(self.read(self.lstm(x))))


@pytest.mark.parametrize(
    "read",
    [lambda out: out[0][:, -1], lambda out: out[1][0][-1], lambda out: out[1][0].permute(1, 0, 2).flatten(1)[:, :6]],
)
def test_what_follows_from_a_recurrent_layer_is_not_listed(read):
    report = check_convertible(Recurrent(read), torch.randn(2, 4, 8))
    assert [o.operation for o in report.obstacles] == ["LSTM (lstm)"]


FOLLOWING = {
    "mixed images": (lambda x: F.relu(x.view(-1, 6)[:, :2]).reshape(-1, 48), ["view()"]),
    "images mixed and parted": (lambda x: F.relu(x).view(-1, 6).view(x.shape[0], -1, 6, 6), ["view()"]),
    "one image": (lambda x: F.relu(x[0]).unsqueeze(0).expand(2, -1, -1, -1), ["getitem()"]),
    "independent ones": (
        lambda x: torch.tanh(F.silu(x)) * torch.sigmoid(x),
        ["silu()", "tanh()", "sigmoid()", "mul()"],
    ),
    "a number from values": (lambda x: F.relu(x) / x.norm(), ["norm()"]),
    "behind mixed images": (lambda x: torch.sigmoid(F.relu(x).view(-1, 36)).view(-1, 4, 6, 6), ["view()", "sigmoid()"]),
    "max over the batch": (lambda x: F.relu(x) + F.relu(x).max(0).values, ["max()"]),
}


@pytest.mark.parametrize("name", FOLLOWING)
def test_obstacles_that_only_follow_are_not_listed(name):
    part, expected = FOLLOWING[name]
    report = check_convertible(Net(lambda x: part(x).reshape(x.shape[0], -1)[:, :1].expand(-1, 144)), images())
    assert [o.operation for o in report.obstacles if o.operation != "expand()"] == expected


def test_an_output_that_is_an_obstacle_s_is_not_listed():
    report = check_convertible(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.LSTM(8, 8)), torch.randn(2, 4, 8))
    assert [o.operation for o in report.obstacles] == ["LSTM (2)"]


def test_obstacles_of_every_kind_are_listed_at_once():
    class Many(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.second, self.act = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.GELU()

        def forward(self, x):
            x = F.relu(self.conv(x))
            x = torch.floor(self.second(x))
            return self.act(x), x

    model = Many()
    model.second.register_forward_hook(lambda m, args, output: 2 * output)
    said = str(check_convertible(model, images()))
    for word in ("hook", "GELU", "returns a tuple", "rounding"):
        assert word in said, word


def test_a_network_that_works_with_an_in_place_operation_converts():
    assert_converts(Net(lambda x: (F.relu(x, inplace=True), x)[1]), images())
