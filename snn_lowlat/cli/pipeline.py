"""The course of a run: train or load a network, convert it, train it on, evaluate it.

Everything is written into the run's folder as soon as it is there: ``config.yaml``, ``checkpoints/last.ckpt``,
``ann.pt``, ``snn.pt``, ``results.csv``, ``results.json`` and ``accuracy_vs_timesteps.png``, with ``report=html``
``report.html`` too.

Where several processes train (``trainer.strategy=ddp``), all of them come here, and only the first goes on after it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from lightning import seed_everything
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from snn_lowlat.benchmark import run_benchmark
from snn_lowlat.cli.building import ConfigError
from snn_lowlat.cli.limits import stage
from snn_lowlat.cli.parts import Parts, prepare
from snn_lowlat.cli.record import RunRecord, alone_in
from snn_lowlat.cli.schema import checked, steps_shown
from snn_lowlat.cli.training import is_first, train_further, train_network
from snn_lowlat.convert import convert
from snn_lowlat.errors import SnnLowlatError
from snn_lowlat.evaluation import (
    FORMATS,
    Report,
    analyse,
    cost_model,
    evaluate,
    plot_reports,
    table,
    write_csv,
    write_json,
    write_report,
)
from snn_lowlat.files import atomic_write
from snn_lowlat.model import SpikingModel
from snn_lowlat.strategies import Strategy
from snn_lowlat.tensor_files import write_tensors
from snn_lowlat.training import fit_ceilings

__all__ = ["run"]

logger = logging.getLogger("snn_lowlat.run")


def run(config: DictConfig, folder: Path) -> float:
    """Train or load a network, convert it with each strategy, evaluate, and write everything into a folder.

    What is already there, from a run of the same config by the same versions that came to its end, is not done again: a
    sweep that was killed goes on where it is started again with the same ``hydra.sweep.dir``.

    Parameters
    ----------
    config : DictConfig
        Composed from ``conf/``; ``snn_lowlat.cli.schema.Config`` names its keys.
    folder : Path
        Where results go; made if it is missing.

    Returns
    -------
    float
        Accuracy after T steps with the main strategy, in ``[0, 1]``, on the test images or, with
        ``objective=validation``, on those that were held out from training; not a number in a process that only helped
        to train. With ``benchmark``, what :func:`snn_lowlat.benchmark.run_benchmark` returns.

    Raises
    ------
    ConfigError
        If a key or value of the config does not exist or is not fit. Most are found before any work is done.
    SnnLowlatError
        If another process works in the folder, or a part of the run needs more memory than there is.
    """
    folder = folder.resolve()
    config = checked(config, folder)
    folder.mkdir(parents=True, exist_ok=True)
    record = RunRecord(config, folder)
    returned = record.returned()
    if returned is not None:
        logger.info("This run is finished: its results are in %s. Delete that folder to do it again.", folder)
        return returned
    if not is_first():
        return _run(config, folder)
    with alone_in(folder):
        record.begin()
        with atomic_write(folder / "config.yaml") as temporary:
            OmegaConf.save(config, temporary, resolve=True)
        returned = _run(config, folder)
        record.finish(returned)
    return returned


def _run(config: DictConfig, folder: Path) -> float:
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    seed_everything(config.seed, workers=True, verbose=False)
    if config.benchmark is not None:
        return run_benchmark(config, folder)
    parts = prepare(config)
    if not _train(config, parts, folder):
        return math.nan
    strategy, *others = parts.strategies
    reports: list[Report] = []
    snn = _convert(config, parts, strategy)
    _report(config, parts, snn, folder / "snn.pt", reports)
    if config.fine_tuning.get("_target_") is not None:
        tuned = _fine_tune(config, parts, snn, folder / "fine_tuning")
        if tuned is None:
            return math.nan
        snn = tuned
        _report(config, parts, snn, folder / "snn_fine_tuned.pt", reports)
    accuracy = reports[-1].accuracy
    for number, other in enumerate(others, start=2):
        _report(config, parts, _convert(config, parts, other), folder / f"snn_{number}_{other.name}.pt", reports)
    _show(config, reports, folder)
    return accuracy if config.objective == "test" else _validation_accuracy(config, parts, snn)


def _train(config: DictConfig, parts: Parts, folder: Path) -> bool:
    """Train the original network unless its weights are given; say whether this process is the one that goes on."""
    if parts.unfitted:
        with stage("fitting ceilings", lower="calibration.batch_size"):
            fit_ceilings(parts.ann, parts.calibration(config))
    if config.model.get("weights") is None:
        with stage("training", lower="data.batch_size"):
            first = train_network(config, parts.ann, parts.data, folder)
        if not first:
            return False
        write_tensors({"state_dict": parts.network.state_dict()}, folder / "ann.pt")
    parts.ann.eval().to(parts.device)
    return True


def _convert(config: DictConfig, parts: Parts, strategy: Strategy) -> SpikingModel:
    lower = "calibration.batch_size, or the images of a refinement"
    with stage(f"converting with {strategy.name}", lower=lower), _strategy_errors(strategy):
        return convert(
            parts.ann,
            parts.calibration(config),
            strategy=strategy,
            timesteps=config.timesteps,
            backend=config.backend.name,
            refinements=parts.refinements,
            encoder=config.input_coding,
            precision=config.precision,
            max_pool=config.max_pool,
            seed=config.seed,
            progress=config.calibration.progress,
        )


def _fine_tune(config: DictConfig, parts: Parts, snn: SpikingModel, folder: Path) -> SpikingModel | None:
    """Train the converted network on, or the one to start from; None in a process that only helped to train."""
    with stage("fine-tuning", lower="data.batch_size, or raise fine_tuning.segments"):
        tuned = train_further(config, snn if parts.start is None else parts.start, parts.ann, parts.data, folder)
    return None if tuned is None else tuned.to(parts.device)


def _report(config: DictConfig, parts: Parts, snn: SpikingModel, file: Path, reports: list[Report]) -> None:
    """Evaluate a network and add what is found to the reports; what there is by then is written at once."""
    snn.save(file)
    name = config.model.get("name", type(parts.network).__name__)
    shown = {"timesteps": steps_shown(config), "progress": config.evaluation.progress}
    with stage(f"evaluating {file.stem}", lower="data.batch_size"):
        report = evaluate(snn, parts.data.test_dataloader(), ann=parts.ann, device=parts.device, **shown)
    report = replace(report, experiment=config.name, model=name, dataset=parts.data.name)
    if config.report.formats:
        with stage(f"analysing {file.stem}", lower="data.batch_size, or report.images"):
            images = parts.data.test_dataloader()
            analysis = analyse(snn, images, parts.ann, images=config.report.images, **shown)
        report = analysis.added_to(report, [cost_model(model) for model in config.report.energy])
    reports.append(report)
    write_csv(reports, file.parent / "results.csv")
    write_json(reports, file.parent / "results.json")
    snn.ann_accuracy = report.ann_accuracy
    snn.save(file)


def _show(config: DictConfig, reports: list[Report], folder: Path) -> None:
    plot_reports(reports, folder / "accuracy_vs_timesteps.png")
    for kind in config.report.formats:
        write_report(reports, folder / f"report{FORMATS[kind]}", models=config.report.energy)
    Console().print(table(reports))
    logger.info("Results are in %s", folder)


def _validation_accuracy(config: DictConfig, parts: Parts, snn: SpikingModel) -> float:
    with stage("evaluating on validation images", lower="data.batch_size"):
        found = evaluate(snn, parts.data.val_dataloader(), timesteps=[config.timesteps], device=parts.device)
    logger.info("Accuracy on %d validation images: %.4f", found.images, found.accuracy)
    return found.accuracy


@contextmanager
def _strategy_errors(strategy: Strategy) -> Iterator[None]:
    try:
        yield
    except SnnLowlatError:
        raise
    except ValueError as error:
        raise ConfigError(f"strategy {strategy.name}: {error}") from error
