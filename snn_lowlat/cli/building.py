"""Objects from a config: by ``_target_`` and its arguments, or by a registered name and its options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import hydra
from hydra.errors import CompactHydraException
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from snn_lowlat.cli.limits import is_full_disk, is_out_of_memory
from snn_lowlat.errors import SnnLowlatError, unknown_name

__all__ = ["ConfigError", "accepted_by", "build", "config_errors", "make"]


class ConfigError(SnnLowlatError, CompactHydraException):
    """The config holds a key or value that does not exist or is not fit; the message says what does exist."""


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
def config_errors(key: str = "") -> Iterator[None]:
    """Turn what goes wrong inside into a :class:`ConfigError` that names the key, unless what goes wrong does."""
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
        raise ConfigError(f"{key}: {error}{more}" if key else str(error)) from error


_USERS_ERRORS = (
    *(CompactHydraException, ImportError, FileNotFoundError, MisconfigurationException),
    *(RuntimeError, TypeError, ValueError),
)
_EXTRAS = {"tensorboard": "tensorboard", "tensorboardX": "tensorboard", "nir": "nir", "nirtorch": "nir"}
