"""How long spiking networks take on this machine, beside the original network and each library's own way."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from snn_lowlat.benchmark.contestants import ANN, OURS, Run
from snn_lowlat.benchmark.measuring import Times, alternate, extra_memory, reason
from snn_lowlat.benchmark.networks import Subject, make_subject, smooth_images
from snn_lowlat.benchmark.presenting import Result, conditions, draw, ratio_of, rows, shown_time, tables, write_rows
from snn_lowlat.benchmark.tasks import TASKS, Task

__all__ = ["run_benchmark"]

logger = logging.getLogger("snn_lowlat.benchmark")


def run_benchmark(config: DictConfig, folder: Path) -> float:
    """Time the config's networks, and write ``benchmark.csv`` after each setting and ``benchmark.png`` at the end.

    Parameters
    ----------
    config : DictConfig
        The whole config, checked; ``snn_lowlat.cli.schema.BenchmarkConfig`` names the keys under ``benchmark``.
    folder : Path
        Where results go.

    Returns
    -------
    float
        The time of this package's fp32 network in the last setting as a multiple of the ANN's; not a number if it
        failed.

    Raises
    ------
    ConfigError
        If a network or its weights are not fit.
    ConversionError
        If a network can't become a spiking one.
    """
    wanted, facts = config.benchmark, conditions(config.seed)
    subjects = [make_subject(config, str(name)) for name, entry in wanted.networks.items() if entry is not None]
    largest = max(wanted.timesteps), max(wanted.batch_sizes)
    results: list[Result] = []
    last: float | None = None
    for subject in subjects:
        for timesteps in wanted.timesteps:
            runs, failed = _prepared(TASKS[wanted.task], subject, timesteps)
            for size in wanted.batch_sizes:
                found = _timed(config, subject, timesteps, size, runs, failed)
                results += found
                write_rows(rows(results, facts), folder / "benchmark.csv")
                by_name = {result.contestant: result for result in found}
                last = ratio_of(by_name[OURS], by_name[ANN], shown_time(facts))
                place = f"{subject.name}, T = {timesteps}, batch {size}"
                done = "failed" if last is None else f"takes {last:.2f} times as long as the ANN"
                logger.info("%s: %d rounds; %s %s", place, len(by_name[ANN].times.cpu), OURS, done)
    if wanted.memory:
        for index, result in enumerate(results):
            if (result.timesteps, result.batch_size) == largest and result.error is None:
                results[index] = _weighed(config, result)
                write_rows(rows(results, facts), folder / "benchmark.csv")
    table = rows(results, facts)
    draw(table, folder / "benchmark.png")
    console = Console()
    for each in tables(table):
        console.print(each)
    logger.info("Results are in %s", folder)
    return math.nan if last is None else last


def _prepared(task: Task, subject: Subject, timesteps: int) -> tuple[dict[str, Run], dict[str, str]]:
    """Convert a network for every contestant; also say why those who can't run it can't."""
    runs: dict[str, Run] = {}
    failed: dict[str, str] = {}
    for name, contestant in task.contestants.items():
        try:
            runs[name] = contestant.prepare(subject, timesteps)
        except Exception as error:
            failed[name] = reason(error)
            logger.warning("%s can't run %s: %s", name, subject.name, failed[name])
    return runs, failed


def _timed(
    config: DictConfig, subject: Subject, timesteps: int, size: int, runs: dict[str, Run], failed: dict[str, str]
) -> list[Result]:
    """Time one setting; one result for each contestant."""
    wanted = config.benchmark
    images = smooth_images(size, list(wanted.input_shape), config.seed + 1)
    task = TASKS[wanted.task]
    with task.context():
        bound = {name: partial(run, images) for name, run in runs.items()}
        # Gradients take memory in whose pages another contestant's would be the first again and again.
        times, errors = alternate(bound, wanted.rounds, wanted.seconds, twice=task.has_gradients)
    errors |= failed
    return [
        Result(
            wanted.task,
            subject.name,
            name,
            timesteps,
            size,
            subject.weights,
            times.get(name, Times()),
            errors.get(name),
        )
        for name in task.contestants
    ]


def _weighed(config: DictConfig, result: Result) -> Result:
    """Add the memory that a contestant takes, or why it is not known."""
    place = result.network, result.contestant, result.timesteps, result.batch_size
    try:
        return replace(result, memory=extra_memory(config, *place))
    except Exception as error:
        return replace(result, memory_error=reason(error))
