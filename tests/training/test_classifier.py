from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from snn_lowlat.data import Digits
from snn_lowlat.models import SmallCNN
from snn_lowlat.training import CeilingReLU, Classifier, replace_activations

DIGITS = Digits(batch_size=64)


def trainer(folder: Path, **options: Any) -> Trainer:
    return Trainer(
        **{"max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False, **options},
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )


def few_steps(classifier: Classifier, folder: Path, **options: Any) -> Trainer:
    """Train for two batches."""
    short = trainer(folder, limit_train_batches=2, limit_val_batches=0, **options)
    short.fit(classifier, datamodule=DIGITS)
    return short


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{"learning_rate": 0.1}, {"optimizer": "adamw", "learning_rate": 0.01}])
def test_three_epochs_learn_digits(tmp_path: Path, options: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    seed_everything(0, verbose=False)
    classifier = Classifier(SmallCNN(width=8), num_classes=10, **options)
    three_epochs = trainer(tmp_path, max_epochs=3)
    three_epochs.fit(classifier, datamodule=DIGITS)
    metrics = three_epochs.callback_metrics
    assert metrics["val_accuracy"] > 0.9
    assert {"train_loss", "val_loss"} <= metrics.keys()
    assert three_epochs.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-6)
    assert three_epochs.test(classifier, datamodule=DIGITS, verbose=False)[0]["test_accuracy"] > 0.9


def test_only_weights_decay() -> None:
    classifier = Classifier(SmallCNN(), num_classes=10, schedule="constant", weight_decay=0.1)
    optimizer: Any = classifier.configure_optimizers()
    decaying, others = optimizer.param_groups
    assert decaying["weight_decay"] == 0.1
    assert others["weight_decay"] == 0
    assert all(parameter.dim() > 1 for parameter in decaying["params"])
    assert len(decaying["params"]) + len(others["params"]) == len(list(classifier.parameters()))


@pytest.mark.parametrize("decay", [True, False])
@pytest.mark.parametrize("activation", ["ceiling", "channel_ceiling"])
def test_ceilings_decay_as_weights_do_unless_exempt(activation: str, decay: bool) -> None:
    network = replace_activations(SmallCNN(), activation, torch.rand(1, 1, 8, 8))
    ceilings = {id(module.ceiling) for module in network.modules() if isinstance(module, CeilingReLU)}
    optimizer: Any = Classifier(network, 10, schedule="constant", decay_ceilings=decay).configure_optimizers()
    decaying, others = ({id(parameter) for parameter in group["params"]} for group in optimizer.param_groups)
    assert len(ceilings) == 3
    assert ceilings <= (decaying if decay else others)
    assert not ceilings & (others if decay else decaying)


@pytest.mark.filterwarnings("ignore")
def test_ceilings_stay_positive(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = replace_activations(SmallCNN(width=4), lambda: CeilingReLU(0.01))
    # A decay of more than the ceiling itself in each step.
    few_steps(Classifier(network, 10, weight_decay=30.0, learning_rate=0.1, schedule="constant"), tmp_path)
    ceilings = [module.ceiling.item() for module in network.modules() if isinstance(module, CeilingReLU)]
    assert min(ceilings) == pytest.approx(CeilingReLU.smallest)


@pytest.mark.filterwarnings("ignore")
def test_step_schedule_multiplies_at_its_fractions(tmp_path: Path) -> None:
    rates = []

    class Recorded(Classifier):
        def on_train_batch_end(self, *arguments: Any) -> None:
            rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    classifier = Recorded(SmallCNN(width=4), 10, learning_rate=1.0, schedule="step", milestones=(0.5, 0.8), gamma=0.1)
    trainer(tmp_path, max_epochs=2, limit_train_batches=5, limit_val_batches=0).fit(classifier, datamodule=DIGITS)
    # What the next step will use: the rate falls after 5 and after 8 of the 10 steps.
    assert rates == pytest.approx([1.0] * 4 + [0.1] * 3 + [0.01] * 3)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("schedule", ["cosine", "step"])
def test_schedules_need_an_end_of_the_training(tmp_path: Path, schedule: str) -> None:
    with pytest.raises(ValueError, match=r"trainer\.max_epochs"):
        few_steps(Classifier(SmallCNN(width=4), 10, schedule=schedule), tmp_path, max_epochs=-1)


@pytest.mark.filterwarnings("ignore")
def test_mixup_mixes_pictures_and_labels(tmp_path: Path) -> None:
    batches = []

    class Recorded(Classifier):
        def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            batches.append(labels)
            return super().loss(logits, labels)

    few_steps(Recorded(SmallCNN(width=4), 10, mixup=1.0, label_smoothing=0.1), tmp_path)
    assert len(batches) == 2
    for labels in batches:
        assert labels.shape == (64, 10)
        assert torch.allclose(labels.sum(1), torch.ones(64))
        assert (labels.count_nonzero(1) == 2).any()


@pytest.mark.filterwarnings("ignore")
def test_half_precision_and_channels_last_train_on_a_cpu(tmp_path: Path) -> None:
    types = []
    network = replace_activations(SmallCNN(width=4), "channel_ceiling", torch.rand(1, 1, 8, 8))
    convolution = network.get_submodule("features.2.0")
    ceiling = network.get_submodule("features.2.2")

    def note(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        types.append((output.dtype, output.is_contiguous(memory_format=torch.channels_last)))

    ceiling.register_forward_hook(note)
    before = ceiling.ceiling.detach().clone()
    few_steps(Classifier(network, 10, channels_last=True), tmp_path, precision="bf16-mixed")
    assert types == [(torch.bfloat16, True)] * 2
    assert convolution.weight.dtype == ceiling.ceiling.dtype == torch.float32
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(ceiling.ceiling, before)


@pytest.mark.filterwarnings("ignore")
def test_random_numbers_depend_on_the_seed_and_the_epoch(tmp_path: Path) -> None:
    drawn = []

    class Recorded(Classifier):
        def on_train_batch_start(self, *arguments: Any) -> None:
            drawn.append(torch.rand(()).item())

    for epochs, seed in ((2, 0), (2, 0), (1, 1)):
        torch.rand(len(drawn))
        classifier = Recorded(SmallCNN(width=4), 10, seed=seed)
        trainer(tmp_path, max_epochs=epochs, limit_train_batches=1, limit_val_batches=0).fit(classifier, DIGITS)
    assert drawn[:2] == drawn[2:4]
    assert len(set(drawn)) == 3


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "x"},
        {"schedule": "x"},
        {"learning_rate": 0},
        {"label_smoothing": 1},
        {"milestones": (0.5, 1.0)},
        {"gamma": 0},
        {"mixup": -1},
        {"temperature": 0},
        {"distillation": 1.5},
        {"seed": -1},
    ],
)
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} "):
        Classifier(SmallCNN(), num_classes=10, **options)


def test_a_teachers_logits_are_learnt(tmp_path: Path) -> None:
    """The same network has no divergence; the loss is weighed between teacher and labels, and the teacher is kept."""
    student, teacher = SmallCNN(width=4), SmallCNN(width=4).eval()
    student.eval()
    images, labels = torch.rand(20, 1, 8, 8), torch.arange(20) % 10
    logits = student(images)
    alone = Classifier(student, 10).learnt(images, logits, labels)
    same = Classifier(student, 10, teacher=student, distillation=0.5, temperature=2.0).learnt(images, logits, labels)
    assert same.item() == pytest.approx(0.5 * alone.item(), rel=1e-5)
    taught = Classifier(student, 10, teacher=teacher, distillation=1.0, temperature=2.0)
    expected = teacher(images)
    probabilities = (expected / 2).softmax(1)
    divergence = (probabilities * ((expected / 2).log_softmax(1) - (logits / 2).log_softmax(1))).sum(1).mean()
    assert taught.learnt(images, logits, labels).item() == pytest.approx(4 * divergence.item(), rel=1e-4)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    student.train()
    few_steps(taught, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not any("teacher" in name for name in taught.state_dict())


class Kept(Callback):
    """Keep what each process holds after a training."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        torch.save(pl_module.state_dict(), self.folder / f"{trainer.global_rank}.pt")


@pytest.mark.filterwarnings("ignore")
def test_processes_that_train_together_end_with_the_same_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    images = torch.randn(12, 1, 4, 4) * torch.arange(1.0, 13).view(-1, 1, 1, 1)
    loader = DataLoader(TensorDataset(images, torch.arange(12) % 2), batch_size=3)
    together = trainer(tmp_path, strategy="ddp_fork", devices=2, callbacks=[Kept(tmp_path)])
    together.fit(Classifier(network, 2, schedule="constant"), loader)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
