"""Several processes that convert together get one network."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, fx, nn

import snn_lowlat
from snn_lowlat import SpikingModel
from snn_lowlat.plan import SitePlan
from snn_lowlat.processes import share_of
from snn_lowlat.refinement import BiasCorrection, ChannelThresholds, Refinement

PROCESSES = 2


@dataclass(frozen=True, eq=False)
class Foreign(Refinement):
    """One that knows nothing of other processes: it looks at its own images and at chance."""

    def refine(
        self, graph: fx.GraphModule, plan: dict[str, SitePlan], batches: Iterable[object], timesteps: int
    ) -> tuple[fx.GraphModule, dict[str, SitePlan]]:
        own = sum(float(batch.sum()) for batch in batches) + float(torch.rand(()))
        return graph, {name: replace(site, threshold=site.threshold * (1 + own % 1)) for name, site in plan.items()}


CASES: dict[str, dict[str, Any]] = {
    "bias_correction": {"refinements": [BiasCorrection(images=40)]},
    "windowed": {"strategy": "value_range", "refinements": [BiasCorrection(images=40)]},
    "int8": {"precision": "int8", "refinements": [BiasCorrection(images=40)]},
    "channel_thresholds": {"strategy": "value_range", "refinements": [ChannelThresholds(images=40)]},
    "from_outside": {"refinements": [Foreign(), BiasCorrection(images=40)]},
    "snntorch": {"backend": "snntorch", "refinements": [BiasCorrection(images=40)]},
}


def pictures() -> Tensor:
    return torch.rand(50, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def converted(images: Tensor, options: dict[str, Any], *, trained_apart: float = 0.0) -> SpikingModel:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    network[1].running_mean += trained_apart
    torch.manual_seed(int(images.sum()))
    batches = [] if len(images) == 0 else images.split(7)
    return snn_lowlat.convert(network, batches, timesteps=4, **options)


def state(snn: SpikingModel) -> dict[str, Tensor]:
    graph, plan = snn.normal_form()
    kinds = ("threshold", "initial_potential", "amplitude")
    planned = {f"{name}.{kind}": getattr(site, kind) for name, site in plan.items() for kind in kinds}
    return {**graph.state_dict(), **planned}


def convert_all(rank: int, folder: Path, shares: list[int], names: list[str]) -> None:
    share = pictures().split(shares)[rank]
    found = {name: state(converted(share, CASES[name], trained_apart=0.1 * rank)) for name in names}
    torch.save(found, folder / f"{rank}.pt")


def count_shares(rank: int, folder: Path) -> None:
    cases = [([5, 5], 6), ([5, 5], 7), ([1, 9], 6), ([9, 1], 6), ([0, 9], 6), ([2, 2], 9)]
    torch.save([share_of(available[rank], wanted) for available, wanted in cases], folder / f"{rank}.pt")


def in_a_process(rank: int, folder: Path, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder / 'rendezvous'}", rank=rank, world_size=PROCESSES)
    work(rank, folder, *arguments)
    distributed.destroy_process_group()


def in_processes(folder: Path, work: Callable[..., None], *arguments: Any) -> list[Any]:
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=in_a_process, args=(rank, folder, work, arguments)) for rank in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    return [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)]


@pytest.mark.parametrize("shares", [[20, 30], [0, 50]])
def test_processes_get_the_same_network_bit_for_bit(tmp_path: Path, shares: list[int]) -> None:
    first, second = in_processes(tmp_path, convert_all, shares, list(CASES))
    for name in CASES:
        assert first[name].keys() == second[name].keys()
        different = [key for key, value in first[name].items() if not torch.equal(value, second[name][key])]
        assert not different, (name, different)


def test_processes_find_together_what_one_would_find(tmp_path: Path) -> None:
    names = ["bias_correction", "windowed", "channel_thresholds"]
    first, _ = in_processes(tmp_path, convert_all, [20, 30], names)
    # Of 40 images, each process gives the first 20 of its share: those that one process would take.
    for name in names:
        for key, value in state(converted(pictures(), CASES[name])).items():
            torch.testing.assert_close(first[name][key], value, rtol=1e-4, atol=1e-5)


def test_each_process_gives_its_share(tmp_path: Path) -> None:
    first, second = in_processes(tmp_path, count_shares)
    assert list(zip(first, second, strict=True)) == [(3, 3), (4, 3), (1, 5), (5, 1), (0, 6), (2, 2)]
