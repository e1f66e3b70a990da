from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import torch
from torch import distributed, nn

from snn_lowlat.calibration import SiteStatistics, calibrate
from snn_lowlat.graph import normalise

PROCESSES = 2


def calibrated(images: torch.Tensor) -> dict[str, SiteStatistics]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 3))
    return calibrate(normalise(network, torch.zeros(2, 1, 6, 6)), images.split(7))


def pictures() -> torch.Tensor:
    return torch.randn(50, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def work(rank: int, folder: Path, shares: list[int]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder / 'rendezvous'}", rank=rank, world_size=PROCESSES)
    share = pictures().split(shares)[rank]
    found = {name: vars(site.histogram) for name, site in calibrated(share).items()}
    torch.save(found, folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.parametrize("shares", [[20, 30], [0, 50]])
def test_processes_find_together_what_one_would_find(tmp_path: Path, shares: list[int]) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work, args=(rank, tmp_path, shares)) for rank in range(PROCESSES)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    expected = calibrated(pictures())
    for rank in range(PROCESSES):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found.keys() == expected.keys()
        for name, site in expected.items():
            histogram = type(site.histogram)(1)
            vars(histogram).update(found[name])
            assert histogram.count == site.histogram.count
            assert torch.equal(histogram.counts, site.histogram.counts)
            assert torch.equal(histogram.quantile(0.999), site.histogram.quantile(0.999))
            torch.testing.assert_close(histogram.mean, site.histogram.mean)
