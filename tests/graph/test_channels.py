"""Channels are where the layers have them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from snn_lowlat.activations import CeilingReLU
from snn_lowlat.graph import bias_carrier, channel_dimensions, find_sites, normalise, output_bias_carrier
from tests.contract.token_networks import TOKEN_NETWORKS, Pixels, Sequences, make_token_network


def permutations(graph):
    return sum(node.target == "permute" for node in graph.graph.nodes)


class Function(nn.Module):
    def __init__(self, *layers, forward):
        super().__init__()
        self.layers, self.function = nn.ModuleList(layers), forward

    def forward(self, x):
        return self.function(x, *self.layers)


@pytest.mark.parametrize("kind", TOKEN_NETWORKS)
def test_every_site_has_its_channels_in_dimension_1(kind):
    model, images = make_token_network(kind)
    graph = normalise(model, images)
    torch.testing.assert_close(graph(images), model(images), rtol=1e-4, atol=1e-5)
    channels = channel_dimensions(graph, images)
    for site in find_sites(graph).values():
        assert channels[site.current] == channels[site.node] == 1
        carrier = bias_carrier(graph, site, channels)
        assert carrier is not None
        assert graph.get_submodule(carrier).bias.numel() == site.current.meta["tensor_meta"].shape[1]
    assert output_bias_carrier(graph, channels) is not None


@pytest.mark.parametrize("kind", TOKEN_NETWORKS)
def test_a_carriers_bias_shifts_the_sites_channels_alone(kind):
    model, images = make_token_network(kind)
    graph = normalise(model, images)
    before, after = {}, {}

    def watch(found):
        handles = [
            graph.get_submodule(name).register_forward_pre_hook(
                lambda _, inputs, name=name: found.__setitem__(name, inputs[0].detach().clone())
            )
            for name in find_sites(graph)
        ]
        graph(images)
        for handle in handles:
            handle.remove()

    channels = channel_dimensions(graph, images)
    for name, site in find_sites(graph).items():
        watch(before)
        bias = graph.get_parameter(f"{bias_carrier(graph, site, channels)}.bias")
        shift = torch.arange(1.0, 1.0 + bias.numel())
        bias.data += shift
        watch(after)
        bias.data -= shift
        moved = (after[name] - before[name]).movedim(1, -1)
        torch.testing.assert_close(moved, shift.expand_as(moved), rtol=1e-4, atol=1e-4)


def test_batch_norms_fold_into_the_linear_layer_whose_channels_they_normalise():
    model, images = make_token_network(Sequences)
    graph = normalise(model, images)
    assert not any(isinstance(module, nn.BatchNorm1d) for module in graph.modules())

    torch.manual_seed(0)
    # Over the tokens, of which there are as many as channels: nothing to fold.
    model = nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Flatten(), nn.Linear(25, 3))
    images = torch.randn(16, 5, 5)
    for _ in range(4):
        model(images * torch.linspace(0.5, 2, 5)[:, None])
    model.eval()
    graph = normalise(model, images)
    assert sum(isinstance(module, nn.BatchNorm1d) for module in graph.modules()) == 1
    torch.testing.assert_close(graph(images), model(images), rtol=1e-4, atol=1e-5)


def test_permutations_that_undo_each_other_are_left_out():
    model, images = make_token_network(Pixels)
    graph = normalise(model, images)
    stem, first, *_ = find_sites(graph).values()
    assert str(stem.current.target) == "stem"
    assert first.current.target == "permute"


def test_networks_of_convolutions_get_no_permutations():
    torch.manual_seed(0)

    def shuffled(x, conv, head):
        x = F.relu(conv(x))
        x = x.view(len(x), 2, 4, 6, 6).transpose(1, 2).reshape(len(x), 8, 6, 6)
        return head(F.relu(F.avg_pool2d(F.relu(x[:, 1:]), 2)).mean((2, 3)))

    model = Function(nn.Conv2d(3, 8, 3), nn.Linear(7, 4), forward=shuffled)
    images = torch.randn(4, 3, 8, 8)
    graph = normalise(model, images)
    # The shuffle's own.
    assert permutations(graph) == 1
    assert set(channel_dimensions(graph, images).values()) <= {1, 2}


def test_a_trained_ceiling_for_each_token_keeps_its_place():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 7), CeilingReLU(channels=5), nn.Flatten(), nn.Linear(35, 4))
    with torch.no_grad():
        model[1].ceiling.copy_(torch.linspace(0.2, 0.6, 5))
    images = torch.randn(8, 5, 6)
    graph = normalise(model.eval(), images)
    (site,) = find_sites(graph).values()
    assert permutations(graph) == 0
    assert site.ceiling.numel() == 5
    assert bias_carrier(graph, site, channel_dimensions(graph, images)) is None


@pytest.mark.parametrize(
    ("move", "dimension"),
    [
        (lambda x: x, 2),
        (lambda x: x.transpose(1, 2), 1),
        (lambda x: x[:, None], 3),
        (lambda x: x.unsqueeze(2), 3),
        (lambda x: x[:, 1:, ::2], 2),
        (lambda x: x[..., 0, :], 1),
        (lambda x: x.mean(1), 1),
        (lambda x: x.mean(1, keepdim=True), 2),
        (lambda x: x.flatten(1), 1),
        (lambda x: x.reshape(len(x), 2, 2, 6), 3),
        (lambda x: x.reshape(len(x), 4, 3, 2), 2),
        (lambda x: torch.cat([x, x], 1), 2),
        (lambda x: 2 * x + torch.ones(6), 2),
        (lambda x: F.pad(x, (0, 0, 1, 1)), 2),
        (lambda x: x.chunk(2, 2)[0], 2),
    ],
)
def test_channels_are_followed_through_what_moves_them(move, dimension):
    torch.manual_seed(0)
    model = Function(nn.Linear(3, 6), forward=lambda x, linear: move(linear(x)))
    images = torch.randn(2, 4, 3)
    graph = normalise(model, images)
    channels = channel_dimensions(graph, images)
    output = next(node for node in graph.graph.nodes if node.op == "output").all_input_nodes[0]
    assert channels[output] == dimension
