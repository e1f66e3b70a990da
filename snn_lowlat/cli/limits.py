"""What a machine may have too little of."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from snn_lowlat.errors import SnnLowlatError

__all__ = ["cores", "is_full_disk", "is_out_of_memory", "stage"]

logger = logging.getLogger("snn_lowlat.run")

_MEMORY = ("can't allocate memory", "cannot allocate memory", "not enough memory", "out of memory")
# What torch.save says where its file can't grow.
_DISK = ("iostream error", "PytorchStreamWriter failed", "unexpected pos")


def cores() -> int:
    """Return how many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that there is too little memory."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    killed = "DataLoader worker" in str(error) and "Killed" in str(error)
    refused = any(part in str(error).lower() for part in _MEMORY)
    return isinstance(error, (RuntimeError, OSError)) and (killed or refused)


def is_full_disk(error: BaseException) -> bool:
    """Say whether an error means that a file could not be written for want of room."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return isinstance(error, RuntimeError) and any(part in str(error) for part in _DISK)


@contextmanager
def stage(name: str, lower: str) -> Iterator[None]:
    """Log how long a part of a run takes; where it needs more memory than there is, say what to lower.

    Parameters
    ----------
    name : str
        What is done.
    lower : str
        The config's keys that decide how much memory it takes.

    Raises
    ------
    SnnLowlatError
        If there is too little memory.
    """
    start = time.perf_counter()
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SnnLowlatError(
            f"{name[0].upper() + name[1:]} needs more memory than there is: lower {lower}. What was finished before is "
            f"kept. ({reason})"
        ) from error
    logger.info("%s took %.1f s", name[0].upper() + name[1:], time.perf_counter() - start)
