"""Whether there are compiled loops, and how tensors and parameters lie before them."""

import itertools
import sys
import threading

import numpy as np
import pytest
import torch

from snn_lowlat.kernels import loops


@pytest.fixture(autouse=True)
def _forget():
    loops._have_loops.cache_clear()
    yield
    loops._have_loops.cache_clear()


def test_without_numba_there_are_none(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    assert not loops.usable(torch.zeros(2, 3))


def test_a_numba_that_fails_is_named_once(monkeypatch):
    def fail(_):
        raise RuntimeError("cannot cache function")

    pytest.importorskip("numba")
    monkeypatch.setattr(loops, "import_module", fail)
    with pytest.warns(UserWarning, match="Numba does not work here.*cannot cache"):
        assert not loops.usable(torch.zeros(2, 3))
    assert not loops.usable(torch.zeros(2, 3))


def test_only_floats_of_a_cpu_have_loops():
    pytest.importorskip("numba")
    assert loops.usable(torch.zeros(2, 3))
    assert loops.usable(torch.zeros(2, 3).double())
    assert not loops.usable(torch.zeros(2, 3).bfloat16())
    assert not loops.usable(torch.zeros(2, 3, device="meta"))


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 5), (2, 3, 4, 5), (1, 700, 2, 2), (2, 3, 2, 2, 2)])
@pytest.mark.parametrize("last", [False, True])
def test_patterns_repeat_as_channels_do_in_memory(shape, last):
    values = torch.arange(float(torch.Size(shape).numel())).view(shape)
    if last:
        values = values.movedim(1, -1).contiguous().movedim(-1, 1)
    order = loops.memory_order(values)
    assert values.permute(order).is_contiguous()
    assert values.permute(order).permute(loops.original_order(order)).shape == values.shape
    channel = torch.arange(shape[1]).view(1, -1, *[1] * (len(shape) - 2)).expand(shape)
    row = channel.permute(order).reshape(-1)
    pattern = torch.from_numpy(loops.pattern(np.arange(shape[1]), values, order))
    repeated = pattern.repeat(-(-len(row) // len(pattern)))[: len(row)]
    assert torch.equal(repeated, row)
    # Sums over a pattern come back to the channels.
    sums = loops.of_channels(np.ones((2, len(pattern))), values, order)
    assert np.array_equal(sums, np.full((2, shape[1]), len(pattern) / shape[1]))


@pytest.mark.parametrize(("neurons", "threads"), [(10, 4), (2**18, 1), (2**18 + 5, 3), (2**18, 100)])
def test_parts_cover_all_neurons_once(neurons, threads):
    before, done, names = torch.get_num_threads(), [], set()
    torch.set_num_threads(threads)
    try:
        loops.in_threads(
            lambda start, stop: (done.append((start, stop)), names.add(threading.current_thread().name)), neurons, 3, 7
        )
    finally:
        torch.set_num_threads(before)
    done.sort()
    assert done[0][0] == 0
    assert done[-1][1] == neurons
    assert all(stop == start for (_, stop), (start, _) in itertools.pairwise(done))
    assert all(start % 7 == 0 for start, _ in done)
    assert len(done) <= threads
    assert (len(done) > 1) == (threads > 1 and neurons > 2**17)
