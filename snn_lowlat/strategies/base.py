"""What every conversion strategy is."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from snn_lowlat.calibration import SiteStatistics
from snn_lowlat.plan import SitePlan

__all__ = ["Option", "Strategy"]

Option: TypeAlias = str | float | int | bool | Tensor | dict[str, Tensor] | None
"""A strategy's option as it is saved: only types that ``torch.load(weights_only=True)`` reads."""


@dataclasses.dataclass(frozen=True, eq=False)
class Strategy(ABC):
    """A rule that plans the neurons of one site from its statistics.

    Subclasses are frozen dataclasses whose fields are the options, check them in ``__post_init__``, and are made known
    by :func:`register_strategy`. A strategy knows neither the network nor the library that will run it.
    """

    name: ClassVar[str] = ""
    """The registered name, set by :func:`register_strategy`."""

    @abstractmethod
    def plan(self, statistics: SiteStatistics, timesteps: int) -> SitePlan:
        """Plan one site's neurons.

        Parameters
        ----------
        statistics : SiteStatistics
            What calibration saw at the site.
        timesteps : int
            The length of the simulation in steps, at least 1.
        """

    def options(self) -> dict[str, Option]:
        """Return the options as plain values: ``make_strategy(strategy.name, **strategy.options())`` is equal to it."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self) if field.init}

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return _same(self.options(), other.options())

    def __hash__(self) -> int:
        return hash(type(self))


def _plain(value: object) -> Option:
    if isinstance(value, Mapping):
        return {str(key): torch.as_tensor(item).detach().cpu().clone() for key, item in value.items()}
    return value  # type: ignore[return-value]


def _same(first: object, second: object) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(_same(first[key], second[key]) for key in first)
    return type(first) is type(second) and first == second
