from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from snn_lowlat.kernels.surrogate import (
    SURROGATES,
    SpikeOptions,
    Surrogate,
    _compiled_surrogate,
    atan,
    fire_with_recompute,
    rectangular,
    sigmoid,
    straight_through,
    surrogate_integrate_and_fire,
    triangle,
)
from snn_lowlat.neurons import integrate_and_fire

PRIMITIVES: dict[str, Callable[[Tensor], Tensor]] = {
    "rectangular": lambda u: u.clamp(-1, 1),
    "straight_through": lambda u: u.clamp(-0.5, 0.5),
    "triangle": lambda u: 0.3 * (u.clamp(-1, 1) - u.clamp(-1, 1) * u.clamp(-1, 1).abs() / 2),
    "atan": lambda u: torch.atan(math.pi * u) / math.pi,
    "fast_sigmoid": lambda u: u / (1 + 5 * u.abs()),
    "sigmoid": lambda u: torch.sigmoid(4 * u),
}
SMOOTH = SpikeOptions(surrogate=sigmoid, smooth=PRIMITIVES["sigmoid"])


def case(timesteps: int, channels: bool, leak: float = 0.8, constant: bool = False) -> dict[str, Tensor]:
    """Return arguments in double precision; the values are far from small and spikes are frequent."""
    torch.manual_seed(timesteps)
    shape = (3,) if channels else ()
    values = {
        "currents": torch.randn(1 if constant else timesteps, 4, 3, 2) + 0.4,
        "threshold": torch.rand(shape) + 0.5,
        "initial_fraction": torch.rand(shape),
        "height": torch.rand(3) + 0.5,
        "leak": torch.tensor(leak),
    }
    return {name: value.double() for name, value in values.items()}


def reference(arguments: dict[str, Tensor], timesteps: int, options: SpikeOptions) -> Tensor:
    """The neurons step by step, with autograd's gradients and ``surrogate`` as the spikes' derivative."""
    currents, threshold, fraction, height, leak = arguments.values()
    threshold, fraction = (value.reshape(-1, 1) for value in (threshold, fraction))
    potential: Tensor = torch.zeros_like(currents[0])
    outputs = []
    for step in range(timesteps):
        potential = leak * potential + currents[step % len(currents)]
        distance = (potential + fraction * threshold) / threshold - 1
        if options.smooth is not None:
            spikes = options.smooth(distance)
        else:
            slope = options.surrogate(distance.detach())
            spikes = (distance >= 0).double() + slope * (distance - distance.detach())
        potential = potential - threshold * (spikes.detach() if options.detach_reset else spikes)
        worth = height.reshape(-1, 1) * threshold
        if options.threshold_gradient == "paper_code":
            outputs.append(spikes * worth.detach() + (threshold - threshold.detach()))
        else:
            outputs.append(spikes * worth)
    return torch.stack(outputs)


@pytest.mark.parametrize("leak", [1.0, 0.9])
@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("timesteps", [1, 2, 5])
def test_spikes_are_those_of_the_neuron_without_gradients(timesteps: int, channels: bool, leak: float) -> None:
    torch.manual_seed(0)
    currents = torch.randn(timesteps, 50, 3, 20, 30) * 0.7 + 0.3
    threshold, fraction = (torch.rand((3,) if channels else ()) + add for add in (0.5, 0.0))
    stays = torch.tensor(leak)
    expected = integrate_and_fire(currents, threshold, fraction * threshold, float(stays))
    last = currents.flatten(0, 1).to(memory_format=torch.channels_last).view(currents.shape)
    for laid_out in (currents, last):
        outputs = surrogate_integrate_and_fire(laid_out, threshold, fraction, torch.tensor(2.0), stays, timesteps)
        assert torch.equal((outputs != 0).float(), expected)
        assert outputs.stride() == laid_out.stride()
    worth = (2 * threshold).reshape(-1, 1, 1)
    assert torch.equal(outputs, expected * worth)


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("timesteps", [1, 2, 4])
def test_gradients_are_those_of_a_smoothed_spike(timesteps: int, channels: bool, constant: bool) -> None:
    arguments = case(timesteps, channels, constant=constant)
    height = arguments.pop("height")

    def outputs(currents: Tensor, threshold: Tensor, fraction: Tensor, leak: Tensor) -> Tensor:
        return surrogate_integrate_and_fire(currents, threshold, fraction, height, leak, timesteps, SMOOTH)

    assert torch.autograd.gradcheck(outputs, [value.requires_grad_() for value in arguments.values()])


@pytest.mark.parametrize(
    "options",
    [
        SpikeOptions(),
        SpikeOptions(detach_reset=True),
        SpikeOptions(threshold_gradient="paper_code"),
        SpikeOptions(surrogate=atan, detach_reset=True, threshold_gradient="paper_code"),
        SpikeOptions(surrogate=sigmoid, smooth=PRIMITIVES["sigmoid"], detach_reset=True),
    ],
)
@pytest.mark.parametrize("leak", [1.0, 0.8])
def test_gradients_are_those_of_the_steps_in_autograd(options: SpikeOptions, leak: float) -> None:
    arguments = case(4, True, leak)
    names = [name for name in arguments if name != "height"]
    found, expected = [], []
    for gradients, outputs in ((found, surrogate_integrate_and_fire), (expected, None)):
        values = {name: value.clone().requires_grad_(name != "height") for name, value in arguments.items()}
        result = outputs(*values.values(), 4, options) if outputs else reference(values, 4, options)
        weight = torch.randn(result.shape, generator=torch.Generator().manual_seed(1)).double()
        gradients += torch.autograd.grad((result * weight).sum(), [values[name] for name in names])
    for name, first, second in zip(names, found, expected, strict=True):
        torch.testing.assert_close(first, second, msg=lambda text, name=name: f"{name}: {text}")


def test_no_reset_passes_no_gradient_when_detached() -> None:
    arguments = case(2, False, 1.0)
    gradients = []
    for detach in (False, True):
        currents = arguments["currents"].clone().requires_grad_()
        options = SpikeOptions(detach_reset=detach)
        surrogate_integrate_and_fire(currents, *list(arguments.values())[1:], 2, options)[1].sum().backward()
        gradients.append(currents.grad)
    assert not torch.equal(*gradients)
    # The first step's currents reach the second step's spikes through the potential, one to one.
    assert torch.equal(gradients[1][0], gradients[1][1])


def test_large_batches_are_sums_of_small_ones() -> None:
    arguments = case(3, True, 0.9)
    currents = torch.randn(3, 60, 3, 40, 40, generator=torch.Generator().manual_seed(0)).double()
    gradients = []
    for parts in (1, 6):
        values = [arguments[name].clone().requires_grad_() for name in ("threshold", "initial_fraction", "leak")]
        threshold, fraction, leak = values
        for part in currents.chunk(parts, 1):
            outputs = surrogate_integrate_and_fire(part, threshold, fraction, arguments["height"], leak, 3)
            (outputs**2).sum().backward()
        gradients.append([value.grad for value in values])
    for whole, pieces in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, pieces)


def test_one_number_is_kept_for_each_neuron_and_step() -> None:
    arguments = case(4, True)
    kept: list[Tensor] = []
    currents = arguments.pop("currents").requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        surrogate_integrate_and_fire(currents * 1, *arguments.values(), 4)
    assert sorted(t.numel() for t in kept)[-2:] == [3, currents.numel()]


@pytest.mark.parametrize("name", SURROGATES)
def test_surrogates_are_derivatives(name: str) -> None:
    distances = torch.tensor([-2.5, -0.9, -0.3, 0.1, 0.6, 3.0], dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(PRIMITIVES[name](distances).sum(), distances)
    before = distances.detach().clone()
    torch.testing.assert_close(SURROGATES[name](before), expected)
    assert torch.equal(before, distances)


def test_straight_through_is_the_clipped_activation_for_one_step() -> None:
    currents = torch.linspace(-1, 3, 50).reshape(1, 10, 5).requires_grad_()
    clipped = torch.linspace(-1, 3, 50).reshape(1, 10, 5).requires_grad_()
    threshold, half = torch.tensor(1.5), torch.tensor(0.5)
    one = torch.tensor(1.0)
    surrogate_integrate_and_fire(
        currents, threshold, half, one, one, 1, SpikeOptions(surrogate=straight_through)
    ).sum().backward()
    clipped.clamp(0, 1.5).sum().backward()
    assert torch.equal(currents.grad, clipped.grad)


def test_surrogates_take_options() -> None:
    assert rectangular(torch.tensor([0.4, 0.6]), width=0.5).tolist() == [1, 0]
    assert SURROGATES["triangle"](torch.tensor([0.0, 1.0]), height=1.0, width=2.0).tolist() == [1, 0.5]


def test_half_precision_passes() -> None:
    arguments = {name: value.float() for name, value in case(2, True).items()}
    currents = arguments.pop("currents").bfloat16().requires_grad_()
    outputs = surrogate_integrate_and_fire(currents, *arguments.values(), 2)
    outputs.sum().backward()
    assert outputs.dtype == currents.grad.dtype == torch.bfloat16


def test_unknown_threshold_gradients_are_named() -> None:
    with pytest.raises(ValueError, match="paper_code, proper"):
        SpikeOptions(threshold_gradient="improper")


@pytest.mark.parametrize("surrogate", [*SURROGATES.values(), partial(rectangular, width=0.7), partial(atan, alpha=1.0)])
@pytest.mark.parametrize("options", [{}, {"detach_reset": True}, {"threshold_gradient": "paper_code"}], ids=str)
@pytest.mark.parametrize("layout", ["first", "last", "volumes", "one value"])
@pytest.mark.parametrize("constant", [False, True])
def test_compiled_loops_and_torch_agree(
    monkeypatch: pytest.MonkeyPatch, surrogate: Surrogate, options: dict[str, Any], layout: str, constant: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (2, 5, 4, 3, 2) if layout == "volumes" else (2, 5, 9, 70)
    steps = 1 if constant else 3
    currents = torch.randn(steps * shape[0], *shape[1:], generator=generator) + 0.4
    if layout in ("last", "volumes"):
        currents = currents.contiguous(
            memory_format=torch.channels_last if layout == "last" else torch.channels_last_3d
        )
    currents = currents.view(steps, *shape)
    one = () if layout == "one value" else (5,)
    threshold, fraction, height = (torch.rand(one, generator=generator) + add for add in (0.5, 0.0, 0.5))
    weight = torch.randn(3, *shape, generator=generator)
    results = []
    for compiled in (True, False):
        if not compiled:
            monkeypatch.setattr(f"{surrogate_integrate_and_fire.__module__}.usable", lambda _: False)
        values = [value.clone().requires_grad_() for value in (currents, threshold, fraction, torch.tensor(0.9))]
        spikes = SpikeOptions(surrogate=surrogate, **options)
        outputs = surrogate_integrate_and_fire(*values[:3], height, values[3], 3, spikes)
        results.append([outputs, *torch.autograd.grad((outputs * weight).sum(), values)])
    assert torch.equal(results[0][0], results[1][0])
    for found, expected in zip(results[0][1:], results[1][1:], strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-4)


@pytest.fixture(params=["compiled", "torch"])
def _implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr(f"{surrogate_integrate_and_fire.__module__}.usable", lambda _: False)


def window(steps: int, seed: int, layout: torch.memory_format = torch.channels_last) -> Tensor:
    images = torch.randn(steps * 4, 5, 9, 7, generator=torch.Generator().manual_seed(seed))
    return images.contiguous(memory_format=layout).view(steps, 4, 5, 9, 7)


@pytest.mark.usefixtures("_implementation")
@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_what_is_added_counts_as_part_of_the_currents(constant: bool, layout: torch.memory_format) -> None:
    steps = 1 if constant else 3
    first, second = window(steps, 0).requires_grad_(), window(steps, 1, layout).requires_grad_()
    parameters = torch.rand(5) + 0.5, torch.tensor(0.5), torch.rand(5) + 0.5, torch.tensor(1.0), 3
    expected = surrogate_integrate_and_fire(first + second, *parameters)
    found = surrogate_integrate_and_fire(first, *parameters, other=second)
    assert torch.equal(found, expected)
    weight = torch.randn_like(expected)
    gradients = [torch.autograd.grad((outputs * weight).sum(), (first, second)) for outputs in (expected, found)]
    for of_sum, of_terms in zip(*gradients, strict=True):
        torch.testing.assert_close(of_terms, of_sum)


def test_only_currents_of_the_same_shape_are_added() -> None:
    parameters = torch.tensor(1.0), torch.tensor(0.5), torch.tensor(1.0), torch.tensor(1.0), 3
    with pytest.raises(ValueError, match=r"\(3, 4, 5, 9, 7\), what is added to them has shape \(1, 4, 5, 9, 7\)"):
        surrogate_integrate_and_fire(window(3, 0), *parameters, other=window(1, 0))


@pytest.mark.usefixtures("_implementation")
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_outputs_can_be_had_again(layout: torch.memory_format) -> None:
    parameters = torch.rand(5) + 0.5, torch.rand(5), torch.rand(5) + 0.5, torch.tensor(0.9), 3
    outputs, repeat = fire_with_recompute(window(3, 0, layout), *parameters, SpikeOptions())
    assert repeat is not None
    assert 0.1 < outputs.bool().float().mean() < 0.9
    assert torch.equal(repeat(), outputs)
    assert repeat().stride() == outputs.stride()
    _, repeat = fire_with_recompute(window(3, 0, layout).double(), *parameters, SMOOTH)
    assert repeat is None


@pytest.mark.parametrize("timesteps", [1, 3])
@pytest.mark.parametrize("summed", [False, True])
def test_potentials_may_take_the_place_of_currents(timesteps: int, summed: bool) -> None:
    other = window(timesteps, 1) if summed else None
    threshold = (torch.rand(5) + 0.5).requires_grad_()
    parameters = threshold, torch.tensor(0.5), torch.rand(5) + 0.5, torch.tensor(1.0), timesteps, SpikeOptions(), other
    results = []
    for overwrite in (False, True):
        leaf = window(timesteps, 0).requires_grad_()
        currents = leaf * 1
        before = currents.detach().clone()
        outputs, _ = fire_with_recompute(currents, *parameters, overwrite=overwrite)
        assert torch.equal(currents, before) != overwrite
        results.append([outputs, *torch.autograd.grad((outputs**2).sum(), (leaf, threshold))])
    for kept, overwritten in zip(*results, strict=True):
        assert torch.equal(kept, overwritten)


def test_only_known_surrogates_are_compiled() -> None:
    numbers = [_compiled_surrogate(SpikeOptions(surrogate=each)) for each in (straight_through, triangle, sigmoid)]
    assert numbers == [(0, 0.5, 1.0), (1, 1.0, 0.3), None]
    assert _compiled_surrogate(SpikeOptions(surrogate=partial(triangle, height=2.0))) == (1, 1.0, 2.0)
    assert _compiled_surrogate(SpikeOptions(surrogate=lambda distance: distance)) is None
    assert _compiled_surrogate(SMOOTH) is None
