from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from snn_lowlat.convert import convert
from snn_lowlat.evaluation import Report, analyse, cost_model, evaluate, write_csv, write_json, write_report
from snn_lowlat.evaluation.reporting.figures import (
    accuracy_figure,
    best_trade_offs,
    energy_figure,
    error_figure,
    firing_figure,
    latency_figure,
    raster_figure,
    series,
)
from snn_lowlat.models import SmallCNN


def analysed(timesteps: int, **options: Any) -> Report:
    torch.manual_seed(0)
    ann = SmallCNN(width=4).eval()
    images = torch.rand(12, 1, 8, 8)
    with torch.no_grad():
        batches = [(images, ann(images).argmax(1))]
    snn = convert(ann, batches, timesteps=timesteps, **options)
    report = replace(evaluate(snn, batches, ann=ann), experiment="<test> & more", dataset="noise")
    return analyse(snn, batches, ann, images=8).added_to(report)


@pytest.fixture(scope="module")
def reports() -> list[Report]:
    return [analysed(3), analysed(3, strategy="value_range"), analysed(2, encoder="poisson")]


@pytest.fixture
def plain(reports: list[Report]) -> Report:
    return replace(reports[0], costs={}, **dict.fromkeys(("ann_cost", "operations", "diagnosis", "example")))


def test_an_analysed_report_holds_costs_errors_and_an_example(reports: list[Report]) -> None:
    first = reports[0]
    assert list(first.costs) == [1, 2, 3]
    assert first.costs[3].images == 8
    assert first.ann_cost is not None
    assert first.ann_cost.synaptic_operations == 0 < first.ann_cost.macs
    assert first.operations is not None
    assert cost_model("fp32_45nm").energy(first.operations).total == first.costs[3].energies["fp32_45nm"]
    assert first.diagnosis is not None
    rates = {site.name: site.firing_rate for site in first.diagnosis.sites}
    assert rates == pytest.approx(first.operations.firing_rates)
    assert first.example is not None
    assert {len(row) for row in first.example.outputs} == {3}
    assert all({len(row) for row in rows} == {3} for rows in first.example.rasters.values())
    assert {len(row) for row in first.example.inputs} == {1}
    assert reports[2].example is not None
    assert {value for row in reports[2].example.inputs for value in row} == {0, 1}


def test_json_and_back(reports: list[Report], plain: Report) -> None:
    for report in (*reports, plain):
        assert Report.from_dict(json.loads(json.dumps(report.to_dict()))) == report


def test_csv_has_costs_beside_the_original_networks(reports: list[Report], plain: Report, tmp_path: Path) -> None:
    row = reports[0].rows()[-1]
    cost, ann = reports[0].costs[3], reports[0].ann_cost
    assert ann is not None
    assert row["synaptic_operations"] == cost.synaptic_operations
    assert row["energy_nj_int32_45nm"] == cost.energies["int32_45nm"] / 1000
    assert row["ann_energy_nj_int32_45nm"] == ann.energies["int32_45nm"] / 1000
    write_csv([plain, reports[0]], tmp_path / "both.csv")
    assert "energy_nj_int32_45nm" in (tmp_path / "both.csv").read_text().splitlines()[0]
    assert not any("energy" in name for name in plain.rows()[0])
    write_json([plain], tmp_path / "plain.json")
    assert "costs" not in json.loads((tmp_path / "plain.json").read_text())


@pytest.mark.parametrize(
    ("ann", "points", "steps"), [(0.9, 1, 4), (0.9, 0.1, 8), (0.9, 60, 1), (0.99, 1, None), (None, 1, None)]
)
def test_steps_to_come_near_the_original(ann: float | None, points: float, steps: int | None, plain: Report) -> None:
    accuracies = {1: 0.4, 2: 0.85, 4: 0.89, 8: 0.9}
    latencies = dict.fromkeys(accuracies, 1)
    report = replace(plain, accuracies=accuracies, latencies=latencies, ann_accuracy=ann)
    assert report.steps_within(points) == steps


def test_latency_with_a_layer_a_step(reports: list[Report]) -> None:
    online, windowed = reports[:2]
    assert (online.latency_steps, online.pipelined_latency(3)) == (3, 6)
    assert (windowed.latency_steps, windowed.pipelined_latency(3)) == (12, 12)


class Reader(HTMLParser):
    """Checks that tags are closed, and gathers pictures and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.sources.append(dict(attrs)["src"] or "")
            assert dict(attrs)["alt"]
        elif tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_html_is_one_file_with_everything_in_it(reports: list[Report], tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(reports[:1], path, models=["fp32_45nm", "int32_45nm_sram"], failures=[("7: T=1", "no <luck>")])
    content = path.read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(content)
    assert not reader.open
    assert len(reader.sources) == 5
    assert all(source.startswith("data:image/svg+xml;base64,") for source in reader.sources)
    assert not re.search(r"(src|href)=.?(?!\"?data:)http", content)
    text = " ".join(" ".join(reader.text).split())
    for part in ("Report: <test> & more", "no <luck>", "Attack the", "fp32_45nm", "arXiv 2210.13107", "strategy."):
        assert part in text
    assert "int32_45nm," not in text
    assert list(tmp_path.iterdir()) == [path]


def test_markdown_has_its_figures_beside_it(reports: list[Report], tmp_path: Path) -> None:
    write_report(reports[:1], tmp_path / "report.md", title="Mine", failures=[("a|b", "no luck")])
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert text.startswith("# Mine\n")
    figures = re.findall(r"!\[.+\]\((.+)\)", text)
    assert len(figures) == 5
    for figure in figures:
        with Image.open(tmp_path / figure) as picture:
            assert picture.format == "PNG"
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert r"| a\|b | no luck |" in tables
    assert "\n\n\n\n" not in text


def test_what_was_not_measured_is_left_out(plain: Report, tmp_path: Path) -> None:
    write_report([plain], tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "Accuracy and latency" in text
    assert "energy" not in text.lower()
    assert [path.name for path in (tmp_path / "report_figures").iterdir()] == ["accuracy.png"]


def test_what_is_no_report_is_refused(plain: Report, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no report"):
        write_report([], tmp_path / "report.html")
    with pytest.raises(ValueError, match=r"'\.pdf'.*\.html"):
        write_report([plain], tmp_path / "report.pdf")
    with pytest.raises(ValueError, match="unknown cost model"):
        write_report([plain], tmp_path / "report.html", models=["fp64"])
    assert not list(tmp_path.iterdir())


def test_the_same_conversion_for_several_steps_is_one_series(plain: Report) -> None:
    shorter = replace(plain, accuracies={1: 0.1, 2: 0.2}, latencies={1: 1, 2: 2})
    other = replace(plain, seed=5)
    lines = series([plain, shorter, other])
    assert [line.name for line in lines] == ["optimized_potential, 0", "optimized_potential, 5"]
    assert [point[0] for point in lines[0].points] == [2, 3]
    assert lines[0].steps_within(1) == (3, 3)
    assert replace(lines[0], ann_accuracy=2.0).steps_within(1) is None
    assert [point[0] for point in lines[1].points] == [1, 2, 3]


def test_best_trade_offs() -> None:
    points = [(3.0, 0.9), (1.0, 0.5), (2.0, 0.4), (1.0, 0.3), (4.0, 0.9)]
    assert best_trade_offs(points) == [(1.0, 0.5), (3.0, 0.9)]


def test_axes_have_names_and_units(reports: list[Report], plain: Report) -> None:
    first = reports[0]
    assert first.diagnosis is not None
    energies = energy_figure(reports, ["fp32_45nm", "int32_45nm"])
    assert energies is not None
    raster = raster_figure(first)
    assert raster is not None
    assert [axes.get_title() for axes in energies.axes] == [
        "cost model fp32_45nm; numbers: T",
        "cost model int32_45nm; numbers: T",
    ]
    assert all("µJ" in axes.get_xlabel() and "%" in axes.get_ylabel() for axes in energies.axes)
    for figure in (accuracy_figure(reports), latency_figure(reports)):
        assert all(axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes)
    bars = error_figure(first.diagnosis).axes[0]
    assert "%" in bars.get_xlabel()
    assert len(bars.containers) == 4
    assert [label.get_text() for label in bars.get_yticklabels()] == [site.name for site in first.diagnosis.sites]
    assert "spikes" in firing_figure(first.diagnosis).axes[1].get_ylabel()
    assert len(raster.axes) == 5  # with a bar of colours
    assert energy_figure([plain], ["fp32_45nm"]) is None
    assert raster_figure(plain) is None


def test_one_layer_of_neurons_and_one_step_can_be_drawn() -> None:
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    nn.init.constant_(ann[1].bias, 0.5)
    batches = [(torch.rand(4, 1, 2, 2), torch.zeros(4, dtype=torch.int64))]
    snn = convert(ann, batches, timesteps=1)
    report = analyse(snn, batches, ann).added_to(evaluate(snn, batches, ann=ann))
    assert report.diagnosis is not None
    assert report.example is not None
    assert list(report.example.rasters) == ["2"]
    for figure in (raster_figure(report), error_figure(report.diagnosis), firing_figure(report.diagnosis)):
        assert figure is not None
        figure.draw_without_rendering()
