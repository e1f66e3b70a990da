"""What a config may hold: its keys and their types, and the values that go together.

A key that does not exist or a value that is not fit is found before any work is done.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Optional

import torch
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from snn_lowlat.benchmark.tasks import TASKS
from snn_lowlat.checks import count, number, one_of
from snn_lowlat.cli.building import ConfigError, config_errors
from snn_lowlat.cli.limits import cores
from snn_lowlat.convert import PRECISIONS
from snn_lowlat.encoding import make_encoder
from snn_lowlat.errors import unknown_name
from snn_lowlat.evaluation import FORMATS, cost_model
from snn_lowlat.hosts import get_backend
from snn_lowlat.neurons import MAX_POOLINGS

__all__ = ["BenchmarkConfig", "Config", "check_sweep", "checked", "steps_shown"]


@dataclass
class CalibrationConfig:
    """The pictures that thresholds are set by.

    Parameters
    ----------
    images : int
        How many, from the training split.
    batch_size : int
        Pictures in a batch.
    progress : bool
        Show a progress bar.
    """

    images: int = 1000
    batch_size: int = 100
    progress: bool = False


@dataclass
class EvaluationConfig:
    """How the spiking network is evaluated.

    Parameters
    ----------
    timesteps : list of int or None
        The steps to list; all by default.
    progress : bool
        Show a progress bar.
    """

    timesteps: Any = None
    progress: bool = False


@dataclass
class ReportConfig:
    """What is measured and written beside accuracy.

    Parameters
    ----------
    formats : list of str
        ``"html"``, ``"markdown"``; without any, neither operations nor errors are measured.
    images : int or None
        The number of test images to measure them on; None for all.
    energy : list of str
        Names of cost models.
    """

    formats: list[str] = field(default_factory=list)
    images: Optional[int] = 1000  # noqa: UP045 (OmegaConf reads the annotation)
    energy: list[str] = field(default_factory=list)


@dataclass
class BenchmarkConfig:
    """What is timed instead of training and evaluating a network; see :func:`snn_lowlat.benchmark.run_benchmark`.

    Parameters
    ----------
    task : str
        ``"simulation"``, from images to logits, or ``"fine_tuning"``, back to the gradients of all weights too.
    networks : mapping
        By name in the results, mappings of ``_target_`` and its arguments; None leaves one out. ``in_channels`` and
        ``image_size`` are those of the images if the target takes them.
    weights : mapping
        By the same names, files of trained weights; random ones without a file.
    input_shape : list of int
        Of one image: channels, height, width.
    timesteps : list of int
        The numbers of steps.
    batch_sizes : list of int
        Images in a batch.
    rounds : int
        How often each contestant is timed in each setting, at most.
    seconds : float
        No further round of a setting starts after so many seconds, if there have been two.
    memory : bool
        Measure the memory too, for the most steps and the largest batch, each contestant in a process of its own.
    """

    task: str = "simulation"
    networks: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, Any] = field(default_factory=dict)
    input_shape: list[int] = field(default_factory=lambda: [3, 32, 32])
    timesteps: list[int] = field(default_factory=lambda: [1, 4, 8, 16])
    batch_sizes: list[int] = field(default_factory=lambda: [1, 32, 128])
    rounds: int = 25
    seconds: float = 20.0
    memory: bool = True


@dataclass
class Config:
    """The keys that a config has, and their types.

    Parameters
    ----------
    name : str
        The experiment's name in reports.
    seed : int
        For splits, training, the choice of calibration pictures and Poisson spikes.
    timesteps : int
        T, the simulation window.
    strategy : mapping
        ``name`` and the strategy's options.
    compare : list
        Further strategies evaluated beside the main one: a name, or a mapping of ``name`` and options.
    refinements : list
        Names, or mappings of ``name`` and options; they follow every strategy.
    precision : str
        One of :data:`snn_lowlat.convert.PRECISIONS`.
    max_pool : str
        One of :data:`snn_lowlat.neurons.MAX_POOLINGS`.
    input_coding : str
        ``"direct"``, ``"poisson"`` or ``"temporal_switch"``. With spikes the data's normalisation becomes a part of
        the network.
    resume : str or None
        The folder of a run, or a checkpoint, whose training goes on.
    device : str
        Where networks are converted and evaluated; ``"auto"`` takes an accelerator if there is one.
    threads : int or None
        CPU threads that torch may use; torch's own number by default. Few where many jobs run or networks are tiny.
    folder : str or None
        The run's own folder, which the run fills in.
    objective : str
        What a run returns to a search: ``"test"`` or ``"validation"`` accuracy. A search must never see test images.
    calibration, evaluation, report : CalibrationConfig, EvaluationConfig, ReportConfig
        See there.
    backend : mapping
        ``name`` of the host library.
    model : mapping
        ``_target_`` and its arguments, ``name`` for reports, and ``weights``, a file that makes training needless.
        ``num_classes``, ``in_channels`` and ``image_size`` are the data's if the target takes them. ``activation``
        takes the place of the network's ReLUs, also where the target does not take it.
    data, training, trainer : mapping
        ``_target_`` and its arguments: a data module, a Lightning module, Lightning's trainer, whose ``callbacks`` are
        a mapping of such mappings.
    fine_tuning : mapping
        ``_target_`` and its arguments: how the converted network is trained on, and ``max_epochs``, for how long.
    benchmark : BenchmarkConfig or None
        Networks to time; of the other keys, only ``name``, ``seed``, ``threads``, ``folder`` and ``calibration`` count
        then.
    """

    name: str = MISSING
    seed: int = 0
    timesteps: int = 8
    strategy: dict[str, Any] = field(default_factory=dict)
    compare: list[Any] = field(default_factory=list)
    refinements: list[Any] = field(default_factory=list)
    precision: str = "fp32"
    max_pool: str = "cumulative"
    input_coding: str = "direct"
    resume: Optional[str] = None  # noqa: UP045 (OmegaConf reads the annotation)
    device: str = "auto"
    threads: Optional[int] = None  # noqa: UP045
    folder: Optional[str] = None  # noqa: UP045
    objective: str = "test"
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    backend: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    fine_tuning: dict[str, Any] = field(default_factory=dict)
    benchmark: Optional[BenchmarkConfig] = None  # noqa: UP045


def checked(config: DictConfig, folder: Path | None = None) -> DictConfig:
    """Return the config with its keys and types checked against :class:`Config`, and names looked up.

    Parameters
    ----------
    config : DictConfig
        Composed from ``conf/``.
    folder : Path, optional
        The run's own folder, for the keys that refer to it.

    Raises
    ------
    ConfigError
        If a key does not exist, a value has the wrong type, is missing, or names something that does not exist.
    """
    try:
        config = OmegaConf.merge(OmegaConf.structured(Config), config)  # type: ignore[assignment]
    # Hydra would print OmegaConf's error once more if it stayed as the cause.
    except ConfigKeyError as error:
        known = [key.name for key in fields(error.object_type)] if error.object_type else []
        raise ConfigError(str(unknown_name("config key", error.full_key, known))) from None
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {str(error.msg or error).splitlines()[0]}") from None
    if folder is not None:
        config.folder = str(folder)
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ConfigError(
            "the config needs " + " and ".join(f"{key}=VALUE" for key in missing) + " on the command line."
        )
    OmegaConf.resolve(config)
    with config_errors():
        _check_values(config)
        _check_choices(config)
        if config.benchmark is None:
            _check_trainings(config)
        else:
            _check_benchmark(config)
    return config


def _check_values(config: DictConfig) -> None:
    for key in ("timesteps", "threads", "calibration.images", "calibration.batch_size", "report.images"):
        _check_count(config, key, optional=True)
    _check_count(config, "seed", 0, 2**32 - 1)
    for key, minimum in (("data.batch_size", 1), ("data.seed", 0), ("training.seed", 0), ("fine_tuning.seed", 0)):
        _check_count(config, key, minimum, optional=True)
    steps_shown(config)


def _check_choices(config: DictConfig) -> None:
    for key in ("strategy", "backend"):
        if config[key].get("name") is None:
            raise ConfigError(f"{key} needs a name: choose one with {key}=NAME.")
    weights, initial = config.model.get("weights"), config.model.get("initial_weights")
    if weights is not None and initial is not None:
        raise ConfigError(
            "model.weights is of a trained network, model.initial_weights of one to be trained: give one of them."
        )
    if config.training.get("_target_") is None and weights is None:
        raise ConfigError("there is no training (training=none), so the config needs model.weights=PATH.")
    with config_errors("backend"):
        get_backend(config.backend.name)
    with config_errors("report"):
        for model in config.report.energy:
            cost_model(model)
        for name in config.report.formats:
            one_of("format", name, FORMATS)
    one_of("objective", config.objective, ("test", "validation"))
    if config.objective == "validation" and config.data.get("validation_fraction") == 0:
        raise ConfigError("objective=validation needs validation images: data.validation_fraction must not be 0.")
    one_of("precision", config.precision, PRECISIONS)
    with config_errors("max_pool"):
        one_of("max-pooling", config.max_pool, MAX_POOLINGS)
    with config_errors("input_coding"):
        make_encoder(config.input_coding)


def check_sweep(config: DictConfig) -> None:
    """Check that a config can be one of a ``--multirun``.

    Raises
    ------
    ConfigError
        If its training starts the whole command again for each process.
    """
    trainer = config.get("trainer") or {}
    strategy, devices = str(trainer.get("strategy", "auto")), trainer.get("devices", 1)
    if devices not in (1, "1", "auto") and not strategy.endswith(("fork", "spawn", "notebook")):
        raise ConfigError(
            f"trainer.devices={devices} and --multirun don't go together: every process would start the whole sweep "
            "again. Start the runs one by one, or choose trainer.devices=1."
        )


def _check_count(
    config: DictConfig, key: str, minimum: int = 1, maximum: int | None = None, *, optional: bool = False
) -> None:
    value = OmegaConf.select(config, key)
    if value is not None or not optional:
        count(key, value, minimum, maximum)


def _check_trainings(config: DictConfig) -> None:
    for key in ("data", "model", "trainer"):
        if config[key].get("_target_") is None:
            raise ConfigError(f"{key} needs _target_, the full name of a class: choose one with {key}=NAME.")
    trains, fine_tunes = config.model.get("weights") is None, config.fine_tuning.get("_target_") is not None
    if not trains and not fine_tunes:
        if config.resume is not None:
            raise ConfigError("resume goes on with a training, but model.weights makes it needless: give one of them.")
        return
    if fine_tunes and config.precision != "fp32":
        raise ConfigError(
            f"precision={config.precision} and fine_tuning don't go together: training makes floating-point numbers of "
            "whole ones. Choose precision=fp32 or fine_tuning=none."
        )
    keys = ["trainer.max_epochs"] if trains else []
    if fine_tunes:
        keys.append("fine_tuning.max_epochs" if "max_epochs" in config.fine_tuning else "trainer.max_epochs")
    limits = {name: config.trainer.get(name) for name in ("max_steps", "max_time", "limit_train_batches")}
    ends = limits["max_time"] is not None or limits["max_steps"] not in (None, -1)
    for key in keys:
        if not (ends and OmegaConf.select(config, key) in (None, -1)):
            _check_count(config, key)
    if limits["max_steps"] not in (None, -1):
        _check_count(config, "trainer.max_steps")
    if limits["limit_train_batches"] is not None and not limits["limit_train_batches"]:
        raise ConfigError("trainer.limit_train_batches=0 leaves nothing to train with.")
    _check_processes(config)


def _check_processes(config: DictConfig) -> None:
    accelerator, devices = config.trainer.get("accelerator", "auto"), config.trainer.get("devices", "auto")
    if accelerator == "auto" and not torch.cuda.is_available() and not torch.backends.mps.is_available():
        accelerator = "cpu"
    # Lightning takes a number as text too.
    wanted = int(devices) if isinstance(devices, str) and devices.lstrip("-").isdigit() else devices
    if accelerator != "cpu" or wanted == "auto":
        return
    if count("trainer.devices", wanted) > cores():
        raise ConfigError(
            f"trainer.devices={wanted} asks for {wanted} processes, but this machine has {cores()} processor cores: "
            f"trainer.devices={cores()} is the most that is of use."
        )


def _check_benchmark(config: DictConfig) -> None:
    wanted = config.benchmark
    with config_errors("benchmark.task"):
        one_of("task", wanted.task, TASKS)
    for key in ("timesteps", "batch_sizes", "input_shape"):
        if not wanted[key]:
            raise ConfigError(f"benchmark.{key} must be whole numbers of at least 1, such as [1,4], not [].")
        for value in wanted[key]:
            count(f"each of benchmark.{key}", value)
    if len(wanted.input_shape) != 3:
        raise ConfigError(f"benchmark.input_shape must be [channels,height,width], not {list(wanted.input_shape)}.")
    count("benchmark.rounds", wanted.rounds, 2)
    number("benchmark.seconds", wanted.seconds, 0)
    names = [str(name) for name, entry in wanted.networks.items() if entry is not None]
    if not names:
        raise ConfigError("benchmark.networks must hold a network: a name, and below it _target_ and its arguments.")
    for name, file in wanted.weights.items():
        if file is not None and name not in wanted.networks:
            raise unknown_name("network of benchmark.weights:", name, names)
    if config.device not in ("auto", "cpu"):
        raise ConfigError(f"device must be auto or cpu where processors are timed, not {config.device}.")


def steps_shown(config: DictConfig) -> list[int] | None:
    """Return the steps that the evaluation lists; None for all.

    Raises
    ------
    ConfigError
        If they are no list of steps of the simulation.
    """
    steps = config.evaluation.timesteps
    if steps is None:
        return None
    if not isinstance(steps, ListConfig) or not steps:
        raise ConfigError(
            f"evaluation.timesteps must be a list of steps such as [1,2,4], or null for all, not {steps!r}."
        )
    with config_errors():
        return [count("each of evaluation.timesteps", step, 1, config.timesteps) for step in steps]
