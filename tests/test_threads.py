"""Several threads call one network at once, as servers do; each gets what it would get alone."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import count

import pytest
import torch
from torch import nn

import snn_lowlat
from snn_lowlat.errors import SnnLowlatError
from snn_lowlat.hosts import BACKENDS

THREADS = 8
STRATEGIES = ("optimized_potential", "value_range", "temporal_switch")
WAYS = ("call", "simulate", "readout", "observe", "events", "on host", "count")


class Residual(nn.Module):
    """A pool of currents, a shortcut, and sums of spikes."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.third, self.last = nn.Conv2d(6, 4, 3, padding=1), nn.Linear(64, 3)

    def forward(self, x):
        x = torch.relu(self.first(x))
        x = torch.relu(self.second(x) + x)
        return self.last(torch.relu(nn.functional.max_pool2d(self.third(x), 2)).flatten(1))


@lru_cache
def converted(backend, precision, strategy):
    torch.manual_seed(0)
    images = torch.rand(32, 1, 8, 8)
    options = {"backend": backend, "precision": precision, "strategy": strategy}
    return snn_lowlat.convert(Residual().eval(), images, timesteps=4, **options)


def run(snn, way, images):
    """Return everything that one call says."""
    seen = {}

    def observe(name, spikes):
        seen.setdefault(name, []).append(spikes.float().sum((0, *range(2, spikes.dim()))))

    if way == "count":
        if not snn.is_counted:
            return [snn(images)]
        logits = snn.count(images, observe=lambda name, mean: seen.setdefault(name, []).append(mean))
    elif way == "observe":
        logits = snn.readout(images, observe=observe)
    elif way == "events":
        logits, events = snn.simulate(images, record_events=True)
        seen = {"events": [torch.as_tensor(getattr(events, key)) for key in ("layer", "image", "neuron", "time")]}
    elif way == "readout":
        logits = snn.readout(images, timesteps=3)
    else:
        logits = snn(images) if way == "call" else snn.simulate(images)
    return [logits, *(torch.cat(parts) for _, parts in sorted(seen.items()))]


def differences(calls, backend, precision, strategy):
    """Make so many calls from all threads, of random ways and sizes; return how many said something else."""
    snn, host = (copy.deepcopy(converted(backend, precision, strategy)) for _ in range(2))
    host.run_on_host = True
    images = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    cases = [(way, size) for way in WAYS for size in (1, 2, 5)]
    expected = {case: run(host if case[0] == "on host" else snn, case[0], images[: case[1]]) for case in cases}
    # New ones, so that threads find nothing prepared.
    snn, host = copy.deepcopy(snn), copy.deepcopy(host)
    start, numbers = threading.Barrier(THREADS), count()

    def work(thread):
        start.wait()
        wrong = 0
        while (number := next(numbers)) < calls:
            case = cases[(number * 5 + thread) % len(cases)]
            found = run(host if case[0] == "on host" else snn, case[0], images[: case[1]])
            same = len(found) == len(expected[case]) and all(map(torch.equal, found, expected[case]))
            wrong += not same
        return wrong

    with ThreadPoolExecutor(THREADS) as pool:
        return sum(pool.map(work, range(THREADS)))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_threads_get_what_they_would_get_alone(backend, precision, strategy):
    assert differences(40, backend, precision, strategy) == 0


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_thousand_calls_from_threads(backend, precision, strategy):
    assert differences(1000, backend, precision, strategy) == 0


def test_an_observer_that_runs_the_network_again_is_told_so():
    snn = copy.deepcopy(converted("spikingjelly", "fp32", "value_range"))
    images = torch.rand(2, 1, 8, 8)
    with pytest.raises(SnnLowlatError, match="while the network runs"):
        snn.count(images, observe=lambda *_: snn.count(images))
    assert torch.equal(snn(images), snn(images))
    # The simulation keeps nothing in the network.
    assert torch.equal(snn.readout(images, observe=lambda *_: snn.simulate(images)), snn.readout(images))
