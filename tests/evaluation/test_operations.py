"""Operations against brute force: every spike is followed to every place it reaches, one by one."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snn_lowlat.convert import convert
from snn_lowlat.encoding import make_encoder
from snn_lowlat.evaluation import LayerOperations, Operations, ann_operations, measure_operations
from snn_lowlat.model import SpikingModel
from snn_lowlat.simulation import simulate, transmissions


class Network(nn.Module):
    """Strides, padding, groups, dilation, pools that overlap, padded and sliced shortcuts, concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 6, 3, stride=2, padding=(1, 0), groups=2)
        self.pool = nn.AvgPool2d(2, stride=1, padding=1)
        self.third = nn.Conv2d(6, 6, (3, 2), padding=2, dilation=(2, 1), groups=3)
        self.side = nn.Conv2d(6, 3, 1)
        self.linear = nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        shortcut = F.pad(x[:, 1:3, ::2, 1::2], (0, 0, 0, 0, 2, 2))
        x = F.relu(self.second(x) + shortcut[..., :3])
        x = self.pool(x)
        x = torch.cat([F.relu(self.third(x)[..., :4, :4] + x[..., :4, :4]), F.relu(self.side(x))[..., :4, :4]], 1)
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


def converted(model: nn.Module, images: Tensor, **options: Any) -> SpikingModel:
    options = {"strategy": "optimized_potential", "timesteps": 4} | options
    return convert(model.eval(), images, **options)


def spikes_of(snn: SpikingModel, images: Tensor, timesteps: int | None = None) -> dict[str, Tensor]:
    graph, plan = snn.normal_form()
    currents = make_encoder(snn.encoder)(images, timesteps or snn.timesteps, snn.seed)
    return simulate(graph, plan, currents)[1]


def layer(operations: Operations, name: str) -> LayerOperations:
    return next(part for part in operations.layers if part.name == name)


def covered(size: int, out: int, kernel: int, stride: int, padding: int, dilation: int, place: int) -> list[int]:
    """Name the outputs of a sliding window, in one dimension, that read a place."""
    return [
        position
        for position in range(out)
        for offset in range(kernel)
        if position * stride - padding + offset * dilation == place and 0 <= place < size
    ]


def reached(conv: Any, shape: tuple[int, ...], y: int, x: int) -> list[tuple[int, int]]:
    sizes = []
    for axis, (size, place) in enumerate(zip(shape, (y, x), strict=True)):
        kernel, stride = conv.kernel_size[axis], conv.stride[axis]
        padding, dilation = conv.padding[axis], conv.dilation[axis]
        out = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        sizes.append(covered(size, out, kernel, stride, padding, dilation, place))
    return list(product(*sizes))


def fan_out(conv: Any, shape: tuple[int, ...], y: int, x: int) -> int:
    return len(reached(conv, shape, y, x)) * conv.out_channels // conv.groups


def test_synaptic_operations_equal_a_brute_force_count() -> None:
    torch.manual_seed(0)
    network, images = Network(), torch.rand(3, 2, 7, 7)
    snn = converted(network, images)
    operations = measure_operations(snn, [images])[4]
    spikes = spikes_of(snn, images)
    first, second, third, side = spikes.values()
    assert all(site.any() for site in spikes.values())
    counts = dict.fromkeys(("second", "third", "side", "linear", "at second", "at third"), 0)
    for _, _, channel, y, x in first.nonzero().tolist():
        counts["second"] += fan_out(network.second, (7, 7), y, x)
        # The shortcut takes channels 1 and 2, every second row from 0 and column from 1, of these three.
        counts["at second"] += channel in (1, 2) and y % 2 == 0 and x in (1, 3, 5)
    for _, _, _, y, x in second.nonzero().tolist():
        for row, column in product(covered(4, 5, 2, 1, 1, 1, y), covered(3, 4, 2, 1, 1, 1, x)):
            # Products that are sliced away afterwards have been computed.
            counts["third"] += fan_out(network.third, (5, 4), row, column)
            counts["side"] += fan_out(network.side, (5, 4), row, column)
            counts["at third"] += row < 4
    counts["linear"] = 5 * sum(1 for site in (third, side) for *_, y, x in site.nonzero().tolist() if y < 4 and x < 4)
    names = list(spikes)
    for name in ("second", "third", "side", "linear"):
        assert layer(operations, name).synaptic_operations == pytest.approx(counts[name] / 3)
        assert layer(operations, name).macs == 0
    for name, key in ((names[1], "at second"), (names[2], "at third")):
        neurons = layer(operations, name)
        fired = float(spikes[name].sum()) / 3
        constant = 4 * spikes[name][0, 0].numel()  # a bias in each step
        assert neurons.spikes == neurons.events == pytest.approx(fired)
        assert neurons.additions == pytest.approx(counts[key] / 3 + fired + constant)
        assert neurons.comparisons == constant
    assert operations.images == 3


def test_the_first_layer_multiplies_once_whatever_the_number_of_steps() -> None:
    torch.manual_seed(0)
    network, images = Network(), torch.rand(2, 2, 7, 7)
    operations = measure_operations(converted(network, images), [images])
    expected = 2 * sum(fan_out(network.first, (7, 7), y, x) for y in range(7) for x in range(7))
    for steps in (1, 4):
        first = layer(operations[steps], "first")
        assert (first.macs, first.synaptic_operations) == (expected, 0)
        assert operations[steps].macs == expected


def test_a_network_whose_neurons_all_fire_adds_as_often_as_the_original_multiplies() -> None:
    torch.manual_seed(0)
    network, images = Network(), torch.rand(1, 2, 7, 7)
    snn = converted(network, images, timesteps=1)
    graph, plan = snn.normal_form()
    for name, site in plan.items():
        site.initial_potential.fill_(1e4)
        assert plan[name].initial_potential.min() == 1e4
    snn = snn.rebuilt(graph, plan)
    assert all(site.all() for site in spikes_of(snn, images).values())
    spiking, ann = measure_operations(snn, [images])[1], ann_operations(graph, (2, 7, 7))
    for name in ("second", "side"):
        assert layer(spiking, name).synaptic_operations >= layer(ann, name).macs
    assert layer(spiking, "second").synaptic_operations == layer(ann, "second").macs
    assert spiking.macs == layer(ann, "first").macs


def test_steps_of_one_pass_equal_shorter_passes() -> None:
    torch.manual_seed(0)
    images = torch.rand(3, 2, 7, 7)
    snn = converted(Network(), images)
    whole = measure_operations(snn, [images])
    assert list(whole) == [1, 2, 3, 4]
    assert measure_operations(snn, [images], timesteps=[2]) == {2: whole[2]}


def test_batches_micro_batches_and_limits_do_not_matter() -> None:
    torch.manual_seed(0)
    images = torch.rand(6, 2, 7, 7)
    snn = converted(Network(), images)
    whole = measure_operations(snn, [images[:4]])
    snn.micro_batch = 1
    parts = measure_operations(snn, [(images[:3], None), (images[3:], None)], images=4)
    assert parts[4].images == 4
    for one, other in zip(whole[4].layers, parts[4].layers, strict=True):
        assert one.name == other.name
        assert one.synaptic_operations == pytest.approx(other.synaptic_operations)
    with pytest.raises(ValueError, match="no images"):
        measure_operations(snn, [])


@pytest.mark.parametrize("backend", ["spikingjelly", "snntorch"])
def test_counted_networks_are_measured_window_by_window(backend: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    images = torch.rand(5, 1, 4, 4)
    snn = converted(model, images, strategy="value_range", backend=backend)
    operations = measure_operations(snn, [images], timesteps=[2, 4])
    for steps in (2, 4):
        (fired,) = spikes_of(snn, images, steps).values()
        assert layer(operations[steps], "3").synaptic_operations == pytest.approx(3 * float(fired.sum()) / 5)
        neurons = next(part for part in operations[steps].layers if part.kind == "neurons")
        # They add up their window, and then fire in another.
        assert neurons.additions == pytest.approx(2 * steps * 8 + float(fired.sum()) / 5)


def test_neurons_that_switch_send_fewer_events_than_they_fire() -> None:
    from snn_lowlat.strategies import strategies

    if "temporal_switch" not in strategies():
        pytest.skip("there is no such strategy")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    images = torch.rand(5, 1, 4, 4)
    snn = converted(model, images, strategy="temporal_switch", timesteps=8)
    operations = measure_operations(snn, [images], timesteps=[8])[8]
    ((name, fired),) = spikes_of(snn, images).items()
    events = transmissions(fired, snn.plan[name]) != 0
    neurons = layer(operations, name)
    assert neurons.events == pytest.approx(float(events.sum()) / 5)
    assert neurons.spikes == pytest.approx(float(fired.abs().sum()) / 5)
    assert neurons.events < neurons.spikes
    assert layer(operations, "3").synaptic_operations == pytest.approx(3 * neurons.events)


def test_poisson_input_is_events() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    images = torch.rand(5, 1, 4, 4)
    snn = converted(model, images, encoder="poisson")
    operations = measure_operations(snn, [images])[4]
    events = make_encoder("poisson")(images, 4, snn.seed).sum()
    assert layer(operations, "1").synaptic_operations == pytest.approx(8 * float(events) / 5)
    assert operations.macs == 0


class WithoutNeurons(nn.Module):
    """Layers that read what others have added up: a convolution behind a convolution, a batch norm behind a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(1, 3, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.norm, self.linear = nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = self.third(self.second(x))
        x = F.max_pool2d(F.relu(self.norm(x + x[:, :1])), 3, padding=1, stride=2)
        return self.linear(x.mean((2, 3)))


def test_real_numbers_in_the_middle_are_multiplied_in_every_step() -> None:
    torch.manual_seed(0)
    images = torch.rand(2, 1, 4, 4)
    snn = converted(WithoutNeurons(), images)
    operations = measure_operations(snn, [images])[4]
    events = layer(operations, next(iter(snn.plan))).events
    assert layer(operations, "second").synaptic_operations == pytest.approx(4 * events)
    assert layer(operations, "third").macs == 4 * 16 * 16
    assert layer(operations, "norm").macs == 4 * 64
    (pool,) = [part for part in operations.layers if part.kind == "pool"]
    # Windows at 0 and 2 of 4 places, padded by one: 2 and 3 places in each direction.
    assert pool.comparisons == 4 * 4 * ((2 + 3) ** 2 - 4)


def test_the_original_network() -> None:
    torch.manual_seed(0)
    network, images = Network(), torch.rand(2, 2, 7, 7)
    snn = converted(network, images)
    ann = ann_operations(snn.normal_form()[0], (2, 7, 7))
    assert layer(ann, "linear").macs == 9 * 5
    assert layer(ann, "linear").parameter_reads == 9 * 5 + 5
    assert layer(ann, "side").macs == 6 * 3 * 5 * 4
    sums = [part for part in ann.layers if part.kind == "sum"]
    assert [part.additions for part in sums] == [
        2 * 4 * 3,
        6 * 4 * 3,
    ]  # the first column is a bias, which nothing was added to
    neurons = [part for part in ann.layers if part.kind == "neurons"]
    assert [part.comparisons for part in neurons] == [4 * 49, 6 * 12, 6 * 16, 3 * 20]
    assert (ann.synaptic_operations, ann.spiking, ann.spikes) == (0, False, 0)


def test_totals_and_plain_values() -> None:
    parts = (
        LayerOperations("a", "weights", events=2, synaptic_operations=8, parameter_reads=9, outputs=4),
        LayerOperations("b", "neurons", events=3, spikes=3, additions=5, comparisons=8, state_accesses=16, outputs=4),
    )
    operations = Operations(parts, timesteps=2, images=1)
    assert (operations.synaptic_operations, operations.additions, operations.spikes) == (8, 5, 3)
    assert operations.memory_accesses == 25
    assert operations.firing_rates == {"b": 3 / 8}
    assert Operations.from_dict(operations.to_dict()) == operations
