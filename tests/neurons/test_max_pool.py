"""Max-pools over time: running sums are pooled, so that the pooled currents add up to the maximum of the sums."""

import pytest
import torch
from torch import nn

from snn_lowlat.neurons import (
    MAX_POOLS,
    cumulative_max_pool,
    cumulative_max_pool_step,
    is_cumulative,
    max_pool_window,
)
from snn_lowlat.neurons.max_pool import per_step

POOLS = {
    "of pairs": (nn.MaxPool1d(2), (12,)),
    "that overlaps": (nn.MaxPool2d(3, stride=2, padding=1), (9, 8)),
    "dilated": (nn.MaxPool2d(2, stride=1, dilation=3), (9, 8)),
    "of uneven windows": (nn.MaxPool2d((2, 3), ceil_mode=True), (7, 8)),
    "of volumes": (nn.MaxPool3d(2, padding=1), (4, 5, 6)),
}


@pytest.fixture(params=POOLS)
def pool_and_currents(request):
    pool, shape = POOLS[request.param]
    return pool, torch.randn(6, 3, 2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_pooled_currents_add_up_to_the_pooled_sums(pool_and_currents):
    pool, currents = pool_and_currents
    pooled, _ = cumulative_max_pool(pool, currents)
    expected = torch.stack([pool(sums) for sums in currents.cumsum(0)])
    torch.testing.assert_close(pooled.cumsum(0), expected)


def test_steps_one_by_one_and_in_parts_give_the_same(pool_and_currents):
    pool, currents = pool_and_currents
    whole, _ = cumulative_max_pool(pool, currents)
    state, steps = None, []
    for current in currents:
        pooled, state = cumulative_max_pool_step(pool, current, state)
        steps.append(pooled)
    assert torch.equal(torch.stack(steps), whole)
    first, state = cumulative_max_pool(pool, currents[:2])
    second, _ = cumulative_max_pool(pool, currents[2:], state)
    assert torch.equal(torch.cat([first, second]), whole)


def test_constant_currents_are_pooled_without_rounding(pool_and_currents):
    pool, currents = pool_and_currents
    still = currents[:1].float().expand(8, *currents.shape[1:])
    pooled, _ = cumulative_max_pool(pool, still)
    assert torch.equal(pooled, pool(still[0]).expand_as(pooled))


def test_gradients_pass(pool_and_currents):
    pool, currents = pool_and_currents
    currents = currents[:3, :1].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: cumulative_max_pool(pool, x)[0], currents)


def test_channels_stay_last_in_memory():
    currents = torch.randn(4 * 3, 2, 6, 6).contiguous(memory_format=torch.channels_last)
    pooled = max_pool_window(nn.MaxPool2d(2), currents, 4)
    assert pooled.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(pooled, max_pool_window(nn.MaxPool2d(2), currents.contiguous(), 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("pool", "size"),
    [
        (nn.MaxPool2d(2), (8, 6)),
        (nn.MaxPool2d(3, 2, 1), (9, 8)),
        (nn.MaxPool2d((2, 3), (1, 2), (0, 1), ceil_mode=True), (7, 8)),
        (nn.MaxPool2d(2, 1, dilation=3), (9, 8)),
    ],
    ids=str,
)
@pytest.mark.parametrize("channels", [1, 3, 300])
def test_the_compiled_loop_gives_the_same_to_the_last_bit(pool, size, channels, dtype):
    generator = torch.Generator().manual_seed(0)
    currents = torch.randn(5 * 2, channels, *size, dtype=dtype, generator=generator).round(decimals=1)
    currents = currents.to(memory_format=torch.channels_last)
    found = max_pool_window(pool, currents, 5)
    expected, _ = cumulative_max_pool(pool, currents.unflatten(0, (5, 2)))
    assert torch.equal(found, expected.flatten(0, 1))
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_a_pool_of_each_step_is_torchs_own(pool_and_currents):
    pool, currents = pool_and_currents
    other = per_step(pool)
    assert isinstance(other, MAX_POOLS)
    assert (is_cumulative(pool), is_cumulative(other), is_cumulative(nn.ReLU())) == (True, False, False)
    folded = currents.flatten(0, 1)
    assert torch.equal(max_pool_window(other, folded, len(currents)), pool(folded))


def test_uneven_currents_are_not_overestimated():
    """A pool of each step's currents finds the largest of the noise; that of the sums finds the largest mean."""
    means = torch.tensor([1.0, 0.9, 0.5, 0.2])
    noise = torch.randn(256, 50, 4, generator=torch.Generator().manual_seed(0))
    currents = (means + noise).view(256, 50, 1, 4)
    pool = nn.MaxPool1d(4)
    assert abs(max_pool_window(pool, currents.flatten(0, 1), 256).mean() - 1.0) < 0.1
    assert max_pool_window(per_step(pool), currents.flatten(0, 1), 256).mean() > 1.5
