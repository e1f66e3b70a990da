"""Names that are safe in the source that torch.fx writes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import fx, nn

import snn_lowlat
from snn_lowlat.graph.names import free_name, is_safe_name, safe_name, safe_names
from snn_lowlat.hosts import BACKENDS

ODD = ["self", "class", "graph", "meta", "training", "ﬁ"]
NAMES = st.one_of(st.text(), st.from_regex(r"\w+"), st.sampled_from(ODD))


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        *(("conv1", "conv1"), ("3", "3"), ("größe", "größe"), ("layer1.0.conv", "layer1_0_conv")),
        *(
            ("in", "in_"),
            ("class", "class_"),
            ("True", "True_"),
            ("x_amplitude", "x_amplitude_"),
            ("self", "self_"),
            ("a/b", "a_b"),
            ("a b", "a_b"),
        ),
        ("x_amplitude", "x_amplitude_"),
        *(('x"); import os; ("', "x____import_os____"), ("x\n", "x_"), ("ﬁ", "fi"), ("", "unnamed")),
    ],
)
def test_names_are_made_safe_and_ordinary_ones_stay(wanted, expected):
    assert safe_name(wanted) == expected


@given(NAMES)
def test_a_layer_of_any_name_can_be_called_in_a_graph(wanted):
    root, graph = nn.Module(), fx.Graph()
    name = free_name(root, wanted)
    assert is_safe_name(name)
    root.add_module(name, nn.Identity())
    x = graph.placeholder("input")
    graph.output(graph.call_module(name, (x,)))
    assert fx.GraphModule(root, graph)(7) == 7


@given(NAMES)
def test_a_safe_name_stays_as_it_is(wanted):
    assert safe_name(safe_name(wanted)) == safe_name(wanted)


def test_names_that_are_taken_get_a_number():
    network = nn.Sequential(nn.ReLU())
    assert free_name(network, "0") == "0_1"
    assert free_name(network, "graph") == "graph_1"
    assert free_name(network, "training") == "training_1"


@pytest.mark.parametrize("name", ["a.b", "class", 'x"', "x\n", "graph", "", 3, None])
def test_names_that_are_not_safe_are_told(name):
    assert not is_safe_name(name)


@given(st.sets(NAMES))
def test_names_that_become_the_same_stay_apart(wanted):
    found = safe_names(wanted)
    assert len(set(found.values())) == len(wanted)
    assert all(is_safe_name(name) for name in found.values())
    assert all(found[name] == name for name in wanted if is_safe_name(name))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["in", "class", "self", "graph", "a/b", 'x"y', "relu_amplitude"])
def test_layers_of_any_name_are_converted_and_saved(name, backend, tmp_path):
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.relu, self.last = nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)
            self.add_module(name, nn.Linear(5, 5))

        def forward(self, x):
            return self.last(torch.relu(getattr(self, name)(self.relu(self.first(x)))))

    torch.manual_seed(0)
    images = torch.rand(8, 4)
    snn = snn_lowlat.convert(Network(), images, timesteps=3, backend=backend)
    snn.save(tmp_path / "snn.pt")
    assert torch.equal(snn_lowlat.load(tmp_path / "snn.pt")(images), snn(images))
