from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import snn_lowlat
from snn_lowlat import check_convertible
from snn_lowlat.errors import ConversionError
from snn_lowlat.graph import current_shapes, normalise
from snn_lowlat.training import CeilingReLU, fit_ceilings, replace_activations
from tests.contract.token_networks import TOKEN_NETWORKS, make_token_network

IMAGES = torch.rand(4, 1, 6, 6)


class Modules(nn.Module):
    """Two modules, one of them ReLU6."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 6, 3), nn.ReLU6()
        )
        self.head = nn.Linear(24, 3)

    def forward(self, x: Any) -> Any:
        return self.head(self.layers(x).flatten(1))


class SharedByName(nn.Module):
    """One module in two places of a sequence."""

    def __init__(self) -> None:
        super().__init__()
        relu = nn.ReLU()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3), relu, nn.Conv2d(4, 6, 3), relu, nn.Flatten(), nn.Linear(24, 3))

    def forward(self, x: Any) -> Any:
        return self.layers(x)


class SharedByCall(nn.Module):
    """One module called in two places, and another that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3)
        self.head, self.relu, self.idle = nn.Linear(24, 3), nn.ReLU(), nn.ReLU()

    def forward(self, x: Any) -> Any:
        x = self.relu(self.norm(self.first(x)))
        return self.head(self.relu(self.second(x)).flatten(1))


class Functional(nn.Module):
    """Every spelling of a ReLU, in the network and in a block of it, with options, a dropout and an unused head."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)
            self.register_buffer("scale", torch.tensor(2.0), persistent=False)

        def forward(self, x: Any) -> Any:
            return torch.relu(self.conv(x) * self.scale).relu_()

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.blocks = nn.Conv2d(1, 4, 5), nn.BatchNorm2d(4), nn.ModuleList([self.Block()])
        self.hidden, self.head, self.auxiliary = nn.Linear(16, 8), nn.Linear(8, 3), nn.Linear(8, 2)

    def forward(self, x: Any, features: bool = False) -> Any:
        x = F.relu(self.norm(self.stem(x)), inplace=True)
        for block in self.blocks:
            x = block(x)
        x = F.relu6(self.hidden(x.view(x.size(0), -1))).relu()
        x = F.dropout(x, 0.75, self.training)
        return x if features else self.head(x)


@pytest.mark.parametrize(("network", "number"), [(Modules, 2), (SharedByName, 2), (SharedByCall, 2), (Functional, 5)])
def test_every_call_gets_an_activation_of_its_own(network: Callable[[], nn.Module], number: int) -> None:
    torch.manual_seed(0)
    original = network()
    before = copy.deepcopy(original.state_dict())
    replaced = replace_activations(original, partial(CeilingReLU, 5.9))
    ceilings = [module for module in replaced.modules() if isinstance(module, CeilingReLU)]
    assert len(ceilings) == number
    assert not any(
        isinstance(module, nn.ReLU | nn.ReLU6) for path, module in replaced.named_modules() if path != "idle"
    )
    # The original is as it was, and its weights fit the copy.
    assert not any(isinstance(module, CeilingReLU) for module in original.modules())
    assert all(torch.equal(value, before[name]) for name, value in original.state_dict().items())
    difference = replaced.load_state_dict(before, strict=False)
    assert not difference.unexpected_keys
    assert all(name.endswith(".ceiling") for name in difference.missing_keys)
    # With ceilings out of reach it computes the same, in training too, and all ceilings are trained.
    torch.testing.assert_close(replaced.eval()(IMAGES), original.eval()(IMAGES))
    replaced.train(), original.train()
    torch.manual_seed(1)
    expected = original(IMAGES)
    torch.manual_seed(1)
    torch.testing.assert_close(replaced(IMAGES), expected)
    replaced(100 * IMAGES).sum().backward()
    assert all(module.ceiling.grad is not None for module in ceilings)


@pytest.mark.parametrize("network", [Modules, SharedByName, SharedByCall, Functional])
def test_the_copy_can_be_copied_trained_and_converted(network: Callable[[], nn.Module]) -> None:
    replaced = copy.deepcopy(replace_activations(network(), "channel_ceiling", IMAGES))
    assert replaced.training
    assert all(module.training for module in replaced.modules())
    assert [m.ceiling.numel() for m in replaced.modules() if isinstance(m, CeilingReLU)].count(4) >= 1
    assert set(network().state_dict()) <= set(replaced.state_dict())
    number = sum(isinstance(module, CeilingReLU) for module in replaced.modules())
    # Two of the five read what another activation computes, and get no neurons of their own.
    sites = {Functional: 3}.get(network, number)
    assert len(check_convertible(replaced.eval(), IMAGES).sites) == sites


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_network_with_computed_weights_is_copied() -> None:
    network = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(1, 4, 3)), nn.ReLU())
    network(IMAGES).sum().backward()
    torch.testing.assert_close(replace_activations(network, "relu")(IMAGES), network(IMAGES))


def test_dropout_follows_the_mode() -> None:
    torch.manual_seed(0)
    replaced = replace_activations(Functional())
    assert not torch.equal(replaced(IMAGES), replaced(IMAGES))
    replaced.eval()
    assert torch.equal(replaced(IMAGES), replaced(IMAGES))


def test_modules_without_such_calls_stay_what_they_are() -> None:
    replaced = replace_activations(torchvision.models.resnet18(num_classes=3))
    assert type(replaced) is torchvision.models.ResNet
    assert type(replaced.layer1) is nn.Sequential
    assert sum(isinstance(module, CeilingReLU) for module in replaced.modules()) == 17


@pytest.mark.parametrize("name", ["densenet121", "googlenet", "mobilenet_v2"])
def test_torchvisions_networks_can_be_replaced(name: str) -> None:
    options = {"init_weights": False} if name == "googlenet" else {}
    original = getattr(torchvision.models, name)(num_classes=3, **options)
    replaced = replace_activations(original, partial(CeilingReLU, 1e6))
    assert not any(isinstance(module, nn.ReLU) for module in replaced.modules())
    images = torch.rand(2, 3, 64, 64)
    expected = original.eval()(images)
    if name != "mobilenet_v2":  # whose ReLU6 clip at 6
        torch.testing.assert_close(replaced.eval()(images), expected)
    assert set(original.state_dict()) <= set(replaced.state_dict())


class Undecided(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.relu, self.head = nn.ReLU(), nn.Linear(6, 3)

    def forward(self, x: Any) -> Any:
        x = x.flatten(1)[:, :6]
        return self.head(F.relu(x) if x.sum() > 0 else x)


class UndecidedButPlain(Undecided):
    def forward(self, x: Any) -> Any:
        x = x.flatten(1)[:, :6]
        return self.head(self.relu(x)) if x.shape[0] > 1 else self.head(x)


class OtherInTraining(Undecided):
    def forward(self, x: Any) -> Any:
        x = F.relu(x.flatten(1)[:, :6])
        return self.head(2 * x if self.training else x)


class ForItsEffect(Undecided):
    def forward(self, x: Any) -> Any:
        x = x.flatten(1)[:, :6]
        torch.relu_(x)
        return self.head(x)


@pytest.mark.parametrize(
    ("network", "reason"),
    [(Undecided, "can't be traced"), (OtherInTraining, "in training"), (ForItsEffect, "for its effect")],
)
def test_what_can_not_be_replaced_is_named(network: type[nn.Module], reason: str) -> None:
    with pytest.raises(ConversionError, match=f"(?s){network.__name__} \\(1\\).*{reason}"):
        replace_activations(nn.Sequential(nn.ReLU(), network()))
    with pytest.raises(ConversionError, match="the network itself"):
        replace_activations(network())


def test_plain_modules_are_replaced_where_forward_can_not_be_traced() -> None:
    replaced = replace_activations(UndecidedButPlain())
    assert isinstance(replaced.relu, CeilingReLU)
    assert replaced(IMAGES).shape == (4, 3)


def test_missing_channels_and_networks_without_relu_are_named() -> None:
    with pytest.raises(ValueError, match=r"'layers\.2'.*example_input"):
        replace_activations(Modules(), "channel_ceiling")
    with pytest.raises(ValueError, match="unknown activation 'celling'"):
        replace_activations(Modules(), "celling")
    with pytest.raises(ConversionError, match="no ReLU"):
        replace_activations(nn.Linear(1, 1))


@pytest.mark.parametrize("kind", TOKEN_NETWORKS)
def test_ceilings_are_one_for_each_channel_where_the_layers_have_them(kind: type[nn.Module]) -> None:
    model, images = make_token_network(kind)
    replaced = replace_activations(model, "channel_ceiling", images)
    fit_ceilings(replaced, [images], percentile=99.0)
    ceilings = {name: value for name, value in replaced.named_parameters() if name.endswith("ceiling")}
    assert all(len(value.unique()) > 1 for value in ceilings.values())
    sizes = [shape[0] for shape in current_shapes(normalise(model, images), images.shape[1:]).values()]
    assert [value.numel() for value in ceilings.values()] == sizes
    snn = snn_lowlat.convert(replaced, [images], threshold="ceiling", timesteps=8, refinements=["bias_correction"])
    assert [site.threshold.numel() for site in snn.plan.values()] == sizes
    for found, ceiling in zip(snn.plan.values(), ceilings.values(), strict=True):
        torch.testing.assert_close(found.threshold, ceiling.detach())
    expected = replaced(images).detach()
    assert float((snn(images) - expected).norm() / expected.norm()) < 0.4
