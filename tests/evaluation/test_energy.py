from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import layer, neuron
from spikingjelly.activation_based.op_counter import (
    LemaireEnergyConfig,
    SimpleEnergyCostConfig,
    estimate_lemaire_energy,
    estimate_simple_energy,
)
from torch import nn

from snn_lowlat.convert import convert
from snn_lowlat.evaluation import (
    COST_MODELS,
    LayerOperations,
    Operations,
    ann_operations,
    cost_model,
    measure_operations,
)
from snn_lowlat.plan import SitePlan


def alone(part: LayerOperations) -> Operations:
    return Operations((part,), timesteps=4, images=1)


def test_one_convolution_by_hand() -> None:
    """Two channels of 3 x 3, a kernel of 3 x 3 with padding 1, five outputs, and three events."""
    events = torch.zeros(1, 2, 3, 3)
    events[0, 0, 0, 0] = events[0, 1, 1, 1] = events[0, 1, 2, 1] = 1
    network = nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU(), nn.Conv2d(2, 5, 3, padding=1)).eval()
    with torch.no_grad():
        network[0].weight.copy_(torch.eye(2).view(2, 2, 1, 1))
        network[0].bias.zero_()
    snn = convert(network, events, timesteps=1)
    graph, plan = snn.normal_form()
    one = torch.ones(())
    snn = snn.rebuilt(graph, {name: SitePlan(one, one * 0, one) for name in plan})
    operations = measure_operations(snn, [events])[1]
    weights = next(part for part in operations.layers if part.name == "2")
    # A corner reaches 4 places, the middle 9, an edge 6; five weights lead to each.
    assert weights.synaptic_operations == 5 * (4 + 9 + 6)
    assert cost_model("int32_45nm").energy(alone(weights)).total == pytest.approx(0.1 * 95)
    assert cost_model("fp32_45nm").energy(alone(weights)).total == pytest.approx(0.9 * 95)
    # Each weight is read, and the biases of 45 outputs.
    expected = 0.9 * 95 + 4 * 24.96 * (95 + 45)
    assert cost_model("fp32_45nm_memory").energy(alone(weights)).total == pytest.approx(expected)
    first, neurons = operations.layers[:2]
    assert cost_model("int32_45nm").energy(alone(first)).total == pytest.approx(3.2 * 18 * 2)
    # 18 neurons add their current and compare, and three subtract the threshold.
    assert cost_model("int32_45nm").energy(alone(neurons)).total == pytest.approx(0.1 * (18 + 18 + 3))


def test_parts_and_layers_add_up() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()
    images = torch.rand(4, 1, 6, 6)
    operations = measure_operations(convert(network, images, timesteps=3), [images])
    for name, model in COST_MODELS.items():
        energies = [model.energy(operations[steps]) for steps in (1, 2, 3)]
        totals = [energy.total for energy in energies]
        assert totals == sorted(totals)
        assert totals[0] > 0
        for energy in energies:
            assert energy.model == name
            assert sum(energy.layers.values()) == pytest.approx(energy.total)
        assert pickle.loads(pickle.dumps(energies[0])) == energies[0]


def test_models_say_where_their_prices_come_from() -> None:
    for model in COST_MODELS.values():
        assert "45 nm" in model.source or "arXiv" in model.source
        assert "pJ" in model.description
    with pytest.raises(ValueError, match=r"unknown cost model 'int32'.*int32_45nm"):
        cost_model("int32")


@pytest.mark.parametrize(("precision", "size"), [("fp32", 4), ("fp16", 2), ("int8", 1)])
def test_prices_are_spikingjellys(precision: str, size: int) -> None:
    theirs = getattr(SimpleEnergyCostConfig, precision)()
    ours: Any = cost_model(f"{precision}_45nm_memory")
    assert (ours.mac, ours.addition) == (theirs.e_mac_pj, theirs.e_ac_pj)
    assert ours.access == size * theirs.e_memory_pj_per_byte


class Binary:
    """A network on which SpikingJelly's counters are right: one step, spikes of 1, linear layers and no pools."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.ann = nn.Sequential(nn.Linear(16, 40), nn.ReLU(), nn.Linear(40, 3)).eval()
        self.images = torch.rand(1, 16)
        with torch.no_grad():
            self.ann[0].bias.add_(0.9)
        self.host = nn.Sequential(
            layer.Linear(16, 40), neuron.IFNode(v_reset=None, v_threshold=1.0), layer.Linear(40, 3)
        ).eval()
        self.host.load_state_dict(self.ann.state_dict(), strict=False)

    def operations(self) -> Operations:
        snn = convert(self.ann, self.images, timesteps=1)
        graph, plan = snn.normal_form()
        one = torch.ones(())
        snn = snn.rebuilt(graph, {name: SitePlan(one, one * 0, one) for name in plan})
        return measure_operations(snn, [self.images])[1]


def test_the_memory_hierarchy_is_spikingjellys_where_that_is_right() -> None:
    network = Binary()
    operations = network.operations()
    assert 0 < operations.spikes < 40
    theirs = estimate_lemaire_energy(network.host, network.images, config=LemaireEnergyConfig(strict=False))
    ours = cost_model("int32_45nm_sram").energy(operations)
    assert theirs.counts["synop"] == operations.synaptic_operations
    assert theirs.counts["mac"] == operations.macs
    assert ours.total == pytest.approx(theirs.total_pj)
    assert ours.parts["memory"] == pytest.approx(theirs.breakdown_pj["memory_pj"])


@pytest.mark.filterwarnings("ignore:Lemaire formulas")
def test_the_memory_hierarchy_of_the_original_network_is_spikingjellys() -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(27, 4)).eval()
    images = torch.rand(1, 2, 7, 7)
    graph = convert(network, images, timesteps=1).normal_form()[0]
    theirs = estimate_lemaire_energy(network, images, config=LemaireEnergyConfig(strict=False))
    ours = cost_model("int32_45nm_sram").energy(ann_operations(graph, (2, 7, 7)))
    assert ours.total == pytest.approx(theirs.total_pj)


def test_parameter_reads_are_spikingjellys_where_they_are_right() -> None:
    network = Binary()
    operations = network.operations()
    theirs = estimate_simple_energy(network.host, network.images).counts
    reads = sum(part.parameter_reads for part in operations.layers)
    assert 4 * reads == theirs["weight_read_bytes"] + theirs["bias_read_bytes"]
    states = sum(part.state_accesses for part in operations.layers if part.kind == "neurons")
    assert 4 * states == theirs["neuron_state_read_bytes"] + theirs["neuron_state_write_bytes"]


def test_spikingjellys_counters_see_no_spike_in_a_converted_network() -> None:
    """The reason why the counts are this package's own; it fails when SpikingJelly counts graded spikes."""
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Linear(16, 40), nn.ReLU(), nn.Linear(40, 3)).eval()
    images = torch.rand(2, 16)
    snn = convert(ann, images, timesteps=4)
    assert measure_operations(snn, [images])[4].synaptic_operations > 0
    assert estimate_simple_energy(snn.network, images).counts["synop"] == 0
