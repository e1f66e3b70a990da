from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import snn_lowlat
from snn_lowlat.hosts import BACKENDS
from snn_lowlat.models import SmallCNN
from snn_lowlat.training import ValueRangeReLU, replace_activations


def test_values_are_clipped_and_rounded_down():
    activation = ValueRangeReLU(timesteps=4, resolution=5)
    values = activation(torch.tensor([-1.0, 0.0, 0.19, 0.2, 0.5, 0.8, 3.0]))
    torch.testing.assert_close(values, torch.tensor([0.0, 0.0, 0.0, 0.2, 0.4, 0.8, 0.8]))
    clipped = ValueRangeReLU(4, 5, rounds=False)(torch.tensor([-1.0, 0.19, 3.0]))
    torch.testing.assert_close(clipped, torch.tensor([0.0, 0.19, 0.8]))


@pytest.mark.parametrize(("timesteps", "resolution"), [(8, 10), (16, 20), (32, 40), (2, 3), (1, 2.5)])
def test_values_on_the_grid_stay(timesteps, resolution):
    """0.3 / 0.1 is 2.9999999 in floating point: a mean of rounded values that is on the grid must not lose a level."""
    grid = torch.arange(timesteps + 1) / resolution
    torch.testing.assert_close(ValueRangeReLU(timesteps, resolution)(grid), grid)


def test_the_gradient_passes_the_rounding_and_not_the_clipping():
    values = torch.tensor([-0.5, 0.1, 0.7, 0.9], requires_grad=True)
    upstream = torch.tensor([1.0, 3.0, -2.0, 1.0])
    ValueRangeReLU(4, 5)(values).backward(upstream)
    assert values.grad.tolist() == [0.0, 3.0, -2.0, 0.0]
    values.grad = None
    ValueRangeReLU(4, 5, bounded_gradient=True)(values).backward(upstream)
    assert values.grad.tolist() == [0.0, 1.0, -1.0, 0.0]


@pytest.mark.parametrize("options", [(0, 5), (4, 0.0)])
def test_options_without_meaning(options):
    with pytest.raises(ValueError, match=r"(timesteps|resolution) must be"):
        ValueRangeReLU(*options)


class Pooled(nn.Module):
    """Rounded pools, whose values hit the grid again and again, max-pooling after an activation, and a residual sum."""

    def __init__(self, timesteps, resolution):
        super().__init__()
        make = partial(ValueRangeReLU, timesteps, resolution)
        self.stem, self.body, self.side = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.first, self.pooled, self.second, self.third = make(), make(), make(), make()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.pooled(F.avg_pool2d(self.first(self.stem(x)), 2))
        x = self.second(self.body(x) + x)
        x = F.max_pool2d(self.third(self.side(x)), 3)
        return self.head(x.flatten(1))


def trained(kind, timesteps, resolution, dtype):
    torch.manual_seed(0)
    if kind is Pooled:
        model = Pooled(timesteps, resolution)
    else:
        model = SmallCNN(
            in_channels=1, num_classes=3, image_size=8, activation=partial(ValueRangeReLU, timesteps, resolution)
        )
    images = torch.randn(64, 1, 8, 8)
    with torch.no_grad():
        model(images)
        for name, parameter in model.named_parameters():
            parameter.mul_(3)
            if name.endswith("bias"):  # so that pools, rounded down, do not all give zero
                parameter.add_(0.5)
    return model.eval().to(dtype), images.to(dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("timesteps", "resolution"), [(1, 2.5), (2, 3), (4, 5), (8, 10), (16, 20)])
@pytest.mark.parametrize("kind", [Pooled, SmallCNN])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_spiking_network_equals_the_trained_one(kind, timesteps, resolution, backend, dtype):
    model, images = trained(kind, timesteps, resolution, dtype)
    snn = snn_lowlat.convert(model, images, strategy="value_range", timesteps=timesteps, backend=backend)
    with torch.no_grad():
        expected = model(images)
    assert expected.std(0).min() > 0
    torch.testing.assert_close(snn(images), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(snn.simulate(images), expected, rtol=1e-5, atol=1e-5)


def test_a_network_that_only_clips_is_no_quantised_one():
    model, images = trained(Pooled, 4, 5, torch.float32)
    for module in model.modules():
        if isinstance(module, ValueRangeReLU):
            module.rounds = False
    snn = snn_lowlat.convert(model, images, strategy="value_range", timesteps=4)
    assert (snn.plan["first"].initial_potential > 0).all()  # half a level, as for any network that is not rounded
    with torch.no_grad():
        assert not torch.allclose(snn(images), model(images), atol=1e-4)


def test_other_windows_than_those_it_was_trained_for_are_logged(caplog):
    model, images = trained(SmallCNN, 4, 5, torch.float32)
    snn_lowlat.convert(model, images, strategy="value_range", timesteps=8)
    assert "was trained for 4 steps" in caplog.text


def test_any_network_gets_these_activations():
    model = replace_activations(SmallCNN(in_channels=1, num_classes=3, image_size=8), partial(ValueRangeReLU, 8, 10))
    assert sum(isinstance(module, ValueRangeReLU) for module in model.modules()) > 1


def test_saved_networks_need_no_model_and_check_one(tmp_path):
    model, images = trained(Pooled, 4, 5, torch.float32)
    snn = snn_lowlat.convert(model, images, strategy="value_range", timesteps=4)
    snn.save(tmp_path / "snn.pt")
    for loaded in (snn_lowlat.load(tmp_path / "snn.pt"), snn_lowlat.load(tmp_path / "snn.pt", model=model)):
        assert torch.equal(loaded(images), snn(images))
