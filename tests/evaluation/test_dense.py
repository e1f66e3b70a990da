"""Networks whose outputs are images, maps or sequences: analysed, compared and reported."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import snn_lowlat
from snn_lowlat.evaluation import (
    COST_MODELS,
    Analysis,
    Report,
    analyse,
    compare,
    diagnose,
    evaluate,
    measure_operations,
    plot_reports,
    table,
    write_csv,
    write_json,
    write_report,
)
from snn_lowlat.evaluation.measuring.analysis import Example
from snn_lowlat.evaluation.measuring.report import decibels
from snn_lowlat.evaluation.reporting.figures import raster_figure
from snn_lowlat.hosts import BACKENDS
from snn_lowlat.simulation import simulate

# As many steps as the images are high: nothing may take one for the other.
TIMESTEPS = 8
IMAGES = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(2))


class UNet(nn.Module):
    """A way down and up again, with a shortcut that joins."""

    def __init__(self, up: nn.Module) -> None:
        super().__init__()
        self.down, self.middle = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.up, self.last, self.head = up, nn.Conv2d(10, 4, 3, padding=1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.down(x))
        x = self.up(F.relu(self.middle(F.avg_pool2d(first, 2))))
        return self.head(F.relu(self.last(torch.cat([x, first], 1))))


class Pyramid(nn.Module):
    """Maps of two scales, added up, and boxes ``[N, places, 5]`` as of a detector."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 3, 2, 1)
        self.fine, self.coarse, self.head = nn.Conv2d(4, 6, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = F.relu(self.first(x))
        coarse = self.coarse(F.relu(self.second(fine)))
        x = F.relu(self.fine(fine) + F.interpolate(coarse, size=fine.shape[2:]))
        return self.head(x).flatten(2).permute(0, 2, 1)


def autoencoder() -> nn.Module:
    return nn.Sequential(
        *(
            nn.Conv2d(1, 4, 3, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64, 16),
            nn.ReLU(),
            nn.Linear(16, 64),
            nn.ReLU(),
        ),
        *(nn.Unflatten(1, (4, 4, 4)), nn.ConvTranspose2d(4, 1, 4, 2, 1)),
    )


NETWORKS = {
    "transposed": lambda: UNet(nn.ConvTranspose2d(6, 6, 2, 2)),
    "nearest": lambda: UNet(nn.UpsamplingNearest2d(scale_factor=2)),
    "bilinear": lambda: UNet(nn.UpsamplingBilinear2d(scale_factor=2)),
    "sized": lambda: UNet(nn.Upsample(size=8, mode="bicubic")),
    "pyramid": Pyramid,
    "autoencoder": autoencoder,
    "sequence": lambda: nn.Sequential(
        *(nn.Flatten(2), nn.Conv1d(1, 4, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2), nn.Conv1d(4, 2, 3)),
    ),
}


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name]().eval()


def converted(model: nn.Module, **options: object) -> snn_lowlat.SpikingModel:
    return snn_lowlat.convert(model, [IMAGES], timesteps=TIMESTEPS, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("strategy", ["optimized_potential", "value_range", "temporal_switch"])
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_that_are_no_vector_are_analysed_compared_and_priced(name: str, strategy: str) -> None:
    model = network(name)
    snn = converted(model, strategy=strategy, refinements=["bias_correction"])
    report = compare(snn, [IMAGES[:7], IMAGES[7:]], model)
    assert list(report.errors) == list(report.latencies) == list(range(1, TIMESTEPS + 1))
    expected = model(IMAGES).detach()
    for steps, error in report.errors.items():
        readout = snn.count(IMAGES, steps) if snn.is_counted else snn.readout(IMAGES, steps)[-1]
        assert error == pytest.approx(float((readout - expected).norm() / expected.norm()), rel=1e-4)
    found = analyse(snn, [IMAGES], model)
    whole = found.added_to(report)
    assert found.diagnosis == diagnose(snn, model, [IMAGES])
    assert found.operations == measure_operations(snn, [IMAGES])
    assert whole.costs[TIMESTEPS].energies.keys() == COST_MODELS.keys()
    assert all(energy > 0 for energy in whole.costs[TIMESTEPS].energies.values())
    # The readout after t steps, of values that are the same in the simulation.
    example = torch.tensor(found.example.outputs)
    values = snn.readout(IMAGES[:1])[:, 0].flatten(1).T
    chosen = values[torch.linspace(0, len(values) - 1, len(example)).round().long()]
    assert example.shape == (min(48, len(values)), TIMESTEPS)
    assert not found.example.classes
    torch.testing.assert_close(example, chosen, atol=2e-4, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_they_convert_into_both_hosts_and_come_back_from_files(name: str, backend: str, tmp_path: Path) -> None:
    model = network(name)
    snn = converted(model, backend=backend)
    outputs = snn(IMAGES)
    snn.run_on_host = True
    torch.testing.assert_close(snn(IMAGES), outputs, rtol=1e-4, atol=1e-5)
    snn.save(tmp_path / "snn.pt")
    torch.testing.assert_close(snn_lowlat.load(tmp_path / "snn.pt")(IMAGES), outputs)


@pytest.mark.parametrize("name", ["transposed", "nearest"])
def test_synaptic_operations_of_a_u_net_are_those_of_its_events(name: str) -> None:
    model = network(name)
    snn = converted(model)
    graph, plan = snn.normal_form()
    _, spikes = simulate(graph, plan, IMAGES.expand(TIMESTEPS, *IMAGES.shape))
    counts = {site: fired.sum((0, 1))[None].double() for site, fired in spikes.items()}

    def reached(layer: nn.Module, events: Tensor) -> Tensor:
        """Add up one for each event and place that it reaches."""
        ones = type(layer).forward.__get__(layer)
        with torch.no_grad():
            weight, bias = layer.weight.clone(), layer.bias.clone()
            layer.weight.fill_(1), layer.bias.zero_()
            total = ones(events).sum()
            layer.weight.copy_(weight), layer.bias.copy_(bias)
        return total

    layers = {key: value.double() for key, value in model.named_modules() if isinstance(value, nn.Conv2d)}
    down, middle, last = counts.values()
    pooled = 4 * F.avg_pool2d(down.repeat_interleave(1, 0), 2)
    expected = reached(layers["middle"], pooled) + reached(layers["head"], last)
    if name == "transposed":
        expected += reached(model.up.double(), middle)
        expected += reached(layers["last"], F.pad(down, (0, 0, 0, 0, 6, 0)))
    else:
        expected += reached(layers["last"], torch.cat([F.interpolate(middle, scale_factor=2), down], 1))
    assert measure_operations(snn, [IMAGES])[TIMESTEPS].synaptic_operations == pytest.approx(
        float(expected) / len(IMAGES)
    )


@pytest.fixture(scope="module")
def reports() -> list[Report]:
    model, found = network("nearest"), []
    for strategy in ("optimized_potential", "value_range"):
        snn = converted(model, strategy=strategy)
        found.append(analyse(snn, [IMAGES], model).added_to(compare(snn, [IMAGES], model)))
    return found


def test_reports_show_decibels(reports: list[Report], tmp_path: Path) -> None:
    first = reports[0]
    # Figures of layers take long to draw.
    reports = [replace(report, diagnosis=None, example=None) for report in reports]
    assert first.quality_name == "signal to error (dB)"
    assert first.quality[4] == pytest.approx(-20 * math.log10(first.errors[4]))
    for name in ("report.html", "report.md"):
        write_report(reports, tmp_path / name)
        text = (tmp_path / name).read_text()
        assert "Signal to error and latency" in text
        assert f"{first.quality[TIMESTEPS]:.2f}" in text
        assert f"{100 * first.errors[TIMESTEPS]:.2f}" in text
        assert "accuracy" not in text.lower()
    plot_reports(reports, tmp_path / "errors.png")
    write_csv(reports, tmp_path / "errors.csv")
    assert "relative_error" in (tmp_path / "errors.csv").read_text().splitlines()[0]
    assert "Signal to error in dB" in str(first)
    assert table(reports).row_count == TIMESTEPS
    write_json(reports, tmp_path / "errors.json")


def test_reports_of_errors_are_read_back(reports: list[Report]) -> None:
    again = Report.from_dict(reports[0].to_dict())
    assert again == reports[0]
    assert again.steps_within(1) is None
    with pytest.raises(ValueError, match="there is no accuracy, but errors"):
        _ = again.accuracy


def test_classes_and_other_outputs_are_not_compared(reports: list[Report], tmp_path: Path) -> None:
    other = replace(reports[0], accuracies=dict.fromkeys(reports[0].errors, 0.5), errors={})
    for write in (write_csv, write_json, write_report, plot_reports):
        with pytest.raises(ValueError, match="can't be compared"):
            write([reports[0], other], tmp_path / "report.html")  # type: ignore[operator]
    with pytest.raises(ValueError, match="accuracies, or else errors"):
        replace(other, errors=reports[0].errors)


def test_no_error_at_all_is_a_finite_number_of_decibels() -> None:
    assert decibels(0.0) == 120
    assert decibels(0.1) == pytest.approx(20)


def test_networks_with_other_outputs_are_not_compared() -> None:
    with pytest.raises(ValueError, match=r"\[12, 64, 5\], the spiking network's of \[12, 2, 8, 8\]"):
        compare(converted(network("nearest")), [IMAGES], network("pyramid"))
    with pytest.raises(ValueError, match="no images"):
        compare(converted(network("nearest")), [], network("nearest"))


@pytest.mark.parametrize("height", [1, TIMESTEPS])
def test_one_logit_and_maps_as_high_as_there_are_steps_are_averaged_over_time(height: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 1, 1), nn.AdaptiveAvgPool2d((height, 1))
    )
    snn = converted(model.eval())
    example = analyse(snn, [IMAGES]).example
    expected = snn.readout(IMAGES[:1])[:, 0].flatten(1).T
    torch.testing.assert_close(torch.tensor(example.outputs), expected, atol=1e-4, rtol=0)


def test_examples_of_older_files_show_classes() -> None:
    values = Example(((1.0,),), {"relu": ("01",)}, ((0.5, 0.6),)).to_dict()
    del values["classes"]
    assert Example.from_dict(values).classes


def test_an_analysis_of_classes_is_as_before() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    found = analyse(converted(model), [IMAGES], model)
    assert isinstance(found, Analysis)
    assert found.example.classes
    assert len(found.example.outputs) == 3
    assert evaluate(converted(model), [(IMAGES, model(IMAGES).argmax(1))], model).quality_name == "accuracy (%)"


def test_the_readout_of_a_map_is_drawn(reports: list[Report]) -> None:
    figure = raster_figure(reports[0])
    assert figure is not None
    titles = [axes.get_title() for axes in figure.axes]
    assert "readout, some values" in titles
    assert not any("class" in title for title in titles)
