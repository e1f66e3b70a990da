"""Running a network in evaluation mode without leaving it there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["eval_mode"]


@contextmanager
def eval_mode(*networks: nn.Module) -> Iterator[None]:
    """Put networks into evaluation mode; afterwards each of their modules is again in the mode that it was in."""
    training = [module for network in networks for module in network.modules() if module.training]
    if training:
        for network in networks:
            network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
