"""Quantised activations as people write them: sites with a ceiling and levels."""

import pytest
import torch
import torch.nn.functional as F
from test_spellings import assert_converts
from torch import nn

import snn_lowlat
from snn_lowlat import check_convertible
from snn_lowlat.graph import find_sites, normalise

LEVELS = 4


class GradFloor(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.floor()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class RoundPass(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale):
        ctx.save_for_backward(x, scale)
        return torch.round(x / scale) * scale

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


def detached(x):
    return x + (torch.floor(x) - x).detach()


def detached_round(x):
    return (x.round() - x).detach() + x


def clamp_then_floor(x, up):
    return torch.floor(torch.clamp(x / up, 0, 1) * LEVELS + 0.5) / LEVELS * up


def one_after_the_other(x, up):
    x = x / up
    x = torch.clamp(x, 0, 1)
    x = GradFloor.apply(x * LEVELS + 0.5) / LEVELS
    return x * up


QUANTISERS = {
    "clamp, then floor": clamp_then_floor,
    "an autograd function": one_after_the_other,
    "an autograd function with a scale": lambda x, up: RoundPass.apply(
        torch.minimum(F.relu(x), up), up.detach() / LEVELS
    ),
    "round": lambda x, up: torch.round(torch.clamp(x / up, 0, 1) * LEVELS) / LEVELS * up,
    "clip in units of the input": lambda x, up: (
        torch.floor(torch.minimum(x.relu(), up) / up * LEVELS + 0.5) * up / LEVELS
    ),
    "clip in levels": lambda x, up: (x / up * LEVELS).clamp(0, LEVELS).round() * (up / LEVELS),
    "clip after rounding": lambda x, up: torch.clamp(torch.floor(x / up * LEVELS + 0.5), 0, LEVELS) / LEVELS * up,
    "clip above after rounding": lambda x, up: (
        torch.clamp((F.relu(x) * (LEVELS / up) + 0.5).floor(), max=LEVELS) * (up / LEVELS)
    ),
    "hardtanh": lambda x, up: up * torch.floor(F.hardtanh(x / up, 0, 1) * LEVELS + 0.5).div(LEVELS),
    "min of relu": lambda x, up: torch.floor(torch.min(F.relu(x / up), torch.ones(())) * LEVELS + 0.5) * (up / LEVELS),
    "detached": lambda x, up: detached(torch.clamp(x / up, 0, 1) * LEVELS + 0.5) / LEVELS * up,
    "detached round": lambda x, up: detached_round(torch.clamp(x / up, 0, 1) * LEVELS) / LEVELS * up,
    "detached output": lambda x, up: (y := torch.clamp(x / up, 0, 1) * up) + (clamp_then_floor(x, up) - y).detach(),
    "no shift": lambda x, up: torch.floor(torch.clamp(x / up, 0, 1) * LEVELS) / LEVELS * up,
    "floor_divide": lambda x, up: torch.clamp(x, torch.zeros_like(up), up) // (up / LEVELS) * (up / LEVELS),
}


class Quantised(nn.Module):
    def __init__(self, quantise, up, channels=8):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.linear = nn.Conv2d(3, channels, 3, padding=1), nn.Linear(channels * 16, 5)
        self.quantise = quantise
        self.up = nn.Parameter(up) if isinstance(up, torch.Tensor) else up

    def forward(self, x):
        return self.linear(F.avg_pool2d(self.quantise(self.conv(x), self.up), 2).flatten(1))


UPS = {"a parameter": torch.tensor(0.7), "one each channel": torch.linspace(0.3, 1.0, 8).view(1, 8, 1, 1)}


@pytest.mark.parametrize("up", UPS)
@pytest.mark.parametrize("name", QUANTISERS)
def test_a_quantiser_is_a_site_with_a_ceiling_and_levels(name, up):
    model = Quantised(QUANTISERS[name], UPS[up].clone())
    graph = assert_converts(model, strategy="value_range")
    (site,) = find_sites(graph).values()
    assert site.levels == LEVELS
    assert site.shift == pytest.approx(0.0 if name in ("no shift", "floor_divide") else 0.5, abs=1e-3)
    torch.testing.assert_close(site.ceiling.flatten(), UPS[up].flatten())
    assert site.current.target == "conv"
    assert {type(module) for module in graph.children()} == {nn.Conv2d, nn.ReLU, nn.AvgPool2d, nn.Linear}


@pytest.mark.parametrize("name", ["clamp, then floor", "clip after rounding", "detached round"])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_network_of_quantisers_equals_its_spiking_network(name, precision, tmp_path):
    model, images = Quantised(QUANTISERS[name], torch.tensor(0.7)).eval(), torch.rand(16, 3, 8, 8)
    snn = snn_lowlat.convert(model, images, strategy="value_range", timesteps=LEVELS, precision=precision)
    with torch.no_grad():
        expected = model(images)
    tolerance = 1e-5 if precision == "fp32" else 0.05
    torch.testing.assert_close(snn(images), expected, rtol=tolerance, atol=tolerance)
    snn.save(tmp_path / "snn.pt")
    for options in ({}, {"model": model}):
        assert torch.equal(snn_lowlat.load(tmp_path / "snn.pt", **options)(images), snn(images))


def test_a_number_as_the_ceiling():
    graph = assert_converts(Quantised(clamp_then_floor, 0.7))
    (site,) = find_sites(graph).values()
    assert (site.levels, site.ceiling.item()) == (LEVELS, pytest.approx(0.7))


def test_a_scale_left_out_stays_behind_the_site():
    model = Quantised(lambda x, up: torch.floor(torch.clamp(x / up, 0, 1) * LEVELS + 0.5), torch.tensor(0.7))
    (site,) = find_sites(assert_converts(model)).values()
    assert (site.levels, site.ceiling.item()) == (LEVELS, pytest.approx(0.7))


def test_a_quantiser_with_another_scale_behind_it_is_worth_that():
    model = Quantised(lambda x, up: torch.floor(torch.clamp(x, 0, 1) * LEVELS + 0.5) * 0.3, 1.0).eval()
    images = torch.rand(16, 3, 8, 8)
    snn = snn_lowlat.convert(model, images, strategy="value_range", timesteps=LEVELS)
    with torch.no_grad():
        torch.testing.assert_close(snn(images), model(images), rtol=1e-4, atol=1e-5)


def test_a_clipped_value_that_is_read_unrounded_too_has_a_site_of_its_own():
    def both(x, up):
        clipped = torch.clamp(x, 0, 1)
        return clipped + torch.floor(clipped * LEVELS + 0.5) / LEVELS

    sites = find_sites(assert_converts(Quantised(both, 1.0))).values()
    assert sorted((site.levels for site in sites), key=str) == [LEVELS, None]


ROUNDING = {
    "of currents": lambda x, up: F.relu(torch.floor(x)),
    "of a plain ReLU": lambda x, up: torch.floor(F.relu(x)),
    "to uneven levels": lambda x, up: torch.floor(torch.clamp(x, 0, 1) * 2.5),
    "with a shift of more than a level": lambda x, up: torch.floor(torch.clamp(x, 0, 1) * LEVELS + 1.5),
    "up": lambda x, up: torch.ceil(torch.clamp(x, 0, 1) * LEVELS),
    "to decimals": lambda x, up: torch.round(F.relu6(x), decimals=1),
    "of negative values towards zero": lambda x, up: torch.clamp(x, -1, 1).trunc(),
    "of each position by itself": lambda x, up: torch.floor(torch.clamp(x, 0, 1) * torch.arange(1.0, 9.0) + 0.5),
}


@pytest.mark.parametrize("name", ROUNDING)
def test_other_rounding_is_an_obstacle(name):
    report = check_convertible(Quantised(ROUNDING[name], 1.0), torch.randn(2, 3, 8, 8))
    assert not report
    assert any(word in str(report) for word in ("round", "clamp"))


def test_an_activation_read_clipped_and_unclipped_has_two_sites():
    def both(x, up):
        x = F.relu(x)
        return torch.cat([x, x.clamp(max=0.2), x.clamp(max=0.4)], 1)[:, 4:12]

    graph = assert_converts(Quantised(both, 1.0))
    ceilings = {
        site.ceiling if site.ceiling is None else round(site.ceiling.item(), 3) for site in find_sites(graph).values()
    }
    assert ceilings == {None, 0.2, 0.4}


def test_levels_are_found_behind_batch_norm():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), Quantised(clamp_then_floor, torch.tensor(0.5)))
    model[2].conv, model[2].linear = nn.Identity(), nn.Linear(8 * 9, 5)
    model(torch.randn(8, 3, 8, 8))
    graph = assert_converts(model.eval())
    assert [site.levels for site in find_sites(graph).values()] == [LEVELS]
    assert find_sites(normalise(model, torch.randn(2, 3, 8, 8))).keys() == find_sites(graph).keys()
