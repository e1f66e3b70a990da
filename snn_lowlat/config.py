"""What a config may hold, and the objects it names.

The keys and their types are dataclasses, so that a key that does not exist or a value of the wrong type is found before
any work is done. Objects are built from ``_target_`` and its arguments, or from a registered name and its options.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Optional

import hydra
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import CompactHydraException
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from snn_lowlat.checks import count, one_of
from snn_lowlat.convert import PRECISIONS
from snn_lowlat.encoding import make_encoder
from snn_lowlat.errors import SnnLowlatError, unknown_name
from snn_lowlat.evaluation import FORMATS, cost_model
from snn_lowlat.hosts import get_backend
from snn_lowlat.limits import cores, is_full_disk, is_out_of_memory
from snn_lowlat.neurons import MAX_POOLINGS

__all__ = [
    "CONFIG_FOLDER",
    "Config",
    "ConfigError",
    "accepted_by",
    "build",
    "check_sweep",
    "checked",
    "config_errors",
    "hint",
    "listed_steps",
    "make",
    "null_group",
    "unknown_key",
    "without_effect",
]

_PACKAGE = Path(__file__).resolve().parent
CONFIG_FOLDER = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"
"""The config: inside an installed package, or beside the package in its repository."""


class ConfigError(SnnLowlatError, CompactHydraException):
    """The config holds a key or value that does not exist or is not fit; the message says what does exist."""


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
    for key in ("timesteps", "threads", "calibration.images", "calibration.batch_size", "report.images"):
        if OmegaConf.select(config, key) is not None:
            _whole_number(config, key)
    _whole_number(config, "seed", 0, 2**32 - 1)
    for key, minimum in (("data.batch_size", 1), ("data.seed", 0), ("training.seed", 0), ("fine_tuning.seed", 0)):
        if OmegaConf.select(config, key) is not None:
            _whole_number(config, key, minimum)
    for key in ("strategy", "backend"):
        if config[key].get("name") is None:
            raise ConfigError(f"{key} needs a name: choose one with {key}=NAME.")
    steps = listed_steps(config)
    if steps is not None and (not steps or min(steps) < 1 or max(steps) > config.timesteps):
        raise ConfigError(f"evaluation.timesteps must be between 1 and timesteps={config.timesteps}, not {steps}.")
    if config.model.get("weights") is not None and config.model.get("initial_weights") is not None:
        raise ConfigError(
            "model.weights is of a trained network, model.initial_weights of one to be trained: give one of them."
        )
    if config.training.get("_target_") is None and config.model.get("weights") is None:
        raise ConfigError("there is no training (training=none), so the config needs model.weights=PATH.")
    if config.benchmark is None:
        for key in ("data", "model", "trainer"):
            if config[key].get("_target_") is None:
                raise ConfigError(f"{key} needs _target_, the full name of a class: choose one with {key}=NAME.")
        _check_trainings(config)
    with config_errors("backend"):
        get_backend(config.backend.get("name"))
    with config_errors("report"):
        for model in config.report.energy:
            cost_model(model)
        for name in config.report.formats:
            if name not in FORMATS:
                raise unknown_name("format", name, FORMATS)
    if config.objective not in ("test", "validation"):
        raise ConfigError(str(unknown_name("objective", config.objective, ("test", "validation"))))
    if config.objective == "validation" and config.data.get("validation_fraction") == 0:
        raise ConfigError("objective=validation needs validation images: data.validation_fraction must not be 0.")
    if config.precision not in PRECISIONS:
        raise ConfigError(str(unknown_name("precision", config.precision, PRECISIONS)))
    with config_errors("max_pool"):
        one_of("max-pooling", config.max_pool, MAX_POOLINGS)
    with config_errors("input_coding"):
        make_encoder(config.input_coding)
    if config.benchmark is not None:
        _check_benchmark(config)
    return config


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


def _whole_number(config: DictConfig, key: str, minimum: int = 1, maximum: int | None = None) -> int:
    try:
        return count(key, OmegaConf.select(config, key), minimum, maximum)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _check_trainings(config: DictConfig) -> None:
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
            _whole_number(config, key)
    if limits["max_steps"] not in (None, -1):
        _whole_number(config, "trainer.max_steps")
    if limits["limit_train_batches"] is not None and not limits["limit_train_batches"]:
        raise ConfigError("trainer.limit_train_batches=0 leaves nothing to train with.")
    _check_processes(config)


def _check_processes(config: DictConfig) -> None:
    accelerator, devices = config.trainer.get("accelerator", "auto"), config.trainer.get("devices", "auto")
    if accelerator == "auto" and not torch.cuda.is_available() and not torch.backends.mps.is_available():
        accelerator = "cpu"
    # Lightning takes a number as text too.
    number = int(devices) if isinstance(devices, str) and devices.lstrip("-").isdigit() else devices
    if accelerator != "cpu" or number == "auto":
        return
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ConfigError(f"trainer.devices must be a whole number of at least 1 on a processor, not {devices!r}.")
    if number > cores():
        raise ConfigError(
            f"trainer.devices={number} asks for {number} processes, but this machine has {cores()} processor cores: "
            f"trainer.devices={cores()} is the most that is of use."
        )


def _check_benchmark(config: DictConfig) -> None:
    from snn_lowlat.benchmark.tasks import TASKS

    wanted = config.benchmark
    if wanted.task not in TASKS:
        raise ConfigError(f"benchmark.task: {unknown_name('task', wanted.task, TASKS)}")
    for key in ("timesteps", "batch_sizes", "input_shape"):
        values = list(wanted[key])
        if not values or min(values) < 1:
            raise ConfigError(f"benchmark.{key} must be whole numbers of at least 1, such as [1,4], not {values}.")
    if len(wanted.input_shape) != 3:
        raise ConfigError(f"benchmark.input_shape must be [channels,height,width], not {list(wanted.input_shape)}.")
    if wanted.rounds < 2:
        raise ConfigError(f"benchmark.rounds must be at least 2, not {wanted.rounds}.")
    if not wanted.seconds >= 0:
        raise ConfigError(f"benchmark.seconds must not be negative, not {wanted.seconds}.")
    names = [str(name) for name, entry in wanted.networks.items() if entry is not None]
    if not names:
        raise ConfigError("benchmark.networks must hold a network: a name, and below it _target_ and its arguments.")
    for name, file in wanted.weights.items():
        if file is not None and name not in wanted.networks:
            raise ConfigError(f"benchmark.weights: {unknown_name('network', name, names)}")
    if config.device not in ("auto", "cpu"):
        raise ConfigError(f"device must be auto or cpu where processors are timed, not {config.device}.")


def unknown_key(overrides: Sequence[str]) -> str | None:
    """Say which keys there are in the place of the first override whose key does not exist; None if all exist.

    Parameters
    ----------
    overrides : sequence of str
        The command line's, such as ``["+experiment=quickstart", "timestep=4"]``.
    """
    keys = [override.partition("=")[0] for override in overrides if override[:1] not in ("+", "~", "-", "")]
    groups = [o for o in overrides if (CONFIG_FOLDER / o.partition("=")[0].lstrip("+")).is_dir()]
    keys = [key for key in keys if not (CONFIG_FOLDER / key).is_dir()]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
            config = compose("config", overrides=groups)
    except CompactHydraException:
        return None
    for key in keys:
        parent, _, name = key.rpartition(".")
        place = OmegaConf.select(config, parent, throw_on_missing=False) if parent else config
        # A key whose value is still missing is there.
        if isinstance(place, DictConfig) and name not in place.keys() and not key.startswith("hydra"):  # noqa: SIM118
            return str(unknown_name(f"config key {parent + ':' if parent else ''}".rstrip(), name, map(str, place)))
    return None


def hint(overrides: Sequence[str]) -> str | None:
    """Say what there is in the place of a name on the command line that does not exist; None if all exist.

    Parameters
    ----------
    overrides : sequence of str
        The command line's.
    """
    for group, names in _chosen(overrides):
        place = CONFIG_FOLDER / group
        known = sorted(file.stem for file in place.glob("*.yaml"))
        if group == "sweep":
            for name in names:
                sentence = _missing_plugin(place / f"{name}.yaml")
                if sentence is not None:
                    return sentence
        unknown = [name for name in names if name not in known]
        if unknown and not any(override.startswith(("--config-dir", "-cd")) for override in overrides):
            return str(unknown_name(f"option of {group}", unknown[0], known))
    return unknown_key(overrides)


def null_group(overrides: Sequence[str]) -> str | None:
    """Say what to do in the place of a choice of nothing, such as ``strategy=null``, which Hydra can't take; else None.

    Parameters
    ----------
    overrides : sequence of str
        The command line's.
    """
    for group, names in _chosen(overrides):
        if "null" in names or not names:
            known = sorted(file.stem for file in (CONFIG_FOLDER / group).glob("*.yaml"))
            without = "" if "none" in known else f" Leave it out with ~{group}." if "/" in group else ""
            return f"{group}=null is no choice. There are: {', '.join(known)}.{without}"
    return None


def _chosen(overrides: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Return the names that a command line gives to groups of the config."""
    found = []
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        if key and not key.startswith(("-", "~", ".", "/")) and "=" in override and (CONFIG_FOLDER / key).is_dir():
            names = [name.strip(" '\"") for name in value.strip("[]").split(",")]
            found.append((key, [name for name in names if name] or (["null"] if not value else [])))
    return [(group, names) for group, names in found if names]


def _missing_plugin(file: Path) -> str | None:
    """Say what to install for a file of ``conf/sweep`` whose plugin is not there."""
    if not file.is_file():
        return None
    text = file.read_text(encoding="utf-8")
    plugin = re.search(r"override /hydra/(launcher|sweeper): (\w+)", text)
    extra = re.search(r"pip install '[^']+'", text)
    if plugin is None or extra is None:
        return None
    package = f"hydra_plugins.hydra_{plugin[2].removesuffix('_slurm').removesuffix('_local')}_{plugin[1]}"
    try:
        there = find_spec(package) is not None
    except ModuleNotFoundError:
        there = False
    return None if there else f"sweep={file.stem} needs a plugin that is not installed: {extra[0]}"


def without_effect(config: DictConfig, overrides: Sequence[str]) -> list[str]:
    """Name what the command line says and what has no effect beside the rest of the config.

    Parameters
    ----------
    config : DictConfig
        The run's config.
    overrides : sequence of str
        The command line's.
    """
    found = []
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        if value in ("none", "null"):
            continue
        for start, reason in _idle(config):
            if key == start or key.startswith(f"{start}."):
                found.append(f"{override.lstrip('+')} has no effect: {reason}.")
                break
    return found


def _idle(config: DictConfig) -> Iterator[tuple[str, str]]:
    """Give the parts of the config that nothing reads, and why."""
    if config.get("benchmark") is not None:
        for key in set(map(str, config)) - {"name", "seed", "threads", "folder", "calibration", "benchmark", "device"}:
            yield key, "a benchmark measures its own networks"
        return
    model, data, report, training, fine_tuning = (
        config.get(key) or {} for key in ("model", "data", "report", "training", "fine_tuning")
    )
    trains, fine_tunes = model.get("weights") is None, fine_tuning.get("_target_") is not None
    if not trains:
        yield "training", "model.weights makes the training needless"
    if not fine_tunes:
        yield "fine_tuning.max_epochs", "fine_tuning=none trains nothing"
    if not trains and not fine_tunes:
        for key in ("trainer", "data.augment"):
            yield key, "model.weights makes the training needless"
    if not report.get("formats"):
        for key in ("report.images", "report.energy"):
            yield key, "report=none measures nothing; choose report=html or markdown"
    if config.get("input_coding") == "direct" and data.get("normalise") is False:
        for key in ("data.mean", "data.std"):
            yield key, "data.normalise is false"
    for key, part in (("training", training), ("fine_tuning", fine_tuning)):
        if part.get("schedule") != "step":
            for name in ("milestones", "gamma"):
                yield f"{key}.{name}", f"{key}.schedule is {part.get('schedule')}, not step"
        if part.get("optimizer") != "sgd":
            for name in ("momentum", "nesterov"):
                yield f"{key}.{name}", f"{key}.optimizer is {part.get('optimizer')}, not sgd"
        if not part.get("distillation"):
            yield f"{key}.temperature", f"{key}.distillation is 0"
    if not fine_tuning.get("train_thresholds", True) and not fine_tuning.get("train_leaks", True):
        yield "fine_tuning.neuron_learning_rate_factor", "neither thresholds nor leaks are trained"


def listed_steps(config: DictConfig) -> list[int] | None:
    """Return the steps that the evaluation lists; None for all.

    Raises
    ------
    ConfigError
        If they are no list of whole numbers.
    """
    steps = config.evaluation.timesteps
    if steps is None:
        return None
    if isinstance(steps, ListConfig) and all(isinstance(step, int) for step in steps):
        return list(steps)
    raise ConfigError(f"evaluation.timesteps must be a list of steps such as [1,2,4], or null for all, not {steps!r}.")


def make(maker: Callable[..., Any], entry: object, key: str) -> Any:
    """Make a registered object from its name, or from a mapping of ``name`` and options.

    Parameters
    ----------
    maker : callable
        Takes a name and options, such as :func:`snn_lowlat.strategies.make_strategy`.
    entry : str or DictConfig
        What the config says.
    key : str
        Where it says so, for messages.

    Raises
    ------
    ConfigError
        If the name or an option does not exist or is not fit.
    """
    options = dict(OmegaConf.to_container(entry)) if isinstance(entry, DictConfig) else {"name": entry}  # type: ignore[arg-type]
    with config_errors(key):
        return maker(options.pop("name", None), **{str(name): value for name, value in options.items()})


def build(config: DictConfig, key: str, **known: Any) -> Any:
    """Build the object that ``_target_`` names from the arguments beside it.

    Parameters
    ----------
    config : DictConfig
        ``_target_`` and arguments.
    key : str
        Where the config is, for messages.
    **known
        Arguments that the config does not hold, or that overrule it.

    Raises
    ------
    ConfigError
        If the target does not exist, takes no such argument, or refuses one.
    """
    target = _target(config, key)
    accepted = _parameters(target)
    for name in config:
        if accepted and str(name) not in accepted and not str(name).startswith("_"):
            raise ConfigError(f"{key}: {unknown_name(f'option of {target.__name__}', str(name), accepted)}")
    options = OmegaConf.masked_copy(config, [str(name) for name in config if name not in known])
    with config_errors(key):
        partial = hydra.utils.instantiate(options, _partial_=True, _convert_="all")
        return partial(**known)


def accepted_by(config: DictConfig, key: str) -> set[str]:
    """Name the arguments that a config's ``_target_`` can be given; empty if it takes anything."""
    return _parameters(_target(config, key))


def _target(config: DictConfig, key: str) -> Callable[..., Any]:
    name = config.get("_target_")
    if not isinstance(name, str):
        raise ConfigError(f"{key} needs _target_, the full name of a class or function.")
    with config_errors(f"{key}._target_"):
        target: Callable[..., Any] = hydra.utils.get_object(name)
        return target


def _parameters(target: Callable[..., Any]) -> set[str]:
    named: set[str] = set()
    for level in inspect.getmro(target) if inspect.isclass(target) else (target,):
        if inspect.isclass(level) and "__init__" not in vars(level):
            continue
        parameters = list(inspect.signature(level).parameters.values())
        named |= {
            parameter.name
            for parameter in parameters
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        }
        # Options that are passed on are those of the next class up.
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return named
    return set()


@contextmanager
def config_errors(key: str) -> Iterator[None]:
    """Turn what goes wrong inside into a :class:`ConfigError` that names the key."""
    try:
        yield
    except ConfigError:
        raise
    except _USERS_ERRORS as error:
        if is_out_of_memory(error) or is_full_disk(error):
            raise
        missing = error.__cause__ if isinstance(error.__cause__, ImportError) else error
        extra = _EXTRAS.get(missing.name or "") if isinstance(missing, ImportError) else None
        extra = extra or next((name for name in _EXTRAS.values() if f"`{name}`" in str(error)), None)
        more = f" pip install 'snn_lowlat[{extra}]'" if extra else ""
        raise ConfigError(f"{key}: {error}{more}") from error


_USERS_ERRORS = (
    *(CompactHydraException, ImportError, FileNotFoundError, MisconfigurationException),
    *(RuntimeError, TypeError, ValueError),
)
_EXTRAS = {"tensorboard": "tensorboard", "tensorboardX": "tensorboard", "nir": "nir", "nirtorch": "nir"}
