"""Training and fine-tuning of networks of any number of dimensions, and with any kind of outputs."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import snn_lowlat
from snn_lowlat.answers import class_logits
from snn_lowlat.graph import BATCH_NORMS
from snn_lowlat.training import Classifier, FineTuning
from tests.contract.token_networks import TOKEN_NETWORKS, make_token_network

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

NETWORKS: dict[str, tuple[list[nn.Module], tuple[int, ...]]] = {
    "Conv1d": ([nn.Conv1d(2, 6, 3), nn.BatchNorm1d(6), nn.ReLU(), nn.AvgPool1d(2), nn.Conv1d(6, 6, 3)], (2, 14)),
    "Conv3d": ([nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.ReLU(), nn.AvgPool3d(2), nn.Conv3d(4, 6, 2)], (1, 6, 6, 6)),
    "ConvTranspose1d": ([nn.Conv1d(2, 6, 3), nn.ReLU(), nn.ConvTranspose1d(6, 6, 2, 2)], (2, 8)),
    "ConvTranspose3d": ([nn.Conv3d(1, 3, 3), nn.ReLU(), nn.ConvTranspose3d(3, 3, 2, 2)], (1, 4, 4, 4)),
    "MaxPool1d": ([nn.Conv1d(2, 6, 3), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(6, 6, 3)], (2, 14)),
    "MaxPool3d": ([nn.Conv3d(1, 4, 3), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(4, 6, 2)], (1, 6, 6, 6)),
    "Upsample": ([nn.Conv2d(1, 6, 3, 2, 1), nn.ReLU(), nn.Upsample(scale_factor=2), nn.Conv2d(6, 6, 3)], (1, 6, 6)),
}
# Each option at least once.
OPTIONS: list[dict[str, Any]] = [
    {},
    {"batch_norm": False, "dropout": 0.2, "segments": 2, "label_smoothing": 0.1, "channels_last": True},
    {"distillation": 0.5, "mixup": 0.4, "optimizer": "sgd", "surrogate": "atan", "segments": 3},
    {"distillation": 1.0, "detach_reset": True, "threshold_gradient": "paper_code", "train_leaks": False},
]


def network(name: str) -> tuple[nn.Module, Tensor]:
    body, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = nn.Sequential(*body, nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))
    for _ in range(3):
        model(torch.randn(8, *shape))
    return model.eval(), torch.randn(12, *shape)


def fit(module: Any, images: Tensor, labels: Tensor) -> dict[str, float]:
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    loader = DataLoader(TensorDataset(images, labels), batch_size=6)
    trainer.fit(module, loader, loader)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def assert_tunes(model: nn.Module, images: Tensor, labels: Tensor, classes: int | None, **options: Any) -> FineTuning:
    snn = snn_lowlat.convert(model, [images], timesteps=2, strategy="distribution_aware")
    if options.get("distillation"):
        options["teacher"] = model
    tuning = FineTuning(snn, classes, learning_rate=0.01, **options)
    torch.testing.assert_close(tuning.eval()(images), snn(images), rtol=1e-4, atol=1e-5)
    before = {name: parameter.clone() for name, parameter in tuning.named_parameters()}
    fit(tuning, images, labels)
    assert any(not torch.equal(parameter, before[name]) for name, parameter in tuning.named_parameters())
    tuned = tuning.to_spiking_model()
    torch.testing.assert_close(tuned(images), tuning.eval()(images), rtol=1e-3, atol=1e-4)
    tuned.run_on_host = True
    torch.testing.assert_close(tuned(images), tuning(images), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(tuned(images), snn(images), atol=1e-4)
    return tuning


def with_options(cases: Iterable[Any]) -> list[Any]:
    """Give each case two of the option sets, and all sets to some of the cases."""
    count = len(OPTIONS)
    return [(case, OPTIONS[(index + shift) % count]) for index, case in enumerate(cases) for shift in (0, count // 2)]


@pytest.mark.parametrize(("name", "options"), with_options(NETWORKS))
def test_layers_of_every_number_of_dimensions_are_fine_tuned(name: str, options: dict[str, Any]) -> None:
    model, images = network(name)
    assert_tunes(model, images, torch.arange(12) % 4, 4, **options)


@pytest.mark.parametrize(("kind", "options"), with_options(TOKEN_NETWORKS))
def test_linear_layers_over_tokens_are_fine_tuned(kind: Any, options: dict[str, Any]) -> None:
    model, images = make_token_network(kind)
    tuning = assert_tunes(model, images, torch.arange(24) % 4, 4, **options)
    if options.get("batch_norm", True):
        assert any(isinstance(module, BATCH_NORMS) for module in tuning.network.modules())


def vector(*head: nn.Module) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), *head).eval(), torch.randn(12, 6)


@pytest.mark.parametrize(("case", "options"), with_options([(False, 1), (True, 2)]))
def test_one_logit_is_fine_tuned_with_binary_cross_entropy(case: tuple[bool, int], options: dict[str, Any]) -> None:
    flat, classes = case
    model, images = vector(nn.Linear(16, 1), *([nn.Flatten(0)] if flat else []))
    assert_tunes(model, images, (torch.arange(12) % 2).float()[:, None], classes, **options)


def test_the_loss_of_one_logit_is_the_binary_cross_entropy() -> None:
    logits, labels = torch.randn(9, 1), torch.arange(9) % 2
    module = Classifier(nn.Identity(), 1)
    expected = F.binary_cross_entropy_with_logits(logits[:, 0], labels.float())
    for outputs in (logits, logits[:, 0], logits[:, :, None]):
        for given in (labels, labels.bool(), labels.float()[:, None], labels.int()):
            torch.testing.assert_close(module.loss(module.answers(outputs), module.labels(given)), expected)


def test_one_logit_is_learnt() -> None:
    model, images = vector(nn.Linear(16, 1))
    labels = images[:, 0] > 0
    module = Classifier(model.train(), 1, optimizer="adamw", learning_rate=0.03, schedule="constant", mixup=0.1)
    metrics = fit(module, images.repeat(40, 1), labels.repeat(40))
    assert metrics["val_accuracy"] == 1
    assert metrics["val_loss"] < 0.3


@pytest.mark.parametrize("options", [OPTIONS[1], {**OPTIONS[2], "mixup": 0.0}, OPTIONS[3]], ids=range(3))
def test_maps_of_classes_are_fine_tuned_place_by_place(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1)).eval()
    assert_tunes(model, torch.randn(12, 1, 6, 6), torch.randint(0, 3, (12, 6, 6)), 3, **options)


def test_the_loss_of_a_map_is_the_mean_over_its_places() -> None:
    outputs, labels = torch.randn(4, 3, 5, 5), torch.randint(0, 3, (4, 5, 5))
    module = Classifier(nn.Identity(), 3)
    found = module.loss(module.answers(outputs), module.labels(labels))
    torch.testing.assert_close(found, F.cross_entropy(outputs, labels))


@pytest.mark.parametrize(
    "options",
    [{}, {**OPTIONS[1], "label_smoothing": 0.0}, {**OPTIONS[2], "mixup": 0.0}, OPTIONS[3]],
    ids=range(4),
)
def test_outputs_that_are_no_classes_are_fine_tuned_to_what_they_should_be(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1)).eval()
    images = torch.randn(12, 1, 6, 6)
    assert_tunes(model, images, images.clone(), None, **options)


def test_the_loss_without_classes_is_the_mean_squared_difference() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))
    images = torch.randn(48, 1, 6, 6)
    module = Classifier(model, None, optimizer="adamw", learning_rate=0.01, schedule="constant")
    metrics = fit(module, images, images.clone())
    assert metrics.keys() == {"train_loss", "val_loss"}
    assert metrics["val_loss"] == pytest.approx(float((model(images) - images).square().mean()), rel=1e-4)
    for option in ("mixup", "label_smoothing"):
        with pytest.raises(ValueError, match="are for classes"):
            Classifier(model, None, **{option: 0.1})


@pytest.mark.parametrize(
    ("head", "classes", "labels", "message"),
    [
        ((nn.Linear(16, 4),), 10, torch.arange(12) % 4, r"num_classes is 10, .* of shape \[6, 4\]"),
        ((nn.Linear(16, 1),), 10, torch.arange(12) % 4, r"num_classes is 10, .* of shape \[6, 1\]"),
        ((nn.Linear(16, 8), nn.Unflatten(1, (2, 4))), 4, torch.arange(12) % 4, r"of shape \[6, 2, 4\]"),
        ((nn.Linear(16, 4),), 4, torch.arange(12) % 4 + 1, "from 1 to 4, but the network tells 4 .* subtract 1"),
        ((nn.Linear(16, 4),), 4, torch.arange(12) % 4 - 1, "from -1 to 2"),
        ((nn.Linear(16, 4),), 4, torch.rand(12), "labels must be class indices"),
        ((nn.Linear(16, 4),), 4, torch.zeros(12, 3, dtype=torch.int64), "6 answers of the network, and 18 labels"),
        ((nn.Linear(16, 1),), 1, torch.arange(12) % 3, "from 0 to 2, but the network tells 2 "),
        ((nn.Linear(16, 4),), None, torch.rand(12, 3), r"\[6, 4\], not \[6, 3\]"),
    ],
)
def test_outputs_and_labels_that_do_not_fit_are_refused(head: Any, classes: int, labels: Tensor, message: str) -> None:
    model, images = vector(*head)
    for module in (Classifier(model, classes), FineTuning(snn_lowlat.convert(model, [images], timesteps=2), classes)):
        with pytest.raises(ValueError, match=message):
            fit(module, images, labels)


def test_class_logits_are_rows() -> None:
    assert class_logits(torch.zeros(2, 1, 3), 3).shape == (2, 3)
    assert class_logits(torch.zeros(2, 3, 1, 1), 3).shape == (2, 3)
    assert class_logits(torch.zeros(2, 3, 5), 3).shape == (10, 3)
    assert class_logits(torch.ones(2, 1, 5), 2).tolist() == [[0.0, 1.0]] * 10
    assert class_logits(torch.ones(2), 1).tolist() == [[0.0, 1.0]] * 2
