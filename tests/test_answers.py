"""Outputs and labels of every shape and type: evaluated rightly, or refused with a reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import snn_lowlat
from snn_lowlat.evaluation import analyse, evaluate, labels_of, measure_operations

IMAGES = torch.randn(64, 6, generator=torch.Generator().manual_seed(5))


def network(*head: nn.Module) -> nn.Module:
    """Return a network with these layers at its end, whose logits are 0 on average."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), *head).eval()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.normal_()
            layer.bias.zero_()
        model[2].bias -= model[:3](IMAGES).mean(0)
    return model


def converted(model: nn.Module, **options: Any) -> snn_lowlat.SpikingModel:
    return snn_lowlat.convert(model, [IMAGES], timesteps=4, **options)


HEADS = {
    "[N, classes]": (nn.Linear(16, 3),),
    "[N, 1, classes]": (nn.Linear(16, 3), nn.Unflatten(1, (1, 3))),
    "[N, classes, 1, 1]": (nn.Linear(16, 3), nn.Unflatten(1, (3, 1, 1))),
    "[N, 1]": (nn.Linear(16, 1),),
    "[N]": (nn.Linear(16, 1), nn.Flatten(0)),
}


@pytest.mark.parametrize("strategy", ["optimized_potential", "value_range"])
@pytest.mark.parametrize("shape", HEADS)
def test_outputs_of_every_shape_count_right_classes(shape: str, strategy: str) -> None:
    model = network(*HEADS[shape])
    logits = model(IMAGES).detach().reshape(64, -1)
    labels = logits.argmax(1) if logits.shape[1] > 1 else (logits[:, 0] > 0).long()
    snn = converted(model, strategy=strategy, refinements=["bias_correction"])
    assert len(labels.unique()) == max(2, logits.shape[1])
    report = evaluate(snn, [(IMAGES, labels)], model)
    assert report.ann_accuracy == 1
    readout = snn(IMAGES).reshape(64, -1)
    found = readout.argmax(1) if readout.shape[1] > 1 else (readout[:, 0] > 0).long()
    assert report.accuracy == pytest.approx(float((found == labels).double().mean()))
    assert report.accuracy > 0.8
    example = analyse(snn, [IMAGES], model).example
    assert len(example.outputs) == logits.shape[1]
    torch.testing.assert_close(
        torch.tensor(example.outputs)[:, -1], snn.simulate(IMAGES)[0].flatten(), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize(
    "kind",
    [
        lambda labels: labels[:, None],
        lambda labels: labels.int(),
        lambda labels: labels.to(torch.uint8),
        lambda labels: labels.numpy(),
        lambda labels: labels.tolist(),
        lambda labels: nn.functional.one_hot(labels, 3),
        lambda labels: nn.functional.one_hot(labels, 3).float(),
        lambda labels: labels[:, None, None],
    ],
)
def test_labels_of_every_kind_are_class_indices(kind: Any) -> None:
    model = network(nn.Linear(16, 3))
    labels = model(IMAGES).argmax(1)
    assert evaluate(converted(model), [(IMAGES, kind(labels))], model).ann_accuracy == 1


@pytest.mark.parametrize("kind", [Tensor.bool, Tensor.float, Tensor.double, lambda labels: labels.float()[:, None]])
def test_two_classes_may_have_truth_values_for_labels(kind: Any) -> None:
    model = network(nn.Linear(16, 1))
    labels = model(IMAGES)[:, 0] > 0
    assert evaluate(converted(model), [(IMAGES, kind(labels.long()))], model).ann_accuracy == 1


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            torch.arange(64) % 3 + 1,
            "from 1 to 3, but the network tells 3 classes apart, from 0 to 2. .*from 1: subtract 1",
        ),
        (torch.arange(64) % 3 - 1, "from -1 to 1, .* Leave images without a class out"),
        (torch.arange(64) % 10, "from 0 to 9, but the network tells 3 .* another data set"),
        (torch.full((64,), 255, dtype=torch.uint8), "from 255 to 255"),
        (torch.arange(64) % 3 + 0.5, "whole numbers; these are float32 of shape .64"),
        ((torch.arange(64) % 3).float(), "whole numbers; these are float32"),
        (torch.arange(64) % 2 == 0, "whole numbers; these are bool of shape .64., and the network tells 3"),
        ((torch.arange(64) % 2).float(), "float32 of shape .64., and the network tells 3"),
        (
            torch.zeros(64, 3, dtype=torch.int64),
            "class indices of shape .N., or one-hot rows .*; not int64 of shape .64, 3",
        ),
        (torch.eye(4)[torch.arange(64) % 4], "not float32 of shape .64, 4"),
        (torch.zeros(64, 8, 8, dtype=torch.int64), "not int64 of shape .64, 8, 8"),
        (torch.zeros(63, dtype=torch.int64), "64 images but 63 labels"),
        (torch.full((64,), torch.nan), "float32"),
        (["cat"] * 64, "not a list"),
    ],
)
def test_labels_that_are_no_classes_of_the_network_are_refused(labels: Any, message: str) -> None:
    batches = iter([(IMAGES, labels), None])
    with pytest.raises(ValueError, match=message):
        evaluate(converted(network(nn.Linear(16, 3))), batches)
    assert next(batches) is None  # said at the first batch


def test_one_logit_has_two_classes() -> None:
    with pytest.raises(ValueError, match="from 0 to 2, but the network tells 2 classes apart"):
        evaluate(converted(network(nn.Linear(16, 1))), [(IMAGES, torch.arange(64) % 3)])


def test_labels_alone_know_no_number_of_classes() -> None:
    assert labels_of((None, [3, 200])).tolist() == [3, 200]
    with pytest.raises(ValueError, match="from -1 to 2, but classes are counted from 0"):
        labels_of((None, [-1, 2]))
    with pytest.raises(ValueError, match="from 0 to 5, but the network tells 5"):
        labels_of((None, [0, 5]), classes=5)


@pytest.mark.parametrize(
    "head", [(nn.Linear(16, 4),), (nn.Linear(16, 1),), (nn.Linear(16, 3), nn.Unflatten(1, (1, 3)))]
)
def test_an_original_with_other_outputs_is_refused(head: Any) -> None:
    snn = converted(network(nn.Linear(16, 3)))
    with pytest.raises(ValueError, match=r"outputs are of shape \[64, .*, the spiking network's of \[64, 3\]"):
        evaluate(snn, [(IMAGES, torch.zeros(64, dtype=torch.int64))], network(*head))


def test_an_original_that_returns_no_tensor_is_refused() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    with pytest.raises(ValueError, match="returns a tuple, not one tensor"):
        evaluate(converted(network(nn.Linear(16, 3))), [(IMAGES, torch.zeros(64, dtype=torch.int64))], Pair())


def test_outputs_that_are_nan_are_no_class() -> None:
    model, broken = network(nn.Linear(16, 3)), network(nn.Linear(16, 3))
    snn = converted(model)
    with torch.no_grad():
        broken[2].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN for 64 of 64 images"):
        evaluate(snn, [(IMAGES, torch.zeros(64, dtype=torch.int64))], broken)


def test_outputs_that_are_no_class_vector_are_refused_with_what_to_do() -> None:
    model = network(nn.Linear(16, 8), nn.Unflatten(1, (2, 2, 2)))
    snn = converted(model)
    with pytest.raises(ValueError, match=r"shape \[64, 2, 2, 2\].*compare\(snn, loader, ann\).*analyse\(\)"):
        evaluate(snn, [(IMAGES, torch.zeros(64, 2, 2, dtype=torch.int64))])
    assert measure_operations(snn, [IMAGES])[4].synaptic_operations > 0
