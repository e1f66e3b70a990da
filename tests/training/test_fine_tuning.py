from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

import snn_lowlat
from snn_lowlat import SpikingModel
from snn_lowlat.data import Digits
from snn_lowlat.hosts import BACKENDS
from snn_lowlat.models import SmallCNN
from snn_lowlat.training.fine_tuning import FineTuning
from tests.contract.networks import NETWORKS, make_images, make_network

DIGITS = Digits(batch_size=64)

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def digits() -> SpikingModel:
    """Return a converted network that has never been trained."""
    torch.manual_seed(0)
    DIGITS.setup()
    return snn_lowlat.convert(SmallCNN(width=8).eval(), DIGITS.calibration_dataloader(200), timesteps=2)


def trainer(folder: Path, **options: Any) -> Trainer:
    return Trainer(
        **{"max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False, **options},
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )


def few_steps(tuning: FineTuning, folder: Path, **options: Any) -> FineTuning:
    """Train for two batches."""
    options = {"limit_train_batches": 2, "limit_val_batches": 0} | options
    trainer(folder, **options).fit(tuning, datamodule=DIGITS)
    return tuning.eval()


def images() -> Tensor:
    return next(iter(DIGITS.test_dataloader()))[0]


@pytest.mark.parametrize("batch_norm", [False, True])
def test_four_epochs_learn_digits(digits: SpikingModel, tmp_path: Path, batch_norm: bool) -> None:
    torch.manual_seed(0)
    options = {"optimizer": "adamw", "learning_rate": 0.01, "schedule": "cosine", "batch_norm": batch_norm}
    tuning = FineTuning(digits, 10, **options)
    epochs = trainer(tmp_path, max_epochs=4)
    epochs.fit(tuning, datamodule=DIGITS)
    assert epochs.callback_metrics["val_accuracy"] > 0.55
    assert {"train_loss", "train_accuracy", "val_loss"} <= epochs.callback_metrics.keys()
    tuned = tuning.to_spiking_model()
    report = snn_lowlat.evaluate(tuned, DIGITS.test_dataloader())
    assert report.accuracy > 0.55 > snn_lowlat.evaluate(digits, DIGITS.test_dataloader()).accuracy + 0.25


@pytest.mark.parametrize("kind", NETWORKS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("timesteps", [1, 3])
def test_the_result_is_what_was_trained_in_either_host(kind: type[nn.Module], backend: str, timesteps: int) -> None:
    pictures = make_images(9)
    snn = snn_lowlat.convert(make_network(kind), [make_images()], timesteps=timesteps, backend=backend)
    tuning = FineTuning(snn, 10, learning_rate=0.01, schedule="constant")
    tuning.network.measure([make_images()])
    optimizer: Any = tuning.configure_optimizers()
    for _ in range(3):
        optimizer.zero_grad()
        tuning.loss(tuning.train()(make_images()), torch.arange(24) % 10).backward()
        optimizer.step()
        for neurons in tuning.network.neurons().values():
            neurons.keep_valid()
    tuned = tuning.eval().to_spiking_model()
    assert tuned.backend == backend
    torch.testing.assert_close(tuned(pictures), tuning(pictures), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(tuned(pictures), snn(pictures), atol=1e-3)


def test_the_converted_network_stays_as_it_was(digits: SpikingModel, tmp_path: Path) -> None:
    before = digits(images())
    few_steps(FineTuning(digits, 10, learning_rate=0.1), tmp_path)
    assert torch.equal(digits(images()), before)


def test_tuned_networks_are_saved_with_their_training(digits: SpikingModel, tmp_path: Path) -> None:
    tuning = few_steps(FineTuning(digits, 10, surrogate="triangle", surrogate_options={"width": 2.0}), tmp_path)
    tuned = tuning.to_spiking_model()
    tuned.save(tmp_path / "snn.pt")
    loaded = snn_lowlat.load(tmp_path / "snn.pt", model=SmallCNN(width=8), backend="snntorch")
    assert torch.equal(loaded(images()), tuned(images()))
    assert loaded.provenance == tuned.provenance
    step = loaded.provenance.refinements[-1]
    assert step["name"] == "surrogate_gradient_learning"
    assert (step["updates"], step["surrogate"], step["surrogate_options"]) == (2, "triangle", {"width": 2.0})
    assert not {"snn", "teacher", "model"} & step.keys()


def test_a_network_can_be_trained_for_other_steps(digits: SpikingModel) -> None:
    tuning = FineTuning(digits, 10, timesteps=5).eval()
    tuned = tuning.to_spiking_model()
    assert tuned.timesteps == tuned.latency_steps == 5
    assert digits.timesteps == 2
    torch.testing.assert_close(tuning(images()), digits.readout(images(), 5)[-1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"batch_norm": False}, {"dropout": 0.2, "mixup": 0.5, "segments": 2}])
def test_an_interrupted_training_goes_on_as_if_nothing_had_happened(
    digits: SpikingModel, tmp_path: Path, options: dict[str, Any]
) -> None:
    whole, first, rest = (FineTuning(digits, 10, learning_rate=1e-3, **options) for _ in range(3))
    short = {"max_epochs": 2, "limit_train_batches": 4, "limit_val_batches": 1}
    checkpoint = ModelCheckpoint(tmp_path, save_last=True)
    trainer(tmp_path, **short).fit(whole, DIGITS)
    stopped = trainer(tmp_path, **short, callbacks=[checkpoint], enable_checkpointing=True)
    stopped.fit_loop.on_advance_end = stop_after_one_epoch(stopped)
    stopped.fit(first, DIGITS)
    assert stopped.global_step == 4
    trainer(tmp_path, **short).fit(rest, DIGITS, ckpt_path=checkpoint.last_model_path)
    for name, value in whole.state_dict().items():
        assert torch.equal(rest.state_dict()[name], value), name
    assert whole.network.updates == 8


def stop_after_one_epoch(stopped: Trainer) -> Any:
    original = stopped.fit_loop.on_advance_end

    def on_advance_end() -> None:
        original()
        stopped.should_stop = True
        stopped.fit_loop.min_epochs = None

    return on_advance_end


def test_checkpoints_can_be_loaded_beside_the_converted_network(digits: SpikingModel, tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, save_last=True)
    tuning = FineTuning(digits, 10, learning_rate=0.01, teacher=SmallCNN(width=4), distillation=0.5)
    few_steps(tuning, tmp_path, callbacks=[checkpoint], enable_checkpointing=True)
    file = checkpoint.last_model_path
    loaded = FineTuning.load_from_checkpoint(file, snn=digits, teacher=SmallCNN(width=4)).eval()
    assert torch.equal(loaded(images()), tuning(images()))
    assert loaded.hparams == tuning.hparams
    assert not any("teacher" in name for name in torch.load(file, weights_only=True)["state_dict"])


def test_it_can_be_copied_and_sent_to_other_processes(digits: SpikingModel) -> None:
    tuning = FineTuning(digits, 10, surrogate="snntorch.atan").eval()
    for other in (copy.deepcopy(tuning), pickle.loads(pickle.dumps(tuning))):
        assert torch.equal(other(images()), tuning(images()))
        assert torch.equal(other.to_spiking_model()(images()), tuning.to_spiking_model()(images()))
        (next(iter(other.parameters()))).data.zero_()
    assert next(iter(tuning.parameters())).any()


def test_thresholds_and_leaks_are_trained_and_kept_valid(digits: SpikingModel, tmp_path: Path) -> None:
    tuning = FineTuning(digits, 10, learning_rate=1e-4, neuron_learning_rate_factor=3e4, optimizer="adam")
    few_steps(tuning, tmp_path)
    before, after = digits.plan, tuning.to_spiking_model().plan
    assert all(not torch.equal(site.threshold, before[name].threshold) for name, site in after.items())
    assert all(bool((site.threshold > 0).all()) for site in after.values())
    leaks = [site.parameters.get("leak", 1.0) for site in after.values()]
    assert min(leaks) >= 0
    assert any(leak < 1 for leak in leaks)


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)]
)
def test_only_weights_decay(digits: SpikingModel, name: str, kind: type[torch.optim.Optimizer]) -> None:
    tuning = FineTuning(
        digits, 10, optimizer=name, weight_decay=0.1, schedule="constant", neuron_learning_rate_factor=2.0
    )
    optimizer: Any = tuning.configure_optimizers()
    assert type(optimizer) is kind
    weights, others, neurons = optimizer.param_groups
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0, 0]
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-4, 1e-4, 2e-4])
    assert {parameter.dim() for parameter in weights["params"]} == {2, 4}
    assert len(neurons["params"]) == 2 * len(digits.plan)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(tuning.parameters()))
    assert others["params"]
    assert optimizer.defaults.get("amsgrad", False) == (name == "adam")


def test_batch_norms_are_measured_before_the_first_step(digits: SpikingModel, tmp_path: Path) -> None:
    tuning = FineTuning(digits, 10, learning_rate=1e-9, measuring_batches=3)
    expected = tuning.eval()(images())
    assert not tuning.network.measured
    few_steps(tuning.train(), tmp_path)
    norm = next(module for module in tuning.modules() if isinstance(module, nn.BatchNorm2d))
    assert tuning.network.measured
    assert norm.num_batches_tracked == 2
    # The statistics of other batches are near those that were measured, so the network is nearly the same.
    assert (tuning(images()).argmax(1) == expected.argmax(1)).float().mean() > 0.8
    measured = norm.weight.clone()
    few_steps(tuning.train(), tmp_path)
    torch.testing.assert_close(norm.weight, measured)


def test_trainers_train_in_training_mode(digits: SpikingModel, tmp_path: Path) -> None:
    modes = []
    tuning = FineTuning(digits, 10, dropout=0.5)
    assert tuning.network.training
    for layer in tuning.network.neurons().values():
        layer.register_forward_hook(lambda m, i, o: modes.append(m.training))
    few_steps(tuning, tmp_path, limit_train_batches=1)
    # First those of the measurement.
    assert modes[-3:] == [True] * 3


def test_a_student_that_is_its_teacher_has_no_loss(digits: SpikingModel) -> None:
    class Teacher(nn.Module):
        def forward(self, pictures: Tensor) -> Tensor:
            return digits(pictures)

    same = FineTuning(digits, 10, batch_norm=False, teacher=Teacher(), distillation=1.0, temperature=2.0)
    other = FineTuning(digits, 10, batch_norm=False, teacher=SmallCNN(width=4), distillation=1.0)
    plain = FineTuning(digits, 10, batch_norm=False)
    batch = next(iter(DIGITS.train_dataloader()))
    losses = []
    for tuning in (same, other, plain):
        tuning.log = lambda *arguments, **options: None
        losses.append(tuning.training_step(batch, 0).item())
    assert losses[0] == pytest.approx(0, abs=1e-5)
    assert losses[1] > 1e-3
    assert losses[2] == pytest.approx(plain.loss(digits(batch[0]), batch[1]).item(), rel=1e-4)


def test_teachers_are_left_alone(digits: SpikingModel, tmp_path: Path) -> None:
    teacher = SmallCNN(width=4).train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    tuning = FineTuning(digits, 10, teacher=teacher, distillation=0.5)
    few_steps(tuning, tmp_path)
    assert teacher.training
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not {id(p) for p in teacher.parameters()} & {id(p) for p in tuning.parameters()}


def test_the_readout_is_scaled_for_the_loss_only(digits: SpikingModel) -> None:
    tuning = FineTuning(digits, 10, logit_scale=2.0).eval()
    torch.testing.assert_close(tuning(images()), 2 * digits(images()), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tuning.to_spiking_model()(images()), digits(images()), rtol=1e-5, atol=1e-5)


def test_random_input_spikes_are_new_in_every_step_of_training(digits: SpikingModel, tmp_path: Path) -> None:
    snn = snn_lowlat.convert(
        SmallCNN(width=4).eval(), DIGITS.calibration_dataloader(100), timesteps=3, encoder="poisson"
    )
    tuning = FineTuning(snn, 10, batch_norm=False).eval()
    torch.testing.assert_close(tuning(images()), snn(images()), rtol=1e-5, atol=1e-5)
    first = tuning.train()(images())
    assert torch.equal(tuning(images()), first)
    tuning.network.updates += 1
    assert not torch.equal(tuning(images()), first)
    few_steps(FineTuning(snn, 10), tmp_path)


def test_half_precision_and_channels_last_train_on_a_cpu(digits: SpikingModel, tmp_path: Path) -> None:
    types = []
    tuning = FineTuning(digits, 10, channels_last=True)
    neurons = list(tuning.network.neurons().values())[1]
    neurons.register_forward_hook(
        lambda m, i, o: types.append((o[0].dtype, o[0][0].is_contiguous(memory_format=torch.channels_last)))
    )
    before = neurons.threshold.detach().clone()
    few_steps(tuning, tmp_path, precision="bf16-mixed")
    assert types[-2:] == [(torch.bfloat16, True)] * 2
    assert neurons.threshold.dtype == torch.float32
    assert not torch.equal(neurons.threshold, before)


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "adamx"},
        {"surrogate": "triangel"},
        {"surrogate": "sigmoid", "surrogate_options": {"width": 1}},
        {"threshold_gradient": "x"},
        {"schedule": "x"},
        {"timesteps": 0},
        {"segments": 0},
        {"measuring_batches": 0},
        {"dropout": 1.0},
        {"logit_scale": 0},
        {"temperature": 0},
        {"distillation": 0.5},
        {"teacher": nn.Identity()},
        {"teacher": nn.Identity(), "distillation": 1.5},
        {"neuron_learning_rate_factor": -1},
    ],
)
def test_options_are_checked(digits: SpikingModel, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must|unknown|belong|fails"):
        FineTuning(digits, 10, **options)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_network_in_whole_numbers_is_in_floating_point_after_training_and_says_so(
    backend: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    data = DIGITS.calibration_dataloader(200)
    snn = snn_lowlat.convert(SmallCNN(width=8).eval(), data, timesteps=2, precision="int8", backend=backend)
    assert snn.precision == "int8"
    tuning = few_steps(FineTuning(snn, num_classes=10, learning_rate=0.5), tmp_path)
    tuned = tuning.to_spiking_model()
    assert "in whole numbers (int8) one in floating point (fp32)" in caplog.text
    assert tuned.precision == "fp32"
    assert "precision=fp32" in repr(tuned)
    assert tuned.provenance.precision == "int8"
    found = tuned(images())
    with torch.no_grad():
        torch.testing.assert_close(tuning(images()), found, rtol=1e-4, atol=1e-4)
    labels = found.argmax(1)
    report = snn_lowlat.evaluate(tuned, [(images(), labels)])
    assert report.accuracies[2] == 1
    assert report.precision == "fp32"
    tuned.save(tmp_path / "tuned.pt")
    loaded = snn_lowlat.load(tmp_path / "tuned.pt")
    assert loaded.precision == "fp32"
    assert torch.equal(loaded(images()), found)
    tuned.run_on_host = True
    torch.testing.assert_close(tuned(images()), found, rtol=1e-4, atol=1e-4)
