"""The numbers of steps that an evaluation lists."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from snn_lowlat import checks

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
        If a step is listed that the network does not simulate, or is no whole number.
    """
    if timesteps is None:
        return list(range(1, available + 1))
    if (
        isinstance(timesteps, Iterable)
        and not isinstance(timesteps, str | Mapping)
        and getattr(timesteps, "ndim", None) != 0
    ):
        steps = sorted({checks.count("each of the timesteps", step, 1, available) for step in timesteps})
        if not steps:
            raise ValueError(f"timesteps must name a number of steps, from 1 to the network's {available}.")
        return steps
    return list(range(1, checks.count("timesteps", timesteps, 1, available) + 1))
