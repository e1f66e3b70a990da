import runpy
import sys
from pathlib import Path

import pytest

from snn_lowlat.neurons import NEURONS
from snn_lowlat.strategies.registry import REGISTRY

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(autouse=True)
def _as_a_script_of_its_own(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr(REGISTRY, "_entries", dict(REGISTRY._entries))


def test_spikingjelly_idiom(capsys):
    accuracy = runpy.run_path(str(EXAMPLES / "spikingjelly_idiom.py"))["main"]()
    assert accuracy > 0.9
    assert "between the step modes: 0.0e+00" in capsys.readouterr().out


def test_snntorch_idiom():
    before, after = runpy.run_path(str(EXAMPLES / "snntorch_idiom.py"))["main"]()
    assert before > 0.9
    assert after > max(before, 0.97)


def test_own_strategy():
    accuracies = runpy.run_path(str(EXAMPLES / "own_strategy.py"))["main"]()
    assert accuracies.keys() == {"deviations", "optimized_potential"}
    assert min(accuracies.values()) > 0.8


def test_own_neuron(monkeypatch):
    monkeypatch.setattr(NEURONS, "_entries", dict(NEURONS._entries))
    accuracies = runpy.run_path(str(EXAMPLES / "own_neuron.py"))["main"]()
    assert [accuracies[f"spikingjelly, {pause}"] == accuracies[f"snntorch, {pause}"] for pause in (1, 3)] == [
        True,
        True,
    ]
    assert accuracies["spikingjelly, 1"] > 0.8


def test_nir_exchange(tmp_path, capsys):
    pytest.importorskip("nir", reason="the package nir is not installed: pip install 'snn_lowlat[nir]'")
    accuracies = runpy.run_path(str(EXAMPLES / "nir_exchange.py"))["main"](tmp_path / "digits.nir")
    assert accuracies.keys() == {"as it was", "spikingjelly", "snntorch"}
    assert min(accuracies.values()) == max(accuracies.values()) > 0.9
    printed = " ".join(capsys.readouterr().out.split())
    assert "logits 0.0e+00" in printed
    assert (tmp_path / "digits.nir").is_file()


# The latter reads its calibration images a hundred times.
STOCK = ["RateCoding, max", pytest.param("LocalThresholdBalancing", marks=pytest.mark.slow)]


@pytest.mark.data
@pytest.mark.parametrize("stock", STOCK)
def test_compare_with_spikingjelly(stock, real_data, tmp_path, monkeypatch):
    methods = [f"SpikingJelly {stock}", "optimized_potential"]
    weights, folder = real_data("weights/akamaster_resnet20-12fca82f.th"), real_data("cifar10.npz").parent
    arguments = ["--weights", str(weights), "--data", str(folder)]
    arguments += ["--images", "100", "--timesteps", "2", "8", "--methods", *methods, "--output", str(tmp_path / "c.md")]
    monkeypatch.setattr(sys, "argv", ["compare_with_spikingjelly.py", *arguments])
    runpy.run_path(str(EXAMPLES / "compare_with_spikingjelly.py"), run_name="__main__")
    rows = [row.split("|")[1:-1] for row in (tmp_path / "c.md").read_text().splitlines()]
    assert [row[0].strip() for row in rows[2:]] == methods
    assert float(rows[3][2].strip().rstrip("%")) > 60


@pytest.mark.data
def test_compare_objectives(real_data, tmp_path, monkeypatch):
    methods = ["optimized_potential, max", "distribution_aware, signed_then_mse"]
    weights, folder = real_data("weights/akamaster_resnet20-12fca82f.th"), real_data("cifar10.npz").parent
    arguments = ["--weights", str(weights), "--data", str(folder), "--images", "100", "--timesteps", "1", "2"]
    arguments += ["--calibration-images", "100", "--methods", *methods, "--output", str(tmp_path / "o.md")]
    monkeypatch.setattr(sys, "argv", ["compare_objectives.py", *arguments])
    runpy.run_path(str(EXAMPLES / "compare_objectives.py"), run_name="__main__")
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in (tmp_path / "o.md").read_text().splitlines()]
    assert rows[0][1:] == ["T = 1", "T = 2", "T = 1 + bias_correction", "T = 2 + bias_correction"]
    assert [row[0] for row in rows[2:]] == ["ANN", *methods]
    ann, by_maximum, by_distribution = ([float(cell) for cell in row[1:]] for row in rows[2:])
    assert min(ann) > 85
    assert all(ours > other for ours, other in zip(by_distribution, by_maximum, strict=True))


@pytest.mark.data
@pytest.mark.slow
def test_temporal_switch_operations(real_data, tmp_path, monkeypatch):
    weights, folder = real_data("weights/akamaster_resnet20-12fca82f.th"), real_data("cifar10.npz").parent
    arguments = ["--weights", str(weights), "--data", str(folder), "--images", "100", "--counted", "4"]
    arguments += [
        "--timesteps",
        "16",
        "--rate-coded",
        "value_range",
        "--rules",
        "8",
        "--output",
        str(tmp_path / "t.md"),
    ]
    monkeypatch.setattr(sys, "argv", ["temporal_switch_operations.py", *arguments])
    runpy.run_path(str(EXAMPLES / "temporal_switch_operations.py"), run_name="__main__")
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in (tmp_path / "t.md").read_text().splitlines()]
    found = {row[0]: row for row in rows if len(row) == 7 and row[1].isdigit()}
    switches, rates = found["temporal_switch"], found["value_range"]
    assert switches[2] == rates[2]  # the accuracy
    assert switches[4] == found["pipelined, 1/2"][4] == "2"
    assert float(switches[6]) < min(2, float(rates[6]))


def test_fine_tune():
    ann, converted, tuned = runpy.run_path(str(EXAMPLES / "fine_tune.py"))["main"]()
    assert converted < tuned
    assert tuned > ann - 0.05
