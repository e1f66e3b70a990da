"""Progress bars that show only where somebody looks."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

from rich.console import Console
from rich.progress import track

__all__ = ["progress_bar"]

T = TypeVar("T")

_LOGGER = logging.getLogger(__name__)

_MANY = 10_000
"""After so many batches of what does not say how many it has, somebody should know."""


def progress_bar(batches: Iterable[T], description: str, *, progress: bool, limit: int | None = None) -> Iterable[T]:
    """Return at most ``limit`` batches, with a progress bar if one is wanted and the output is a terminal.

    Without a limit, a warning is logged where batches that don't say how many they are seem not to end.

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
    if total is None:
        batches = _watched(batches, description)
    console = Console(stderr=True)
    if progress and console.is_terminal:
        return track(batches, description=description, total=total, console=console, transient=True)
    return batches


def _watched(batches: Iterable[T], description: str) -> Iterator[T]:
    for number, batch in enumerate(batches):
        if number == _MANY:
            _LOGGER.warning(
                "%s: %d batches so far, and the data do not say how many there are. If they never end, stop this and "
                "limit them, for instance with itertools.islice(batches, 100).",
                *(description, number),
            )
        yield batch
