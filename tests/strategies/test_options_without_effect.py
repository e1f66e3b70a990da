"""An option that changes nothing beside the others is refused, or named where only the network shows it."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from lightning import Trainer

from snn_lowlat.calibration import Histogram, SiteStatistics
from snn_lowlat.models import SmallCNN
from snn_lowlat.strategies import make_strategy, strategies
from snn_lowlat.training import Classifier, RoundLater

RULES = {"distribution_aware": "ceiling"}


def trained_site(levels: int | None) -> SiteStatistics:
    histogram = Histogram(channels=3)
    histogram.update(torch.randn(200, 3, generator=torch.Generator().manual_seed(0)))
    return SiteStatistics("site", histogram, torch.tensor(1.5), levels, 0.5)


@pytest.mark.parametrize("name", strategies())
def test_a_percentile_needs_the_rule_that_reads_it(name: str) -> None:
    rule = RULES.get(name, "threshold")
    with pytest.raises(ValueError, match=f"percentile=99.0 has a meaning with {rule}=percentile only"):
        make_strategy(name, percentile=99.0, **{rule: "max"})
    assert make_strategy(name, percentile=99.0, **{rule: "percentile"}).options()["percentile"] == 99.0
    # The default is no wish.
    assert make_strategy(name, percentile=99.9, **{rule: "max"}).options()["percentile"] == 99.9


@pytest.mark.parametrize(
    ("name", "options", "idle"),
    [
        ("value_range", {"granularity": "layer", "threshold_scale": 0.9}, "granularity=layer, threshold_scale=0.9"),
        ("temporal_switch", {"initial_potential": "zero"}, "initial_potential=zero"),
        ("distribution_aware", {"ceiling": "max"}, "ceiling=max and percentile=99.9"),
    ],
)
def test_options_that_a_trained_activation_overrules_are_named(
    name: str, options: dict[str, Any], idle: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        make_strategy(name).plan(trained_site(levels=4), 4)
        assert not caplog.messages
        make_strategy(name, **options).plan(trained_site(levels=4), 4)
    (said,) = caplog.messages
    assert f"{name}: layer site" in said
    assert f"{idle} ha" in said


def test_rounding_later_needs_activations_that_round(caplog: pytest.LogCaptureFixture) -> None:
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    with caplog.at_level(logging.WARNING, logger="snn_lowlat"):
        RoundLater().on_fit_start(trainer, Classifier(SmallCNN(width=2), 10))
    assert any("RoundLater has no effect" in message for message in caplog.messages)
