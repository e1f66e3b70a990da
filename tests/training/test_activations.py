from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from snn_lowlat.training import CeilingReLU, make_activation


def test_values_are_clipped_to_between_zero_and_the_ceiling() -> None:
    values = torch.tensor([[-1.0, 0.0, 0.5, 2.0, 3.0]])
    assert CeilingReLU(2.0)(values).tolist() == [[0.0, 0.0, 0.5, 2.0, 2.0]]
    assert CeilingReLU().ceiling.item() == 4.0
    assert CeilingReLU(2.0)(torch.tensor([float("nan")])).isnan().all()


def test_gradients_are_those_of_the_definition_also_at_the_edges() -> None:
    values = torch.tensor([[-1.0, 0.0, 0.5, 2.0, 3.0]], requires_grad=True)
    activation = CeilingReLU(2.0)
    upstream = torch.tensor([[1.0, 2.0, 4.0, 8.0, 16.0]])
    activation(values).backward(upstream)
    assert values.grad is not None
    assert values.grad.tolist() == [[0.0, 0.0, 4.0, 0.0, 0.0]]
    assert activation.ceiling.grad is not None
    assert activation.ceiling.grad.item() == 24.0


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 5), (2, 3, 5, 5)])
def test_each_channel_has_a_ceiling_of_its_own(shape: tuple[int, ...]) -> None:
    activation = CeilingReLU(channels=3)
    with torch.no_grad():
        activation.ceiling.copy_(torch.tensor([0.1, 0.2, 0.3]))
    output = activation(torch.ones(shape))
    output.sum().backward()
    assert torch.allclose(output.movedim(1, -1), torch.tensor([0.1, 0.2, 0.3]))
    assert torch.equal(activation.ceiling.grad, torch.full((3,), float(output.numel() // 3)))


@pytest.mark.parametrize("channels", [None, 3])
def test_values_keep_their_type_and_layout(channels: int | None) -> None:
    values = torch.rand(2, 3, 4, 4, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    activation = CeilingReLU(0.5, channels=channels)
    output = activation(values)
    output.sum().backward()
    assert output.dtype == torch.bfloat16
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert activation.ceiling.grad is not None
    assert activation.ceiling.grad.dtype == torch.float32


def test_ceilings_are_kept_positive() -> None:
    activation = CeilingReLU(channels=3)
    with torch.no_grad():
        activation.ceiling.copy_(torch.tensor([-1.0, 0.0, 2.0]))
    activation.keep_positive()
    assert torch.equal(activation.ceiling, torch.tensor([1e-3, 1e-3, 2.0]))
    with pytest.raises(ValueError, match="initial must be a finite number above 0"):
        CeilingReLU(0.0)


def test_activations_are_made_by_name_class_or_function() -> None:
    assert type(make_activation("relu", 3)) is nn.ReLU
    assert make_activation("ceiling", 3).ceiling.shape == ()
    assert make_activation("channel_ceiling", 3).ceiling.shape == (3,)
    assert isinstance(make_activation(nn.ReLU6), nn.ReLU6)
    assert make_activation(partial(CeilingReLU, initial=2.0), 3).ceiling.item() == 2.0


@pytest.mark.parametrize(
    ("activation", "error", "message"),
    [
        ("celling", ValueError, "Did you mean 'ceiling'"),
        (None, ValueError, "There are: ceiling, channel_ceiling, relu"),
        ("channel_ceiling", ValueError, "number of channels"),
        (dict, TypeError, "torch module, not dict"),
    ],
)
def test_what_is_no_activation_is_refused(activation: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_activation(activation)
