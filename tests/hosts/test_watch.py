"""What is changed in a host's network is noticed, and what only trains or runs it is not taken for a change."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

import snn_lowlat
from snn_lowlat.errors import SnnLowlatError
from snn_lowlat.hosts import BACKENDS
from snn_lowlat.hosts.watch import Watch
from snn_lowlat.neurons import loops
from snn_lowlat.neurons.loops import checksum


def made(backend, strategy="optimized_potential"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 3)).eval()
    images = torch.rand(6, 1, 8, 8)
    return snn_lowlat.convert(model, images, strategy=strategy, timesteps=4, backend=backend), images


@pytest.mark.parametrize("strategy", ["optimized_potential", "value_range", "temporal_switch"])
@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_running_copying_and_stepping_change_nothing(backend, strategy):
    snn, images = made(backend, strategy)
    watch, before = Watch(snn.network), Watch(snn.network).look(snn.network)
    assert before.changed is None
    assert not before.observed
    for run in (snn, snn.readout, snn.network, lambda x: snn.train()(x)):
        run(images)
        assert watch.look(snn.network) == before
    for other in (copy.deepcopy(snn), pickle.loads(pickle.dumps(snn))):
        assert other._watch.changed(other.network) is None
        other(images)
        assert other.simulate(images).equal(snn.simulate(images))
        assert other._known.simulator is not None


def another_class(network, conv):
    conv.__class__ = type("Mine", (nn.Conv2d,), {})


def another_option(network, conv):
    conv.stride = (2, 2)


def another_forward(network, conv):
    conv.forward = lambda x: x


def another_parametrization(network, conv):
    parametrize.register_parametrization(conv, "weight", nn.Identity())


def another_neuron(network, conv):
    setattr(network, "1", nn.Identity())


def another_module(network, conv):
    network.add_module("more", nn.Identity())


@pytest.mark.parametrize(
    "change",
    [another_class, another_option, another_forward, another_parametrization, another_neuron, another_module],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_not_as_built_runs_but_is_not_written_down(backend, change):
    snn, images = made(backend)
    snn(images)
    change(snn.network, snn.network.get_submodule("0"))
    assert snn._look().sight.changed is not None
    assert snn._simulator(images) is None
    assert snn.precision == "fp32"
    with pytest.raises(SnnLowlatError, match="not what was built"):
        snn.normal_form()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_changed_graph_is_noticed(backend):
    snn, images = made(backend)
    before = snn(images)
    graph = snn.network.graph
    logits = next(node for node in graph.nodes if node.op == "output").all_input_nodes[0]
    with graph.inserting_after(logits):
        negative = graph.call_function(torch.neg, (logits,))
    logits.replace_all_uses_with(negative, delete_user_cb=lambda user: user is not negative)
    snn.network.recompile()
    assert torch.equal(snn(images), -before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_pruning_by_masks_runs_and_says_what_to_do_before_it_is_written_down(backend):
    snn, images = made(backend)
    before = snn(images)
    prune.l1_unstructured(snn.network.get_submodule("0"), "weight", amount=0.5)
    pruned = snn(images)
    assert not torch.equal(pruned, before)
    with pytest.raises(SnnLowlatError, match="make pruning and the like permanent"):
        snn.normal_form()
    prune.remove(snn.network.get_submodule("0"), "weight")
    torch.testing.assert_close(snn(images), pruned)
    snn.normal_form()


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("length", [1, 8, 16, 1001])
def test_every_byte_counts_in_a_checksum(monkeypatch, compiled, length):
    if not compiled:
        monkeypatch.setattr(loops, "_have_loops", lambda: False)
    values = torch.randint(0, 256, (length,), dtype=torch.uint8).numpy()
    read = checksum(values)
    seen = {read()}
    for place in range(0, length, 7):
        values[place] ^= 1
        seen.add(read())
    assert len(seen) == 1 + len(range(0, length, 7))


def test_signs_and_places_count_in_a_checksum():
    values = torch.randn(64)
    read = checksum(values.view(torch.uint8).numpy())
    before = read()
    values.neg_()
    assert read() != before
    values[1::2].neg_()  # the upper halves of words: their signs alone
    after = read()
    values[3].neg_()
    values[5].neg_()
    assert read() != after
    values.copy_(values.flip(0))
    assert read() != after
