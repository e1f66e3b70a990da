"""How long contestants take, and how much memory."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from omegaconf import DictConfig

from snn_lowlat.benchmark.networks import Subject, make_subject, smooth_images
from snn_lowlat.benchmark.tasks import TASKS
from snn_lowlat.graph import normalise
from snn_lowlat.models import ResNet

__all__ = ["LEAST_ROUNDS", "Times", "alternate", "extra_memory", "reason"]

LEAST_ROUNDS = 2
"""Rounds that are measured however long they take: quartiles need two."""


@dataclass(frozen=True)
class Times:
    """How long one contestant took, in seconds, round by round.

    Parameters
    ----------
    cpu : tuple of float
        The process's time on processors, all threads together.
    wall : tuple of float
        The time that passed.
    """

    cpu: tuple[float, ...] = ()
    wall: tuple[float, ...] = ()


def alternate(
    runs: Mapping[str, Callable[[], object]], rounds: int, seconds: float, *, twice: bool = False
) -> tuple[dict[str, Times], dict[str, str]]:
    """Time several contestants in turns, so that whatever else the machine does meets all of them.

    Parameters
    ----------
    runs : mapping of str to callable
        What is timed, by name.
    rounds : int
        How many rounds after one that is not measured.
    seconds : float
        No further round starts after so many seconds of measured ones, if there have been :data:`LEAST_ROUNDS`.
    twice : bool
        Whoever's turn it is runs twice, and the second time counts: it finds memory as itself has left it, not as the
        one before did.

    Returns
    -------
    times : dict of str to Times
        Of all who finished every round.
    errors : dict of str to str
        Why the others did not.
    """
    times = {name: Times() for name in runs}
    errors: dict[str, str] = {}
    start = 0.0
    for number in range(rounds + 1):
        if number == 1:
            start = time.perf_counter()
        elif number > LEAST_ROUNDS and time.perf_counter() - start >= seconds:
            break
        for name in list(times):
            try:
                if twice:
                    runs[name]()
                cpu, wall = _timed(runs[name])
            except Exception as error:
                errors[name] = reason(error)
                del times[name]
                continue
            if number > 0:
                before = times[name]
                times[name] = Times((*before.cpu, cpu), (*before.wall, wall))
    return times, errors


def _timed(run: Callable[[], object]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.process_time() - cpu, time.perf_counter() - wall


def extra_memory(config: DictConfig, network: str, contestant: str, timesteps: int, batch_size: int) -> float:
    """Measure in a fresh process how much memory the first run of a batch takes.

    It is the highest resident memory during the run less that just before it. All that a contestant makes for its first
    run counts, such as weights put in another order; loading code does not. Where the system does not tell the resident
    memory (anywhere but on Linux), it is what the highest one grows by.

    Parameters
    ----------
    config : DictConfig
        The whole config, checked.
    network, contestant : str
        Their names.
    timesteps, batch_size : int
        The steps, and images in the batch.

    Returns
    -------
    float
        In MiB.

    Raises
    ------
    Exception
        Whatever went wrong in the process, or ``BrokenProcessPool`` if it died.
    """
    threads = torch.get_num_threads()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_extra_memory, config, network, contestant, timesteps, batch_size, threads).result()


def _extra_memory(
    config: DictConfig, network: str, contestant: str, timesteps: int, batch_size: int, threads: int
) -> float:
    torch.set_num_threads(threads)
    torch.manual_seed(config.seed)
    task, shape = TASKS[config.benchmark.task], list(config.benchmark.input_shape)
    prepare = task.contestants[contestant].prepare
    small = ResNet(1, in_channels=shape[0], channels=(4, 8)).eval()
    images = smooth_images(batch_size, shape, config.seed + 1)
    # Imports and compiled code come with the first run of whatever network.
    few = [images[:2]]
    run = prepare(Subject("small", small, normalise(small, few[0]), few, "random"), timesteps)
    with task.context():
        run(few[0])
    subject = make_subject(config, network)
    # A few images will do for thresholds, and leave less behind that a run could use again.
    run = prepare(replace(subject, calibration=[subject.calibration[0][:4]]), timesteps)
    with task.context():
        _give_back()
        before, _ = _resident()
        run(images)
        _, after = _resident()
    return (after - before) / 2**20


def _give_back() -> None:
    """Return unused memory to the system, and forget the peak, as far as that can be done."""
    gc.collect()
    # What the allocator keeps from before would be used again and not be seen.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _resident() -> tuple[int, int]:
    """Return this process's resident memory in bytes, now and at its peak."""
    try:
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        now, peak = (1024 * int(status[key].split()[0]) for key in ("VmRSS", "VmHWM"))
    except (OSError, KeyError):
        import resource

        now = peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return now, peak


def reason(error: BaseException) -> str:
    """Say on one line what went wrong."""
    # Torch adds where it was in a graph.
    text = " ".join(str(error).split("\n\n")[0].split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
