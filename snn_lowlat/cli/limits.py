"""What a machine may have too little of."""

from __future__ import annotations

import errno
import os

import torch

__all__ = ["cores", "is_full_disk", "is_out_of_memory"]

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
