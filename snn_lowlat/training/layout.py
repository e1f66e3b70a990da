"""How weights lie in memory."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

__all__ = ["lay_channels_last"]

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def lay_channels_last(model: AnyModule) -> AnyModule:
    """Lay the weights of two-dimensional convolutions out with the channels last, in place; all others stay.

    ``model.to(memory_format=torch.channels_last)`` fails for networks with three-dimensional ones.
    """
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.to(memory_format=torch.channels_last)
    return model
