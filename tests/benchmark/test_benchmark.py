from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor, fx, nn

import snn_lowlat.benchmark
from snn_lowlat import SitePlan, convert
from snn_lowlat.benchmark import run_benchmark
from snn_lowlat.benchmark.contestants import ANN, OURS, by_spikingjelly, multi_step, step_by_step
from snn_lowlat.benchmark.fine_tuning import _ours, _spikingjelly
from snn_lowlat.benchmark.measuring import Times, _extra_memory, alternate, extra_memory
from snn_lowlat.benchmark.networks import Subject, make_subject, smooth_images
from snn_lowlat.benchmark.presenting import Result, rows, tables
from snn_lowlat.benchmark.tasks import TASKS
from snn_lowlat.config import ConfigError, checked
from snn_lowlat.errors import SnnLowlatError
from snn_lowlat.graph import find_sites
from snn_lowlat.hosts import get_backend
from snn_lowlat.models import ResNet, SmallCNN
from snn_lowlat.run import run
from tests import hydra_runs

CONTESTANTS = TASKS["simulation"].contestants

STEPS, MULTI, SNNTORCH, INT8 = (
    "SpikingJelly, step by step",
    "SpikingJelly, multi-step",
    "snnTorch, step by step",
    "snn_lowlat, int8",
)
TINY = (
    "+experiment=benchmark",
    "calibration={images: 8, batch_size: 4}",
    "benchmark.networks={resnet20: null, vgg16: null}",
    "benchmark.timesteps=[1,2]",
    "benchmark.batch_sizes=[2]",
    "benchmark.rounds=2",
    "benchmark.memory=false",
)
SMALL = ("+benchmark.networks.tiny={_target_: snn_lowlat.models.SmallCNN, width: 4}", "benchmark.input_shape=[1,8,8]")
RESIDUAL = (
    "+benchmark.networks.tiny={_target_: snn_lowlat.models.ResNet, blocks: 1, channels: [4, 8]}",
    "benchmark.input_shape=[3,8,8]",
)
PADDED = ("+benchmark.networks.tiny._target_=test_benchmark.Padded", "benchmark.input_shape=[1,8,8]")


def composed(*overrides: str, network: tuple[str, ...] = SMALL) -> DictConfig:
    return checked(hydra_runs.composed(*TINY, *network, *overrides))


def read(folder: Path) -> list[dict[str, str]]:
    with (folder / "benchmark.csv").open() as file:
        return list(csv.DictReader(file))


def outputs(subject: Subject, name: str, timesteps: int) -> Tensor:
    images = smooth_images(3, subject.calibration[0].shape[1:], seed=5)
    with torch.inference_mode():
        run_once = CONTESTANTS[name].prepare(subject, timesteps)
        first = run_once(images)
        # A run starts from rest.
        torch.testing.assert_close(run_once(images), first)
    return first


def test_one_command_from_end_to_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    weighed = []

    def weigh(config: DictConfig, network: str, contestant: str, timesteps: int, batch_size: int) -> float:
        # A process for each would take long.
        weighed.append(contestant)
        if contestant == OURS:
            return extra_memory(config, network, contestant, timesteps, batch_size)
        if contestant == STEPS:
            raise OSError("nobody knows")
        return 4.0

    monkeypatch.setattr(snn_lowlat.benchmark, "extra_memory", weigh)
    ratio = run(hydra_runs.composed(*TINY, *SMALL, "benchmark.memory=true"), tmp_path)
    found = read(tmp_path)
    assert [row["contestant"] for row in found] == 2 * list(CONTESTANTS)
    assert [int(row["timesteps"]) for row in found] == [1] * 6 + [2] * 6
    assert {row["network"] for row in found} == {"tiny"}
    assert {row["batch_size"] for row in found} == {"2"}
    assert {row["threads"] for row in found} == {"1"}
    assert {row["weights"] for row in found} == {"random"}
    assert found[0]["torch"] == torch.__version__.split("+")[0]
    assert all(found[0][key] for key in ("cpu", "seed", "spikingjelly", "snntorch", "numba", "snn_lowlat"))
    for row in found:
        if row["error"]:
            assert row["contestant"] == INT8
            continue
        assert row["rounds"] == "2"
        for kind in ("cpu", "wall"):
            low, middle, high = (float(row[f"{kind}_seconds{part}"]) for part in ("_q1", "", "_q3"))
            assert 0 < low <= middle <= high
            assert float(row[f"{kind}_ratio"]) > 0
    assert [row["precision"] for row in found] == 2 * [*["fp32"] * 5, "int8"]
    assert float(next(row for row in found[6:] if row["contestant"] == OURS)["cpu_ratio"]) == ratio
    assert weighed == [row["contestant"] for row in found[6:] if not row["error"]]
    assert not any(row["extra_memory_mib"] for row in found[:6])
    assert 0 <= float(next(row for row in found[6:] if row["contestant"] == OURS)["extra_memory_mib"]) < 200
    assert next(row for row in found[6:] if row["contestant"] == SNNTORCH)["memory_ratio"] == "1.0"
    assert next(row for row in found[6:] if row["contestant"] == STEPS)["memory_error"] == "OSError: nobody knows"
    with Image.open(tmp_path / "benchmark.png") as picture:
        assert picture.format == "PNG"
    assert (tmp_path / "config.yaml").is_file()
    printed = capsys.readouterr().out
    for word in ("1 thread", "torch", "T = 2", *CONTESTANTS, "nobody knows"):
        assert word in printed


@pytest.mark.parametrize("network", [SMALL, RESIDUAL], ids=["plain", "residual"])
def test_contestants_compute_what_they_should(network: tuple[str, ...]) -> None:
    subject = make_subject(composed(network=network), "tiny")
    images = smooth_images(3, subject.calibration[0].shape[1:], seed=5)
    with torch.no_grad():
        torch.testing.assert_close(outputs(subject, ANN, 4), subject.model(images), rtol=1e-4, atol=1e-5)
    options = {"strategy": "optimized_potential", "timesteps": 4}
    snn = convert(subject.model, subject.calibration, **options)
    host = get_backend("spikingjelly").run(snn.network, images.expand(4, *images.shape)).mean(0)
    torch.testing.assert_close(outputs(subject, OURS, 4), host, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs(subject, MULTI, 4), outputs(subject, STEPS, 4))
    options = {"strategy": "threshold_balancing", "threshold": "percentile", "backend": "snntorch", "timesteps": 4}
    ours = convert(subject.model, subject.calibration, **options)(images)
    torch.testing.assert_close(outputs(subject, SNNTORCH, 4), ours, rtol=1e-4, atol=1e-5)
    for name in set(CONTESTANTS) - {ANN, INT8}:
        # Many steps come near to the ANN.
        difference = outputs(subject, name, 128) - outputs(subject, ANN, 1)
        assert float(difference.norm() / outputs(subject, ANN, 1).norm()) < 0.25


def percentiles(subject: Subject, timesteps: int) -> tuple[fx.GraphModule, dict[str, SitePlan]]:
    """The network, with the thresholds that SpikingJelly's converter finds."""
    scales = [layer for layer in by_spikingjelly(subject).modules() if type(layer).__name__ == "VoltageScaler"]
    thresholds = [layer.scale.clone().flatten()[0] for layer in scales[1::2]]
    plan = [SitePlan(threshold, torch.tensor(0.0), threshold) for threshold in thresholds]
    return subject.graph, dict(zip(find_sites(subject.graph), plan, strict=True))


@pytest.mark.parametrize("network", [SMALL, RESIDUAL], ids=["plain", "residual"])
def test_fine_tuning_finds_the_gradients_of_the_host(network: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    subject = make_subject(composed(network=network), "tiny")
    images = smooth_images(3, subject.calibration[0].shape[1:], seed=5)
    monkeypatch.setattr("snn_lowlat.benchmark.fine_tuning.at_percentiles", percentiles)
    prepared = _ours(thresholds=False), _ours(thresholds=True), _spikingjelly(step_by_step), _spikingjelly(multi_step)
    logits, gradients = [], []
    for prepare in prepared:
        module, run_once = prepare(subject, 3)
        module.train()
        outputs = run_once(images)
        outputs.square().sum().backward()
        logits.append(outputs.detach())
        gradients.append({name.removeprefix("graph."): each.grad for name, each in module.named_parameters()})
    weights = [name for name in gradients[0] if name.endswith(("weight", "bias"))]
    assert len(weights) >= 6
    assert sum(gradient is not None for gradient in gradients[0].values()) == len(weights)
    for found, outputs in zip(gradients, logits, strict=True):
        torch.testing.assert_close(outputs, logits[0])
        for name in weights:
            torch.testing.assert_close(found[name], gradients[0][name], rtol=1e-4, atol=1e-5)


def test_batches_of_fine_tuning_start_from_rest_and_without_gradients() -> None:
    subject = make_subject(composed(), "tiny")
    images = smooth_images(3, subject.calibration[0].shape[1:], seed=5)
    for contestant in TASKS["fine_tuning"].contestants.values():
        run_once = contestant.prepare(subject, 3)
        first, second = run_once(images), run_once(images)
        assert not first.requires_grad
        torch.testing.assert_close(second, first)


def test_the_benchmark_of_fine_tuning_is_one_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = list(TASKS["fine_tuning"].contestants)
    config = hydra_runs.composed("+experiment=benchmark_fine_tuning", *TINY[1:], *SMALL)
    assert config.benchmark.task == "fine_tuning"
    ratio = run(config, tmp_path)
    found = read(tmp_path)
    assert [row["contestant"] for row in found] == 2 * names
    assert {row["task"] for row in found} == {"fine_tuning"}
    assert not any(row["error"] for row in found)
    assert float(next(row for row in found[6:] if row["contestant"] == OURS)["cpu_ratio"]) == ratio
    assert "a batch of fine-tuning" in capsys.readouterr().out
    # In this process: another would take long to start.
    assert 0 <= _extra_memory(checked(config), "tiny", OURS, 2, 2, torch.get_num_threads()) < 200


def test_networks_are_the_same_each_time_and_their_batch_norms_fit() -> None:
    first, second = (make_subject(composed(), "tiny") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True))
    norms = [module for module in first.model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(norm.momentum == 0.1 and not norm.training for norm in norms)
    hidden = first.model.features[0][:2](torch.cat(first.calibration))  # type: ignore[index]
    assert torch.allclose(hidden.std((0, 2, 3)), torch.ones(4), atol=0.2)


def test_weights_can_be_trained_ones(tmp_path: Path) -> None:
    trained = SmallCNN(width=4)
    torch.save(trained.state_dict(), tmp_path / "ann.pt")
    subject = make_subject(composed(f"+benchmark.weights.tiny={tmp_path / 'ann.pt'}"), "tiny")
    images = torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(subject.model(images), trained.eval()(images))
    assert subject.weights == str(tmp_path / "ann.pt")


def test_a_contestant_that_fails_is_listed_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def forward(self: nn.Module, images: Tensor) -> Tensor:
        raise RuntimeError("no [memory] left")

    monkeypatch.setattr("snntorch.Leaky.forward", forward)
    monkeypatch.setattr("snn_lowlat.benchmark.contestants.has_integer_kernels", lambda: False)
    assert run_benchmark(composed("benchmark.timesteps=[2]"), tmp_path) > 0
    failed = {row["contestant"]: row["error"] for row in read(tmp_path) if row["error"]}
    assert failed[SNNTORCH] == "RuntimeError: no [memory] left"
    assert "no exact convolutions of 8 bits" in failed[INT8]
    assert set(failed) == {SNNTORCH, INT8}
    printed = " ".join(capsys.readouterr().out.split())
    assert "snnTorch, step by step: RuntimeError: no [memory] left" in printed


def test_a_host_that_cannot_convert_a_network_is_listed(tmp_path: Path) -> None:
    """SpikingJelly's converter refuses to pad pixels."""
    run_benchmark(composed(network=PADDED), tmp_path)
    failed = {row["contestant"]: row["error"] for row in read(tmp_path) if row["error"]}
    assert {STEPS, MULTI} <= set(failed) <= {STEPS, MULTI, INT8}
    assert "ConstantPad2d" in failed[STEPS]


class Padded(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.ZeroPad2d(1), nn.Conv2d(1, 4, 3), nn.ReLU(), nn.ConstantPad2d(1, 0.0), nn.Conv2d(4, 2, 3), nn.Flatten()
        )


class NoModule:
    def __init__(self, width: int) -> None:
        self.width = width


def test_our_own_failure_gives_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*arguments: object, **options: object) -> None:
        raise SnnLowlatError("not today")

    monkeypatch.setattr("snn_lowlat.benchmark.contestants.convert", refuses)
    assert math.isnan(run_benchmark(composed("benchmark.timesteps=[1]"), tmp_path))
    assert {row["error"] for row in read(tmp_path) if row["contestant"] == OURS} == {"SnnLowlatError: not today"}


def test_a_finished_setting_is_kept_when_a_later_one_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def fails_later(*arguments: object, **options: object) -> object:
        called.append(arguments)
        if len(called) == 2:
            raise MemoryError
        return alternate(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(snn_lowlat.benchmark, "alternate", fails_later)
    with pytest.raises(MemoryError):
        run_benchmark(composed(), tmp_path)
    assert [row["timesteps"] for row in read(tmp_path)] == ["1"] * 6


def test_ratios_are_those_of_the_medians() -> None:
    setting = {"task": "simulation", "network": "tiny", "timesteps": 4, "batch_size": 2, "weights": "random"}
    results = [
        Result(contestant=OURS, times=Times((6.0, 2.0, 90.0), (8.0, 8.0, 8.0)), memory=3.0, **setting),
        Result(contestant=ANN, times=Times((1.0, 2.0, 3.0), (4.0, 2.0, 9.0)), memory=2.0, **setting),
        Result(contestant=STEPS, error="no", **setting),
        Result(contestant=ANN, times=Times((100.0, 100.0), (1.0, 1.0)), **{**setting, "batch_size": 9}),
    ]
    facts = dict.fromkeys(("cpu", "torch", "spikingjelly", "snntorch", "numba", "snn_lowlat"), "1")
    ours, ann, failed, other = rows(results, {**facts, "threads": 1, "seed": 0})
    assert (ours["cpu_seconds"], ours["cpu_ratio"], ours["wall_ratio"]) == (6.0, 3.0, 2.0)
    assert (ours["cpu_seconds_q1"], ours["cpu_seconds_q3"]) == (4.0, 48.0)
    assert (ours["rounds"], ours["memory_ratio"]) == (3, 1.5)
    assert (ann["cpu_ratio"], other["cpu_ratio"]) == (1.0, 1.0)
    assert failed["cpu_seconds"] is failed["cpu_ratio"] is None
    assert tables([ours, ann, failed])[0].row_count == 3


def counting() -> tuple[list[str], Callable[[str], Callable[[], None]]]:
    order: list[str] = []
    return order, lambda name: lambda: order.append(name)


def test_contestants_take_turns() -> None:
    order, named = counting()
    times, errors = alternate({"a": named("a"), "b": named("b")}, rounds=3, seconds=60)
    assert "".join(order) == "abababab"
    assert [len(each.cpu) for each in times.values()] == [3, 3]
    assert not errors
    order.clear()
    times, _ = alternate({"a": named("a"), "b": named("b")}, rounds=2, seconds=60, twice=True)
    assert "".join(order) == "aabbaabbaabb"
    assert [len(each.cpu) for each in times.values()] == [2, 2]


def test_rounds_end_with_the_time_for_them_but_there_are_two() -> None:
    order, named = counting()
    times, _ = alternate({"a": named("a")}, rounds=9, seconds=0)
    assert len(order) == 3
    assert len(times["a"].wall) == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+benchmark.step=1"], r"benchmark\.step.*timesteps"),
        (["benchmark.task=simulations"], "benchmark.task: .*Did you mean 'simulation'"),
        (["benchmark.timesteps=[]"], r"benchmark\.timesteps must be"),
        (["benchmark.timesteps=[1,x]"], r"benchmark\.timesteps.*x"),
        (["benchmark.batch_sizes=[0]"], r"benchmark\.batch_sizes must be"),
        (["benchmark.input_shape=[3]"], r"benchmark\.input_shape must be \[channels"),
        (["benchmark.rounds=1"], r"benchmark\.rounds must be a whole number of at least 2"),
        (["benchmark.seconds=-1"], r"benchmark\.seconds"),
        (["benchmark.networks.tiny=null"], r"benchmark\.networks must hold"),
        (["benchmark.networks.tiny=3"], r"benchmark\.networks\.tiny must be a mapping"),
        (["~benchmark.networks.tiny._target_"], r"benchmark\.networks\.tiny needs _target_"),
        (["+benchmark.networks.tiny.widht=3"], "Did you mean 'width'"),
        (["benchmark.networks.tiny._target_=test_benchmark.NoModule"], "torch module, not NoModule"),
        (["benchmark.input_shape=[3,2,2]"], r"benchmark\.networks\.tiny: image_size"),
        (["+benchmark.networks.tiny.in_channels=2"], r"benchmark\.networks\.tiny: .*channels"),
        (["+benchmark.weights.small=w.pt"], r"benchmark\.weights.*small.*tiny"),
        (["+benchmark.weights.tiny=/nowhere.pt"], r"benchmark\.weights\.tiny: .*nowhere"),
        (["device=cuda"], "device must be auto or cpu"),
    ],
)
def test_config_errors_name_the_key(overrides: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        run(hydra_runs.composed(*TINY, *SMALL, *overrides), tmp_path)


def test_images_are_smooth_and_normalised() -> None:
    images = smooth_images(8, (3, 32, 32), seed=1)
    assert images.shape == (8, 3, 32, 32)
    assert abs(float(images.mean())) < 1e-5
    assert float(images.std()) == pytest.approx(1)
    assert float((images[..., 1:] - images[..., :-1]).std()) < 0.5
    assert torch.equal(images, smooth_images(8, (3, 32, 32), seed=1))


def test_zero_channels_are_concatenated_for_a_converter_that_does_not_pad() -> None:
    from snn_lowlat.benchmark.contestants import _with_concatenated_zeros
    from snn_lowlat.graph import normalise

    images = torch.randn(2, 3, 8, 8)
    graph = normalise(ResNet(1, channels=(3, 6)), images)
    with torch.no_grad():
        assert torch.equal(_with_concatenated_zeros(graph)(images), graph(images))
