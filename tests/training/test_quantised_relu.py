from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import snn_lowlat
from snn_lowlat.calibration import Histogram, SiteStatistics
from snn_lowlat.errors import CalibrationError
from snn_lowlat.hosts import BACKENDS
from snn_lowlat.models import ResNet20, SmallCNN
from snn_lowlat.strategies import find_threshold
from snn_lowlat.training import CeilingReLU, QuantisedReLU, fit_ceilings, replace_activations


def test_values_are_clipped_and_rounded_to_the_nearest_level():
    values = torch.tensor([-1.0, 0.0, 0.24, 0.26, 0.74, 0.76, 1.9, 9.0])
    torch.testing.assert_close(
        QuantisedReLU(4, None, initial=2.0)(values), torch.tensor([0.0, 0.0, 0.0, 0.5, 0.5, 1.0, 2.0, 2.0])
    )
    torch.testing.assert_close(
        QuantisedReLU(4, None, initial=2.0, shift=0.0)(values), torch.tensor([0.0, 0.0, 0.0, 0.0, 0.5, 0.5, 1.5, 2.0])
    )
    torch.testing.assert_close(QuantisedReLU(4, None, initial=2.0, rounds=False)(values), values.clamp(0, 2))


@pytest.mark.parametrize("shift", [0.0, 0.5])
@pytest.mark.parametrize("timesteps", [1, 2, 3, 7, 32])
def test_values_on_the_grid_stay(timesteps, shift):
    grid = torch.arange(timesteps + 1) * (0.7 / timesteps)
    torch.testing.assert_close(QuantisedReLU(timesteps, None, initial=0.7, shift=shift)(grid), grid)


def test_gradients_are_those_of_the_definition():
    values = torch.tensor([[-0.5, 0.3, 0.9, 2.0, 2.6]], requires_grad=True)
    activation = QuantisedReLU(4, None, initial=2.0)
    upstream = torch.tensor([[1.0, 2.0, 4.0, 8.0, 16.0]])
    output = activation(values)
    output.backward(upstream)
    assert values.grad.tolist() == [[0.0, 2.0, 4.0, 0.0, 0.0]]
    inside = (2 * (0.5 - 0.3) + 4 * (1.0 - 0.9)) / 2
    assert activation.ceiling.grad.item() == pytest.approx(inside + 8 + 16)


@pytest.mark.parametrize("rest", [(), (5,), (5, 5)])
def test_the_gradient_of_each_channels_ceiling_is_that_of_autograd(rest):
    values = torch.randn(6, 3, *rest, dtype=torch.float64, requires_grad=True)
    activation = QuantisedReLU(4, 3, initial=0.8).double()
    upstream = torch.randn_like(values)
    activation(values).backward(upstream)
    found = values.grad.clone(), activation.ceiling.grad.clone()
    values.grad = activation.ceiling.grad = None
    ceiling = activation.ceiling.view(3, *[1] * len(rest))
    clipped = torch.where(values >= ceiling, torch.ones_like(values), values.relu() / ceiling)
    (ceiling * (clipped + ((4 * clipped + 0.5).floor() / 4 - clipped).detach())).backward(upstream)
    torch.testing.assert_close(found, (values.grad, activation.ceiling.grad))


def test_values_keep_their_type_and_layout():
    values = torch.rand(2, 3, 4, 4, dtype=torch.bfloat16).to(memory_format=torch.channels_last).requires_grad_()
    activation = QuantisedReLU(4, 3)
    output = activation(values)
    output.sum().backward()
    assert output.dtype == values.grad.dtype == torch.bfloat16
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert activation.ceiling.grad.dtype == torch.float32


@pytest.mark.parametrize("options", [{"timesteps": 0}, {"timesteps": 4, "shift": 1.0}, {"timesteps": 4, "initial": 0}])
def test_options_without_meaning(options):
    with pytest.raises(ValueError, match=r"(timesteps|shift|initial) must be"):
        QuantisedReLU(channels=None, **options)


class Pooled(nn.Module):
    """Max-pooling after an activation, average pooling after another, and a residual sum."""

    def __init__(self, make):
        super().__init__()
        self.stem, self.body, self.side = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.first, self.second, self.third = make(), make(), make()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = F.avg_pool2d(self.first(self.stem(x)), 2)
        x = self.second(self.body(x) + x)
        return self.head(F.max_pool2d(self.third(self.side(x)), 3).flatten(1))


def trained(timesteps, channels, shift, dtype):
    torch.manual_seed(0)
    model = Pooled(partial(QuantisedReLU, timesteps, channels, initial=0.7, shift=shift)).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("ceiling"):
                parameter.mul_(1 + torch.rand(parameter.shape))
            else:  # so that shift 0 does not round everything to zero
                parameter.mul_(3).add_(0.2 * name.endswith("bias"))
    return model.eval(), torch.randn(48, 1, 8, 8, dtype=dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("timesteps", [1, 2, 4, 7, 16])
@pytest.mark.parametrize("channels", [None, 4])
@pytest.mark.parametrize("shift", [0.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_spiking_network_equals_the_trained_one(timesteps, channels, shift, backend, dtype):
    model, images = trained(timesteps, channels, shift, dtype)
    snn = snn_lowlat.convert(model, images, strategy="value_range", timesteps=timesteps, backend=backend)
    with torch.no_grad():
        expected = model(images)
    assert expected.std(0).min() > 0
    torch.testing.assert_close(snn(images), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(snn.simulate(images), expected, rtol=1e-5, atol=1e-5)


def test_a_refined_and_reloaded_network_is_still_the_trained_one(tmp_path):
    model, images = trained(4, 4, 0.5, torch.float64)
    snn = snn_lowlat.convert(
        model, images, strategy="value_range", timesteps=4, refinements=["bias_correction"]
    )  # which has nothing to correct
    snn.save(tmp_path / "snn.pt")
    with torch.no_grad():
        expected = model(images)
    torch.testing.assert_close(snn_lowlat.load(tmp_path / "snn.pt")(images), expected, rtol=1e-5, atol=1e-5)


def test_other_strategies_take_the_ceilings():
    model, images = trained(4, 4, 0.5, torch.float32)
    snn = snn_lowlat.convert(model, images, strategy="optimized_potential", timesteps=4, threshold="ceiling")
    assert torch.equal(snn.plan["first"].threshold, model.first.ceiling.detach())


def test_networks_say_how_many_channels_there_are():
    with pytest.raises(ValueError, match="number of channels"):
        replace_activations(SmallCNN(), partial(QuantisedReLU, 4))
    model = replace_activations(SmallCNN(width=4), partial(QuantisedReLU, 4), torch.zeros(2, 1, 8, 8))
    assert [len(m.ceiling) for m in model.modules() if isinstance(m, QuantisedReLU)] == [4, 8, 8]
    model = ResNet20(width=2, activation=partial(QuantisedReLU, 4, channels=None))
    assert {m.ceiling.dim() for m in model.modules() if isinstance(m, QuantisedReLU)} == {0}


@pytest.mark.parametrize("channels", [True, False])
def test_ceilings_are_fitted_to_what_the_relu_network_computes(channels):
    torch.manual_seed(0)
    plain = SmallCNN(width=4).eval()
    options = {} if channels else {"channels": None}
    model = replace_activations(plain, partial(QuantisedReLU, 4, **options), torch.zeros(2, 1, 8, 8)).train()
    images = torch.rand(200, 1, 8, 8)
    seen = []
    plain.features[0][2].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        plain(images)
    fit_ceilings(model, images.split(50))
    histogram = Histogram(4)
    histogram.update(seen[0])
    expected = find_threshold(
        SiteStatistics("first", histogram),
        "mmse",
        4,
        granularity="channel" if channels else "layer",
        fraction=torch.tensor(0.5),
    )
    torch.testing.assert_close(model.features[0][2].ceiling.detach(), expected.float())
    assert model.training
    assert not model.features[0][2]._forward_hooks


def test_ceilings_without_levels_are_a_percentile():
    model = replace_activations(SmallCNN(width=4).eval(), "ceiling")
    images = torch.rand(100, 1, 8, 8)
    with torch.no_grad():
        model.features[0][2].ceiling.fill_(1e9)
        largest = float(model.features[0](images).max())
    fit_ceilings(model, [images], percentile=100.0)
    assert model.features[0][2].ceiling.item() == pytest.approx(largest, rel=1e-5)


def test_what_can_not_be_fitted():
    with pytest.raises(ValueError, match="no trainable ceilings"):
        fit_ceilings(SmallCNN(), [torch.rand(4, 1, 8, 8)])
    model = replace_activations(SmallCNN(width=4), CeilingReLU)
    with pytest.raises(CalibrationError, match=r"features\.0\.2.*at least one batch"):
        fit_ceilings(model, [])
    with torch.no_grad():
        model.features[0][1].bias.fill_(-100)
    with pytest.raises(CalibrationError, match=r"features\.0\.2.*dead"):
        fit_ceilings(model, [torch.rand(4, 1, 8, 8)])
