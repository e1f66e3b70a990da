from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import RunMode
from omegaconf import OmegaConf
from PIL import Image

from snn_lowlat.evaluation import Cost, Report, write_json
from snn_lowlat.evaluation.leaderboard import LeaderboardCallback, read_runs, write_leaderboard


def cost(energy: float) -> Cost:
    return Cost(1, 2, 3, 4, 5, 6, {"fp32_45nm": energy}, images=10)


def report(strategy: str, timesteps: int, accuracy: float, *, energy: float | None = None, seed: int = 0) -> Report:
    costs: dict[str, Any] = {}
    if energy is not None:
        costs = {"costs": {1: cost(energy / 2), timesteps: cost(energy)}, "ann_cost": cost(50_000.0)}
    return Report(
        strategy=strategy,
        accuracies={1: 0.1, timesteps: accuracy},
        latencies={1: 1, timesteps: timesteps},
        firing_rates={},
        images=40,
        backend="spikingjelly",
        encoder="direct",
        seed=seed,
        ann_accuracy=0.9,
        dataset="digits",
        model="small",
        **costs,
    )


def run(folder: Path, name: str, *reports: Report, formats: tuple[str, ...] = (), error: str | None = None) -> None:
    place = folder / name
    place.mkdir(parents=True)
    (place / "job.json").write_text(json.dumps({"overrides": [f"seed={name}", "timesteps=4"]}))
    OmegaConf.save({"report": {"formats": list(formats), "energy": ["fp32_45nm"]}}, place / "config.yaml")
    if reports:
        write_json(reports, place / "results.json")
    if error is not None:
        (place / "error.txt").write_text(error)


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "leaderboard.csv").open() as file:
        return list(csv.DictReader(file))


def test_runs_are_compared_by_accuracy_and_failures_are_listed(tmp_path: Path) -> None:
    run(tmp_path, "0", report("value_range", 4, 0.7, energy=2000), report("threshold_balancing", 4, 0.2, energy=1000))
    run(tmp_path, "1", error="ConfigError: no | luck")
    run(tmp_path, "2", report("value_range", 8, 0.895, energy=4000))
    run(tmp_path, "10")
    runs = write_leaderboard(tmp_path)
    assert [found.name for found in runs] == ["0", "1", "2", "10"]
    rows = table(tmp_path)
    assert [(row["run"], row["strategy"], row["timesteps"], row["error"]) for row in rows] == [
        ("2", "value_range", "8", ""),
        ("0", "value_range", "4", ""),
        ("0", "threshold_balancing", "4", ""),
        ("1", "", "", "ConfigError: no | luck"),
        ("10", "", "", "it did not finish"),
    ]
    assert (rows[0]["steps_within_1"], rows[1]["steps_within_1"]) == ("8", "")
    assert (rows[0]["energy_nj_fp32_45nm"], rows[0]["ann_energy_nj_fp32_45nm"]) == ("4.0", "50.0")
    text = (tmp_path / "leaderboard.md").read_text()
    assert text.index("| 2 | value_range |") < text.index("| 0 | value_range |") < text.index("| - | ANN |")
    assert r"ConfigError: no \| luck" in text
    assert "it did not finish" in text
    with Image.open(tmp_path / "pareto.png") as picture:
        assert picture.format == "PNG"
    assert not list(tmp_path.glob("report*"))


def test_what_a_killed_run_has_found_is_listed_as_unfinished(tmp_path: Path) -> None:
    run(tmp_path, "0", report("value_range", 4, 0.7))
    (tmp_path / "0" / "run.json").write_text('{"run": "", "finished": false}')
    write_leaderboard(tmp_path)
    assert [(row["accuracy"], row["error"]) for row in table(tmp_path)] == [("0.7", ""), ("", "it did not finish")]
    (tmp_path / "0" / "run.json").write_text('{"run": "", "finished": true, "returned": 0.7}')
    write_leaderboard(tmp_path)
    assert [row["error"] for row in table(tmp_path)] == [""]


def test_without_energies_accuracy_stands_against_latency(tmp_path: Path) -> None:
    run(tmp_path, "0", report("value_range", 4, 0.7))
    write_leaderboard(tmp_path)
    assert "pareto.png" in (tmp_path / "leaderboard.md").read_text()
    assert (tmp_path / "pareto.png").is_file()
    assert "energy" not in (tmp_path / "leaderboard.csv").read_text()


def test_runs_that_made_reports_are_reported_together(tmp_path: Path) -> None:
    run(tmp_path, "0", report("value_range", 4, 0.7, energy=2000), formats=("html",))
    run(tmp_path, "1", report("value_range", 8, 0.8, energy=3000), formats=("html",))
    run(tmp_path, "2", error="no luck")
    write_leaderboard(tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert "value_range, T = 4" in text
    assert "value_range, T = 8" in text
    assert "no luck" in text


def test_only_failures_and_nothing_at_all(tmp_path: Path) -> None:
    assert write_leaderboard(tmp_path) == []
    assert not list(tmp_path.iterdir())
    run(tmp_path, "0", error="no luck")
    write_leaderboard(tmp_path)
    assert table(tmp_path) == [{"run": "0", "overrides": "seed=0 timesteps=4", "error": "no luck"}]
    assert "no luck" in (tmp_path / "leaderboard.md").read_text()


def job(folder: Path, mode: RunMode = RunMode.MULTIRUN) -> Any:
    overrides, runtime = SimpleNamespace(task=["seed=3"]), SimpleNamespace(output_dir=str(folder))
    return SimpleNamespace(hydra=SimpleNamespace(mode=mode, runtime=runtime, overrides=overrides))


def test_the_callback_notes_what_a_run_is_before_it_begins(tmp_path: Path) -> None:
    for name, content in (("0", "[]\n"), ("1", "")):
        (tmp_path / name / ".hydra").mkdir(parents=True)
        (tmp_path / name / ".hydra" / "overrides.yaml").write_text(content)
        LeaderboardCallback().on_job_start(job(tmp_path / name))
    (found, other) = read_runs(tmp_path)
    assert found.overrides == other.overrides == ("seed=3",)
    assert found.error == other.error == "it did not finish"


def test_the_callback_notes_errors_and_forgets_them(tmp_path: Path) -> None:
    run(tmp_path, "0", report("value_range", 4, 0.7))
    callback = LeaderboardCallback()
    failed = JobReturn(status=JobStatus.FAILED)
    failed.return_value = ValueError("no luck")
    callback.on_job_end(job(tmp_path / "0"), failed)
    assert read_runs(tmp_path)[0].error == "ValueError: no luck"
    assert read_runs(tmp_path)[0].reports
    callback.on_job_end(job(tmp_path / "0"), JobReturn(status=JobStatus.COMPLETED))
    assert read_runs(tmp_path)[0].error is None
    callback.on_job_end(job(tmp_path / "0", RunMode.RUN), failed)
    assert read_runs(tmp_path)[0].error is None


def test_the_callback_compares_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registered: list[Any] = []
    monkeypatch.setattr("atexit.register", registered.append)
    run(tmp_path, "0", report("value_range", 4, 0.7))
    callback = LeaderboardCallback()
    config: Any = SimpleNamespace(hydra=SimpleNamespace(sweep=SimpleNamespace(dir=str(tmp_path))))
    callback.on_multirun_start(config)
    callback.on_multirun_end(config)
    assert (tmp_path / "leaderboard.md").is_file()
    (tmp_path / "leaderboard.md").unlink()
    for compare in registered:
        compare()
    assert not (tmp_path / "leaderboard.md").exists()
    assert json.loads((tmp_path / "0" / "results.json").read_text())["accuracy"] == 0.7


PROGRAM = """
import sys, hydra
from pathlib import Path
from hydra.core.hydra_config import HydraConfig
sys.path[:0] = {folders!r}
from test_leaderboard import report
from snn_lowlat.evaluation import write_json

@hydra.main(version_base="1.3", config_path={folder!r}, config_name="config")
def main(config):
    folder = Path(HydraConfig.get().runtime.output_dir)
    write_json([report("value_range", config.timesteps, 1 / config.chance)], folder / "results.json")

main()
"""


def test_a_sweep_with_a_failed_run_ends_with_the_comparison(tmp_path: Path) -> None:
    """Hydra does not call back at the end of such a sweep."""
    callback = "{_target_: snn_lowlat.evaluation.leaderboard.LeaderboardCallback}"
    config = f"timesteps: 4\nchance: 2\nhydra: {{callbacks: {{leaderboard: {callback}}}, sweep: {{dir: sweep}}}}\n"
    (tmp_path / "config.yaml").write_text(config)
    here = Path(__file__).resolve().parent
    program = PROGRAM.format(folders=[str(here), str(here.parents[1])], folder=str(tmp_path))
    (tmp_path / "program.py").write_text(program)
    arguments = [sys.executable, "program.py", "--multirun", "chance=2,0,4"]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    rows = table(tmp_path / "sweep")
    assert [(row["run"], row["accuracy"]) for row in rows] == [("0", "0.5"), ("2", "0.25"), ("1", "")]
    assert rows[2]["error"] == "ZeroDivisionError: division by zero"
    assert "leaderboard.md" in done.stdout
