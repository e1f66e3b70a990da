from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from snn_lowlat import load, strategies
from snn_lowlat.config import CONFIG_FOLDER, ConfigError, checked, unknown_key
from snn_lowlat.evaluation import COLUMNS
from snn_lowlat.models import SmallCNN, load_weights
from snn_lowlat.run import run
from snn_lowlat.strategies import make_strategy

EXPERIMENTS = sorted(path.stem for path in (CONFIG_FOLDER / "experiment").glob("*.yaml"))
FAST = ("threads=1", "trainer.max_epochs=1", "model.width=4", "trainer.accelerator=cpu", "device=cpu")


@pytest.fixture(autouse=True)
def _hydra() -> Iterator[None]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        yield


def composed(*overrides: str) -> DictConfig:
    return compose("config", overrides=list(overrides))


def command(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    package = str(Path(__file__).resolve().parents[1])
    code = f"import sys; sys.path.insert(0, {package!r}); from snn_lowlat.run import command_line; command_line()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=folder, capture_output=True, text=True, timeout=300
    )


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


def test_poisson_spikes_take_the_normalisation_into_the_network(tmp_path: Path) -> None:
    overrides = ("input_coding=poisson", "data.mean=[0.3]", "data.std=[0.4]", "timesteps=2", "data.limit_test=50")
    run(composed(*FAST, *overrides), tmp_path)
    load_weights(SmallCNN(width=4), tmp_path / "ann.pt")
    assert json.loads((tmp_path / "results.json").read_text())["encoder"] == "poisson"


def test_own_pictures(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for brightness, name in enumerate(("dark", "light")):
            place = tmp_path / "pictures" / split / name
            place.mkdir(parents=True)
            for index in range(6):
                Image.new("RGB", (12, 12), (180 * brightness + index,) * 3).save(place / f"{index}.png")
    overrides = ("data=image_folder", f"data.root={tmp_path / 'pictures'}", "data.image_size=8", "timesteps=2")
    run(composed(*FAST, *overrides), tmp_path / "results")
    content = json.loads((tmp_path / "results" / "results.json").read_text())
    assert (content["dataset"], content["images"]) == ("image_folder", 12)


def test_what_is_computed_is_kept_when_a_later_step_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object) -> None:
        raise RuntimeError("no canvas")

    monkeypatch.setattr("snn_lowlat.run.plot_reports", fails)
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


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONFIG_FOLDER / "strategy").glob("*.yaml")))
def test_strategy_files_state_the_defaults(name: str) -> None:
    options: Any = OmegaConf.to_container(composed(f"strategy={name}").strategy)
    assert options.pop("name") == name
    assert options == make_strategy(name).options()


def test_every_strategy_has_a_file() -> None:
    assert set(strategies()) <= {path.stem for path in (CONFIG_FOLDER / "strategy").glob("*.yaml")}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+foo=1"], "unknown config key 'foo'.*compare"),
        (["+evaluation.foo=1"], "unknown config key 'evaluation.foo'.*progress"),
        (["timesteps=abc"], "timesteps.*abc"),
        (["timesteps=0"], "timesteps must be at least 1"),
        (["calibration.images=0"], "calibration.images"),
        (["backend.name=norse"], "backend.*norse.*spikingjelly"),
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
        (["model.pooling=sum"], "model: pooling"),
        (["model.weights=/nowhere.pt"], r"model\.weights.*nowhere\.pt"),
        (["training.optimizer=lion"], "training: optimizer"),
        (["+trainer.max_epoch=1"], "Did you mean 'max_epochs'"),
    ],
)
def test_config_errors_say_what_there_is(overrides: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, FileNotFoundError), match=f"(?s){message}"):
        run(composed(*FAST[:2], *overrides), tmp_path)


def test_unknown_group_options_list_those_there_are() -> None:
    with pytest.raises(CompactHydraException, match=r"(?s)Could not find 'data/imagenet'.*cifar10"):
        composed("data=imagenet")


def test_multirun_and_errors_on_the_command_line(tmp_path: Path) -> None:
    done = command(
        "--multirun",
        "+experiment=quickstart",
        "strategy=optimized_potential,threshold_balancing",
        "timesteps=2",
        *FAST,
        folder=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    runs = sorted(path.parent for path in tmp_path.glob("multirun/quickstart/*/*/results.csv"))
    assert [OmegaConf.load(folder / "config.yaml").strategy.name for folder in runs] == strategies()
    assert [path.name for path in tmp_path.iterdir()] == ["multirun"]
    assert "Tip" not in done.stderr + done.stdout
    assert "Warning" not in done.stderr
    failed = command("model.weights=/nowhere.pt", folder=tmp_path)
    assert failed.returncode == 1
    assert "nowhere.pt" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_threads_are_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    with pytest.raises(ConfigError):
        run(composed("threads=3", "compare=[nothing]"), tmp_path)
    assert asked == [3]


def test_keys_that_do_not_exist_are_answered_with_those_that_do() -> None:
    assert unknown_key(["+experiment=quickstart", "timesteps=2", "strategy.percentile=99", "+new=1", "-m"]) is None
    assert "Did you mean 'timesteps'? There are: backend, calibration" in str(unknown_key(["timestep=2"]))
    answer = unknown_key(["strategy=threshold_balancing", "strategy.initial_potential=half"])
    assert "'initial_potential'. There are: granularity, name" in str(answer)
    assert unknown_key(["strategy=nothing"]) is None
