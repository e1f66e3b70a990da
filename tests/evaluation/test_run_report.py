"""Reports from the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from snn_lowlat.config import ConfigError
from snn_lowlat.run import run
from tests import hydra_runs
from tests.hydra_runs import composed

FAST = (*hydra_runs.FAST, "data.limit_test=40", "report.images=20")


def test_a_report_to_read_is_written_only_when_asked_for(tmp_path: Path) -> None:
    run(composed(*FAST, "timesteps=2", "compare=[value_range]", "report=html", "evaluation.timesteps=[2]"), tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    for part in ("optimized_potential, T = 2", "value_range, T = 2", "Attack the", "fp32_45nm_memory"):
        assert part in text
    first, second = json.loads((tmp_path / "results.json").read_text())["reports"]
    assert [row["timesteps"] for row in first["costs"]] == [2]
    assert first["costs"][0]["images"] == 20
    assert first["diagnosis"]["timesteps"] == second["diagnosis"]["timesteps"] == 2
    assert set(first["ann_cost"]["energies"]) == set(composed().report.energy)
    with (tmp_path / "results.csv").open() as file:
        assert float(next(csv.DictReader(file))["synaptic_operations"]) > 0
    weights = f"model.weights={tmp_path / 'ann.pt'}"
    run(composed(*FAST, "timesteps=2", weights), tmp_path / "plain")
    assert not list((tmp_path / "plain").glob("report*"))
    assert "costs" not in json.loads((tmp_path / "plain" / "results.json").read_text())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("report.formats=[pdf]", r"report: unknown format 'pdf'.*html"),
        ("report.energy=[fp64_45nm]", r"report: unknown cost model 'fp64_45nm'.*fp32_45nm"),
        ("report.images=0", r"report\.images must be a whole number of at least 1"),
        ("+report.pictures=3", r"report\.pictures.*images"),
    ],
)
def test_what_a_report_can_not_be_is_said_at_once(override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        run(composed(*FAST, override), tmp_path)
