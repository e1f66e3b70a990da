import runpy
import sys
from pathlib import Path

import pytest

from snn_lowlat.strategies.registry import REGISTRY

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch):
    monkeypatch.setattr(REGISTRY, "_classes", dict(REGISTRY._classes))


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


@pytest.mark.data
def test_compare_with_spikingjelly(real_data, tmp_path, monkeypatch):
    methods = ["SpikingJelly LocalThresholdBalancing", "optimized_potential"]
    weights, folder = real_data("weights/akamaster_resnet20-12fca82f.th"), real_data("cifar10.npz").parent
    arguments = ["--weights", str(weights), "--data", str(folder)]
    arguments += ["--images", "200", "--timesteps", "2", "8", "--methods", *methods, "--output", str(tmp_path / "c.md")]
    monkeypatch.setattr(sys, "argv", ["compare_with_spikingjelly.py", *arguments])
    runpy.run_path(str(EXAMPLES / "compare_with_spikingjelly.py"), run_name="__main__")
    rows = [row.split("|")[1:-1] for row in (tmp_path / "c.md").read_text().splitlines()]
    assert [row[0].strip() for row in rows[2:]] == methods
    assert float(rows[3][2].strip().rstrip("%")) > 60
