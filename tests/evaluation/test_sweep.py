from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snn_lowlat.convert import convert
from snn_lowlat.evaluation import FiringRates, evaluate, labels_of
from snn_lowlat.hosts import BACKENDS
from snn_lowlat.model import SpikingModel
from snn_lowlat.models import SmallCNN


class Oracle(SpikingModel):
    """Right from step ``value + 1`` on, where ``value`` is the image's only pixel."""

    strategy, is_counted, precision = "oracle", False, "fp32"

    def __init__(self, timesteps: int = 4) -> None:
        nn.Module.__init__(self)
        self.timesteps = timesteps
        self.backend, self.encoder, self.seed, self.ann_accuracy = "host", "direct", 3, None
        self.depth = 3
        self.provenance = SimpleNamespace(options={"sharp": True}, refinements=[])
        self.calls = 0

    def readout(self, images: Tensor, timesteps: int | None = None, observe: Any = None) -> Tensor:
        self.calls += 1
        steps = torch.arange(timesteps or self.timesteps)
        right = steps[:, None] >= images.flatten()[None]
        for part in torch.split(right, 1, dim=1):
            if observe is not None:
                observe("neuron", part.float())
        return torch.stack([~right, right], dim=-1).float()

    def latency_steps_at(self, timesteps: int) -> int:
        return 10 * timesteps


def oracle() -> Any:
    return Oracle()


def batches(*sizes: int) -> list[tuple[Tensor, Tensor]]:
    return [(torch.arange(size) % 4, torch.ones(size, dtype=torch.int64)) for size in sizes]


def test_one_pass_gives_the_whole_curve() -> None:
    snn = oracle()
    report = evaluate(snn, batches(8, 4))
    assert dict(report.accuracies) == {1: 0.25, 2: 0.5, 3: 0.75, 4: 1.0}
    assert dict(report.latencies) == {1: 10, 2: 20, 3: 30, 4: 40}
    assert report.images == 12
    assert snn.calls == 2
    assert [report.pipelined_latency(steps) for steps in report.accuracies] == [10, 20, 30, 40]
    assert (report.strategy, dict(report.strategy_options), report.seed) == ("oracle", {"sharp": True}, 3)
    assert {"python", "torch", "spikingjelly", "snntorch", "snn_lowlat"} <= report.versions.keys()


@pytest.mark.parametrize(("timesteps", "listed"), [(2, [1, 2]), ([4, 1], [1, 4]), ((3,), [3]), (None, [1, 2, 3, 4])])
def test_steps_can_be_chosen(timesteps: Any, listed: list[int]) -> None:
    assert list(evaluate(oracle(), batches(4), timesteps=timesteps).accuracies) == listed


@pytest.mark.parametrize("timesteps", [0, 5, [], [0, 1], [5]])
def test_steps_the_network_does_not_simulate_are_refused(timesteps: Any) -> None:
    with pytest.raises(ValueError, match=r"timesteps must .*from 1 to"):
        evaluate(oracle(), batches(4), timesteps=timesteps)


def test_firing_rates_count_spikes_over_micro_batches_and_batches() -> None:
    report = evaluate(oracle(), batches(4, 4))
    assert dict(report.firing_rates) == {"neuron": 10 / 16}


def test_firing_rates_take_spikes_of_any_type_and_means() -> None:
    rates = FiringRates()
    rates("layer", torch.tensor([[1, 0], [1, 1]], dtype=torch.uint8))
    rates("layer", torch.zeros(4))
    rates("other", torch.tensor([0.25, 0.75, 0.0, 0.0]))
    assert rates.compute() == {"layer": 3 / 8, "other": 0.25}


def test_ann_stands_beside_and_keeps_its_mode() -> None:
    linear = nn.Linear(1, 2)
    ann = nn.Sequential(nn.Flatten(), linear, nn.Dropout())
    ann.train()
    linear.eval()
    with torch.no_grad():
        nn.init.zeros_(linear.weight)
        linear.bias.copy_(torch.tensor([0.0, 1.0]))
    loader = [(images[:, None].float(), labels) for images, labels in batches(5)]
    report = evaluate(oracle(), loader, ann=ann)
    assert report.ann_accuracy == 1.0
    assert [module.training for module in ann.modules()] == [True, True, False, True]


def test_known_accuracy_of_the_ann_is_kept() -> None:
    snn = oracle()
    snn.ann_accuracy = 0.9
    assert evaluate(snn, batches(4)).ann_accuracy == 0.9


def test_dict_batches_and_progress() -> None:
    images, labels = batches(4)[0]
    report = evaluate(oracle(), [{"image": images, "label": labels}], progress=True, device="cpu")
    assert report.accuracy == 1.0


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ([], "no images"),
        ([torch.zeros(3)], "no labels"),
        ([{"image": torch.zeros(3)}], "no labels"),
        ([(torch.zeros(3), torch.zeros(2, dtype=torch.int64))], "3 images but 2 labels"),
        ([(torch.zeros(3), torch.zeros(3, 10))], "class indices"),
    ],
)
def test_unusable_loaders_say_why(loader: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(oracle(), loader)


def test_column_labels_are_indices() -> None:
    assert labels_of((None, torch.tensor([[1], [2]]))).tolist() == [1, 2]


def test_a_converted_network() -> None:
    torch.manual_seed(0)
    ann = SmallCNN(width=4).eval()
    images = torch.rand(24, 1, 8, 8)
    with torch.no_grad():
        labels = ann(images).argmax(1)
    loader = [(images[:16], labels[:16]), (images[16:], labels[16:])]
    snn = convert(ann, loader, timesteps=6)
    report = evaluate(snn, loader, ann=ann)
    assert report.ann_accuracy == 1.0
    assert list(report.accuracies) == list(range(1, 7))
    curve = (snn.readout(images).argmax(-1) == labels).float().mean(1)
    assert list(report.accuracies.values()) == pytest.approx(curve.tolist())
    assert report.firing_rates.keys() == snn.plan.keys()
    assert all(0 <= rate <= 1 for rate in report.firing_rates.values())
    assert (report.strategy, report.backend, report.timesteps) == ("optimized_potential", "spikingjelly", 6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_networks_that_are_counted_are_evaluated_on_counts(backend):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    images = torch.rand(12, 1, 4, 4)
    labels = torch.randint(3, (12,))
    snn = convert(model, images, strategy="value_range", timesteps=4, backend=backend)
    report = evaluate(snn, [(images, labels)], timesteps=[1, 4])
    assert report.computed == "counts"
    assert dict(report.latencies) == {1: 2, 4: 8}
    for timesteps, accuracy in report.accuracies.items():
        right = snn.count(images, timesteps).argmax(1) == labels
        assert accuracy == pytest.approx(float(right.float().mean()))
    rates = FiringRates()
    snn.readout(images, observe=rates)
    assert report.firing_rates == pytest.approx(rates.compute())
