from __future__ import annotations

import csv
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.errors import CompactHydraException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from snn_lowlat import convert, load
from snn_lowlat.cli import pipeline as runner
from snn_lowlat.cli.hints import unknown_key
from snn_lowlat.config import CONFIG_FOLDER, ConfigError, build, checked
from snn_lowlat.evaluation import COLUMNS
from snn_lowlat.models import SmallCNN, load_weights
from snn_lowlat.run import run
from snn_lowlat.training import Classifier
from tests.hydra_runs import FAST, command, composed

EXPERIMENTS = sorted(path.stem for path in (CONFIG_FOLDER / "experiment").glob("*.yaml"))


def test_quickstart_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    accuracy = run(composed("+experiment=quickstart", *FAST[:-3], "trainer.max_epochs=3"), tmp_path)
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0])[: len(COLUMNS)] == COLUMNS
    assert [row["strategy"] for row in rows] == ["optimized_potential"] * 16 + ["threshold_balancing"] * 16
    assert [int(row["timesteps"]) for row in rows] == [*range(1, 17), *range(1, 17)]
    assert float(rows[15]["accuracy"]) == accuracy > 0.9
    assert float(rows[15]["ann_accuracy"]) > 0.95
    assert {rows[0][key] for key in ("experiment", "dataset")} == {"quickstart", "digits"}
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["accuracy"] == accuracy
    assert len(content["reports"]) == 2
    assert content["firing_rates"]
    with Image.open(tmp_path / "accuracy_vs_timesteps.png") as picture:
        assert picture.format == "PNG"
    assert OmegaConf.load(tmp_path / "config.yaml").timesteps == 16
    ann = SmallCNN()
    load_weights(ann, tmp_path / "ann.pt")
    snn = load(tmp_path / "snn.pt", model=ann)
    assert snn.timesteps == 16
    assert snn.ann_accuracy == float(rows[0]["ann_accuracy"])
    assert load(tmp_path / "snn_2_threshold_balancing.pt", model=ann).strategy == "threshold_balancing"
    printed = capsys.readouterr().out
    assert "threshold_balancing" in printed
    assert "latency_steps" in printed
    assert not list(tmp_path.glob("lightning_logs*"))


def test_trained_weights_make_training_needless(tmp_path: Path) -> None:
    first = run(composed(*FAST, "timesteps=4"), tmp_path / "first")
    weights = tmp_path / "first" / "ann.pt"
    overrides = (*FAST, "timesteps=4", f"model.weights={weights}", "evaluation.timesteps=[1,4]")
    second = run(composed(*overrides, "refinements=[bias_correction]"), tmp_path / "second")
    third = run(composed(*overrides), tmp_path / "third")
    assert first == third
    assert second >= 0
    assert not (tmp_path / "third" / "ann.pt").exists()
    reports = json.loads((tmp_path / "second" / "results.json").read_text())["reports"]
    assert [row["timesteps"] for row in reports[0]["curve"]] == [1, 4]
    assert reports[0]["refinements"][0]["name"] == "bias_correction"


def test_training_starts_from_the_weights_of_a_relu_network(tmp_path: Path) -> None:
    before = run(composed(*FAST, "trainer.max_epochs=3", "timesteps=4", "strategy=value_range"), tmp_path / "first")
    overrides = (
        f"model.initial_weights={tmp_path / 'first' / 'ann.pt'}",
        "model.activation={_target_: snn_lowlat.training.QuantisedReLU, _partial_: true, timesteps: 4}",
        "training.learning_rate=0.01",
        "training.distillation=0.5",
        "strategy=value_range",
        "timesteps=4",
    )
    after = run(composed(*FAST, *overrides), tmp_path / "second")
    assert after > before
    reports = json.loads((tmp_path / "second" / "results.json").read_text())["reports"]
    assert reports[0]["ann_accuracy"] == after  # the spiking network equals the one that was trained
    # Its own weights have ceilings, which are not fitted again.
    weights = torch.load(tmp_path / "second" / "ann.pt")["state_dict"]
    overrides = (
        f"model.initial_weights={tmp_path / 'second' / 'ann.pt'}",
        *overrides[1:],
        "training.learning_rate=1e-9",
        "training.distillation=0",
    )
    run(composed(*FAST, *overrides), tmp_path / "third")
    again = torch.load(tmp_path / "third" / "ann.pt")["state_dict"]
    name = "features.0.2.ceiling"
    torch.testing.assert_close(again[name], weights[name])


def test_pixels_become_spikes(tmp_path: Path) -> None:
    overrides = ("timesteps=4", "strategy=value_range", "model.input_spikes={resolution: 5, grids: [0, 1]}")
    run(composed(*FAST, *overrides), tmp_path / "first")
    weights = torch.load(tmp_path / "first" / "ann.pt")["state_dict"]
    assert weights["1.features.0.0.weight"].shape[1] == 2
    first = json.loads((tmp_path / "first" / "results.json").read_text())["reports"][0]
    run(composed(*FAST, *overrides, f"model.weights={tmp_path / 'first' / 'ann.pt'}"), tmp_path / "second")
    second = json.loads((tmp_path / "second" / "results.json").read_text())["reports"][0]
    assert first["curve"] == second["curve"]
    assert first["latency_steps"] == 4 * 5  # the pixels' own neurons, three layers, and the readout


@pytest.mark.parametrize("coding", ["poisson", "temporal_switch"])
def test_spikes_take_the_normalisation_into_the_network(coding: str, tmp_path: Path) -> None:
    overrides = (f"input_coding={coding}", "data.mean=[0.3]", "data.std=[0.4]", "timesteps=2", "data.limit_test=50")
    run(composed(*FAST, *overrides), tmp_path)
    load_weights(SmallCNN(width=4), tmp_path / "ann.pt")
    assert json.loads((tmp_path / "results.json").read_text())["encoder"] == coding


def write_pictures(folder: Path, number: int, size: int) -> None:
    for split in ("train", "test"):
        for brightness, name in enumerate(("dark", "light")):
            place = folder / split / name
            place.mkdir(parents=True)
            for index in range(number):
                light = [120 * brightness + index + 4 * pixel % 100 for pixel in range(size * size)]
                picture = Image.new("L", (size, size))
                picture.putdata(light)
                picture.convert("RGB").save(place / f"{index}.png")


def test_own_pictures(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", number=6, size=12)
    overrides = ("data=image_folder", f"data.root={tmp_path / 'pictures'}", "data.image_size=8", "timesteps=2")
    run(composed(*FAST, *overrides), tmp_path / "results")
    content = json.loads((tmp_path / "results" / "results.json").read_text())
    assert (content["dataset"], content["images"]) == ("image_folder", 12)


def test_what_is_computed_is_kept_when_a_later_step_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object) -> None:
        raise RuntimeError("no canvas")

    monkeypatch.setattr("snn_lowlat.cli.pipeline.plot_reports", fails)
    with pytest.raises(RuntimeError, match="no canvas"):
        run(composed(*FAST, "timesteps=1"), tmp_path)
    assert {"ann.pt", "snn.pt", "results.csv", "results.json"} <= {file.name for file in tmp_path.iterdir()}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiments_compose_and_name_their_command(experiment: str) -> None:
    config = composed(f"+experiment={experiment}", "++model.weights=w.pt", "++data.root=.")
    assert checked(config).name == experiment
    lines = (CONFIG_FOLDER / "experiment" / f"{experiment}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert f"python -m snn_lowlat.run +experiment={experiment}" in lines[1]


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONFIG_FOLDER / "model").glob("*.yaml")))
def test_model_files_state_the_defaults(name: str) -> None:
    options: Any = OmegaConf.to_container(composed(f"model={name}").model)
    assert options.pop("name") == name
    assert all(options.pop(key) is None for key in ("weights", "initial_weights", "input_spikes"))
    network = get_object(options.pop("_target_"))
    defaults = {key: parameter.default for key, parameter in inspect.signature(network).parameters.items()}
    given = {"num_classes", "in_channels", "image_size"}
    assert {key: tuple(value) if key == "hidden" else value for key, value in options.items()} == {
        key: value for key, value in defaults.items() if key not in given
    }


@pytest.mark.parametrize("name", ["sgd", "adamw", "datta_beerel"])
def test_training_files_are_recipes_of_the_classifier(name: str) -> None:
    config = checked(composed(f"training={name}", "seed=3"))
    classifier = build(config.training, "training", model=SmallCNN(), num_classes=10)
    assert isinstance(classifier, Classifier)
    assert classifier.hparams["seed"] == 3
    given = set(config.training) - {"_target_"}
    unused = {"sgd": {"milestones", "gamma"}, "adamw": {"milestones", "gamma", "momentum", "nesterov"}}
    assert given | unused.get(name, set()) == set(classifier.hparams) - {"num_classes"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+foo=1"], "unknown config key 'foo'.*compare"),
        (["+evaluation.foo=1"], "unknown config key 'evaluation.foo'.*progress"),
        (["timesteps=abc"], "timesteps.*abc"),
        (["timesteps=0"], "timesteps must be a whole number of at least 1"),
        (["calibration.images=0"], "calibration.images"),
        (["backend.name=norse"], "backend.*norse.*spikingjelly"),
        (["precision=int4"], "precision.*int4.*int8"),
        (["max_pool=each"], "max_pool.*each.*cumulative"),
        (["input_coding=latency"], "latency.*poisson"),
        (["device=quantum"], "device"),
        (["strategy.name=optimised_potential"], "optimized_potential"),
        (["strategy.threshold=average"], "average.*mmse"),
        (["+strategy.leak=1"], "leak.*percentile"),
        (["compare=[nothing]"], "compare.*nothing.*threshold_balancing"),
        (["refinements=[nothing]"], "refinements.*nothing.*bias_correction"),
        (["evaluation.timesteps=[1,99]"], "evaluation.timesteps.*99"),
        (["evaluation.timesteps=soon"], "list of steps"),
        (["data=image_folder"], "data.root=VALUE"),
        (["+experiment=cifar10_resnet20"], r"model\.weights=PATH"),
        (["data=mnist", "data.root=/nowhere", "data.download=false"], r"mnist\.npz"),
        (["+data.shuffle=1"], "Digits 'shuffle'.*batch_size"),
        (["data._target_=torch.nn.Linear"], "data"),
        (["data._target_=no.such.Thing"], r"no\.such"),
        (["+model.widht=1"], "Did you mean 'width'"),
        (["model.pooling=sum"], "model: unknown pooling"),
        (["model.weights=/nowhere.pt"], r"model\.weights.*nowhere\.pt"),
        (["model.initial_weights=/nowhere.pt"], r"model\.initial_weights.*nowhere\.pt"),
        (["model.initial_weights=a.pt", "model.weights=b.pt"], r"model\.weights .*initial_weights.*give one"),
        (["+model.input_spikes.grid=0"], r"model\.input_spikes.*grid"),
        (["training.distillation=0.5"], r"model\.initial_weights: give"),
        (["fine_tuning=sgl", "fine_tuning.start=/nowhere.pt"], r"fine_tuning\.start.*nowhere"),
        (["training.optimizer=lion"], "training: unknown optimizer"),
        (["model.activation=celling"], "model: .*Did you mean 'ceiling'"),
        (["resume=/nowhere"], "resume: there is no checkpoint /nowhere"),
        (["resume=.", "model.weights=w.pt"], "resume.*model.weights"),
        (["+trainer.callbacks.checkpoint.monitr=x"], "trainer.callbacks.checkpoint.*Did you mean 'monitor'"),
        (["+trainer.max_epoch=1"], "Did you mean 'max_epochs'"),
        (["trainer.max_epochs=0"], "trainer.max_epochs must be a whole number of at least 1, not 0"),
        (["trainer.max_epochs=-1"], "trainer.max_epochs must be a whole number of at least 1, not -1"),
        (["trainer.max_epochs=1.5"], r"trainer.max_epochs must be a whole number of at least 1, not 1\.5"),
        (["trainer.max_epochs=two"], "trainer.max_epochs must be a whole number of at least 1, not 'two'"),
        (["fine_tuning=sgl", "fine_tuning.max_epochs=0"], "fine_tuning.max_epochs must be .* not 0"),
        (["+trainer.max_steps=0"], "trainer.max_steps must be"),
        (["+trainer.limit_train_batches=0"], "leaves nothing to train with"),
        (["trainer.devices=1000"], r"trainer.devices=1000 asks for 1000 processes.*cores"),
        (["trainer.devices=two"], "trainer.devices must be a whole number"),
        (["data.batch_size=1.5"], r"data.batch_size must be a whole number of at least 1, not 1\.5"),
        (["data.batch_size=0"], "data.batch_size must be a whole number of at least 1, not 0"),
        (["data.mean=[0,0,0]", "data.std=[1,1,1]"], "data: mean has 3 values, but digits has 1 channels"),
        (["seed=-1"], "seed must be a whole number from 0"),
        (["seed=1e20"], "seed: "),
        (["seed=100000000000000000000"], "seed must be a whole number from 0"),
        (["seed=abc"], "seed: .*abc"),
        (["data.seed=-1"], "data.seed must be a whole number of at least 0, not -1"),
        (["model.width=0"], "model: "),
        (
            ["strategy.threshold=ceiling"],
            r"threshold=ceiling needs .* layer features_0_2 has none.*activation=ceiling",
        ),
        (["strategy.percentile=99"], r"strategy: percentile=99 has a meaning with threshold=percentile only"),
        (["strategy=distribution_aware", "strategy.ceiling=max", "strategy.percentile=99"], "ceiling=percentile only"),
        (["compare=[{name: value_range, percentile: 99}]"], "compare: percentile=99"),
        (["~strategy"], "strategy needs a name"),
        (["~backend"], "backend needs a name"),
        (["~data"], "data needs _target_"),
        (["~model"], "model needs _target_"),
        (["~trainer._target_"], "trainer needs _target_"),
        (["fine_tuning=sgl", "precision=int8"], "precision=int8 and fine_tuning don't go together"),
    ],
)
def test_config_errors_say_what_there_is(overrides: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, FileNotFoundError), match=f"(?s){message}"):
        run(composed(*FAST[:2], *overrides), tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("override", "message"),
    [("trainer.accelerator=gpu", "trainer: .*gpu"), ("device=cuda", "device=cuda is not there.*device=cpu")],
)
def test_a_gpu_that_is_not_there_is_named_by_its_key(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(composed(*FAST[:2], override), tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    network = SmallCNN(width=4)
    with torch.no_grad():
        network.classifier.bias[3] = value
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    for key in ("weights", "initial_weights"):
        with pytest.raises(ConfigError, match=rf"model\.{key}: .*NaN.*infinite.* values in classifier\.bias"):
            run(composed(*FAST, f"model.{key}={tmp_path / 'weights.pt'}"), tmp_path / "run")


def test_fine_tuning_starts_only_from_a_network_for_the_same_images(tmp_path: Path) -> None:
    def start(name: str, size: int = 8, classes: int = 10, **options: str) -> None:
        ann, images = SmallCNN(1, classes, size, 4).eval(), torch.rand(20, 1, size, size)
        convert(ann, images, timesteps=1, **options).save(tmp_path / f"{name}.pt")

    start("int8", precision="int8")
    start("poisson", encoder="poisson")
    start("two_classes", classes=2)
    start("large", size=12)
    for name, message in (
        ("int8", "precision=int8; only fp32 is trained"),
        ("poisson", "with input_coding=poisson, not direct"),
        ("two_classes", "for 2 classes, the data have 10"),
        ("large", r"for images \[1, 12, 12\], the data's are \[1, 8, 8\]"),
    ):
        begun = ("fine_tuning=sgl", f"fine_tuning.start={tmp_path / name}.pt")
        with pytest.raises(ConfigError, match=rf"fine_tuning\.start: it is of a network .*{message}"):
            run(composed(*FAST, *begun), tmp_path / "tuned")
    assert not (tmp_path / "tuned" / "checkpoints").exists()


def test_unknown_group_options_list_those_there_are() -> None:
    with pytest.raises(CompactHydraException, match=r"(?s)Could not find 'data/imagenet'.*cifar10"):
        composed("data=imagenet")


def test_multirun_on_the_command_line(tmp_path: Path) -> None:
    done = command(
        "--multirun",
        "+experiment=quickstart",
        "strategy=optimized_potential,threshold_balancing",
        "timesteps=2",
        "compare=[]",
        *FAST,
        folder=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    runs = sorted(path.parent for path in tmp_path.glob("multirun/quickstart/*/*/results.csv"))
    names = [OmegaConf.load(folder / "config.yaml").strategy.name for folder in runs]
    assert names == ["optimized_potential", "threshold_balancing"]
    assert [path.name for path in tmp_path.iterdir()] == ["multirun"]
    assert "Tip" not in done.stderr + done.stdout
    assert "Warning" not in done.stderr


class Killed(BaseException):
    """What no handler catches."""


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_training_is_the_one_that_was_not_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    options = (
        *(*FAST[:1], *FAST[2:], "timesteps=1", "trainer.max_epochs=3", "data.limit_test=50"),
        "+trainer.limit_train_batches=6",
        *(
            "model._target_=test_run.Foreign",
            "~model.pooling",
            "~model.pool_activation",
            "model.activation=channel_ceiling",
        ),
        *("data.augment=true", f"data.num_workers={workers}", "training.mixup=0.4", "training=adamw"),
    )
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(composed(*options), whole)

    def kills(classifier: Classifier, batch: Any, index: int) -> Any:
        if classifier.current_epoch == 1 and index == 3:
            raise Killed
        return training_step(classifier, batch, index)

    training_step = Classifier.training_step
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "training_step", kills)
        with pytest.raises(Killed):
            # The first time the folder holds no checkpoint yet.
            run(composed(*options, f"resume={cut}"), cut)
    assert [path.name for path in (cut / "checkpoints").iterdir()] == ["last.ckpt"]
    assert not (cut / "ann.pt").exists()
    seen = []

    def notes(classifier: Classifier, batch: Any, index: int) -> Any:
        seen.append(classifier.current_epoch)
        return training_step(classifier, batch, index)

    monkeypatch.setattr(Classifier, "training_step", notes)
    run(composed(*options, f"resume={cut}"), cut)
    assert set(seen) == {1, 2}
    assert same_weights(whole / "ann.pt", cut / "ann.pt")
    # Nothing is trained again once the training is done, also when the run goes on elsewhere.
    run(composed(*options, f"resume={cut}"), tmp_path / "elsewhere")
    assert set(seen) == {1, 2}
    assert same_weights(whole / "ann.pt", tmp_path / "elsewhere" / "ann.pt")


def test_a_finished_run_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = (*FAST, "timesteps=2", "compare=[threshold_balancing]")
    begun = []

    def note(config: DictConfig, folder: Path) -> float:
        begun.append(folder)
        return done(config, folder)

    done = runner._run
    monkeypatch.setattr(runner, "_run", note)

    def cut(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(runner, "plot_reports", cut)  # after results have been written
        with pytest.raises(Killed):
            run(composed(*options), tmp_path)
    assert (tmp_path / "results.csv").exists()
    accuracy = run(composed(*options), tmp_path)
    assert len(begun) == 2
    written = (tmp_path / "snn.pt").stat().st_mtime_ns
    assert run(composed(*options), tmp_path) == accuracy
    assert len(begun) == 2
    assert (tmp_path / "snn.pt").stat().st_mtime_ns == written
    run(composed(*options, "timesteps=3"), tmp_path)
    run(composed(*options), tmp_path)
    assert len(begun) == 4
    monkeypatch.setattr("snn_lowlat.cli.record.current_versions", lambda: {"torch": "newer"})
    run(composed(*options), tmp_path)
    assert len(begun) == 5


def same_weights(first: Path, second: Path) -> bool:
    weights, others = (torch.load(file)["state_dict"] for file in (first, second))
    return weights.keys() == others.keys() and all(torch.equal(value, others[name]) for name, value in weights.items())


def test_a_training_is_resumed_only_as_it_was_begun(tmp_path: Path) -> None:
    run(composed(*FAST, "timesteps=1"), tmp_path)
    for overrides, message in (
        (("training.learning_rate=0.05",), r"learning_rate was 0\.1, not 0\.05"),
        (("model.width=8",), r"another network than SmallCNN"),
        ((f"resume={tmp_path / 'ann.pt'}",), r"no state of a training; model\.weights"),
        ((f"resume={tmp_path / 'config.yaml'}",), r"config\.yaml .*damaged"),
        (("data.seed=1",), r"data\.seed was 0, not 1"),
        (("data.validation_fraction=0.2",), r"data\.validation_fraction was 0\.1, not 0\.2"),
        (("data.test_fraction=0.3",), r"data\.test_fraction was 0\.2, not 0\.3"),
        (("data.batch_size=32",), r"data\.batch_size was 64, not 32"),
        (("data.augment=true",), r"data\.augment was False, not True"),
        (("data.mean=[0.1]", "data.std=[0.5]"), r"data\.mean was None, not \[0\.1\]"),
        (("+trainer.accumulate_grad_batches=2",), r"trainer\.accumulate_grad_batches was 1, not 2"),
    ):
        with pytest.raises(ConfigError, match=f"resume: .*{message}"):
            run(composed(*FAST, "timesteps=1", f"resume={tmp_path}", *overrides), tmp_path / "other")
    longer = (*FAST[:1], *FAST[2:], "trainer.max_epochs=2", "timesteps=1", f"resume={tmp_path}")
    run(composed(*longer), tmp_path / "longer")
    assert torch.load(tmp_path / "longer" / "checkpoints" / "last.ckpt")["epoch"] == 1
    with pytest.raises(ConfigError, match="max_epochs was 2, not 1, and a training can be made longer but not shorter"):
        run(composed(*FAST, "timesteps=1", f"resume={tmp_path / 'longer'}"), tmp_path / "other")


def test_loggers_and_callbacks_are_chosen_by_name(tmp_path: Path) -> None:
    options = (*FAST[:1], *FAST[2:], "timesteps=1", "trainer.max_epochs=9", "trainer/callbacks=[early_stopping]")
    stop = ("trainer.callbacks.early_stopping.patience=1", "+trainer.callbacks.early_stopping.min_delta=9")
    run(composed(*options, *stop, "trainer/logger=csv"), tmp_path)
    with (tmp_path / "metrics" / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {"epoch", "train_loss", "val_loss", "val_accuracy"} <= rows[0].keys()
    # The loss can't fall by nine: one epoch to see that, and one of patience.
    assert max(int(row["epoch"]) for row in rows) == 1
    assert not (tmp_path / "checkpoints").exists()


def test_tensorboard_writes_into_the_folder_or_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    run(composed(*FAST, "timesteps=1", "trainer/logger=tensorboard"), tmp_path)
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))
    for name in ("_TENSORBOARD_AVAILABLE", "_TENSORBOARDX_AVAILABLE"):
        monkeypatch.setattr(f"lightning.fabric.loggers.tensorboard.{name}", False)
    with pytest.raises(ConfigError, match=r"(?s)trainer: .*`tensorboard`.*pip install"):
        run(composed(*FAST, "timesteps=1", "trainer/logger=tensorboard"), tmp_path / "again")


def test_half_precision_is_a_key_of_the_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    types = set()

    def notes(classifier: Classifier, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        types.add(logits.dtype)
        return loss(classifier, logits, labels)

    loss = Classifier.loss
    monkeypatch.setattr(Classifier, "loss", notes)
    run(composed(*FAST, "timesteps=1", "+trainer.precision=bf16-mixed", "training.channels_last=true"), tmp_path)
    assert types == {torch.bfloat16}
    assert load(tmp_path / "snn.pt", model=SmallCNN(width=4)).timesteps == 1


@pytest.mark.parametrize(
    "activation",
    ["channel_ceiling", {"_target_": "snn_lowlat.training.CeilingReLU", "_partial_": True, "initial": 2.0}],
)
@pytest.mark.parametrize("target", ["snn_lowlat.models.SmallCNN", "test_run.Foreign"])
def test_any_network_can_be_trained_with_ceilings(tmp_path: Path, target: str, activation: Any) -> None:
    config = composed(*FAST, "timesteps=1", f"model._target_={target}")
    config.model.activation = activation
    if target == "test_run.Foreign":
        del config.model.pooling
        del config.model.pool_activation
    run(config, tmp_path)
    weights = torch.load(tmp_path / "ann.pt")["state_dict"]
    ceilings = [value for name, value in weights.items() if name.endswith("ceiling")]
    assert [value.numel() for value in ceilings] == ([4, 8, 8] if activation == "channel_ceiling" else [1, 1, 1])
    assert all((value != 4.0).all() for value in ceilings)


class Foreign(torch.nn.Module):
    """A network that takes no activation, calls its ReLUs as functions, and leaves some activations out."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(1, width, 3)
        self.second = torch.nn.Conv2d(width, 2 * width, 3)
        self.third = torch.nn.Linear(32 * width, 2 * width)
        self.last = torch.nn.Sequential(torch.nn.Dropout(0.2), torch.nn.Linear(2 * width, num_classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.second(self.first(images).relu()))
        return self.last(torch.nn.functional.relu(self.third(hidden.flatten(1))))


@pytest.mark.slow
def test_two_processes_train_and_one_goes_on(tmp_path: Path) -> None:
    package = str(Path(__file__).resolve().parents[1])
    arguments = ("trainer.strategy=ddp", "trainer.devices=2", "timesteps=2", "compare=[]", "hydra.run.dir=results")
    done = subprocess.run(
        [sys.executable, "-m", "snn_lowlat.run", "+experiment=quickstart", *FAST, *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": package, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Accuracy in %") == 1
    assert done.stdout.count("Training took") == 1
    with (tmp_path / "results" / "results.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2
    checkpoint = torch.load(tmp_path / "results" / "checkpoints" / "last.ckpt")
    # Each process takes half of the 1,294 training pictures, in batches of 64.
    assert checkpoint["global_step"] == 11
    load_weights(SmallCNN(width=4), tmp_path / "results" / "ann.pt")


def test_threads_are_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    with pytest.raises(ConfigError):
        run(composed("threads=3", "compare=[nothing]"), tmp_path)
    assert asked == [3]


def test_keys_that_do_not_exist_are_answered_with_those_that_do() -> None:
    assert unknown_key(["+experiment=quickstart", "timesteps=2", "strategy.percentile=99", "+new=1", "-m"]) is None
    assert "Did you mean 'timesteps'? There are: backend, benchmark, calibration" in str(unknown_key(["timestep=2"]))
    answer = unknown_key(["strategy=threshold_balancing", "strategy.initial_potential=half"])
    assert "'initial_potential'. There are: granularity, name" in str(answer)
    assert unknown_key(["strategy=nothing"]) is None
    assert unknown_key(["trainer/logger=csv", "trainer/callbacks=[early_stopping]"]) is None


FINE_TUNING = (
    "fine_tuning=sgl",
    "fine_tuning.max_epochs=2",
    "timesteps=1",
    "compare=[]",
    "refinements=[bias_correction]",
)


def test_fine_tuning_writes_three_accuracies(tmp_path: Path) -> None:
    accuracy = run(composed("+experiment=quickstart", *FAST, *FINE_TUNING), tmp_path)
    content = json.loads((tmp_path / "results.json").read_text())
    converted, tuned = content["reports"]
    assert converted["ann_accuracy"] == tuned["ann_accuracy"] > 0
    assert tuned["accuracy"] == accuracy > converted["accuracy"]
    assert [step["name"] for step in tuned["refinements"]] == ["bias_correction", "surrogate_gradient_learning"]
    assert load(tmp_path / "snn_fine_tuned.pt").provenance.refinements[-1]["updates"] > 0
    assert load(tmp_path / "snn.pt").provenance.refinements[-1]["name"] == "bias_correction"
    assert (tmp_path / "fine_tuning" / "checkpoints" / "last.ckpt").is_file()


def test_fine_tuning_starts_from_a_spiking_network(tmp_path: Path) -> None:
    """One that was trained for two steps, for four."""
    options = ("+experiment=quickstart", *FAST, *FINE_TUNING, "fine_tuning.max_epochs=1", "evaluation.timesteps=null")
    run(composed(*options, "timesteps=2"), tmp_path / "two")
    tuned = load(tmp_path / "two" / "snn_fine_tuned.pt")
    start = f"fine_tuning.start={tmp_path / 'two' / 'snn_fine_tuned.pt'}"
    ann = f"model.weights={tmp_path / 'two' / 'ann.pt'}"
    run(composed(*options, start, ann, "timesteps=4", "fine_tuning.learning_rate=1e-9"), tmp_path / "four")
    again = load(tmp_path / "four" / "snn_fine_tuned.pt")
    assert again.timesteps == 4
    name = next(iter(tuned.plan))
    torch.testing.assert_close(again.plan[name].threshold, tuned.plan[name].threshold, rtol=1e-3, atol=1e-3)
    assert [step["name"] for step in again.provenance.refinements].count("surrogate_gradient_learning") == 2


def test_fine_tuning_goes_on_where_it_was(tmp_path: Path) -> None:
    options = ("+experiment=quickstart", *FAST, *FINE_TUNING, "fine_tuning.schedule=constant")
    run(composed(*options), tmp_path / "whole")
    run(composed(*options, "fine_tuning.max_epochs=1"), tmp_path / "parts")
    run(composed(*options, f"resume={tmp_path / 'parts'}"), tmp_path / "parts")
    whole, parts = (load(tmp_path / name / "snn_fine_tuned.pt") for name in ("whole", "parts"))
    images = torch.rand(8, *whole.provenance.input_shape)
    assert torch.equal(whole(images), parts(images))
