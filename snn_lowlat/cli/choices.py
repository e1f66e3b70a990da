"""What there is to choose from on the command line: the files of ``conf/``, and what is registered by name.

A strategy or a host library of another package is an option of its group as this package's own are, and its options
have the defaults of its dataclass.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from snn_lowlat.hosts import BACKENDS
from snn_lowlat.refinement.registry import REGISTRY as REFINEMENTS
from snn_lowlat.registry import Registered
from snn_lowlat.strategies.registry import REGISTRY as STRATEGIES

__all__ = ["CONFIG_FOLDER", "options", "store_choices"]

_PACKAGE = Path(__file__).resolve().parents[1]
CONFIG_FOLDER = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"
"""The config: inside an installed package, or beside the package in its repository."""

_GROUPS: Mapping[str, Mapping[str, object]] = {"strategy": STRATEGIES, "backend": BACKENDS}


def options(group: str) -> list[str]:
    """Name the options of a group of the config, sorted; without any there is no such group."""
    return sorted({file.stem for file in (CONFIG_FOLDER / group).glob("*.yaml")} | set(_GROUPS.get(group, ())))


def store_choices() -> None:
    """Make Hydra know what is registered by now, and what ``--help`` says of it."""
    for group, entries in _GROUPS.items():
        for name in entries:
            defaults = _defaults(STRATEGIES[name]) if group == "strategy" else {}
            ConfigStore.instance().store(name, {"name": name, **defaults}, group, provider="snn_lowlat")
    OmegaConf.register_new_resolver("snn_lowlat.help", _help, replace=True)


def _defaults(cls: type[Registered]) -> dict[str, Any]:
    """Return the options that a config can hold; ``???`` stands for a value that has to be given."""
    found = {}
    for field in dataclasses.fields(cls):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        value = MISSING if default is dataclasses.MISSING else default
        if field.init and _is_plain(value):
            found[field.name] = value
    return found


def _is_plain(value: object) -> bool:
    try:
        held: Any = OmegaConf.to_container(OmegaConf.create({"value": value}))
    except OmegaConfBaseException:
        return False
    return type(held["value"]) is type(value)


def _help(*, _root_: DictConfig) -> str:
    """Say what the chosen strategy's options are, and which refinements can follow it."""
    lines = []
    name = OmegaConf.select(_root_, "strategy.name", throw_on_missing=False)
    if name in STRATEGIES:
        lines += [f"== strategy={name} ==", *_described(STRATEGIES[name], "strategy."), ""]
    lines += ["== Refinements ==", "refinements=[NAME,...] or refinements=[{name: NAME, OPTION: VALUE}]", ""]
    for name in REFINEMENTS.names():
        lines += [name, *_described(REFINEMENTS[name], "  "), ""]
    return "\n".join(lines).replace("$", "$$")


def _described(cls: type[Registered], prefix: str) -> Iterator[str]:
    """Give the first sentence of a class, and its options with their defaults and what they mean."""
    yield _plain_text(inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0])
    meanings: dict[str, str] = {}
    for level in reversed(cls.__mro__):
        _, _, section = inspect.cleandoc(level.__doc__ or "").partition("Parameters\n----------\n")
        # Until the next section's title.
        entries = re.split(r"\n\n\S+\n-+\n", section)[0]
        for names, meaning in re.findall(r"^(\w.*?) : .*\n((?:    .*\n?|\n)*)", entries, re.MULTILINE):
            meanings |= dict.fromkeys(names.split(", "), _plain_text(meaning))
    for name, default in _defaults(cls).items():
        yield f"{prefix}{name}={'null' if default is None else default}: {meanings.get(name, '')}".rstrip(": ")


def _plain_text(text: str) -> str:
    """Take roles and quotes of reStructuredText out of a text, and put it into one line."""
    return " ".join(re.sub(r":\w+:`~?([^`]*)`", r"\1", text).replace("``", "").split())


store_choices()
