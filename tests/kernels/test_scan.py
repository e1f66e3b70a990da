"""The fused pass over all steps fires the neurons' spikes, bit for bit, whatever the memory layout and the types."""

import pytest
import torch

from snn_lowlat.neurons import integrate_and_fire, per_channel
from snn_lowlat.plan import SitePlan
from snn_lowlat.simulation import SCANS, FusedNeurons

TIMESTEPS = 5
SHAPES = [(3, 7), (2, 5, 9), (2, 3, 8, 6), (2, 48, 7, 7), (1, 700, 3, 1), (2, 3, 4, 5, 2)]


def make_plan(channels, leak=None, dtype=torch.float32):
    generator = torch.Generator().manual_seed(channels)
    threshold, potential, amplitude = torch.rand(3, channels, generator=generator, dtype=dtype)
    neuron = "integrate_and_fire" if leak is None else "leaky_integrate_and_fire"
    return SitePlan(threshold + 0.5, potential, amplitude + 0.1, neuron, {} if leak is None else {"leak": leak})


def make_currents(shape, seed=0, dtype=torch.float32, last=False):
    currents = torch.randn(TIMESTEPS * shape[0], *shape[1:], generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return currents.contiguous(memory_format=torch.channels_last) if last else currents


def expected(plan, currents, timesteps=TIMESTEPS):
    spikes = integrate_and_fire(
        currents.unflatten(0, (timesteps, -1)), plan.threshold, plan.initial_potential, plan.parameters.get("leak", 1.0)
    ).flatten(0, 1)
    return spikes * per_channel(plan.amplitude, spikes)


@pytest.fixture(params=SCANS)
def scan(request):
    if request.param == "numba":
        pytest.importorskip("numba")
    return request.param


@pytest.mark.parametrize(
    ("shape", "last"),
    # Only images have channels last.
    [(shape, last) for shape in SHAPES for last in (False, True) if len(shape) == 4 or not last],
    ids=str,
)
@pytest.mark.parametrize("leak", [None, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_spikes_are_those_of_the_neuron(scan, shape, last, leak, dtype):
    plan, currents = make_plan(shape[1], leak), make_currents(shape, dtype=dtype, last=last)
    sent = FusedNeurons(plan, scan=scan)(currents, TIMESTEPS)
    assert sent.dtype == dtype
    assert torch.equal(sent, expected(plan, currents))
    assert 0 < (sent != 0).double().mean() < 1
    assert sent.is_contiguous(memory_format=torch.channels_last) or not last


@pytest.mark.parametrize("kind", [torch.float32, torch.uint8], ids=str)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_two_currents_are_added_up(scan, kind, last, scaled):
    shape = (2, 12, 5, 5)
    plan, currents = make_plan(12), make_currents(shape, last=last)
    other = (make_currents(shape, seed=1) > 0.5).to(kind)  # of either layout beside the first
    factor = torch.linspace(0.1, 2, 12) if scaled else None
    total = currents + (other.float() if factor is None else other.float() * per_channel(factor, currents))
    assert torch.equal(FusedNeurons(plan, factor, scan=scan)(currents, TIMESTEPS, other), expected(plan, total))


@pytest.mark.parametrize("other", [None, torch.float32, torch.uint8], ids=str)
@pytest.mark.parametrize("last", [False, True])
def test_spikes_may_take_the_place_of_the_currents(scan, other, last):
    shape = (2, 12, 7, 9)
    plan, currents = make_plan(12, 0.9), make_currents(shape, last=last)
    second = None if other is None else (make_currents(shape, seed=1) > 0.5).to(other)
    wanted = expected(plan, currents if second is None else currents + second)
    place = currents.data_ptr()
    sent = FusedNeurons(plan, scan=scan)(currents, TIMESTEPS, second, overwrite=True)
    assert torch.equal(sent, wanted)
    assert (sent.data_ptr() == place) == (scan == "numba")


@pytest.mark.parametrize("with_other", [False, True])
def test_still_currents_are_the_same_in_every_step(scan, with_other):
    plan, currents = make_plan(3), make_currents((4, 3, 4, 4), last=True)[:4]
    other = currents.flip(0) if with_other else None
    total = currents if other is None else currents + other
    sent = FusedNeurons(plan, scan=scan)(currents, TIMESTEPS, other, constant_in_time=True)
    assert torch.equal(sent, expected(plan, torch.cat([total] * TIMESTEPS)))


def test_one_value_serves_all_channels(scan):
    plan = SitePlan(torch.tensor(0.7), torch.tensor(0.35), torch.tensor(0.7))
    currents = make_currents((2, 6, 4, 4))
    assert torch.equal(FusedNeurons(plan, scan=scan)(currents, TIMESTEPS), expected(plan, currents))


def test_spikes_can_be_bytes(scan):
    plan = SitePlan(torch.tensor([3.0, 5.0]), torch.tensor([1.0, 2.0]), torch.ones(2))
    currents = make_currents((4, 2, 6, 6)).mul(4).round()
    sent = FusedNeurons(plan, dtype=torch.uint8, scan=scan)(currents, TIMESTEPS)
    assert sent.dtype == torch.uint8
    assert torch.equal(sent.float(), expected(plan, currents))


def test_threads_share_the_neurons(scan):
    """Enough of them that two threads are worth it, and a number that blocks don't divide."""
    plan, currents = make_plan(7), make_currents((2, 7, 61, 67), last=True)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        sent = FusedNeurons(plan, scan=scan)(currents, TIMESTEPS)
    finally:
        torch.set_num_threads(before)
    assert currents.numel() > 2 * 2**17
    assert torch.equal(sent, expected(plan, currents))


def test_half_precision_runs_without_a_loop_of_its_own():
    plan, currents = make_plan(3), make_currents((2, 3, 4, 4)).bfloat16()
    assert torch.equal(FusedNeurons(plan)(currents, TIMESTEPS), expected(plan, currents))


def test_unknown_scans_are_named():
    with pytest.raises(ValueError, match=r"magic.*eager, numba"):
        FusedNeurons(make_plan(3), scan="magic")
