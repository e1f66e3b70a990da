from __future__ import annotations

import csv
import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from snn_lowlat.evaluation import COLUMNS, Report, plot_reports, table, write_csv, write_json
from snn_lowlat.files import atomic_write


@pytest.fixture
def report() -> Report:
    return Report(
        strategy="optimized_potential",
        strategy_options={"threshold": "mmse"},
        accuracies={4: 0.75, 1: 0.5},
        latencies={4: 12, 1: 3},
        firing_rates={"relu": 0.125},
        images=40,
        backend="spikingjelly",
        encoder="direct",
        seed=7,
        ann_accuracy=0.8,
        experiment="test",
        model="small",
        dataset="digits",
        versions={"torch": "2"},
    )


def test_last_step_is_the_reports_own(report: Report) -> None:
    assert (report.timesteps, report.latency_steps, report.accuracy) == (4, 12, 0.75)
    assert list(report.accuracies) == [1, 4]


def test_csv_has_a_row_for_each_step(report: Report, tmp_path: Path) -> None:
    report.to_csv(tmp_path / "new" / "results.csv")
    with (tmp_path / "new" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0])[: len(COLUMNS)] == COLUMNS
    assert [row["timesteps"] for row in rows] == ["1", "4"]
    assert [row["latency_steps"] for row in rows] == ["3", "12"]
    assert float(rows[1]["accuracy"]) == 0.75
    assert float(rows[1]["ann_accuracy"]) == 0.8
    assert rows[1]["seed"] == "7"


def test_json_round_trip(report: Report, tmp_path: Path) -> None:
    report.to_json(tmp_path / "results.json")
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["curve"][1] == {"timesteps": 4, "latency_steps": 12, "accuracy": 0.75}
    assert content["firing_rates"] == {"relu": 0.125}
    assert content["strategy_options"] == {"threshold": "mmse"}
    assert content["accuracy"] == 0.75


def test_several_reports_share_files(report: Report, tmp_path: Path) -> None:
    other = replace(report, strategy="threshold_balancing", accuracies={4: 0.6}, latencies={4: 4})
    write_csv([report, other], tmp_path / "results.csv")
    write_json([report, other], tmp_path / "results.json")
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 4
    content = json.loads((tmp_path / "results.json").read_text())
    assert [entry["strategy"] for entry in content["reports"]] == ["optimized_potential", "threshold_balancing"]
    assert content["accuracy"] == 0.75


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_plot_writes_the_format_of_its_ending(report: Report, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"curve{suffix}"
    report.plot(path)
    assert path.stat().st_size > 1000
    if suffix == ".png":
        with Image.open(path) as picture:
            assert picture.size == (1200, 800)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_plot_tells_reports_apart(report: Report, tmp_path: Path) -> None:
    other = replace(report, strategy_options={"threshold": "max"}, accuracies={1: 0.2}, latencies={1: 1})
    plot_reports([report, other], tmp_path / "curve.svg")
    with pytest.raises(ValueError, match="no report"):
        plot_reports([], tmp_path / "none.png")


def test_text_shows_per_cent_and_both_times(report: Report) -> None:
    text = str(report)
    for part in ("optimized_potential", "75.00", "80.00", "timesteps", "latency_steps", "12"):
        assert part in text


def test_table_of_reports_with_different_steps(report: Report) -> None:
    other = replace(report, backend="snntorch", accuracies={2: 0.6}, latencies={2: 2}, ann_accuracy=None)
    result = table([report, other])
    assert result.row_count == 3
    headers = [str(column.header) for column in result.columns]
    assert "optimized_potential, spikingjelly" in headers
    assert "optimized_potential, snntorch" in headers


def test_reports_are_frozen_picklable_and_whole(report: Report) -> None:
    with pytest.raises(TypeError):
        report.accuracies[1] = 1.0  # type: ignore[index]
    assert pickle.loads(pickle.dumps(report)) == report
    with pytest.raises(ValueError, match="latency"):
        replace(report, latencies={1: 1})
    with pytest.raises(ValueError, match="no report"):
        write_csv([], "results.csv")


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "results.txt"
    path.write_text("old")

    def write() -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
