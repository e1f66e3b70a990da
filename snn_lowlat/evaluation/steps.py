"""The numbers of steps that an evaluation lists."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["listed_steps"]


def listed_steps(timesteps: int | Sequence[int] | None, available: int) -> list[int]:
    """Return the numbers of steps asked for, in rising order.

    Parameters
    ----------
    timesteps : int, sequence of int or None
        ``T`` stands for 1, 2, ... T, a sequence for the steps it names, None for all.
    available : int
        The steps that the network simulates.

    Raises
    ------
    ValueError
        If a step is listed that the network does not simulate.
    """
    if timesteps is None or isinstance(timesteps, int):
        steps = list(range(1, (available if timesteps is None else timesteps) + 1))
    else:
        steps = sorted({int(step) for step in timesteps})
    if not steps or steps[0] < 1 or steps[-1] > available:
        raise ValueError(f"timesteps must be between 1 and the network's {available}, not {timesteps}.")
    return steps
