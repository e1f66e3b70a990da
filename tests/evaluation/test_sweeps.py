"""Sweeps beyond one process, and searches; each is skipped where its plugin is not installed."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import yaml

from snn_lowlat import load
from snn_lowlat.config import CONFIG_FOLDER, ConfigError
from snn_lowlat.data import Digits
from snn_lowlat.evaluation import evaluate
from snn_lowlat.run import run
from tests import hydra_runs
from tests.hydra_runs import command, composed

FAST = (*hydra_runs.FAST, "timesteps=1")


def sweep(folder: Path, *arguments: str) -> list[dict[str, str]]:
    done = command("--multirun", "hydra.sweep.dir=sweep", *FAST, *arguments, folder=folder)
    assert done.returncode == 0, done.stderr
    with (folder / "sweep" / "leaderboard.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "plugin"), [("joblib", "joblib"), ("cluster_local", "submitit")])
def test_runs_in_processes_of_their_own(tmp_path: Path, launcher: str, plugin: str) -> None:
    pytest.importorskip(f"hydra_plugins.hydra_{plugin}_launcher")
    rows = sweep(tmp_path, f"+sweep={launcher}", "seed=1,2")
    assert sorted(row["seed"] for row in rows) == ["1", "2"]
    assert not any(row["error"] for row in rows)


@pytest.mark.slow
def test_a_search_by_validation_accuracy(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    rows = sweep(tmp_path, "+sweep=optuna", "hydra.sweeper.n_trials=3")
    assert len(rows) == 3
    best = yaml.safe_load((tmp_path / "sweep" / "optimization_results.yaml").read_text())
    assert set(best["best_params"]) == {"strategy.percentile", "strategy.initial_potential"}
    # Fractions of the 143 validation images, not of the 359 test images.
    assert float(best["best_value"]) * 143 == pytest.approx(round(float(best["best_value"]) * 143))


@pytest.mark.parametrize("path", sorted((CONFIG_FOLDER / "sweep").glob("*.yaml")), ids=lambda path: path.stem)
def test_sweep_files_name_their_command_and_extra(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert f"python -m snn_lowlat.run --multirun +sweep={path.stem} " in "\n".join(lines[:4])
    content = yaml.safe_load("\n".join(lines))
    assert list(content["defaults"][0]) in (["override /hydra/launcher"], ["override /hydra/sweeper"])


def test_the_objective_is_validation_accuracy_when_asked_for(tmp_path: Path) -> None:
    test = run(composed(*FAST), tmp_path)
    weights = f"model.weights={tmp_path / 'ann.pt'}"
    found = run(composed(*FAST, weights, "objective=validation"), tmp_path / "validation")
    data = Digits(batch_size=64)
    data.setup()
    snn = load(tmp_path / "snn.pt")
    assert found == evaluate(snn, data.val_dataloader()).accuracy
    assert test == evaluate(snn, data.test_dataloader()).accuracy


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objective=training"], "unknown objective 'training'.*validation"),
        (["objective=validation", "data.validation_fraction=0"], "needs validation images"),
    ],
)
def test_objectives_that_can_not_be_are_refused(overrides: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        run(composed(*FAST, *overrides), tmp_path)
