"""Progress bars that show only where somebody looks."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import TypeVar

from rich.console import Console
from rich.progress import track

__all__ = ["tracked"]

T = TypeVar("T")


def tracked(batches: Iterable[T], description: str, *, progress: bool, limit: int | None = None) -> Iterable[T]:
    """Return at most ``limit`` batches, with a progress bar if one is wanted and the output is a terminal.

    Parameters
    ----------
    batches : iterable
        What is gone through.
    description : str
        What the bar says.
    progress : bool
        Whether a bar is wanted.
    limit : int, optional
        The largest number of batches; all of them by default.
    """
    try:
        total: int | None = len(batches)  # type: ignore[arg-type]
    except TypeError:
        total = None
    if limit is not None:
        total = limit if total is None else min(total, limit)
        batches = islice(batches, limit)
    console = Console(stderr=True)
    if progress and console.is_terminal:
        return track(batches, description=description, total=total, console=console, transient=True)
    return batches
