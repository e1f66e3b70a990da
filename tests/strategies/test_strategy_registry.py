from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from io import BytesIO
from types import SimpleNamespace

import pytest
import torch

from snn_lowlat.calibration import Histogram, SiteStatistics
from snn_lowlat.plan import SitePlan
from snn_lowlat.strategies import (
    OptimizedPotential,
    Strategy,
    ThresholdBalancing,
    make_strategy,
    register_strategy,
    registry,
    strategies,
)


@dataclass(frozen=True)
class Unit(Strategy):
    level: float = 1.0

    def plan(self, statistics: SiteStatistics, timesteps: int) -> SitePlan:
        return SitePlan(torch.tensor(self.level), torch.zeros(()), torch.tensor(self.level))


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.REGISTRY, "_entries", dict(registry.REGISTRY._entries))


@pytest.fixture
def entry_points(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    found: list[object] = []
    monkeypatch.setattr(registry.REGISTRY, "_discovered", False)
    monkeypatch.setattr(metadata, "entry_points", lambda group: found if group == "snn_lowlat.strategies" else [])
    return found


@pytest.fixture
def statistics() -> SiteStatistics:
    histogram = Histogram(3)
    histogram.update(torch.randn(2000, 3, generator=torch.Generator().manual_seed(0)))
    return SiteStatistics("layer1_relu", histogram)


def test_names_and_patterns() -> None:
    assert {"optimized_potential", "threshold_balancing"} <= set(strategies())
    assert strategies("*balancing") == ["threshold_balancing"]
    assert strategies("nothing*") == []
    assert OptimizedPotential.name == "optimized_potential"
    assert isinstance(make_strategy("threshold_balancing"), ThresholdBalancing)


def test_own_strategy() -> None:
    assert register_strategy("unit")(Unit) is Unit
    assert make_strategy("unit", level=2.0) == Unit(2.0)
    assert "unit" in strategies()
    register_strategy("unit")(Unit)
    with pytest.raises(ValueError, match="'optimized_potential' is already registered"):
        register_strategy("optimized_potential")(Unit)
    with pytest.raises(TypeError, match="subclass of Strategy"):
        register_strategy("dict")(dict)  # type: ignore[type-var]

    class Plain(OptimizedPotential):
        pass

    with pytest.raises(TypeError, match="dataclass"):
        register_strategy("plain")(Plain)


def test_unknown_names_and_options() -> None:
    with pytest.raises(ValueError, match=r"unknown strategy 'optimised_potential'. Did you mean 'optimized_potential'"):
        make_strategy("optimised_potential")
    with pytest.raises(ValueError, match=r"'treshold'. Did you mean 'threshold'.*granularity"):
        make_strategy("optimized_potential", treshold="max")
    with pytest.raises(ValueError, match="unknown option"):
        make_strategy(OptimizedPotential(), nothing=1)
    with pytest.raises(TypeError, match="by its name"):
        make_strategy(3)  # type: ignore[arg-type]


def test_objects_pass_and_take_options() -> None:
    strategy = OptimizedPotential(threshold="max")
    assert make_strategy(strategy) is strategy
    assert make_strategy(strategy, granularity="layer") == OptimizedPotential(threshold="max", granularity="layer")


def test_entry_points_bring_classes_and_modules(entry_points: list[object]) -> None:
    loads = []

    def load() -> type[Strategy]:
        loads.append(1)
        return Unit

    entry_points.append(SimpleNamespace(name="third", value="third:Unit", load=load, dist=None))
    assert not loads
    assert make_strategy("third", level=3.0) == Unit(3.0)
    assert "third" in strategies()
    assert len(loads) == 1


def test_broken_entry_points_warn(entry_points: list[object]) -> None:
    def load() -> None:
        raise ImportError("no module named other")

    owner = SimpleNamespace(name="some-package")
    entry_points.append(SimpleNamespace(name="broken", value="other:Thing", load=load, dist=owner))
    entry_points.append(SimpleNamespace(name="max", value="other:dict", load=lambda: dict, dist=owner))
    entry_points.append(SimpleNamespace(name="optimized_potential", value="other:Unit", load=lambda: Unit, dist=owner))
    with pytest.warns(RuntimeWarning, match="'some-package'") as caught:
        names = strategies()
    assert len(caught) == 3
    assert "broken" not in names
    assert type(make_strategy("optimized_potential")) is OptimizedPotential


@pytest.mark.parametrize(
    "strategy",
    [
        OptimizedPotential(),
        OptimizedPotential("percentile", 99.0, "layer", 0.9, "zero"),
        OptimizedPotential(initial_potential=0.25),
        OptimizedPotential(initial_potential="calibrated"),
        OptimizedPotential(initial_potential={"layer1_relu": torch.tensor([0.1, 0.2, 0.3]), "b": torch.tensor(0.5)}),
        ThresholdBalancing(),
        ThresholdBalancing("mmse", granularity="channel"),
    ],
    ids=repr,
)
def test_options_make_the_same_strategy_again(strategy: Strategy, statistics: SiteStatistics) -> None:
    file = BytesIO()
    torch.save(strategy.options(), file)
    file.seek(0)
    again = make_strategy(strategy.name, **torch.load(file, weights_only=True))
    assert again == strategy
    assert hash(again) == hash(strategy)
    assert again.plan(statistics, 4) == strategy.plan(statistics, 4)
    assert strategy != Unit()


def test_initial_potentials(statistics: SiteStatistics) -> None:
    for given, fraction in (("half", 0.5), ("zero", 0.0), (0.25, 0.25), (1, 1.0)):
        plan = OptimizedPotential("max", initial_potential=given).plan(statistics, 4)
        assert torch.equal(plan.initial_potential, plan.threshold * fraction)
        assert torch.equal(plan.amplitude, plan.threshold)
        assert plan.threshold.shape == (3,)
    given_each = {"layer1_relu": [0.0, 0.5, 1.0]}
    plan = OptimizedPotential("max", granularity="layer", initial_potential=given_each).plan(statistics, 4)
    assert torch.equal(plan.initial_potential, plan.threshold * torch.tensor([0.0, 0.5, 1.0]))
    calibrated = OptimizedPotential("max", granularity="layer", initial_potential="calibrated").plan(statistics, 4)
    assert calibrated.threshold.shape == calibrated.initial_potential.shape == ()
    ceiling = SiteStatistics("a", statistics.histogram, torch.tensor(1.5))
    assert OptimizedPotential("ceiling", initial_potential="calibrated").plan(ceiling, 4).initial_potential.shape == (
        3,
    )
    assert float(OptimizedPotential("ceiling").plan(ceiling, 4).threshold) == 1.5


def test_thresholds_are_scaled(statistics: SiteStatistics) -> None:
    for cls in (OptimizedPotential, ThresholdBalancing):
        plan, scaled = cls("max").plan(statistics, 4), cls("max", threshold_scale=0.5).plan(statistics, 4)
        for value in ("threshold", "initial_potential", "amplitude"):
            assert torch.equal(getattr(scaled, value), 0.5 * getattr(plan, value))


def test_option_errors(statistics: SiteStatistics) -> None:
    for cls in (OptimizedPotential, ThresholdBalancing):
        with pytest.raises(ValueError, match="unknown threshold rule"):
            cls(threshold="maximum")
        with pytest.raises(ValueError, match="percentile must be"):
            cls(percentile=0)
        with pytest.raises(ValueError, match="unknown granularity"):
            cls(granularity="pixel")
        with pytest.raises(ValueError, match="threshold_scale must be"):
            cls(threshold_scale=0)
    with pytest.raises(ValueError, match=r"unknown initial potential 'halve'. Did you mean 'half'"):
        OptimizedPotential(initial_potential="halve")
    for bad in (2.0, float("nan"), True, None):
        with pytest.raises(ValueError, match="initial_potential must be"):
            OptimizedPotential(initial_potential=bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="site 'a' must be one value or one a channel"):
        OptimizedPotential(initial_potential={"a": torch.ones(2, 2)})
    with pytest.raises(ValueError, match=r"'layer1_relu'. Did you mean 'layer2_relu'"):
        OptimizedPotential(initial_potential={"layer2_relu": torch.tensor(0.5)}).plan(statistics, 4)
    with pytest.raises(ValueError, match="2 values for 3 channels"):
        OptimizedPotential(initial_potential={"layer1_relu": torch.rand(2)}).plan(statistics, 4)
    with pytest.raises(ValueError, match="timesteps must be"):
        OptimizedPotential().plan(statistics, 0)
