"""Strategies and host libraries are options of the command line as they are registered, another package's too."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import CompactHydraException
from omegaconf import OmegaConf

from snn_lowlat.cli.choices import options, store_choices
from snn_lowlat.cli.hints import hint, null_group, unknown_key
from snn_lowlat.cli.main import command_line
from snn_lowlat.config import ConfigError, checked
from snn_lowlat.hosts import BACKENDS
from snn_lowlat.run import run
from snn_lowlat.strategies import make_strategy, strategies
from snn_lowlat.strategies.registry import REGISTRY
from tests import hydra_runs
from tests.hydra_runs import composed

FAST = (*hydra_runs.FAST, "timesteps=2")

PACKAGE = '''
from dataclasses import dataclass, field

import torch

from snn_lowlat import SitePlan, Strategy


@dataclass(frozen=True, eq=False)
class Deviations(Strategy):
    """Thresholds at so many standard deviations of the `pre-activations`; $20 a layer.

    Parameters
    ----------
    deviations : float
        How many standard deviations
        a threshold is.
    sides, offset : int
        Nothing of importance.
    factor : float
        On all of them.

    Raises
    ------
    ValueError
        Never.
    """

    factor: float
    deviations: float = 2.5
    sides: int = 1
    offset: int | None = None
    weights: torch.Tensor = field(default_factory=lambda: torch.ones(2))

    def plan(self, statistics, timesteps):
        threshold = torch.tensor(self.factor * self.deviations)
        return SitePlan(threshold=threshold, initial_potential=threshold / 2, amplitude=threshold)
'''


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install a package that brings a strategy, and let everything else of this process forget it afterwards."""
    place = tmp_path / "site"
    notes = place / "somebodys-1.0.dist-info"
    notes.mkdir(parents=True)
    (place / "somebodys.py").write_text(PACKAGE)
    (notes / "METADATA").write_text("Metadata-Version: 2.1\nName: somebodys\nVersion: 1.0\n")
    (notes / "entry_points.txt").write_text("[snn_lowlat.strategies]\ndeviations = somebodys:Deviations\n")
    monkeypatch.syspath_prepend(place)
    monkeypatch.setattr(REGISTRY, "_entries", dict(REGISTRY._entries))
    monkeypatch.setattr(REGISTRY, "_discovered", False)
    monkeypatch.setitem(ConfigStore.instance().repo, "strategy", dict(ConfigStore.instance().repo["strategy"]))
    store_choices()
    yield
    sys.modules.pop("somebodys", None)


@pytest.mark.parametrize("name", strategies())
def test_the_defaults_are_those_of_the_dataclass(name: str) -> None:
    given: Any = OmegaConf.to_container(composed(f"strategy={name}").strategy)
    assert given.pop("name") == name
    assert given == make_strategy(name).options()
    assert name in options("strategy")


@pytest.mark.parametrize("name", BACKENDS)
def test_host_libraries_are_options(name: str) -> None:
    assert checked(composed(f"backend={name}")).backend == {"name": name}


@pytest.mark.usefixtures("installed")
def test_a_strategy_of_another_package_is_an_option_with_its_own_options(tmp_path: Path) -> None:
    config = composed("strategy=deviations", "strategy.factor=0.5", *FAST)
    # What a config can't hold stays as the dataclass has it.
    assert config.strategy == {"name": "deviations", "factor": 0.5, "deviations": 2.5, "sides": 1, "offset": None}
    run(composed("strategy=deviations", "strategy.factor=0.5", "strategy.deviations=3", *FAST), tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())["strategy"] == "deviations"
    with pytest.raises(ConfigError, match=r"the config needs strategy\.factor=VALUE"):
        checked(composed("strategy=deviations"))
    with pytest.raises(CompactHydraException, match=r"(?s)Could not find 'strategy/deviation'.*deviations"):
        composed("strategy=deviation")
    assert "Did you mean 'deviations'" in str(hint(["strategy=deviation"]))
    assert hint(["strategy=deviations,value_range", "backend=snntorch", "backend.name=spikingjelly"]) is None
    assert "There are: deviations, distribution_aware" in str(null_group(["strategy=null"]))
    answer = str(unknown_key(["strategy=deviations", "strategy.deviation=2"]))
    assert "'deviation'. Did you mean 'deviations'?" in answer


def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    GlobalHydra.instance().clear()
    monkeypatch.setattr(sys, "argv", ["snn_lowlat", *arguments])
    with pytest.raises(SystemExit) as end:
        command_line()
    GlobalHydra.instance().clear()
    assert end.value.code == 0
    return capsys.readouterr().out


@pytest.mark.usefixtures("installed")
def test_help_explains_the_options_of_the_strategy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = said(monkeypatch, capsys, "--help", "strategy=deviations")
    assert "strategy: deviations, distribution_aware, optimized_potential" in text
    assert "Thresholds at so many standard deviations of the `pre-activations`; $20 a layer.\n" in text
    assert "strategy.factor=???: On all of them.\nstrategy.deviations=2.5: How many standard deviations a thre" in text
    assert "strategy.sides=1: Nothing of importance.\nstrategy.offset=null: Nothing of importance.\n\n" in text
    assert "bias_correction\nCorrect each layer's bias" in text
    assert "  iterations=4: How often the difference is measured" in text
    assert "== strategy" not in said(monkeypatch, capsys, "--help", "~strategy")


def test_every_option_of_every_strategy_and_refinement_is_explained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in strategies():
        text = said(monkeypatch, capsys, "--help", f"strategy={name}")
        for option in make_strategy(name).options():
            assert f"\nstrategy.{option}=" in text
        assert all(": " in line for line in text.splitlines() if line.startswith(("strategy.", "  images=")))


@pytest.mark.parametrize("plus", ["", "+"])
def test_an_experiment_is_chosen_with_a_plus_or_without(
    plus: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = said(monkeypatch, capsys, "--help", f"{plus}experiment=mnist_value_range", "timesteps=3")
    assert "name: mnist_value_range\n" in text
    assert "timesteps: 3\n" in text
    assert "== strategy=value_range ==" in text
