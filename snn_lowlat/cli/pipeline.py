"""One command from a config to results: train or load a network, convert it, evaluate it.

``python -m snn_lowlat.run +experiment=quickstart`` builds the objects that the config names and calls the package's
functions with them. Everything is written into Hydra's output folder as soon as it is there: ``config.yaml``,
``checkpoints/last.ckpt``, ``ann.pt``, ``snn.pt``, ``results.csv``, ``results.json`` and ``accuracy_vs_timesteps.png``,
with ``report=html`` ``report.html`` too. The runs of a ``--multirun`` are compared in ``leaderboard.md``.

``python -m snn_lowlat.run +experiment=benchmark`` measures instead how long networks take, and writes ``benchmark.csv``
and ``benchmark.png``; ``+experiment=benchmark_fine_tuning`` does so for fine-tuning.

Where several processes train (``trainer.strategy=ddp``), all of them come here, and only the first goes on after it.

The exit status is 0 where all runs have come to their end, 1 where one has failed, and 130 or 143 where the process was
told to stop by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import logging
import math
import signal
import sys
import time
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from lightning import LightningModule, Trainer, seed_everything
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import distributed, nn

from snn_lowlat.benchmark import run_benchmark
from snn_lowlat.calibration import inputs_of
from snn_lowlat.cli.interruptions import Interrupted, StopsAtOnce, interruptible
from snn_lowlat.cli.limits import is_full_disk, is_out_of_memory
from snn_lowlat.cli.record import RunRecord, alone_in
from snn_lowlat.cli.schema import (
    CONFIG_FOLDER,
    ConfigError,
    accepted_by,
    build,
    check_sweep,
    checked,
    config_errors,
    hint,
    listed_steps,
    make,
    null_group,
    without_effect,
)
from snn_lowlat.convert import convert
from snn_lowlat.data import ImageDataModule
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
from snn_lowlat.files import whole_file
from snn_lowlat.graph import find_sites, normalise
from snn_lowlat.model import SpikingModel
from snn_lowlat.models import InputNormalisation, load_weights
from snn_lowlat.persistence import load
from snn_lowlat.refinement import make_refinement
from snn_lowlat.strategies import Strategy, make_strategy
from snn_lowlat.training import CeilingReLU, FineTuning, expand_input, fit_ceilings, replace_activations
from snn_lowlat.training.checkpointing import WholeCheckpoints
from snn_lowlat.training.resuming import check_checkpoint, find_checkpoint

__all__ = ["command_line", "main", "run"]

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
    if not _is_first():
        return _run(config, folder)
    with alone_in(folder):
        record.begin()
        with whole_file(folder / "config.yaml") as temporary:
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
    device = _device(config.device)
    strategies = _strategies(config)
    refinements = [make(make_refinement, entry, "refinements") for entry in config.refinements]

    with _stage("reading data", lower="data.image_size"):
        data = _data(config)
        with config_errors("data"):
            data.setup()
    network, unfitted = _network(config, data)
    ann = _with_normalisation(network, data) if config.input_coding != "direct" else network
    _check_convertible(ann, data, strategies)
    start = _start(config, data)
    if unfitted:
        with _stage("fitting ceilings", lower="calibration.batch_size"):
            fit_ceilings(ann, data.calibration_dataloader(config.calibration.images, config.calibration.batch_size))
    if config.model.get("weights") is None:
        with _stage("training", lower="data.batch_size"):
            first = _train(config, ann, data, folder)
        if not first:
            return math.nan
        with whole_file(folder / "ann.pt") as temporary:
            torch.save({"state_dict": network.state_dict()}, temporary)
    ann.eval().to(device)

    reports: list[Report] = []
    main: Report | None = None
    chosen: SpikingModel | None = None

    def evaluated(snn: SpikingModel, file: Path) -> None:
        snn.save(file)
        with _stage(f"evaluating {file.stem}", lower="data.batch_size"):
            report = evaluate(
                snn,
                data.test_dataloader(),
                ann=ann,
                timesteps=listed_steps(config),
                progress=config.evaluation.progress,
                device=device,
            )
        name = config.model.get("name", type(network).__name__)
        report = replace(report, experiment=config.name, model=name, dataset=data.name)
        if config.report.formats:
            with _stage(f"analysing {file.stem}", lower="data.batch_size, or report.images"):
                analysis = analyse(
                    snn,
                    data.test_dataloader(),
                    ann,
                    images=config.report.images,
                    timesteps=listed_steps(config),
                    progress=config.evaluation.progress,
                )
            report = analysis.added_to(report, [cost_model(model) for model in config.report.energy])
        reports.append(report)
        write_csv(reports, folder / "results.csv")
        write_json(reports, folder / "results.json")
        snn.ann_accuracy = report.ann_accuracy
        snn.save(file)

    for number, strategy in enumerate(strategies, start=1):
        lower = "calibration.batch_size, or the images of a refinement"
        with _stage(f"converting with {strategy.name}", lower=lower), _strategy_errors(strategy):
            snn = convert(
                ann,
                data.calibration_dataloader(config.calibration.images, config.calibration.batch_size),
                strategy=strategy,
                timesteps=config.timesteps,
                backend=config.backend.name,
                refinements=refinements,
                encoder=config.input_coding,
                precision=config.precision,
                max_pool=config.max_pool,
                seed=config.seed,
                progress=config.calibration.progress,
            )
        chosen = snn if number == 1 else chosen
        evaluated(snn, folder / (f"snn_{number}_{strategy.name}.pt" if number > 1 else "snn.pt"))
        if number == 1 and config.fine_tuning.get("_target_") is not None:
            with _stage("fine-tuning", lower="data.batch_size, or raise fine_tuning.segments"):
                tuned = _fine_tune(config, snn if start is None else start, ann, data, folder / "fine_tuning")
            if tuned is None:
                return math.nan
            evaluated(tuned.to(device), folder / "snn_fine_tuned.pt")
            main, chosen = reports[-1], tuned
    plot_reports(reports, folder / "accuracy_vs_timesteps.png")
    for kind in config.report.formats:
        write_report(reports, folder / f"report{FORMATS[kind]}", models=config.report.energy)
    Console().print(table(reports))
    logger.info("Results are in %s", folder)
    if config.objective == "validation" and chosen is not None:
        with _stage("evaluating on validation images", lower="data.batch_size"):
            validation = evaluate(chosen, data.val_dataloader(), timesteps=[config.timesteps], device=device)
        logger.info("Accuracy on %d validation images: %.4f", validation.images, validation.accuracy)
        return validation.accuracy
    return (reports[0] if main is None else main).accuracy


def _strategies(config: DictConfig) -> list[Strategy]:
    strategies = [make(make_strategy, config.strategy, "strategy")]
    # In a sweep over strategies the main one is sometimes the one to compare with.
    others = [entry for entry in config.compare if entry != config.strategy.name]
    return strategies + [make(make_strategy, entry, "compare") for entry in others]


def _data(config: DictConfig) -> ImageDataModule:
    # Spikes code pixels in [0, 1]: the normalisation then belongs to the network.
    known = {"normalise": False} if config.input_coding != "direct" else {}
    data = build(config.data, "data", **known)
    if not isinstance(data, ImageDataModule):
        raise ConfigError(f"data._target_ must be an ImageDataModule, not {type(data).__name__}.")
    return data


def _built(model: DictConfig, data: ImageDataModule) -> nn.Module:
    """Build a network with its activations."""
    channels, size, _ = data.input_shape
    offered = {"num_classes": data.num_classes, "in_channels": channels, "image_size": size}
    accepted = accepted_by(model, "model")
    foreign = {"name", "weights", "initial_weights", "input_spikes"} | ({"activation"} - accepted)
    options = OmegaConf.masked_copy(model, [str(key) for key in model if key not in foreign])
    offered = {name: value for name, value in offered.items() if name in accepted and name not in options}
    network = build(options, "model", **offered)
    if not isinstance(network, nn.Module):
        raise ConfigError(f"model._target_ must be a torch module, not {type(network).__name__}.")
    if "activation" in model and "activation" not in accepted:
        with config_errors("model.activation"):
            activation = hydra.utils.instantiate({"made": model.activation}, _convert_="all")["made"]
            network = replace_activations(network, activation, torch.zeros(2, *data.input_shape))
    return network


def _network(config: DictConfig, data: ImageDataModule) -> tuple[nn.Module, bool]:
    """Build the network and load its weights; say whether its ceilings are still to be fitted to them."""
    network, unfitted = _built(config.model, data), False
    if config.model.get("initial_weights") is not None:
        # Those of a plain ReLU network will do.
        ceilings = [f"{name}.ceiling" for name, part in network.named_modules() if isinstance(part, CeilingReLU)]
        with config_errors("model.initial_weights"):
            unfitted = bool(load_weights(network, config.model.get("initial_weights"), optional=ceilings))
    if config.model.get("input_spikes") is not None:
        images = next(iter(data.calibration_dataloader(config.calibration.images, config.calibration.images)))
        with config_errors("model.input_spikes"):
            network = expand_input(network, inputs_of(images), config.timesteps, **dict(config.model.input_spikes))
    if config.model.get("weights") is not None:
        with config_errors("model.weights"):
            load_weights(network, config.model.get("weights"))
    return network, unfitted


def _with_normalisation(network: nn.Module, data: ImageDataModule) -> nn.Module:
    if data.mean is None or data.std is None:
        return network
    return nn.Sequential(OrderedDict(normalisation=InputNormalisation(data.mean, data.std), network=network))


def _train(config: DictConfig, network: nn.Module, data: ImageDataModule, folder: Path) -> bool:
    """Train the network in place; say whether this process is the one that goes on."""
    teacher = {"teacher": _teacher(config, data)} if config.training.get("distillation") else {}
    classifier = build(config.training, "training", model=network, num_classes=data.num_classes, **teacher)
    if not isinstance(classifier, LightningModule):
        raise ConfigError(f"training._target_ must be a LightningModule, not {type(classifier).__name__}.")
    return _fit(config, classifier, data, folder)


def _teacher(config: DictConfig, data: ImageDataModule) -> nn.Module:
    """Return the ReLU network that the training starts from."""
    if config.model.get("initial_weights") is None:
        raise ConfigError("training.distillation learns from the ReLU network of model.initial_weights: give its file.")
    model = config.model.copy()
    if "activation" in model:
        model.activation = "relu"
    network = _built(model, data)
    with config_errors("model.initial_weights"):
        load_weights(network, model.initial_weights)
    return _with_normalisation(network, data) if config.input_coding != "direct" else network


def _fine_tune(
    config: DictConfig, snn: SpikingModel, ann: nn.Module, data: ImageDataModule, folder: Path
) -> SpikingModel | None:
    """Train a converted network on; None in a process that only helped to train."""
    own = ("max_epochs", "start")
    options = OmegaConf.masked_copy(config.fine_tuning, [str(key) for key in config.fine_tuning if key not in own])
    teacher = {"teacher": ann} if config.fine_tuning.get("distillation") else {}
    known = {"snn": snn, "num_classes": data.num_classes, "timesteps": config.timesteps}
    tuning = build(options, "fine_tuning", **known, **teacher)
    if not isinstance(tuning, FineTuning):
        raise ConfigError(f"fine_tuning._target_ must be a FineTuning, not {type(tuning).__name__}.")
    # The same trainer as for the original network, for other epochs, and with the paths in its options moved.
    config = config.copy()
    config.trainer = OmegaConf.create(OmegaConf.to_yaml(config.trainer).replace(str(config.folder), str(folder)))
    config.trainer.max_epochs = config.fine_tuning.get("max_epochs", config.trainer.max_epochs)
    if config.resume is not None:
        place = Path(config.resume).expanduser()
        begun = place.is_dir() and (place / folder.name).is_dir()
        config.resume = str(place / folder.name) if begun else None
    return tuning.to_spiking_model() if _fit(config, tuning, data, folder) else None


def _fit(config: DictConfig, module: LightningModule, data: ImageDataModule, folder: Path) -> bool:
    """Train with the config's trainer; say whether this process is the one that goes on."""
    entries = config.trainer.get("callbacks") or {}
    callbacks = [build(entry, f"trainer.callbacks.{name}") for name, entry in entries.items() if entry is not None]
    # Lightning adds a checkpoint of its own where there is none.
    checkpoints = any(isinstance(callback, Checkpoint) for callback in callbacks)
    plugins = {} if "plugins" in config.trainer else {"plugins": [WholeCheckpoints()]}
    trainer: Trainer = build(
        config.trainer,
        "trainer",
        callbacks=[*callbacks, StopsAtOnce()],
        enable_checkpointing=checkpoints,
        default_root_dir=str(folder),
        **plugins,
    )
    checkpoint = None
    if config.resume is not None:
        with config_errors("resume"):
            checkpoint = find_checkpoint(config.resume, folder)
            if checkpoint is not None:
                check_checkpoint(checkpoint, module, data, trainer)
    with warnings.catch_warnings():
        # Advice on workers and logging intervals for large clusters.
        warnings.simplefilter("ignore", PossibleUserWarning)
        # Lightning's own use of torch.
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")
        # A resumed training writes into its own folder.
        warnings.filterwarnings("ignore", message=".*dirpath has changed.*")
        warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
        try:
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
        except MisconfigurationException as error:
            raise ConfigError(f"trainer: {error}") from error
    metrics = {name: f"{float(value):.4f}" for name, value in trainer.callback_metrics.items()}
    logger.info("Trained for %d epochs: %s", trainer.current_epoch, ", ".join(f"{k} {v}" for k, v in metrics.items()))
    if distributed.is_available() and distributed.is_initialized():
        # What follows is done by one process, which must not wait for the others.
        trainer.strategy.barrier()
        distributed.destroy_process_group()
    return trainer.is_global_zero


def _is_first() -> bool:
    """Say whether this is the first of the processes that train together, or the only one."""
    return getattr(rank_zero_only, "rank", 0) == 0


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    with config_errors("device"):
        device = torch.device(name)
        try:
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"device={name} is not there: {reason} device=cpu or device=auto will do.") from error
        return device


def _check_convertible(network: nn.Module, data: ImageDataModule, strategies: list[Strategy]) -> None:
    """Find out before the training what would only be found out after it."""
    with config_errors("model"):
        graph = normalise(network, torch.zeros(2, *data.input_shape))
    for strategy in strategies:
        if getattr(strategy, "threshold", None) != "ceiling":
            continue
        for name, site in find_sites(graph).items():
            if site.ceiling is None:
                raise ConfigError(
                    f"strategy {strategy.name}: threshold=ceiling needs an activation with a trained ceiling in every "
                    f"layer, and layer {name} has none: train with model.activation=ceiling or channel_ceiling, or "
                    "choose strategy.threshold=mmse."
                )


@contextmanager
def _strategy_errors(strategy: Strategy) -> Iterator[None]:
    try:
        yield
    except SnnLowlatError:
        raise
    except ValueError as error:
        raise ConfigError(f"strategy {strategy.name}: {error}") from error


def _start(config: DictConfig, data: ImageDataModule) -> SpikingModel | None:
    """Load the spiking network that fine-tuning starts from; None if that is the converted one."""
    if config.fine_tuning.get("start") is None:
        return None
    with config_errors("fine_tuning.start"):
        snn = load(config.fine_tuning.start, backend=config.backend.name)
        wanted, found = tuple(data.input_shape), tuple(snn.provenance.input_shape)
        if wanted != found:
            raise ValueError(f"it is of a network for images {list(found)}, the data's are {list(wanted)}.")
        if snn.encoder != config.input_coding:
            raise ValueError(f"it is of a network with input_coding={snn.encoder}, not {config.input_coding}.")
        if snn.provenance.precision != "fp32":
            raise ValueError(f"it is of a network with precision={snn.provenance.precision}; only fp32 is trained.")
        classes = snn(torch.zeros(1, *wanted)).shape[-1]
        if classes != data.num_classes:
            raise ValueError(f"it is of a network for {classes} classes, the data have {data.num_classes}.")
        return snn


@contextmanager
def _stage(name: str, lower: str) -> Iterator[None]:
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


def _kept(folder: Path) -> str:
    """Say what an interrupted run leaves, and how it goes on."""
    places = ("checkpoints/last.ckpt", "fine_tuning/checkpoints/last.ckpt")
    checkpoints = [place for place in places if (folder / place).exists()]
    parts = [f"the training up to its last whole epoch ({place})" for place in checkpoints[-1:]]
    parts += [f"the {what} ({name})" for name, what in _RESULTS.items() if (folder / name).exists()]
    kept = f"Kept in {folder}: {', '.join(parts)}." if parts else f"The run in {folder} had finished nothing yet."
    key, place = "hydra.run.dir", folder
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        key, place = "hydra.sweep.dir", Path(HydraConfig.get().sweep.dir).absolute()
    options = f"{key}={place}" + (" 'resume=${folder}'" if checkpoints else "")
    rest = " with this run; those that are finished are not done again" if key == "hydra.sweep.dir" else ""
    return f"{kept} The same command with {options} goes on{rest}."


_RESULTS = {"ann.pt": "trained network", "snn.pt": "spiking network", "results.csv": "results so far"}


@hydra.main(version_base="1.3", config_path=str(CONFIG_FOLDER), config_name="config")
def main(config: DictConfig) -> float:
    """Run what the command line asks for; return the main strategy's accuracy after T steps, for sweepers.

    Choose among many settings by validation accuracy: ``objective=validation``.
    """
    for name in ("lightning.pytorch", "lightning.fabric", *([] if _is_first() else ["snn_lowlat"])):
        logging.getLogger(name).setLevel(logging.WARNING)
    folder = Path(HydraConfig.get().runtime.output_dir)
    if _is_first():
        for sentence in without_effect(config, list(HydraConfig.get().overrides.task)):
            logger.warning(sentence)
    try:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            check_sweep(config)
        with interruptible():
            return run(config, folder)
    # Hydra prints errors of its own kind without a traceback; HYDRA_FULL_ERROR=1 shows it.
    except ConfigError:
        raise
    except (SnnLowlatError, FileNotFoundError) as error:
        raise CompactHydraException(str(error)) from error
    except (OSError, RuntimeError) as error:
        if is_full_disk(error):
            raise CompactHydraException(
                f"the disk that {folder} is on is full, or a file may not be larger ({error}): make room and start the "
                "same command again, or choose another folder with hydra.run.dir=DIR. What was finished before is kept."
            ) from error
        if isinstance(error, PermissionError):
            raise CompactHydraException(f"{error.filename or folder}: {error.strerror}.") from error
        raise
    except (Interrupted, SIGTERMException) as error:
        interrupted = error if isinstance(error, Interrupted) else Interrupted(signal.SIGTERM)
        interrupted.message = _kept(folder)
        raise interrupted from None


def command_line() -> None:
    """Run :func:`main`; where Hydra refuses a name that does not exist, add which there are."""
    problem = null_group(sys.argv[1:])
    if problem is not None:
        _say(problem)
        raise SystemExit(1)
    try:
        with interruptible():
            main()
    except Interrupted as interrupted:
        if not _is_first():
            # Lightning kills the first process, which has yet to say what is kept, where another one fails.
            raise SystemExit(0) from None
        _say(f"Stopped by {interrupted.name}. {interrupted.message}".strip())
        raise SystemExit(interrupted.status) from None
    except SystemExit as end:
        sentence = hint(sys.argv[1:]) if end.code else None
        if sentence is not None:
            _say(sentence)
        raise


def _say(sentence: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True, markup=False).print(sentence)
