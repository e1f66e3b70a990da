"""Names for what is added to a network."""

from __future__ import annotations

from torch import nn

__all__ = ["free_name"]


def free_name(network: nn.Module, wanted: str) -> str:
    """Return the name wanted if the network has nothing of that name, or else the first one with a number that is free.

    Parameters
    ----------
    network : Module
        Where something is to be added.
    wanted : str
        A name; a dot, as in the path of a child, becomes an underscore.
    """
    wanted = wanted.replace(".", "_")
    name, number = wanted, 0
    while hasattr(network, name):
        number += 1
        name = f"{wanted}_{number}"
    return name
