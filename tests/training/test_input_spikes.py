import pytest
import torch
from torch import nn

import snn_lowlat
from snn_lowlat.errors import ConversionError
from snn_lowlat.hosts import BACKENDS
from snn_lowlat.models import ResNet20, SmallCNN
from snn_lowlat.simulation import count
from snn_lowlat.training import InputSpikes, expand_input


def test_each_copy_has_its_own_grid():
    """The definition of the paper's released training, written out: levels of the grids N, N + 1, N - 1, cut at T."""
    images = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    values = InputSpikes(3, timesteps=2, resolution=3)(images)
    assert values.shape == (5, 18, 4, 4)
    for channel in range(3):
        for place, grid in enumerate((3, 4, 2, 3, 4, 2)):
            levels = (images[:, channel] * grid).floor().clamp(max=2)
            torch.testing.assert_close(values[:, 6 * channel + place], levels / 3)


def test_channels_have_ranges_and_negative_pixels_channels_of_their_own():
    images = torch.tensor([[0.6, -2.5], [-0.6, 2.5]])[..., None]
    front = InputSpikes(2, 4, 4, grids=(0,), pixel_range=[1.0, 4.0], signed=True, dimensions=1)
    expected = torch.tensor([[0.5, 0, 0, 0.5], [0, 0.5, 0.5, 0]])[..., None]
    torch.testing.assert_close(front(images), expected)
    pixels = (front(images) * front.decoding[:, None]).unflatten(1, (2, 2)).sum(2)
    torch.testing.assert_close(pixels, torch.tensor([[0.5, -2.0], [-0.5, 2.0]])[..., None])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pixel_range": 0.0}, "range of the pixels"),
        ({"resolution": 1}, "grid must have levels"),
        ({"grids": ()}, "grid must have levels"),
        ({"dimensions": 4}, "dimensions must be a whole number from 0 to 3"),
        ({"shift": 1.0}, "shift must be a finite number of at least 0 and below 1"),
    ],
)
def test_options_without_meaning(options, message):
    with pytest.raises(ValueError, match=message):
        InputSpikes(**{"channels": 1, "timesteps": 1, "resolution": 4, **options})


def network(kind):
    torch.manual_seed(0)
    if kind == "vector":
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), torch.randn(64, 6)
    model = ResNet20(width=4) if kind == "signed" else SmallCNN(in_channels=3, image_size=16, width=4)
    images = torch.randn(64, 3, 16, 16)
    return model.eval(), images if kind == "signed" else images.sigmoid()


@pytest.mark.parametrize("kind", ["pixels", "signed", "vector"])
def test_the_network_stays_what_it_was_but_for_the_rounding(kind):
    model, images = network(kind)
    with torch.no_grad():
        expected = model(images)
        errors = []
        for timesteps in (2, 8, 1000):
            expanded = expand_input(model, images, timesteps)
            errors.append(float((expanded(images) - expected).abs().mean() / expected.std()))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.02


def test_more_grids_round_less():
    model, images = network("pixels")
    with torch.no_grad():
        expected = model(images)
        one = expand_input(model, images, 4, grids=(0,))(images)
        three = expand_input(model, images, 4)(images)
    assert (three - expected).abs().mean() < (one - expected).abs().mean()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["pixels", "signed", "vector"])
def test_converted_the_pixels_are_spikes(kind, backend):
    model, images = network(kind)
    expanded = expand_input(model, images, 4)
    snn = snn_lowlat.convert(expanded, images, strategy="value_range", timesteps=4, backend=backend)
    assert snn.depth == snn_lowlat.convert(model, images, strategy="value_range", timesteps=4).depth + 1
    graph, plan = snn.normal_form()
    _, counts = count(graph, plan, images, 4)
    first = next(iter(counts.values()))
    torch.testing.assert_close(first / expanded[0].neurons.resolution, expanded[0](images))
    torch.testing.assert_close(snn(images), snn.simulate(images), rtol=1e-4, atol=1e-4)


def test_an_online_strategy_gets_spikes_too():
    model, images = network("pixels")
    snn = snn_lowlat.convert(expand_input(model, images, 8), images, timesteps=8)
    assert snn.latency_steps == 8
    assert len(snn.plan) == 4


def test_weights_are_trained_and_the_grids_are_not():
    model, images = network("pixels")
    expanded = expand_input(model, images, 4).train()
    expanded(images).sum().backward()
    assert expanded[1].features[0][0].weight.grad.abs().sum() > 0
    assert not expanded[0].layer.weight.requires_grad


class Subtracting(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return (x - self.layer(x)).relu()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(48, 3), nn.ReLU()), "let one be the network's first layer"),
        (nn.Sequential(nn.Conv2d(3, 3, 1, groups=3), nn.ReLU()), "ungrouped"),
        (Subtracting(), "something else than its first layers"),
    ],
)
def test_what_else_reads_pictures_is_refused(model, message):
    with pytest.raises(ConversionError, match=message):
        expand_input(model, torch.rand(4, 3, 4, 4), 4)
