"""What the command line answers where a name does not exist, a plugin is not there, or an option has no effect."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf

from snn_lowlat.cli.choices import CONFIG_FOLDER, options
from snn_lowlat.errors import unknown_name

__all__ = ["hint", "null_group", "unknown_key", "without_effect"]


def unknown_key(overrides: Sequence[str]) -> str | None:
    """Say which keys there are in the place of the first override whose key does not exist; None if all exist.

    Parameters
    ----------
    overrides : sequence of str
        The command line's, such as ``["+experiment=quickstart", "timestep=4"]``.
    """
    keys = [override.partition("=")[0] for override in overrides if override[:1] not in ("+", "~", "-", "")]
    groups = [override for override in overrides if options(override.partition("=")[0].lstrip("+"))]
    keys = [key for key in keys if not options(key)]
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
        known = options(group)
        if group == "sweep":
            for name in names:
                sentence = _missing_plugin(CONFIG_FOLDER / group / f"{name}.yaml")
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
            known = options(group)
            without = "" if "none" in known else f" Leave it out with ~{group}." if "/" in group else ""
            return f"{group}=null is no choice. There are: {', '.join(known)}.{without}"
    return None


def _chosen(overrides: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Return the names that a command line gives to groups of the config."""
    found = []
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        if key and not key.startswith(("-", "~", ".", "/")) and "=" in override and options(key):
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
